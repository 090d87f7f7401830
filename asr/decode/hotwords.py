"""Phrases that the search should favour: a bonus for each whole-word occurrence in the text.

The phrases form an automaton over characters (Aho and Corasick 1975) in which a phrase has a space on
either side, so that only whole words match, whatever tokens spell them. While a phrase is under way,
the search gets the share of its bonus that the characters so far are worth; when the text leaves the
phrase, that share is taken back. So partial matches survive pruning, and yet the score of a finished
text is the sum of its occurrences and nothing else.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.decode.lexicon import read_lines
from asr.errors import ConfigError
from asr.tokenizer import Tokenizer

SPACE, OTHER = 0, 1
"""Letters of the automaton's alphabet: the space, and every character that is in no phrase."""

NO_PHRASE, WORD_START = 0, 1
"""States: inside a word that begins no phrase, and after a space that begins none yet."""


def read_hotwords(path: Path, weight: float) -> dict[str, float]:
    """Phrases of a file with one a line, each optionally followed by a tab and a bonus of its own.

    Raises:
        ConfigError: it cannot be read, or a bonus is no positive number.
    """
    phrases = {}
    for number, line in read_lines(path, "decoder.hotword_file"):
        phrase, tab, own = line.partition("\t")
        try:
            bonus = float(own) if tab else weight
        except ValueError:
            bonus = -1.0
        if not 0 < bonus < np.inf:
            raise ConfigError(f"{path} line {number}: the bonus {own.strip()!r} must be a number above 0")
        phrases[phrase.strip()] = bonus
    return phrases


class Hotwords:
    """The automaton of some phrases.

    Args:
        phrases: bonus in nats of each phrase.
        tokenizer: every phrase must be spellable with it.

    Attributes:
        letters: number of each character in the automaton's alphabet.
        next_state: ``(states, letters)`` int32.
        bonus: ``(states, letters)`` float64, what the phrases that this step completes are worth.
        credit: ``(states,)`` float64, what the phrase under way is worth so far.
        end_bonus: ``(states,)`` float64, what the end of the text adds to or takes from the score.

    Raises:
        ConfigError: a phrase is empty, has characters without a token or a bonus that is not positive.
    """

    def __init__(self, phrases: Mapping[str, float], tokenizer: Tokenizer) -> None:
        for phrase, bonus in phrases.items():
            _check_phrase(phrase, bonus, tokenizer)
        marked = {f" {' '.join(phrase.split())} ": bonus for phrase, bonus in phrases.items()}
        characters = sorted({character for text in marked for character in text} - {" "})
        self.letters = {" ": SPACE, **{character: number + 2 for number, character in enumerate(characters)}}
        children, worth, own_credit = _phrase_trie(marked)
        self._link(children, worth, own_credit)

    def score(self, text: str) -> float:
        """Summed bonus of ``text``: what the search adds to the score of a finished hypothesis."""
        state, total = WORD_START, 0.0
        for character in " ".join(text.split()):
            letter = self.letters.get(character, OTHER)
            total += self.bonus[state, letter]
            state = int(self.next_state[state, letter])
        return float(total + self.end_bonus[state] + self.credit[state])

    def _link(self, children: list[dict[str, int]], worth: list[float], own_credit: list[float]) -> None:
        """Fill the tables, breadth first: a state falls back to its longest suffix that is a state."""
        num_states = len(children)
        self.next_state: NDArray[np.int32] = np.zeros((num_states, len(self.letters) + 1), np.int32)
        self.bonus: NDArray[np.float64] = np.zeros(self.next_state.shape)
        self.credit: NDArray[np.float64] = np.array(own_credit)
        summed_worth = np.array(worth)
        fallback = np.zeros(num_states, np.int32)
        queue = [NO_PHRASE]
        for state in queue:
            if state != NO_PHRASE:
                summed_worth[state] += summed_worth[fallback[state]]
                self.credit[state] = max(self.credit[state], self.credit[fallback[state]])
                self.next_state[state] = self.next_state[fallback[state]]
            for character, child in children[state].items():
                letter = self.letters[character]
                fallback[child] = self.next_state[state, letter] if state != NO_PHRASE else NO_PHRASE
                self.next_state[state, letter] = child
                queue.append(child)
        self.bonus[:] = summed_worth[self.next_state]
        after_space = self.next_state[:, SPACE]
        is_after_space = np.isin(np.arange(num_states), after_space)
        spaces = np.flatnonzero(is_after_space)
        # One space more changes nothing: runs of spaces count as one.
        self.next_state[spaces, SPACE] = spaces
        self.bonus[spaces, SPACE] = 0.0
        self.end_bonus: NDArray[np.float64] = self.bonus[:, SPACE] - self.credit


def _check_phrase(phrase: str, bonus: float, tokenizer: Tokenizer) -> None:
    if not phrase.split():
        raise ConfigError("a hotword is empty; give words, or leave decoder.hotwords out")
    if not 0 < bonus < np.inf:
        raise ConfigError(f"hotword {phrase!r}: its bonus {bonus} must be a number above 0")
    unknown = sorted(tokenizer.unknown_characters(phrase))
    if unknown:
        raise ConfigError(
            f"hotword {phrase!r} has characters without a token ({', '.join(map(repr, unknown))}); "
            "write it as the transcripts are written"
        )


def _phrase_trie(marked: Mapping[str, float]) -> tuple[list[dict[str, int]], list[float], list[float]]:
    """Children, bonus of the phrase that ends in it and credit of the best one under way, per state.

    State ``NO_PHRASE`` is the root and ``WORD_START`` its child by a space, with which all phrases begin.
    """
    children: list[dict[str, int]] = [{" ": WORD_START}, {}]
    worth, credit = [0.0, 0.0], [0.0, 0.0]
    for text, bonus in marked.items():
        state = NO_PHRASE
        for position, character in enumerate(text):
            # The first space is free, and with the last one the bonus itself takes over.
            credit[state] = max(credit[state], bonus * max(0, position - 1) / (len(text) - 1))
            following = children[state].get(character)
            if following is None:
                following = len(children)
                children[state][character] = following
                children.append({})
                worth.append(0.0)
                credit.append(0.0)
            state = following
        worth[state] = bonus
    return children, worth, credit
