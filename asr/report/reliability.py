"""The reliability diagram: how often words of a given confidence are correct."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asr.calibration import ConfidenceReport, Reliability


def plot_reliability(found: ConfidenceReport, path: Path) -> None:
    """Draw confidences as they are and, where there is a calibration, as that makes them."""
    panels = [("as decoded", found.uncalibrated)]
    if found.calibrated is not None:
        panels.append((f"temperature {found.temperature:.2f}", found.calibrated))
    figure = Figure(figsize=(4.5 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (title, reliability) in zip(axes, panels, strict=True):
        _draw(panel, title, reliability)
    axes[0].set_ylabel("share of correct words")
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, title: str, reliability: Reliability) -> None:
    used = [one for one in reliability.bins if one.num_words]
    largest = max((one.num_words for one in used), default=1)
    axes.bar(
        [one.low for one in reliability.bins],
        [0.25 * one.num_words / largest for one in reliability.bins],
        width=[one.high - one.low for one in reliability.bins],
        align="edge",
        color="0.85",
        edgecolor="white",
    )
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(
        [one.mean_confidence for one in used],
        [one.share_correct for one in used],
        marker="o",
        color="tab:blue",
    )
    for one in used:
        axes.annotate(
            str(one.num_words),
            (one.mean_confidence, one.share_correct),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color="0.3",
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="confidence (grey: number of words)")
    axes.set_title(f"{title}\nNCE {reliability.nce:.3f}, ECE {100 * reliability.ece:.1f} %", fontsize=10)
