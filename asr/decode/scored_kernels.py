"""Compiled prefix search, with scores from beyond the model where there are any: words, a language model, hotwords.

What such a source adds to a prefix depends on the prefix alone, so it is a factor of the mass that a
prefix sends to its child, the same for all its alignments. The factors of a finished text multiply to
``exp(alpha * lm + beta * words + …)`` exactly. Before a word is finished, its factor is anticipated:
entering a state of the lexicon costs what the best word below it will cost at least, and finishing the
word settles the difference (Ortmanns et al. 1996 call it language model look-ahead).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from asr.decode.hotwords import WORD_START
from asr.decode.lexicon import BETWEEN_WORDS
from asr.decode.ngram import score
from asr.decode.search_kernels import (
    ADDED,
    BLANKED,
    FACTOR,
    NONE,
    ORIGIN,
    PARENT,
    ROOT,
    SLOT,
    SMALLEST,
    TOKEN,
    TOTAL,
    compact,
    compiled,
    compiled_inner,
    extend,
    grown,
    highest_of,
    new_beam,
    new_candidates,
    new_tree,
    pause,
    renew,
    shortlist,
    smallest_of,
    stay,
    write_best,
)

NO_LM, WORD_LM, TOKEN_LM = range(3)
"""What the language model is over."""

# Columns of a node's integers: state in the lexicon, state in the hotwords.
_WORD_STATE, _HOTWORD_STATE = range(2)
# Columns of a node's language model states: as it is, and after the word under way.
_HERE, _AFTER = range(2)
# Columns of a node's factors: that of its last token, and that of finishing the word under way
# (NaN: not computed yet; 0: it cannot be finished).
_TOKEN_FACTOR, _FINISH_FACTOR = range(2)


class Scoring(NamedTuple):
    """Everything but the language model itself, as the kernel reads it.

    - ``first_edge``, ``edge_tokens``, ``edge_targets``: see :class:`asr.decode.lexicon.Lexicon`
    - ``edge_factors``: ``(edges,)``, anticipated factor of each edge
    - ``leave_factors``: ``(states,)``, anticipated factor of leaving the lexicon from each state
    - ``outside``: the state of words that are not in the lexicon; ``NONE`` where there are none
    - ``finish_words``: ``(states,)``, word of the language model finished in each state; ``NONE``: no word
    - ``finish_factors``: ``(states,)``, factor of finishing it, the language model not counted
    - ``starts_word``, ``has_body``: ``(vocab,)``, see :class:`asr.decode.lexicon.TokenSpellings`
    - ``separator``: the token that is a space and nothing else. Said again between words, before the first or
      after the last, it changes nothing: texts that differ in superfluous spaces are one. ``NONE``: there is none,
      or it counts
    - ``first_letter``, ``letters``: token ``t`` spells ``letters[first_letter[t] : first_letter[t + 1]]``
    - ``next_hotword_state``, ``hotword_bonus``, ``hotword_credit``, ``hotword_end``: see
      :class:`asr.decode.hotwords.Hotwords`; ``hotword_limit``: the largest factor of one token
    - ``lm_unit``, ``lm_weight``: what the model is over, and nats for a log10 of its
    - ``lm_start``, ``lm_end``: its state before the first word, its word for the end of a sentence
    - ``lm_tokens``: ``(vocab,)``, its word for each token when it is over tokens
    """

    first_edge: Any
    edge_tokens: Any
    edge_targets: Any
    edge_factors: Any
    leave_factors: Any
    outside: int
    finish_words: Any
    finish_factors: Any
    starts_word: Any
    has_body: Any
    separator: int
    first_letter: Any
    letters: Any
    has_hotwords: bool
    next_hotword_state: Any
    hotword_bonus: Any
    hotword_credit: Any
    hotword_end: Any
    hotword_limit: float
    lm_unit: int
    lm_weight: float
    lm_start: int
    lm_end: int
    lm_tokens: Any


@compiled
def _new_notes(num_nodes: int, lm_start: int) -> Any:
    """What is noted of every node, each ``(nodes, 2)``: states, states of the model, and factors."""
    states = np.empty((num_nodes, 2), np.int32)
    lm_states = np.empty((num_nodes, 2), np.int64)
    factors = np.empty((num_nodes, 2))
    states[ROOT, _WORD_STATE], states[ROOT, _HOTWORD_STATE] = BETWEEN_WORDS, WORD_START
    lm_states[ROOT] = lm_start
    factors[ROOT] = np.nan
    return states, lm_states, factors


@compiled_inner
def _find_edge(scoring: Any, state: int, token: int) -> int:
    low, high = scoring.first_edge[state], scoring.first_edge[state + 1]
    while low < high:
        middle = (low + high) >> 1
        if scoring.edge_tokens[middle] < token:
            low = middle + 1
        else:
            high = middle
    if low < scoring.first_edge[state + 1] and scoring.edge_tokens[low] == token:
        return low
    return NONE


@compiled_inner
def _finish_word(node: int, scoring: Any, lm: Any, notes: Any) -> float:
    """Factor of finishing the word that is under way in ``node``; 0 where it is no word."""
    states, lm_states, factors = notes
    factor = factors[node, _FINISH_FACTOR]
    if not math.isnan(factor):
        return factor
    state = states[node, _WORD_STATE]
    word = scoring.finish_words[state]
    lm_states[node, _AFTER] = lm_states[node, _HERE]
    factor = 0.0
    if word != NONE:
        factor = scoring.finish_factors[state]
        if scoring.lm_unit == WORD_LM:
            log10_prob, lm_states[node, _AFTER] = score(lm, lm_states[node, _HERE], word)
            factor *= math.exp(scoring.lm_weight * log10_prob)
    factors[node, _FINISH_FACTOR] = factor
    return factor


@compiled_inner
def _finish_limit(node: int, scoring: Any, notes: Any) -> float:
    """The largest factor that finishing the word under way may have, without asking the language model."""
    states, _, factors = notes
    state = states[node, _WORD_STATE]
    if state == BETWEEN_WORDS:
        return 1.0
    if scoring.finish_words[state] == NONE:
        return 0.0
    factor = factors[node, _FINISH_FACTOR]
    return scoring.finish_factors[state] if math.isnan(factor) else factor


@compiled_inner
def _extension(node: int, token: int, scoring: Any, lm: Any, notes: Any) -> Any:
    """Factor of adding ``token`` to ``node`` (0: not allowed), and the three states after it."""
    states, lm_states, _ = notes
    word_state, lm_state = states[node, _WORD_STATE], lm_states[node, _HERE]
    hotword_state = states[node, _HOTWORD_STATE]
    factor = 1.0
    if scoring.starts_word[token] and word_state != BETWEEN_WORDS:
        factor = _finish_word(node, scoring, lm, notes)
        lm_state = lm_states[node, _AFTER]
        word_state = np.int32(BETWEEN_WORDS)
    if scoring.has_body[token]:
        edge = _find_edge(scoring, word_state, token)
        if edge != NONE:
            factor *= scoring.edge_factors[edge]
            word_state = scoring.edge_targets[edge]
        elif scoring.outside != NONE:
            factor *= scoring.leave_factors[word_state]
            word_state = np.int32(scoring.outside)
        else:
            factor = 0.0
    if factor > 0.0:
        if scoring.lm_unit == TOKEN_LM:
            log10_prob, lm_state = score(lm, lm_state, scoring.lm_tokens[token])
            factor *= math.exp(scoring.lm_weight * log10_prob)
        if scoring.has_hotwords:
            gain = -scoring.hotword_credit[hotword_state]
            for position in range(scoring.first_letter[token], scoring.first_letter[token + 1]):
                letter = scoring.letters[position]
                gain += scoring.hotword_bonus[hotword_state, letter]
                hotword_state = scoring.next_hotword_state[hotword_state, letter]
            gain += scoring.hotword_credit[hotword_state]
            if gain != 0.0:
                factor *= math.exp(gain)
    return factor, word_state, lm_state, hotword_state


@compiled_inner
def _split_shortlist(tokens: Any, num_tokens: int, scoring: Any, scratch: Any) -> int:
    """Put the tokens that continue a word first, those that start one last; returns how many continue."""
    num_inner, num_starting = 0, 0
    for index in range(num_tokens):
        token = tokens[index]
        if scoring.starts_word[token]:
            scratch[num_starting] = token
            num_starting += 1
        else:
            tokens[num_inner] = token
            num_inner += 1
    for index in range(num_starting):
        tokens[num_inner + index] = scratch[index]
    return num_inner


@compiled
def _finish_sentence(tree: Any, nodes: Any, totals: Any, scoring: Any, lm: Any, notes: Any) -> bool:
    """Multiply ``totals`` by what the end adds; false, and nothing done, where no prefix can end here.

    A last space adds nothing to a text: its mass goes to the prefix without it.
    """
    states, lm_states, _ = notes
    ends = np.zeros(len(totals))
    for slot in range(len(totals)):
        node = nodes[slot]
        lm_state, factor = lm_states[node, _HERE], 1.0
        if states[node, _WORD_STATE] != BETWEEN_WORDS:
            factor = _finish_word(node, scoring, lm, notes)
            lm_state = lm_states[node, _AFTER]
        if factor > 0.0:
            if scoring.lm_unit != NO_LM:
                log10_prob, _ = score(lm, lm_state, scoring.lm_end)
                factor *= math.exp(scoring.lm_weight * log10_prob)
            if scoring.has_hotwords:
                factor *= math.exp(scoring.hotword_end[states[node, _HOTWORD_STATE]])
        ends[slot] = totals[slot] * factor
    if not ends.any():
        return False
    for slot in range(len(totals)):
        node = nodes[slot]
        if node != ROOT and tree[node, TOKEN] == scoring.separator:
            without = tree[tree[node, PARENT], SLOT]
            if without != NONE:
                ends[without] += ends[slot]
                ends[slot] = 0.0
    totals[:] = ends
    return True


@compiled_inner
def _extend(
    tree: Any,
    nodes: Any,
    size: int,
    beam: Any,
    tokens: Any,
    num_inner: int,
    num_tokens: int,
    probs: Any,
    pulled: Any,
    frame: int,
    best: float,
    keep: float,
    floor: float,
    candidates: Any,
    scoring: Any,
    lm: Any,
    notes: Any,
) -> Any:
    """Add every allowed extension with a mass of at least ``floor`` to the candidates, after the prefixes.

    Returns:
        the number of candidates and the largest mass among them.
    """
    links, masses, scratch, kept = candidates
    states = notes[0]
    count, highest = size, scoring.hotword_limit * highest_of(probs, tokens, num_tokens)
    for slot in range(size):
        node = nodes[slot]
        limit = _finish_limit(node, scoring, notes)
        if beam[TOTAL, slot] * highest * max(1.0, limit) < floor:
            continue
        last, state = tree[node, TOKEN], states[node, _WORD_STATE]
        first_edge = scoring.first_edge[state]
        num_edges = scoring.first_edge[state + 1] - first_edge
        by_edges = scoring.outside == NONE and num_edges < num_inner
        num_options = num_tokens if limit > 0.0 else num_inner
        skipped = num_inner - num_edges if by_edges else 0
        for index in range(num_options - skipped):
            if by_edges and index < num_edges:
                token = scoring.edge_tokens[first_edge + index]
                if scoring.starts_word[token]:
                    continue
            else:
                token = tokens[index + skipped]
            if token == last == scoring.separator:
                continue
            mass = beam[BLANKED if token == last else TOTAL, slot] * probs[token]
            largest = scoring.hotword_limit * (limit if scoring.starts_word[token] else 1.0)
            if mass * largest < floor or pulled[slot, token] == frame:
                continue
            mass *= _extension(node, token, scoring, lm, notes)[0]
            if mass < floor:
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


@compiled_inner
def _describe(
    nodes: Any,
    next_nodes: Any,
    count: int,
    first_new: int,
    beam: Any,
    links: Any,
    scoring: Any,
    lm: Any,
    notes: Any,
) -> None:
    """Note states and factors of the nodes that are new in the beam, and show the beam the factors."""
    states, lm_states, factors = notes
    for position in range(count):
        child = next_nodes[position]
        if child >= first_new:
            parent, token = nodes[links[position, ORIGIN]], links[position, ADDED]
            factor, word_state, lm_state, hotword_state = _extension(parent, token, scoring, lm, notes)
            states[child, _WORD_STATE], states[child, _HOTWORD_STATE] = word_state, hotword_state
            lm_states[child, _HERE] = lm_state
            factors[child, _TOKEN_FACTOR], factors[child, _FINISH_FACTOR] = factor, np.nan
        if child != ROOT:
            beam[FACTOR, position] = factors[child, _TOKEN_FACTOR]


@compiled
def prefix_search(
    log_probs: Any,
    blank: int,
    beam_width: int,
    max_tokens: int,
    token_gap: float,
    score_gap: float,
    scoring: Any,
    lm: Any,
    tokens_out: Any,
    lengths_out: Any,
    scores_out: Any,
) -> Any:
    """Prefix beam search; compiled once with scores and once without.

    Args:
        log_probs: ``(frames, vocab)`` natural logs.
        beam_width: at most so many prefixes survive a frame.
        max_tokens, token_gap: see :func:`asr.decode.search_kernels.shortlist`.
        score_gap: a prefix more than so many nats behind the best does not survive.
        scoring: a :class:`Scoring`, or None.
        lm: the tables that :func:`asr.decode.ngram.score` reads, or None.
        tokens_out: ``(hypotheses, frames)`` int32, receives the labellings, best first.
        lengths_out: ``(hypotheses,)``, receives their lengths.
        scores_out: ``(hypotheses,)``, receives the natural logs of their probabilities.

    Returns:
        the number of hypotheses, or ``-1 - frame`` for the first frame that no prefix survives, and whether
        they end with a whole word; where no surviving prefix does, they are the best ones there are.
    """
    num_frames, vocab_size = log_probs.shape
    keep = math.exp(-score_gap)
    tree, num_nodes, size = new_tree(), 1, 1
    tree[ROOT, SLOT] = 0
    nodes, next_nodes = np.zeros(beam_width, np.int32), np.zeros(beam_width, np.int32)
    beam, after = new_beam(beam_width), np.zeros((2, beam_width))
    candidates = new_candidates(beam_width)
    links, masses, scratch, kept = candidates
    pulled = np.full((beam_width, vocab_size), NONE, np.int32)
    tokens, probs, logs = np.empty(vocab_size, np.int32), np.zeros(vocab_size), np.empty(vocab_size)
    separator = NONE
    if scoring is not None:
        notes, starting = _new_notes(len(tree), scoring.lm_start), np.empty(vocab_size, np.int32)
        # The empty prefix is between words, as if a space had been read.
        separator = tree[ROOT, TOKEN] = scoring.separator
    log_scale = 0.0
    for frame in range(num_frames):
        num_tokens = shortlist(log_probs[frame], blank, max_tokens, token_gap, tokens, probs, logs)
        if num_tokens == NONE:
            return -1 - frame, False
        if num_tokens == 0:
            pause(beam, size)
            log_scale += log_probs[frame, blank]
            continue
        best, smallest = stay(
            tree, nodes, size, beam, after, probs, blank, separator, pulled, frame, links, masses
        )
        floor = max(best * keep, SMALLEST)
        if size == beam_width:  # a newcomer must at least beat one of the prefixes that stay
            floor = max(floor, smallest)
        if scoring is None:
            count, best = extend(
                tree, nodes, size, beam, tokens, num_tokens, probs, pulled, frame, best, keep, floor, candidates
            )  # fmt: skip
        else:
            num_inner = _split_shortlist(tokens, num_tokens, scoring, starting)
            count, best = _extend(
                tree, nodes, size, beam, tokens, num_inner, num_tokens, probs, pulled, frame, best, keep, floor,
                candidates, scoring, lm, notes,
            )  # fmt: skip
        if best == 0.0:
            return -1 - frame, False
        count = compact(links, masses, count, beam_width, max(best * keep, SMALLEST), scratch, kept)
        if num_nodes + count > len(tree):
            tree = grown(tree, num_nodes + count)
            if scoring is not None:
                states, lm_states, factors = notes
                notes = (
                    grown(states, len(tree)),
                    grown(lm_states, len(tree)),
                    grown(factors, len(tree)),
                )
        first_new = num_nodes
        num_nodes = renew(tree, num_nodes, nodes, size, beam, after, links, masses, count, best, next_nodes)
        if scoring is not None:
            _describe(nodes, next_nodes, count, first_new, beam, links, scoring, lm, notes)
        nodes, next_nodes = next_nodes, nodes
        size = count
        log_scale += math.log(best)
    totals, is_complete = beam[TOTAL, :size], True
    if scoring is not None:
        is_complete = _finish_sentence(tree, nodes, totals, scoring, lm, notes)
    return write_best(tree, nodes, totals, log_scale, tokens_out, lengths_out, scores_out), is_complete
