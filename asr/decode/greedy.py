"""Best-path decoding (Graves et al. 2006, section 3.2): fast, no search, no language model."""

import numpy as np

from asr.decode.decoder import unusable_frame, words_from_tokens
from asr.records import Emissions, Hypothesis
from asr.tokenizer import Tokenizer


class GreedyDecoder:
    """The likeliest token of each frame, repeats merged, blanks dropped.

    Args:
        tokenizer: gives the blank and turns labels into text.
        seconds_per_frame: for word times.
    """

    def __init__(self, tokenizer: Tokenizer, seconds_per_frame: float) -> None:
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        """``(batch, frames, vocab)`` → one hypothesis per utterance; one transfer for the whole batch.

        Raises:
            DecodeError: the log-probabilities hold NaN.
        """
        best = emissions.log_probs.detach().max(dim=2)
        scores, labels = best.values.cpu().numpy(), best.indices.cpu().numpy()
        return [
            self._hypothesis(labels[index, :length], scores[index, :length], index)
            for index, length in enumerate(emissions.log_prob_lengths.tolist())
        ]

    def _hypothesis(self, labels: np.ndarray, scores: np.ndarray, index: int) -> Hypothesis:
        """Collapse one path: ``labels`` and ``scores`` are ``(frames,)``."""
        if np.isnan(scores).any():  # the maximum of a frame that holds NaN is NaN
            raise unusable_frame(index, int(np.isnan(scores).argmax()), "hold NaN")
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        ends = np.append(starts, len(labels))[1:] - 1
        spoken = labels[starts] != self.tokenizer.blank_id
        starts, ends = starts[spoken], ends[spoken]
        token_ids = tuple(int(label) for label in labels[starts])
        peaks = [
            float(np.exp(scores[start : end + 1].max())) for start, end in zip(starts, ends, strict=True)
        ]
        return Hypothesis(
            token_ids=token_ids,
            text=self.tokenizer.decode(list(token_ids)),
            score=float(scores.sum()),
            token_frames=tuple(int(start) for start in starts),
            words=words_from_tokens(
                self.tokenizer, token_ids, starts.tolist(), ends.tolist(), peaks, self.seconds_per_frame
            ),
        )
