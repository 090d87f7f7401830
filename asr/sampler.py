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

    With ``shards`` the corpus is read in windows of a few shards at a time: batches are made within a
    window as above, and the windows come in another order each epoch. Which shards make a window stays the same.

    Args:
        durations: seconds of each utterance, after the slowest speed perturbation.
        max_utterances: largest batch.
        max_seconds: largest ``utterances x longest`` of a batch, padding included.
        seed: of the shuffling.
        shards: the shard of each utterance, counted from 0 in the order in which they lie; None to read
            in any order.
        shards_per_window: how many are open at a time.
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
        shards: NDArray[np.int64] | None = None,
        shards_per_window: int = 1,
        sortagrad_epochs: int = 0,
    ) -> None:
        self.seed = seed
        self.sortagrad_epochs = sortagrad_epochs
        self.share = Share()
        self.epoch = 0
        self._num_done: dict[int, int] = {}  # by epoch
        self._durations = np.asarray(durations, np.float64)
        order = np.argsort(self._durations, kind="stable")
        windows = [order] if shards is None else _by_window(order, shards, shards_per_window, seed)
        self._windows = [
            [
                _Bucket(part, ceil(len(part) / _batch_size(durations[part[-1]], max_utterances, max_seconds)))
                for part in np.array_split(window, _num_buckets(len(window), max_utterances))
            ]
            for window in windows
        ]

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(bucket.num_batches for window in self._windows for bucket in window)

    def plan(self, epoch: int) -> list[list[Pick]]:
        """All batches of an epoch, in order."""
        return list(self.batches(epoch))

    def batches(self, epoch: int) -> Iterator[list[Pick]]:
        """The same one by one: the picks of millions of utterances need not be there all at once."""
        generator = np.random.default_rng([self.seed, epoch])
        is_sorted = epoch < self.sortagrad_epochs
        for batch in self._ascending() if is_sorted else self._shuffled(generator):
            seeds = generator.integers(2**62, size=len(batch))
            yield list(map(Pick, batch.tolist(), seeds.tolist()))

    def _ascending(self) -> list[NDArray[np.int64]]:
        planned = [
            chunk
            for window in self._windows
            for bucket in window
            for chunk in np.array_split(bucket.positions, bucket.num_batches)
        ]
        return sorted(planned, key=lambda chunk: float(self._durations[chunk[-1]]))

    def _shuffled(self, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        several = len(self._windows) > 1
        for number in generator.permutation(len(self._windows)) if several else [0]:
            planned = [
                chunk
                for bucket in self._windows[number]
                for chunk in np.array_split(generator.permutation(bucket.positions), bucket.num_batches)
            ]
            yield from (planned[place] for place in generator.permutation(len(planned)))

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


class _Bucket(NamedTuple):
    """Positions of utterances of similar duration, ascending, and the batches that they make."""

    positions: NDArray[np.int64]
    num_batches: int


def _num_buckets(num_utterances: int, max_utterances: int) -> int:
    return max(1, min(MAX_BUCKETS, num_utterances // (MIN_BATCHES_PER_BUCKET * max_utterances)))


def _by_window(
    order: NDArray[np.int64], shards: NDArray[np.int64], shards_per_window: int, seed: int
) -> list[NDArray[np.int64]]:
    """``order`` in parts, one for each window of shards that were drawn together."""
    num_shards = int(shards.max(initial=0)) + 1
    window_of_shard = np.random.default_rng(seed).permutation(num_shards) // shards_per_window
    window_of_pick = window_of_shard[shards[order]]
    by_window = np.argsort(window_of_pick, kind="stable")
    cuts = np.flatnonzero(np.diff(window_of_pick[by_window])) + 1
    return np.split(order[by_window], cuts)


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
