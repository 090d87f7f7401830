"""An evaluation for the terminal (rich) and as Markdown.

Transcripts, identifiers and file names are untrusted text: on the terminal they never pass
through rich's markup, in Markdown they are escaped or fenced, and control characters, which could
steer a terminal, are shown as ``�``.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from asr.attribution import Cause
from asr.calibration import Reliability
from asr.firewall import Notice
from asr.report.json_report import EvaluationReport, UtteranceResult, num_faulty
from asr.score import AlignedPair, Operation, align_words, rank_worst
from asr.stats import Interval

_STYLES: dict[Operation, str] = {"equal": "none", "substitute": "yellow", "delete": "red", "insert": "cyan"}
_MARKS: dict[Operation, str] = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}
_GAP = "·"  # stands where one side has no word
_MAX_EXCLUDED_SHOWN = 5


def print_report(report: EvaluationReport, console: Console, *, num_worst: int = 10) -> None:
    """Print headline figures, exclusions and the ``num_worst`` utterances with the most errors."""
    for notice in _notices(report):
        style = "bold red" if notice.severity == "warning" else "dim"
        console.print(Text(visible(notice.text), style=style))
    console.print(headline_table(report))
    if report.excluded:
        console.print(_exclusions(report))
    worst = worst_utterances(report, num_worst)
    if worst:
        console.print(Text(f"\n{_worst_title(len(worst), report)}", style="bold"))
    for result in worst:
        console.print(aligned_utterance(result, width=max(20, console.width - 2)))


def headline_table(report: EvaluationReport) -> Table:
    """A two-column table of the figures that sum up an evaluation."""
    table = Table(show_header=False, title="Evaluation", title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in _headline(report):
        table.add_row(Text(name), Text(value))
    return table


def aligned_utterance(result: UtteranceResult, *, width: int) -> RenderableType:
    """One utterance, reference above hypothesis, errors coloured and marked S, D or I below."""
    lines: list[Text] = []
    for chunk in _chunks(result.alignment, width - len(_LABELS[0])):
        for label, row in zip(_LABELS, _rows(chunk), strict=True):
            line = Text.assemble((label, "dim"))
            for pair, cell in zip(chunk, row, strict=True):
                line.append(cell + " ", style=_STYLES[pair.operation])
            lines.append(line)
    return Group(Text(_utterance_title(result), style="bold"), Padding(Group(*lines), (0, 0, 1, 2)))


def to_markdown(report: EvaluationReport, *, num_worst: int = 10, width: int = 100) -> str:
    """The same as Markdown, to paste into a page, a merge request or a message."""
    lines = ["# Evaluation", "", "| figure | value |", "|---|---|"]
    lines += [f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in _headline(report)]
    lines[1:1] = [
        line
        for notice in _notices(report)
        for line in ("", f"> **{escape_markdown(notice.severity)}**: {escape_markdown(notice.text)}")
    ]
    if report.excluded:
        lines += ["", *(f"- {escape_markdown(line)}" for line in _exclusions(report).plain.splitlines())]
    worst = worst_utterances(report, num_worst)
    if worst:
        lines += ["", f"## {_worst_title(len(worst), report)}"]
    for result in worst:
        lines += ["", _aligned_markdown(_utterance_title(result), result.alignment, width)]
    return "\n".join(lines) + "\n"


def sample_markdown(utterance_id: str, reference: str, hypothesis: str, *, width: int = 100) -> str:
    """One utterance for a log: reference above hypothesis, errors marked."""
    return _aligned_markdown(visible(utterance_id), align_words(reference, hypothesis).pairs, width)


def _aligned_markdown(title: str, alignment: Sequence[AlignedPair], width: int) -> str:
    aligned = [
        label + " ".join(row).rstrip()
        for chunk in _chunks(alignment, width - len(_LABELS[0]))
        for label, row in zip(_LABELS, _rows(chunk), strict=True)
    ]
    return "\n".join([f"**{escape_markdown(title)}**", "", *_fenced(aligned)])


def worst_utterances(report: EvaluationReport, num_worst: int) -> tuple[UtteranceResult, ...]:
    """The utterances with the most word errors, worst first; flawless ones are left out."""
    ranked = rank_worst([result.counts for result in report.utterances], max_utterances=num_worst)
    return tuple(report.utterances[position] for position in ranked)


CAUSES: dict[Cause, str] = {
    "acoustic_model": "acoustic model",
    "language_model": "language model",
    "search": "search",
    "unwritable": "unwritable",
}


def count_causes(report: EvaluationReport) -> dict[Cause, int]:
    """How many runs of neighbouring wrong words each cause has; empty where causes were not looked for."""
    found = [result.attribution for result in report.utterances if result.attribution is not None]
    counts = Counter(region.cause for attribution in found for region in attribution.regions)
    return {cause: counts[cause] for cause in CAUSES if counts[cause]}


# --- figures as text ---------------------------------------------------------------------------


def format_percent(rate: float) -> str:
    """``0.0523`` as ``5.23 %``; what does not exist as ``–``."""
    return "–" if math.isnan(rate) else f"{100 * rate:.2f} %"


def format_interval(interval: Interval, *, sign: str = "") -> str:
    """``95 % interval 3.10–7.90``, in percent; empty where there is none. ``sign="+"`` is for differences."""
    if math.isnan(interval.low):
        return ""
    low, high = f"{100 * interval.low:{sign}.2f}", f"{100 * interval.high:{sign}.2f}"
    return f"{100 * interval.level:g} % interval {low}{' to ' if sign else '–'}{high}"


def _notices(report: EvaluationReport) -> tuple[Notice, ...]:
    return report.data_use.notices if report.data_use else ()


def greedy_verdict(report: EvaluationReport) -> str:
    """What the decoder is worth beside greedy decoding; empty where that was not looked at."""
    if report.greedy is None:
        return ""
    comparison = report.greedy.comparison
    has_lm = report.provenance.get("decoder", {}).get("lm") is not None
    subject = "the language model" if has_lm else "the beam search"
    if math.isnan(comparison.interval.low):
        return f"too few utterances to say what {subject} changes"
    low, high = sorted(100 * abs(bound) for bound in comparison.interval[:2])
    evidence = f"(95 % interval {low:.2f}–{high:.2f}, p={comparison.p_value:.2g})"
    if not comparison.is_supported:
        difference = f"{100 * comparison.difference:+.2f} points, p={comparison.p_value:.2g}"
        return f"no difference shown for {subject} ({difference})"
    if comparison.difference < 0:
        return f"{subject} makes this better by {-100 * comparison.difference:.2f} points {evidence}"
    remedy = ": tune alpha and beta with asr.tune" if has_lm else ""
    return f"{subject} makes this worse by {100 * comparison.difference:.2f} points {evidence}{remedy}"


def _headline(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    counts, interval = report.counts, format_interval(report.wer_interval)
    yield (
        "WER",
        _join(
            format_percent(report.wer),
            interval,
            f"{counts.num_reference} words in {report.num_utterances} utterances",
        ),
    )
    if report.wer_interval_by_speaker is not None:
        yield (
            "  by speaker",
            _join(
                format_interval(report.wer_interval_by_speaker),
                f"{report.wer_interval_by_speaker.num_units} speakers",
            ),
        )
    yield (
        "Word errors",
        f"{counts.substitutions} substituted, {counts.deletions} deleted, {counts.insertions} inserted",
    )
    if causes := count_causes(report):
        yield "Caused by", ", ".join(f"{CAUSES[cause]} {number}" for cause, number in causes.items())
    if report.greedy is not None:
        yield "Greedy", f"{format_percent(report.greedy.wer)}; {greedy_verdict(report)}"
    yield "CER", _join(format_percent(report.cer), f"{report.character_counts.num_reference} characters")
    yield (
        "Sentence errors",
        _join(format_percent(report.sentence_error_rate), format_interval(report.sentence_error_interval)),
    )
    yield from describe_words(report)
    yield "Speed", _speed(report)
    weights = report.provenance.get("decoder_weights", {}).get("text", "none")
    if weights != "none":
        yield "Weights", visible(weights)
    yield "Normaliser", visible(report.normaliser)
    if report.num_excluded:
        yield "Not scored", f"{report.num_excluded} utterances"


def describe_words(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    """What confidences and times of words are worth."""
    if report.confidence is not None:
        found = report.confidence
        num_wrong = found.num_words - found.num_correct
        words = f"{found.num_words} words, {num_wrong} wrong"
        yield "Confidence", _join(_reliability(found.uncalibrated), words)
        if found.calibrated is not None:
            how = f"temperature {found.temperature:.2f}, {visible(found.source)}"
            yield "  calibrated", _join(_reliability(found.calibrated), how)
    if report.word_times is not None:
        times = report.word_times
        yield (
            "Word times",
            f"starts {1000 * times.start_error_seconds:.0f} ms and ends {1000 * times.end_error_seconds:.0f} ms "
            f"from the true ones on average, 90 % within {1000 * times.p90_error_seconds:.0f} ms",
        )


def _reliability(found: Reliability) -> str:
    nce = "–" if math.isnan(found.nce) else f"{found.nce:.3f}"
    return f"NCE {nce}, ECE {format_percent(found.ece)}"


def _speed(report: EvaluationReport) -> str:
    audio = f"{report.audio_seconds:.1f} s of audio in {report.decode_seconds:.1f} s"
    return audio if report.rtfx is None else f"{report.rtfx:.1f} × real time ({audio})"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _exclusions(report: EvaluationReport) -> Text:
    shown = [f"not scored: {visible(item.id)}: {visible(item.reason)}" for item in report.excluded]
    hidden = len(shown) - _MAX_EXCLUDED_SHOWN
    if hidden > 0:
        shown = [*shown[:_MAX_EXCLUDED_SHOWN], f"… and {hidden} more, all in report.json"]
    return Text("\n".join(shown), style="yellow")


def _worst_title(num_shown: int, report: EvaluationReport) -> str:
    return f"Most errors: {num_shown} of {num_faulty(report)} utterances with errors"


def _utterance_title(result: UtteranceResult) -> str:
    counts = result.counts
    words = f"{counts.num_errors} errors in {counts.num_reference} words"
    return f"{visible(result.id)}  {words}, {result.duration_seconds:.1f} s"


# --- aligned words -----------------------------------------------------------------------------

_LABELS = ("REF  ", "HYP  ", "     ")


def _rows(pairs: Sequence[AlignedPair]) -> tuple[list[str], list[str], list[str]]:
    """Reference, hypothesis and marks, each cell padded to the width of its column."""
    columns = [
        (visible(pair.reference) or _GAP, visible(pair.hypothesis) or _GAP, _MARKS[pair.operation])
        for pair in pairs
    ]
    padded = [[_pad(cell, max(map(cell_len, column))) for cell in column] for column in columns]
    references, hypotheses, marks = (list(row) for row in zip(*padded, strict=True))
    return references, hypotheses, marks


def _pad(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))


def _chunks(pairs: Sequence[AlignedPair], width: int) -> Iterator[list[AlignedPair]]:
    """Break an alignment into lines of at most ``width`` cells, never within a word."""
    chunk: list[AlignedPair] = []
    used = 0
    for pair in pairs:
        needed = 1 + max(1, cell_len(visible(pair.reference)), cell_len(visible(pair.hypothesis)))
        if chunk and used + needed > width:
            yield chunk
            chunk, used = [], 0
        chunk.append(pair)
        used += needed
    if chunk:
        yield chunk


# --- untrusted text ----------------------------------------------------------------------------


def visible(untrusted: str) -> str:
    """Show control and format characters (escape sequences, text direction) instead of obeying them."""
    return "".join(
        "�" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") else character
        for character in untrusted
    )


def escape_markdown(untrusted: str) -> str:
    """Markdown and HTML in ``untrusted`` come out as they went in."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", visible(untrusted))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(lines: Sequence[str]) -> list[str]:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *lines, fence]
