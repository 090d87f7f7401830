"""Compiled inner loops of the prefix search: prefixes as a tree, their extension, selection.

A prefix is a node of a tree; a frame turns a beam of prefixes into the next one. Each prefix carries
two masses, the probability of all its alignments that end in a blank and of those that end in its last
token (Graves 2012, section 7.5.3; Hannun et al. 2014, arXiv 1408.2873). The masses are kept in the
linear domain in float64 and divided by the largest after every frame, so that a prefix is only lost
to rounding when it is 700 nats behind the best.

An extension can coincide with a prefix of the beam only if the beam holds both a prefix and its child.
So every prefix *pulls* what its parent sends it, and the other extensions are all new: nothing has to
be looked up for them, and nodes are made for the few that survive the frame.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from asr.compiling import compiled_to_disk

_SOURCES = [
    Path(__file__).with_name(f"{module}.py") for module in ("search_kernels", "ngram", "lexicon", "hotwords")
]
"""What the search in :mod:`asr.decode.scored_kernels` is put together from."""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` so that threads run it side by side, and keep the result on disk."""
    return compiled_to_disk(function, _SOURCES, nogil=True)


def compiled_inner(function: Callable[..., Any]) -> Any:
    """:func:`compiled`, for inner functions, which must create no arrays.

    They go without the counting of references to arrays, which costs more than the search itself.
    """
    return compiled_to_disk(function, _SOURCES, nogil=True, forceinline=True, _nrt=False)


ROOT = 0
"""The node of the empty prefix."""

# Columns of the tree, one row a node.
PARENT, TOKEN, FIRST_CHILD, NEXT_SIBLING, SLOT = range(5)
NUM_COLUMNS = 5
NONE = -1

# Rows of a beam, one column a prefix: mass of its alignments that end in a blank, of those that end in
# its last token, their sum, and the factor with which its last token multiplied what its parent sent.
BLANKED, SPOKEN, TOTAL, FACTOR = range(4)

# Columns of the candidates: the prefix they come from (by its column in the beam) and the token that
# they add, or NONE for the prefix itself.
ORIGIN, ADDED = range(2)

SMALLEST = 5e-324
"""The least positive float64: what has no mass at all is never kept."""

LEAST_LOG = float(np.finfo(np.float32).min)
"""The least log-probability that is not that of something impossible."""

_INITIAL_NODES = 1024
_ROOM = 256


@compiled
def new_tree() -> Any:
    """``(nodes, columns)`` int32 with the empty prefix in place."""
    tree = np.empty((_INITIAL_NODES, NUM_COLUMNS), np.int32)
    tree[ROOT] = NONE
    return tree


@compiled
def grown(rows: Any, needed: int) -> Any:
    """A copy of a two-dimensional array with twice the rows and room for ``needed``."""
    larger = np.empty((max(2 * rows.shape[0], needed), rows.shape[1]), rows.dtype)
    larger[: rows.shape[0]] = rows
    return larger


@compiled_inner
def find_child(tree: Any, node: int, token: int) -> int:
    """The child of ``node`` by ``token``, or ``NONE``."""
    child = tree[node, FIRST_CHILD]
    while child != NONE and tree[child, TOKEN] != token:
        child = tree[child, NEXT_SIBLING]
    return child


@compiled_inner
def add_child(tree: Any, num_nodes: int, node: int, token: int) -> int:
    """Write node ``num_nodes`` as the child of ``node`` by ``token``; the tree must have room."""
    child = num_nodes
    tree[child, PARENT] = node
    tree[child, TOKEN] = token
    tree[child, FIRST_CHILD] = NONE
    tree[child, NEXT_SIBLING] = tree[node, FIRST_CHILD]
    tree[child, SLOT] = NONE
    tree[node, FIRST_CHILD] = child
    return child


@compiled
def read_prefix(tree: Any, node: int, tokens: Any) -> int:
    """Write the tokens of a prefix into ``tokens``; returns how many."""
    length = 0
    ancestor = node
    while ancestor != ROOT:
        length += 1
        ancestor = tree[ancestor, PARENT]
    ancestor = node
    for position in range(length - 1, -1, -1):
        tokens[position] = tree[ancestor, TOKEN]
        ancestor = tree[ancestor, PARENT]
    return length


@compiled_inner
def kth_largest(values: Any, count: int, k: int) -> float:
    """The ``k``-th largest (from 1) of the first ``count`` values, which are reordered (quickselect)."""
    low, high, rank = 0, count - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while values[left] > pivot:
                left += 1
            while values[right] < pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return values[rank]


@compiled_inner
def survivors(masses: Any, count: int, limit: int, floor: float, scratch: Any, kept: Any) -> int:
    """Write the indices of the best candidates into ``kept``, in their order; returns how many.

    At most ``limit``, all at least ``floor``; of equal ones at the limit, the first.
    """
    num_eligible = 0
    for index in range(count):
        if masses[index] >= floor:
            scratch[num_eligible] = masses[index]
            num_eligible += 1
    num_ties = count
    if num_eligible > limit:
        floor = kth_largest(scratch, num_eligible, limit)
        num_ties = limit
        for index in range(count):
            if masses[index] > floor:
                num_ties -= 1
    num_kept = 0
    for index in range(count):
        if masses[index] > floor:
            kept[num_kept] = index
            num_kept += 1
        elif masses[index] == floor and num_ties > 0:
            num_ties -= 1
            kept[num_kept] = index
            num_kept += 1
    return num_kept


@compiled_inner
def shortlist(
    row: Any, blank: int, max_tokens: int, token_gap: float, tokens: Any, probs: Any, scratch: Any
) -> int:
    """Choose the tokens of a frame; returns how many, or ``NONE`` if it holds NaN or nothing is possible.

    Args:
        row: ``(vocab,)`` natural logs.
        max_tokens: at most so many of the likeliest, the blank not counted.
        token_gap: no token that is more than so many nats behind the likeliest of all.
        tokens: ``(vocab,)``, receives the chosen ones.
        probs: ``(vocab,)``, receives their probabilities and the blank's, and 0 for the others.
    """
    best = -np.inf
    for token in range(row.shape[0]):
        if not row[token] <= best:
            if math.isnan(row[token]):
                return NONE
            best = row[token]
    if best == -np.inf:
        return NONE
    floor = max(best - token_gap, LEAST_LOG)
    count = 0
    for token in range(row.shape[0]):
        probs[token] = 0.0
        if row[token] >= floor and token != blank:
            tokens[count] = token
            scratch[count] = row[token]
            count += 1
    probs[blank] = math.exp(np.float64(row[blank]))
    if count > max_tokens:
        kth = kth_largest(scratch, count, max_tokens)
        num_ties = max_tokens
        for index in range(count):
            num_ties -= row[tokens[index]] > kth
        num_kept = 0
        for index in range(count):
            token = tokens[index]
            is_tie = row[token] == kth
            if row[token] < kth or (is_tie and num_ties == 0):
                probs[token] = 0.0
                continue
            num_ties -= is_tie
            tokens[num_kept] = token
            num_kept += 1
        count = num_kept
    for index in range(count):
        probs[tokens[index]] = math.exp(np.float64(row[tokens[index]]))
    return count


@compiled
def new_beam(beam_width: int) -> Any:
    """``(rows, beam_width)`` float64 that holds the empty prefix."""
    beam = np.zeros((4, beam_width))
    beam[BLANKED, 0] = beam[TOTAL, 0] = 1.0
    beam[FACTOR] = 1.0
    return beam


@compiled_inner
def pause(beam: Any, size: int) -> None:
    """A frame that can only be blank: all prefixes end in it, and their masses stay as they are to each other."""
    for slot in range(size):
        beam[BLANKED, slot], beam[SPOKEN, slot] = beam[TOTAL, slot], 0.0


@compiled
def new_candidates(beam_width: int) -> Any:
    """Links ``(candidates, 2)``, masses, scratch and kept indices, each ``(candidates,)``."""
    capacity = 2 * beam_width + _ROOM
    links = np.empty((capacity, 2), np.int32)
    return links, np.empty(capacity), np.empty(capacity), np.empty(capacity, np.int32)


@compiled_inner
def stay(
    tree: Any,
    nodes: Any,
    size: int,
    beam: Any,
    after: Any,
    probs: Any,
    blank: int,
    separator: int,
    pulled: Any,
    frame: int,
    links: Any,
    masses: Any,
) -> Any:
    """Make a candidate of every prefix as it is: by a blank, by its last token again, or from its parent.

    Args:
        separator: a token that changes nothing when it is said again, even after a blank; or ``NONE``.
        after: ``(2, beam_width)``, receives the masses ending in a blank and in the last token.
        pulled: ``(beam_width, vocab)``, receives ``frame`` where a prefix and its child are both in the beam.

    Returns:
        the largest and the smallest mass.
    """
    best, smallest = 0.0, np.inf
    for slot in range(size):
        token = tree[nodes[slot], TOKEN]
        after[BLANKED, slot] = beam[TOTAL, slot] * probs[blank]
        after[SPOKEN, slot] = 0.0
        if token != NONE and probs[token] > 0.0:
            mass = beam[TOTAL if token == separator else SPOKEN, slot]
            parent = tree[nodes[slot], PARENT]
            parent_slot = tree[parent, SLOT] if parent != NONE else NONE
            if parent_slot != NONE:
                source = BLANKED if tree[parent, TOKEN] == token else TOTAL
                mass += beam[source, parent_slot] * beam[FACTOR, slot]
                pulled[parent_slot, token] = frame
            after[SPOKEN, slot] = mass * probs[token]
        mass = after[BLANKED, slot] + after[SPOKEN, slot]
        links[slot, ORIGIN], links[slot, ADDED], masses[slot] = slot, NONE, mass
        best, smallest = max(best, mass), min(smallest, mass)
    return best, smallest


@compiled_inner
def compact(
    links: Any, masses: Any, count: int, beam_width: int, floor: float, scratch: Any, kept: Any
) -> int:
    """Keep the ``beam_width`` best candidates and their order; returns how many there are."""
    count = survivors(masses, count, beam_width, floor, scratch, kept)
    for position in range(count):
        links[position, ORIGIN] = links[kept[position], ORIGIN]
        links[position, ADDED] = links[kept[position], ADDED]
        masses[position] = masses[kept[position]]
    return count


@compiled_inner
def smallest_of(values: Any, count: int) -> float:
    smallest = np.inf
    for index in range(count):
        smallest = min(smallest, values[index])
    return smallest


@compiled_inner
def renew(
    tree: Any,
    num_nodes: int,
    nodes: Any,
    size: int,
    beam: Any,
    after: Any,
    links: Any,
    masses: Any,
    count: int,
    best: float,
    next_nodes: Any,
) -> int:
    """Turn ``count`` candidates into the next beam, divided by ``best``; returns the number of nodes."""
    for slot in range(size):
        tree[nodes[slot], SLOT] = NONE
    for position in range(count):
        origin, token = links[position, ORIGIN], links[position, ADDED]
        node = nodes[origin]
        if token == NONE:
            beam[BLANKED, position] = after[BLANKED, origin] / best
            beam[SPOKEN, position] = after[SPOKEN, origin] / best
        else:
            child = find_child(tree, node, token)
            if child == NONE:
                child = add_child(tree, num_nodes, node, token)
                num_nodes += 1
            node = child
            beam[BLANKED, position] = 0.0
            beam[SPOKEN, position] = masses[position] / best
        beam[TOTAL, position] = beam[BLANKED, position] + beam[SPOKEN, position]
        next_nodes[position] = node
        tree[node, SLOT] = position
    return num_nodes


@compiled
def write_best(
    tree: Any,
    nodes: Any,
    totals: Any,
    log_scale: float,
    tokens_out: Any,
    lengths_out: Any,
    scores_out: Any,
) -> int:
    """Write the likeliest prefixes, best first; returns how many. ``totals`` is ``(prefixes,)``."""
    order = np.argsort(-totals, kind="mergesort")
    num_hypotheses = 0
    for slot in order[: scores_out.shape[0]]:
        if totals[slot] == 0.0:
            break
        lengths_out[num_hypotheses] = read_prefix(tree, nodes[slot], tokens_out[num_hypotheses])
        scores_out[num_hypotheses] = math.log(totals[slot]) + log_scale
        num_hypotheses += 1
    return num_hypotheses


@compiled_inner
def highest_of(probs: Any, tokens: Any, num_tokens: int) -> float:
    """The highest probability of the first tokens."""
    highest = 0.0
    for index in range(num_tokens):
        highest = max(highest, probs[tokens[index]])
    return highest


@compiled_inner
def extend(
    tree: Any,
    nodes: Any,
    size: int,
    beam: Any,
    tokens: Any,
    num_tokens: int,
    probs: Any,
    pulled: Any,
    frame: int,
    best: float,
    keep: float,
    floor: float,
    candidates: Any,
) -> Any:
    """Add every extension with a mass of at least ``floor`` to the candidates, after the prefixes.

    Returns:
        the number of candidates and the largest mass among them.
    """
    links, masses, scratch, kept = candidates
    count, highest = size, highest_of(probs, tokens, num_tokens)
    for slot in range(size):
        if beam[TOTAL, slot] * highest < floor:
            continue
        last = tree[nodes[slot], TOKEN]
        for index in range(num_tokens):
            token = tokens[index]
            mass = beam[BLANKED if token == last else TOTAL, slot] * probs[token]
            if mass < floor or pulled[slot, token] == frame:
                continue
            if count == len(masses):
                count = compact(links, masses, count, len(pulled), floor, scratch, kept)
                floor = max(floor, smallest_of(masses, count))
            links[count, ORIGIN], links[count, ADDED], masses[count] = slot, token, mass
            count += 1
            if mass > best:
                best = mass
                floor = max(floor, best * keep)
    return count, best
