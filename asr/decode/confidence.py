"""How sure a beam search is of each word: what its rivals say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

NUM_RIVALS = 20
"""So many of the best labellings are compared."""

MAX_SECONDS = 5.0
"""A list of rivals holds some dozen of changes at most, however long the recording, so longer ones get
several lists."""

ACOUSTIC_SHARE = 0.1
"""Weight of the acoustic model's own opinion, for the case that the truth is not among the rivals.
Chosen on development sets, see docs/decoding.md."""


class Rival(NamedTuple):
    """A labelling as words, and its natural-log score."""

    words: Sequence[str]
    score: float


def word_shares(words: Sequence[str], rivals: Sequence[Rival]) -> list[float]:
    """For each word the posterior share of the rivals that have it too, in the same place.

    The shares of the rivals are the softmax of their scores; places are compared by a minimum edit
    distance alignment of the words (as in Wessel et al. 2001, with N-best lists for word graphs).
    """
    weights = np.exp(np.array([rival.score for rival in rivals]) - max(rival.score for rival in rivals))
    weights /= weights.sum()
    shares = np.full(len(words), 1.0)
    for weight, rival in zip(weights, rivals, strict=True):
        for operation in Levenshtein.editops(words, rival.words):
            if operation.tag != "insert":
                shares[operation.src_pos] -= weight
    return np.clip(shares, 0.0, 1.0).tolist()


def blend(shares: Sequence[float], acoustic: Sequence[float]) -> list[float]:
    """Confidences of words from both opinions."""
    return [
        (1 - ACOUSTIC_SHARE) * share + ACOUSTIC_SHARE * own
        for share, own in zip(shares, acoustic, strict=True)
    ]
