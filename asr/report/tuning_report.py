"""A search for decoder settings as tables and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from asr.report.terminal import format_percent
from asr.stats import Interval, PairedComparison

_INK, _GREY, _CHOSEN = "#2166ac", "#999999", "#b2182b"


@dataclass(frozen=True, slots=True)
class Step:
    """One system on the way from greedy decoding to the tuned decoder; paired with those named in ``against``."""

    name: str
    wer: float
    interval: Interval
    speed: float | None
    against: Mapping[str, PairedComparison]


@dataclass(frozen=True, slots=True)
class Point:
    """One trial: ``speed`` in seconds of audio per second of CPU, for decoding alone."""

    stage: str
    options: dict[str, Any]
    wer: float
    speed: float
    interval: Interval | None = None
    is_on_front: bool = False
    is_chosen: bool = False


def steps_table(steps: Sequence[Step]) -> Table:
    table = Table(title="On the dev set", title_justify="left")
    for heading in ("decoder", "WER", "95 % interval", "speed", "difference"):
        table.add_column(heading, justify="left" if heading == "decoder" else "right")
    for step in steps:
        table.add_row(
            step.name,
            format_percent(step.wer),
            f"{100 * step.interval.low:.2f}–{100 * step.interval.high:.2f}",
            "" if step.speed is None else f"{step.speed:.0f} ×",
            "\n".join(_verdict(comparison, other) for other, comparison in step.against.items()),
        )
    return table


def _verdict(comparison: PairedComparison, other: str) -> str:
    direction = "no difference shown"
    if comparison.is_supported:
        direction = "better" if comparison.difference < 0 else "worse"
    points = f"{100 * comparison.difference:+.2f} points to {other}"
    return f"{points}, p={comparison.p_value:.2g}: {direction}"


def front_table(points: Sequence[Point]) -> Table:
    table = Table(title="Error rate against speed (CPU of decoding alone)", title_justify="left")
    for heading in ("beam_width", "score_gap", "token_gap", "speed", "WER", "95 % interval", ""):
        table.add_column(heading, justify="right")
    for point in points:
        if point.is_on_front or point.is_chosen:
            interval = point.interval
            table.add_row(
                *(str(point.options.get(name, "")) for name in ("beam_width", "score_gap", "token_gap")),
                f"{point.speed:.0f} ×",
                format_percent(point.wer),
                "" if interval is None else f"{100 * interval.low:.2f}–{100 * interval.high:.2f}",
                "chosen" if point.is_chosen else "",
            )
    return table


def plot(points: Sequence[Point], steps: Sequence[Step], path: Path) -> None:
    """Weights that were tried, coloured by error rate, and error rate against speed."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    weighted = [point for point in points if "alpha" in point.options]
    figure = Figure(figsize=(11 if weighted else 6, 4.5), layout="constrained")
    axes = figure.subplots(1, 2 if weighted else 1, squeeze=False)[0]
    chosen = next(point for point in points if point.is_chosen)
    if weighted:
        best: dict[tuple[float, float], float] = {}
        for point in weighted:
            best[_place(point)] = min(best.get(_place(point), float("inf")), 100 * point.wer)
        lowest = min(best.values())
        dots = axes[0].scatter(
            *zip(*best, strict=True),
            c=list(best.values()),
            cmap="viridis_r",
            vmin=lowest,
            vmax=max(1.5 * lowest, lowest + 1),
            s=90,
            edgecolors="white",
            linewidths=0.5,
        )
        place = _place(chosen)
        axes[0].plot(*place, marker="o", markersize=14, fillstyle="none", color=_CHOSEN, markeredgewidth=2)
        axes[0].annotate("chosen", place, xytext=(10, 10), textcoords="offset points", color=_CHOSEN)
        axes[0].set(xlabel="alpha", ylabel="beta", title="Weights tried")
        figure.colorbar(dots, ax=axes[0], label="WER (%)", extend="max")
    speed = axes[-1]
    pruned = [point for point in points if point.interval is not None]
    speed.scatter(
        [point.speed for point in pruned], [100 * point.wer for point in pruned], s=14, color=_GREY,
        label="other pruning",
    )  # fmt: skip
    front = sorted((point for point in pruned if point.is_on_front), key=lambda point: point.speed)
    speed.errorbar(
        [point.speed for point in front],
        [100 * point.wer for point in front],
        yerr=[
            [100 * (point.wer - point.interval.low) for point in front if point.interval],
            [100 * (point.interval.high - point.wer) for point in front if point.interval],
        ],
        color=_INK, marker="o", markersize=5, capsize=3, linewidth=1.2, label="Pareto front, 95 % intervals",
    )  # fmt: skip
    speed.plot(
        chosen.speed, 100 * chosen.wer, marker="o", markersize=14, fillstyle="none", color=_CHOSEN,
        markeredgewidth=2, linestyle="none", label="chosen",
    )  # fmt: skip
    for step in steps[:1]:
        speed.axhline(100 * step.wer, color=_GREY, linestyle="--", linewidth=1, label=step.name)
    speed.set(
        xscale="log", xlabel="seconds of audio per second of CPU", ylabel="WER (%)", title="Speed of decoding"
    )
    speed.set_ylim(bottom=0)
    speed.legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _place(point: Point) -> tuple[float, float]:
    """Alpha and beta; a decoder that counts no words has no beta."""
    return point.options["alpha"], point.options.get("beta", 0.0)
