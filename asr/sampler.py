"""Which utterances share a batch: plans that are pure functions of their arguments."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

MAX_BUCKETS = 30
MIN_BATCHES_PER_BUCKET = 4


class Pick(NamedTuple):
    """One utterance of a batch: its position in the dataset and its augmentation seed.

    A filler is there because every process must take every step, and does not count.
    """

    position: int
    seed: int
    is_filler: bool = False


class Share(NamedTuple):
    """One of several processes that divide every batch among themselves."""

    rank: int = 0
    num_processes: int = 1

    def of(self, batch: list[Pick]) -> list[Pick]:
        """Every ``num_processes``-th pick; a filler where there are fewer picks than processes."""
        return batch[self.rank :: self.num_processes] or [batch[0]._replace(is_filler=True)]


class BucketSampler(Sampler[list[Pick]]):
    """Training batches of utterances of similar duration, reshuffled each epoch.

    Utterances are sorted by duration into buckets; each epoch shuffles within the buckets and
    shuffles the order of the batches. The number of batches is the same in every epoch, so
    schedules can count on it. The plan depends on ``(seed, epoch)`` alone: a resumed run sees the
    batches that the interrupted one would have seen, and so does a run with another number of
    processes, each of which takes its share of every batch.

    Args:
        durations: seconds of each utterance, after the slowest speed perturbation.
        max_utterances: largest batch.
        max_seconds: largest ``utterances x longest`` of a batch, padding included.
        seed: of the shuffling.
        sortagrad_epochs: the first epochs go from short utterances to long ones, unshuffled
            (SortaGrad; Amodei et al. 2016, section 3.2).
    """

    def __init__(
        self,
        durations: Sequence[float] | NDArray[np.float64],
        *,
        max_utterances: int,
        max_seconds: float,
        seed: int,
        sortagrad_epochs: int = 0,
    ) -> None:
        self.seed = seed
        self.sortagrad_epochs = sortagrad_epochs
        self.share = Share()
        self.epoch = 0
        self._num_done: dict[int, int] = {}  # by epoch
        order = np.argsort(np.asarray(durations), kind="stable")
        num_buckets = max(1, min(MAX_BUCKETS, len(order) // (MIN_BATCHES_PER_BUCKET * max_utterances)))
        self._buckets = np.array_split(order, num_buckets)
        self._batches_per_bucket = [
            ceil(len(bucket) / _batch_size(durations[bucket[-1]], max_utterances, max_seconds))
            for bucket in self._buckets
        ]

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(self._batches_per_bucket)

    def plan(self, epoch: int) -> list[list[Pick]]:
        """All batches of an epoch, in order."""
        return list(self.batches(epoch))

    def batches(self, epoch: int) -> Iterator[list[Pick]]:
        """The same one by one: the picks of millions of utterances need not be there all at once."""
        generator = np.random.default_rng([self.seed, epoch])
        is_sorted = epoch < self.sortagrad_epochs
        planned = [
            chunk
            for bucket, num_batches in zip(self._buckets, self._batches_per_bucket, strict=True)
            for chunk in np.array_split(bucket if is_sorted else generator.permutation(bucket), num_batches)
        ]
        order = np.arange(len(planned)) if is_sorted else generator.permutation(len(planned))
        for number in order:
            seeds = generator.integers(2**62, size=len(planned[number]))
            yield list(map(Pick, planned[number].tolist(), seeds.tolist()))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields (Lightning calls this)."""
        self.epoch = epoch

    def skip(self, num_batches: int) -> None:
        """Leave out the first batches of the epoch that is set: they were done before an interruption.

        However often it is iterated over: a loader with processes asks for two iterators and uses one.
        """
        self._num_done = {self.epoch: num_batches}

    def __iter__(self) -> Iterator[list[Pick]]:
        left = islice(self.batches(self.epoch), self._num_done.get(self.epoch, 0), None)
        return map(self.share.of, left)


class SequentialSampler(Sampler[list[Pick]]):
    """Every utterance once, longest first (an out-of-memory error comes at once), no randomness."""

    def __init__(
        self, durations: Sequence[float] | NDArray[np.float64], *, max_utterances: int, max_seconds: float
    ) -> None:
        self.batches = batches_by_length(durations, max_utterances=max_utterances, max_seconds=max_seconds)
        self.share = Share()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Pick]]:
        return (self.share.of([Pick(index, 0) for index in batch]) for batch in self.batches)


def batches_by_length(
    durations: Sequence[float] | NDArray[np.float64], *, max_utterances: int, max_seconds: float
) -> list[list[int]]:
    """Indices of ``durations`` in batches within both limits, longest first.

    An utterance longer than ``max_seconds`` gets a batch of its own.
    """
    order = sorted(range(len(durations)), key=lambda index: -durations[index])
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = _batch_size(durations[order[start]], max_utterances, max_seconds)
        batches.append(order[start : start + size])
        start += size
    return batches


def _batch_size(longest_seconds: float, max_utterances: int, max_seconds: float) -> int:
    return max(1, min(max_utterances, int(max_seconds / max(longest_seconds, 1e-3))))
