"""What every decoder promises, and what they share."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asr.errors import AsrError
from asr.records import Emissions, Hypothesis, Word
from asr.tokenizer import Tokenizer

FORBIDDEN = -1e7
"""A log-probability that nothing survives, but finite, for peers whose sums of infinities are no numbers."""


class DecodeError(AsrError):
    """Log-probabilities that nothing can be decoded from: those of utterance ``index`` of a batch."""

    def __init__(self, index: int, problem: str, name: str | None = None) -> None:
        super().__init__(f"{name or f'utterance {index} of the batch'}: {problem}")
        self.index = index
        self.problem = problem

    def named(self, name: str) -> "DecodeError":
        """The same with the utterance's name."""
        return DecodeError(self.index, self.problem, name)


def unusable_frame(index: int, frame: int, what: str) -> DecodeError:
    """The error for a frame of utterance ``index`` of a batch from which nothing can be decoded."""
    return DecodeError(
        index,
        f"the log-probabilities of frame {frame} {what}; the model's weights or the audio are damaged",
    )


def refuse_unusable(log_probs: NDArray[np.float32], index: int) -> None:
    """Check the ``(frames, vocab)`` of utterance ``index`` of a batch.

    Raises:
        DecodeError: NaN, or a frame in which no token is possible.
    """
    best = log_probs.max(axis=1, initial=-np.inf)  # NaN where a frame holds any
    for frame in np.flatnonzero(~np.isfinite(best)).tolist():
        raise unusable_frame(index, frame, "hold NaN" if np.isnan(best[frame]) else "are all minus infinity")


class Decoder(Protocol):
    """Emissions → one best hypothesis per utterance."""

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        """``(batch, frames, vocab)`` log-probabilities → one hypothesis per utterance."""
        ...

    def text_score(self, token_ids: Sequence[int]) -> float:
        """What a labelling scores beside its acoustic log-probability; minus infinity if forbidden."""
        ...


LETTER_SECONDS = 0.07
"""How long a letter lasts, and how far a token's spike lags behind the beginning of its sound.

Measured on synthetic speech whose true word times are known, for models of several frame rates:
docs/decoding.md.
"""


def words_from_tokens(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    start_frames: Sequence[int],
    end_frames: Sequence[int],
    confidences: Sequence[float],
    seconds_per_frame: float,
    num_frames: int,
) -> tuple[Word, ...]:
    """Words with times, in order and within the ``num_frames`` of the audio, none overlapping.

    CTC marks a token by a spike of a frame or two, once it has heard enough of it. So a word begins
    :data:`LETTER_SECONDS` before the spike of its first token and ends with that of its last one, plus as
    much for each letter of that token beyond one. Where two words would overlap, they share the time
    between their spikes in proportion.

    A word's confidence is the product of its tokens' probabilities: that all of them are right.
    """
    groups = tokenizer.word_groups(list(token_ids))
    spikes = [
        (start_frames[group.first] * seconds_per_frame, (end_frames[group.last] + 1) * seconds_per_frame)
        for group in groups
    ]
    tails = [LETTER_SECONDS * (len(tokenizer.decode([token_ids[group.last]])) - 1) for group in groups]
    starts = [max(first - LETTER_SECONDS, 0.0) for first, _ in spikes]
    ends = [
        min(last + tail, num_frames * seconds_per_frame)
        for (_, last), tail in zip(spikes, tails, strict=True)
    ]
    for index in range(1, len(groups)):
        if starts[index] < ends[index - 1]:
            before, after = spikes[index - 1][1], spikes[index][0]
            share = tails[index - 1] / (tails[index - 1] + LETTER_SECONDS)
            starts[index] = ends[index - 1] = before + share * (after - before)
    return tuple(
        Word(group.text, start, end, math.prod(confidences[group.first : group.last + 1]))
        for group, start, end in zip(groups, starts, ends, strict=True)
    )
