"""``report.html``: an evaluation as one file that opens anywhere, needs no network and runs no foreign code.

Everything in a report may come from strangers: transcripts, identifiers, speakers, file names. Jinja escapes
what it writes into the page; the rest is JSON in a block that no browser runs, and the script puts it on
the page as text. A content security policy allows this page's own script and style, and nothing else.
"""

import base64
import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from asr.attribution import Cause
from asr.firewall import Notice
from asr.report.examination import MAX_PICTURE_SECONDS, Bytes, Examination, Picture
from asr.report.json_report import EvaluationReport, UtteranceResult, num_faulty, slice_members, write_text
from asr.report.terminal import CAUSES, count_causes, describe_words, format_percent, greedy_verdict
from asr.stats import Interval
from asr.tokenizer import BLANK_DISPLAY

_MEANINGS: dict[Cause, str] = {
    "acoustic_model": "the reference scores lower, however long one searches",
    "language_model": "the sound favours the reference, the language model overrules it",
    "search": "the reference scores higher and was not found",
    "unwritable": "no labelling of the model spells the reference in this time",
}
_FIELD_NAMES = {
    "duration_seconds": "duration (s)",
    "reference_words": "length (words)",
    "words_per_second": "rate (words/s)",
}
_BLANK = "–"


def write_page(report: EvaluationReport, path: Path, examination: Examination | None = None) -> None:
    """Write ``report`` as a page, with the pictures and sounds of ``examination``.

    Raises:
        ReportError: the file cannot be written.
    """
    write_text(render_page(report, examination or Examination()), path)


def render_page(report: EvaluationReport, examination: Examination) -> str:
    """The whole page."""
    script, style = _resource("page.js"), _resource("page.css")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": format_percent, "number": "{:,}".format}
    provenance = report.provenance
    return environment.from_string(_resource("page.html")).render(
        report=report,
        title=_title(provenance),
        policy=_policy(script, style),
        script=_inline(script),
        style=_inline(style),
        headline=_axis([report.wer_interval], report.wer),
        verdict=greedy_verdict(report),
        interval=_interval(report.wer_interval),
        by_speaker=report.wer_interval_by_speaker and _interval(report.wer_interval_by_speaker),
        sentence_interval=_interval(report.sentence_error_interval),
        notices=notices(report),
        causes=_causes(report),
        slicings=_slicings(report),
        curves=_curves(provenance),
        words=list(describe_words(report)),
        reliability=_reliability(report),
        facts=list(_facts(report)),
        command=_plain(provenance.get("command")),
        details=_details(provenance),
        left_out=_left_out(report, examination),
        data=_embedded(_utterance_data(report)),
        media=_embedded(_media_data(examination)),
    )


def _resource(name: str) -> str:
    return resources.files("asr.report").joinpath(name).read_text(encoding="utf-8")


def _inline(source: str) -> Markup:
    """Our own script or style, to be written as it is."""
    return Markup(source)


def _policy(script: str, style: str) -> str:
    def allowed(source: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed(script)}; style-src {allowed(style)}; "
        "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'"
    )


def _embedded(value: Any) -> Markup:
    """JSON that can neither end its block nor begin a comment, and that old parsers read too."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- headline and provenance -------------------------------------------------------------------


def _title(provenance: Mapping[str, Any]) -> str:
    """``an4b on dev.jsonl``, from whatever is known."""
    checkpoint, manifest = (_path_of(provenance, name) for name in ("checkpoint", "manifest"))
    folder = checkpoint.parent.parent if checkpoint and checkpoint.parent.name == "checkpoints" else None
    model = folder.name if folder and folder.name else (checkpoint.name if checkpoint else "")
    data = f"{manifest.parent.name} {manifest.stem}".strip() if manifest else ""
    return " on ".join(part for part in (model, data) if part) or "Evaluation"


def _path_of(provenance: Mapping[str, Any], name: str) -> Path | None:
    entry = provenance.get(name)
    path = entry.get("path") if isinstance(entry, Mapping) else entry
    return Path(path) if isinstance(path, str) and path else None


def notices(report: EvaluationReport) -> list[Notice]:
    """What a reader must know before believing the figure."""
    found = list(report.data_use.notices) if report.data_use else []
    if report.num_excluded:
        text = f"{report.num_excluded} utterances were not scored; they are listed under Provenance."
        found.append(Notice("note", text))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _facts(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    """The provenance in a few lines; what was not recorded is said to be so."""
    provenance = report.provenance
    for name in ("checkpoint", "manifest"):
        yield name, _file_line(provenance.get(name))
    yield "tokenizer", _hash_line(provenance.get("tokenizer_sha256")) or _BLANK
    decoder = _mapping(provenance.get("decoder"))
    given = {name: value for name, value in decoder.items() if value not in (None, [], "")}
    yield "decoder", ", ".join(f"{name}={value}" for name, value in given.items()) or _BLANK
    for name, file in _mapping(provenance.get("decoder_files")).items():
        yield f"decoder.{name}", _file_line(file)
    yield "decoder weights", _plain(_mapping(provenance.get("decoder_weights")).get("text")) or "not recorded"
    yield "normaliser", report.normaliser
    yield "code", _plain(provenance.get("git_revision")) or "not from a checkout"
    gpu = _plain(provenance.get("gpu"))
    machine = (_plain(provenance.get("machine")), "no GPU" if gpu == "none" else gpu)
    yield "machine", ", ".join(filter(None, machine)) or _BLANK
    versions = _mapping(provenance.get("packages")).items()
    yield "packages", ", ".join(f"{name} {version}" for name, version in versions) or _BLANK
    yield "speed", f"{report.audio_seconds:.1f} s of audio in {report.decode_seconds:.1f} s"


def _file_line(entry: Any) -> str:
    fields = _mapping(entry)
    if not fields:
        return _plain(entry) or _BLANK
    return f"{fields.get('path')}, {_hash_line(fields.get('sha256'))}"


def _hash_line(sha256: Any) -> str:
    return f"SHA-256 {sha256[:12]}" if isinstance(sha256, str) and sha256 else ""


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _details(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every recorded leaf, by its dotted name."""

    def leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                yield from leaves(item, f"{name}.{key}" if name else str(key))
        else:
            yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)

    return list(leaves(provenance, ""))


# --- plots: places in percent, so that the drawing follows the width of the page ------------------


class Whisker(NamedTuple):
    """Low end, rate and high end as places on an axis, in percent of its width; None where unknown."""

    low: float | None
    rate: float | None
    high: float | None


class Axis(NamedTuple):
    ticks: tuple[tuple[float, str], ...]
    whisker: Whisker


class SliceRow(NamedTuple):
    value: str
    num_utterances: int
    num_words: int
    rate: str
    interval: str
    whisker: Whisker


class Slicing(NamedTuple):
    field: str
    name: str
    rows: tuple[SliceRow, ...]
    ticks: tuple[tuple[float, str], ...]
    overall: float


def _interval(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"{100 * interval.low:.2f}–{100 * interval.high:.2f}"


def _limit(values: Sequence[float], max_steps: int = 5) -> tuple[float, float]:
    """Upper end of an axis from 0 that holds ``values``, and the step between its ticks."""
    highest = max([0.01, *(value for value in values if math.isfinite(value))])
    step = 10 ** math.floor(math.log10(highest))
    step = next(
        size
        for size in (step / 5, step / 2, step, 2 * step, 5 * step, 10 * step)
        if highest / size <= max_steps
    )
    return step * math.ceil(highest / step - 1e-9), step


def _ticks(limit: float, step: float) -> tuple[tuple[float, str], ...]:
    return tuple(
        (100 * number * step / limit, f"{100 * number * step:g}") for number in range(round(limit / step) + 1)
    )


def _whisker(rate: float, interval: Interval, limit: float) -> Whisker:
    places = [
        round(100 * min(value, limit) / limit, 2) if math.isfinite(value) else None
        for value in (interval.low, rate, interval.high)
    ]
    return Whisker(*places)


def _axis(intervals: Sequence[Interval], rate: float) -> Axis:
    limit, step = _limit([rate, *(interval.high for interval in intervals)])
    return Axis(_ticks(limit, step), _whisker(rate, intervals[0], limit))


def _slicings(report: EvaluationReport) -> list[Slicing]:
    slicings = []
    for field, slices in report.slices.items():
        # One tiny slice must not squeeze all others together: beyond twice the worst rate bars are cut off.
        rates = [part.wer for part in slices if math.isfinite(part.wer)]
        highest = max([report.wer if math.isfinite(report.wer) else 0, *rates])
        limit, step = _limit([min(2 * highest, part.wer_interval.high) for part in slices] + [highest], 3)
        rows = tuple(
            SliceRow(
                part.value,
                part.num_utterances,
                part.counts.num_reference,
                f"{100 * part.wer:.2f}" if math.isfinite(part.wer) else _BLANK,
                _interval(part.wer_interval),
                _whisker(part.wer, part.wer_interval, limit),
            )
            for part in slices
        )
        overall = 100 * report.wer / limit if math.isfinite(report.wer) else 0.0
        slicings.append(Slicing(field, _FIELD_NAMES.get(field, field), rows, _ticks(limit, step), overall))
    return slicings


class CauseRow(NamedTuple):
    key: str
    name: str
    meaning: str
    num_regions: int
    num_utterances: int
    percent: float


def _causes(report: EvaluationReport) -> list[CauseRow]:
    found = [result.attribution for result in report.utterances if result.attribution is not None]
    regions = count_causes(report)
    utterances = Counter(attribution.cause for attribution in found)
    num_regions = max(1, sum(regions.values()))
    adds_text = any(attribution.hypothesis.text for attribution in found)
    possible: set[str] = (
        {"acoustic_model", "search"} | ({"language_model"} if adds_text else set()) if found else set()
    )
    return [
        CauseRow(
            key,
            name,
            _MEANINGS[key],
            regions.get(key, 0),
            utterances[key],
            round(100 * regions.get(key, 0) / num_regions, 2),
        )
        for key, name in CAUSES.items()
        if utterances[key] or key in {*regions, *possible}
    ]


# --- training curves -----------------------------------------------------------------------------

_PLOT_WIDTH, _PLOT_HEIGHT = 100.0, 100.0


class Curve(NamedTuple):
    """``points`` for an SVG polyline in a box of 100 × 100; ``last`` as text."""

    name: str
    points: str
    last: str


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    curves: tuple[Curve, ...]
    heights: tuple[tuple[float, str], ...]
    places: tuple[tuple[float, str], ...]
    marked: float | None
    diagonal: bool = False


def _curves(provenance: Mapping[str, Any]) -> list[Plot]:
    """Loss and error rates by epoch, from the run's ``metrics.csv``; empty where there is none."""
    checkpoint = _path_of(provenance, "checkpoint")
    if checkpoint is None:
        return []
    try:
        with open(checkpoint.parent.parent / "metrics.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    series = {name: _by_epoch(rows, name) for name in ("train/loss", "dev/loss", "dev/wer", "dev/cer")}
    wer = series["dev/wer"]
    best = min(wer, key=lambda epoch: wer[epoch]) if wer else None
    plots = [
        _plot("Loss (nats per token)", {"train": series["train/loss"], "dev": series["dev/loss"]}, best, 1),
        _plot("Error rate on dev (%)", {"WER": wer, "CER": series["dev/cer"]}, best, 100),
    ]
    return [plot for plot in plots if plot is not None]


def _by_epoch(rows: Sequence[Mapping[str, str | None]], name: str) -> dict[int, float]:
    """The mean of a column over each epoch, counted from 1; cells that hold no finite number are skipped."""
    values: dict[int, list[float]] = {}
    for row in rows:
        try:
            value, epoch = float(row.get(name) or "nan"), int(row.get("epoch") or "")
        except ValueError:
            continue
        if math.isfinite(value):
            values.setdefault(epoch + 1, []).append(value)
    return {epoch: sum(found) / len(found) for epoch, found in sorted(values.items())}


def _plot(
    title: str, series: Mapping[str, Mapping[int, float]], best: int | None, scale: float
) -> Plot | None:
    series = {name: values for name, values in series.items() if len(values) > 1}
    if not series:
        return None
    epochs = [epoch for values in series.values() for epoch in values]
    first, last = min(epochs), max(epochs)
    # The first epochs are often far above all others: the axis ends where nine tenths of the values do.
    heights = np.array([value for values in series.values() for value in values.values()])
    limit, step = _limit([float(min(heights.max(), 2 * np.quantile(heights, 0.9)))])

    def across(epoch: int) -> float:
        return _PLOT_WIDTH * (epoch - first) / (last - first)

    curves = tuple(
        Curve(
            name,
            " ".join(
                f"{across(epoch):.2f},{_PLOT_HEIGHT * (1 - min(value, limit) / limit):.2f}"
                for epoch, value in values.items()
            ),
            f"{scale * list(values.values())[-1]:.2f}",
        )
        for name, values in series.items()
    )
    stride = max(1, round((last - first) / 4))
    return Plot(
        title,
        curves,
        tuple(
            (100 - 100 * number * step / limit, f"{scale * number * step:g}")
            for number in range(round(limit / step) + 1)
        ),
        tuple((across(epoch), str(epoch)) for epoch in range(first, last + 1, stride)),
        None if best is None else across(best),
    )


# --- confidence ----------------------------------------------------------------------------------


def _reliability(report: EvaluationReport) -> Plot | None:
    """Share of correct words against their confidence: on the diagonal where it can be believed."""
    found = report.confidence
    if found is None:
        return None
    curves = [("as decoded", found.uncalibrated)]
    if found.calibrated is not None:
        curves.append(("calibrated", found.calibrated))
    ticks = [(100 - place, f"{place}") for place in range(0, 101, 20)]
    return Plot(
        "Words that are correct (%), by their confidence (%)",
        tuple(
            Curve(
                name,
                " ".join(
                    f"{100 * part.mean_confidence:.2f},{100 - 100 * part.share_correct:.2f}"
                    for part in reliability.bins
                    if part.num_words
                ),
                "",
            )
            for name, reliability in curves
        ),
        tuple(ticks),
        tuple((float(place), f"{place}") for place in range(0, 101, 20)),
        None,
        diagonal=True,
    )


# --- what the script reads ---------------------------------------------------------------------


def _utterance_data(report: EvaluationReport) -> dict[str, Any]:
    members = slice_members(report)
    checkpoint = _path_of(report.provenance, "checkpoint")
    return {
        "checkpoint": str(checkpoint) if checkpoint else "",
        "slices": list(members),
        "sliceNames": [_FIELD_NAMES.get(field, field) for field in members],
        "causes": CAUSES,
        "utterances": [
            _utterance(result, [values[position] for values in members.values()])
            for position, result in enumerate(report.utterances)
        ],
    }


def _utterance(result: UtteranceResult, slices: Sequence[str]) -> dict[str, Any]:
    counts = result.counts
    return {
        "id": result.id,
        "path": result.audio_path,
        "offset": result.offset_seconds,
        "seconds": result.duration_seconds,
        "speaker": result.speaker,
        "pairs": [
            ["e", pair.reference]
            if pair.operation == "equal"
            else [pair.operation[0], pair.reference, pair.hypothesis]
            for pair in result.alignment
        ],
        "sdi": [counts.substitutions, counts.deletions, counts.insertions],
        "words": counts.num_reference,
        "score": result.score,
        "times": [
            [word.text, round(word.start_seconds, 3), round(word.end_seconds, 3), round(word.confidence, 3)]
            for word in result.words
        ],
        "slices": list(slices),
        "blame": _blame(result),
    }


def _blame(result: UtteranceResult) -> dict[str, Any] | None:
    found = result.attribution
    if found is None:
        return None
    return {
        "cause": found.cause,
        "reason": found.reason,
        "reference": [_finite(found.reference.acoustic), _finite(found.reference.text)],
        "hypothesis": [_finite(found.hypothesis.acoustic), _finite(found.hypothesis.text)],
        "regions": [
            [
                region.reference,
                region.hypothesis,
                region.cause,
                _finite(region.acoustic_gain),
                _finite(region.text_gain),
            ]
            for region in found.regions
        ],
    }


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _media_data(examination: Examination) -> dict[str, Any]:
    return {
        "sounds": {
            str(position): [sound.mime_type, _base64(sound.data)]
            for position, sound in examination.sounds.items()
        },
        "pictures": {str(position): _picture(picture) for position, picture in examination.pictures.items()},
    }


def _picture(picture: Picture) -> dict[str, Any]:
    return {
        "spectrogram": _png(picture.spectrogram[::-1]),
        "column": picture.seconds_per_column,
        "posteriors": _png(picture.posteriors),
        "frame": picture.seconds_per_frame,
        "tokens": [_visible(token) for token in picture.tokens],
        "reference": [
            [word.text, round(word.start_seconds, 3), round(word.end_seconds, 3)]
            for word in picture.reference
        ],
    }


def _visible(token: str) -> str:
    return _BLANK if token == BLANK_DISPLAY else token.replace(" ", "␣")


def _png(gray: Bytes) -> str:
    """Eight-bit gray, as base64; empty where there is nothing to see."""
    if not gray.size:
        return ""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(gray)).save(file, "PNG", optimize=True)
    return _base64(file.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _left_out(report: EvaluationReport, examination: Examination) -> list[str]:
    """What the page does not hold, and how to include it."""
    num_wrong = num_faulty(report)
    lines = []
    if len(examination.pictures) < num_wrong:
        lines.append(
            f"Pictures: {len(examination.pictures)} of {num_wrong} utterances with errors, most errors first, "
            f"none above {MAX_PICTURE_SECONDS:g} s; asr.evaluate num_pictures=N includes more."
        )
    if len(examination.sounds) < report.num_utterances:
        lines.append(
            f"Audio: {len(examination.sounds)} of {report.num_utterances} utterances, most errors first; "
            "asr.evaluate audio_mib=N allows N MiB."
        )
    return lines
