"""The ranking of suspicious transcripts: for the terminal, as CSV (for a spreadsheet) and as JSON."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from asr.report.json_report import Exclusion, write_text
from asr.report.schema import to_json
from asr.report.terminal import visible
from asr.score import AlignedPair, align_words

_COLUMNS = (
    *("rank", "suspicion", "id", "transcript", "heard", "difference", "at_seconds", "heard_by_others"),
    *("margin", "worst_stretch", "loss", "loss_per_frame", "loss_per_label"),
    *("duration_seconds", "speaker", "audio_path", "offset_seconds"),
)


@dataclass(frozen=True, slots=True)
class Fit:
    """How one model's emissions fit one transcript; losses in nats, infinite where it cannot be aligned.

    ``margin`` is how much more probable the model's own reading is. ``worst_stretch`` is the largest loss
    within half a second, which begins at ``worst_seconds``.
    """

    reading: str
    loss: float
    loss_per_frame: float
    loss_per_label: float
    margin: float
    worst_stretch: float
    worst_seconds: float

    @property
    def suspicion(self) -> float:
        return min(self.margin, self.worst_stretch)


@dataclass(frozen=True, slots=True)
class Suspect:
    """An utterance, and how each model's emissions fit its transcript."""

    id: str
    audio_path: str
    offset_seconds: float
    duration_seconds: float
    speaker: str
    text: str
    suspicion: float
    fits: tuple[Fit, ...]

    @property
    def difference(self) -> str:
        """The words that differ from what was heard, as ``written → heard``."""
        pairs = align_words(self.text, self.fits[0].reading).pairs
        return "; ".join(_change(pair) for pair in pairs if pair.operation != "equal")


@dataclass(frozen=True, slots=True)
class LabelErrorReport:
    """The content of ``label_errors.json``: every utterance, the most suspicious first."""

    suspects: tuple[Suspect, ...]
    excluded: tuple[Exclusion, ...]


def _change(pair: AlignedPair) -> str:
    return f"{pair.reference or '∅'} → {pair.hypothesis or '∅'}"


def write_label_errors(report: LabelErrorReport, folder: Path) -> tuple[Path, Path]:
    """Write ``label_errors.csv`` and ``label_errors.json``; returns their paths.

    Raises:
        ReportError: they cannot be written.
    """
    table, everything = folder / "label_errors.csv", folder / "label_errors.json"
    write_text(_csv(report), table)
    write_text(json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n", everything)
    return table, everything


def _csv(report: LabelErrorReport) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rank, one in enumerate(report.suspects, start=1):
        fit, *others = one.fits
        numbers = (fit.margin, fit.worst_stretch, fit.loss, fit.loss_per_frame, fit.loss_per_label)
        row = [rank, f"{one.suspicion:.3f}", one.id, one.text, fit.reading, one.difference]
        row += [f"{one.offset_seconds + fit.worst_seconds:.2f}", "; ".join(other.reading for other in others)]
        row += [*(f"{number:.3f}" for number in numbers), one.duration_seconds, one.speaker]
        writer.writerow([*map(_inert, row), _inert(one.audio_path), one.offset_seconds])
    return text.getvalue()


def _inert(cell: object) -> object:
    """Text that a spreadsheet would take for a formula is kept from being one."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "@") else cell


def print_label_errors(report: LabelErrorReport, console: Console, *, num_shown: int) -> None:
    """The most suspicious utterances, what was heard instead, and where."""
    shown = [one for one in report.suspects[:num_shown] if one.suspicion > 0]
    title = f"Most suspicious transcripts: {len(shown)} of {len(report.suspects)}"
    console.print(Text(title, style="bold"))
    for one in shown:
        fit, *others = one.fits
        where = f"{one.suspicion:.1f} nats at {one.offset_seconds + fit.worst_seconds:.1f} s"
        console.print(Text(f"{visible(one.id)}  {where}", style="bold"))
        console.print(Text(f"  written  {visible(one.text)}"))
        for reading in dict.fromkeys([fit.reading, *(other.reading for other in others)]):
            console.print(Text(f"  heard    {visible(reading)}"))
    if report.excluded:
        first = report.excluded[0]
        console.print(
            Text(
                f"not judged: {len(report.excluded)} utterances, such as {visible(first.id)}: {visible(first.reason)}",
                style="yellow",
            )
        )
