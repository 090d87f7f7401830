"""What the figures of a CTC training mean: the normal early plateau, a stuck run, a collapse, overfitting.

A CTC model first learns that blanks are always safe: for some epochs it outputs nothing or one frequent
letter, and the word error rate stays at 100 %, while the loss goes on falling. That is normal (and ends
suddenly). It is not normal when the loss has stopped falling, and this module tells the two apart.
"""

from dataclasses import dataclass
from enum import Enum

# A model that gets one word in ten has left the plateau.
_BEGUN_WER = 0.9
_PROGRESS = 0.01  # a loss that is lower by this share is falling
_SLOW_PROGRESS = 0.002
_PATIENCE = 5  # validations
_MIN_STEPS = 300
_DIVERGED = 1.5  # dev loss over the lowest one
_OVERFITTED = 1.1
_SHORT, _LONG = 0.2, 1.5  # hypothesis letters per reference letter
_MOSTLY_BLANK = 0.5
_CLIPPED_HARD = 20.0  # gradient norm over the largest one that is let through


class State(Enum):
    """How a training is doing."""

    PLATEAU = "plateau"
    LEARNING = "learning"
    SLOW = "slow"
    STUCK = "stuck"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    OVERFITTING = "overfitting"
    TOO_LONG = "too long"


@dataclass(frozen=True, slots=True)
class Figures:
    """One validation and the training since the one before.

    - ``step``: optimizer steps so far
    - ``train_loss``, ``dev_loss``: nats per label
    - ``wer``: dev word error rate, a share
    - ``blank_rate``: share of dev frames whose likeliest label is the blank
    - ``entropy``: of the dev frames' label distributions, mean, nats
    - ``length_ratio``: letters recognised per letter spoken, on dev
    - ``gradient_norm``: median before clipping; ``clip_norm``: largest that is let through
    - ``learning_rate``: at the end
    """

    step: int
    train_loss: float
    dev_loss: float
    wer: float
    blank_rate: float
    entropy: float
    length_ratio: float
    gradient_norm: float
    clip_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What is going on, in one line, and what to do about it (empty: nothing)."""

    state: State
    finding: str
    remedy: str = ""

    @property
    def is_warning(self) -> bool:
        return self.remedy != ""


class Coach:
    """Looks at every validation and speaks when the state of the training has changed."""

    def __init__(self) -> None:
        self.history: list[Figures] = []
        self.state: State | None = None

    def observe(self, figures: Figures) -> Advice | None:
        """Advice if there is anything new to say."""
        self.history.append(figures)
        advice = self.judge()
        is_news = advice.state is not self.state
        self.state = advice.state
        return advice if is_news else None

    def judge(self) -> Advice:
        """The state after the validations so far."""
        if any(figures.wer < _BEGUN_WER for figures in self.history):
            return self._judge_begun()
        return self._judge_plateau()

    # ------------------------------------------------------------------ before the first words

    def _judge_plateau(self) -> Advice:
        now = self.history[-1]
        lowest = min(figures.dev_loss for figures in self.history)
        if now.step < _MIN_STEPS or len(self.history) <= _PATIENCE:
            is_falling = True  # too early to judge
        else:
            before = min(figures.dev_loss for figures in self.history[:-_PATIENCE])
            is_falling = lowest < before * (1 - _PROGRESS)
            if now.dev_loss > lowest * _DIVERGED:
                return Advice(State.DIVERGED, _loss_has_risen(now, lowest), _lower_learning_rate(now))
            if not is_falling and lowest < before * (1 - _SLOW_PROGRESS):
                return Advice(
                    State.SLOW,
                    f"no word is right yet, and the loss falls by less than {_PROGRESS:.0%} in {_PATIENCE} validations",
                    _raise_learning_rate(now, "3"),
                )
        if is_falling:
            return Advice(
                State.PLATEAU,
                f"no word is right yet ({_sounds(now)}): normal at first, as long as the loss falls",
            )
        return Advice(
            State.STUCK,
            f"no word is right after {now.step} steps ({_sounds(now)}), and the loss no longer falls ({lowest:.2f})",
            self._unstick(now),
        )

    def _unstick(self, now: Figures) -> str:
        if now.gradient_norm > _CLIPPED_HARD * now.clip_norm:
            return _lower_learning_rate(now)
        if self._is_untouched():
            return (
                _raise_learning_rate(now, "10 to 1000") + ": the model is as it was at the first validation"
            )
        return (
            "see that the transcripts belong to the audio (asr.doctor; listen to a few), then try more steps per "
            "epoch (smaller data.max_batch_utterances), data.sortagrad_epochs=1, or another optimizer.learning_rate "
            f"(now {now.learning_rate:.1e}); too few frames for the letters want smaller model.conv_strides"
        )

    def _is_untouched(self) -> bool:
        """Not even the blanks, which any training learns first, have been learned."""
        losses = [figures.dev_loss for figures in self.history]
        return (
            max(losses) < min(losses) * (1 + _SLOW_PROGRESS) and self.history[-1].blank_rate < _MOSTLY_BLANK
        )

    # ------------------------------------------------------------------ after the first words

    def _judge_begun(self) -> Advice:
        now = self.history[-1]
        lowest = min(figures.dev_loss for figures in self.history)
        longest = max(figures.length_ratio for figures in self.history)
        if now.wer > _BEGUN_WER and now.length_ratio < _SHORT < longest:
            return Advice(
                State.COLLAPSED,
                f"the model has collapsed: {_sounds(now)}, WER {now.wer:.0%} after {self._best_wer():.0%}",
                f"begin again from the best checkpoint (init_from) with a lower optimizer.learning_rate (now "
                f"{now.learning_rate:.1e}) or a lower trainer.gradient_clip_norm (now {now.clip_norm:g})",
            )
        if now.wer > _BEGUN_WER and now.dev_loss > lowest * _DIVERGED:
            return Advice(State.DIVERGED, _loss_has_risen(now, lowest), _lower_learning_rate(now))
        if now.length_ratio > _LONG:
            return Advice(
                State.TOO_LONG,
                f"{now.length_ratio:.1f} letters are recognised for each one spoken",
                "the transcripts may lack words that are spoken: see the worst utterances (asr.evaluate, asr.doctor)",
            )
        if self._is_overfitting(lowest):
            return Advice(
                State.OVERFITTING,
                f"dev loss {now.dev_loss:.2f} has risen from {lowest:.2f} while the training loss falls "
                f"({now.train_loss:.2f}), and the dev WER no longer improves",
                "more augmentation (augment=standard), more model.dropout, a smaller model, or more data; "
                "the best checkpoint is kept",
            )
        return Advice(State.LEARNING, f"the first words are right (WER {now.wer:.0%}): the plateau is over")

    def _is_overfitting(self, lowest: float) -> bool:
        recent, before = self.history[-_PATIENCE:], self.history[:-_PATIENCE]
        if len(self.history) <= _PATIENCE:
            return False
        has_risen = all(figures.dev_loss > lowest for figures in recent)
        has_risen = has_risen and recent[-1].dev_loss > lowest * _OVERFITTED
        is_better = min(figures.wer for figures in recent) < min(figures.wer for figures in before)
        return has_risen and not is_better and recent[-1].train_loss < before[-1].train_loss

    def _best_wer(self) -> float:
        return min(figures.wer for figures in self.history)


def _sounds(now: Figures) -> str:
    return f"{now.blank_rate:.0%} blanks, {now.length_ratio:.2f} letters for each one spoken, entropy {now.entropy:.2f}"


def _loss_has_risen(now: Figures, lowest: float) -> str:
    return f"the loss has risen from {lowest:.2f} to {now.dev_loss:.2f}"


def _raise_learning_rate(now: Figures, factor: str) -> str:
    return f"raise optimizer.learning_rate (now {now.learning_rate:.1e}) by a factor of {factor}"


def _lower_learning_rate(now: Figures) -> str:
    return (
        f"lower optimizer.learning_rate (now {now.learning_rate:.1e}) by a factor of 3 to 10: the gradient norm is "
        f"{now.gradient_norm:.3g}, of which trainer.gradient_clip_norm={now.clip_norm:g} lets through"
        if now.gradient_norm > now.clip_norm
        else f"lower optimizer.learning_rate (now {now.learning_rate:.1e}) by a factor of 3 to 10"
    )
