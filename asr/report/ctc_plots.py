"""Pictures of CTC: the trellis with its occupancy, and a recording with all that happens over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from asr.ctc.align import Alignment, Occupancy, TokenSpan, WordSpan
from asr.ctc.diagnosis import Diagnosis
from asr.ctc.paths import FloatArray, Lattice

INK = "#20262e"
MUTED = "#8a94a0"
FLOW = "#2166ac"
PATH = "#e8601c"
COST = "#b2182b"
MAX_NODES_FRAMES = 40
MAX_NODES_STATES = 41
_MAX_NUMBERED_FRAMES = 14
_MAX_TOKEN_ROWS = 32
_MAX_NAMED_LABELS = 30
_NOTICEABLE = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """Emission frames ↔ seconds; ``seconds_per_frame=None`` leaves the axis in frames."""

    seconds_per_frame: float | None = None

    @property
    def axis_label(self) -> str:
        return "frame" if self.seconds_per_frame is None else "seconds"

    def edges(self, num_frames: int) -> FloatArray:
        """``(frames + 1,)`` borders; frame ``t`` is centred on its own time."""
        return (np.arange(num_frames + 1, dtype=np.float64) - 0.5) * (self.seconds_per_frame or 1.0)

    def centres(self, num_frames: int) -> FloatArray:
        return np.arange(num_frames, dtype=np.float64) * (self.seconds_per_frame or 1.0)


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG or SVG, as the suffix says; the same picture gives the same bytes."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "asr", "svg.fonttype": "none"}):
        figure.savefig(
            path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None}
        )


def trellis_figure(diagnosis: Diagnosis, symbols: Sequence[str], title: str = "") -> Figure:
    """States against frames: how probable each state and step is, given the labels, and the best path.

    Small cases are drawn as a graph, large ones as an image.

    Raises:
        ValueError: the labels cannot be produced, so there is no trellis.
    """
    posterior, alignment = _possible(diagnosis)
    num_frames, num_states = posterior.gamma.shape
    as_graph = num_frames <= MAX_NODES_FRAMES and num_states <= MAX_NODES_STATES
    width = float(np.clip(1.6 + 0.62 * num_frames, 6.0, 15.0))
    height = float(np.clip(1.5 + (0.55 if as_graph else 0.28) * num_states, 4.0, 10.0))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    if as_graph:
        _draw_graph(axes, diagnosis.log_probs, posterior, alignment)
    else:
        _draw_occupancy(figure, axes, posterior, alignment, Timing())
    _name_states(axes, posterior, symbols, with_blanks=as_graph)
    axes.set_xlabel("frame")
    axes.set_title(title or f"loss {posterior.loss:.4f} nats", loc="left", color=INK)
    return figure


def posterior_figure(diagnosis: Diagnosis, symbols: Sequence[str], title: str = "") -> Figure:
    """Probability of each token in each frame; tokens that matter only, when there are many."""
    size = (
        float(np.clip(2.6 + 0.5 * diagnosis.num_frames, 6.0, 15.0)),
        1.4 + 0.26 * len(tokens_to_show(diagnosis)),
    )
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    _draw_posteriors(figure, axes, diagnosis, symbols, Timing())
    axes.set_xlabel("frame")
    axes.set_title(title or "probability of each token", loc="left", color=INK)
    return figure


def utterance_figure(
    diagnosis: Diagnosis,
    symbols: Sequence[str],
    *,
    spectrogram: FloatArray,
    spectrogram_hop_seconds: float,
    seconds_per_frame: float,
    words: Sequence[WordSpan],
    title: str = "",
) -> Figure:
    """One recording over time: features, posteriors, alignment of the reference, loss per frame.

    Without a possible reference only the first two panels are drawn.

    Args:
        spectrogram: ``(feature_frames, bins)``.
        words: aligned reference words, drawn over the spectrogram.
    """
    timing = Timing(seconds_per_frame)
    heights = [2.2, 0.8 + 0.13 * len(tokens_to_show(diagnosis))]
    if diagnosis.occupancy is not None:
        heights += [2.6, 1.5]
    width = float(np.clip(4 + 1.6 * seconds_per_frame * diagnosis.num_frames, 9.0, 20.0))
    figure = Figure(figsize=(width, sum(heights) + 1.2), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    draw_spectrogram(panels[0], spectrogram, spectrogram_hop_seconds)
    _draw_words(panels[0], words, seconds_per_frame)
    panels[0].set_title(title, loc="left", color=INK, pad=18)
    _draw_posteriors(figure, panels[1], diagnosis, symbols, timing)
    if diagnosis.occupancy is not None and diagnosis.alignment is not None:
        _draw_occupancy(figure, panels[2], diagnosis.occupancy, diagnosis.alignment, timing)
        if len(diagnosis.labels) <= _MAX_NAMED_LABELS:
            _name_states(panels[2], diagnosis.occupancy, symbols, with_blanks=False)
        else:
            _name_words(panels[2], diagnosis.alignment, words)
        panels[2].set_title("alignment of the reference (orange: most probable path)", loc="left", fontsize=9)
        _draw_losses(panels[3], diagnosis, symbols, timing)
    panels[-1].set_xlabel(timing.axis_label)
    panels[-1].set_xlim(timing.edges(diagnosis.num_frames)[[0, -1]])
    return figure


def tokens_to_show(diagnosis: Diagnosis) -> list[int]:
    """All tokens if they are few; else the blank, reference, best path and whatever else comes up."""
    vocab_size = diagnosis.log_probs.shape[1]
    if vocab_size <= _MAX_TOKEN_ROWS and diagnosis.num_frames <= MAX_NODES_FRAMES:
        return list(range(vocab_size))
    needed = [diagnosis.blank, *sorted({*diagnosis.labels, *diagnosis.reading})]
    peaks = np.exp(diagnosis.log_probs).max(axis=0)
    peaks[needed] = 0.0
    others = [token for token in np.argsort(-peaks, kind="stable").tolist() if peaks[token] > _NOTICEABLE]
    return needed + sorted(others[: max(0, _MAX_TOKEN_ROWS - len(needed))])


def _possible(diagnosis: Diagnosis) -> tuple[Occupancy, Alignment]:
    if diagnosis.occupancy is None or diagnosis.alignment is None:
        raise ValueError("the labels cannot be produced by these frames; there is no trellis to draw")
    return diagnosis.occupancy, diagnosis.alignment


def _draw_graph(axes: Any, log_probs: FloatArray, posterior: Occupancy, alignment: Alignment) -> None:
    num_frames, num_states = posterior.gamma.shape
    steps, weights = _step_probabilities(log_probs, posterior)
    widths = 0.3 + 5.0 * weights
    colours = [(0.13, 0.40, 0.67, 0.12 + 0.7 * weight) for weight in weights]
    axes.add_collection(LineCollection(steps, linewidths=widths, colors=colours, zorder=1))
    axes.plot(np.arange(num_frames), alignment.states, color=PATH, linewidth=1.6, zorder=2, label="best path")
    frames, states = np.meshgrid(np.arange(num_frames), np.arange(num_states), indexing="ij")
    possible = posterior.gamma > 0
    nodes = axes.scatter(
        frames[possible],
        states[possible],
        c=posterior.gamma[possible],
        s=420 if num_frames <= _MAX_NUMBERED_FRAMES else 120,
        cmap="Blues",
        vmin=0,
        vmax=1,
        edgecolors=INK,
        linewidths=0.6,
        zorder=3,
    )
    if num_frames <= _MAX_NUMBERED_FRAMES:
        for frame, state in zip(frames[possible], states[possible], strict=True):
            share = posterior.gamma[frame, state]
            axes.text(
                frame,
                state,
                f"{share:.2f}",
                ha="center",
                va="center",
                fontsize=7.5,
                zorder=4,
                color="white" if share > 0.6 else INK,
            )
    axes.set_xlim(-0.6, num_frames - 0.4)
    axes.set_ylim(num_states - 0.4, -0.6)
    axes.set_xticks(range(0, num_frames, 1 if num_frames <= 20 else 5))
    axes.figure.colorbar(nodes, ax=axes, pad=0.02, fraction=0.05, label="probability given the labels")
    axes.legend(loc="lower left", bbox_to_anchor=(0.75, 1.0), frameon=False, borderaxespad=0.2)


def _step_probabilities(
    log_probs: FloatArray, posterior: Occupancy
) -> tuple[list[list[tuple[int, int]]], NDArray[np.float64]]:
    """Every possible step from one frame's state to the next's, and its probability given the labels."""
    lattice = Lattice(posterior.labels, posterior.blank)
    emissions = log_probs[:, lattice.tokens()]
    skips = lattice.skips()
    steps, weights = [], []
    for frame in range(1, len(emissions)):
        for state in range(lattice.num_states):
            for origin in range(max(0, state - 2), state + 1):
                if origin == state - 2 and not skips[state]:
                    continue
                log_weight = (
                    posterior.log_alpha[frame - 1, origin]
                    + emissions[frame, state]
                    + posterior.log_beta[frame, state]
                    - posterior.log_prob
                )
                if log_weight > -np.inf:
                    steps.append([(frame - 1, origin), (frame, state)])
                    weights.append(float(np.exp(log_weight)))
    return steps, np.array(weights)


def _draw_occupancy(
    figure: Figure, axes: Any, posterior: Occupancy, alignment: Alignment, timing: Timing
) -> None:
    num_frames, num_states = posterior.gamma.shape
    image = axes.pcolormesh(
        timing.edges(num_frames),
        np.arange(num_states + 1) - 0.5,
        posterior.gamma.T,
        cmap="Blues",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    axes.plot(timing.centres(num_frames), alignment.states, color=PATH, linewidth=1.0)
    axes.set_ylim(num_states - 0.5, -0.5)
    figure.colorbar(image, ax=axes, pad=0.01, fraction=0.05, label="given the labels")


def _name_states(axes: Any, posterior: Occupancy, symbols: Sequence[str], *, with_blanks: bool) -> None:
    tokens = Lattice(posterior.labels, posterior.blank).tokens().tolist()
    shown = range(len(tokens)) if with_blanks else range(1, len(tokens), 2)
    size = float(np.clip(250 / max(len(shown), 1), 3.5, 9))
    axes.set_yticks(list(shown), [symbols[tokens[state]] for state in shown], fontsize=size)
    axes.tick_params(axis="y", length=0)
    for state, text in zip(shown, axes.get_yticklabels(), strict=True):
        text.set_color(MUTED if state % 2 == 0 else INK)


def _name_words(axes: Any, alignment: Alignment, words: Sequence[WordSpan]) -> None:
    """Names at the states where words begin; of words too close to each other the first."""
    distance = max(1, alignment.states[-1] // _MAX_NAMED_LABELS)
    named: dict[int, str] = {}
    for word in words:
        state = int(alignment.states[word.start_frame])
        if not named or state - max(named) >= distance:
            named[state] = word.text
    axes.set_yticks(list(named), list(named.values()), fontsize=8)
    axes.tick_params(axis="y", length=2, color=MUTED)


def _draw_posteriors(
    figure: Figure, axes: Any, diagnosis: Diagnosis, symbols: Sequence[str], timing: Timing
) -> None:
    rows = tokens_to_show(diagnosis)
    probs = np.exp(np.minimum(diagnosis.log_probs[:, list(rows)], 0.0))
    image = axes.pcolormesh(
        timing.edges(diagnosis.num_frames),
        np.arange(len(rows) + 1) - 0.5,
        probs.T,
        cmap="Blues",
        vmin=0,
        vmax=max(float(probs.max()), 1e-6),
        rasterized=True,
    )
    places = {token: row for row, token in enumerate(rows)}
    best = diagnosis.best_path.path
    drawn = [(frame, places[token]) for frame, token in enumerate(best) if token in places]
    axes.plot(
        [timing.centres(len(best))[frame] for frame, _ in drawn],
        [row for _, row in drawn],
        ".",
        color=PATH,
        markersize=4 if len(best) > MAX_NODES_FRAMES else 7,
    )
    if diagnosis.alignment is not None:
        tokens = Lattice(diagnosis.labels, diagnosis.blank).tokens()[diagnosis.alignment.states]
        wanted = [
            (frame, places[token])
            for frame, (token, heard) in enumerate(zip(tokens.tolist(), best, strict=True))
            if token != heard and token in places
        ]
        axes.plot(
            [timing.centres(len(best))[frame] for frame, _ in wanted],
            [row for _, row in wanted],
            "o",
            color=COST,
            markersize=5 if len(best) > MAX_NODES_FRAMES else 9,
            markerfacecolor="none",
            markeredgewidth=0.9,
        )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [symbols[token] for token in rows], fontsize=8)
    axes.tick_params(axis="y", length=0)
    figure.colorbar(image, ax=axes, pad=0.01, fraction=0.05, label="probability")
    if timing.seconds_per_frame is not None:
        axes.set_title(
            "posteriors (dots: best token of each frame; rings: the reference's token, where it is another)",
            loc="left",
            fontsize=9,
        )


def draw_spectrogram(axes: Any, spectrogram: FloatArray, hop_seconds: float) -> None:
    """``(frames, bins)`` over seconds."""
    num_frames, num_bins = spectrogram.shape
    edges = (np.arange(num_frames + 1) - 0.5) * hop_seconds
    low, high = np.percentile(spectrogram, [2, 99.5])
    axes.pcolormesh(
        edges, np.arange(num_bins + 1), spectrogram.T, cmap="magma", vmin=low, vmax=high, rasterized=True
    )
    axes.set_ylabel("feature bin", fontsize=9)


def _draw_words(axes: Any, words: Sequence[WordSpan], seconds_per_frame: float) -> None:
    for word in words:
        start = (word.start_frame - 0.5) * seconds_per_frame
        end = (word.end_frame - 0.5) * seconds_per_frame
        axes.axvspan(start, end, facecolor="none", edgecolor="white", linewidth=0.9)
        axes.annotate(
            word.text,
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )


def _draw_losses(axes: Any, diagnosis: Diagnosis, symbols: Sequence[str], timing: Timing) -> None:
    posterior, alignment = _possible(diagnosis)
    centres = timing.centres(diagnosis.num_frames)
    axes.bar(centres, posterior.frame_losses, width=timing.seconds_per_frame or 1.0, color=COST)
    axes.set_ylabel("nats", fontsize=9)
    axes.set_title(f"loss of each frame (sum: {posterior.loss:.3f})", loc="left", fontsize=9)
    spans = alignment.token_spans()
    for position in _costliest(diagnosis, spans):
        span = spans[position]
        centre = (span.start_frame + span.end_frame - 1) / 2 * (timing.seconds_per_frame or 1.0)
        axes.annotate(
            symbols[span.token_id],
            (centre, posterior.frame_losses[span.start_frame : span.end_frame].max()),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.set_ylim(top=max(1e-3, float(posterior.frame_losses.max())) * 1.2)


def _costliest(diagnosis: Diagnosis, spans: Sequence[TokenSpan], num_named: int = 8) -> list[int]:
    order = np.argsort(-diagnosis.label_losses, kind="stable")[:num_named]
    noticeable = 0.02 * max(diagnosis.loss, 1e-9)
    return [int(position) for position in order if diagnosis.label_losses[position] > noticeable]
