"""Explanations of CTC as terminal tables and as plain data for JSON."""

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from asr.ctc.align import TokenSpan, WordSpan
from asr.ctc.diagnosis import Diagnosis, Finding, Severity, format_count
from asr.ctc.paths import ScoredPath, collapse

_STYLES: dict[Severity, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


def format_probability(log_prob: float) -> str:
    """A probability with four digits, also where it is too small for a float: ``1.366e-06``."""
    if log_prob == -math.inf:
        return "0"
    if log_prob > 700:
        return f"e^{log_prob:.1f}"
    exponent = math.floor(log_prob / math.log(10))
    mantissa = f"{math.exp(log_prob - exponent * math.log(10)):.3f}"
    if mantissa == "10.000":
        mantissa, exponent = "1.000", exponent + 1
    return f"{mantissa}e{exponent:+03d}"


def paths_table(
    paths: Sequence[ScoredPath], symbols: Sequence[str], total_log_prob: float, num_paths: int
) -> Table:
    """One row per path: its tokens, its probability and its share of the total."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("#", justify="right")
    table.add_column("path")
    table.add_column("probability", justify="right")
    table.add_column("share", justify="right")
    separator = "" if all(len(symbol) == 1 for symbol in symbols) else " "
    for rank, scored in enumerate(paths, 1):
        share = math.exp(scored.log_prob - total_log_prob)
        spelt = Text(separator.join(symbols[token] for token in scored.path))
        table.add_row(str(rank), spelt, format_probability(scored.log_prob), f"{share:.2%}")
    if len(paths) < num_paths:
        table.add_row("…", f"of {format_count(num_paths, 'path')}", "", "")
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """What was found, in words."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.severity, _STYLES[finding.severity]), finding.topic, Text(finding.message))
    return table


def words_table(words: Sequence[WordSpan], diagnosis: Diagnosis, seconds_per_frame: float) -> Table:
    """The aligned reference, word by word, with the loss that the frames nearest to it add."""
    table = Table(title="Reference, aligned", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("word", "start", "end", "score", "loss", "share"):
        table.add_column(heading, justify="left" if heading == "word" else "right")
    remaining = diagnosis.loss
    for word in words:
        loss = word_loss(word, diagnosis)
        remaining -= loss
        table.add_row(
            Text(word.text),
            f"{word.start_frame * seconds_per_frame:.2f}",
            f"{word.end_frame * seconds_per_frame:.2f}",
            f"{word.score:.3f}",
            *_loss_cells(loss, diagnosis.loss),
        )
    if remaining > 0.005 * diagnosis.loss:
        table.add_row("(between words)", "", "", "", *_loss_cells(remaining, diagnosis.loss))
    return table


def _loss_cells(loss: float, total: float) -> tuple[str, str]:
    return f"{loss:.3f}", f"{loss / max(total, 1e-9):.0%}"


def word_loss(word: WordSpan, diagnosis: Diagnosis) -> float:
    return float(sum(diagnosis.label_losses[token.position] for token in word.tokens))


def diagnosis_as_plain(diagnosis: Diagnosis, symbols: Sequence[str]) -> dict[str, Any]:
    """Everything in a diagnosis except the emissions themselves, as plain data."""
    plain: dict[str, Any] = {
        "labels": list(diagnosis.labels),
        "label_symbols": [symbols[label] for label in diagnosis.labels],
        "blank": diagnosis.blank,
        "num_frames": diagnosis.num_frames,
        "vocab_size": diagnosis.log_probs.shape[1],
        "loss": _finite(diagnosis.loss),
        "row_sums": [_finite(total) for total in diagnosis.row_sums.tolist()],
        "best_path": path_as_plain(diagnosis.best_path, symbols, diagnosis.blank),
        "blank_share": diagnosis.blank_share,
        "findings": [
            {"severity": finding.severity, "topic": finding.topic, "message": finding.message}
            for finding in diagnosis.findings
        ],
    }
    if diagnosis.occupancy is not None and diagnosis.alignment is not None:
        plain |= {
            "total_log_probability": diagnosis.occupancy.log_prob,
            "path_entropy": diagnosis.occupancy.path_entropy,
            "frame_losses": diagnosis.occupancy.frame_losses.tolist(),
            "label_losses": diagnosis.label_losses.tolist(),
            "occupancy": diagnosis.occupancy.gamma.tolist(),
            "alignment": {
                "path": diagnosis.alignment.path.tolist(),
                "log_probability": diagnosis.alignment.log_prob,
                "tokens": [span_as_plain(span, symbols) for span in diagnosis.alignment.token_spans()],
            },
        }
    return plain


def _finite(value: float) -> float | None:
    """JSON has no infinity: null stands for it."""
    return value if math.isfinite(value) else None


def path_as_plain(scored: ScoredPath, symbols: Sequence[str], blank: int) -> dict[str, Any]:
    return {
        "path": list(scored.path),
        "symbols": [symbols[token] for token in scored.path],
        "labels": list(collapse(scored.path, blank)),
        "log_probability": scored.log_prob,
        "probability": math.exp(min(scored.log_prob, 700)),
    }


def span_as_plain(span: TokenSpan, symbols: Sequence[str]) -> dict[str, Any]:
    return {
        "token": span.token_id,
        "symbol": symbols[span.token_id],
        "start_frame": span.start_frame,
        "end_frame": span.end_frame,
        "score": span.score,
    }


def word_as_plain(word: WordSpan, diagnosis: Diagnosis, seconds_per_frame: float) -> dict[str, Any]:
    return {
        "text": word.text,
        "start_seconds": word.start_frame * seconds_per_frame,
        "end_seconds": word.end_frame * seconds_per_frame,
        "score": word.score,
        "loss": word_loss(word, diagnosis),
    }
