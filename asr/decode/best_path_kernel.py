"""Best paths of a batch in the CPU's memory, found and collapsed in one compiled pass."""

import math
from typing import Any

from asr.decode.search_kernels import NONE, compiled


@compiled
def best_paths(
    log_probs: Any, lengths: Any, blank: int, tokens: Any, starts: Any, ends: Any, peaks: Any, counts: Any,
    scores: Any,
) -> int:  # fmt: skip
    """Collapse the likeliest token of each frame of each utterance.

    Args:
        log_probs: ``(batch, frames, vocab)`` natural logs.
        lengths: ``(batch,)``, frames of each utterance.
        tokens, starts, ends, peaks: ``(batch * frames,)`` each, receive the tokens of one utterance after the
            other, their first and last frames and their highest log-probabilities.
        counts, scores: ``(batch,)``, receive each utterance's number of tokens and its path's log-probability.

    Returns:
        ``NONE``, or the number of the first utterance with a frame that holds NaN, which ``counts`` has for it.
    """
    vocab_size, first = log_probs.shape[2], 0
    for index in range(len(lengths)):
        num_tokens, before, total = first, NONE, 0.0
        for frame in range(lengths[index]):
            row = log_probs[index, frame]
            best, highest, is_nan = 0, row[0], False
            for token in range(vocab_size):
                value = row[token]
                is_nan |= math.isnan(value)
                if value > highest:
                    best, highest = token, value
            if is_nan:
                counts[index] = frame
                return index
            total += highest
            if best != blank:
                if best != before:
                    tokens[num_tokens], starts[num_tokens], peaks[num_tokens] = best, frame, highest
                    num_tokens += 1
                ends[num_tokens - 1] = frame
                peaks[num_tokens - 1] = max(peaks[num_tokens - 1], highest)
            before = best
        counts[index], scores[index], first = num_tokens - first, total, num_tokens
    return NONE
