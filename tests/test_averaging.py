"""Averages of weights against arithmetic done apart, and what is saved, validated and resumed with them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asr.averaging import TRAINED_WEIGHTS, MovingAverage, mean_of_weights
from asr.callbacks import SaveBetween
from asr.checkpoint import resolve
from asr.errors import CheckpointError, ConfigError
from asr.train import train

Compose = Callable[..., Any]
EMA = ["trainer.ema_decay=0.6", "optimizer.learning_rate=1e-2", "trainer.max_epochs=3"]


def load(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights after each step of the trainings to come, copied."""
    seen: list[dict[str, torch.Tensor]] = []
    original = SaveBetween.on_train_batch_end

    def on_train_batch_end(callback: Any, trainer: Any, module: Any, *unused: Any) -> None:
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        original(callback, trainer, module, *unused)

    monkeypatch.setattr(SaveBetween, "on_train_batch_end", on_train_batch_end)
    return seen


def test_checkpoints_hold_the_moving_average(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = watch(monkeypatch)
    assert train(tiny_train_config(tmp_path / "run", *EMA)) == 0
    saved = load(tmp_path / "run")
    assert len(steps) == 12
    for name, last in steps[-1].items():
        assert torch.equal(saved[TRAINED_WEIGHTS][name], last)
        average = steps[0][name].double()
        for number, step in enumerate(steps[1:], start=1):
            decay = min(0.6, (1 + number) / (10 + number))
            average = decay * average + (1 - decay) * step[name].double()
        if last.is_floating_point():
            torch.testing.assert_close(saved["state_dict"][name].double(), average, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(saved["state_dict"][name], last)


def test_validation_sees_the_average_and_training_does_not(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = watch(monkeypatch)
    assert train(tiny_train_config(tmp_path / "plain", *EMA[1:])) == 0
    with monkeypatch.context() as patched:
        averaged = watch(patched)
        assert train(tiny_train_config(tmp_path / "ema", *EMA)) == 0
    for one, other in zip(plain, averaged, strict=False):
        assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        (tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(",") for name in ("plain", "ema")
    ]
    assert losses[0][-2] != losses[1][-2]  # dev/loss


def test_resumed_with_average_is_bit_identical(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tiny_train_config(tmp_path / "whole", *EMA)) == 0

    def stop_at_five(callback: Any, trainer: Any, *unused: Any) -> None:
        callback._requested = trainer.fit_loop.epoch_loop.total_batch_idx == 5

    with monkeypatch.context() as patched:
        patched.setattr(SaveBetween, "on_train_batch_start", stop_at_five)
        assert train(tiny_train_config(tmp_path / "run", *EMA)) == 130
    assert train(tiny_train_config(tmp_path / "run", *EMA, f"resume={tmp_path / 'run'}")) == 0
    expected, found = load(tmp_path / "whole"), load(tmp_path / "run")
    for part in ("state_dict", TRAINED_WEIGHTS):
        assert all(torch.equal(found[part][name], tensor) for name, tensor in expected[part].items())


def test_the_average_cannot_be_switched_on_resume(tiny_train_config: Compose, tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.ema_decay: None → 0\.6"):
        train(tiny_train_config(tiny_run, EMA[0], f"resume={tiny_run}"))


def test_average_of_the_best_checkpoints(tiny_train_config: Compose, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["trainer.average_best=2", "trainer.max_epochs=4", "optimizer.learning_rate=1e-2"]
    assert train(tiny_train_config(run_dir, *options)) == 0
    kept = sorted((run_dir / "checkpoints").glob("epoch-*.ckpt"))
    rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("dev/wer")
    wers = [float(row[column]) for row in rows[1:] if row[column]]
    best = sorted(sorted(range(4), key=lambda epoch: (wers[epoch], epoch))[:2])
    assert [path.stem for path in kept] == [f"epoch-{epoch + 1:04d}" for epoch in best]
    average = load(run_dir, "average")
    parts = [torch.load(path, weights_only=True)["state_dict"] for path in kept]
    for name, tensor in average["state_dict"].items():
        expected = (parts[0][name].double() + parts[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), expected.to(tensor.dtype).double(), rtol=1e-6, atol=1e-8)
    assert resolve(run_dir).name == "average.ckpt"
    assert {name for name, _ in average["recipe"]["provenance"]["average_of"]} == {p.name for p in kept}


def test_weights_of_different_models_have_no_average(tmp_path: Path) -> None:
    for number in (1, 2):
        torch.save({"state_dict": {"w": torch.zeros(number)}}, tmp_path / f"{number}.ckpt")
    with pytest.raises(CheckpointError, match="different models"):
        mean_of_weights([tmp_path / "1.ckpt", tmp_path / "2.ckpt"])


@pytest.mark.parametrize("option", ["trainer.ema_decay=1.0", "trainer.ema_decay=0", "trainer.average_best=1"])
def test_senseless_options(tiny_train_config: Compose, tmp_path: Path, option: str) -> None:
    with pytest.raises(Exception, match=option.split("=", maxsplit=1)[0].replace(".", r"\.")):
        tiny_train_config(tmp_path, option)


def test_decay_grows_to_its_value() -> None:
    mix = MovingAverage(0.9)._mix
    one, zero = torch.ones(()), torch.zeros(())
    decays = [float(mix(one, zero, torch.tensor(steps))) for steps in (0, 1, 8, 80, 10_000)]
    assert decays == pytest.approx([0.1, 2 / 11, 0.5, 0.9, 0.9])
    assert all(math.isfinite(decay) for decay in decays)
