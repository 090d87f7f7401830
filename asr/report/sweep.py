"""A robustness sweep: error rates over a series of conditions, as JSON, table and picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from asr.report.json_report import EvaluationReport, ReportError
from asr.report.schema import to_json
from asr.report.terminal import format_percent
from asr.score import ErrorCounts
from asr.stats import Interval, PairedComparison, compare_paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
_INK, _BAND = "#2166ac", "#d1e5f0"
_TITLES = {"snr": "Noise", "speed": "Speed"}
_AXES = {"snr": "signal-to-noise ratio (dB)", "speed": "speed factor"}


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One condition; ``value`` is its SNR in dB or speed factor, None for the recordings as they are.

    ``against_clean`` compares it with those, paired by utterance; its ``difference`` is positive where
    the condition makes more errors.
    """

    name: str
    value: float | None
    wer: float
    wer_interval: Interval
    cer: float
    counts: ErrorCounts
    num_utterances: int
    num_excluded: int
    against_clean: PairedComparison | None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """The content of ``sweep.json``; the first point is the clean one."""

    schema_version: int
    kind: str
    points: tuple[SweepPoint, ...]
    provenance: Mapping[str, Any]


def make_point(
    name: str, value: float | None, report: EvaluationReport, clean: EvaluationReport | None
) -> SweepPoint:
    """Sum up one condition; ``clean`` is None for the clean point itself."""
    return SweepPoint(
        name=name,
        value=value,
        wer=report.wer,
        wer_interval=report.wer_interval,
        cer=report.cer,
        counts=report.counts,
        num_utterances=report.num_utterances,
        num_excluded=report.num_excluded,
        against_clean=None if clean is None else _compare(report, clean),
    )


def _compare(report: EvaluationReport, clean: EvaluationReport) -> PairedComparison:
    before = {result.id: result.counts for result in clean.utterances}
    pairs = [(result.counts, before[result.id]) for result in report.utterances if result.id in before]
    return compare_paired(
        [counts.num_errors for counts, _ in pairs],
        [counts.num_errors for _, counts in pairs],
        [counts.num_reference for counts, _ in pairs],
    )


def write_sweep(sweep: SweepReport, folder: Path) -> tuple[Path, Path]:
    """Write ``sweep.json`` and ``sweep.png``; returns their paths.

    Raises:
        ReportError: they cannot be written.
    """
    table, picture = folder / "sweep.json", folder / "sweep.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table.write_text(
            json.dumps(to_json(sweep), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        sweep_figure(sweep).savefig(picture, dpi=150, metadata={"Software": None})
    except OSError as error:
        raise ReportError(f"{folder}: cannot write the sweep ({error.strerror})") from error
    return table, picture


def sweep_table(sweep: SweepReport) -> Table:
    """A row per condition: error rates with intervals, and the change from the clean recordings."""
    table = Table(title=f"{_TITLES[sweep.kind]} sweep", title_justify="left")
    for heading in ("", "WER", "95 % interval", "CER", "against clean", "95 % interval"):
        table.add_column(heading, justify="right")
    for point in sweep.points:
        row = [point.name, format_percent(point.wer), _range(point.wer_interval), format_percent(point.cer)]
        change = point.against_clean
        row += (
            ["", ""] if change is None else [f"{100 * change.difference:+.1f}", _range(change.interval, "+")]
        )
        table.add_row(*row)
    return table


def _range(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"


def sweep_figure(sweep: SweepReport) -> "Figure":
    """WER over the condition with its 95 % interval; the clean recordings as a line across."""
    from matplotlib.figure import Figure  # slow to load, and most evaluations draw nothing

    clean, *points = sweep.points
    # The clean recordings have a place on the axis of speeds, and none on that of noise.
    curve = sorted([*points, clean] if sweep.kind == "speed" else points, key=_place)
    places = [_place(point) for point in curve]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    _draw_band(axes, places, curve)
    axes.axhline(
        100 * clean.wer, color="#20262e", linewidth=1, linestyle="--", label=f"clean: {100 * clean.wer:.1f} %"
    )
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_AXES[sweep.kind])
    axes.set_ylabel("WER (%)")
    axes.set_title(
        f"{_TITLES[sweep.kind]}: {clean.num_utterances} utterances, {clean.counts.num_reference} words",
        loc="left",
    )
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(frameon=False)
    return figure


def _draw_band(axes: Any, places: Sequence[float], curve: Sequence[SweepPoint]) -> None:
    axes.fill_between(
        places,
        [100 * point.wer_interval.low for point in curve],
        [100 * point.wer_interval.high for point in curve],
        color=_BAND,
        label="95 % interval",
    )
    axes.plot(places, [100 * point.wer for point in curve], "o-", color=_INK, label="WER")
    for place, point in zip(places, curve, strict=True):
        axes.annotate(
            f"{100 * point.wer:.1f}",
            (place, 100 * point.wer),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _place(point: SweepPoint) -> float:
    return 1.0 if point.value is None else point.value
