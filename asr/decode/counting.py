"""Counting every n-gram of a text that need not fit into memory.

Only the vocabulary is held. Words become ids in a file on disk. Then, order by order, each position of
the text is given a number: the rank, among the distinct n-grams, of the one that begins there. With the
word that follows, that number is the key of the next longer n-gram, so keys of every order are single
64-bit integers whose order is the lexicographic one. Blocks of keys are sorted in memory and written as
runs, and runs are merged by ranges of keys: the classic external sort.
"""

import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from asr.decode.arpa import SPECIAL_WORDS, LanguageModelError

UNKNOWN_ID, START_ID, END_ID = range(3)
"""Ids of ``SPECIAL_WORDS``, which come before the words of the text."""

BYTES_PER_POSITION = 64
"""Memory that sorting takes, for each position of a block."""

_WRITE_TOKENS = 1 << 20

Report = Callable[[str], object]
"""Told what is being done, in words for the user."""


def silent(stage: str) -> None:
    """The :data:`Report` of those who do not wait."""


class Scratch:
    """A folder of arrays that are mapped into memory, and written back to disk when memory is short."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_files = 0

    def path(self) -> Path:
        self._num_files += 1
        return self.folder / f"{self._num_files}.bin"

    def zeros(self, length: int, dtype: Any) -> np.ndarray:
        path = self.path()
        num_bytes = length * np.dtype(dtype).itemsize
        with path.open("wb") as file:
            if num_bytes and hasattr(os, "posix_fallocate"):
                # A full disk is an error here; later, writing to mapped memory, it would end the process.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            file.truncate(num_bytes)
        return self.open(path, dtype)

    def store(self, values: np.ndarray) -> np.ndarray:
        path = self.path()
        values.tofile(path)
        return self.open(path, values.dtype)

    def open(self, path: Path, dtype: Any) -> np.ndarray:
        if path.stat().st_size == 0:  # cannot be mapped
            return np.empty(0, dtype)
        return np.memmap(path, dtype, mode="r+").view(np.ndarray)


@dataclass(frozen=True)
class OrderCounts:
    """The distinct n-grams of one order, sorted by their words' ids.

    ``keys[row]`` is ``(row of the first words in the order below) * num_words + id of the last word``;
    for single words, the id. ``counts`` is how often each occurs.
    """

    keys: np.ndarray  # (ngrams,) int64
    counts: np.ndarray  # (ngrams,) int64


@dataclass(frozen=True)
class TextCounts:
    """All n-grams of a text. ``orders[n - 1]`` holds order ``n``; every word has a row in order 1."""

    words: list[str]
    orders: list[OrderCounts]
    num_sentences: int
    num_tokens: int
    """Words and sentence ends, as a perplexity counts them."""


class _Run(NamedTuple):
    keys: np.ndarray
    counts: np.ndarray


def count_ngrams(
    sentences: Iterable[Sequence[str]],
    order: int,
    scratch: Scratch,
    block_positions: int = 1 << 24,
    report: Report = silent,
) -> TextCounts:
    """Count the n-grams up to ``order`` of sentences, with ``<s>`` before and ``</s>`` after each.

    Args:
        block_positions: how many positions of the text are sorted in memory at a time.
        report: told what is being done.

    Raises:
        LanguageModelError: when there is no sentence, or one holds a word with a meaning of its own.
    """
    report("reading")
    token_path = scratch.path()
    words, num_sentences = _write_tokens(sentences, token_path)
    if num_sentences == 0:
        raise LanguageModelError("the text holds no sentence")
    tokens = scratch.open(token_path, np.int32)
    counts = scratch.zeros(len(words), np.int64)
    ranks = scratch.zeros(len(tokens), np.int64)
    for begin, end in _blocks(len(tokens), block_positions):
        counts += np.bincount(tokens[begin:end], minlength=len(words))
        ranks[begin:end] = tokens[begin:end]
    orders = [OrderCounts(np.arange(len(words)), counts)]
    for length in range(2, order + 1):
        report(f"counting {length}-grams")
        orders.append(_count_order(tokens, ranks, length, len(words), scratch, block_positions))
        if length < order:
            _rank(tokens, ranks, length, len(words), orders[-1].keys, block_positions)
    return TextCounts(words, orders, num_sentences, len(tokens) - num_sentences)


def _write_tokens(sentences: Iterable[Sequence[str]], path: Path) -> tuple[list[str], int]:
    """The words in the order of their first appearance, and the number of sentences."""
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__
    for special in SPECIAL_WORDS:
        ids[special]
    reserved = frozenset(SPECIAL_WORDS)
    tokens = array("i")
    num_sentences = 0
    with path.open("wb") as file:
        for sentence in sentences:
            num_sentences += 1
            if not reserved.isdisjoint(sentence):
                word = next(word for word in sentence if word in reserved)
                raise LanguageModelError(
                    f"sentence {num_sentences} holds the word {word}, which language models reserve: remove it"
                )
            tokens.append(START_ID)
            tokens.extend([ids[word] for word in sentence])
            tokens.append(END_ID)
            if len(tokens) >= _WRITE_TOKENS:
                tokens.tofile(file)
                del tokens[:]
        tokens.tofile(file)
    return list(ids), num_sentences


def _blocks(length: int, block_length: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + block_length, length)) for begin in range(0, length, block_length))


def _keys(
    tokens: np.ndarray, ranks: np.ndarray, length: int, num_words: int, begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the n-grams that begin in this block and stay in their sentence, and where they begin."""
    context_ends = tokens[begin + length - 2 : end + length - 2]
    inside = np.flatnonzero((ranks[begin:end] >= 0) & (context_ends != END_ID)) + begin
    return ranks[inside] * num_words + tokens[inside + length - 1], inside


def _count_order(
    tokens: np.ndarray, ranks: np.ndarray, length: int, num_words: int, scratch: Scratch, block_positions: int
) -> OrderCounts:
    with TemporaryDirectory(dir=scratch.folder, ignore_cleanup_errors=True) as folder:
        run_scratch = Scratch(Path(folder))
        runs = []
        for begin, end in _blocks(max(0, len(tokens) - length + 1), block_positions):
            keys, _ = _keys(tokens, ranks, length, num_words, begin, end)
            runs.append(_Run(*(run_scratch.store(part) for part in np.unique(keys, return_counts=True))))
        return _merge(runs, scratch, block_positions)


def _rank(
    tokens: np.ndarray,
    ranks: np.ndarray,
    length: int,
    num_words: int,
    known: np.ndarray,
    block_positions: int,
) -> None:
    """Replace the rank of each position's (n-1)-gram by that of its n-gram; -1 where there is none."""
    for begin, end in _blocks(max(0, len(tokens) - length + 1), block_positions):
        keys, inside = _keys(tokens, ranks, length, num_words, begin, end)
        ranks[begin:end] = -1
        distinct, which = np.unique(keys, return_inverse=True)
        ranks[inside] = np.searchsorted(known, distinct)[which]


def _merge(runs: Sequence[_Run], scratch: Scratch, block_positions: int) -> OrderCounts:
    """One sorted run of distinct keys from many, a range of keys at a time."""
    key_path, count_path = scratch.path(), scratch.path()
    with key_path.open("wb") as key_file, count_path.open("wb") as count_file:
        for low, high in _key_ranges(runs, block_positions):
            parts = [slice(*np.searchsorted(run.keys, (low, high))) for run in runs]
            keys = np.concatenate([run.keys[part] for run, part in zip(runs, parts, strict=True)])
            counts = np.concatenate([run.counts[part] for run, part in zip(runs, parts, strict=True)])
            permutation = np.argsort(keys, kind="stable")
            keys, counts = keys[permutation], counts[permutation]
            firsts = np.flatnonzero(np.diff(keys, prepend=-1))
            keys[firsts].tofile(key_file)
            np.add.reduceat(counts, firsts).tofile(count_file)
    return OrderCounts(scratch.open(key_path, np.int64), scratch.open(count_path, np.int64))


def _key_ranges(runs: Sequence[_Run], block_positions: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges that cover all keys, each with about ``block_positions`` entries over all runs."""
    runs = [run for run in runs if len(run.keys)]
    if not runs:
        return
    stride = max(1, block_positions // (16 * len(runs)))
    samples = np.sort(np.concatenate([run.keys[::stride] for run in runs]))
    bounds = np.unique(samples[:: max(1, block_positions // stride)])
    for low, high in zip(bounds, [*bounds[1:], np.iinfo(np.int64).max], strict=True):
        yield int(low), int(high)
