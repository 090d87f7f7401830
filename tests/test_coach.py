"""What the coach says of runs drawn by hand, and of runs that are made to go wrong."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asr.callbacks import SaveBetween
from asr.coach import Advice, Coach, Figures, State
from asr.module import CtcModule
from asr.train import train

FLAT = Figures(
    step=100, train_loss=2.9, dev_loss=2.9, wer=1.0, blank_rate=1.0, entropy=0.2, length_ratio=0.0,
    gradient_norm=0.5, clip_norm=1.0, learning_rate=1e-3,
)  # fmt: skip


def tell(run: list[Figures]) -> list[Advice]:
    coach = Coach()
    return [advice for figures in run if (advice := coach.observe(figures)) is not None]


def states(run: list[Figures]) -> list[State]:
    return [advice.state for advice in tell(run)]


def epochs(losses: list[float], **figures: float) -> list[Figures]:
    return [
        replace(FLAT, step=100 * number, dev_loss=loss, train_loss=loss, **figures)
        for number, loss in enumerate(losses, start=1)
    ]


def learned(losses: list[float], wers: list[float], **figures: float) -> list[Figures]:
    run = epochs(losses, blank_rate=0.6, length_ratio=0.9, **figures)
    return [replace(figures, wer=wer) for figures, wer in zip(run, wers, strict=True)]


def test_the_normal_plateau_is_announced_once_and_its_end_too() -> None:
    plateau = epochs([2.9, 2.8, 2.7, 2.6, 2.5, 2.3, 2.1, 1.9])
    words = learned([1.5, 1.2, 1.0], [0.8, 0.6, 0.5])
    told = tell([*plateau, *words])
    assert [advice.state for advice in told] == [State.PLATEAU, State.LEARNING]
    assert "normal" in told[0].finding
    assert not any(advice.is_warning for advice in told)


def test_a_loss_that_stays_is_a_stuck_run() -> None:
    told = tell(epochs([2.9] * 12))
    assert [advice.state for advice in told] == [State.PLATEAU, State.STUCK]
    assert "transcripts" in told[1].remedy
    assert "100% blanks" in told[1].finding


def test_a_model_that_has_not_even_learned_to_be_silent_wants_a_higher_rate() -> None:
    told = tell(epochs([11.7] * 12, blank_rate=0.06, length_ratio=2.0))
    assert told[-1].state is State.STUCK
    assert "raise optimizer.learning_rate" in told[-1].remedy
    restless = [11.7 + 0.5 * (number % 2) for number in range(12)]
    assert "transcripts" in tell(epochs(restless, blank_rate=0.06))[-1].remedy


def test_stuck_with_huge_gradients_wants_a_lower_rate() -> None:
    told = tell(epochs([2.9] * 12, gradient_norm=500.0))
    assert told[-1].state is State.STUCK
    assert "lower optimizer.learning_rate" in told[-1].remedy


def test_a_loss_that_creeps_wants_a_higher_rate() -> None:
    told = tell(epochs([2.9 * 0.9985**number for number in range(12)]))
    assert told[-1].state is State.SLOW
    assert "raise optimizer.learning_rate" in told[-1].remedy


def test_a_short_run_is_not_judged() -> None:
    few_steps = [replace(figures, step=figures.step // 10) for figures in epochs([2.9] * 20)]
    assert states(few_steps) == [State.PLATEAU]
    assert states(epochs([2.9] * 5)) == [State.PLATEAU]


def test_an_explosion_before_and_after_the_first_words() -> None:
    assert states(epochs([2.9, 2.8, 2.7, 2.6, 2.5, 9.0, 12.0]))[-1] is State.DIVERGED
    after = [
        *learned([2.0, 1.0, 0.8], [0.9, 0.5, 0.4]),
        replace(FLAT, step=400, dev_loss=7.0, wer=1.0, length_ratio=0.7),
    ]
    assert states(after)[-1] is State.DIVERGED


def test_a_collapse_after_learning() -> None:
    run = [*learned([2.0, 1.0, 0.8], [0.85, 0.5, 0.4]), replace(FLAT, step=400)]
    told = tell(run)
    assert told[-1].state is State.COLLAPSED
    assert "WER 100% after 40%" in told[-1].finding
    assert "init_from" in told[-1].remedy


def test_overfitting_needs_all_three_signs() -> None:
    rising = [1.0, 0.5, 0.5, 0.52, 0.54, 0.56, 0.58, 0.6]
    stalled = [0.5, 0.2, 0.21, 0.21, 0.22, 0.21, 0.22, 0.21]
    run = [
        replace(figures, train_loss=1.0 / number)
        for number, figures in enumerate(learned(rising, stalled), start=1)
    ]
    assert states(run)[-1] is State.OVERFITTING
    still_better = [*stalled[:-1], 0.19]
    assert states([replace(f, wer=w) for f, w in zip(run, still_better, strict=True)]) == [State.LEARNING]
    assert states([replace(figures, train_loss=1.0) for figures in run]) == [State.LEARNING]


def test_too_many_letters() -> None:
    assert states([replace(f, length_ratio=1.8) for f in learned([1.0], [0.8])]) == [State.TOO_LONG]


@pytest.mark.parametrize("state", list(State))
def test_every_warning_names_an_option_or_a_command(state: State) -> None:
    runs = [
        epochs([2.9] * 12),
        epochs([2.9 * 0.9985**number for number in range(12)]),
        epochs([2.9, 2.8, 2.7, 2.6, 2.5, 9.0, 12.0]),
        [*learned([2.0, 1.0], [0.85, 0.5]), replace(FLAT, step=400)],
        [replace(f, length_ratio=1.8) for f in learned([1.0], [0.8])],
    ]
    for advice in (advice for run in runs for advice in tell(run) if advice.state is state):
        assert not advice.is_warning or any(
            name in advice.remedy for name in ("optimizer.", "trainer.", "data.", "model.", "asr.")
        )


# ------------------------------------------------------------------ real trainings

# 320 steps and 8 validations: enough to be judged.
LONG_ENOUGH = [
    *("trainer.max_epochs=80", "trainer.validate_every_epochs=10", "trainer.log_every_steps=50"),
    *("schedule=constant", "model.dropout=0", "features.dither=0", "trainer.precision=32"),
    *("trainer.num_dev_samples=0", "logger.csv=false"),
]


def coach_lines(run_dir: Path) -> list[tuple[str, str]]:
    """Level and text of what the coach said in a training."""
    return re.findall(r" (INFO|WARNING) \S+ coach: (.*)", (run_dir / "train.log").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "remedy"), [("1e-9", "raise optimizer.learning_rate"), ("30", "lower optimizer.learning_rate")]
)
def test_a_rate_at_which_nothing_is_learned_is_told(
    tiny_train_config: Callable[..., Any], tmp_path: Path, rate: str, remedy: str
) -> None:
    # What a rate of 30 leads to is chaos, and another one on a GPU.
    options = (*LONG_ENOUGH, f"optimizer.learning_rate={rate}", "trainer.accelerator=cpu")
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    warnings = [text for level, text in coach_lines(tmp_path / "run") if level == "WARNING"]
    assert len(warnings) == 1
    assert remedy in warnings[0]


@pytest.mark.slow
def test_a_run_that_learns_hears_no_warning_until_its_rate_jumps(
    tiny_train_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def jump(callback: Any, trainer: Any, module: CtcModule, batch: Any, number: int) -> None:
        if trainer.global_step >= 280:
            trainer.optimizers[0].param_groups[0]["lr"] = 3.0

    monkeypatch.setattr(SaveBetween, "on_train_batch_start", jump)
    assert train(tiny_train_config(tmp_path / "run", *LONG_ENOUGH, "optimizer.learning_rate=1e-2")) == 0
    told = coach_lines(tmp_path / "run")
    assert [level for level, _ in told] == ["INFO", "INFO", "WARNING"]
    assert "normal at first" in told[0][1]
    assert "the plateau is over" in told[1][1]
    assert "collapsed" in told[2][1] or "the loss has risen" in told[2][1]
