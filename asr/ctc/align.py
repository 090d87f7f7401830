"""Where in time the labels are: forced alignment, posterior occupancy, token and word spans.

*Forced alignment* finds the most probable path for given labels (Viterbi). *Occupancy* weighs
every path by its probability (forward–backward) and says how likely each label is to be under
way in each frame; it is also what the gradient of the CTC loss is made of. Both run in float64
on the CPU, whatever the input.

Source: Graves, Fernández, Gomez, Schmidhuber, "Connectionist Temporal Classification" (ICML 2006),
sections 4.1 and 4.2; spans and their scores follow ``torchaudio.functional.merge_tokens``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asr.ctc.paths import FloatArray, IntArray, Lattice, as_log_probs, min_num_frames
from asr.errors import AsrError

_SENTENCEPIECE_SPACE = "▁"


class AlignmentError(AsrError):
    """Labels that no path of the given frames can produce."""


@dataclass(frozen=True, slots=True)
class Infeasible:
    """An utterance of a batch that cannot be aligned, and why."""

    index: int
    num_frames: int
    num_frames_needed: int
    reason: str


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One label in time.

    ``position`` counts within the labels; ``start_frame`` to ``end_frame`` (exclusive) are the
    frames that carry the label; ``score`` is the mean of its probability over them, in [0, 1].
    """

    token_id: int
    position: int
    start_frame: int
    end_frame: int
    score: float

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.start_frame


@dataclass(frozen=True, slots=True)
class WordSpan:
    """One word in time: from the first frame of its first token to the last of its last.

    ``score`` is the mean probability over the frames that carry its tokens, in [0, 1]. ``text``
    is empty when no vocabulary was given.
    """

    text: str
    tokens: tuple[TokenSpan, ...]
    score: float

    @property
    def start_frame(self) -> int:
        return self.tokens[0].start_frame

    @property
    def end_frame(self) -> int:
        return self.tokens[-1].end_frame


@dataclass(frozen=True, slots=True)
class Alignment:
    """The most probable path for ``labels``.

    - ``states``: ``(frames,)`` int64, state of the lattice; ``2 * i + 1`` is label ``i``
    - ``path``: ``(frames,)`` int64, token of each frame
    - ``frame_log_probs``: ``(frames,)`` float64, natural log of that token's probability
    """

    labels: tuple[int, ...]
    blank: int
    states: IntArray
    path: IntArray
    frame_log_probs: FloatArray

    @property
    def log_prob(self) -> float:
        """Natural log of the path's probability."""
        return float(self.frame_log_probs.sum())

    def token_spans(self) -> list[TokenSpan]:
        """One span per label, in order."""
        spans = []
        for position, token in enumerate(self.labels):
            frames = np.flatnonzero(self.states == 2 * position + 1)
            score = float(np.exp(self.frame_log_probs[frames]).mean())
            spans.append(TokenSpan(token, position, int(frames[0]), int(frames[-1]) + 1, score))
        return spans


@dataclass(frozen=True, slots=True)
class Occupancy:
    """All paths for ``labels`` at once, each weighted by its probability.

    States alternate blank, label, blank, …, blank: state ``2 * i + 1`` is label ``i``.

    - ``log_alpha``: ``(frames, states)``, log-probability of the frames up to ``t``, ending in the state
    - ``log_beta``: ``(frames, states)``, log-probability of the frames after ``t``, starting from it
    - ``gamma``: ``(frames, states)``, probability of the state given the labels; rows sum to one
    - ``frame_losses``: ``(frames,)``, how much each frame adds to the loss; they sum to it exactly
    - ``path_entropy``: entropy (nats) of the choice of path given the labels; its ``exp`` is the
      number of equally likely paths that would be as uncertain
    """

    labels: tuple[int, ...]
    blank: int
    log_alpha: FloatArray
    log_beta: FloatArray
    gamma: FloatArray
    log_prob: float
    frame_losses: FloatArray
    path_entropy: float

    @property
    def loss(self) -> float:
        """CTC loss in nats: minus the log of the summed probability of every path."""
        return -self.log_prob

    def by_label(self) -> FloatArray:
        """``(frames, labels)``: probability that label ``i`` is under way in the frame."""
        return self.gamma[:, 1::2]

    def by_token(self, vocab_size: int) -> FloatArray:
        """``(frames, vocab)``: probability, given the labels, of each token in each frame.

        With ``p = softmax(logits)``, the loss has gradient ``p - by_token`` for the logits,
        ``-by_token`` for free log-probabilities and ``-by_token / p`` for free probabilities.
        """
        occupancy = np.zeros((vocab_size, len(self.gamma)))
        np.add.at(occupancy, Lattice(self.labels, self.blank).tokens(), self.gamma.T)
        return occupancy.T


def forced_align(log_probs: ArrayLike, labels: Sequence[int], *, blank: int) -> Alignment:
    """The most probable path of one utterance that collapses to ``labels``.

    Args:
        log_probs: ``(frames, vocab)`` natural logs; array or tensor.
        labels: token ids without blanks.
        blank: index of the blank.

    Raises:
        AlignmentError: too few frames, or every path has probability zero.
        ValueError: shapes or indices that make no sense.
    """
    scores = as_log_probs(log_probs)
    labels = tuple(int(label) for label in labels)
    [result] = forced_align_batch(
        scores[None], np.array([labels], dtype=np.int64), [len(scores)], [len(labels)], blank=blank
    )
    if isinstance(result, Infeasible):
        raise AlignmentError(result.reason)
    return result


def forced_align_batch(
    log_probs: Any,
    targets: Any,
    log_prob_lengths: Any,
    target_lengths: Any,
    *,
    blank: int,
) -> list[Alignment | Infeasible]:
    """:func:`forced_align` for a padded batch; utterances that cannot be aligned are named, not raised.

    Args:
        log_probs: ``(batch, frames, vocab)`` natural logs; array or tensor.
        targets: ``(batch, tokens)`` token ids, padded with anything.
        log_prob_lengths: ``(batch,)`` frames of each utterance.
        target_lengths: ``(batch,)`` labels of each utterance.
        blank: index of the blank.
    """
    scores = _to_numpy(log_probs, np.float64)
    padded = _to_numpy(targets, np.int64)
    frame_counts = _to_numpy(log_prob_lengths, np.int64)
    if scores.ndim != 3 or padded.ndim != 2:
        raise ValueError(
            f"log_probs has shape {scores.shape} and targets {padded.shape}; "
            "they must be (batch, frames, vocab) and (batch, tokens)"
        )
    label_counts = _to_numpy(target_lengths, np.int64)
    if not len(scores) == len(padded) == len(frame_counts) == len(label_counts):
        raise ValueError("log_probs, targets and their lengths disagree about the batch size")
    results: list[Alignment | Infeasible] = []
    for index in range(len(scores)):
        num_frames, num_labels = int(frame_counts[index]), int(label_counts[index])
        if not (0 <= num_frames <= scores.shape[1] and 0 <= num_labels <= padded.shape[1]):
            raise ValueError(
                f"utterance {index}: {num_frames} frames and {num_labels} labels do not fit the padded "
                f"{scores.shape[1]} frames and {padded.shape[1]} labels"
            )
        labels = tuple(padded[index, :num_labels].tolist())
        results.append(_viterbi(as_log_probs(scores[index, :num_frames]), labels, blank, index))
    return results


def occupancy(log_probs: ArrayLike, labels: Sequence[int], *, blank: int) -> Occupancy:
    """Forward–backward over every path of one utterance that collapses to ``labels``.

    The loss of each frame in the result is the divergence (Kullback–Leibler, in nats) of the
    next step that the labels call for from the next step that the model expects. It is never
    negative for normalised ``log_probs``, and the frames sum to the CTC loss exactly.

    Args:
        log_probs: ``(frames, vocab)`` natural logs; array or tensor.
        labels: token ids without blanks.
        blank: index of the blank.

    Raises:
        AlignmentError: too few frames, or every path has probability zero.
        ValueError: shapes or indices that make no sense.
    """
    scores = as_log_probs(log_probs)
    lattice = _lattice(labels, blank, scores.shape[1])
    reason = _infeasible_reason(lattice.labels, len(scores))
    if reason is not None:
        raise AlignmentError(reason)
    emissions = scores[:, lattice.tokens()]
    skips = lattice.skips()
    log_alpha = _forward(emissions, skips)
    log_beta = _backward(emissions, skips)
    ends = list(lattice.ends())
    log_prob = float(np.logaddexp.reduce(log_alpha[-1, ends])) if len(scores) else 0.0
    if log_prob == -np.inf:
        raise AlignmentError(_zero_probability_reason(scores, lattice))
    gamma = np.exp(log_alpha + log_beta - log_prob)
    gamma /= gamma.sum(axis=1, keepdims=True)
    frame_losses = np.diff(_expectation(gamma, log_beta), prepend=log_prob)
    path_entropy = float(-_expectation(gamma, emissions).sum() + log_prob)
    return Occupancy(
        lattice.labels, blank, log_alpha, log_beta, gamma, log_prob, frame_losses, max(0.0, path_entropy)
    )


def word_spans(
    spans: Sequence[TokenSpan],
    *,
    vocabulary: Sequence[str] | None = None,
    boundary_id: int | None = None,
) -> list[WordSpan]:
    """Group token spans into words.

    Words are separated by tokens that are white space, ``|`` or ``boundary_id``, which belong to
    no word, and begin at pieces that start with a space (or sentencepiece's ``▁`` for it).

    Args:
        spans: from :meth:`Alignment.token_spans`.
        vocabulary: text of every token id; without it words have no text.
        boundary_id: token between words.
    """
    if vocabulary is None and boundary_id is None:
        raise ValueError("give vocabulary or boundary_id; without either nothing tells where words end")
    pieces = (
        None if vocabulary is None else [piece.replace(_SENTENCEPIECE_SPACE, " ") for piece in vocabulary]
    )
    words: list[list[TokenSpan]] = [[]]
    for span in spans:
        piece = "" if pieces is None else pieces[span.token_id]
        if span.token_id == boundary_id or piece == "|" or piece.isspace():
            words.append([])
            continue
        if piece.startswith(" "):
            words.append([])
        words[-1].append(span)
    return [_word_span(tuple(tokens), pieces) for tokens in words if tokens]


def _word_span(tokens: tuple[TokenSpan, ...], pieces: Sequence[str] | None) -> WordSpan:
    text = "" if pieces is None else "".join(pieces[token.token_id] for token in tokens).strip()
    num_frames = sum(token.num_frames for token in tokens)
    score = sum(token.score * token.num_frames for token in tokens) / num_frames
    return WordSpan(text, tokens, score)


def _viterbi(scores: FloatArray, labels: Sequence[int], blank: int, index: int) -> Alignment | Infeasible:
    lattice = _lattice(labels, blank, scores.shape[1])
    num_frames = len(scores)

    def infeasible(reason: str) -> Infeasible:
        return Infeasible(index, num_frames, min_num_frames(lattice.labels), reason)

    reason = _infeasible_reason(lattice.labels, num_frames)
    if reason is not None:
        return infeasible(reason)
    tokens = lattice.tokens()
    states = np.zeros(num_frames, dtype=np.int64)
    if num_frames:
        emissions = scores[:, tokens]
        no_skip = ~lattice.skips()
        best = np.full(lattice.num_states, -np.inf)
        best[: len(lattice.starts())] = emissions[0, : len(lattice.starts())]
        steps = np.zeros(emissions.shape, dtype=np.int8)
        candidates = np.full((3, lattice.num_states), -np.inf)
        for frame in range(1, num_frames):
            candidates[0] = best
            candidates[1, 1:] = best[:-1]
            candidates[2, 2:] = best[:-2]
            candidates[2, no_skip] = -np.inf
            steps[frame] = candidates.argmax(axis=0)
            best = candidates.max(axis=0) + emissions[frame]
        states[-1] = max(lattice.ends(), key=lambda state: best[state])
        if best[states[-1]] == -np.inf:
            return infeasible(_zero_probability_reason(scores, lattice))
        for frame in range(num_frames - 1, 0, -1):
            states[frame - 1] = states[frame] - steps[frame, states[frame]]
    path = tokens[states]
    return Alignment(lattice.labels, blank, states, path, scores[np.arange(num_frames), path])


def _forward(emissions: FloatArray, skips: NDArray[np.bool_]) -> FloatArray:
    """Log-probability of reaching each state in each frame, ``(frames, states)``."""
    log_alpha = np.full(emissions.shape, -np.inf)
    log_alpha[:1, :2] = emissions[:1, :2]
    for frame in range(1, len(emissions)):
        before = log_alpha[frame - 1]
        total = before.copy()
        total[1:] = np.logaddexp(total[1:], before[:-1])
        total[2:] = np.where(skips[2:], np.logaddexp(total[2:], before[:-2]), total[2:])
        log_alpha[frame] = total + emissions[frame]
    return log_alpha


def _backward(emissions: FloatArray, skips: NDArray[np.bool_]) -> FloatArray:
    """Log-probability of finishing from each state after each frame, ``(frames, states)``."""
    log_beta = np.full(emissions.shape, -np.inf)
    log_beta[-1:, -2:] = 0.0
    for frame in range(len(emissions) - 2, -1, -1):
        after = log_beta[frame + 1] + emissions[frame + 1]
        total = after.copy()
        total[:-1] = np.logaddexp(total[:-1], after[1:])
        total[:-2] = np.where(skips[2:], np.logaddexp(total[:-2], after[2:]), total[:-2])
        log_beta[frame] = total
    return log_beta


def _expectation(gamma: FloatArray, values: FloatArray) -> FloatArray:
    """``(frames,)`` mean of ``values`` under ``gamma``; a state of probability zero counts nothing."""
    return (gamma * np.where(gamma > 0, values, 0.0)).sum(axis=1)


def _lattice(labels: Sequence[int], blank: int, vocab_size: int) -> Lattice:
    labels = tuple(int(label) for label in labels)
    for token in (*labels, blank):
        if not 0 <= token < vocab_size:
            what = "the blank" if token == blank else "a label"
            raise ValueError(f"{what} is {token}, outside the vocabulary of {vocab_size} tokens")
    return Lattice(labels, blank)


def _infeasible_reason(labels: Sequence[int], num_frames: int) -> str | None:
    needed = min_num_frames(labels)
    if num_frames >= needed:
        return None
    repeats = needed - len(labels)
    return (
        f"{len(labels)} labels with {repeats} adjacent repeats need at least {needed} frames, "
        f"but there are {num_frames}; give longer audio, less subsampling or larger tokens"
    )


def _zero_probability_reason(scores: FloatArray, lattice: Lattice) -> str:
    forbidden = np.isneginf(scores[:, np.unique(lattice.tokens())]).any(axis=1)
    return (
        f"every path has probability zero: {int(forbidden.sum())} of {len(scores)} frames (first: frame "
        f"{int(forbidden.argmax())}) give a needed token a log-probability of -inf"
    )


def _to_numpy(values: Any, dtype: Any) -> Any:
    if hasattr(values, "detach"):
        values = (
            values.detach().cpu().numpy()
            if not values.is_floating_point()
            else values.detach().cpu().double().numpy()
        )
    return np.asarray(values, dtype=dtype)
