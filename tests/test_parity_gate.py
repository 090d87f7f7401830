"""check_parity=true: a sound model passes, one that hears its padding or its batch is caught."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import compose_config
from tiny_model import SAMPLE_RATE, babble, write_checkpoint
from torch import Tensor

from asr.config import EvaluateConfig
from asr.errors import ConfigError
from asr.evaluate import evaluate
from asr.models.acoustic import AcousticModel
from asr.module import CtcModule
from asr.parity import mixed_batches
from asr.records import Batch, Emissions, Hypothesis, Word
from asr.report.parity import describe_difference

NUM_SAMPLES = (9_600, 16_001, 23_457, 40_000)
WINDOWED = "transcription in windows"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of their own, and two cuts of a longer one."""
    folder = tmp_path_factory.mktemp("audio")
    lines = []
    for number, num_samples in enumerate(NUM_SAMPLES):
        name, seconds = f"{number}.wav", num_samples / SAMPLE_RATE
        soundfile.write(folder / name, babble(seconds, number), SAMPLE_RATE)
        lines.append({"id": str(number), "audio_filepath": name, "duration": seconds, "text": "some words"})
    soundfile.write(folder / "long.wav", babble(3.0, 9), SAMPLE_RATE)
    for offset in (0.0, 1.3):
        cut = {"audio_filepath": "long.wav", "duration": 1.2, "offset": offset, "text": "x"}
        lines.append({"id": f"cut-{offset}", **cut})
    path = folder / "dev.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt")


Gate = Callable[..., int]


@pytest.fixture
def gate(checkpoint_path: Path, manifest: Path, tmp_path: Path) -> Gate:
    def call(*overrides: str) -> int:
        options = [
            f"checkpoint={checkpoint_path}",
            f"manifest={manifest}",
            "check_parity=true",
            f"output={tmp_path}",
        ]
        options += [
            "data.train=unused",
            "data.dev=unused",
            "max_window_difference=1",
            "data.max_batch_utterances=2",
            *overrides,
        ]
        return evaluate(compose_config("evaluate", EvaluateConfig, options))

    return call


def different(folder: Path) -> dict[str, int]:
    found = json.loads((folder / "parity.json").read_text())
    return {way["name"]: way["num_different"] for way in found["ways"]}


def test_a_sound_model_passes(gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate() == 0
    found = different(tmp_path)
    assert len(found) == 7
    assert not any(number for way, number in found.items() if way != WINDOWED)
    report = json.loads((tmp_path / "parity.json").read_text())
    assert [way["num_compared"] for way in report["ways"]] == [6] * 6 + [1]
    assert report["num_reference"] == 10
    assert "All ways agree" in capsys.readouterr().out


def test_a_model_that_hears_its_padding_is_caught(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = AcousticModel.forward

    def padded(
        self: AcousticModel, waveforms: Tensor, lengths: Tensor, *rest: object, **more: object
    ) -> Emissions:
        emissions = forward(self, waveforms, lengths, *rest, **more)  # type: ignore[arg-type]
        share = (waveforms.shape[1] - lengths).float() / waveforms.shape[1]
        bias = torch.zeros(len(lengths), 1, emissions.log_probs.shape[2], device=share.device)
        bias[:, 0, 0] = 30 * share
        return emissions._replace(log_probs=(emissions.log_probs + bias).log_softmax(dim=2))

    monkeypatch.setattr(AcousticModel, "forward", padded)
    assert gate() == 1
    found = different(tmp_path)
    assert found["evaluation, one by one"] > 0
    assert found["evaluation, lengths mixed"] > 0
    assert found["transcription"] == 0  # the same batches: the same mistake
    report = json.loads((tmp_path / "parity.json").read_text())
    assert all(one["max_log_prob"] > 0.1 for one in report["differences"] if one["max_log_prob"] is not None)
    shown = capsys.readouterr().out
    assert "differences in evaluation, one by one" in shown


def test_a_validation_of_its_own_is_caught(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_step = CtcModule.shared_step

    def louder(self: CtcModule, batch: Batch) -> object:
        batch.waveforms.clamp_(-0.01, 0.01)
        return shared_step(self, batch)

    monkeypatch.setattr(CtcModule, "shared_step", louder)
    assert gate() == 1
    found = different(tmp_path)
    assert {way for way, number in found.items() if number and way != WINDOWED} == {
        "validation",
        "validation, lengths mixed",
    }


def test_windows_may_differ_so_much_and_no_more(gate: Gate, tmp_path: Path) -> None:
    options = ["window_seconds=1", "overlap_seconds=0.1"]
    assert gate(*options) == 0
    share = json.loads((tmp_path / "parity.json").read_text())["window_difference"]
    assert share == 1  # babble is one word
    assert gate(*options, "max_window_difference=0.99") == 1


def test_unreadable_audio_fails_the_gate(gate: Gate, manifest: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines()
    gone = {"id": "gone", "audio_filepath": "gone.wav", "duration": 1.0, "text": "x"}
    other = manifest.with_name("gone.jsonl")
    other.write_text("\n".join([lines[0], json.dumps(gone)]) + "\n")
    assert gate(f"manifest={other}") == 1
    (failed,) = json.loads((tmp_path / "parity.json").read_text())["failed"]
    assert failed.startswith("gone: ")


def test_differences_have_times_and_sizes() -> None:
    words = [
        Word(text, start, start + 0.2, 1.0) for text, start in (("one", 0.5), ("two", 1.5), ("three", 2.5))
    ]
    expected = Hypothesis((), "one two three", 0.0, words=tuple(words))
    found = Hypothesis((), "one too three four", 0.0)
    difference = describe_difference("u", "way", "other", expected, found, 0.25)
    assert (difference.num_words, difference.num_characters) == (2, 6)
    assert difference.start_seconds == 1.5
    assert describe_difference("u", "way", "other", found, found, None).start_seconds is None


def test_mixed_batches_hold_each_utterance_once_within_their_limits() -> None:
    durations = [float(number % 7 + 1) for number in range(23)]
    batches = mixed_batches(durations, 4, 20.0)
    assert sorted(index for batch in batches for index in batch) == list(range(23))
    assert all(len(batch) * max(durations[index] for index in batch) <= 20 for batch in batches)
    assert max(map(len, batches)) <= 4
    first = [durations[index] for index in mixed_batches(durations, 8, 1e6)[0]]
    assert (min(first), max(first)) == (1, 7)


def test_contradictions_are_named() -> None:
    needed = ["checkpoint=a", "data.train=a", "data.dev=a"]
    for option in ("window_seconds=20", "max_window_difference=0.1"):
        with pytest.raises(ConfigError, match="check_parity=true"):
            compose_config("evaluate", EvaluateConfig, [*needed, option])
    with pytest.raises(ConfigError, match="sweep="):
        compose_config("evaluate", EvaluateConfig, [*needed, "check_parity=true", "sweep=speed"])
    with pytest.raises(ConfigError, match="overlap_seconds"):
        compose_config("evaluate", EvaluateConfig, [*needed, "check_parity=true", "overlap_seconds=20"])
