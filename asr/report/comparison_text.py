"""A comparison of systems for the terminal (rich), as Markdown, and as JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.report.comparison import ComparisonReport, PairResult, SliceDifference, System
from asr.report.json_report import write_text
from asr.report.schema import to_json
from asr.report.terminal import escape_markdown, format_interval, format_percent, visible
from asr.stats import Interval, PairedComparison

MAX_OPTIONS_SHOWN = 12


class _Rows(NamedTuple):
    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def print_comparison(comparison: ComparisonReport, console: Console, *, max_slices: int) -> None:
    """Print the systems, and for every pair the verdict, the tests, the slices and the options that differ."""
    console.print(Text(_headline(comparison)))
    _print_table(_systems(comparison), console)
    for line in _remarks(comparison):
        console.print(Text(visible(line), style="yellow"))
    for pair in comparison.pairs:
        console.print()
        console.print(Text(pair.verdict, style="bold green" if pair.is_supported else "bold"))
        for table in _tables(pair, comparison, max_slices):
            _print_table(table, console)


def to_markdown(comparison: ComparisonReport, *, max_slices: int) -> str:
    """The same as Markdown."""
    lines = [
        "# Comparison",
        "",
        escape_markdown(_headline(comparison)),
        *_markdown_table(_systems(comparison)),
    ]
    for line in _remarks(comparison):
        lines += ["", f"> {escape_markdown(line)}"]
    for pair in comparison.pairs:
        lines += ["", f"## {pair.a} and {pair.b}", "", f"**{escape_markdown(pair.verdict)}**"]
        for table in _tables(pair, comparison, max_slices):
            lines += _markdown_table(table)
    return "\n".join(lines) + "\n"


def write_comparison(comparison: ComparisonReport, folder: Path, *, max_slices: int) -> tuple[Path, Path]:
    """Write ``comparison.json`` and ``comparison.md``; returns their paths.

    Raises:
        ReportError: they cannot be written.
    """
    paths = folder / "comparison.json", folder / "comparison.md"
    plain = json.dumps(to_json(comparison), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(plain, paths[0])
    write_text(to_markdown(comparison, max_slices=max_slices), paths[1])
    return paths


# --- what is shown -----------------------------------------------------------------------------


def _headline(comparison: ComparisonReport) -> str:
    items = "words" if comparison.metric == "wer" else "characters"
    return (
        f"{comparison.num_utterances} utterances with {comparison.num_reference} reference {items}; "
        f"{comparison.unit}s resampled"
    )


def _remarks(comparison: ComparisonReport) -> Iterator[str]:
    yield from comparison.notes
    for system in comparison.systems:
        for warning in system.warnings:
            yield f"{system.letter}: {warning}"


def _systems(comparison: ComparisonReport) -> _Rows:
    has_seeds = any(len(system.rates) > 1 for system in comparison.systems)
    headings: tuple[str, ...]
    headings = (
        "",
        f"{comparison.metric.upper()} %",
        f"{100 * comparison.level:g} %",
        "S",
        "D",
        "I",
        "system",
    )
    if has_seeds:
        headings = (*headings[:3], "runs", "sd", "lowest–highest", headings[-1])
    return _Rows("Systems", headings, [_system_row(system, has_seeds) for system in comparison.systems])


def _system_row(system: System, has_seeds: bool) -> tuple[str, ...]:
    start = (system.letter, f"{100 * system.seeds.mean:.2f}", _range(system.interval))
    if not has_seeds:
        counts = system.counts
        return (*start, str(counts.substitutions), str(counts.deletions), str(counts.insertions), system.name)
    seeds = system.seeds
    spread = "–" if math.isnan(seeds.standard_deviation) else f"{100 * seeds.standard_deviation:.2f}"
    ends = f"{100 * seeds.minimum:.2f}–{100 * seeds.maximum:.2f}"
    return (*start, str(seeds.num_seeds), spread, ends, system.name)


def _tables(pair: PairResult, comparison: ComparisonReport, max_slices: int) -> Iterator[_Rows]:
    yield _Rows(f"{pair.a} minus {pair.b}", ("", ""), list(_tests(pair, comparison)))
    if pair.options:
        rows = [(one.option, one.value_a, one.value_b) for one in pair.options[:MAX_OPTIONS_SHOWN]]
        hidden = len(pair.options) - len(rows)
        title = "Options that differ" + (f" ({hidden} more in comparison.json)" if hidden else "")
        yield _Rows(title, ("option", pair.a, pair.b), rows)
    differing = [one for one in pair.slices if one.comparison.difference]
    if differing and max_slices:
        ranked = sorted(differing, key=lambda one: (one.adjusted_p, one.comparison.p_value))[:max_slices]
        small = f"; {pair.num_slices_too_small} too small to test" if pair.num_slices_too_small else ""
        yield _Rows(
            f"Slices: {len(ranked)} of {len(pair.slices)}, p corrected for all (Holm), * = shown{small}",
            ("slice", "utterances", pair.a, pair.b, "difference", f"{100 * comparison.level:g} %", "p"),
            [_slice_row(one) for one in ranked],
        )


def _tests(pair: PairResult, comparison: ComparisonReport) -> Iterator[tuple[str, str]]:
    found = pair.comparison
    yield "Difference", _difference(found)
    correction = (
        f", {pair.adjusted_p:.2g} corrected for {len(comparison.pairs)} pairs"
        if len(comparison.pairs) > 1
        else ""
    )
    test = "randomisation test" if pair.seeds is None else "utterances and seeds"
    yield "p", f"{found.p_value:.2g} ({test}){correction}"
    yield f"Chance that {pair.a} is better", format_percent(found.share_a_better)
    if pair.by_speaker is not None:
        speakers = f"{pair.by_speaker.interval.num_units} speakers"
        yield "By speaker", f"{_difference(pair.by_speaker)}, p = {pair.by_speaker.p_value:.2g}, {speakers}"
    if pair.seeds is not None:
        yield "Spread of seeds", f"{100 * pair.seeds.standard_deviation:.2f} points of one run"
    if pair.matched_pairs is not None:
        test_ = pair.matched_pairs
        yield (
            "Matched pairs (MAPSSWE)",
            f"p = {test_.p_value:.2g}, z = {test_.z:.2f}, {test_.num_segments} segments",
        )
    if pair.mcnemar is not None:
        only_a, only_b = pair.mcnemar.num_only_a_correct, pair.mcnemar.num_only_b_correct
        only = f"right in {pair.a} alone {only_a}, in {pair.b} alone {only_b}"
        yield "Sentences (McNemar)", f"p = {pair.mcnemar.p_value:.2g}, {only}"
    if found.detectable_difference > 0:
        yield "Can be found here", f"{100 * found.detectable_difference:.2f} points or more (power 80 %)"


def _difference(found: PairedComparison) -> str:
    if math.isnan(found.interval.low):
        return f"{100 * found.difference:+.2f} points"
    return f"{100 * found.difference:+.2f} points, {format_interval(found.interval, sign='+')}"


def _slice_row(one: SliceDifference) -> tuple[str, ...]:
    found = one.comparison
    return (
        f"{one.field}={one.value}",
        str(one.num_utterances),
        *(f"{100 * rate:.2f}" for rate in (one.rate_a, one.rate_b)),
        f"{100 * found.difference:+.2f}",
        _range(found.interval, sign="+"),
        f"{one.adjusted_p:.2g}{' *' if one.is_supported else ''}",
    )


def _range(interval: Interval, sign: str = "") -> str:
    if math.isnan(interval.low):
        return "–"
    return f"{100 * interval.low:{sign}.2f}{' to ' if sign else '–'}{100 * interval.high:{sign}.2f}"


# --- tables ------------------------------------------------------------------------------------


def _print_table(table: _Rows, console: Console) -> None:
    shown = Table(title=Text(table.title), title_justify="left", show_header=any(table.headings))
    for heading in table.headings:
        shown.add_column(Text(heading), overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    console.print(shown)


def _markdown_table(table: _Rows) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(escape_markdown(cell) for cell in cells)} |"

    rule = f"|{'---|' * len(table.headings)}"
    return ["", escape_markdown(table.title), "", line(table.headings), rule, *map(line, table.rows)]
