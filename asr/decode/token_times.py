"""Where in time the tokens of a labelling are, by its most probable alignment (Viterbi), compiled.

The same alignment as :func:`asr.ctc.align.forced_align`, which explains itself and runs in float64
with NumPy; this one is for every utterance that a search decodes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.decode.decoder import words_from_tokens
from asr.decode.search_kernels import compiled
from asr.records import Hypothesis
from asr.tokenizer import Tokenizer

_STAY, _STEP, _SKIP = 0, 1, 2

# Of what is impossible in a frame: a labelling may stand for others (with more spaces) that are possible.
_LEAST = -1e9


class TokenTimes(NamedTuple):
    """First and last frame of each token, and its highest probability there; each ``(tokens,)``."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    peaks: NDArray[np.float64]


def token_times(log_probs: NDArray[np.float32], token_ids: Sequence[int], blank: int) -> TokenTimes:
    """Align ``token_ids`` with ``log_probs`` ``(frames, vocab)``; there must be enough frames."""
    starts = np.zeros(len(token_ids), np.int64)
    ends = np.zeros(len(token_ids), np.int64)
    peaks = np.zeros(len(token_ids), np.float64)
    if len(token_ids):
        _align(log_probs, np.asarray(token_ids, np.int32), blank, starts, ends, peaks)
    return TokenTimes(starts, ends, peaks)


def aligned(
    tokenizer: Tokenizer,
    log_probs: NDArray[np.float32],
    token_ids: Sequence[int],
    score: float,
    seconds_per_frame: float,
    num_kept: int | None = None,
) -> Hypothesis:
    """The hypothesis of a labelling that a search has found, with times for its tokens and words.

    Args:
        num_kept: only so many of the tokens, though all of them are aligned.
    """
    times = token_times(log_probs, token_ids, tokenizer.blank_id)
    token_ids = tuple(token_ids[:num_kept])
    starts = times.starts[: len(token_ids)].tolist()
    return Hypothesis(
        token_ids=token_ids,
        text=tokenizer.decode(token_ids),
        score=score,
        token_frames=tuple(starts),
        words=words_from_tokens(
            tokenizer,
            token_ids,
            starts,
            times.ends.tolist(),
            times.peaks.tolist(),
            seconds_per_frame,
            len(log_probs),
        ),
    )


@compiled
def _align(log_probs: Any, tokens: Any, blank: int, starts: Any, ends: Any, peaks: Any) -> None:
    """States alternate blank, token, blank, …; of equally probable paths, the one that moves on latest."""
    num_frames, num_tokens = log_probs.shape[0], tokens.shape[0]
    num_states = 2 * num_tokens + 1
    moves = np.empty((num_frames, num_states), np.uint8)
    scores = np.full(num_states, -np.inf)
    # Before the first frame: as if a blank had been read, from which states 0 and 1 are reached.
    scores[0] = 0.0
    for frame in range(num_frames):
        row = log_probs[frame]
        # States from which the end is still within reach, and those already within reach.
        low = max(0, num_states - 2 * (num_frames - frame))
        high = min(num_states, 2 * frame + 2)
        for state in range(high - 1, low - 1, -1):
            best, move = scores[state], _STAY
            if state >= 1 and scores[state - 1] > best:
                best, move = scores[state - 1], _STEP
            if state & 1:
                token = tokens[state >> 1]
                if state >= 3 and token != tokens[(state >> 1) - 1] and scores[state - 2] > best:
                    best, move = scores[state - 2], _SKIP
                scores[state] = best + max(row[token], _LEAST)
            else:
                scores[state] = best + max(row[blank], _LEAST)
            moves[frame, state] = move
    state = num_states - 1
    if scores[state - 1] > scores[state]:
        state -= 1
    peaks[:] = -np.inf
    ends[:] = -1
    for frame in range(num_frames - 1, -1, -1):
        if state & 1:
            token = state >> 1
            starts[token] = frame
            ends[token] = max(ends[token], frame)
            peaks[token] = max(peaks[token], log_probs[frame, tokens[token]])
        state -= moves[frame, state]
    peaks[:] = np.exp(peaks)
