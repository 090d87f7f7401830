"""``report.json``: everything an evaluation found, in a stable schema.

``docs/report_schema.md`` describes every field. Rates are shares (0.05, not 5 %), times are
seconds, and what does not exist (a rate without reference words) is ``null``.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asr.attribution import Attribution
from asr.calibration import Calibration, ConfidenceReport, assess, fit, judge
from asr.errors import AsrError
from asr.firewall import DataUse
from asr.records import Hypothesis, Utterance, Word
from asr.report.schema import SchemaError, from_json, to_json
from asr.report.slices import Slice, range_labels, slice_by_fields, slice_by_range
from asr.report.word_times import WordTimes, compare_times
from asr.score import (
    AlignedPair,
    Alignment,
    ErrorCounts,
    ErrorTables,
    align_words,
    count_words,
    get_normaliser,
    score,
    tabulate_errors,
    total,
)
from asr.stats import Interval, PairedComparison, compare_paired, rate_interval, wilson_interval

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or goes; new fields alone do not raise it."""


class ReportError(AsrError):
    """A report file that is missing, damaged or of another schema version."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An utterance that was not scored, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class UtteranceResult:
    """One scored utterance; ``reference`` and ``hypothesis`` are the texts that were compared."""

    id: str
    audio_path: str
    offset_seconds: float
    duration_seconds: float
    speaker: str
    reference: str
    hypothesis: str
    counts: ErrorCounts
    character_counts: ErrorCounts
    alignment: tuple[AlignedPair, ...]
    score: float | None
    words: tuple[Word, ...]
    fields: Mapping[str, Any]
    token_ids: tuple[int, ...] = ()
    attribution: Attribution | None = None


@dataclass(frozen=True, slots=True)
class GreedyComparison:
    """The same emissions decoded greedily; ``comparison`` is of the report's decoder with that."""

    wer: float
    counts: ErrorCounts
    comparison: PairedComparison


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The content of ``report.json``; rates are ``nan`` where no reference words exist."""

    schema_version: int
    wer: float
    wer_interval: Interval
    wer_interval_by_speaker: Interval | None
    cer: float
    sentence_error_rate: float
    sentence_error_interval: Interval
    counts: ErrorCounts
    character_counts: ErrorCounts
    num_utterances: int
    num_excluded: int
    audio_seconds: float
    decode_seconds: float
    rtfx: float | None
    normaliser: str
    provenance: Mapping[str, Any]
    excluded: tuple[Exclusion, ...]
    slices: Mapping[str, tuple[Slice, ...]]
    errors: ErrorTables
    utterances: tuple[UtteranceResult, ...]
    greedy: GreedyComparison | None = None
    data_use: DataUse | None = None
    confidence: ConfidenceReport | None = None
    word_times: WordTimes | None = None


def build_report(
    utterances: Sequence[Utterance],
    hypotheses: Sequence[Hypothesis],
    *,
    decode_seconds: float,
    excluded: Sequence[Exclusion] = (),
    normaliser: str = "basic",
    provenance: Mapping[str, Any] | None = None,
    greedy_texts: Sequence[str] | None = None,
    data_use: DataUse | None = None,
    calibration: Calibration | None = None,
    calibrate: bool = False,
    seed: int = 0,
) -> EvaluationReport:
    """Score ``hypotheses`` against the texts of ``utterances`` and collect all figures.

    Args:
        utterances, hypotheses: one of each per scored utterance, in the same order.
        decode_seconds: wall-clock time from audio file to text for all of them.
        excluded: utterances that were left out, with reasons.
        normaliser: a name in ``asr.score.NORMALISERS``, applied to both sides.
        provenance: plain data about the run (checkpoint, manifest hashes, configuration, …).
        greedy_texts: what greedy decoding of the same emissions gives, one per utterance.
        data_use: what the utterances had been used for before.
        calibration: what confidences of words are to be changed by.
        calibrate: instead, fit that to these words.
        seed: of the bootstrap; the same seed gives the same report.

    Raises:
        ConfigError: the normaliser is unknown.
        ValueError: not one hypothesis per utterance.
    """
    # Before the normaliser, which has no times or confidences of its own to give.
    judged = judge(
        [hypothesis.words for hypothesis in hypotheses], [utterance.text for utterance in utterances]
    )
    confidence = fit(judged) if calibrate else assess(judged, calibration)
    if confidence.temperature is not None:
        change = Calibration(confidence.temperature, confidence.source)
        hypotheses = [replace(found, words=change.of_words(found.words)) for found in hypotheses]
    normalise = get_normaliser(normaliser)
    references = [normalise(utterance.text) for utterance in utterances]
    texts = [normalise(hypothesis.text) for hypothesis in hypotheses]
    counted = score(references, texts)
    results = tuple(
        _utterance_result(
            utterance, hypothesis, reference, text, counts=counts, character_counts=character_counts
        )
        for utterance, hypothesis, reference, text, counts, character_counts in zip(
            utterances, hypotheses, references, texts, counted.words, counted.characters, strict=True
        )
    )
    audio_seconds = math.fsum(utterance.duration_seconds for utterance in utterances)
    num_wrong = sum(counted.sentence_errors)
    return EvaluationReport(
        schema_version=SCHEMA_VERSION,
        wer=counted.wer,
        wer_interval=_wer_interval(counted.words, None, seed),
        wer_interval_by_speaker=_interval_by_speaker(results, seed),
        cer=counted.cer,
        sentence_error_rate=counted.sentence_error_rate,
        sentence_error_interval=wilson_interval(num_wrong, len(results)),
        counts=counted.word_total,
        character_counts=counted.character_total,
        num_utterances=len(results),
        num_excluded=len(excluded),
        audio_seconds=audio_seconds,
        decode_seconds=decode_seconds,
        rtfx=audio_seconds / decode_seconds if decode_seconds > 0 else None,
        normaliser=normaliser,
        provenance=dict(provenance or {}),
        excluded=tuple(excluded),
        slices=_slices(results),
        errors=tabulate_errors(Alignment(result.alignment) for result in results),
        utterances=results,
        greedy=None
        if greedy_texts is None
        else _compare_greedy(references, counted.words, [normalise(text) for text in greedy_texts], seed),
        data_use=data_use,
        confidence=confidence if confidence.num_words else None,
        word_times=compare_times(
            [hypothesis.words for hypothesis in hypotheses],
            [utterance.extra.get("words") for utterance in utterances],
        ),
    )


def _compare_greedy(
    references: Sequence[str], counts: Sequence[ErrorCounts], greedy_texts: Sequence[str], seed: int
) -> GreedyComparison:
    greedy = count_words(references, greedy_texts)
    return GreedyComparison(
        wer=total(greedy).rate,
        counts=total(greedy),
        comparison=compare_paired(
            [count.num_errors for count in counts],
            [count.num_errors for count in greedy],
            [count.num_reference for count in counts],
            seed=seed,
        ),
    )


def _utterance_result(
    utterance: Utterance,
    hypothesis: Hypothesis,
    reference: str,
    text: str,
    *,
    counts: ErrorCounts,
    character_counts: ErrorCounts,
) -> UtteranceResult:
    return UtteranceResult(
        id=utterance.id,
        audio_path=str(utterance.audio_path),
        offset_seconds=utterance.offset_seconds,
        duration_seconds=utterance.duration_seconds,
        speaker=utterance.speaker,
        reference=reference,
        hypothesis=text,
        counts=counts,
        character_counts=character_counts,
        alignment=align_words(reference, text).pairs,
        score=hypothesis.score if math.isfinite(hypothesis.score) else None,
        words=hypothesis.words,
        fields=dict(utterance.extra),
        token_ids=hypothesis.token_ids,
    )


def _wer_interval(counts: Sequence[ErrorCounts], speakers: Sequence[str] | None, seed: int) -> Interval:
    return rate_interval(
        [count.num_errors for count in counts],
        [count.num_reference for count in counts],
        groups=speakers,
        seed=seed,
    )


def _interval_by_speaker(results: Sequence[UtteranceResult], seed: int) -> Interval | None:
    speakers = [result.speaker for result in results]
    if len(set(speakers)) < 2 or not all(speakers):
        return None
    return _wer_interval([result.counts for result in results], speakers, seed)


def _slices(results: Sequence[UtteranceResult]) -> dict[str, tuple[Slice, ...]]:
    counts = [result.counts for result in results]
    labels, numbers = _slice_fields(results)
    by_range = {name: slice_by_range(values, counts) for name, values in numbers.items()}
    return slice_by_fields(labels, counts) | {name: cut for name, cut in by_range.items() if cut}


def num_faulty(report: EvaluationReport) -> int:
    """Utterances with at least one word wrong."""
    return sum(result.counts.num_errors > 0 for result in report.utterances)


def slice_members(report: EvaluationReport) -> dict[str, tuple[str, ...]]:
    """For each of the report's slicings, ``(utterances,)``: the value of the slice that each is in."""
    labels, numbers = _slice_fields(report.utterances)
    return {
        name: tuple(labels[name]) if name in labels else range_labels(numbers[name])
        for name in report.slices
        if name in labels or name in numbers
    }


def _slice_fields(results: Sequence[UtteranceResult]) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """Fields by which utterances can be grouped: by value, and by range of numbers."""
    names = sorted({name for result in results for name in result.fields})
    labels = {"speaker": [result.speaker for result in results]}
    numbers = {
        "duration_seconds": [result.duration_seconds for result in results],
        "reference_words": [float(result.counts.num_reference) for result in results],
        "words_per_second": [
            result.counts.num_reference / result.duration_seconds if result.duration_seconds > 0 else 0.0
            for result in results
        ],
    }
    for name in names:
        values = [result.fields.get(name) for result in results]
        if all(_is_number(value) for value in values):
            numbers.setdefault(name, [float(value) for value in values if value is not None])
        elif all(isinstance(value, str | int | float | None) for value in values):
            labels.setdefault(name, ["" if value is None else str(value) for value in values])
    return labels, numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- files -----------------------------------------------------------------------------------


def write_report(report: EvaluationReport, path: Path) -> None:
    """Write ``report`` to ``path`` in one step: a reader never sees half a file.

    Raises:
        ReportError: the file cannot be written.
    """
    write_text(_as_text(to_json(report)), path)


def write_text(text: str, path: Path) -> None:
    """Write a file of a report under another name and rename it; makes its folder.

    Raises:
        ReportError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="replace")  # a manifest may hold half characters
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ReportError(f"{path}: cannot write the report ({error.strerror})") from error


def _as_text(fields: Mapping[str, Any]) -> str:
    """One line per field, and one per utterance, so that reports can be read and compared by line."""
    return (
        "{\n"
        + ",\n".join(f"{json.dumps(key)}: {_value_text(value)}" for key, value in fields.items())
        + "\n}\n"
    )


def _value_text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_line(item) for item in value) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_report(path: Path) -> EvaluationReport:
    """Read and check a ``report.json``.

    Raises:
        ReportError: missing, not JSON, of another schema version, or its fields do not fit.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path}: cannot read the report ({error.strerror})") from error
    except ValueError as error:
        raise ReportError(f"{path}: not a report, the file is not valid JSON ({error})") from error
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"{path}: schema_version is {version}, this program reads {SCHEMA_VERSION}: evaluate again"
        )
    try:
        report = from_json(EvaluationReport, fields)
    except SchemaError as error:
        raise ReportError(f"{path}: {error}") from error
    _check_sums(report, path)
    return report


def _check_sums(report: EvaluationReport, path: Path) -> None:
    found = {
        "num_utterances": (report.num_utterances, len(report.utterances)),
        "num_excluded": (report.num_excluded, len(report.excluded)),
        "counts": (report.counts, total(result.counts for result in report.utterances)),
    }
    for name, (claimed, counted) in found.items():
        if claimed != counted:
            raise ReportError(f"{path}: {name} is {claimed}, but the utterances add up to {counted}")
