"""Systems set against each other on the same utterances: what is compared, and what can be said.

A *system* is one evaluation, or several of runs that differ in nothing but their seed. Only
utterances that all reports hold with the same reference are compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asr.errors import ConfigError
from asr.provenance import flatten
from asr.report.json_report import EvaluationReport, UtteranceResult, slice_members
from asr.score import Alignment, ErrorCounts, align, total
from asr.stats import (
    DEFAULT_LEVEL,
    DEFAULT_NUM_RESAMPLES,
    Floats,
    GroupComparison,
    Interval,
    MatchedPairsTest,
    McNemarTest,
    PairedComparison,
    SeedNoise,
    SeedSummary,
    SegmentErrors,
    compare_groups,
    holm_adjust,
    matched_pairs_test,
    mcnemar_test,
    rate_interval,
    segment_errors,
    summarise_seeds,
)

SCHEMA_VERSION = 1
Metric = Literal["wer", "cer"]
Unit = Literal["utterance", "speaker"]

MIN_SLICE_UTTERANCES = 10  # fewer cannot show a difference that survives the correction
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# What differs between runs of one configuration, and what changes the speed of a training but not its result.
_NOT_OF_THE_CONFIGURATION = (
    *("name", "seed", "run_dir", "resume", "find", "logger", "doctor", "data.name", "data.prepare_hint"),
    *("data.train", "data.dev", "data.test", "data.num_workers", "data.cache_audio_gib"),
    *("trainer.num_threads", "trainer.memory_gib", "trainer.profile", "trainer.progress_bar"),
    *("trainer.log_every_steps", "trainer.num_dev_samples", "trainer.save_every_minutes"),
)


@dataclass(frozen=True, slots=True)
class System:
    """What one letter stands for; ``seeds`` sums up its runs' rates."""

    letter: str
    name: str
    reports: tuple[str, ...]
    rates: tuple[float, ...]
    counts: ErrorCounts
    interval: Interval
    seeds: SeedSummary
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SliceDifference:
    """One part of the utterances; ``adjusted_p`` is corrected for all slices of this pair (Holm)."""

    field: str
    value: str
    num_utterances: int
    rate_a: float
    rate_b: float
    comparison: PairedComparison
    adjusted_p: float

    @property
    def is_supported(self) -> bool:
        return _is_supported(self.comparison, self.adjusted_p)


@dataclass(frozen=True, slots=True)
class OptionDifference:
    option: str
    value_a: str
    value_b: str


@dataclass(frozen=True, slots=True)
class PairResult:
    """System ``a`` against system ``b``: the verdict rests on ``comparison``, corrected for the pairs (Holm).

    ``matched_pairs`` and ``mcnemar`` are None where a system has several runs, ``by_speaker`` where
    speakers are unknown or the verdict is by speaker already.
    """

    a: str
    b: str
    comparison: PairedComparison
    adjusted_p: float
    seeds: SeedNoise | None
    by_speaker: PairedComparison | None
    matched_pairs: MatchedPairsTest | None
    mcnemar: McNemarTest | None
    slices: tuple[SliceDifference, ...]
    num_slices_too_small: int
    options: tuple[OptionDifference, ...]
    verdict: str

    @property
    def is_supported(self) -> bool:
        return _is_supported(self.comparison, self.adjusted_p)


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """The content of ``comparison.json``."""

    schema_version: int
    metric: str
    unit: str
    level: float
    num_utterances: int
    num_reference: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    systems: tuple[System, ...]
    pairs: tuple[PairResult, ...]


@dataclass(frozen=True, slots=True)
class NamedReport:
    path: str
    name: str
    report: EvaluationReport


@dataclass(frozen=True)
class _Group:
    """Reports of one system, their results restricted to the shared utterances in one order."""

    letter: str
    members: tuple[NamedReport, ...]
    results: tuple[tuple[UtteranceResult, ...], ...]
    metric: Metric

    @cached_property
    def counts(self) -> list[list[ErrorCounts]]:
        """``(runs, utterances)``."""
        return [[_counts(result, self.metric) for result in run] for run in self.results]

    @cached_property
    def errors(self) -> Floats:
        """``(runs, utterances)``."""
        return np.array([[count.num_errors for count in run] for run in self.counts], np.float64)

    @cached_property
    def lengths(self) -> Floats:
        """``(utterances,)`` of the references, the same in all runs."""
        return np.array([count.num_reference for count in self.counts[0]], np.float64)

    @property
    def checkpoints(self) -> list[str]:
        return [checkpoint_of(member.report) for member in self.members]


def compare_reports(
    reports: Sequence[NamedReport],
    *,
    metric: Metric = "wer",
    unit: Unit = "utterance",
    group_seeds: bool = True,
    min_shared: float = 0.5,
    level: float = DEFAULT_LEVEL,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> ComparisonReport:
    """Compare every system with every other.

    Args:
        unit: what is resampled; ``speaker`` asks whether the difference holds for other speakers.
        group_seeds: take runs that differ in their seed only as one system.
        min_shared: least share of the largest report that all reports must hold.

    Raises:
        ConfigError: the reports cannot be compared; says why.
    """
    check_comparable(reports)
    shared, left_out = shared_utterances(reports, min_shared)
    groups = [
        _Group(letter, members, tuple(_restricted(member.report, shared) for member in members), metric)
        for letter, members in zip(_LETTERS, grouped(reports, by_seed=group_seeds), strict=False)
    ]
    first = groups[0].results[0]
    speakers = [result.speaker for result in first]
    knows_speakers = all(speakers) and len(set(speakers)) > 1
    if unit == "speaker" and not knows_speakers:
        raise ConfigError("unit=speaker needs at least two speakers, and every utterance's to be named")
    sampling = _Sampling(level, num_resamples, seed)
    units = speakers if unit == "speaker" else None
    pairs = [
        _compare_pair(a, b, units, speakers if knows_speakers and unit == "utterance" else None, sampling)
        for a, b in combinations(groups, 2)
    ]
    adjusted = holm_adjust([pair.comparison.p_value for pair in pairs])
    return ComparisonReport(
        schema_version=SCHEMA_VERSION,
        metric=metric,
        unit=unit,
        level=level,
        num_utterances=len(shared),
        num_reference=total(groups[0].counts[0]).num_reference,
        left_out=left_out,
        notes=tuple(_notes(groups, left_out, group_seeds)),
        systems=tuple(_system(group, units, sampling) for group in groups),
        pairs=tuple(
            _with_verdict(replace(pair, adjusted_p=p_value), metric, unit)
            for pair, p_value in zip(pairs, adjusted, strict=True)
        ),
    )


# --- what belongs together ---------------------------------------------------------------------


def check_comparable(reports: Sequence[NamedReport]) -> None:
    """
    Raises:
        ConfigError: too many reports, or differently normalised ones.
    """
    if len(reports) > len(_LETTERS):
        raise ConfigError(f"{len(reports)} reports: at most {len(_LETTERS)} can be compared at once")
    normalisers = {one.report.normaliser: one.path for one in reports}
    if len(normalisers) > 1:
        ways = ", ".join(f"{name} ({path})" for name, path in sorted(normalisers.items()))
        raise ConfigError(f"the texts were normalised differently before counting: {ways}; evaluate alike")


def shared_utterances(
    reports: Sequence[NamedReport], min_shared: float
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids that all reports hold with one reference, in the first report's order; and those left out.

    Raises:
        ConfigError: too few are shared.
    """
    references = [{result.id: result.reference for result in one.report.utterances} for one in reports]
    shared = tuple(
        name
        for name, text in references[0].items()
        if all(other.get(name) == text for other in references[1:])
    )
    everything = dict.fromkeys(name for texts in references for name in texts)
    largest = max(map(len, references))
    if len(shared) < 2 or len(shared) < min_shared * largest:
        of_same_id = sum(all(name in texts for texts in references) for name in everything)
        texts_differ = (
            f" ({of_same_id} share their id, but not their reference)" if of_same_id > len(shared) else ""
        )
        raise ConfigError(
            f"only {len(shared)} of up to {largest} utterances are in all reports{texts_differ}: are they of "
            "the same data? min_shared= sets the share that is enough"
        )
    kept = set(shared)
    return shared, tuple(name for name in everything if name not in kept)


def grouped(reports: Sequence[NamedReport], *, by_seed: bool) -> list[tuple[NamedReport, ...]]:
    """Reports by configuration, in order of first appearance; a model evaluated twice is no further run."""
    found: dict[Any, list[NamedReport]] = {}
    for number, one in enumerate(reports):
        configuration = configuration_of(one.report) if by_seed else None
        found.setdefault(number if configuration is None else configuration, []).append(one)
    separate: list[tuple[NamedReport, ...]] = []
    for members in found.values():
        checkpoints = {checkpoint_of(member.report) for member in members}
        if len(checkpoints) == len(members):
            separate.append(tuple(members))
        else:
            separate += [(member,) for member in members]
    return separate


def configuration_of(report: EvaluationReport) -> tuple[tuple[str, str], ...] | None:
    """All that the result depends on except the seed, by option; None for a report that does not say."""
    provenance = report.provenance
    training = provenance.get("training_config")
    if not isinstance(training, Mapping) or not checkpoint_of(report):
        return None
    manifests = provenance.get("training", {}).get("manifests", {})
    settings = {
        **flatten(training),
        **flatten(provenance.get("decoder", {}), "decoder."),
        **{f"{split} manifest": manifest.get("sha256", "")[:12] for split, manifest in manifests.items()},
    }
    return tuple(
        (name, str(value))
        for name, value in sorted(settings.items())
        if value is not None
        and not any(name == option or name.startswith(f"{option}.") for option in _NOT_OF_THE_CONFIGURATION)
    )


def checkpoint_of(report: EvaluationReport) -> str:
    return str(report.provenance.get("checkpoint", {}).get("sha256", ""))


def short_names(paths: Sequence[Path]) -> list[str]:
    """What tells folders apart: their parts without those that all of them begin and end with."""
    parts = [path.parts for path in paths]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest)
    end = next((i for i in range(shortest - start) if len({part[-1 - i] for part in parts}) > 1), 0)
    return ["/".join(part[start : len(part) - end]) or part[-1] for part in parts]


# --- comparing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sampling:
    level: float
    num_resamples: int
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        return {"level": self.level, "num_resamples": self.num_resamples, "seed": self.seed}


def _counts(result: UtteranceResult, metric: Metric) -> ErrorCounts:
    return result.counts if metric == "wer" else result.character_counts


def _restricted(report: EvaluationReport, shared: Sequence[str]) -> tuple[UtteranceResult, ...]:
    results = {result.id: result for result in report.utterances}
    return tuple(results[name] for name in shared)


def _system(group: _Group, units: Sequence[str] | None, sampling: _Sampling) -> System:
    runs = group.counts
    rates = tuple(total(run).rate for run in runs)
    return System(
        letter=group.letter,
        name=", ".join(member.name for member in group.members),
        reports=tuple(member.path for member in group.members),
        rates=rates,
        counts=total(count for run in runs for count in run),
        interval=rate_interval(group.errors.mean(axis=0), group.lengths, groups=units, **sampling.options),
        seeds=summarise_seeds(rates),
        warnings=tuple(
            dict.fromkeys(
                notice.text
                for member in group.members
                if member.report.data_use is not None
                for notice in member.report.data_use.notices
                if notice.severity == "warning"
            )
        ),
    )


def _compare_pair(
    a: _Group, b: _Group, units: Sequence[str] | None, speakers: Sequence[str] | None, sampling: _Sampling
) -> PairResult:
    a, b, are_same_models = _paired(a, b)

    def compare(groups: Sequence[str] | None) -> GroupComparison:
        return compare_groups(
            a.errors, b.errors, a.lengths, groups=groups, paired_runs=are_same_models, **sampling.options
        )

    found = compare(units)
    slices, num_too_small = _compare_slices(a, b, units, are_same_models, sampling)
    single = len(a.members) == len(b.members) == 1
    return PairResult(
        a=a.letter,
        b=b.letter,
        comparison=found.comparison,
        adjusted_p=found.comparison.p_value,
        seeds=found.seeds,
        by_speaker=None if speakers is None else compare(speakers).comparison,
        matched_pairs=_matched_pairs(a, b) if single else None,
        mcnemar=mcnemar_test((a.errors[0] == 0).tolist(), (b.errors[0] == 0).tolist()) if single else None,
        slices=slices,
        num_slices_too_small=num_too_small,
        options=_option_differences(a, b),
        verdict="",
    )


def _paired(a: _Group, b: _Group) -> tuple[_Group, _Group, bool]:
    """``b``'s runs in the order of ``a``'s where both are of the same models, and whether they are."""
    if len(a.members) < 2 or sorted(a.checkpoints) != sorted(b.checkpoints):
        return a, b, False
    order = [b.checkpoints.index(checkpoint) for checkpoint in a.checkpoints]
    members, results = tuple(b.members[i] for i in order), tuple(b.results[i] for i in order)
    return a, _Group(b.letter, members, results, b.metric), True


def _matched_pairs(a: _Group, b: _Group) -> MatchedPairsTest:
    segments: list[SegmentErrors] = []
    for one, other in zip(a.results[0], b.results[0], strict=True):
        segments += segment_errors(_slots(one, a.metric), _slots(other, b.metric))
    return matched_pairs_test(segments)


def _slots(result: UtteranceResult, metric: Metric) -> tuple[int, ...]:
    if metric == "wer":
        return Alignment(result.alignment).errors_by_slot()
    texts = (" ".join(text.split()) for text in (result.reference, result.hypothesis))
    return align(*map(list, texts)).errors_by_slot()


def _compare_slices(
    a: _Group, b: _Group, units: Sequence[str] | None, paired: bool, sampling: _Sampling
) -> tuple[tuple[SliceDifference, ...], int]:
    report = a.members[0].report
    places = {result.id: place for place, result in enumerate(a.results[0])}
    members: dict[tuple[str, str], list[int]] = {}
    for field, values in slice_members(report).items():
        for result, value in zip(report.utterances, values, strict=True):
            if result.id in places:
                members.setdefault((field, value), []).append(places[result.id])
    large = {name: chosen for name, chosen in members.items() if len(chosen) >= MIN_SLICE_UTTERANCES}
    compared = []
    for (field, value), chosen in large.items():
        errors_a, errors_b, lengths = a.errors[:, chosen], b.errors[:, chosen], a.lengths[chosen]
        groups = None if units is None or field == "speaker" else [units[place] for place in chosen]
        found = compare_groups(
            errors_a, errors_b, lengths, groups=groups, paired_runs=paired, **sampling.options
        ).comparison
        num_words = float(lengths.sum())
        rates = [
            float(errors.mean(axis=0).sum()) / num_words if num_words else math.nan
            for errors in (errors_a, errors_b)
        ]
        compared.append(SliceDifference(field, value, len(chosen), rates[0], rates[1], found, found.p_value))
    adjusted = holm_adjust([one.comparison.p_value for one in compared])
    return (
        tuple(replace(one, adjusted_p=p_value) for one, p_value in zip(compared, adjusted, strict=True)),
        len(members) - len(large),
    )


def _option_differences(a: _Group, b: _Group) -> tuple[OptionDifference, ...]:
    settings = [dict(configuration_of(group.members[0].report) or ()) for group in (a, b)]
    if not all(settings):
        return ()
    names = dict.fromkeys([*settings[0], *settings[1]])
    values = [(name, settings[0].get(name, "–"), settings[1].get(name, "–")) for name in names]
    return tuple(OptionDifference(*row) for row in values if row[1] != row[2])


# --- what can be said --------------------------------------------------------------------------


def _is_supported(comparison: PairedComparison, adjusted_p: float) -> bool:
    """Interval and corrected test agree that chance does not explain the difference."""
    return comparison.is_supported and adjusted_p < 1 - comparison.interval.level


def _with_verdict(pair: PairResult, metric: Metric, unit: Unit) -> PairResult:
    return replace(pair, verdict=verdict(pair, metric, unit))


def verdict(pair: PairResult, metric: Metric, unit: Unit) -> str:
    """One sentence: which is better, or that none is shown to be and what it would take."""
    comparison = pair.comparison
    size = f"{100 * abs(comparison.difference):.2f} points of {metric.upper()}"
    interval = comparison.interval
    if math.isnan(interval.low):
        return f"No difference shown between {pair.a} and {pair.b}: there is too little to compare."
    low, high = 100 * interval.low, 100 * interval.high
    evidence = f"({100 * interval.level:g} % interval {low:+.2f} to {high:+.2f}, p = {pair.adjusted_p:.2g})"
    if pair.is_supported:
        better, worse = (pair.a, pair.b) if comparison.difference < 0 else (pair.b, pair.a)
        return f"{better} is better than {worse} by {size} {evidence}."
    said = f"No difference shown between {pair.a} and {pair.b}"
    if comparison.difference == 0:
        return f"{said}: they make equally many errors."
    return f"{said} {evidence}. {_what_it_takes(pair, size, unit)}"


def _what_it_takes(pair: PairResult, size: str, unit: Unit) -> str:
    more_units, seeds = pair.comparison.num_more_units, pair.seeds
    ways = [f"about {more_units} more {unit}s"] if more_units else []
    if seeds is not None and seeds.num_more_runs:
        ways.append(f"about {seeds.num_more_runs} more seeds of each")
    if ways:
        return f"If {size} is the true difference, finding it takes {' or '.join(ways)} (power 80 %)."
    if more_units is None:
        return f"If {size} is the true difference, it takes both more {unit}s and more seeds to find it."
    return f"{size} is at the edge of what this many {unit}s can show."


def _notes(groups: Sequence[_Group], left_out: Sequence[str], group_seeds: bool) -> list[str]:
    notes = []
    if left_out:
        shown = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        notes.append(f"{len(left_out)} utterances are not in all reports with the same reference: {shown}")
    if len(groups) == 1:
        notes.append(
            "The runs differ in nothing but their seed: they are one configuration, and no difference is shown. "
            "group_seeds=false compares them as models."
        )
    checkpoints = {checkpoint for group in groups for checkpoint in group.checkpoints}
    single = [group for group in groups if len(group.members) == 1]
    if len(groups) > 1 and len(checkpoints) > 1 and len(single) == len(groups) and group_seeds:
        notes.append(
            "One training of each: the verdict is on these models. Another seed moves the error rate too; "
            "whether a configuration is better takes two or more seeds of each."
        )
    return notes
