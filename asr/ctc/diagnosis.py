"""What is going on in one utterance's CTC loss, in numbers and in plain words.

The questions are those that people get wrong most often: is the input normalised, do the labels
fit into the frames, does the model say anything but blank, and where does the loss come from?
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from asr.ctc.align import Alignment, AlignmentError, Occupancy, TokenSpan, forced_align, occupancy
from asr.ctc.contract import ROW_TOLERANCE
from asr.ctc.paths import (
    FloatArray,
    ScoredPath,
    as_log_probs,
    best_path,
    collapse,
    count_paths,
    min_num_frames,
    num_repeats,
)

Severity = Literal["ok", "note", "warning", "problem"]
Spell = Callable[[Sequence[int]], str]
"""Token ids → the text to show for them."""

TIGHT_FRAMES_PER_NEEDED = 1.25
"""Below this many frames per frame needed there is little freedom to place labels."""
LONG_BLANK_SHARE = 0.98
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation. ``topic`` is a few words; ``message`` says what was found and what it means."""

    severity: Severity
    topic: str
    message: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything known about one utterance.

    - ``log_probs``: ``(frames, vocab)``, as given
    - ``row_sums``: ``(frames,)``, sum of the probabilities of each frame; ones when normalised
    - ``best_path``, ``reading``: the most probable path of all and the labels it collapses to
    - ``occupancy``, ``alignment``: None when the labels cannot be produced (a finding says why)
    - ``label_losses``: ``(labels,)``, the frame losses, each counted for the label nearest in time
    """

    log_probs: FloatArray
    labels: tuple[int, ...]
    blank: int
    row_sums: FloatArray
    best_path: ScoredPath
    reading: tuple[int, ...]
    occupancy: Occupancy | None
    alignment: Alignment | None
    label_losses: FloatArray
    findings: tuple[Finding, ...]

    @property
    def loss(self) -> float:
        """CTC loss in nats; infinite when the labels cannot be produced."""
        return math.inf if self.occupancy is None else self.occupancy.loss

    @property
    def num_frames(self) -> int:
        return len(self.log_probs)

    @property
    def blank_share(self) -> float:
        """Share of frames in which the blank is the most probable token."""
        return float(np.mean([token == self.blank for token in self.best_path.path]))


def diagnose(
    log_probs: ArrayLike,
    labels: Sequence[int],
    *,
    blank: int,
    spell: Spell | None = None,
    symbols: Sequence[str] | None = None,
) -> Diagnosis:
    """Examine one utterance against its reference.

    Args:
        log_probs: ``(frames, vocab)`` natural logs, at least one frame; rows that are not
            normalised are examined as they are, and reported.
        labels: reference token ids without blanks.
        blank: index of the blank.
        spell: how to show a labelling in the messages; its symbols between spaces by default.
        symbols: how to show each token; its number by default.
    """
    scores = as_log_probs(log_probs)
    if len(scores) == 0:
        raise ValueError("log_probs has no frames; there is nothing to examine")
    labels = tuple(int(label) for label in labels)
    names = symbols if symbols is not None else [str(token) for token in range(scores.shape[1])]
    spell = spell or (lambda token_ids: " ".join(names[token] for token in token_ids))
    with np.errstate(over="ignore"):
        row_sums = np.exp(np.logaddexp.reduce(scores, axis=1))
    greedy = best_path(scores)
    reading = collapse(greedy.path, blank)
    posterior: Occupancy | None = None
    alignment: Alignment | None = None
    impossible: str | None = None
    try:
        posterior = occupancy(scores, labels, blank=blank)
        alignment = forced_align(scores, labels, blank=blank)
    except AlignmentError as error:
        impossible = str(error)
    label_losses = np.zeros(len(labels))
    if posterior is not None and alignment is not None:
        label_losses = losses_by_label(posterior.frame_losses, alignment.token_spans())
    diagnosis = Diagnosis(
        scores, labels, blank, row_sums, greedy, reading, posterior, alignment, label_losses, ()
    )
    findings = [
        _normalisation(diagnosis),
        _lengths(diagnosis, impossible),
        _blanks(diagnosis),
        _reading(diagnosis, spell),
    ]
    if posterior is not None:
        findings += [
            _loss(diagnosis, posterior),
            _sources(diagnosis, posterior, names),
            _certainty(posterior),
        ]
    return dataclasses.replace(diagnosis, findings=tuple(findings))


def losses_by_label(frame_losses: FloatArray, spans: Sequence[TokenSpan]) -> FloatArray:
    """``(labels,)``: each frame's loss counted for the label nearest in time (of two, the later)."""
    losses = np.zeros(len(spans))
    if spans:
        frames = np.arange(len(frame_losses))
        starts = np.array([span.start_frame for span in spans])
        lasts = np.array([span.end_frame - 1 for span in spans])
        distances = np.maximum(starts - frames[:, None], frames[:, None] - lasts).clip(min=0)
        nearest = len(spans) - 1 - distances[:, ::-1].argmin(axis=1)
        np.add.at(losses, nearest, frame_losses)
    return losses


def uniform_loss(labels: Sequence[int], num_frames: int, vocab_size: int) -> float:
    """Loss of a model that gives every token the same probability in every frame."""
    paths = count_paths(labels, num_frames)
    return num_frames * math.log(vocab_size) - math.log(paths) if paths else math.inf


def format_count(count: int, noun: str) -> str:
    """``1 path``, ``28 paths``, ``about 10^31.2 paths``; the number of paths outgrows a float."""
    if count >= 10**6:
        return f"about 10^{math.log10(count):.1f} {noun}s"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _normalisation(diagnosis: Diagnosis) -> Finding:
    topic, sums = "normalisation", diagnosis.row_sums
    if (np.abs(sums - 1) <= ROW_TOLERANCE).all():
        return Finding("ok", topic, "every frame's probabilities sum to one")
    message = (
        f"the frames' probabilities sum to {sums.min():.4g} … {sums.max():.4g} instead of one, so this "
        "loss is not minus the log of a probability and must not be compared with another"
    )
    if diagnosis.occupancy is not None and (sums > 0).all():
        # The same shift for every path: the loss after log_softmax follows without a second run.
        proper = diagnosis.loss + float(np.log(sums).sum())
        if math.isfinite(proper):
            message += f"; after a log_softmax it is {proper:.4f} instead of {diagnosis.loss:.4f}"
    return Finding("problem", topic, message)


def _lengths(diagnosis: Diagnosis, impossible: str | None) -> Finding:
    topic, labels, num_frames = "lengths", diagnosis.labels, diagnosis.num_frames
    if impossible is not None:
        return Finding("problem", topic, f"the loss is infinite: {impossible}")
    needed = min_num_frames(labels)
    facts = (
        f"{format_count(len(labels), 'label')} and {format_count(num_repeats(labels), 'adjacent repeat')} "
        f"need {format_count(needed, 'frame')}; there are {num_frames}, which leaves "
        f"{format_count(count_paths(labels, num_frames), 'path')}"
    )
    if needed and num_frames < TIGHT_FRAMES_PER_NEEDED * needed:
        return Finding("warning", topic, f"{facts}: tight; less subsampling or larger tokens would give room")
    return Finding("ok", topic, facts)


def _blanks(diagnosis: Diagnosis) -> Finding:
    topic, share = "blanks", diagnosis.blank_share
    mean = float(np.exp(diagnosis.log_probs[:, diagnosis.blank]).mean())
    facts = f"the blank is the most probable token in {share:.0%} of the frames (mean probability {mean:.3f})"
    if not diagnosis.labels:
        return Finding("ok" if share == 1.0 else "note", topic, facts)
    if share == 1.0:
        message = (
            f"{facts}: the model reads nothing. All-blank is where CTC training first settles; "
            "train on, and if it stays look at the learning rate and at the lengths"
        )
        return Finding("problem", topic, message)
    if share > LONG_BLANK_SHARE:
        return Finding("warning", topic, f"{facts}: labels have hardly any room")
    return Finding("ok", topic, facts)


def _reading(diagnosis: Diagnosis, spell: Spell) -> Finding:
    topic, reading, labels = "reading", diagnosis.reading, diagnosis.labels
    if reading == labels:
        return Finding("ok", topic, f"the best path reads the reference, {spell(labels)!r}")
    message = f"the best path reads {spell(reading)!r}, the reference is {spell(labels)!r}"
    if _without_repeats(reading) == _without_repeats(labels) and len(reading) > len(labels):
        message += (
            f": the right labels in the right order, but blanks inside them split {len(labels)} labels "
            f"into {len(reading)}. A blank between two equal labels means that the label was said twice"
        )
    return Finding("note", topic, message)


def _loss(diagnosis: Diagnosis, posterior: Occupancy) -> Finding:
    topic, loss = "loss", posterior.loss
    per_label = f"{loss / len(diagnosis.labels):.4f} per label, " if diagnosis.labels else ""
    message = f"{loss:.4f} nats: {per_label}{loss / diagnosis.num_frames:.4f} per frame"
    if loss < 0:
        return Finding("problem", topic, f"{message}; a true CTC loss is never negative")
    uniform = uniform_loss(diagnosis.labels, diagnosis.num_frames, diagnosis.log_probs.shape[1])
    message += f"; knowing nothing (all tokens equally likely) would cost {uniform:.4f}"
    if loss > uniform:
        return Finding("warning", topic, f"{message}, which is less: the model misleads here")
    return Finding("ok", topic, message)


def _sources(diagnosis: Diagnosis, posterior: Occupancy, names: Sequence[str]) -> Finding:
    topic, losses = "sources of loss", posterior.frame_losses
    total = float(losses.sum())
    if total <= 1e-3:
        return Finding("note", topic, "there is no loss to speak of")
    if (losses < -1e-6).any():
        return Finding("note", topic, "frames that are not normalised have no share of their own in the loss")
    order = np.argsort(-losses, kind="stable")
    num_half = int(np.searchsorted(losses[order].cumsum(), total / 2)) + 1
    named = ", ".join(str(frame) for frame in sorted(order[: min(num_half, _NUM_NAMED)].tolist()))
    frames = format_count(diagnosis.num_frames, "frame")
    message = f"half of it from {num_half} of {frames} (the costliest: {named})"
    if len(diagnosis.labels) > 1:
        costliest = np.argsort(-diagnosis.label_losses, kind="stable")[:_NUM_NAMED]
        shares = ", ".join(
            f"{names[diagnosis.labels[i]]!r} (label {i}) {diagnosis.label_losses[i] / total:.0%}"
            for i in costliest.tolist()
        )
        message += f"; by label: {shares}"
    return Finding("note", topic, message)


def _certainty(posterior: Occupancy) -> Finding:
    entropy = posterior.path_entropy
    message = (
        f"as uncertain as if {math.exp(min(entropy, 700)):.4g} paths were equally likely "
        f"(entropy {entropy:.2f} nats)"
    )
    return Finding("note", "timing", message)


def _without_repeats(labels: Sequence[int]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(labels))
