"""asr.evaluate: the same figures as training's validation, and one line for every mistake."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import pytest
from conftest import TinyCorpus, compose_config

from asr.config import EvaluateConfig
from asr.errors import AsrError, CheckpointError, ConfigError, ManifestError
from asr.evaluate import evaluate
from asr.report.json_report import ReportError, read_report
from asr.train import train

Run = Callable[..., int]


@pytest.fixture
def run(tiny_run: Path, tiny_corpus: TinyCorpus, tmp_path: Path) -> Run:
    """``run(*overrides)``: evaluate the tiny run on its dev set; returns the exit code."""

    def call(*overrides: str) -> int:
        options = [f"checkpoint={tiny_run}", f"data.dev={tiny_corpus.manifest('dev')}", "data.name=tiny"]
        options += [f"data.train={tiny_corpus.manifest('train')}", f"output={tmp_path / 'out'}", *overrides]
        return evaluate(compose_config("evaluate", EvaluateConfig, options))

    return call


def refusal(run: Run, kind: type[AsrError], overrides: Sequence[str]) -> str:
    with pytest.raises(kind) as caught:
        run(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_same_figures_as_validation_and_as_the_report_of_the_run(
    run: Run, tiny_run: Path, tmp_path: Path, batch_size: int
) -> None:
    assert run(f"data.max_batch_utterances={batch_size}") == 0
    found = read_report(tmp_path / "out" / "report.json")
    at_the_end = read_report(tiny_run / "report.json")
    with open(tiny_run / "metrics.csv", newline="") as file:
        validations = [row for row in csv.DictReader(file) if row["dev/wer"]]
    best = min(validations, key=lambda row: float(row["dev/wer"]))
    assert found.wer == at_the_end.wer == pytest.approx(float(best["dev/wer"]), abs=1e-9)
    assert found.cer == at_the_end.cer == pytest.approx(float(best["dev/cer"]), abs=1e-9)
    assert [(result.id, result.hypothesis) for result in found.utterances] == [
        (result.id, result.hypothesis) for result in at_the_end.utterances
    ]


def test_a_report_of_something_else_is_not_replaced_in_silence(
    run: Run, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, is_other in (([], False), ([], False), (["decoder=beam"], True), (["decoder=beam"], False)):
        assert run("html=false", *options) == 0
        replaced = f"replaced: the report of {tiny_run / 'checkpoints' / 'best.ckpt'} with decoder=greedy"
        assert (replaced in capsys.readouterr().out.replace("\n", " ")) == is_other


def test_validation_in_a_bf16_training_decodes_in_full_precision(
    run: Run, tiny_train_config: Callable[..., Any], tmp_path: Path
) -> None:
    options = ["trainer.precision=bf16", "trainer.max_epochs=1", "optimizer.learning_rate=1e-2"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    assert run(f"checkpoint={tmp_path / 'run'}") == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        (validation,) = [row for row in csv.DictReader(file) if row["dev/wer"]]
    report = read_report(tmp_path / "out" / "report.json")
    assert report.wer == pytest.approx(float(validation["dev/wer"]), abs=1e-9)
    assert report.cer == pytest.approx(float(validation["dev/cer"]), abs=1e-9)


def test_report_holds_what_it_promises(run: Run, tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    assert run() == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    references = [utterance["reference"] for utterance in report["utterances"]]
    hypotheses = [utterance["hypothesis"] for utterance in report["utterances"]]
    assert references == [line["text"] for line in tiny_corpus.lines("dev")]
    words = jiwer.process_words(references, hypotheses)
    assert report["wer"] == pytest.approx(words.wer)
    assert report["cer"] == pytest.approx(jiwer.cer(references, hypotheses))
    assert report["counts"]["substitutions"] == words.substitutions
    assert report["counts"]["deletions"] == words.deletions
    assert report["counts"]["insertions"] == words.insertions
    assert report["num_utterances"] == 4
    assert report["audio_seconds"] == pytest.approx(
        sum(line["duration"] for line in tiny_corpus.lines("dev"))
    )
    assert report["rtfx"] > 0
    assert report["provenance"]["manifest"]["sha256"]
    assert report["provenance"]["training"]["manifests"]["train"]["sha256"]


def test_terminal_shows_the_table_and_the_worst(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("num_worst=1")
    shown = capsys.readouterr().out
    assert "WER" in shown
    assert shown.count("REF") == 1
    assert "report.json" in shown


def test_splits_and_manifests(run: Run, tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    assert run("split=train") == 0
    assert read_report(tmp_path / "out" / "report.json").num_utterances == 8
    one = tiny_corpus.write(tmp_path / "one.jsonl", tiny_corpus.lines("dev")[:1])
    assert run(f"manifest={one}") == 0
    assert read_report(tmp_path / "out" / "report.json").num_utterances == 1


def test_default_output_is_in_the_run_directory(run: Run, tiny_run: Path) -> None:
    assert run("output=null") == 0
    assert read_report(tiny_run / "evaluation" / "tiny-dev" / "report.json").num_utterances == 4


def test_unreadable_audio_is_named_the_rest_is_scored(
    run: Run, tiny_corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    lines = tiny_corpus.lines("dev")
    lines[0]["audio_filepath"] = str(tmp_path / "gone.wav")
    lines[1]["audio_filepath"] = str(tmp_path / "text.wav")
    manifest = tiny_corpus.write(tmp_path / "broken.jsonl", lines)
    assert run(f"manifest={manifest}") == 1
    report = read_report(tmp_path / "out" / "report.json")
    assert report.num_utterances == 2
    assert {exclusion.id for exclusion in report.excluded} == {"dev-0", "dev-1"}
    assert "dev-0" in capsys.readouterr().out


def test_mistakes_are_named(run: Run, tmp_path: Path) -> None:
    assert "gone.jsonl" in refusal(run, ManifestError, [f"manifest={tmp_path / 'gone.jsonl'}"])
    message = refusal(
        run, ManifestError, [f"data.dev={tmp_path / 'gone.jsonl'}", "data.prepare_hint=do this"]
    )
    assert "gone.jsonl" in message
    assert "do this" in message
    assert "data.test" in refusal(run, ConfigError, ["split=test", "data.test=null"])
    assert "gone.ckpt" in refusal(run, CheckpointError, [f"checkpoint={tmp_path / 'gone.ckpt'}"])
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refusal(run, ManifestError, [f"manifest={tmp_path / 'empty.jsonl'}"])
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refusal(run, ReportError, [f"output={tmp_path / 'file' / 'out'}"])
    with pytest.raises(ConfigError, match="split=tets"):
        run("split=tets")


def test_nothing_is_calibrated_on_test_data(run: Run, tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    dev = tiny_corpus.manifest("dev")
    recut = tiny_corpus.write(tmp_path / "calls.jsonl", tiny_corpus.lines("dev")[:2])
    for claim, expected in (
        ([f"manifest={dev}", "split=test"], "is the test split"),
        ([f"manifest={recut}", f"data.test={recut}", f"data.dev={recut}"], "is the test split"),
        ([f"data.test={dev}"], "under another name"),
        ([f"manifest={dev}", f"data.test={recut}"], "shares 2 of its 4 utterances"),
        ([f"manifest={tiny_corpus.manifest('train')}"], "is the train split"),
    ):
        message = refusal(run, ConfigError, ["calibrate=true", *claim])
        assert expected in message, claim
        assert "calibrate on" in message
    with pytest.raises(ConfigError, match="needs at least 10 correct and 10 wrong words"):
        run("calibrate=true", f"manifest={dev}")  # nothing against this one but its size
