"""Best path of a batch in the CPU's memory, found and collapsed in one compiled pass."""

import math
from typing import Any

from asr.decode.search_kernels import NONE, compiled


@compiled
def best_path(
    log_probs: Any, blank: int, tokens: Any, starts: Any, ends: Any, peaks: Any, result: Any
) -> int:
    """Collapse the likeliest token of each frame of one utterance; returns the number of tokens.

    Args:
        log_probs: ``(frames, vocab)`` natural logs.
        tokens, starts, ends, peaks: ``(frames,)`` each, receive the tokens, their first and last frames
            and their highest log-probabilities.
        result: ``(1,)``, receives the log-probability of the path.

    Returns:
        the number of tokens, or ``-1 - frame`` for the first frame that holds NaN.
    """
    num_frames, vocab_size = log_probs.shape
    num_tokens, before, total = 0, NONE, 0.0
    for frame in range(num_frames):
        best, highest, is_nan = 0, log_probs[frame, 0], False
        for token in range(vocab_size):
            value = log_probs[frame, token]
            is_nan |= math.isnan(value)
            if value > highest:
                best, highest = token, value
        if is_nan:
            return -1 - frame
        total += highest
        if best != blank:
            if best != before:
                tokens[num_tokens], starts[num_tokens], peaks[num_tokens] = best, frame, highest
                num_tokens += 1
            ends[num_tokens - 1] = frame
            peaks[num_tokens - 1] = max(peaks[num_tokens - 1], highest)
        before = best
    result[0] = total
    return num_tokens
