"""Best-path decoding (Graves et al. 2006, section 3.2): fast, no search, no language model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.decode.decoder import unusable_frame, words_from_tokens
from asr.records import Emissions, Hypothesis
from asr.tokenizer import Tokenizer


class BestPath(NamedTuple):
    """The collapsed best path of one utterance.

    - ``token_ids``, ``starts``, ``ends``: each token, its first and its last frame
    - ``peaks``: its highest log-probability; ``score``: that of the whole path
    """

    token_ids: list[int]
    starts: list[int]
    ends: list[int]
    peaks: list[float]
    score: float


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
        paths, lengths = self.best_paths(emissions), emissions.log_prob_lengths.tolist()
        return [self._hypothesis(path, length) for path, length in zip(paths, lengths, strict=True)]

    def text_score(self, token_ids: Sequence[int]) -> float:
        """Nothing: every text counts for what is heard alone."""
        return 0.0

    def best_paths(self, emissions: Emissions) -> list[BestPath]:
        """The collapsed best path of each utterance.

        Raises:
            DecodeError: the log-probabilities hold NaN.
        """
        # A single recording is not worth the time that loading compiled code takes.
        if emissions.log_probs.is_cpu and len(emissions.log_probs) > 1:
            return compiled_best_paths(emissions, self.tokenizer.blank_id)
        best = emissions.log_probs.detach().max(dim=2)
        scores, labels = best.values.float().cpu().numpy(), best.indices.cpu().numpy()
        return [
            collapse(labels[index, :length], scores[index, :length], self.tokenizer.blank_id, index)
            for index, length in enumerate(emissions.log_prob_lengths.tolist())
        ]

    def _hypothesis(self, path: BestPath, num_frames: int) -> Hypothesis:
        return Hypothesis(
            token_ids=tuple(path.token_ids),
            text=self.tokenizer.decode(path.token_ids),
            score=path.score,
            token_frames=tuple(path.starts),
            words=words_from_tokens(
                self.tokenizer,
                path.token_ids,
                path.starts,
                path.ends,
                np.exp(path.peaks).tolist(),
                self.seconds_per_frame,
                num_frames,
            ),
        )


def collapse(labels: NDArray[np.int64], scores: NDArray[np.float32], blank: int, index: int) -> BestPath:
    """Collapse the path of utterance ``index``: ``labels`` and ``scores`` are ``(frames,)``."""
    if np.isnan(scores).any():  # the maximum of a frame that holds NaN is NaN
        raise unusable_frame(index, int(np.isnan(scores).argmax()), "hold NaN")
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    ends = np.append(starts, len(labels))[1:] - 1
    spoken = labels[starts] != blank
    starts, ends = starts[spoken], ends[spoken]
    return BestPath(
        token_ids=labels[starts].tolist(),
        starts=starts.tolist(),
        ends=ends.tolist(),
        peaks=[float(scores[start : end + 1].max()) for start, end in zip(starts, ends, strict=True)],
        score=float(scores.sum(dtype=np.float64)),
    )


def compiled_best_paths(emissions: Emissions, blank: int) -> list[BestPath]:
    """The same in one pass over log-probabilities in the CPU's memory."""
    from asr.decode.best_path_kernel import NONE, best_paths

    log_probs = np.ascontiguousarray(emissions.log_probs.detach().float().numpy())
    batch_size, num_frames, _ = log_probs.shape
    lengths = emissions.log_prob_lengths.numpy().clip(max=num_frames)
    tokens, starts, ends = (np.empty(batch_size * num_frames, np.int64) for _ in range(3))
    peaks, counts, scores = np.empty(len(tokens)), np.zeros(batch_size, np.int64), np.empty(batch_size)
    unusable = best_paths(log_probs, lengths, blank, tokens, starts, ends, peaks, counts, scores)
    if unusable != NONE:
        raise unusable_frame(unusable, int(counts[unusable]), "hold NaN")
    last = counts.cumsum().tolist()
    ids, firsts, lasts, highest = (values[: last[-1]].tolist() for values in (tokens, starts, ends, peaks))
    return [
        BestPath(ids[one], firsts[one], lasts[one], highest[one], score)
        for one, score in zip(map(slice, [0, *last], last), scores.tolist(), strict=True)
    ]
