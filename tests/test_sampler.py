"""Batch plans: every utterance once, limits kept, the same plan for the same (seed, epoch)."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.sampler import BucketSampler, Pick, SequentialSampler, Share, batches_by_length

lengths = st.lists(st.floats(0.1, 40.0), min_size=1, max_size=200)


def positions(batches: list[list[Pick]]) -> list[list[int]]:
    return [[pick.position for pick in batch] for batch in batches]


def padded_seconds(durations: list[float], batch: list[int]) -> float:
    return len(batch) * max(durations[index] for index in batch)


def librispeech_like(num_utterances: int, seed: int = 0) -> list[float]:
    """Durations as in train-clean-100: most near 14 s, a tail of short ones, none above 24.5 s."""
    rng = np.random.default_rng(seed)
    long = rng.normal(14.2, 1.3, num_utterances)
    short = rng.uniform(1.4, 14.0, num_utterances)
    return np.clip(np.where(rng.random(num_utterances) < 0.75, long, short), 1.4, 24.5).tolist()


# ------------------------------------------------------------------ training plans


@given(
    durations=lengths,
    max_utterances=st.integers(1, 20),
    max_seconds=st.floats(5.0, 200.0),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=100)
def test_every_epoch_has_every_utterance_once_within_the_limits(
    durations: list[float], max_utterances: int, max_seconds: float, seed: int
) -> None:
    sampler = BucketSampler(durations, max_utterances=max_utterances, max_seconds=max_seconds, seed=seed)
    for epoch in range(3):
        plan = positions(sampler.plan(epoch))
        assert len(plan) == len(sampler)
        assert sorted(itertools.chain.from_iterable(plan)) == list(range(len(durations)))
        for batch in plan:
            assert 1 <= len(batch) <= max_utterances
            assert len(batch) == 1 or padded_seconds(durations, batch) <= max_seconds


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    durations = librispeech_like(500)

    def make(seed: int) -> BucketSampler:
        return BucketSampler(durations, max_utterances=16, max_seconds=240, seed=seed)

    one, other = make(3), make(3)
    later = one.plan(5)
    assert later == one.plan(5)  # nothing is remembered between calls
    assert list(other.plan(0)) != later
    assert later == other.plan(5)
    assert make(4).plan(5) != later


def test_epochs_differ_in_order_and_in_company() -> None:
    sampler = BucketSampler(librispeech_like(500), max_utterances=16, max_seconds=240, seed=0)
    first, second = (positions(sampler.plan(epoch)) for epoch in (0, 1))
    company = [{frozenset(batch) for batch in plan} for plan in (first, second)]
    assert len(company[0] & company[1]) < 0.1 * len(first)
    # The lengths of the batches come in random order, not sorted.
    longest = [max(batch) for batch in first]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_augmentation_seeds_are_new_for_each_utterance_and_epoch() -> None:
    sampler = BucketSampler(librispeech_like(300), max_utterances=8, max_seconds=240, seed=0)
    seeds = Counter(pick.seed for epoch in range(5) for batch in sampler.plan(epoch) for pick in batch)
    assert len(seeds) == 5 * 300
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_iterating_follows_the_epoch_that_was_set() -> None:
    sampler = BucketSampler(librispeech_like(200), max_utterances=8, max_seconds=240, seed=1)
    assert list(sampler) == sampler.plan(0)
    sampler.set_epoch(4)
    assert list(sampler) == list(sampler) == sampler.plan(4)


def test_skip_goes_on_with_the_next_batch_in_this_epoch_alone() -> None:
    sampler = BucketSampler(librispeech_like(200), max_utterances=8, max_seconds=240, seed=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    resumed = BucketSampler(librispeech_like(200), max_utterances=8, max_seconds=240, seed=1)
    resumed.set_epoch(2)
    resumed.skip(7)
    assert list(resumed) == list(resumed) == whole[7:]
    resumed.set_epoch(3)
    assert list(resumed) == sampler.plan(3)


def efficiency(durations: list[float], plan: list[list[int]]) -> float:
    return sum(durations) / sum(padded_seconds(durations, batch) for batch in plan)


@pytest.mark.parametrize(("num_utterances", "least"), [(28000, 0.975), (4000, 0.975), (1000, 0.92)])
def test_little_of_a_batch_is_padding(num_utterances: int, least: float) -> None:
    durations = librispeech_like(num_utterances)
    sampler = BucketSampler(durations, max_utterances=32, max_seconds=480, seed=0)
    found = efficiency(durations, positions(sampler.plan(0)))
    shuffled = np.random.default_rng(0).permutation(num_utterances)
    at_random = efficiency(
        durations, [batch.tolist() for batch in np.array_split(shuffled, num_utterances // 32)]
    )
    assert at_random < 0.80
    assert found > least


def test_planning_a_large_corpus_takes_no_time() -> None:
    started = time.perf_counter()
    sampler = BucketSampler(librispeech_like(280_000), max_utterances=16, max_seconds=240, seed=0)
    assert sum(len(batch) for batch in sampler.plan(0)) == 280_000
    batches_by_length(librispeech_like(280_000), max_utterances=16, max_seconds=240)
    assert time.perf_counter() - started < 20  # measured: 2 s


# ------------------------------------------------------------------ plans without chance


@given(durations=lengths, max_utterances=st.integers(1, 20), max_seconds=st.floats(5.0, 200.0))
@settings(deadline=None, max_examples=100)
def test_batches_by_length_hold_everything_longest_first(
    durations: list[float], max_utterances: int, max_seconds: float
) -> None:
    plan = batches_by_length(durations, max_utterances=max_utterances, max_seconds=max_seconds)
    flat = list(itertools.chain.from_iterable(plan))
    assert sorted(flat) == list(range(len(durations)))
    in_order = [durations[index] for index in flat]
    assert in_order == sorted(durations, reverse=True)
    for batch in plan:
        assert 1 <= len(batch) <= max_utterances
        assert len(batch) == 1 or padded_seconds(durations, batch) <= max_seconds


def test_batches_by_length_by_hand() -> None:
    durations = [1.0, 5.0, 2.0, 5.0, 50.0, 1.0]
    plan = batches_by_length(durations, max_utterances=3, max_seconds=12.0)
    assert plan == [[4], [1, 3], [2, 0, 5]]
    assert batches_by_length([], max_utterances=3, max_seconds=12.0) == []


def test_sequential_sampler() -> None:
    durations = [1.0, 5.0, 2.0]
    sampler = SequentialSampler(durations, max_utterances=2, max_seconds=12.0)
    assert len(sampler) == 2
    assert list(sampler) == list(sampler) == [[Pick(1, 0), Pick(2, 0)], [Pick(0, 0)]]


# ------------------------------------------------------------------ SortaGrad, several processes


def test_sortagrad_goes_from_short_to_long_and_then_shuffles() -> None:
    durations = librispeech_like(500)
    options = {"max_utterances": 16, "max_seconds": 240.0, "seed": 0}
    sampler, usual = (
        BucketSampler(durations, sortagrad_epochs=2, **options),
        BucketSampler(durations, **options),
    )
    for epoch in (0, 1):
        plan = positions(sampler.plan(epoch))
        in_order = [durations[index] for batch in plan for index in batch]
        assert in_order == sorted(durations)
    assert [sorted(batch) for batch in positions(sampler.plan(2))] == [
        sorted(batch) for batch in positions(usual.plan(2))
    ]
    assert len(sampler) == len(usual)


@given(durations=lengths, num_processes=st.integers(1, 5), max_utterances=st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_processes_divide_the_same_batches_and_take_equally_many_steps(
    durations: list[float], num_processes: int, max_utterances: int
) -> None:
    limits = {"max_utterances": max_utterances, "max_seconds": 60.0}
    for make in (
        lambda: BucketSampler(durations, seed=1, **limits),
        lambda: SequentialSampler(durations, **limits),
    ):
        whole = list(make())
        shares = []
        for rank in range(num_processes):
            sampler = make()
            sampler.share = Share(rank, num_processes)
            shares.append(list(sampler))
        for number, batch in enumerate(whole):
            parts = [share[number] for share in shares]
            assert all(parts)
            assert all(len(part) == 1 for part in parts if any(pick.is_filler for pick in part))
            real = [pick for part in parts for pick in part if not pick.is_filler]
            assert sorted(real) == sorted(batch)
        assert {len(share) for share in shares} == {len(whole)}
