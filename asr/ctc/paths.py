"""The paths behind CTC: the collapse map B, its inverse, and the probabilities of both.

A *path* names one token per frame, blanks included. B merges adjacent equal tokens and then
drops the blanks; what is left is the *labelling*. The CTC loss of a labelling is ``-ln`` of
the summed probability of every path that B sends to it. Everything here is exact float64
arithmetic on one utterance, made to be looked at; training uses the loss in this package.

Source: Graves, Fernández, Gomez, Schmidhuber, "Connectionist Temporal Classification" (ICML 2006).
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PREFIXES_AT_ONCE = 32
_MAX_GROWN_VALUES = 1_000_000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ScoredPath(NamedTuple):
    """A path, one token per frame, and the natural log of its probability."""

    path: tuple[int, ...]
    log_prob: float


@dataclass(frozen=True, slots=True)
class BestLabelling:
    """The outcome of a search for the most probable labelling.

    ``exact`` is true when no other labelling can have a higher probability; otherwise the
    search stopped early and ``upper_bound_log_prob`` bounds what it may have missed.
    """

    labels: tuple[int, ...]
    log_prob: float
    exact: bool
    upper_bound_log_prob: float


@dataclass(frozen=True, slots=True)
class Lattice:
    """The states that a path for ``labels`` walks through: blank, label, blank, … , blank.

    State ``2 * i + 1`` is label ``i``; even states are the blanks before, between and after.
    """

    labels: tuple[int, ...]
    blank: int

    def __post_init__(self) -> None:
        if self.blank in self.labels:
            position = self.labels.index(self.blank)
            raise ValueError(f"label {position} is the blank ({self.blank}); labels never contain the blank")

    @property
    def num_states(self) -> int:
        return 2 * len(self.labels) + 1

    def tokens(self) -> IntArray:
        """Token of each state, ``(states,)``."""
        tokens = np.full(self.num_states, self.blank, dtype=np.int64)
        tokens[1::2] = self.labels
        return tokens

    def skips(self) -> NDArray[np.bool_]:
        """``(states,)``: may the state be entered from two states before, over the blank?"""
        tokens = self.tokens()
        allowed = np.zeros(self.num_states, dtype=bool)
        # Equal neighbours need the blank between them, or B would merge them.
        allowed[3::2] = tokens[3::2] != tokens[1:-2:2]
        return allowed

    def starts(self) -> tuple[int, ...]:
        return tuple(range(min(2, self.num_states)))

    def ends(self) -> tuple[int, ...]:
        return tuple(range(max(0, self.num_states - 2), self.num_states))

    def frames_to_end(self) -> IntArray:
        """Fewest further frames after each state to reach an end state, ``(states,)``."""
        needed = np.zeros(self.num_states, dtype=np.int64)
        skips = self.skips()
        for state in range(self.num_states - 3, -1, -1):
            over = state + 2
            needed[state] = 1 + min(needed[state + 1], needed[over] if skips[over] else needed[state + 1])
        return needed


def collapse(path: Sequence[int], blank: int) -> tuple[int, ...]:
    """The map B: merge adjacent equal tokens, then drop blanks."""
    return tuple(token for token, _ in itertools.groupby(int(token) for token in path) if token != blank)


def num_repeats(labels: Sequence[int]) -> int:
    """How many labels equal the one before them; each needs a blank of its own in between."""
    return sum(left == right for left, right in itertools.pairwise(labels))


def min_num_frames(labels: Sequence[int]) -> int:
    """The fewest frames that can carry ``labels``: one per label and one per repeat."""
    return len(labels) + num_repeats(labels)


def count_paths(labels: Sequence[int], num_frames: int) -> int:
    """How many paths of ``num_frames`` frames collapse to ``labels``, without listing them.

    A path is ``L`` runs of labels (each at least one frame) among ``L + 1`` runs of blanks (at
    least one frame where a label repeats, else possibly none). Sharing out the frames beyond
    that minimum over the ``2L + 1`` runs gives ``C(frames + L - repeats, 2L)``.
    """
    if num_frames < 0:
        raise ValueError(f"num_frames is {num_frames}; it must not be negative")
    return math.comb(num_frames + len(labels) - num_repeats(labels), 2 * len(labels))


def iter_paths(labels: Sequence[int], num_frames: int, blank: int) -> Iterator[tuple[int, ...]]:
    """The inverse of B: every path of ``num_frames`` frames that collapses to ``labels``.

    Order: at each frame blank first, then the current label again, then the next label.
    """
    lattice = Lattice(tuple(labels), blank)
    tokens = lattice.tokens().tolist()
    skips = lattice.skips()
    needed = lattice.frames_to_end()
    if num_frames == 0:
        if not labels:
            yield ()
        return

    def successors(state: int) -> list[int]:
        again, following, over = state, state + 1, state + 2
        options = [again, following] if state % 2 == 0 else [following, again, over]
        return [
            option for option in options if option < lattice.num_states and (option != over or skips[option])
        ]

    path: list[int] = []
    pending = [(0, state) for state in reversed(lattice.starts())]
    while pending:
        frame, state = pending.pop()
        frames_left = num_frames - frame - 1
        if needed[state] > frames_left:
            continue
        del path[frame:]
        path.append(tokens[state])
        if frames_left == 0:
            yield tuple(path)
        else:
            pending.extend((frame + 1, option) for option in reversed(successors(state)))


def path_log_prob(log_probs: ArrayLike, path: Sequence[int]) -> float:
    """Natural log of the probability of one path: the sum over frames of ``log_probs[t, path[t]]``.

    Args:
        log_probs: ``(frames, vocab)`` natural logs.
        path: one token per frame.
    """
    scores = as_log_probs(log_probs)
    if len(path) != len(scores):
        raise ValueError(f"the path has {len(path)} tokens for {len(scores)} frames; it needs one per frame")
    return float(scores[np.arange(len(scores)), np.asarray(path, dtype=np.int64)].sum())


def enumerate_paths(log_probs: ArrayLike, labels: Sequence[int], blank: int) -> list[ScoredPath]:
    """Every path for ``labels`` with its log-probability, in the order of :func:`iter_paths`.

    Grows like ``count_paths``; for anything large use :func:`best_paths`.
    """
    scores = as_log_probs(log_probs)
    return [ScoredPath(path, path_log_prob(scores, path)) for path in iter_paths(labels, len(scores), blank)]


def sum_paths(paths: Sequence[ScoredPath]) -> float:
    """Natural log of the summed probability of ``paths``; minus infinity for none."""
    return float(np.logaddexp.reduce([scored.log_prob for scored in paths], initial=-np.inf))


def best_path(log_probs: ArrayLike) -> ScoredPath:
    """The most probable path of all: the most probable token of every frame (greedy decoding)."""
    scores = as_log_probs(log_probs)
    path = tuple(scores.argmax(axis=1).tolist())
    return ScoredPath(path, path_log_prob(scores, path))


def best_paths(
    log_probs: ArrayLike, labels: Sequence[int], blank: int, num_paths: int = 1
) -> list[ScoredPath]:
    """The most probable paths for ``labels``, best first, without listing the others.

    Viterbi's recursion keeping ``num_paths`` predecessors per state, so its cost does not grow
    with the number of paths there are. Paths of probability zero are left out.
    """
    scores = as_log_probs(log_probs)
    lattice = Lattice(tuple(labels), blank)
    num_kept = min(num_paths, count_paths(labels, len(scores)))
    if len(scores) == 0 or num_kept < 1:
        return [ScoredPath((), 0.0)] if num_kept == 1 else []
    emissions = scores[:, lattice.tokens()]
    no_skip = ~lattice.skips()
    best = np.full((lattice.num_states, num_kept), -np.inf)
    best[lattice.starts(), 0] = emissions[0, lattice.starts()]
    # Each entry says where it came from: states back (0, 1, 2) times num_kept, plus the rank there.
    origins = np.zeros((len(scores), *best.shape), dtype=np.int64)
    for frame in range(1, len(scores)):
        candidates = np.full((lattice.num_states, 3, num_kept), -np.inf)
        candidates[:, 0] = best
        candidates[1:, 1] = best[:-1]
        candidates[2:, 2] = best[:-2]
        candidates[no_skip, 2] = -np.inf
        flat = candidates.reshape(lattice.num_states, -1)
        origins[frame] = np.argsort(-flat, axis=1, kind="stable")[:, :num_kept]
        best = np.take_along_axis(flat, origins[frame], axis=1) + emissions[frame][:, None]
    finished = sorted(
        (-float(best[state, rank]), state, rank)
        for state in lattice.ends()
        for rank in range(num_kept)
        if best[state, rank] > -np.inf
    )
    tokens = lattice.tokens()
    found = []
    for minus_log_prob, last_state, last_rank in finished[:num_kept]:
        state, rank = last_state, last_rank
        states = [state]
        for frame in range(len(scores) - 1, 0, -1):
            states_back, rank = divmod(int(origins[frame, state, rank]), num_kept)
            state -= states_back
            states.append(state)
        found.append(ScoredPath(tuple(tokens[states[::-1]].tolist()), -minus_log_prob))
    return found


def best_labelling(log_probs: ArrayLike, blank: int, *, max_expansions: int = 50_000) -> BestLabelling:
    """The most probable labelling, summed over its paths; often not the collapsed best path.

    Prefix search (Graves et al. 2006, section 3.2): labellings grow label by label, always
    from the prefix whose continuations share the most probability, until no open prefix can
    beat the best complete labelling. Exact, but exponential for long or flat inputs; after
    ``max_expansions`` prefixes it returns the best so far with ``exact=False``.

    Args:
        log_probs: ``(frames, vocab)`` natural logs. Rows need not sum to one: a constant per
            frame changes every labelling alike.
        blank: index of the blank.
        max_expansions: how many prefixes to grow at most.
    """
    scores = as_log_probs(log_probs)
    row_log_sums = np.logaddexp.reduce(scores, axis=1)
    if np.isneginf(row_log_sums).any():
        frame = int(np.argmax(np.isneginf(row_log_sums)))
        raise ValueError(f"frame {frame} gives every token probability zero; no labelling is possible")
    search = _PrefixSearch(scores - row_log_sums[:, None], blank)
    offset = float(row_log_sums.sum())
    at_once = max(1, min(_PREFIXES_AT_ONCE, _MAX_GROWN_VALUES // max(1, scores.size)))
    expansions = 0
    while search.upper_bound() > search.best_log_prob and expansions < max_expansions:
        expansions += search.expand(min(at_once, max_expansions - expansions))
    exact = search.upper_bound() <= search.best_log_prob
    bound = search.best_log_prob if exact else search.upper_bound()
    return BestLabelling(search.best_labels, search.best_log_prob + offset, exact, bound + offset)


class _Prefix(NamedTuple):
    """Open prefix in the heap; ``ends_in_label``, ``ends_in_blank``: ``(frames + 1,)`` log-probabilities
    that the first ``t`` frames collapse to exactly this prefix."""

    minus_continuation_log_prob: float
    order: int
    labels: tuple[int, ...]
    ends_in_label: FloatArray
    ends_in_blank: FloatArray


class _Grown(NamedTuple):
    """Extensions of some prefixes by each label: ``(frames + 1, prefixes, vocab)`` twice, as in
    :class:`_Prefix`, and ``continuation`` ``(prefixes, vocab)``, log-probability of beginning with them."""

    ends_in_label: FloatArray
    ends_in_blank: FloatArray
    continuation: FloatArray


class _PrefixSearch:
    """Best-first search over labellings for normalised ``log_probs`` ``(frames, vocab)``."""

    def __init__(self, log_probs: FloatArray, blank: int) -> None:
        self._log_probs = log_probs
        self._blank = blank
        self._order = itertools.count()
        num_frames = len(log_probs)
        all_blank = np.concatenate([[0.0], np.cumsum(log_probs[:, blank])])
        nothing = np.full(num_frames + 1, -np.inf)
        self._heap = [_Prefix(-0.0, next(self._order), (), nothing, all_blank)]
        self.best_labels: tuple[int, ...] = ()
        self.best_log_prob = float(all_blank[-1])

    def upper_bound(self) -> float:
        """No labelling outside those already completed has a higher log-probability."""
        return -self._heap[0].minus_continuation_log_prob if self._heap else -np.inf

    def expand(self, max_prefixes: int) -> int:
        """Complete every one-label extension of the most promising prefixes; returns how many were grown."""
        # Several at once, because the arrays of one prefix are too small to be worth a call each.
        prefixes = [heapq.heappop(self._heap)]
        while self._heap and len(prefixes) < max_prefixes and self.upper_bound() > self.best_log_prob:
            prefixes.append(heapq.heappop(self._heap))
        grown = self._grow(prefixes)
        complete = np.logaddexp(grown.ends_in_label[-1], grown.ends_in_blank[-1])
        complete[:, self._blank] = -np.inf
        row, label = np.unravel_index(complete.argmax(), complete.shape)
        if complete[row, label] > self.best_log_prob:
            self.best_log_prob = float(complete[row, label])
            self.best_labels = (*prefixes[row].labels, int(label))
        # Of the continuations' probability, stopping right here is already accounted for.
        with np.errstate(divide="ignore", invalid="ignore"):
            stopping = np.exp(np.minimum(complete - grown.continuation, 0.0))
            beyond = grown.continuation + np.log1p(-stopping)
        for row, label in np.argwhere(beyond > self.best_log_prob).tolist():
            heapq.heappush(
                self._heap,
                _Prefix(
                    -float(beyond[row, label]),
                    next(self._order),
                    (*prefixes[row].labels, label),
                    grown.ends_in_label[:, row, label].copy(),
                    grown.ends_in_blank[:, row, label].copy(),
                ),
            )
        return len(prefixes)

    def _grow(self, prefixes: list[_Prefix]) -> _Grown:
        num_frames, vocab_size = self._log_probs.shape
        rows = np.array([row for row, prefix in enumerate(prefixes) if prefix.labels], dtype=np.int64)
        last_labels = np.array([prefix.labels[-1] for prefix in prefixes if prefix.labels], dtype=np.int64)
        in_label = np.stack([prefix.ends_in_label for prefix in prefixes], axis=1)
        in_blank = np.stack([prefix.ends_in_blank for prefix in prefixes], axis=1)
        in_either = np.logaddexp(in_label, in_blank)
        ends_in_label = np.full((num_frames + 1, len(prefixes), vocab_size), -np.inf)
        ends_in_blank = np.full_like(ends_in_label, -np.inf)
        enters = np.full((num_frames, len(prefixes), vocab_size), -np.inf)
        for frame, row in enumerate(self._log_probs):
            enters[frame] = row + in_either[frame][:, None]
            # The label once more needs a blank in between.
            enters[frame, rows, last_labels] = row[last_labels] + in_blank[frame, rows]
            ends_in_blank[frame + 1] = row[self._blank] + np.logaddexp(
                ends_in_blank[frame], ends_in_label[frame]
            )
            ends_in_label[frame + 1] = np.logaddexp(enters[frame], row + ends_in_label[frame])
        continuation = np.logaddexp.reduce(enters, axis=0)
        continuation[:, self._blank] = -np.inf
        return _Grown(ends_in_label, ends_in_blank, continuation)


def as_log_probs(log_probs: Any) -> FloatArray:
    """``(frames, vocab)`` float64 array from an array, nested list or tensor on any device.

    Raises:
        ValueError: not two-dimensional, or a value is NaN or plus infinity.
    """
    if hasattr(log_probs, "detach"):
        log_probs = log_probs.detach().cpu().double().numpy()
    scores = np.asarray(log_probs, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"log_probs has shape {scores.shape}; it must be (frames, vocab)")
    wrong = np.isnan(scores) | np.isposinf(scores)
    if wrong.any():
        frame, token = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"log_probs[{frame}, {token}] is {scores[frame, token]}; it must be a finite log or -inf"
        )
    return scores
