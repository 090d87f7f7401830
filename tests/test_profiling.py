"""The profile of a step: its parts add up to the step, and a slow part is the one that is named."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr.ctc.variants import VariantLoss
from asr.dataset import SpeechDataset
from asr.profiling import StepProfile, StepProfiler
from asr.train import train

Compose = Callable[..., Any]


def run(tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepProfile:
    profiles: list[StepProfile] = []
    original = StepProfiler.on_train_end

    def on_train_end(callback: Any, trainer: Any, module: Any) -> None:
        profiles.append(callback.profile)
        original(callback, trainer, module)

    monkeypatch.setattr(StepProfiler, "on_train_end", on_train_end)
    started = time.perf_counter()
    assert train(tiny_train_config(tmp_path / "run", "trainer.profile=true", "trainer.max_epochs=4")) == 0
    seconds = time.perf_counter() - started
    assert profiles[0].num_steps == 11  # 16 less the first five
    assert all(value > 0 for value in profiles[0].seconds.values())
    assert profiles[0].total * profiles[0].num_steps < seconds
    return profiles[0]


def slowed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, slow)


def test_slow_data_is_named(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    slowed(monkeypatch, SpeechDataset, "__getitem__")
    profile = run(tiny_train_config, tmp_path, monkeypatch)
    assert profile.share("waiting for data") > 0.5
    assert "data.num_workers" in profile.advice()
    assert "change first: waiting for data" in capsys.readouterr().err


def test_a_slow_loss_is_named(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, VariantLoss, "forward")
    profile = run(tiny_train_config, tmp_path, monkeypatch)
    assert profile.share("loss") > 0.5
    assert "loss.backend" in profile.advice()


def test_a_busy_model_is_as_it_should_be() -> None:
    seconds = {
        "waiting for data": 0.001, "features": 0.01, "encoder": 0.3, "loss": 0.02,
        "backward": 0.6, "optimizer": 0.01, "other": 0.001,
    }  # fmt: skip
    profile = StepProfile(seconds, 10)
    assert profile.total == pytest.approx(0.942)
    assert "the model itself" in profile.advice()
