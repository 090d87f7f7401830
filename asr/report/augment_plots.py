"""Pictures of augmented audio: the original and what was made of it, one above the other."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from asr.report.ctc_plots import INK, draw_spectrogram


class Panel(NamedTuple):
    """``spectrogram``: ``(frames, bins)``."""

    title: str
    spectrogram: Tensor


def preview_figure(panels: Sequence[Panel], hop_seconds: float, title: str) -> Figure:
    """Spectrograms on one time axis, so that words can be followed from one to the next."""
    longest = max(len(panel.spectrogram) for panel in panels) * hop_seconds
    width = min(14.0, max(6.0, 2.0 + 1.6 * longest))
    figure = Figure(figsize=(width, 0.6 + 1.7 * len(panels)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=10)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        draw_spectrogram(axes, panel.spectrogram.double().numpy(), hop_seconds)
        axes.set_title(panel.title, loc="left", fontsize=9, color=INK)
    rows[-1].set_xlim(0, longest)
    rows[-1].set_xlabel("seconds")
    return figure
