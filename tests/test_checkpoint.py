"""Checkpoints: they give the same recogniser back, or say in one line why they cannot."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio

from asr import checkpoint
from asr.callbacks import AtomicCheckpointIO
from asr.config import GreedyConfig
from asr.errors import CheckpointError, TrainingError
from asr.recogniser import Recogniser

CPU = torch.device("cpu")


def load(path: Path) -> Recogniser:
    return checkpoint.load_recogniser(path, GreedyConfig(), CPU)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture(scope="module")
def best(tiny_run: Path) -> Path:
    return tiny_run / "checkpoints" / "best.ckpt"


@pytest.fixture
def altered(best: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """A copy of the checkpoint with something changed by a function."""

    def alter(change: Callable[[dict[str, Any]], Any]) -> Path:
        content = torch.load(best, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "altered.ckpt")
        return tmp_path / "altered.ckpt"

    return alter


def test_round_trip_gives_the_same_log_probs(tiny_train_config: Callable[..., Any], tmp_path: Path) -> None:
    from asr import build
    from asr.tokenizer import CharTokenizer

    config = tiny_train_config(tmp_path)
    tokenizer = CharTokenizer.train(["ab cd"])
    torch.manual_seed(3)
    model = build.make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    waveforms = [torch.randn(8000), torch.randn(5000)]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    for _ in range(3):  # the running statistics of batch norm are part of what is stored
        model.train()(padded, torch.tensor([8000, 5000]))
    with torch.no_grad():
        expected = model.eval()(padded, torch.tensor([8000, 5000]))
    state = {f"acoustic_model.{name}": value for name, value in model.state_dict().items()}
    recipe = checkpoint.describe(config, tokenizer, model.features, {})
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "recipe": recipe}, tmp_path / "best.ckpt")

    recogniser = load(tmp_path / "best.ckpt")
    found = recogniser.emissions(waveforms)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(found.log_prob_lengths, expected.log_prob_lengths)
    assert recogniser.tokenizer.state() == tokenizer.state()


def test_a_run_directory_means_its_best_checkpoint(tiny_run: Path, best: Path, tmp_path: Path) -> None:
    assert checkpoint.resolve(tiny_run) == best
    shutil.copy(best, tmp_path / "last.ckpt")
    assert checkpoint.resolve(tmp_path) == tmp_path / "last.ckpt"


def test_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.ckpt")
    assert "holds no best.ckpt or last.ckpt" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint\n", b"PK\x03\x04 half a zip", b"\x80\x04K\x01."], ids=repr
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert "not a checkpoint of this program" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(best: Path, tmp_path: Path, share: float) -> None:
    whole = best.read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: int(share * len(whole))])
    assert "damaged" in refusal(tmp_path / "half.ckpt")


def test_somebody_elses_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    assert "no recipe" in refusal(tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "other.ckpt")
    assert "no recipe" in refusal(tmp_path / "other.ckpt")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_other_schema_version(altered: Any, version: Any) -> None:
    path = altered(lambda content: content["recipe"].update(schema_version=version))
    message = refusal(path)
    assert f"schema {version}" in message
    assert "reads 1" in message


class Payload:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_never_runs(altered: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = altered(lambda content: content["recipe"].update(extra=Payload(marker)))
    message = refusal(path)
    assert "not a checkpoint of this program" in message
    assert f"of the type {os.mkdir.__module__}.mkdir" in message
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Payload(marker)))
    assert "weights_only" not in message + refusal(plain)  # torch advises to switch the protection off
    assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["recipe"]["tokenizer"].clear(),
        lambda content: content["recipe"].update(tokenizer=None),
        lambda content: content["recipe"].pop("tokenizer"),
        lambda content: content["recipe"]["tokenizer"].update(type="other"),
        lambda content: content["recipe"].pop("config"),
        lambda content: content["recipe"]["config"].pop("model"),
        lambda content: content["recipe"]["config"]["model"].pop("rnn_size"),
        lambda content: content["recipe"]["config"]["model"].update(rnn_size="wide"),
        lambda content: content["recipe"]["config"]["model"].update(kind="os.system"),
        lambda content: content["recipe"]["config"]["features"].update(colour="red"),
    ],
    ids=range(10),
)
def test_damaged_recipe(altered: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    refusal(altered(change))


def test_weights_that_do_not_fit(altered: Any) -> None:
    assert "do not fit" in refusal(
        altered(lambda content: content["recipe"]["config"]["model"].update(rnn_size=8))
    )
    assert "do not fit" in refusal(altered(lambda content: content["state_dict"].clear()))


@pytest.mark.parametrize("expected", [None, [], ["x"] * 13, [0.0] * 13])
def test_unusable_fingerprint(altered: Any, expected: Any) -> None:
    path = altered(lambda content: content["recipe"].update(front_end_fingerprint=expected))
    assert "computes other features" in refusal(path)


@pytest.mark.parametrize("drift", ["floor", "scale"])
def test_front_end_that_has_drifted_is_refused(
    best: Path, monkeypatch: pytest.MonkeyPatch, drift: str
) -> None:
    """What another version of torchaudio or of this program could change without an error."""
    if drift == "floor":
        monkeypatch.setattr("asr.features.LOG_FLOOR", 1e-4)
    else:
        true_spectrogram = torchaudio.transforms.Spectrogram
        monkeypatch.setattr(
            torchaudio.transforms,
            "Spectrogram",
            lambda **options: true_spectrogram(**{**options, "normalized": True}),
        )
    assert "computes other features" in refusal(best)


def test_filterbank_and_window_come_from_the_checkpoint(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    before = load(best).emissions([waveform]).log_probs
    mel_scale, spectrogram = torchaudio.transforms.MelScale, torchaudio.transforms.Spectrogram
    monkeypatch.setattr(
        torchaudio.transforms, "MelScale", lambda **options: mel_scale(mel_scale="slaney", **options)
    )
    monkeypatch.setattr(
        torchaudio.transforms,
        "Spectrogram",
        lambda **options: spectrogram(window_fn=torch.hamming_window, **options),
    )
    assert torch.equal(load(best).emissions([waveform]).log_probs, before)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def fail_halfway(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail_halfway)
        with pytest.raises(TrainingError, match=r"cannot write the checkpoint .*last\.ckpt") as caught:
            AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert "previous one is untouched" in str(caught.value)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write the checkpoint"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")
