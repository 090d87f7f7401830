"""What the doctor found: for the terminal, as JSON, as a picture."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.findings import CHECKS, ExaminedSplit, Finding, Severity, characters_per_second
from asr.manifest import manifest_sha256
from asr.report.schema import to_json

SCHEMA_VERSION = 1
FINDINGS_NAME = "findings.jsonl"
NUM_BINS = 24
_TOP_SHARE = 0.995  # of the values lie within the histogram's range; the last bin takes the rest
_BAR = " ▁▂▃▄▅▆▇█"
_STYLES: dict[Severity, str] = {"error": "red", "warning": "yellow", "info": "cyan"}


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts[i]`` values lie between ``edges[i]`` and ``edges[i + 1]``; the last bin is open above."""

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    medians: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """A split in figures; ``formats`` counts utterances by ``rate Hz × channels``."""

    manifest: str
    sha256: str
    is_decoded: bool
    num_utterances: int
    hours: float
    num_used: int
    hours_used: float
    num_speakers: int
    formats: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CheckSummary:
    """How many utterances of one split did not pass one check, what it means and what to do."""

    check: str
    severity: Severity
    split: str
    num_utterances: int
    hours: float
    share: float
    meaning: str
    remedy: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """The content of ``doctor.json``; every single finding is in ``findings.jsonl``."""

    schema_version: int
    num_errors: int
    num_warnings: int
    splits: Mapping[str, SplitSummary]
    checks: tuple[CheckSummary, ...]
    histograms: Mapping[str, Histogram]


def build_corpus_report(
    splits: Sequence[ExaminedSplit], findings: Sequence[Finding], manifests: Mapping[str, str]
) -> CorpusReport:
    """Sum up.

    Args:
        manifests: path of each split's manifest.
    """
    severities = Counter(finding.severity for finding in findings)
    return CorpusReport(
        schema_version=SCHEMA_VERSION,
        num_errors=severities["error"],
        num_warnings=severities["warning"],
        splits={split.name: _summarise(split, manifests[split.name]) for split in splits},
        checks=tuple(_summarise_checks(splits, findings)),
        histograms=_histograms(splits),
    )


def write_corpus_report(report: CorpusReport, findings: Sequence[Finding], folder: Path) -> None:
    """Write ``doctor.json``, ``findings.jsonl`` and ``doctor.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(report), indent=1, ensure_ascii=False)
    (folder / "doctor.json").write_text(text + "\n", encoding="utf-8")
    write_findings(findings, folder / FINDINGS_NAME)
    save_histograms(report.histograms, folder / "doctor.png")


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """One JSON object per line and finding."""
    with path.open("w", encoding="utf-8") as file:
        for finding in findings:
            file.write(json.dumps(to_json(finding), ensure_ascii=False) + "\n")


def print_corpus_report(report: CorpusReport, console: Console, *, num_shown: int) -> None:
    """Print the splits, what was found with ``num_shown`` ids each, and the histograms."""
    console.print(_splits_table(report))
    if report.checks:
        console.print(_checks_table(report, num_shown))
    for title, histogram in report.histograms.items():
        console.print(_bars(title, histogram))
    console.print(
        f"{report.num_errors} errors, {report.num_warnings} warnings"
        if report.checks
        else "nothing to complain about"
    )


def _summarise(split: ExaminedSplit, manifest: str) -> SplitSummary:
    used = split.selection.examples
    formats: Counter[str] = Counter()
    if split.facts is not None:
        pairs = zip(split.facts.sample_rates.tolist(), split.facts.num_channels.tolist(), strict=True)
        formats.update(f"{rate} Hz × {channels}" for rate, channels in pairs if rate)
    return SplitSummary(
        manifest=manifest,
        sha256=manifest_sha256(manifest),
        is_decoded=split.facts is not None and split.facts.is_decoded,
        num_utterances=len(split.utterances),
        hours=sum(utterance.duration_seconds for utterance in split.utterances) / 3600,
        num_used=len(used),
        hours_used=sum(example.utterance.duration_seconds for example in used) / 3600,
        num_speakers=len({utterance.speaker for utterance in split.utterances} - {""}),
        formats=dict(formats.most_common()),
    )


def _summarise_checks(splits: Sequence[ExaminedSplit], findings: Sequence[Finding]) -> list[CheckSummary]:
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.check, finding.split), []).append(finding)
    sizes = {split.name: len(split.utterances) for split in splits}
    order: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
    summaries = [
        CheckSummary(
            check=check,
            severity=found[0].severity,
            split=split,
            num_utterances=len(found),
            hours=sum(finding.duration_seconds for finding in found) / 3600,
            share=len(found) / sizes[split],
            meaning=CHECKS[check].meaning,
            remedy=CHECKS[check].remedy,
            ids=tuple(finding.id for finding in found),
        )
        for (check, split), found in groups.items()
    ]
    return sorted(summaries, key=lambda summary: order[summary.severity])


# ------------------------------------------------------------------ histograms


def _histograms(splits: Sequence[ExaminedSplit]) -> dict[str, Histogram]:
    used = {split.name: split.selection.examples for split in splits if split.selection.examples}
    durations = {
        name: np.array([example.utterance.duration_seconds for example in examples])
        for name, examples in used.items()
    }
    lengths = {
        name: np.array([len(example.text) for example in examples], np.float64)
        for name, examples in used.items()
    }
    rates = {name: characters_per_second(examples) for name, examples in used.items()}
    return {
        "duration in seconds": _histogram(durations),
        "characters of text": _histogram(lengths),
        "characters per second": _histogram(rates),
    }


def _histogram(values: Mapping[str, NDArray[np.float64]]) -> Histogram:
    if not values:
        return Histogram((), {}, {})
    top = float(np.quantile(np.concatenate(list(values.values())), _TOP_SHARE))
    edges = np.linspace(0.0, max(top, 1e-6), NUM_BINS + 1)
    return Histogram(
        edges=tuple(edges.tolist()),
        counts={
            name: tuple(np.histogram(np.minimum(of_split, edges[-1]), edges)[0].tolist())
            for name, of_split in values.items()
        },
        medians={name: float(np.median(of_split)) for name, of_split in values.items()},
    )


def save_histograms(histograms: Mapping[str, Histogram], path: Path) -> None:
    """A panel for each histogram, a line for each split, as shares of the split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, histogram) in zip(figure.subplots(1, len(histograms)), histograms.items(), strict=True):
        for name, counts in histogram.counts.items():
            shares = 100 * np.array(counts) / max(1, sum(counts))
            label = f"{name} ({sum(counts):,}), median {histogram.medians[name]:.3g}"
            axes.stairs(shares, histogram.edges, label=label, linewidth=1.8, fill=name == "train", alpha=0.75)
        axes.set_xlabel(f"{title} (top 0.5 % in the last bar)", fontsize=9)
        axes.set_ylabel("% of the split")
        axes.spines[["top", "right"]].set_visible(False)
        if histogram.counts:
            axes.legend(frameon=False, fontsize=8)
            axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _bars(title: str, histogram: Histogram) -> Text:
    lines = [Text(f"\n{title}", style="bold")]
    width = max((len(name) for name in histogram.counts), default=0)
    for name, counts in histogram.counts.items():
        top = max(counts)
        bars = "".join(_BAR[-(-count * (len(_BAR) - 1) // top)] for count in counts)
        edge = f"{histogram.edges[-1]:.3g}"
        lines.append(Text(f"{name:>{width}} 0 {bars} {edge}  median {histogram.medians[name]:.3g}"))
    return Text("\n").join(lines)


# ------------------------------------------------------------------ tables


def _splits_table(report: CorpusReport) -> Table:
    table = Table(title="Corpus", title_justify="left")
    table.add_column("split")
    for heading in ("utterances", "hours", "used", "hours used", "speakers"):
        table.add_column(heading, justify="right")
    table.add_column("audio")
    for name, split in report.splits.items():
        depth = "" if split.is_decoded else ("headers only: " if split.formats else "not looked at")
        table.add_row(
            name,
            f"{split.num_utterances:,}",
            f"{split.hours:.2f}",
            f"{split.num_used:,}",
            f"{split.hours_used:.2f}",
            f"{split.num_speakers:,}" if split.num_speakers else "unknown",
            depth + ", ".join(f"{kind} ({count:,})" for kind, count in split.formats.items()),
        )
    return table


def _checks_table(report: CorpusReport, num_shown: int) -> Table:
    table = Table(title="Found", title_justify="left", show_lines=True)
    for heading in ("", "split", "utterances", "hours", "what", "what to do"):
        table.add_column(heading, justify="right" if heading in {"utterances", "hours"} else "left")
    for check in report.checks:
        shown = ", ".join(check.ids[:num_shown]) + (", …" if len(check.ids) > num_shown else "")
        what = Text.assemble((check.check, "bold"), f": {check.meaning}")
        if num_shown:
            what.append(f"\n{shown}", style="dim")
        table.add_row(
            Text(check.severity, style=_STYLES[check.severity]),
            check.split,
            f"{check.num_utterances:,}\n{100 * check.share:.1f} %",
            f"{check.hours:.2f}",
            what,
            check.remedy,
        )
    return table
