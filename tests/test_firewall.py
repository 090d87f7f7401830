"""Data that chose something is recognised, however it is named, and refused as test data."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyCorpus, compose_config

from asr.config import EvaluateConfig
from asr.evaluate import evaluate
from asr.firewall import (
    MAX_KEYS,
    Choice,
    DataUse,
    EvaluatedData,
    TunedSplitError,
    check_data_use,
    choose_on,
    num_shared,
    record_choice,
    recorded_choices,
    training_choices,
    utterance_key,
)
from asr.manifest import manifest_sha256, read_manifest
from asr.records import Utterance
from asr.report.json_report import read_report
from asr.train import train


def some(count: int, *, first: int = 0, speaker: str = "s") -> list[Utterance]:
    return [
        Utterance(f"u{i}", Path(f"{i}.wav"), 1 + i / 100, f"text {i}", f"{speaker}{i % 2}")
        for i in range(first, first + count)
    ]


def data(utterances: list[Utterance], split: str, sha256: str = "other") -> EvaluatedData:
    return EvaluatedData("m.jsonl", sha256, utterances, split)


def choice(utterances: list[Utterance], sha256: str = "dev") -> Choice:
    return Choice("alpha", "dev.jsonl", sha256, len(utterances), tuple(map(utterance_key, utterances)))


def texts(use: DataUse) -> str:
    return " | ".join(f"{notice.severity}: {notice.text}" for notice in use.notices)


def test_key_ignores_where_the_audio_lies_and_nothing_else() -> None:
    (one,) = some(1)
    moved = dataclasses.replace(one, audio_file="/elsewhere/x.flac", text=" TEXT  0 ")
    assert utterance_key(moved) == utterance_key(one)
    for change in ({"id": "v"}, {"duration_seconds": 1.02}, {"text": "text"}):
        assert utterance_key(dataclasses.replace(one, **change)) != utterance_key(one)


def test_the_same_audio_under_another_name_is_known(tmp_path: Path) -> None:
    """As of a manifest without ids, which are made of file names that are unique: cut anew it has others."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("anything")
    utterances = some(3)
    chosen = choose_on("alpha", manifest, utterances)
    renamed = [dataclasses.replace(one, id=f"new-{one.id}") for one in utterances[:2]]
    assert num_shared(renamed, chosen) == 2
    elsewhere = [dataclasses.replace(one, audio_file=f"/moved/{one.id}.wav") for one in utterances]
    assert num_shared(elsewhere, chosen) == 3
    assert num_shared([dataclasses.replace(one, offset_seconds=5.0) for one in renamed], chosen) == 0


def test_fresh_data_is_clean() -> None:
    use = check_data_use(data(some(5, first=100), "test"), [choice(some(5))], [])
    assert use == DataUse("test", False, ())


@pytest.mark.parametrize("sha256", ["dev", "other"])
def test_test_data_that_chose_something_is_refused(sha256: str) -> None:
    """By the hash of the manifest, and when it was re-cut or renamed by the utterances."""
    utterances = some(3, first=2) if sha256 == "other" else some(5)
    with pytest.raises(TunedSplitError, match="allow_tuned_split") as caught:
        check_data_use(data(utterances, "test", sha256), [choice(some(5))], [])
    assert "alpha" in str(caught.value)
    assert "\n" not in str(caught.value)
    allowed = check_data_use(data(utterances, "test", sha256), [choice(some(5))], [], allow_tuned_split=True)
    assert allowed.is_optimistic
    assert texts(allowed).startswith("warning: not a test result")
    if sha256 == "other":
        assert "3 of its 3 utterances are in dev.jsonl" in texts(allowed)


def test_dev_data_is_marked_with_all_that_it_chose() -> None:
    stop = dataclasses.replace(choice(some(5)), what="when training stopped")
    use = check_data_use(data(some(5), "dev", "dev"), [stop, choice(some(5))], [])
    assert use.is_optimistic
    expected = "dev: this split chose when training stopped and alpha; the figure is optimistic"
    assert texts(use) == f"warning: {expected}"


def test_of_large_sets_a_sample_is_enough(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("anything")
    many = some(5 * MAX_KEYS)
    kept = choose_on("alpha", manifest, many)
    assert (kept.num_utterances, len(kept.keys)) == (5 * MAX_KEYS, 2 * MAX_KEYS)  # by content and by place
    assert num_shared(many[:100], kept) > 0
    assert num_shared(some(100, first=10**6), kept) == 0
    use = check_data_use(data(many[:100], "dev"), [kept], [])
    assert "at least" in texts(use)


def test_overlap_with_training_data(tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    train_manifest = tiny_corpus.manifest("train")
    described = {"path": str(train_manifest), "sha256": manifest_sha256(train_manifest)}
    dev = read_manifest(tiny_corpus.manifest("dev"))
    use = check_data_use(data(dev, "test"), [], [described])
    assert not use.is_optimistic
    assert texts(use).startswith("note: 2 of 2 speakers are in the training data")
    strangers = [dataclasses.replace(one, speaker=f"new{one.speaker}") for one in dev]
    assert check_data_use(data(strangers, "test"), [], [described]).notices == ()
    # The same audio under another name, with another transcript.
    (learned, *_) = read_manifest(train_manifest)
    renamed = dataclasses.replace(learned, id="new", text="zz", speaker="")
    use = check_data_use(data([*strangers, renamed], "test"), [], [described])
    assert use.is_optimistic
    assert "learned from 1 of these 5 utterances, e.g. new" in texts(use)
    use = check_data_use(data(dev, "test"), [], [described | {"sha256": "changed"}])
    assert "could not be looked for" in texts(use)


def test_training_records_what_dev_chose(tiny_train_config: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_train_config(run_dir, "trainer.early_stopping_epochs=5")) == 0
    provenance = json.loads((run_dir / "provenance.json").read_text())
    chosen = training_choices(provenance)
    assert [one.what for one in chosen] == ["the checkpoint with the lowest WER", "when training stopped"]
    assert {one.sha256 for one in chosen} == {provenance["manifests"]["dev"]["sha256"]}
    assert {len(one.keys) for one in chosen} == {2 * 4}  # by content and by place
    report = read_report(run_dir / "report.json")
    assert report.data_use is not None
    assert report.data_use.notices[0].text.startswith("dev: this split chose the checkpoint")
    # A checkpoint from before choices were recorded says as much by its manifests.
    (old,) = training_choices({"manifests": provenance["manifests"]})
    assert (old.sha256, old.keys) == (chosen[0].sha256, chosen[0].keys)


def test_record_of_a_run(tmp_path: Path) -> None:
    one, other = choice(some(3)), dataclasses.replace(choice(some(2)), what="beta")
    for chosen in (one, other, one):
        record_choice(tmp_path, chosen)
    assert recorded_choices(tmp_path) == [one, other]


@pytest.fixture
def run(tiny_run: Path, tiny_corpus: TinyCorpus, tmp_path: Path) -> Callable[..., DataUse]:
    """``run(*overrides)``: evaluate the tiny run; what its report says of the data's use."""

    def call(*overrides: str) -> DataUse:
        options = [f"checkpoint={tiny_run}", f"data.train={tiny_corpus.manifest('train')}"]
        options += [f"data.dev={tiny_corpus.manifest('dev')}", f"output={tmp_path / 'out'}", *overrides]
        assert evaluate(compose_config("evaluate", EvaluateConfig, options)) == 0
        use = read_report(tmp_path / "out" / "report.json").data_use
        assert use is not None
        return use

    return call


def test_evaluating_dev_as_test_is_refused(
    run: Callable[..., DataUse], tiny_corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = tiny_corpus.manifest("dev")
    recut = tiny_corpus.write(tmp_path / "my_test.jsonl", tiny_corpus.lines("dev")[:2])
    for claim in (
        [f"data.test={dev}", "split=test"],
        [f"manifest={dev}", "split=test"],
        [f"manifest={recut}"],
    ):
        with pytest.raises(TunedSplitError, match="chose the checkpoint"):
            run(*claim)
    use = run(f"manifest={recut}", "allow_tuned_split=true")
    assert (use.split, use.is_optimistic) == ("test", True)
    assert "not a test result" in capsys.readouterr().out


def test_what_a_manifest_is_evaluated_as(
    run: Callable[..., DataUse], tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    assert run().split == "dev"
    assert run(f"manifest={tiny_corpus.manifest('dev')}").split == "dev"
    renamed = tiny_corpus.write(tmp_path / "calls.jsonl", tiny_corpus.lines("dev")[:1])
    use = run(f"manifest={renamed}")
    assert (use.split, use.is_optimistic) == ("", True)
    use = run("split=train")
    assert "learned from these very utterances" in use.notices[0].text
