"""Where the ways of recognising one utterance disagree: for the terminal and as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.records import Hypothesis
from asr.report.json_report import write_text
from asr.report.schema import to_json
from asr.report.terminal import visible
from asr.score import align, align_words

MAX_SHOWN = 20
MAX_CHARACTERS = 160  # of a text; parity.json has all


@dataclass(frozen=True, slots=True)
class Difference:
    """``way`` reads ``found`` where ``against`` reads ``expected``.

    ``start_seconds`` is when the first word that differs begins, None where neither text has times.
    ``max_log_prob`` is the largest difference of a log-probability, None where that is not comparable.
    """

    id: str
    way: str
    against: str
    expected: str
    found: str
    num_words: int
    num_characters: int
    start_seconds: float | None
    max_log_prob: float | None


@dataclass(frozen=True, slots=True)
class Way:
    """A way that was compared, over ``num_compared`` recordings."""

    name: str
    against: str
    num_compared: int
    num_different: int
    max_log_prob: float | None


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The content of ``parity.json``.

    ``differences`` are between ways that must agree. ``window_differences`` come of cutting long recordings,
    which takes context away; ``window_difference`` is the share of the words that differ, and ``errors_whole``
    and ``errors_in_windows`` count both readings' word errors against ``num_reference`` words of transcripts.
    ``failed`` are utterances whose audio could not be read.
    """

    ways: tuple[Way, ...]
    differences: tuple[Difference, ...]
    window_differences: tuple[Difference, ...]
    window_difference: float
    errors_whole: int
    errors_in_windows: int
    num_reference: int
    failed: tuple[str, ...]

    def agrees(self, max_window_difference: float) -> bool:
        return not self.differences and not self.failed and self.window_difference <= max_window_difference


def describe_difference(
    name: str, way: str, against: str, expected: Hypothesis, found: Hypothesis, max_log_prob: float | None
) -> Difference:
    """How two readings of one recording differ."""
    return Difference(
        id=name,
        way=way,
        against=against,
        expected=expected.text,
        found=found.text,
        num_words=align_words(expected.text, found.text).counts.num_errors,
        num_characters=align(list(expected.text), list(found.text)).counts.num_errors,
        start_seconds=_first_difference(expected, found),
        max_log_prob=max_log_prob,
    )


def _first_difference(expected: Hypothesis, found: Hypothesis) -> float | None:
    texts = expected.text.split(), found.text.split()
    same = next(
        (i for i, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), min(map(len, texts))
    )
    for hypothesis in (expected, found):
        if same < len(hypothesis.words):
            return hypothesis.words[same].start_seconds
    return None


def write_parity(report: ParityReport, path: Path) -> None:
    """
    Raises:
        ReportError: the file cannot be written.
    """
    write_text(json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def print_parity(report: ParityReport, console: Console, max_window_difference: float) -> None:
    """A row per way, the differences, those of most characters first, and the verdict."""
    table = Table(title="Do all ways of recognising agree?", title_justify="left")
    for heading in ("way", "against", "compared", "different", "log-prob. differs by"):
        table.add_column(heading)
    for way in report.ways:
        size = "" if way.max_log_prob is None else f"{way.max_log_prob:.1e}"
        style = "red" if way.num_different else ""
        table.add_row(way.name, way.against, str(way.num_compared), str(way.num_different), size, style=style)
    console.print(table)
    for name in report.failed:
        console.print(Text(f"not compared: {visible(name)}", style="yellow"))
    ranked = sorted(report.differences, key=lambda one: -one.num_characters)
    ranked += sorted(report.window_differences, key=lambda one: -one.num_characters)
    for one in ranked[:MAX_SHOWN]:
        _print_difference(one, console)
    if len(ranked) > MAX_SHOWN:
        console.print(f"… and {len(ranked) - MAX_SHOWN} more, all in parity.json")
    console.print(
        f"windows: {100 * report.window_difference:.1f} % of the words differ; word errors of {report.num_reference}: "
        f"{report.errors_whole} whole, {report.errors_in_windows} in windows"
    )
    agrees = report.agrees(max_window_difference)
    console.print(Text(verdict(report, max_window_difference), style="bold green" if agrees else "bold red"))


def _print_difference(one: Difference, console: Console) -> None:
    when = "" if one.start_seconds is None else f" from {one.start_seconds:.2f} s"
    size = f"{one.num_words} words, {one.num_characters} characters"
    console.print(Text(f"{visible(one.id)}: {one.way} differs{when} ({size})", style="bold"))
    for name, text in ((one.against, one.expected), (one.way, one.found)):
        shown = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"
        console.print(Text(f"  {name}: {visible(shown)}"))


def verdict(report: ParityReport, max_window_difference: float) -> str:
    if report.agrees(max_window_difference):
        return "All ways agree on every recording."
    ways = list(dict.fromkeys(one.way for one in report.differences))
    problems = [f"{len(report.differences)} differences in {', '.join(ways)}"] if ways else []
    if report.window_difference > max_window_difference:
        problems.append(f"windows differ in more than {100 * max_window_difference:g} % of the words")
    if report.failed:
        problems.append(f"{len(report.failed)} utterances not compared")
    return f"{'; '.join(problems)}."
