"""Intervals and tests against scipy, sc_stats, hand arithmetic and simulations with known truth."""

import math
import random
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.score import align_sclite
from asr.stats import (
    SegmentErrors,
    compare_groups,
    compare_paired,
    holm_adjust,
    matched_pairs_test,
    mcnemar_test,
    rate_interval,
    segment_errors,
    summarise_seeds,
    wilson_interval,
)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(trial):
    expected = scipy.stats.binomtest(*trial).proportion_ci(method="wilson")
    interval = wilson_interval(*trial)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= interval.high <= 1


def test_wilson_without_trials_is_unknown():
    assert math.isnan(wilson_interval(0, 0).low)


def draw_utterances(rng, num_utterances):
    """Utterances of 1 to 11 words that differ in difficulty; the true pooled rate is 1/13."""
    lengths = rng.integers(1, 12, num_utterances)
    return rng.binomial(lengths, rng.beta(0.5, 6, num_utterances)), lengths


def test_rate_interval_is_scipys_bca():
    errors, lengths = draw_utterances(np.random.default_rng(3), 150)

    def pooled(errors, lengths, axis=-1):
        return errors.sum(axis=axis) / lengths.sum(axis=axis)

    expected = scipy.stats.bootstrap(
        (errors, lengths), pooled, paired=True, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    interval = rate_interval(errors, lengths, num_resamples=20_000)
    width = expected.high - expected.low
    assert interval.low == pytest.approx(expected.low, abs=0.03 * width)
    assert interval.high == pytest.approx(expected.high, abs=0.03 * width)
    assert interval.num_units == 150


def test_rate_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    num_sets = 300
    num_covered = 0
    for _ in range(num_sets):
        interval = rate_interval(*draw_utterances(rng, 100), num_resamples=500)
        num_covered += interval.low <= 1 / 13 <= interval.high
    # 93-95 % are expected of so small sets; 300 sets tell that to within about 2.5 points.
    assert 0.90 <= num_covered / num_sets <= 0.98


def test_speakers_are_resampled_as_blocks():
    rng = np.random.default_rng(2)
    rates = rng.beta(2, 18, 30)
    speakers = np.repeat(np.arange(30), 20)
    lengths = np.full(600, 10)
    errors = rng.binomial(lengths, rates[speakers])
    by_utterance = rate_interval(errors, lengths)
    by_speaker = rate_interval(errors, lengths, groups=[f"speaker{i}" for i in speakers])
    # The variance of a mean of 30 speakers, by hand: the spread of their pooled rates over sqrt(30).
    pooled = errors.reshape(30, 20).sum(axis=1) / 200
    expected_width = 2 * 1.96 * pooled.std(ddof=1) / math.sqrt(30)
    assert by_speaker.high - by_speaker.low == pytest.approx(expected_width, rel=0.15)
    assert by_speaker.high - by_speaker.low > 1.5 * (by_utterance.high - by_utterance.low)
    assert by_speaker.num_units == 30


def test_same_seed_same_interval():
    errors, lengths = draw_utterances(np.random.default_rng(4), 50)
    assert rate_interval(errors, lengths, seed=5) == rate_interval(errors, lengths, seed=5)
    assert rate_interval(errors, lengths, seed=5) != rate_interval(errors, lengths, seed=6)


def test_intervals_that_cannot_be_bootstrapped():
    assert math.isnan(rate_interval([], []).low)
    assert math.isnan(rate_interval([1], [10]).high)
    assert math.isnan(rate_interval([1, 2], [0, 0]).high)
    assert math.isnan(rate_interval([1, 2], [5, 5], groups=["a", "a"]).high)
    flawless = rate_interval([0, 0, 0], [10, 10, 10])
    assert flawless.low == 0
    assert flawless.high == pytest.approx(scipy.stats.binomtest(0, 30).proportion_ci(method="wilson").high)
    assert flawless.method == "wilson over words (no errors)"
    with pytest.raises(ValueError, match="1 groups for 2 utterances"):
        rate_interval([1, 2], [5, 5], groups=["a"])


def test_utterances_without_reference_words_only_add_errors():
    interval = rate_interval([1, 0, 2, 1], [10, 10, 0, 10])
    assert interval.low < 4 / 30 < interval.high


def test_paired_comparison_by_hand():
    comparison = compare_paired([2, 0, 3, 1], [1, 0, 1, 1], [10, 10, 10, 10])
    assert comparison.difference == pytest.approx(3 / 40)
    # Differences 1, 0, 2, 0 under random signs: |sum| >= 3 for 2 of the 4 sign patterns of (1, 2).
    assert comparison.p_value == 0.5
    assert not comparison.is_supported


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8))
def test_randomisation_p_value_is_the_share_of_all_sign_patterns(differences):
    n = len(differences)
    errors_a = [max(d, 0) for d in differences]
    errors_b = [max(-d, 0) for d in differences]
    patterns = product((1, -1), repeat=n)
    sums = [abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) for signs in patterns]
    expected = sum(value >= abs(sum(differences)) for value in sums) / 2**n
    comparison = compare_paired(errors_a, errors_b, [5] * n, num_resamples=50)
    assert comparison.p_value == pytest.approx(expected)


def test_sampled_randomisation_agrees_with_scipy():
    rng = np.random.default_rng(6)
    errors_a, lengths = draw_utterances(rng, 200)
    errors_b, _ = draw_utterances(rng, 200)
    expected = scipy.stats.permutation_test(
        (errors_a - errors_b,), np.sum, permutation_type="samples", n_resamples=20_000, rng=rng
    ).pvalue
    p_value = compare_paired(errors_a, errors_b, lengths, num_resamples=20_000).p_value
    assert p_value == pytest.approx(expected, abs=0.015)


def test_identical_systems_show_no_difference():
    comparison = compare_paired([1, 2, 0], [1, 2, 0], [5, 5, 5])
    assert (comparison.difference, comparison.p_value, comparison.share_a_better) == (0, 1, 0.5)
    assert comparison.num_more_units is None
    assert not comparison.is_supported
    assert not compare_paired([1], [0], [5]).is_supported


def simulate_pairs(rng, num_utterances, factor):
    """Two systems with errors in the same hard utterances, the second ``factor`` times as many."""
    lengths = rng.integers(1, 12, num_utterances)
    difficulty = rng.beta(0.3, 6, num_utterances)
    errors_a = rng.binomial(lengths, difficulty)
    return errors_a, rng.binomial(lengths, np.minimum(1, factor * difficulty)), lengths


def test_false_positive_rates_at_five_percent():
    rng = np.random.default_rng(7)
    num_sets = 400
    found = {"paired": 0, "matched pairs": 0, "McNemar": 0}
    for seed in range(num_sets):
        errors_a, errors_b, lengths = simulate_pairs(rng, 120, 1.0)
        comparison = compare_paired(errors_a, errors_b, lengths, num_resamples=300, seed=seed)
        found["paired"] += comparison.is_supported
        pairs = [SegmentErrors(*pair) for pair in zip(errors_a, errors_b, strict=True)]
        found["matched pairs"] += matched_pairs_test(pairs).p_value < 0.05
        found["McNemar"] += mcnemar_test(errors_a == 0, errors_b == 0).p_value < 0.05
    # Binomial noise at 5 % and 400 sets: 3 standard deviations are 3.3 points.
    assert all(count / num_sets <= 0.083 for count in found.values()), found
    assert found["paired"] / num_sets >= 0.01
    assert found["matched pairs"] / num_sets >= 0.02


def test_number_of_utterances_needed_gives_the_promised_power():
    rng = np.random.default_rng(8)
    # A large sample measures the true effect; the estimate from it must deliver a power of 80 %.
    errors_a, errors_b, _ = simulate_pairs(rng, 200_000, 1.4)
    units = 200
    z_total = abs((errors_a - errors_b).sum()) / math.sqrt(((errors_a - errors_b) ** 2).sum())
    needed = (2.802 / z_total) ** 2 * 200_000
    estimates = []
    num_found = 0
    for seed in range(150):
        a, b, n = simulate_pairs(rng, round(needed), 1.4)
        num_found += compare_paired(a, b, n, num_resamples=300, seed=seed).p_value < 0.05
        a, b, n = simulate_pairs(rng, units, 1.4)
        more = compare_paired(a, b, n, num_resamples=10).num_more_units
        estimates.append(math.inf if more is None else units + more)
    assert 0.68 <= num_found / 150 <= 0.92
    # The estimate varies with the sample; its middle is right, where it is above what was used.
    assert needed > units
    assert np.median(estimates) == pytest.approx(needed, rel=0.35)


def test_enough_utterances_need_no_more():
    comparison = compare_paired([3] * 50 + [2] * 50, [0] * 50 + [1] * 50, [10] * 100)
    assert comparison.num_more_units == 0
    assert comparison.is_supported
    assert comparison.share_a_better == 0


# --- segments and classical tests ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "system_a", "system_b", "expected"),
    [
        # One good word between errors does not separate, two do.
        ("a b c", "x b y", "a b c", [(2, 0)]),
        ("a b c d", "x b c y", "a b c d", [(1, 0), (1, 0)]),
        # The two words must be right in both systems.
        ("a b c d", "x b c y", "a b z d", [(2, 1)]),
        # An insertion between the two good words starts the count again.
        ("a b c d", "x b u c y", "a b c d", [(3, 0)]),
        ("a b c d e", "x b u c d y", "a b c d e", [(2, 0), (1, 0)]),
        ("a b c", "a b c", "a b c", []),
        ("a b c", "a b c u", "u a b c", [(0, 1), (1, 0)]),
        ("", "u", "", [(1, 0)]),
        ("a b", "", "a b", [(2, 0)]),
    ],
)
def test_segments_by_hand(reference, system_a, system_b, expected):
    slots = [
        align_sclite(reference.split(), system.split()).errors_by_slot() for system in (system_a, system_b)
    ]
    assert list(segment_errors(*slots)) == expected


def test_segments_of_different_references_are_refused():
    with pytest.raises(ValueError, match="references of 1 and 2 words"):
        segment_errors((0, 0, 0), (0, 0, 0, 0, 0))


def heard(words, error_rate, rng):
    result = []
    for word in words:
        draw = rng.random()
        if draw < 0.3 * error_rate:
            continue
        if draw < error_rate:
            result.append(f"w{int(rng.random() * 200)}")
            continue
        result.append(word)
        if rng.random() < 0.2 * error_rate:
            result.append(f"w{int(rng.random() * 200)}")
    return [*result, "end", "stop"]


def test_matched_pairs_is_sc_stats():
    """NIST sc_stats (SCTK 1.3) on these 300 utterances: 545 segments with 445 and 607 errors, Z -5.666."""
    rng = random.Random(4)
    spoken = [[f"w{int(rng.random() * 200)}" for _ in range(4 + int(rng.random() * 16))] for _ in range(300)]
    system_a = [heard(words, 0.12, rng) for words in spoken]
    system_b = [heard(words, 0.16, rng) for words in spoken]
    segments = [
        segment
        for words, a, b in zip(spoken, system_a, system_b, strict=True)
        for segment in segment_errors(
            align_sclite([*words, "end", "stop"], a).errors_by_slot(),
            align_sclite([*words, "end", "stop"], b).errors_by_slot(),
        )
    ]
    test = matched_pairs_test(segments)
    assert test.num_segments == 545
    assert sum(segment.errors_a for segment in segments) == 445
    assert sum(segment.errors_b for segment in segments) == 607
    assert test.z == pytest.approx(-5.666, abs=5e-4)
    assert test.mean_difference == pytest.approx(-0.297, abs=5e-4)
    assert test.p_value == pytest.approx(2 * scipy.stats.norm.sf(5.666464250291356), rel=1e-6)


def test_matched_pairs_at_the_edges():
    assert matched_pairs_test([]).p_value == 1
    assert matched_pairs_test([SegmentErrors(1, 0), SegmentErrors(0, 1)]).p_value == 1
    assert matched_pairs_test([SegmentErrors(1, 0)]).p_value == 1
    # Four times the same difference: no variance, the sign test says 2 / 2**4.
    assert matched_pairs_test([SegmentErrors(2, 1)] * 4).p_value == pytest.approx(2 / 2**4)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_is_the_exact_binomial(only_a, only_b, both):
    correct_a = [True] * only_a + [False] * only_b + [True] * both
    correct_b = [False] * only_a + [True] * only_b + [True] * both
    test = mcnemar_test(correct_a, correct_b)
    assert (test.num_only_a_correct, test.num_only_b_correct) == (only_a, only_b)
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert test.p_value == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand():
    # Holm (1979): 3 * 0.01, then max with 2 * 0.02, then max with 1 * 0.03; order is kept.
    assert holm_adjust([0.03, 0.01, 0.02]) == pytest.approx((0.04, 0.03, 0.04))
    assert holm_adjust([0.5, 0.6]) == (1.0, 1.0)
    assert holm_adjust([]) == ()


def test_seed_summary_by_hand():
    summary = summarise_seeds([0.05, 0.07, 0.06])
    assert (summary.num_seeds, summary.minimum, summary.maximum) == (3, 0.05, 0.07)
    assert summary.mean == pytest.approx(0.06)
    assert summary.standard_deviation == pytest.approx(0.01)
    assert math.isnan(summarise_seeds([0.05]).standard_deviation)
    with pytest.raises(ValueError, match="no rates"):
        summarise_seeds([])


# --- several runs of each configuration -----------------------------------------------------------


def simulate_runs(rng, num_runs, num_utterances, seed_noise):
    """Runs of two equal configurations, each run with luck of its own; ``(runs, utterances)`` errors of both."""
    lengths = rng.integers(3, 12, num_utterances)
    difficulty = rng.beta(0.5, 6, num_utterances)
    luck = np.exp(seed_noise * rng.standard_normal((2 * num_runs, 1)))
    errors = rng.binomial(lengths, np.minimum(1, luck * difficulty))
    return errors[:num_runs], errors[num_runs:], lengths


def false_claims(num_runs, num_sets, seed_noise=0.3):
    rng = np.random.default_rng(9)
    claims = 0
    for seed in range(num_sets):
        group_a, group_b, lengths = simulate_runs(rng, num_runs, 200, seed_noise)
        compared = compare_groups(group_a, group_b, lengths, num_resamples=400, seed=seed)
        claims += compared.comparison.is_supported
    return claims / num_sets


@pytest.mark.parametrize("num_runs", [2, 3])
def test_luck_of_the_seeds_is_not_taken_for_a_difference(num_runs):
    # Three standard deviations of 5 % in 100 sets are 6.5 points.
    assert false_claims(num_runs, 100) <= 0.11


@pytest.mark.slow
@pytest.mark.parametrize("num_runs", [2, 3, 5])
def test_luck_of_the_seeds_in_many_sets(num_runs):
    assert false_claims(num_runs, 800) <= 0.073  # three standard deviations are 2.3 points


def test_one_run_of_each_is_a_comparison_of_models():
    assert false_claims(1, 60) > 0.3
    group_a, group_b, lengths = simulate_runs(np.random.default_rng(3), 1, 100, 0.3)
    compared = compare_groups(group_a, group_b, lengths)
    assert compared.seeds is None
    assert compared.comparison == compare_paired(group_a[0], group_b[0], lengths)


def test_seed_noise_by_hand():
    lengths = [10] * 50
    group_a = [[1] * 50, [2] * 50]  # rates 0.1, 0.2
    group_b = [[4] * 50, [4] * 50, [5] * 50]  # rates 0.4, 0.4, 0.5
    noise = compare_groups(group_a, group_b, lengths).seeds
    assert noise.degrees_of_freedom == 3
    assert noise.standard_deviation == pytest.approx(math.sqrt((0.005 + 0.02 / 3) / 3))
    assert noise.standard_error == pytest.approx(noise.standard_deviation * math.sqrt(1 / 2 + 1 / 3))
    # All utterances alike: the interval is Student's alone.
    comparison = compare_groups(group_a, group_b, lengths, num_resamples=100_000).comparison
    half = noise.standard_error * scipy.stats.t.ppf(0.975, 3)
    assert comparison.interval.low == pytest.approx(-0.85 / 3 - half, rel=0.02)
    expected = 2 * scipy.stats.t.sf(0.85 / 3 / noise.standard_error, 3)
    assert comparison.p_value == pytest.approx(expected, rel=0.1)


def test_runs_that_are_the_same_models_are_paired():
    rng = np.random.default_rng(5)
    group_a, _, lengths = simulate_runs(rng, 3, 100, 0.5)
    group_b = group_a + (rng.random(group_a.shape) < 0.1)  # a decoder that adds an error to some utterances
    apart = compare_groups(group_a, group_b, lengths)
    together = compare_groups(group_a, group_b, lengths, paired_runs=True)
    assert together.comparison.is_supported
    assert not apart.comparison.is_supported
    assert together.seeds.standard_error < apart.seeds.standard_error / 3
    with pytest.raises(ValueError, match="3 and 2 runs"):
        compare_groups(group_a, group_b[:2], lengths, paired_runs=True)


def test_utterances_cannot_make_up_for_seeds():
    rng = np.random.default_rng(6)
    lengths = np.full(400, 10)
    group_a = rng.binomial(10, np.array([[0.10], [0.20]]), (2, 400))
    group_b = rng.binomial(10, np.array([[0.12], [0.22]]), (2, 400))
    compared = compare_groups(group_a, group_b, lengths)
    assert not compared.comparison.is_supported
    assert compared.comparison.num_more_units is None
    assert compared.seeds.num_more_runs > 10


def test_detectable_difference_is_found_in_four_of_five_sets():
    rng = np.random.default_rng(10)
    detectable = np.median(
        [
            compare_paired(*simulate_pairs(rng, 300, 1.0), num_resamples=10).detectable_difference
            for _ in range(20)
        ]
    )
    errors_a, errors_b, lengths = simulate_pairs(rng, 200_000, 1.3)
    difference = (errors_b - errors_a).sum() / lengths.sum()
    factor = 1 + 0.3 * detectable / difference
    found = sum(
        compare_paired(*simulate_pairs(rng, 300, factor), num_resamples=300, seed=seed).p_value < 0.05
        for seed in range(150)
    )
    assert 0.65 <= found / 150 <= 0.92
