"""Trials of learning rate and batch size: the rule against hand-made curves, the plan against brute force."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import TrainingError
from asr.finders import RateTrial, Shape, find_batch_seconds, read_peak, reset_peak, worst_shapes
from asr.sampler import BucketSampler
from asr.train import batch_limits, train

Compose = Callable[..., Any]


def test_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = tuple(10 ** (-6 + step / 10) for step in range(60))
    # Flat, then steepest at step 30, lowest at step 45, then rising more steeply than it fell.
    losses = tuple(
        5.0 - 2.0 / (1 + 2.718 ** (-(step - 30) / 3)) + (max(0, step - 45) ** 2) / 10 for step in range(60)
    )
    trial = RateTrial(rates, losses)
    assert trial.suggestion == pytest.approx(rates[30], rel=0.3)
    assert trial.limit == pytest.approx(rates[45], rel=0.3)


def test_no_rate_helps() -> None:
    with pytest.raises(TrainingError, match="did not fall"):
        _ = RateTrial(
            tuple(10.0**-step for step in range(20)), tuple(float(step) for step in range(20))
        ).suggestion


@given(
    durations=st.lists(st.floats(0.5, 30.0), min_size=1, max_size=60),
    per_second=st.integers(1, 50),
    budget=st.integers(500, 20_000),
)
@settings(deadline=None, max_examples=100)
def test_what_is_found_fits_and_a_little_more_does_not(
    durations: list[float], per_second: int, budget: int
) -> None:
    def peak(shape: Shape) -> int | None:
        needed = int(per_second * shape.padded_seconds + 100 * shape.longest_seconds)
        return needed if needed < 2 * budget else None  # out of memory

    def worst(seconds: float) -> float:
        return max(peak(shape) or float("inf") for shape in worst_shapes(durations, seconds))

    if worst(max(durations)) > budget:
        with pytest.raises(TrainingError, match="longest utterance"):
            find_batch_seconds(peak, durations, budget)
        return
    told: list[tuple[float, int]] = []
    found = find_batch_seconds(peak, durations, budget, lambda *trial: told.append(trial))
    assert told == list(found.peaks)
    assert worst(found.max_seconds) <= budget
    everything = found.max_seconds >= sum(durations)
    assert everything or any(
        seconds <= 1.05 * found.max_seconds and size > budget for seconds, size in found.peaks
    )
    # No batch of a training with this limit is larger than the ones that were tried.
    plan = BucketSampler(durations, max_utterances=4096, max_seconds=found.max_seconds, seed=0).plan(0)
    for batch in plan:
        longest = max(durations[pick.position] for pick in batch)
        assert len(batch) <= max(shape.num_utterances for shape in worst_shapes(durations, found.max_seconds))
        assert len(batch) == 1 or len(batch) * longest <= found.max_seconds


def test_peak_is_measured() -> None:
    device = torch.device("cpu")
    reset_peak(device)
    before = read_peak(device)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert read_peak(device) - before > 50 * 2**20
    del block


@pytest.mark.parametrize("what", ["learning_rate", "batch_size"])
def test_as_a_command(
    tiny_train_config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_train_config(run_dir, f"find={what}", "trainer.memory_gib=16")) == 0
    log = (run_dir / "train.log").read_text()
    if what == "learning_rate":
        rate = float(log.split("optimizer.learning_rate=")[1].split()[0])
        assert 1e-5 < rate < 0.5
        assert (run_dir / "learning_rate.png").stat().st_size > 5000
    else:
        assert "data.max_batch_seconds=" in log
    assert not (run_dir / "checkpoints" / "last.ckpt").exists()


def test_misspelt(tiny_train_config: Compose, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="did you mean 'batch_size'"):
        tiny_train_config(tmp_path, "find=batchsize")


def test_suggested_limits_fit_together() -> None:
    assert batch_limits(61.7, 30.0) == "data.max_batch_seconds=61"
    assert (
        batch_limits(6.437, 30.0) == "data.max_batch_seconds=6.44 data.max_seconds=6.44"
    )  # not below the longest


def test_rates_are_tried_with_the_clipping_of_the_training(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = set()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: norms.add(norm))
    options = ["find=learning_rate", "trainer.gradient_clip_norm=50"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    assert norms == {50}
