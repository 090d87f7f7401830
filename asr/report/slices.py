"""Error rates of parts of a test set: by speaker, length, rate of speech, any manifest field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from asr.score import ErrorCounts, total
from asr.stats import Interval, rate_interval

_NUM_RESAMPLES = 2_000
_MAX_VALUES = 60  # a field with more values than this (a time stamp, a file name) is no slice


@dataclass(frozen=True, slots=True)
class Slice:
    """The utterances that share one value of a field."""

    value: str
    num_utterances: int
    counts: ErrorCounts
    wer: float
    wer_interval: Interval


def slice_by(values: Sequence[str], counts: Sequence[ErrorCounts]) -> tuple[Slice, ...]:
    """Pool utterances with equal values; slices come in the order of first appearance.

    Args:
        values: ``(utterances,)`` the field's value for each utterance.
        counts: ``(utterances,)`` word errors.
    """
    members: dict[str, list[ErrorCounts]] = {}
    for value, count in zip(values, counts, strict=True):
        members.setdefault(value, []).append(count)
    return tuple(_pool(value, group) for value, group in members.items())


def _pool(value: str, counts: Sequence[ErrorCounts]) -> Slice:
    pooled = total(counts)
    interval = rate_interval(
        [count.num_errors for count in counts],
        [count.num_reference for count in counts],
        num_resamples=_NUM_RESAMPLES,
    )
    return Slice(value, len(counts), pooled, pooled.rate, interval)


def slice_by_fields(
    fields: Mapping[str, Sequence[str]], counts: Sequence[ErrorCounts]
) -> dict[str, tuple[Slice, ...]]:
    """Slice by the fields that say something: with two values or more, but not one per utterance."""
    sliced: dict[str, tuple[Slice, ...]] = {}
    for name, values in fields.items():
        if 2 <= len(set(values)) <= min(_MAX_VALUES, max(2, len(values) // 2)):
            order = np.argsort(values, kind="stable").tolist()
            sliced[name] = slice_by([values[i] for i in order], [counts[i] for i in order])
    return sliced


def slice_by_range(
    numbers: Sequence[float], counts: Sequence[ErrorCounts], *, num_ranges: int = 4
) -> tuple[Slice, ...]:
    """Cut a numeric field into ranges of about equally many utterances, lowest first (:func:`range_labels`).

    Empty when the numbers do not fill two ranges.
    """
    labels = range_labels(numbers, num_ranges=num_ranges)
    ascending = dict.fromkeys(labels[index] for index in np.argsort(numbers, kind="stable")) if labels else ()
    return tuple(
        _pool(name, [count for count, label in zip(counts, labels, strict=True) if label == name])
        for name in ascending
    )


def range_labels(numbers: Sequence[float], *, num_ranges: int = 4) -> tuple[str, ...]:
    """``(utterances,)`` the range that each number is in; empty when they do not fill two ranges.

    A range ``2.1–4.7`` holds numbers from its lower end to just below its upper end; the last one
    includes its upper end.
    """
    if not len(numbers):
        return ()
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, num_ranges + 1)))
    if len(edges) < 3:
        return ()
    names = [f"{low:.3g}–{high:.3g}" for low, high in pairwise(edges)]
    index = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(names) - 1)
    return tuple(names[where] for where in index)
