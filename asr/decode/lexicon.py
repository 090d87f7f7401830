"""A list of words as an automaton that the search walks token by token.

States are the beginnings of words, as in a trie of characters; edges are tokens. A token may spell
several characters, so a word is found under every way in which tokens can spell it, and words from
subwords need nothing special. State 0 is the place between two words.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.errors import ConfigError
from asr.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BETWEEN_WORDS = 0
NO_PARENT = -1


@dataclass(frozen=True, slots=True)
class TokenSpellings:
    """What each token does to the word under way.

    - ``starts_word``: ``(vocab,)`` bool, the token begins with a space: the word before it is finished
    - ``bodies``: what each token spells after that space; empty for the blank and for a bare space
    - ``separator``: the token that is a bare space, if there is one
    """

    starts_word: NDArray[np.bool_]
    bodies: tuple[str, ...]
    separator: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenSpellings":
        """Read the tokens of ``tokenizer``.

        Raises:
            ConfigError: a token ends with a space or spells several words.
        """
        starts = np.zeros(tokenizer.vocab_size, bool)
        bodies = []
        for token_id, token in enumerate(tokenizer.tokens):
            if token_id == tokenizer.blank_id:
                bodies.append("")
                continue
            body = token.lstrip()
            if any(character.isspace() for character in body):
                raise ConfigError(
                    f"token {token!r} has a space after a letter: decoding with words or hotwords needs "
                    "tokens that are a part of one word; train the tokenizer without such tokens"
                )
            starts[token_id] = body != token
            bodies.append(body)
        bare = (token for token in np.flatnonzero(starts).tolist() if not bodies[token])
        return cls(starts, tuple(bodies), next(bare, None))


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words as an automaton over tokens.

    Edges are sorted by source and token; those of state ``s`` are ``first_edge[s] : first_edge[s + 1]``.

    - ``words``: in alphabetical order; ``word_states``: ``(words,)``, the state that each ends in
    - ``first_edge``: ``(states + 1,)`` int32; ``edge_tokens``, ``edge_targets``: ``(edges,)`` int32
    - ``parents``: ``(states,)`` int32, the state one character before
    - ``levels``: states are numbered by their number of characters; those of ``n + 1`` characters are
      ``levels[n]`` up to ``levels[n + 1]``
    """

    words: tuple[str, ...]
    word_states: NDArray[np.int32]
    first_edge: NDArray[np.int32]
    edge_tokens: NDArray[np.int32]
    edge_targets: NDArray[np.int32]
    parents: NDArray[np.int32]
    levels: tuple[int, ...]

    @property
    def num_states(self) -> int:
        return len(self.parents)

    @classmethod
    def build(cls, words: Iterable[str], tokenizer: Tokenizer, source: str) -> "Lexicon":
        """The automaton of all ``words`` that the tokenizer can spell.

        Words that it cannot spell can never be recognised: a warning names their share.

        Args:
            source: where the words are from, for messages.

        Raises:
            ConfigError: no word can be spelled, or see :meth:`TokenSpellings.of`.
        """
        unique = sorted({word for word in words if word})
        spelled = spellable(unique, tokenizer, source)
        codes = _as_codes(spelled)
        parents, characters, word_states, levels = _character_trie(codes)
        sources, edge_tokens, targets = _token_edges(parents, characters, TokenSpellings.of(tokenizer))
        order = np.lexsort((edge_tokens, sources))
        first_edge = np.searchsorted(sources[order], np.arange(len(parents) + 1))
        return cls(
            tuple(spelled),
            word_states,
            first_edge.astype(np.int32),
            edge_tokens[order].astype(np.int32),
            targets[order].astype(np.int32),
            parents,
            levels,
        )

    @classmethod
    def empty(cls) -> "Lexicon":
        """No words at all: only the place between words."""
        nothing = np.zeros(0, np.int32)
        return cls(
            (), nothing, np.zeros(2, np.int32), nothing, nothing, np.full(1, NO_PARENT, np.int32), (1,)
        )

    def best_below(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``values`` ``(words,)`` → ``(states,)``: the largest among the words that begin as the state does."""
        best = np.full(self.num_states, -np.inf)
        np.maximum.at(best, self.word_states, values)
        for first, end in reversed(list(pairwise(self.levels))):
            np.maximum.at(best, self.parents[first:end], best[first:end])
        return best


def read_lexicon(path: Path) -> list[str]:
    """The words of a file with one word a line.

    Raises:
        ConfigError: it cannot be read, is empty, or a line holds more than one word.
    """
    words = read_lines(path, "decoder.lexicon")
    for number, line in words:
        if len(line.split()) > 1:
            raise ConfigError(
                f"{path} line {number}: {line!r} is more than one word; give one word a line (its spelling "
                "follows from the tokenizer)"
            )
    if not words:
        raise ConfigError(f"decoder.lexicon={path} holds no words")
    return [line for _, line in words]


def read_lines(path: Path, option: str) -> list[tuple[int, str]]:
    """Line numbers and lines of a UTF-8 text, stripped, without the empty ones.

    Raises:
        ConfigError: it cannot be read; names ``option``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"{option}={path}: {reason}") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line]


def spellable(words: Sequence[str], tokenizer: Tokenizer, source: str) -> list[str]:
    """Those of ``words`` that the tokenizer can spell; a warning names the share of the others.

    Raises:
        ConfigError: it can spell none.
    """
    known = [word for word in words if not tokenizer.unknown_characters(word)]
    if len(known) == len(words):
        return known
    lost = sorted(set(words) - set(known))
    message = (
        f"{source}: {len(lost)} of its {len(words)} words ({100 * len(lost) / len(words):.3g} %) cannot be spelled "
        "with the tokenizer, e.g. "
        f"{', '.join(map(repr, lost[:3]))}"
    )
    for change in (str.lower, str.upper):
        num_fitting = sum(not tokenizer.unknown_characters(change(word)) for word in words)
        if num_fitting > len(known):
            message += f"; the tokenizer knows {change.__name__} case: make the words {change.__name__} case"
            break
    if not known:
        raise ConfigError(message)
    log.warning("warning: %s", message)
    return known


def _as_codes(words: Sequence[str]) -> NDArray[np.int32]:
    """``(words, characters)`` code points, zero after the end."""
    longest = max(map(len, words), default=0)
    flat = np.array(words, dtype=f"U{max(1, longest)}").view(np.int32)
    return flat.reshape(len(words), -1)


def _character_trie(
    codes: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], tuple[int, ...]]:
    """Parents ``(states,)``, last characters ``(states,)``, final states ``(words,)`` and levels."""
    num_words, longest = codes.shape
    states = np.zeros(num_words, np.int64)
    parents, characters = [np.full(1, NO_PARENT)], [np.zeros(1, np.int64)]
    levels = [1]
    for depth in range(longest):
        alive = np.flatnonzero(codes[:, depth])
        keys = (states[alive] << 32) | codes[alive, depth].astype(np.int64)
        unique, inverse = np.unique(keys, return_inverse=True)
        states[alive] = levels[-1] + inverse
        parents.append(unique >> 32)
        characters.append(unique & 0xFFFFFFFF)
        levels.append(levels[-1] + len(unique))
    return (
        np.concatenate(parents).astype(np.int32),
        np.concatenate(characters).astype(np.int32),
        states.astype(np.int32),
        tuple(levels),
    )


def _token_edges(
    parents: NDArray[np.int32], characters: NDArray[np.int32], spellings: TokenSpellings
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sources, tokens and targets of all edges.

    Every state is compared with all tokens at once, character by character from its end: a trie of the
    reversed tokens says which tokens are still possible.
    """
    reverse: list[dict[int, int]] = [{}]
    tokens_at: list[list[int]] = [[]]
    for token, body in enumerate(spellings.bodies):
        node = 0
        for character in reversed(body):
            node = reverse[node].setdefault(ord(character), len(reverse))
            if node == len(reverse):
                reverse.append({})
                tokens_at.append([])
        if body:
            tokens_at[node].append(token)
    alphabet = sorted({character for edges in reverse for character in edges})
    table = np.full((len(reverse), len(alphabet) + 1), -1, np.int64)
    for node, edges in enumerate(reverse):
        for code, child in edges.items():
            table[node, np.searchsorted(alphabet, code)] = child
    columns = np.searchsorted(alphabet, characters)
    columns[~np.isin(characters, alphabet)] = len(alphabet)

    targets = np.arange(1, len(parents))
    here, nodes = targets.copy(), np.zeros(len(targets), np.int64)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    max_tokens = max(map(len, tokens_at))
    padded = np.array([at + [-1] * (max_tokens - len(at)) for at in tokens_at], np.int64)
    padded = padded.reshape(len(tokens_at), max_tokens)
    while len(here):
        nodes = table[nodes, columns[here]]
        here = parents[here].astype(np.int64)
        going = nodes >= 0
        here, nodes, targets = here[going], nodes[going], targets[going]
        for choice in range(max_tokens):
            tokens = padded[nodes, choice]
            fits = (tokens >= 0) & (~spellings.starts_word[tokens] | (here == BETWEEN_WORDS))
            found.append((here[fits], tokens[fits], targets[fits]))
        inside = here != BETWEEN_WORDS
        here, nodes, targets = here[inside], nodes[inside], targets[inside]
    if not found:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    return (
        np.concatenate([part[0] for part in found]),
        np.concatenate([part[1] for part in found]),
        np.concatenate([part[2] for part in found]),
    )
