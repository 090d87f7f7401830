"""Compiled inner loops of the search: prefixes as a tree, selection, prefix search, best alignment.

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
from typing import Any

import numpy as np
from numba import njit

ROOT = 0
"""The node of the empty prefix."""

# Columns of the tree, one row a node.
PARENT, TOKEN, FIRST_CHILD, NEXT_SIBLING, SLOT = range(5)
NUM_COLUMNS = 5
NONE = -1

SMALLEST = 5e-324
"""The least positive float64: what has no mass at all is never kept."""

_INITIAL_NODES = 1024


@njit(cache=True, nogil=True)
def new_tree() -> Any:
    """``(nodes, columns)`` int32 with the empty prefix in place."""
    tree = np.full((_INITIAL_NODES, NUM_COLUMNS), NONE, np.int32)
    return tree


@njit(cache=True, nogil=True)
def grown(rows: Any) -> Any:
    """A copy of a two-dimensional array with twice the rows."""
    larger = np.empty((2 * rows.shape[0], rows.shape[1]), rows.dtype)
    larger[: rows.shape[0]] = rows
    return larger


@njit(cache=True, nogil=True)
def find_child(tree: Any, node: int, token: int) -> int:
    """The child of ``node`` by ``token``, or ``NONE``."""
    child = tree[node, FIRST_CHILD]
    while child != NONE and tree[child, TOKEN] != token:
        child = tree[child, NEXT_SIBLING]
    return child


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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
        if math.isnan(row[token]):
            return NONE
        best = max(best, row[token])
    if best == -np.inf:
        return NONE
    floor = best - token_gap
    count = 0
    for token in range(row.shape[0]):
        if token == blank:
            probs[token] = math.exp(np.float64(row[token]))
        elif row[token] >= floor and row[token] > -np.inf:
            tokens[count] = token
            scratch[count] = row[token]
            count += 1
        else:
            probs[token] = 0.0
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


@njit(cache=True, nogil=True)
def prefix_search(  # noqa: PLR0912, PLR0915
    log_probs: Any,
    blank: int,
    beam_width: int,
    max_tokens: int,
    token_gap: float,
    score_gap: float,
    tokens_out: Any,
    lengths_out: Any,
    scores_out: Any,
) -> int:
    """Prefix beam search without a language model; returns the number of hypotheses.

    Args:
        log_probs: ``(frames, vocab)`` natural logs.
        beam_width: at most so many prefixes survive a frame.
        max_tokens, token_gap: see :func:`shortlist`.
        score_gap: a prefix more than so many nats behind the best does not survive.
        tokens_out: ``(hypotheses, frames)`` int32, receives the labellings, best first.
        lengths_out: ``(hypotheses,)``, receives their lengths.
        scores_out: ``(hypotheses,)``, receives the natural logs of their probabilities.

    Returns:
        the number of hypotheses, or ``-1 - frame`` for the first frame that :func:`shortlist` refuses.
    """
    num_frames, vocab_size = log_probs.shape
    keep = math.exp(-score_gap)
    tree = new_tree()
    num_nodes = 1
    # The beam: node, mass of alignments ending in a blank, in the last token, and their sum.
    nodes = np.zeros(beam_width, np.int32)
    next_nodes = np.zeros(beam_width, np.int32)
    blanked, spoken, total = np.zeros(beam_width), np.zeros(beam_width), np.zeros(beam_width)
    next_blanked, next_spoken = np.zeros(beam_width), np.zeros(beam_width)
    size = 1
    blanked[0] = total[0] = 1.0
    tree[ROOT, SLOT] = 0
    # Candidates: where from, by which token (NONE: the prefix itself), which mass.
    capacity = 2 * beam_width + 256
    origins, added = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    masses, scratch = np.empty(capacity), np.empty(capacity)
    kept = np.empty(capacity, np.int32)
    pulled = np.full((beam_width, vocab_size), NONE, np.int32)
    tokens, probs, logs = np.empty(vocab_size, np.int32), np.zeros(vocab_size), np.empty(vocab_size)
    log_scale = 0.0

    for frame in range(num_frames):
        num_tokens = shortlist(log_probs[frame], blank, max_tokens, token_gap, tokens, probs, logs)
        if num_tokens == NONE:
            return -1 - frame
        largest_prob = 0.0
        for index in range(num_tokens):
            largest_prob = max(largest_prob, probs[tokens[index]])

        best, smallest = 0.0, np.inf
        for slot in range(size):
            node = nodes[slot]
            next_blanked[slot] = total[slot] * probs[blank]
            mass = 0.0
            token = tree[node, TOKEN]
            if token != NONE and probs[token] > 0.0:
                mass = spoken[slot]
                parent = tree[node, PARENT]
                parent_slot = tree[parent, SLOT]
                if parent_slot != NONE:
                    mass += blanked[parent_slot] if tree[parent, TOKEN] == token else total[parent_slot]
                    pulled[parent_slot, token] = frame
                mass *= probs[token]
            next_spoken[slot] = mass
            mass += next_blanked[slot]
            origins[slot], added[slot], masses[slot] = slot, NONE, mass
            best, smallest = max(best, mass), min(smallest, mass)
        count = size
        # With a full beam, an extension must at least beat one of the prefixes that stay.
        floor = max(best * keep, SMALLEST)
        if size == beam_width:
            floor = max(floor, smallest)

        for slot in range(size):
            if total[slot] * largest_prob < floor:
                continue
            last = tree[nodes[slot], TOKEN]
            for index in range(num_tokens):
                token = tokens[index]
                mass = (blanked[slot] if token == last else total[slot]) * probs[token]
                if mass < floor or pulled[slot, token] == frame:
                    continue
                if count == capacity:
                    count = survivors(masses, count, beam_width, floor, scratch, kept)
                    for position in range(count):
                        origins[position] = origins[kept[position]]
                        added[position] = added[kept[position]]
                        masses[position] = masses[kept[position]]
                        scratch[position] = masses[position]
                    floor = max(floor, kth_largest(scratch, count, count))
                origins[count], added[count], masses[count] = slot, token, mass
                count += 1
                if mass > best:
                    best = mass
                    floor = max(floor, best * keep)

        num_kept = survivors(masses, count, beam_width, max(best * keep, SMALLEST), scratch, kept)
        if num_nodes + num_kept > tree.shape[0]:
            tree = grown(tree)
        for slot in range(size):
            tree[nodes[slot], SLOT] = NONE
        for position in range(num_kept):
            candidate = kept[position]
            origin, token = origins[candidate], added[candidate]
            node = nodes[origin]
            if token == NONE:
                blanked[position] = next_blanked[origin] / best
                spoken[position] = next_spoken[origin] / best
            else:
                child = find_child(tree, node, token)
                if child == NONE:
                    child = add_child(tree, num_nodes, node, token)
                    num_nodes += 1
                node = child
                blanked[position] = 0.0
                spoken[position] = masses[candidate] / best
            total[position] = blanked[position] + spoken[position]
            next_nodes[position] = node
        for position in range(num_kept):
            tree[next_nodes[position], SLOT] = position
        nodes, next_nodes = next_nodes, nodes
        size = num_kept
        log_scale += math.log(best)

    order = np.argsort(-total[:size], kind="mergesort")
    num_hypotheses = min(size, scores_out.shape[0])
    for rank in range(num_hypotheses):
        slot = order[rank]
        lengths_out[rank] = read_prefix(tree, nodes[slot], tokens_out[rank])
        scores_out[rank] = math.log(total[slot]) + log_scale
    return num_hypotheses
