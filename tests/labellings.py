"""Every labelling of a few frames with its probability, the sum that a search is held to."""

import itertools
import math
from collections import defaultdict

import numpy as np
from torch import Tensor

from asr.tokenizer import Tokenizer


def acoustic_sums(log_probs: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labelling = tuple(label for label, _ in itertools.groupby(path) if label != blank)
        sums[labelling] += math.exp(sum(float(log_probs[frame, label]) for frame, label in enumerate(path)))
    return {labelling: math.log(total) for labelling, total in sums.items()}


def without_superfluous_spaces(labelling: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """One bare space between words, none before the first or after the last."""
    space = tokenizer.tokens.index(" ")
    pairs = itertools.pairwise((space, *labelling))
    kept = [label for before, label in pairs if not label == before == space]
    return tuple(kept[:-1] if kept[-1:] == [space] else kept)


def merged(scores: dict[tuple[int, ...], float], tokenizer: Tokenizer) -> dict[tuple[int, ...], float]:
    """Sums over labellings that differ in superfluous spaces."""
    sums: dict[tuple[int, ...], float] = defaultdict(lambda: -math.inf)
    for labelling, score in scores.items():
        kept = without_superfluous_spaces(labelling, tokenizer)
        sums[kept] = float(np.logaddexp(sums[kept], score))
    return dict(sums)
