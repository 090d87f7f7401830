"""How sure are we? Intervals for error rates, and tests of one system against another.

Plain numbers in, named results out. What is resampled is a *unit*: an utterance, or, where the
speakers of a test set stand for all speakers, a speaker with all their utterances (a block
bootstrap). Words are never resampled one by one: errors come in bunches, and pretending they are
independent makes every interval too narrow.

References: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 14 (BCa);
Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation"
(ICASSP 2004); Gillick & Cox, "Some statistical issues in the comparison of speech recognition
algorithms" (ICASSP 1989).
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DEFAULT_LEVEL = 0.95
DEFAULT_NUM_RESAMPLES = 10_000
_POWER = 0.8  # the customary chance of finding a difference that is there
_MAX_DRAWS_IN_MEMORY = 4_000_000
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """A two-sided confidence interval; ``low`` and ``high`` are ``nan`` where none can be given.

    ``num_units`` is how many independent units (utterances, speakers, trials) it rests on.
    """

    low: float
    high: float
    level: float
    method: str
    num_units: int


def wilson_interval(num_successes: int, num_trials: int, *, level: float = DEFAULT_LEVEL) -> Interval:
    """Wilson's score interval for a share, such as a sentence error rate."""
    if num_trials == 0:
        return Interval(math.nan, math.nan, level, "wilson", 0)
    z = _NORMAL.inv_cdf((1 + level) / 2)
    share = num_successes / num_trials
    shrink = 1 + z * z / num_trials
    middle = (share + z * z / (2 * num_trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    # At the ends the bound is exactly 0 or 1; rounding must not leave the range.
    low = 0.0 if num_successes == 0 else middle - half
    high = 1.0 if num_successes == num_trials else middle + half
    return Interval(low, high, level, "wilson", num_trials)


def rate_interval(
    errors: Sequence[float] | Floats,
    reference_lengths: Sequence[float] | Floats,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = DEFAULT_LEVEL,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval (BCa) of a pooled error rate.

    Measured on simulated utterances with known truth, 95 % BCa intervals hold it in 93–94 % of test
    sets of 100 utterances; percentile intervals in 91–94 %, being too low in most of the rest.
    Few units are too optimistic under any bootstrap: below about 20 read it as a lower limit of
    the uncertainty (``num_units`` says how many there were).

    A set without any error gives no spread to resample; there the upper end is Wilson's for
    independent words (``method`` says so), the least that could be claimed.

    Args:
        errors, reference_lengths: ``(utterances,)`` counts of errors and of reference words.
        groups: ``(utterances,)`` speakers (any labels); utterances of a group stay together.
        level: confidence level.
        num_resamples: bootstrap sets drawn.
        seed: the same seed gives the same interval.
    """
    units = _pool_units(errors, reference_lengths, groups=groups)
    if len(units) < 2 or units[:, 1].sum() == 0:
        return Interval(math.nan, math.nan, level, "bootstrap (BCa)", len(units))
    if not units[:, 0].any():
        high = wilson_interval(0, round(units[:, 1].sum()), level=level).high
        return Interval(0.0, high, level, "wilson over words (no errors)", len(units))
    low, high = _bca_bounds(units, _resample_ratios(units, num_resamples, seed), level)
    return Interval(low, high, level, "bootstrap (BCa)", len(units))


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """System A against system B on the same utterances.

    ``difference`` is the pooled rate of A minus that of B: negative means that A is better.
    ``share_a_better`` is the share of bootstrap sets in which A has fewer errors, ties counting
    half (Bisani & Ney's probability of improvement). ``num_more_units`` estimates how many more
    units it would take for a difference of this size to be found at this level with a power of
    80 %: 0 when there are enough, ``None`` when there is no difference to find, or when no number
    of units would do. ``detectable_difference`` is the smallest that these units find so often.
    """

    difference: float
    interval: Interval
    p_value: float
    share_a_better: float
    num_more_units: int | None
    detectable_difference: float = math.nan

    @property
    def is_supported(self) -> bool:
        """Whether chance does not explain the difference: test and interval agree on it."""
        excludes_zero = self.interval.low > 0 or self.interval.high < 0
        return excludes_zero and self.p_value < 1 - self.interval.level


def compare_paired(
    errors_a: Sequence[float] | Floats,
    errors_b: Sequence[float] | Floats,
    reference_lengths: Sequence[float] | Floats,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = DEFAULT_LEVEL,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Compare two systems: bootstrap interval of the difference, randomisation test of its sign.

    The interval is the percentile bootstrap's: a difference is nearly symmetric, and BCa's
    correction only adds noise there (measured: with 30 utterances and no difference 11 % of 95 %
    BCa intervals exclude zero, 7 % of percentile intervals). The p-value comes from swapping the
    two systems within units at random (the matched-pairs randomisation test, Noreen 1989), which
    keeps its false-positive rate even when few utterances differ (2–4 % measured at 5 %).

    Args:
        errors_a, errors_b: ``(utterances,)`` error counts, or their means over seeds.
        reference_lengths: ``(utterances,)`` reference words.
        groups: ``(utterances,)`` speakers; utterances of a group stay together.
        level, num_resamples, seed: as in :func:`rate_interval`.
    """
    differences = np.asarray(errors_a, np.float64) - np.asarray(errors_b, np.float64)
    units = _pool_units(differences, reference_lengths, groups=groups)
    num_units = len(units)
    if num_units < 2 or units[:, 1].sum() == 0:
        nothing = Interval(math.nan, math.nan, level, "bootstrap (percentile)", num_units)
        difference = _ratio(units.sum(axis=0)) if num_units else math.nan
        return PairedComparison(difference, nothing, 1.0, math.nan, None)
    ratios = _resample_ratios(units, num_resamples, seed)
    power = _Power(_ratio(units.sum(axis=0)), _variance(units), num_units, level)
    return PairedComparison(
        difference=power.difference,
        interval=_percentiles(ratios, level, "bootstrap (percentile)", num_units),
        p_value=_randomisation_p_value(units[:, 0], num_resamples, seed),
        share_a_better=float((ratios < 0).mean() + (ratios == 0).mean() / 2),
        num_more_units=power.num_more_units(),
        detectable_difference=power.detectable_difference(),
    )


class SeedNoise(NamedTuple):
    """What training again with another seed does to a comparison.

    ``standard_deviation`` is that of one run's rate (of one run's difference, where runs are paired),
    ``standard_error`` its part in the uncertainty of the difference. ``num_more_runs`` of each system
    would let a difference of this size be found with a power of 80 %: ``None`` when no number would do.
    """

    standard_deviation: float
    standard_error: float
    degrees_of_freedom: int
    num_more_runs: int | None


class GroupComparison(NamedTuple):
    """Two configurations, each trained several times; ``seeds`` is None where each was trained once."""

    comparison: PairedComparison
    seeds: SeedNoise | None


def compare_groups(
    errors_a: Sequence[Sequence[float]] | Floats,
    errors_b: Sequence[Sequence[float]] | Floats,
    reference_lengths: Sequence[float] | Floats,
    *,
    paired_runs: bool = False,
    groups: Sequence[Hashable] | None = None,
    level: float = DEFAULT_LEVEL,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> GroupComparison:
    """Compare the mean rates of two configurations: both other utterances and other seeds could have been.

    To each bootstrap difference of the means is added what other seeds would have done to it: Student's t
    with the pooled spread of the runs and its degrees of freedom (both configurations are taken to vary
    alike, so that one which was trained once borrows the other's spread). Interval and p-value are read
    from the sums. With one run of each, which says nothing about seeds, it is :func:`compare_paired`.
    It is cautious: measured without a difference, 1 to 4 % of comparisons claim one at 5 %.

    Args:
        errors_a, errors_b: ``(runs, utterances)`` error counts.
        reference_lengths: ``(utterances,)``.
        paired_runs: run *i* of both is the same model (decoded in two ways, say), so that its luck cancels.
        groups, level, num_resamples, seed: as in :func:`compare_paired`.

    Raises:
        ValueError: ``paired_runs`` and the configurations have different numbers of runs.
    """
    runs_a, runs_b = np.asarray(errors_a, np.float64), np.asarray(errors_b, np.float64)
    lengths = np.asarray(reference_lengths, np.float64)
    if paired_runs and len(runs_a) != len(runs_b):
        raise ValueError(f"{len(runs_a)} and {len(runs_b)} runs cannot be paired")
    plain = compare_paired(
        runs_a.mean(axis=0),
        runs_b.mean(axis=0),
        lengths,
        groups=groups,
        level=level,
        num_resamples=num_resamples,
        seed=seed,
    )
    if math.isnan(plain.interval.low):
        return GroupComparison(plain, None)
    varying = [runs_a - runs_b] if paired_runs else [runs_a, runs_b]
    spread = _pooled_spread(errors.sum(axis=1) / lengths.sum() for errors in varying)
    if spread is None:
        return GroupComparison(plain, None)
    inverse_runs = 1 / len(runs_a) + (0 if paired_runs else 1 / len(runs_b))
    standard_error = spread.standard_deviation * math.sqrt(inverse_runs)
    units = _pool_units(runs_a.mean(axis=0) - runs_b.mean(axis=0), lengths, groups=groups)
    ratios = _resample_ratios(units, num_resamples, seed)
    rng = np.random.default_rng([seed, 1])
    ratios = ratios + standard_error * rng.standard_t(spread.degrees_of_freedom, len(ratios))
    share_below = float((ratios < 0).mean() + (ratios == 0).mean() / 2)
    power = _Power(plain.difference, _variance(units), len(units), level, standard_error**2)
    runs_needed = power.num_runs_needed(spread.standard_deviation, 1 if paired_runs else 2)
    comparison = PairedComparison(
        difference=plain.difference,
        interval=_percentiles(ratios, level, "bootstrap and Student's t of seeds", len(units)),
        p_value=max(2 * min(share_below, 1 - share_below), 1 / (len(ratios) + 1)),
        share_a_better=share_below,
        num_more_units=power.num_more_units(),
        detectable_difference=power.detectable_difference(),
    )
    num_more_runs = None if runs_needed is None else max(0, runs_needed - min(len(runs_a), len(runs_b)))
    return GroupComparison(
        comparison,
        SeedNoise(spread.standard_deviation, standard_error, spread.degrees_of_freedom, num_more_runs),
    )


class _Spread(NamedTuple):
    standard_deviation: float
    degrees_of_freedom: int


def _pooled_spread(rates: Iterable[Floats]) -> _Spread | None:
    """Standard deviation within groups of runs; None when no group has two."""
    deviations = [values - values.mean() for values in rates]
    degrees_of_freedom = sum(len(values) - 1 for values in deviations)
    if degrees_of_freedom == 0:
        return None
    squares = sum(float((values**2).sum()) for values in deviations)
    return _Spread(math.sqrt(squares / degrees_of_freedom), degrees_of_freedom)


def _percentiles(ratios: Floats, level: float, method: str, num_units: int) -> Interval:
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, method, num_units)


def _pool_units(
    numerators: Sequence[float] | Floats,
    denominators: Sequence[float] | Floats,
    *,
    groups: Sequence[Hashable] | None,
) -> Floats:
    """Sum what belongs together: ``(units, 2)`` of numerator and denominator."""
    rows = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=1)
    if groups is None:
        return rows
    if len(groups) != len(rows):
        raise ValueError(f"{len(groups)} groups for {len(rows)} utterances")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)
    pooled = np.zeros((len(numbers), 2))
    np.add.at(pooled, index, rows)
    return pooled


def _ratio(sums: Floats) -> float:
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def _resample_ratios(units: Floats, num_resamples: int, seed: int) -> Floats:
    """Draw ``(num_resamples,)`` pooled ratios of units taken with replacement.

    Units with equal rows are interchangeable, so how often each *distinct* row is drawn is
    multinomial: the same distribution as drawing units one by one, far fewer numbers.
    """
    rng = np.random.default_rng(seed)
    rows, multiplicities = np.unique(units, axis=0, return_counts=True)
    shares = multiplicities / multiplicities.sum()
    chunk = max(1, _MAX_DRAWS_IN_MEMORY // len(rows))
    sums = np.concatenate(
        [
            rng.multinomial(len(units), shares, size=min(chunk, num_resamples - start)) @ rows
            for start in range(0, num_resamples, chunk)
        ]
    )
    return sums[:, 0][sums[:, 1] > 0] / sums[:, 1][sums[:, 1] > 0]


def _bca_bounds(units: Floats, ratios: Floats, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds of the pooled ratio of ``units``."""
    sums = units.sum(axis=0)
    ratio = _ratio(sums)
    below = float((ratios < ratio).mean() + (ratios == ratio).mean() / 2)
    edge = 1 / (2 * len(ratios))
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    left_out = sums - units
    usable = left_out[:, 1] > 0
    jackknife = left_out[usable, 0] / left_out[usable, 1]
    deviations = jackknife.mean() - jackknife
    spread = float((deviations**2).sum()) ** 1.5
    acceleration = float((deviations**3).sum()) / (6 * spread) if spread else 0.0

    def corrected(probability: float) -> float:
        z = bias + _NORMAL.inv_cdf(probability)
        return _NORMAL.cdf(bias + z / (1 - acceleration * z))

    low, high = np.quantile(ratios, [corrected((1 - level) / 2), corrected((1 + level) / 2)])
    return float(low), float(high)


def _randomisation_p_value(differences: Floats, num_shuffles: int, seed: int) -> float:
    """Two-sided p-value of the summed differences under random signs, exact for up to 12 pairs."""
    sizes, multiplicities = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = abs(float(differences.sum()))
    num_pairs = int(multiplicities.sum())
    # Sums of counts are exact in floating point, means over seeds are not.
    threshold = observed - 1e-9 * max(1.0, observed)
    if num_pairs <= 12:
        sums = np.zeros(1)
        for size in np.repeat(sizes, multiplicities):
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= threshold).mean())
    rng = np.random.default_rng(seed)
    # Of m equal sizes, a binomial number of signs is positive.
    positives = rng.binomial(multiplicities, 0.5, size=(num_shuffles, len(sizes)))
    sums = (2 * positives - multiplicities) @ sizes
    # The observed assignment is one of the possible ones: p is never zero.
    return float(((np.abs(sums) >= threshold).sum() + 1) / (num_shuffles + 1))


def _variance(units: Floats) -> float:
    """Of the pooled ratio of ``units``, by linearisation (Cochran 1977, chapter 6)."""
    sums = units.sum(axis=0)
    residuals = units[:, 0] - _ratio(sums) * units[:, 1]
    return float((residuals**2).sum()) * len(units) / (len(units) - 1) / float(sums[1]) ** 2


class _Power(NamedTuple):
    """What it takes to find ``difference`` with a power of 80 %, by the normal approximation.

    It is found so often when it is ``z(level) + z(power)`` standard errors large. The variance of
    ``num_units`` units shrinks with their number, that of the seeds with the number of runs.
    """

    difference: float
    variance: float
    num_units: int
    level: float
    seed_variance: float = 0.0

    @property
    def _needed_z(self) -> float:
        return _NORMAL.inv_cdf((1 + self.level) / 2) + _NORMAL.inv_cdf(_POWER)

    def detectable_difference(self) -> float:
        return self._needed_z * math.sqrt(self.variance + self.seed_variance)

    def num_more_units(self) -> int | None:
        left_for_units = (self.difference / self._needed_z) ** 2 - self.seed_variance
        if left_for_units <= 0:
            return None
        return max(0, math.ceil(self.num_units * self.variance / left_for_units - self.num_units))

    def num_runs_needed(self, standard_deviation: float, num_systems: int) -> int | None:
        left_for_seeds = (self.difference / self._needed_z) ** 2 - self.variance
        return math.ceil(num_systems * standard_deviation**2 / left_for_seeds) if left_for_seeds > 0 else None


# --- classical paired tests -----------------------------------------------------------------


class SegmentErrors(NamedTuple):
    """Errors of two systems in the same stretch of one utterance."""

    errors_a: int
    errors_b: int


def segment_errors(
    slots_a: Sequence[int], slots_b: Sequence[int], *, num_correct_words: int = 2
) -> tuple[SegmentErrors, ...]:
    """Cut one utterance into segments in which the systems' errors are independent of each other.

    A segment holds at least one error of either system and ends where both have
    ``num_correct_words`` consecutive reference words right, with nothing inserted between them,
    or where the utterance ends. Two is the customary buffer: it is as far as a trigram looks
    back. Stretches without errors are no segments (as in NIST ``sc_stats``).

    Args:
        slots_a, slots_b: ``(2 * words + 1,)`` errors by place in the reference, gaps at even and
            words at odd positions (``asr.score.Alignment.errors_by_slot``).
        num_correct_words: length of the correct stretch that separates segments.

    Raises:
        ValueError: the two systems were aligned with references of different lengths.
    """
    if len(slots_a) != len(slots_b):
        raise ValueError(f"references of {len(slots_a) // 2} and {len(slots_b) // 2} words")
    segments: list[SegmentErrors] = []
    current = SegmentErrors(0, 0)
    num_correct = 0
    for position, (errors_a, errors_b) in enumerate(zip(slots_a, slots_b, strict=True)):
        if errors_a or errors_b:
            current = SegmentErrors(current.errors_a + errors_a, current.errors_b + errors_b)
            num_correct = 0
        elif position % 2:
            num_correct += 1
            if num_correct == num_correct_words and any(current):
                segments.append(current)
                current = SegmentErrors(0, 0)
    if any(current):
        segments.append(current)
    return tuple(segments)


class MatchedPairsTest(NamedTuple):
    """``mean_difference`` is errors of A minus errors of B per segment; negative favours A."""

    num_segments: int
    mean_difference: float
    z: float
    p_value: float


def matched_pairs_test(segments: Iterable[SegmentErrors]) -> MatchedPairsTest:
    """Matched-pairs sentence-segment word error test (MAPSSWE; Gillick & Cox 1989).

    Pass the segments of all utterances, or one pair of counts per utterance for the simple
    variant that only assumes independent utterances. The normal approximation wants about 50
    segments. Where every segment has the same difference there is no variance to divide by, and
    the p-value is that of the sign test.
    """
    differences = np.array([pair.errors_a - pair.errors_b for pair in segments], np.float64)
    num_segments = len(differences)
    mean = float(differences.mean()) if num_segments else 0.0
    if mean == 0:
        return MatchedPairsTest(num_segments, 0.0, 0.0, 1.0)
    deviation = float(differences.std(ddof=1)) if num_segments > 1 else 0.0
    if deviation == 0:
        return MatchedPairsTest(num_segments, mean, math.copysign(math.inf, mean), 0.5 ** (num_segments - 1))
    z = mean / (deviation / math.sqrt(num_segments))
    return MatchedPairsTest(num_segments, mean, z, math.erfc(abs(z) / math.sqrt(2)))


class McNemarTest(NamedTuple):
    num_only_a_correct: int
    num_only_b_correct: int
    p_value: float


def mcnemar_test(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> McNemarTest:
    """Exact McNemar test: among sentences that one system alone has right, is it a coin toss?"""
    pairs = [(bool(a), bool(b)) for a, b in zip(correct_a, correct_b, strict=True)]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    num_discordant = only_a + only_b
    # Whole numbers until the last division: no rounding, however many sentences.
    num_ways, num_ways_in_tail = 1, 0
    for num_successes in range(min(only_a, only_b) + 1):
        num_ways_in_tail += num_ways
        num_ways = num_ways * (num_discordant - num_successes) // (num_successes + 1)
    return McNemarTest(only_a, only_b, min(1.0, 2 * num_ways_in_tail / 2**num_discordant))


def holm_adjust(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction: compare the result with the level of the whole family.

    Holm, "A simple sequentially rejective multiple test procedure" (1979). Order is kept.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return tuple(adjusted)


class SeedSummary(NamedTuple):
    """The same configuration trained with several seeds; ``standard_deviation`` is ``nan`` for one."""

    num_seeds: int
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float


def summarise_seeds(rates: Sequence[float]) -> SeedSummary:
    """Mean and spread of a rate over training seeds.

    Raises:
        ValueError: ``rates`` is empty.
    """
    if not len(rates):
        raise ValueError("no rates to summarise")
    values = np.asarray(rates, np.float64)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return SeedSummary(len(values), float(values.mean()), deviation, float(values.min()), float(values.max()))
