"""asr.tune chooses on dev alone, writes what it rests on, and its file is checked before it is used."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TinyCorpus, compose_config

from asr import evaluate as evaluate_command
from asr.config import BeamConfig, BeamLmConfig, DecoderConfig, EvaluateConfig, GreedyConfig, TuneConfig
from asr.dataset import Example
from asr.decode.estimate import estimate
from asr.errors import AsrError, AudioError, ConfigError
from asr.evaluate import evaluate
from asr.firewall import recorded_choices
from asr.manifest import read_manifest
from asr.pipeline import Recognised
from asr.records import Hypothesis, Utterance
from asr.report.json_report import read_report
from asr.score import ErrorCounts
from asr.tune import Search, tune
from asr.tuned_decoder import FileIdentity, apply, check, read
from asr.tuning import (
    DevSet,
    Trial,
    Trials,
    cached_emissions,
    choose_pruning,
    choose_weights,
    cross_fitted,
    groups_of,
    pareto_front,
    within_noise,
)

Tune = Callable[..., Path]
SMALL = ["alphas=[0.0,0.5,1.0]", "betas=[0.0,1.0]", "refine_rounds=1"]
SMALL += ["beam_widths=[2,8]", "score_gaps=[12.0]", "token_gaps=[8.0]", "unknown_penalties=[-5.0,-1.0]"]


def trial(errors: list[int], alpha: float = 0.0, beta: float = 0.0, seconds: float = 1.0) -> Trial:
    counts = tuple(ErrorCounts(10 - error, error) for error in errors)
    return Trial("t", BeamLmConfig(lm="a", alpha=alpha, beta=beta), counts, seconds)


def test_noise_is_one_paired_standard_error() -> None:
    best = np.zeros(4)
    assert within_noise(best, best)
    # Sum 1; deviations of (1, 0, 0, 0): sqrt(0.25), times sqrt(4) is exactly 1.
    assert within_noise(np.array([1.0, 0, 0, 0]), best)
    assert not within_noise(np.array([1.0, 1, 0, 0]), best)  # 2 > sqrt(1/3) * 2
    assert within_noise(np.array([3.0, -1, 0, 0]), best)  # 2 <= sqrt(3) * 2


def test_the_middle_of_the_plateau_is_chosen() -> None:
    flat = [trial([1, 0, 0, 0], alpha=alpha / 10) for alpha in range(1, 6)]
    lucky = trial([0, 0, 0, 0], alpha=0.5)
    far = trial([5, 5, 5, 5], alpha=0.3)
    assert choose_weights([*flat, lucky, far]).option("alpha") == 0.3
    assert choose_weights([*flat, lucky, far]).num_errors == 1


def test_pruning_makes_no_more_errors_than_the_widest() -> None:
    widest = trial([1, 1, 0], seconds=9)
    trials = [trial([1, 1, 1], seconds=1), trial([2, 0, 0], seconds=3), trial([0, 0, 0], seconds=5), widest]
    assert choose_pruning(trials, widest) is trials[1]
    assert [one.cpu_seconds for one in pareto_front(trials)] == [1, 3, 5]


def test_cross_fitting_scores_what_others_chose() -> None:
    """Two speakers who each want what harms the other: every choice is the wrong one."""
    for_a, for_b = trial([0, 0, 9, 9], alpha=0), trial([9, 9, 0, 0], alpha=1)
    assert cross_fitted([for_a, for_b], ["a", "a", "b", "b"], 2, seed=0).tolist() == [9, 9, 9, 9]


def test_cross_fitting_needs_others() -> None:
    for groups, num_folds in ((["a", "a"], 2), (["a", "b"], 1)):
        with pytest.raises(ValueError, match="two of both"):
            cross_fitted([trial([0, 1])], groups, num_folds, seed=0)


def spoken_by(speakers: Sequence[str]) -> list[Utterance]:
    return [
        Utterance(str(number), "x.wav", 1.0, "one two", speaker) for number, speaker in enumerate(speakers)
    ]


def test_speakers_stay_together_where_they_are_known() -> None:
    assert groups_of(spoken_by(["ann", "ben", "ann"])) == ("speaker", ["ann", "ben", "ann"])
    for speakers in (["ann", "ann"], ["ann", "", "ben"], ["", ""]):
        assert groups_of(spoken_by(speakers)) == ("utterance", [str(place) for place in range(len(speakers))])


def imagined_search(
    speakers: Sequence[str], searched: dict[str, list[Any]], heard: Callable[[Any], str], **decoder: Any
) -> Search:
    """A search in which a decoder hears, in each utterance, what its settings say."""
    examples = [Example(utterance, utterance.text) for utterance in spoken_by(speakers)]
    dev = DevSet(examples, [1] * len(examples), np.zeros((len(examples), 2), np.float32), is_from_cache=False)

    def make_decoder(settings: DecoderConfig) -> Any:
        return SimpleNamespace(
            decode=lambda emissions: [SimpleNamespace(text=heard(settings))] * len(emissions.log_probs)
        )

    given = BeamLmConfig(lm="x.arpa", **decoder)
    search = Search(
        TuneConfig(checkpoint="x", decoder=given), searched, Trials(dev, make_decoder, str.strip), dev
    )
    search.run()
    return search


def test_the_line_says_who_chose_the_weights() -> None:
    for speakers, unit in (
        (["ann", "ben"], "speakers"),
        (["ann", "ann"], "utterances"),
        (["", ""], "utterances"),
    ):
        search = imagined_search(speakers, {"alpha": [0.0, 1.0], "beta": [0.0]}, lambda _: "one two")
        names = [step.name for step in search.steps()]
        assert [name for name in names if "chosen on other" in name] == [f"weights chosen on other {unit}"]


def test_the_given_pruning_may_be_the_widest() -> None:
    def heard(settings: Any) -> str:
        if getattr(settings, "beam_width", 0) < 64:
            return "one"
        started = time.process_time()
        while time.process_time() - started < 0.005:
            pass
        return "one two"

    search = imagined_search(["ann", "ben"], {"beam_width": [2, 8]}, heard, beam_width=64)
    assert search.chosen.option("beam_width") == 64
    assert search.chosen.num_errors == 0


@pytest.fixture
def listen(tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DevSet]:
    """``listen(level, fails=ID, checkpoint=SHA)``: emissions of this level for copies of the dev set, or kept ones."""
    for line in tiny_corpus.lines("dev"):
        name = line["audio_filepath"]
        (tmp_path / name).write_bytes((tiny_corpus.folder / name).read_bytes())
    manifest = tmp_path / "dev.jsonl"
    manifest.write_bytes(tiny_corpus.manifest("dev").read_bytes())
    recogniser: Any = SimpleNamespace(normalise=str.strip, tokenizer=SimpleNamespace(vocab_size=3))

    def run(level: float, *, fails: str = "", checkpoint: str = "c") -> DevSet:
        def recognise(_: Any, examples: Sequence[Example], **__: Any) -> Any:
            yield [
                Recognised(place, AudioError("gone"))
                if example.utterance.id == fails
                else Recognised(place, Hypothesis((), "", 0.0), log_probs=torch.full((2, 3), level))
                for place, example in enumerate(examples)
            ]

        monkeypatch.setattr("asr.tuning.recognise_examples", recognise)
        return cached_emissions(
            recogniser,
            read_manifest(manifest),
            tmp_path / "kept",
            checkpoint_sha256=checkpoint,
            manifest_sha256="m",
            max_batch_utterances=4,
            max_batch_seconds=100.0,
        )

    return run


def test_kept_emissions_are_of_these_utterances(listen: Callable[..., DevSet]) -> None:
    assert len(listen(1.0, fails="dev-1").examples) == 3
    again = listen(2.0)
    assert not again.is_from_cache
    assert len(again.examples) == 4
    kept = listen(3.0)
    assert kept.is_from_cache
    assert np.unique(kept.log_probs).tolist() == [2.0]


def test_other_audio_of_the_same_name_is_listened_to(listen: Callable[..., DevSet], tmp_path: Path) -> None:
    listen(1.0)
    audio = tmp_path / "dev-2.wav"
    content = audio.read_bytes()
    changed = audio.stat().st_mtime_ns + 10**9
    audio.write_bytes(content[:-2] + b"xy")
    os.utime(audio, ns=(changed, changed))
    again = listen(2.0)
    assert not again.is_from_cache
    assert np.unique(again.log_probs).tolist() == [2.0]


def test_an_interruption_pairs_no_index_with_other_emissions(
    listen: Callable[..., DevSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    listen(1.0, checkpoint="c")
    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", interrupted)  # the index
        with pytest.raises(KeyboardInterrupt):
            listen(2.0, checkpoint="d")
    again = listen(1.0, checkpoint="c")
    assert not again.is_from_cache
    assert np.unique(again.log_probs).tolist() == [1.0]


@pytest.fixture(scope="module")
def language_model(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    estimate([line["text"].split() for line in tiny_corpus.lines("train")], path, order=2)
    return path


@pytest.fixture(scope="module")
def options(tiny_run: Path, tiny_corpus: TinyCorpus) -> list[str]:
    data = [f"data.{split}={tiny_corpus.manifest(split)}" for split in ("train", "dev")]
    return [f"checkpoint={tiny_run}", *data, "data.name=tiny", "data.test=null"]


def run_tune(options: list[str], *overrides: str) -> int:
    return tune(compose_config("tune", TuneConfig, [*options, *SMALL, *overrides]))


@pytest.fixture(scope="module")
def tuned(options: list[str], language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    assert run_tune(options, f"decoder.lm={language_model}", f"output={folder}") == 0
    return folder / "tuned_decoder.yaml"


def test_everything_is_written(tuned: Path, tiny_run: Path, tiny_corpus: TinyCorpus) -> None:
    content = read(tuned)
    assert content.chosen_on.num_utterances == 4
    assert len(content.chosen_on.keys) == 2 * 4
    assert content.chosen_on in recorded_choices(tiny_run)
    search = json.loads((tuned.parent / "tuning.json").read_text())
    chosen = [point for point in search["trials"] if point["is_chosen"]]
    assert len(chosen) == 1
    assert {name: content.decoder[name] for name in chosen[0]["options"]} == chosen[0]["options"]
    grid = {(point["options"]["alpha"], point["options"]["beta"]) for point in search["trials"]}
    assert {(alpha, beta) for alpha in (0.0, 0.5, 1.0) for beta in (0.0, 1.0)} <= grid
    assert (tuned.parent / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_those_of_an_evaluation(
    tuned: Path, options: list[str], language_model: Path, tmp_path: Path
) -> None:
    search = json.loads((tuned.parent / "tuning.json").read_text())
    wer = {step["name"]: step["wer"] for step in search["steps"]}
    output = f"output={tmp_path / 'out'}"
    given = ["decoder=beam_lm", f"decoder.lm={language_model}"]
    for name, overrides in (
        ("greedy", []),
        ("beam search with the language model, as given", given),
        ("tuned here (optimistic)", [f"tuned={tuned}"]),
    ):
        assert evaluate(compose_config("evaluate", EvaluateConfig, [*options, output, *overrides])) == 0
        report = read_report(tmp_path / "out" / "report.json")
        assert report.wer == pytest.approx(wer[name]), name
    weights = report.provenance["decoder_weights"]
    assert weights["origin"] == "tuned"
    assert weights["manifest"]["sha256"] == report.provenance["manifest"]["sha256"]
    assert report.provenance["decoder_files"]["lm"]["sha256"] == read(tuned).files["lm"].sha256
    assert report.greedy is not None
    assert report.data_use is not None
    assert "alpha, beta" in report.data_use.notices[0].text
    assert "the checkpoint" in report.data_use.notices[0].text


def test_flashlight_without_words_has_no_word_bonus(
    options: list[str], tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    pytest.importorskip("flashlight")
    tokens = [[c.replace(" ", "<space>") for c in line["text"]] for line in tiny_corpus.lines("train")]
    estimate(tokens, tmp_path / "tokens.arpa", order=2)
    lm = ["decoder=flashlight", f"decoder.lm={tmp_path / 'tokens.arpa'}", "decoder.lm_unit=token"]
    assert run_tune(options, *lm, f"output={tmp_path}") == 0
    points = json.loads((tmp_path / "tuning.json").read_text())["trials"]
    assert {name for point in points for name in point["options"]} == {"alpha", "beam_width", "score_gap"}
    assert {0.0, 0.5, 1.0} < {point["options"]["alpha"] for point in points}  # and finer ones


def test_emissions_are_kept(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beam = ["decoder=beam", f"output={tmp_path}"]
    assert run_tune(options, *beam) == 0
    first = (tmp_path / "emissions.f32").read_bytes()
    assert run_tune(options, *beam, "image_format=svg") == 0
    (tmp_path / "emissions.f32").write_bytes(first[:-4])  # cut short: made again
    assert run_tune(options, *beam) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emissions")]
    assert [line.split(": ")[1] for line in lines] == ["computed", "kept from an earlier search", "computed"]
    assert (tmp_path / "emissions.f32").read_bytes() == first
    assert (tmp_path / "tuning.svg").exists()


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(AsrError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_test_data_is_refused(
    options: list[str], language_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    lm, dev = f"decoder.lm={language_model}", tiny_corpus.manifest("dev")
    recut = tiny_corpus.write(tmp_path / "calls.jsonl", tiny_corpus.lines("dev")[:2])
    for claim, expected in (
        ([f"data.test={dev}", "split=test"], "is the test split"),
        ([f"data.test={dev}"], "under another name"),
        ([f"data.test={recut}"], "shares 2 of its 4 utterances"),
        ([f"manifest={dev}", "split=test"], "is the test split"),
        (["split=train"], "is the train split"),
    ):
        assert expected in refusal(lambda claim=claim: run_tune(options, lm, *claim, f"output={tmp_path}"))
    assert not (tmp_path / "tuned_decoder.yaml").exists()


def test_nothing_to_tune(options: list[str]) -> None:
    for decoder in ("greedy", "cuda"):
        message = refusal(lambda decoder=decoder: run_tune(options, f"decoder={decoder}"))
        assert f"decoder={decoder} has no weights to tune" in message
    assert "alphas" in refusal(lambda: run_tune(options, "decoder.lm=a", "alphas=[]"))


def test_settings_of_the_file_stand(tuned: Path, language_model: Path) -> None:
    content = read(tuned)
    settings = apply(content, "t.yaml", GreedyConfig(), [])
    assert dataclasses.asdict(settings) == content.decoder
    other = BeamLmConfig(lm="moved.arpa", alpha=9.0)
    assert apply(content, "t.yaml", other, ["decoder", "decoder.lm"]).lm == "moved.arpa"  # type: ignore[attr-defined]
    message = refusal(lambda: apply(content, "t.yaml", other, ["decoder", "decoder.alpha"]))
    assert "decoder.alpha=9.0 contradicts tuned=t.yaml" in message
    assert "decoder=beam contradicts" in refusal(lambda: apply(content, "t.yaml", BeamConfig(), ["decoder"]))


def test_contradiction_on_the_command_line(
    tuned: Path, options: list[str], tmp_path: Path, language_model: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [*options, f"tuned={tuned}", f"output={tmp_path}", "decoder=beam_lm"]
    arguments += [f"decoder.lm={language_model}", "decoder.alpha=7.5"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert evaluate_command.main() == 2
    assert "decoder.alpha=7.5 contradicts" in capsys.readouterr().err


def test_what_it_was_not_made_for_is_refused(tuned: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = read(tuned)
    same: dict[str, Any] = {
        "checkpoint": content.checkpoint,
        "tokenizer": content.tokenizer,
        "files": content.files,
    }
    check(content, "t.yaml", **same)
    assert not caplog.records
    message = refusal(lambda: check(content, "t.yaml", **same | {"tokenizer": "f" * 64}))
    assert "another tokenizer" in message
    changed = {"lm": FileIdentity("other.arpa", "0" * 64)}
    message = refusal(lambda: check(content, "t.yaml", **same | {"files": changed}))
    assert "other.arpa" in message
    assert content.files["lm"].path in message
    assert "decoder.lexicon=none" in refusal(
        lambda: check(content, "t.yaml", **same | {"files": content.files | {"lexicon": changed["lm"]}})
    )
    check(content, "t.yaml", **same | {"checkpoint": FileIdentity("b.ckpt", "1" * 64)})
    assert "another checkpoint" in caplog.text


def test_damaged_files_are_one_line(tuned: Path, tmp_path: Path) -> None:
    assert "asr.tune makes it" in refusal(lambda: read(tmp_path / "gone.yaml"))
    path = tmp_path / "t.yaml"
    content = yaml.safe_load(tuned.read_text())
    for damage in (
        "[1, 2]",
        "{: :",
        yaml.safe_dump({**content, "format": 0}),
        yaml.safe_dump({**content, "chosen_on": 3}),
    ):
        path.write_text(damage)
        assert f"tuned={path}" in refusal(lambda: read(path))
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if name != "files"}))
    with pytest.raises(ConfigError, match="lacks the field files"):
        read(path)
