# numba infers the types of what it compiles:
# mypy: disable-error-code="no-untyped-def"
"""Interpolated modified Kneser-Ney estimation of back-off n-gram models.

Chen and Goodman (1998), "An Empirical Study of Smoothing Techniques for Language Modeling", in the form
in which Heafield et al. (2013), "Scalable Modified Kneser-Ney Language Model Estimation", fit it into a
back-off model. Its choices are kept, so that models can be compared number by number with those of
KenLM's ``lmplz``: n-grams that begin a sentence keep their counts, ``<unk>`` shares in the uniform
distribution below the 1-grams, pruning looks at counts before adjustment, and what it removes stays in
the totals and adds to the back-off.

The arrays live in files that are mapped into memory; each step runs through them in order, and looks up
only the order below.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple

import numpy as np

from asr.compiling import compiled_to_disk
from asr.decode.arpa import MAX_ORDER, SPECIAL_WORDS, LanguageModelError, NgramBlock, write_arpa
from asr.decode.counting import (
    BYTES_PER_POSITION,
    START_ID,
    OrderCounts,
    Report,
    Scratch,
    TextCounts,
    count_ngrams,
    silent,
)

_BLOCK_NGRAMS = 1 << 18
_LOG10_ZERO = -99.0
_NUM_SPECIAL = len(SPECIAL_WORDS)


def _compile(function: Callable[..., Any]) -> Any:
    return compiled_to_disk(function, nogil=True)


class Discounts(NamedTuple):
    """What is taken off counts of one, of two, and of three or more."""

    one: float
    two: float
    three_or_more: float


FALLBACK_DISCOUNTS = Discounts(0.5, 1.0, 1.5)
"""For counts that no discount can be estimated from; KenLM's ``--discount_fallback``."""


@dataclass(frozen=True)
class OrderSummary:
    """What became of the n-grams of one order."""

    num_counted: int
    num_kept: int
    discounts: Discounts
    fallback_reason: str
    """Why the discounts are the fallback ones; empty when they were estimated."""


@dataclass(frozen=True)
class Summary:
    """What a model was made from."""

    num_sentences: int
    num_tokens: int
    orders: tuple[OrderSummary, ...]


class _Level(NamedTuple):
    """One order on its way from counts to probabilities."""

    keys: np.ndarray  # (ngrams,) int64: row of the context in the level below * number of words + last word
    suffixes: np.ndarray  # (ngrams,) int64, row of all words but the first in the level below
    first_children: np.ndarray  # (ngrams of the level below + 1,) int64
    adjusted: np.ndarray  # (ngrams,) int64
    kept: np.ndarray  # (ngrams,) bool
    probs: np.ndarray  # (ngrams,) float64
    backoffs: np.ndarray  # (ngrams,) float64, one where nothing continues the n-gram


def estimate(
    sentences: Iterable[Sequence[str]],
    output: Path,
    *,
    order: int,
    prune: Sequence[int] = (),
    vocabulary: Collection[str] | None = None,
    max_words: int | None = None,
    discount_fallback: bool = True,
    memory_bytes: int = 1 << 30,
    scratch_folder: Path | None = None,
    report: Report = silent,
) -> Summary:
    """Estimate a model from sentences and write it as an ARPA file.

    Args:
        sentences: each a sequence of words (or characters); read once.
        output: the ARPA file; compressed when it ends in ``.gz``.
        order: length of the longest n-grams.
        prune: for order 1, 2, …: n-grams that occur this often or less are left out. The last threshold
            holds for all higher orders. The first is 0 (words are limited by the vocabulary), and none
            is lower than the one before.
        vocabulary: words that the model may hold; the others become unknown words.
        max_words: keep only the most frequent words, this many; of equally frequent ones the earlier.
        discount_fallback: use :data:`FALLBACK_DISCOUNTS` where none can be estimated; otherwise that is
            an error.
        memory_bytes: about how much memory sorting may use.
        scratch_folder: where temporary files go; the system's folder for them when not given.
        report: told what is being done.

    Raises:
        LanguageModelError: for an empty text or reserved words in it, thresholds that contradict each
            other, discounts that cannot be estimated, or a file that cannot be written.
    """
    if not 1 <= order <= MAX_ORDER:
        raise LanguageModelError(f"order={order} must be between 1 and {MAX_ORDER}")
    thresholds = _thresholds(prune, order)
    num_positions = max(1, memory_bytes // BYTES_PER_POSITION)
    try:
        with TemporaryDirectory(dir=scratch_folder, ignore_cleanup_errors=True) as folder:
            scratch = Scratch(Path(folder))
            counts = count_ngrams(sentences, order, scratch, num_positions, report)
            report("estimating")
            levels = _levels(counts, thresholds, _allowed(counts, vocabulary, max_words), scratch)
            summaries = _fill_all(levels, discount_fallback)
            report("writing")
            num_kept = [summary.num_kept for summary in summaries]
            sections = (_blocks(levels[:length], counts) for length in range(1, order + 1))
            write_arpa(output, counts.words, num_kept, sections)
    except OSError as error:
        raise LanguageModelError(
            f"temporary files in {scratch_folder or gettempdir()}: {error.strerror or error}; "
            "choose another folder (scratch_dir)"
        ) from None
    return Summary(counts.num_sentences, counts.num_tokens, tuple(summaries))


def _thresholds(prune: Sequence[int], order: int) -> list[int]:
    if len(prune) > order:
        raise LanguageModelError(f"prune={list(prune)} has more thresholds than order={order}")
    given = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
    if any(threshold < 0 for threshold in given) or given != sorted(given):
        raise LanguageModelError(
            f"prune={list(prune)}: no threshold may be lower than the one before or than 0"
        )
    if given[0] != 0:
        raise LanguageModelError(
            f"prune={list(prune)}: the first threshold, for single words, must be 0; limit the words by "
            "max_words or vocabulary"
        )
    return given


def _allowed(counts: TextCounts, vocabulary: Collection[str] | None, max_words: int | None) -> np.ndarray:
    """``(words,)`` bool: which the model may hold."""
    allowed = np.ones(len(counts.words), bool)
    if vocabulary is not None:
        known = frozenset(vocabulary)
        allowed[:] = [word in known for word in counts.words]
    if max_words is not None:
        frequencies = np.where(allowed, counts.orders[0].counts, 0)[_NUM_SPECIAL:]
        rarer = np.argsort(-frequencies, kind="stable")[max_words:]
        allowed[_NUM_SPECIAL + rarer] = False
    allowed[:_NUM_SPECIAL] = True
    return allowed


def _levels(
    counts: TextCounts, thresholds: Sequence[int], allowed: np.ndarray, scratch: Scratch
) -> list[_Level]:
    """All orders with their links and adjusted counts, probabilities still to be filled in."""
    num_words = len(counts.words)
    levels: list[_Level] = []
    for length, (order_counts, threshold) in enumerate(zip(counts.orders, thresholds, strict=True), start=1):
        size = len(order_counts.keys)
        if size == 0:
            raise LanguageModelError(
                f"order={len(counts.orders)} is too high: no sentence has {length - 2} words or more"
            )
        level = _Level(
            keys=order_counts.keys,
            suffixes=scratch.zeros(size, np.int64),
            first_children=scratch.zeros(len(levels[-1].keys) + 1 if levels else 2, np.int64),
            adjusted=scratch.zeros(size, np.int64),
            kept=scratch.zeros(size, np.bool_),
            probs=scratch.zeros(size, np.float64),
            backoffs=scratch.zeros(size, np.float64),
        )
        _find_children(level.keys, num_words, level.first_children)
        if length == 1:
            level.kept[:] = allowed
        else:
            _find_suffixes(level, levels[-1], num_words, length == 2)
            _keep(level, levels[-1], num_words, order_counts.counts, threshold, allowed)
        levels.append(level)
    _adjust(levels, counts.orders)
    return levels


def _adjust(levels: Sequence[_Level], orders: Sequence[OrderCounts]) -> None:
    """Kneser-Ney counts: below the highest order, how many distinct words are seen before an n-gram.

    N-grams that begin a sentence have no word before them and keep the number of times they occur.
    """
    begin, end = START_ID, START_ID + 1  # rows of the n-grams that begin with <s>, which lie together
    for index, (level, order_counts) in enumerate(zip(levels, orders, strict=True)):
        if index > 0:
            begin, end = level.first_children[begin], level.first_children[end]
        if index == len(levels) - 1:
            level.adjusted[:] = order_counts.counts
        else:
            _count_rows(levels[index + 1].suffixes, level.adjusted)
            level.adjusted[begin:end] = order_counts.counts[begin:end]
    levels[0].adjusted[START_ID] = 0


def _fill_all(levels: Sequence[_Level], discount_fallback: bool) -> list[OrderSummary]:
    """Fill in all probabilities and back-off weights, from the lowest order up."""
    summaries = []
    lower = _uniform(levels[0])
    for length, level in enumerate(levels, start=1):
        summaries.append(_summary(level, length, discount_fallback))
        _fill(level, lower, np.array([0.0, *summaries[-1].discounts]))
        lower = level
    levels[0].probs[START_ID] = 1  # it is given, never predicted
    return summaries


def _uniform(unigrams: _Level) -> _Level:
    """The level below single words: all that can follow are equally likely, ``<unk>`` among them."""
    num_possible = np.count_nonzero(unigrams.kept) - 1  # <s> is not
    return _Level(
        keys=np.zeros(1, np.int64),
        suffixes=np.zeros(1, np.int64),
        first_children=np.array([0, 1]),
        adjusted=np.zeros(1, np.int64),
        kept=np.ones(1, np.bool_),
        probs=np.array([1 / num_possible]),
        backoffs=np.zeros(1),
    )


def _summary(level: _Level, length: int, discount_fallback: bool) -> OrderSummary:
    num_kept = int(np.count_nonzero(level.kept))
    if num_kept == 0:
        raise LanguageModelError(f"pruning leaves no {length}-gram: lower the thresholds or the order")
    counts_of_counts = [int(np.count_nonzero(level.adjusted == count)) for count in range(1, 5)]
    try:
        discounts, reason = _discounts(counts_of_counts), ""
    except ValueError as error:
        reason = str(error)
        if not discount_fallback:
            raise LanguageModelError(
                f"discounts of {length}-grams cannot be estimated: {reason}; the text is too small or made up "
                "by rule: discount_fallback=true takes usual values"
            ) from None
        discounts = FALLBACK_DISCOUNTS
    return OrderSummary(len(level.keys), num_kept, discounts, reason)


def _discounts(counts_of_counts: Sequence[int]) -> Discounts:
    """Chen and Goodman (1998), equation 26, from how many n-grams have count 1, 2, 3 and 4."""
    for count in range(1, 4):
        if counts_of_counts[count - 1] == 0:
            raise ValueError(f"no n-gram has an adjusted count of {count}")
    ones, twos, *_ = counts_of_counts
    ratio = ones / (ones + 2 * twos)
    amounts = [
        count - (count + 1) * ratio * counts_of_counts[count] / counts_of_counts[count - 1]
        for count in range(1, 4)
    ]
    for count, amount in enumerate(amounts, start=1):
        if not 0 <= amount <= count:
            raise ValueError(f"that of count {count} would be {amount:.3g}")
    return Discounts(*amounts)


def _blocks(levels: Sequence[_Level], counts: TextCounts) -> Iterator[NgramBlock]:
    """The kept n-grams of the last of these levels, with their words."""
    level, num_words = levels[-1], len(counts.words)
    for begin in range(0, len(level.keys), _BLOCK_NGRAMS):
        rows = np.flatnonzero(level.kept[begin : begin + _BLOCK_NGRAMS]) + begin
        word_ids = np.empty((len(rows), len(levels)), np.int32)
        ancestors = rows
        for column in reversed(range(len(levels))):
            keys = levels[column].keys[ancestors]
            word_ids[:, column] = keys % num_words
            ancestors = keys // num_words
        with np.errstate(divide="ignore"):
            backoffs = np.maximum(np.log10(level.backoffs[rows]), _LOG10_ZERO)
        yield NgramBlock(
            word_ids, np.log10(level.probs[rows]).astype(np.float32), backoffs.astype(np.float32)
        )


@_compile
def _find_children(keys, num_words, first_children):
    """Where the n-grams that continue each context begin; the last entry is their number."""
    context = 0
    for row in range(len(keys)):
        while context <= keys[row] // num_words:
            first_children[context] = row
            context += 1
    first_children[context:] = len(keys)


@_compile
def _find_suffixes(level, lower, num_words, is_bigram):
    for row in range(len(level.keys)):
        context = level.keys[row] // num_words
        word = level.keys[row] % num_words
        if is_bigram:
            level.suffixes[row] = word
            continue
        suffix = lower.suffixes[context]  # of the context; the word continues it
        key = suffix * num_words + word
        low = lower.first_children[suffix]
        high = lower.first_children[suffix + 1]
        while low < high:
            middle = (low + high) // 2
            if lower.keys[middle] < key:
                low = middle + 1
            else:
                high = middle
        level.suffixes[row] = low


@_compile
def _keep(level, lower, num_words, counts, threshold, allowed):
    """Frequent enough, of allowed words only. What is kept has its context and its suffix kept."""
    for row in range(len(level.keys)):
        level.kept[row] = (
            counts[row] > threshold
            and lower.kept[level.keys[row] // num_words]
            and allowed[level.keys[row] % num_words]
        )


@_compile
def _count_rows(rows, counts):
    for row in rows:
        counts[row] += 1


@_compile
def _fill(level, lower, discounts):
    """Probabilities of one order and the back-off weights of the contexts in the order below.

    A discounted count is shared out of the context's total; what discounts and pruning take off is the
    weight of the order below, which every n-gram gets its share of (interpolation).
    """
    for context in range(len(lower.keys)):
        begin, end = level.first_children[context], level.first_children[context + 1]
        total = 0.0
        freed = 0.0
        for row in range(begin, end):
            count = level.adjusted[row]
            total += count
            freed += discounts[min(count, 3)] if level.kept[row] else count
        backoff = freed / total if total > 0 else 1.0
        lower.backoffs[context] = backoff
        for row in range(begin, end):
            if level.kept[row]:
                count = level.adjusted[row]
                discounted = (count - discounts[min(count, 3)]) / total
                level.probs[row] = discounted + backoff * lower.probs[level.suffixes[row]]
