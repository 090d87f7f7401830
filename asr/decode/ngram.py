# numba infers the types of what it compiles:
# mypy: disable-error-code="no-untyped-def"
"""Back-off n-gram models as flat arrays: queries that compiled beam search can call.

The n-grams form a trie. Its nodes are numbered breadth first: the root (node 0, the empty context), then
the words in the order of their ids, then the 2-grams sorted by (context, word), and so on; so the
continuations of a context lie side by side, sorted by word. A *state* is a node: the longest stretch of
the words so far that can matter to what follows. Two hypotheses with equal states have equal futures.

Parsing a large ARPA file takes a while, once: the arrays are kept beside it and mapped into memory after.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asr.compiling import compiled_to_disk
from asr.decode import ngram_cache
from asr.decode.arpa import (
    SENTENCE_END,
    SENTENCE_START,
    UNKNOWN_WORD,
    Arpa,
    LanguageModelError,
    NgramBlock,
    read_arpa,
)

ROOT = 0
"""The state in which nothing is known of the words so far."""

_NO_UNKNOWN_LOG10_PROB = -100.0
_MAX_NODES = 2**31 - 1

_log = logging.getLogger(__name__)


def _compile(function: Callable[..., Any]) -> Any:
    return compiled_to_disk(function, nogil=True)


class NgramTables(NamedTuple):
    """The trie. *Inner* nodes are the root and all n-grams below the highest order; they come first."""

    words: np.ndarray  # (nodes,) int32, id of the last word; -1 for the root
    log10_probs: np.ndarray  # (nodes,) float32, of the last word after the others
    next_states: np.ndarray  # (nodes,) int32, the state after this n-gram
    backoffs: np.ndarray  # (inner nodes,) float32, log10
    first_children: np.ndarray  # (inner nodes + 1,) int32; one's children end where the next one's begin
    shorter: np.ndarray  # (inner nodes,) int32, the longest listed n-gram that is a proper suffix


class SentenceScore(NamedTuple):
    """Log10 probabilities of one sentence."""

    log10_prob: float
    token_log10_probs: tuple[float, ...]  # each word's, then the sentence end's if it was asked for
    num_unknown: int


class Perplexity(NamedTuple):
    """Of a text, sentence ends included; the names are those of KenLM's ``query``."""

    including_unknown: float
    excluding_unknown: float
    num_unknown: int
    num_tokens: int


@_compile
def score(tables, state, word_id):
    """``(log10 probability of the word after this state, next state)``, for use in compiled code."""
    log10_prob = 0.0
    while state != ROOT:
        node = _child(tables, state, word_id)
        if node >= 0:
            return log10_prob + tables.log10_probs[node], tables.next_states[node]
        log10_prob += tables.backoffs[state]
        state = tables.shorter[state]
    node = 1 + word_id
    return log10_prob + tables.log10_probs[node], tables.next_states[node]


@_compile
def _child(tables, node, word_id):
    """The node of this context followed by the word, or -1."""
    low = tables.first_children[node]
    end = tables.first_children[node + 1]
    high = end
    while low < high:
        middle = (low + high) >> 1
        if tables.words[middle] < word_id:
            low = middle + 1
        else:
            high = middle
    return low if low < end and tables.words[low] == word_id else -1


@_compile
def _score_all(tables, state, word_ids, log10_probs):
    for index in range(len(word_ids)):
        log10_probs[index], state = score(tables, state, word_ids[index])


class NgramModel:
    """A back-off model to be queried.

    Args:
        tables: the trie.
        vocabulary: every word, by id; ``<unk>``, ``<s>`` and ``</s>`` are among them.
        order: of the longest n-grams.
        sha256: of the ARPA file, hexadecimal.
    """

    def __init__(self, tables: NgramTables, vocabulary: Sequence[str], order: int, sha256: str) -> None:
        self.tables = tables
        self.vocabulary = vocabulary
        self.order = order
        self.sha256 = sha256

    @classmethod
    def load(
        cls, path: str | Path, *, cache: bool = True, cache_dir: str | Path | None = None
    ) -> "NgramModel":
        """Read an ARPA file, plain or gzip, or the memory-mapped copy that an earlier call left.

        Args:
            cache: look for such a copy, and leave one. It is made again when the ARPA file changes
                or the copy is damaged.
            cache_dir: where copies are kept; beside the ARPA file, or where that folder cannot be
                written to in the user's cache folder, when not given.

        Raises:
            LanguageModelError: one line with file and line number.
        """
        path = Path(path)
        if not path.is_file():
            raise LanguageModelError(f"{path}: no such ARPA file")
        places = ngram_cache.places(path, cache_dir) if cache else []
        for place in places:
            stored = ngram_cache.load(place, path)
            if stored is not None:
                return cls._from_arrays(stored.arrays, stored.sha256)
        source = ngram_cache.fingerprint(path)
        arpa = read_arpa(path)
        arrays = _build(arpa, path)._asdict() | {"vocabulary": _joined(arpa.words)}
        arrays["order"] = np.array([len(arpa.orders)])
        sha256 = _sha256(path)
        del arpa
        for place in places:
            if ngram_cache.store(place, arrays, source, sha256):
                stored = ngram_cache.load(place, path)
                if stored is not None:
                    arrays = stored.arrays  # mapped memory is given back when it is short
                    break
        return cls._from_arrays(arrays, sha256)

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], sha256: str) -> "NgramModel":
        for array in arrays.values():
            array.flags.writeable = False  # as a mapped array is, so that numba compiles once for both
        tables = NgramTables(*(arrays[name] for name in NgramTables._fields))
        vocabulary = arrays["vocabulary"].tobytes().decode().split("\n")
        return cls(tables, vocabulary, int(arrays["order"][0]), sha256)

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """Word → id, for known words."""
        return {word: word_id for word_id, word in enumerate(self.vocabulary)}

    @cached_property
    def unknown_id(self) -> int:
        return self.word_ids[UNKNOWN_WORD]

    @cached_property
    def end_id(self) -> int:
        """The id of ``</s>``."""
        return self.word_ids[SENTENCE_END]

    @cached_property
    def start_state(self) -> int:
        """The state at the beginning of a sentence."""
        return int(self.tables.next_states[1 + self.word_ids[SENTENCE_START]])

    @property
    def unigram_log10_probs(self) -> np.ndarray:
        """``(words,)`` float32, by word id."""
        return self.tables.log10_probs[1 : 1 + len(self.vocabulary)]

    @property
    def num_ngrams(self) -> int:
        return len(self.tables.words) - 1

    def word_id(self, word: str) -> int:
        """The word's id, or that of ``<unk>``."""
        return self.word_ids.get(word, self.unknown_id)

    def score(self, state: int, word_id: int) -> tuple[float, int]:
        """``(log10 probability, next state)``; compiled code calls the function of the same name."""
        log10_prob, next_state = score(self.tables, state, word_id)
        return float(log10_prob), int(next_state)

    def score_sentence(self, words: Sequence[str], *, start: bool = True, end: bool = True) -> SentenceScore:
        """Score words in sequence.

        Args:
            start: begin in :attr:`start_state`, else with nothing known.
            end: score ``</s>`` after the last word.
        """
        word_ids = [self.word_id(word) for word in words]
        num_unknown = word_ids.count(self.unknown_id)
        if end:
            word_ids.append(self.end_id)
        log10_probs = np.empty(len(word_ids))
        state = self.start_state if start else ROOT
        _score_all(self.tables, state, np.array(word_ids, np.int64), log10_probs)
        return SentenceScore(float(log10_probs.sum()), tuple(log10_probs.tolist()), num_unknown)

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity:
        """Perplexity of sentences, each a sequence of words.

        Raises:
            LanguageModelError: when there is no sentence.
        """
        total = unknown_total = 0.0
        num_tokens = num_unknown = 0
        for words in sentences:
            scored = self.score_sentence(words)
            total += scored.log10_prob
            num_tokens += len(scored.token_log10_probs)
            num_unknown += scored.num_unknown
            if scored.num_unknown:
                pairs = zip(words, scored.token_log10_probs[:-1], strict=True)
                unknown_total += sum(prob for word, prob in pairs if self.word_id(word) == self.unknown_id)
        if num_tokens == 0:
            raise LanguageModelError("no sentence to compute a perplexity of")
        return Perplexity(
            including_unknown=10 ** (-total / num_tokens),
            excluding_unknown=10 ** (-(total - unknown_total) / (num_tokens - num_unknown)),
            num_unknown=num_unknown,
            num_tokens=num_tokens,
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _joined(words: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(words).encode(), np.uint8).copy()


def _build(arpa: Arpa, path: Path) -> NgramTables:
    """The trie of a model; may append ``<unk>`` to its words."""
    orders = list(arpa.orders)
    if UNKNOWN_WORD not in arpa.words:
        _log.warning(
            "warning: %s has no %s: unknown words score %g", path, UNKNOWN_WORD, _NO_UNKNOWN_LOG10_PROB
        )
        arpa.words.append(UNKNOWN_WORD)
        unknown = NgramBlock(
            np.array([[len(arpa.words) - 1]], np.int32),
            np.array([_NO_UNKNOWN_LOG10_PROB], np.float32),
            np.zeros(1, np.float32),
        )
        orders[0] = NgramBlock(*(np.concatenate(pair) for pair in zip(orders[0], unknown, strict=True)))
    sizes = [1, *(len(block.log10_probs) for block in orders)]
    num_nodes, num_inner = sum(sizes), sum(sizes[:-1])
    if num_nodes > _MAX_NODES:
        raise LanguageModelError(f"{path}: {num_nodes - 1} n-grams are more than fit; prune the model")
    tables = NgramTables(
        words=np.full(num_nodes, -1, np.int32),
        log10_probs=np.zeros(num_nodes, np.float32),
        next_states=np.zeros(num_nodes, np.int32),
        backoffs=np.zeros(num_inner, np.float32),
        first_children=np.full(num_inner + 1, num_nodes, np.int32),
        shorter=np.zeros(num_inner, np.int32),
    )
    first_node = 1
    keys: list[np.ndarray] = []  # of each order: number of the context within its order, then word
    for order, block in enumerate(orders, start=1):
        unsorted = _keys(block.word_ids, keys, len(arpa.words))
        if (unsorted < 0).any():
            raise _error(
                arpa, path, order, int(np.argmin(unsorted)), "its first words are not listed by themselves"
            )
        permutation = np.argsort(unsorted, kind="stable")
        keys.append(unsorted[permutation])
        repeated = keys[-1][1:] == keys[-1][:-1]
        if repeated.any():
            raise _error(arpa, path, order, int(permutation[1:][repeated][0]), "it is listed twice")
        nodes = slice(first_node, first_node + sizes[order])
        tables.words[nodes] = block.word_ids[permutation, -1]
        tables.log10_probs[nodes] = block.log10_probs[permutation]
        if order < len(orders):
            tables.backoffs[nodes] = block.backoffs[permutation]
        num_contexts = sizes[order - 1]
        begins = np.searchsorted(keys[-1], np.arange(num_contexts) * len(arpa.words))
        tables.first_children[first_node - num_contexts : first_node] = first_node + begins
        first_node += sizes[order]
    _link(tables, num_inner)
    return tables


def _keys(word_ids: np.ndarray, shorter_keys: Sequence[np.ndarray], num_words: int) -> np.ndarray:
    """``(number of the context among its order) * num_words + last word``; -1 where there is no such context."""
    contexts = np.zeros(len(word_ids), np.int64)
    for column, known in enumerate(shorter_keys):
        keys = contexts * num_words + word_ids[:, column]
        contexts = np.searchsorted(known, keys)
        contexts[contexts == len(known)] = 0
        contexts[known[contexts] != keys] = -len(keys)  # stays negative through the columns that follow
    keys = contexts * num_words + word_ids[:, -1]
    return np.maximum(keys, -1)


def _error(arpa: Arpa, path: Path, order: int, index: int, what: str) -> LanguageModelError:
    ngram = " ".join(arpa.words[word_id] for word_id in arpa.orders[order - 1].word_ids[index])
    return LanguageModelError(f"{path}: line {arpa.first_lines[order - 1] + index}: {ngram!r}: {what}")


@_compile
def _link(tables, num_inner):
    """Fill in ``shorter`` and ``next_states``, breadth first: both refer to shorter n-grams."""
    for context in range(num_inner):
        for node in range(tables.first_children[context], tables.first_children[context + 1]):
            suffix = ROOT
            if context != ROOT:
                state, suffix = context, -1
                while suffix < 0:  # ends: the root lists every word
                    state = tables.shorter[state]
                    suffix = _child(tables, state, tables.words[node])
            state = tables.next_states[suffix]
            if node < num_inner:
                tables.shorter[node] = suffix
                # Without continuations and back-off weight it says no more than its suffix.
                if (
                    tables.first_children[node] < tables.first_children[node + 1]
                    or tables.backoffs[node] != 0
                ):
                    state = node
            tables.next_states[node] = state
