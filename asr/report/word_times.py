"""How far recognised word times are from true ones, where a manifest knows them.

A manifest's field ``words`` holds ``[word, start, end]`` for each word of the text, in seconds from
the beginning of the utterance; the synthetic corpus has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr.records import Word
from asr.score import align


@dataclass(frozen=True, slots=True)
class WordTimes:
    """Distances over the ``num_words`` words that are correct; ``bias`` is positive where we are late."""

    num_words: int
    start_error_seconds: float
    end_error_seconds: float
    start_bias_seconds: float
    end_bias_seconds: float
    p90_error_seconds: float


def compare_times(hypotheses: Sequence[Sequence[Word]], truths: Sequence[Any]) -> WordTimes | None:
    """Mean absolute distance of starts and of ends; None without true times of any correct word."""
    starts: list[float] = []
    ends: list[float] = []
    for words, truth in zip(hypotheses, truths, strict=True):
        if not _is_timed(truth):
            continue
        timed, heard = iter(truth), iter(words)
        for pair in align([text for text, _, _ in truth], [word.text for word in words]).pairs:
            true = next(timed) if pair.operation != "insert" else None
            word = next(heard) if pair.operation != "delete" else None
            if true is not None and word is not None and pair.operation == "equal":
                starts.append(word.start_seconds - true[1])
                ends.append(word.end_seconds - true[2])
    if not starts:
        return None
    return WordTimes(
        num_words=len(starts),
        start_error_seconds=float(np.abs(starts).mean()),
        end_error_seconds=float(np.abs(ends).mean()),
        start_bias_seconds=float(np.mean(starts)),
        end_bias_seconds=float(np.mean(ends)),
        p90_error_seconds=float(np.quantile(np.abs([*starts, *ends]), 0.9)),
    )


def _is_timed(truth: Any) -> bool:
    return isinstance(truth, list) and all(
        isinstance(item, list)
        and len(item) == 3
        and isinstance(item[0], str)
        and all(isinstance(time, int | float) and not isinstance(time, bool) for time in item[1:])
        for item in truth
    )
