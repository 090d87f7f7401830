"""What the search adds to the acoustic scores: words, language model and hotwords as one set of tables."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asr.decode.arpa import SPACE, SPECIAL_WORDS, UNKNOWN_WORD
from asr.decode.hotwords import OTHER, Hotwords, read_hotwords
from asr.decode.lexicon import BETWEEN_WORDS, Lexicon, TokenSpellings, read_lexicon
from asr.decode.ngram import NgramModel, NgramTables
from asr.decode.scored_kernels import NO_LM, NONE, TOKEN_LM, WORD_LM, Scoring
from asr.decode.search_kernels import SMALLEST
from asr.errors import ConfigError
from asr.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Vocabulary = Literal["closed", "open"]
LmUnit = Literal["word", "token"]
_LN10 = math.log(10.0)


def _read_only(*values: int, dtype: type) -> NDArray[Any]:
    """An array of the kind that models hold, so that one compiled search serves with and without."""
    array: NDArray[Any] = np.array(values, dtype)
    array.flags.writeable = False
    return array


_NO_TABLES = NgramTables(
    words=_read_only(-1, dtype=np.int32),
    log10_probs=_read_only(0, dtype=np.float32),
    next_states=_read_only(0, dtype=np.int32),
    backoffs=_read_only(0, dtype=np.float32),
    first_children=_read_only(1, 1, dtype=np.int32),
    shorter=_read_only(0, dtype=np.int32),
)


@dataclass(frozen=True, slots=True)
class Weights:
    """How the scores are combined: ``acoustic + alpha * lm + beta * words + unknown_penalty * unknown``.

    Args:
        alpha: weight of the language model's natural-log probability.
        beta: nats added for every word.
        unknown_penalty: nats added, beside the model's own score of ``<unk>``, for every word that it does
            not know; without a model, for every word that is not in the lexicon.

    Raises:
        ConfigError: alpha below 0 or unknown_penalty above 0.
    """

    alpha: float = 0.0
    beta: float = 0.0
    unknown_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"decoder.alpha={self.alpha} must be at least 0")
        if not -math.inf < self.beta < math.inf:
            raise ConfigError(f"decoder.beta={self.beta} must be a finite number")
        if not -math.inf < self.unknown_penalty <= 0:
            raise ConfigError(f"decoder.unknown_penalty={self.unknown_penalty} must be at most 0")


class Scorer:
    """Scores of texts beyond the acoustic ones, in the form that the search reads.

    Args:
        tokenizer: what the words are spelled with.
        lexicon: the known words; None: every word is allowed and none is known.
        vocabulary: ``closed`` allows only the words of the lexicon, ``open`` all others too.
        lm: a language model over words or tokens.
        lm_unit: which of the two.
        weights: how it all adds up.
        hotwords: phrases with a bonus.

    Raises:
        ConfigError: a closed vocabulary without a lexicon, or tokens that are no part of one word.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        lexicon: Lexicon | None = None,
        vocabulary: Vocabulary = "open",
        lm: NgramModel | None = None,
        lm_unit: LmUnit = "word",
        weights: Weights | None = None,
        hotwords: Hotwords | None = None,
    ) -> None:
        if vocabulary == "closed" and lexicon is None:
            raise ConfigError("decoder.vocabulary=closed needs the words: give decoder.lexicon or a word LM")
        self.lm_tables = _NO_TABLES if lm is None else lm.tables
        lexicon = lexicon or Lexicon.empty()
        spellings = TokenSpellings.of(tokenizer)
        weights = weights or Weights()
        lm_kind = NO_LM if lm is None else WORD_LM if lm_unit == "word" else TOKEN_LM
        word_lm = lm if lm_kind == WORD_LM else None
        word_tables = _word_tables(lexicon, vocabulary == "open", word_lm, weights)
        self.scoring = Scoring(
            first_edge=word_tables.first_edge,
            edge_tokens=lexicon.edge_tokens,
            edge_targets=lexicon.edge_targets,
            edge_factors=word_tables.edge_factors,
            leave_factors=word_tables.leave_factors,
            outside=lexicon.num_states if vocabulary == "open" else NONE,
            finish_words=word_tables.finish_words,
            finish_factors=word_tables.finish_factors,
            starts_word=spellings.starts_word,
            has_body=np.array([body != "" for body in spellings.bodies]),
            # To a model of tokens every space counts.
            separator=NONE if lm_kind == TOKEN_LM or spellings.separator is None else spellings.separator,
            **_hotword_tables(hotwords, spellings),
            lm_unit=lm_kind,
            lm_weight=float(weights.alpha * _LN10),
            lm_start=0 if lm is None else int(lm.start_state),
            lm_end=0 if lm is None else int(lm.end_id),
            lm_tokens=_lm_tokens(tokenizer, lm)
            if lm is not None and lm_unit == "token"
            else np.zeros(1, np.int32),
        )


def make_scorer(
    tokenizer: Tokenizer,
    *,
    lexicon_path: str | None = None,
    vocabulary: Vocabulary = "open",
    lm_path: str | None = None,
    lm_unit: LmUnit = "word",
    alpha: float = 0.0,
    beta: float = 0.0,
    unknown_penalty: float = 0.0,
    phrases: Mapping[str, float] | None = None,
    phrase_path: str | None = None,
    phrase_weight: float = 1.0,
) -> Scorer | None:
    """A scorer from files; None where there is nothing to score.

    Args:
        lexicon_path: a file with one word a line; for a word LM, its own words where not given.
        lm_path: an ARPA file, plain or gzip.
        phrases: bonus of each hotword.
        phrase_path, phrase_weight: see :func:`asr.decode.hotwords.read_hotwords`.

    Raises:
        AsrError: a file is missing or damaged, or does not fit the tokenizer; one line that names it.
    """
    hotwords = dict(phrases or {})
    if phrase_path is not None:
        hotwords |= read_hotwords(Path(phrase_path), phrase_weight)
    if lexicon_path is None and lm_path is None and not hotwords:
        return None
    changed = when_changed(lm_path, lexicon_path)
    lm, lexicon = _load_words(tokenizer, lm_path, lexicon_path, lm_unit, changed)
    return Scorer(
        tokenizer,
        lexicon=lexicon,
        vocabulary=vocabulary,
        lm=lm,
        lm_unit=lm_unit,
        weights=Weights(alpha, beta, unknown_penalty),
        hotwords=Hotwords(hotwords, tokenizer) if hotwords else None,
    )


def when_changed(*paths: str | None) -> tuple[int, ...]:
    """Times of the last change of some files, 0 where there is none: what is kept of them is for these."""
    return tuple(os.stat(path).st_mtime_ns if path and os.path.exists(path) else 0 for path in paths)


@lru_cache(maxsize=1)
def _load_words(
    tokenizer: Tokenizer,
    lm_path: str | None,
    lexicon_path: str | None,
    lm_unit: LmUnit,
    changed: tuple[int, ...],
) -> tuple[NgramModel | None, Lexicon | None]:
    """Model and words; kept for the next call, because tuning makes many scorers of the same files."""
    lm = None if lm_path is None else NgramModel.load(lm_path)
    lexicon = None
    if lexicon_path is not None:
        lexicon = Lexicon.build(read_lexicon(Path(lexicon_path)), tokenizer, lexicon_path)
    elif lm is not None and lm_unit == "word":
        lexicon = Lexicon.build(set(lm.vocabulary) - set(SPECIAL_WORDS), tokenizer, str(lm_path))
    if lm is not None and lm_unit == "word" and lexicon is not None and lexicon_path is not None:
        warn_of_unknown_words(lexicon.words, lm, lexicon_path)
    return lm, lexicon


def warn_of_unknown_words(words: Sequence[str], lm: NgramModel, path: str) -> None:
    """Say how many words of the lexicon the model does not know.

    Raises:
        ConfigError: it knows none.
    """
    unknown = [word for word in words if lm.word_id(word) == lm.unknown_id]
    if not unknown:
        return
    message = (
        f"{path}: {len(unknown)} of its {len(words)} words ({100 * len(unknown) / len(words):.3g} %) are unknown to "
        f"the language model, e.g. {', '.join(map(repr, unknown[:3]))}"
    )
    if len(unknown) == len(words):
        raise ConfigError(f"{message}; lexicon and model are not of one language or case")
    log.warning("warning: %s", message)


@dataclass(frozen=True, slots=True)
class _WordTables:
    """See :class:`asr.decode.scored_kernels.Scoring`. One state more than the lexicon has: outside it."""

    first_edge: NDArray[np.int32]
    edge_factors: NDArray[np.float64]
    leave_factors: NDArray[np.float64]
    finish_words: NDArray[np.int32]
    finish_factors: NDArray[np.float64]


def _word_tables(lexicon: Lexicon, is_open: bool, lm: NgramModel | None, weights: Weights) -> _WordTables:
    lm_words = np.zeros(len(lexicon.words), np.int32)
    # Where no words are known at all, none is unknown.
    penalty = weights.unknown_penalty if lexicon.words else 0.0
    unknown_gain, gains = penalty, np.zeros(len(lexicon.words))
    anticipated = gains.copy()
    unknown_word = 0
    if lm is not None:
        unknown_word = lm.unknown_id
        lm_words = np.array([lm.word_id(word) for word in lexicon.words], np.int32)
        gains = np.where(lm_words == unknown_word, penalty, 0.0)
        unigrams = weights.alpha * _LN10 * lm.unigram_log10_probs.astype(np.float64)
        anticipated = gains + unigrams[lm_words]
        unknown_gain += unigrams[unknown_word]
    ahead = np.append(lexicon.best_below(anticipated), unknown_gain)
    if is_open:
        ahead = np.maximum(ahead, unknown_gain)
    ahead[BETWEEN_WORDS] = 0.0
    finish_words = np.full(len(ahead), unknown_word if is_open else NONE, np.int32)
    finish_gains = np.full(len(ahead), weights.beta + penalty)
    finish_words[lexicon.word_states] = lm_words
    finish_gains[lexicon.word_states] = weights.beta + gains
    num_edges = np.diff(lexicon.first_edge)
    sources = np.repeat(np.arange(lexicon.num_states), num_edges)
    return _WordTables(
        first_edge=np.append(lexicon.first_edge, lexicon.first_edge[-1]).astype(np.int32),
        edge_factors=_factors(ahead[lexicon.edge_targets] - ahead[sources]),
        leave_factors=_factors(ahead[-1] - ahead),
        finish_words=finish_words,
        finish_factors=_factors(finish_gains - ahead),
    )


def _factors(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """``exp``, but never zero, which means forbidden."""
    return np.maximum(np.exp(gains), SMALLEST)


def _hotword_tables(hotwords: Hotwords | None, spellings: TokenSpellings) -> dict[str, Any]:
    if hotwords is None:
        empty = np.zeros((2, 2))
        return {
            "first_letter": np.zeros(len(spellings.bodies) + 1, np.int32),
            "letters": np.zeros(0, np.int32),
            "has_hotwords": False,
            "next_hotword_state": empty.astype(np.int32),
            "hotword_bonus": empty,
            "hotword_credit": empty[0],
            "hotword_end": empty[0],
            "hotword_limit": 1.0,
        }
    texts = [
        " " * starts + body
        for starts, body in zip(spellings.starts_word.tolist(), spellings.bodies, strict=True)
    ]
    return {
        "first_letter": np.cumsum([0, *map(len, texts)]).astype(np.int32),
        "letters": np.array([hotwords.letters.get(c, OTHER) for text in texts for c in text], np.int32),
        "has_hotwords": True,
        "next_hotword_state": hotwords.next_state,
        "hotword_bonus": hotwords.bonus,
        "hotword_credit": hotwords.credit,
        "hotword_end": hotwords.end_bonus,
        "hotword_limit": math.exp(hotwords.bonus.max() + hotwords.credit.max()),
    }


def _lm_tokens(tokenizer: Tokenizer, lm: NgramModel) -> NDArray[np.int32]:
    return np.array([lm.word_id(name) for name in token_names(tokenizer, lm)], np.int32)


@lru_cache(maxsize=1)  # tuning makes many scorers of one model, and wants to be warned once
def token_names(tokenizer: Tokenizer, lm: NgramModel) -> list[str]:
    """The tokens as words of a model over them; a space is ``<space>`` alone and ``▁`` in a token.

    Raises:
        ConfigError: the model knows none of the tokens.
    """
    tokens = [SPACE if token == " " else token.replace(" ", "▁") for token in tokenizer.tokens]
    spoken = [token for index, token in enumerate(tokens) if index != tokenizer.blank_id]
    unknown = [token for token in spoken if lm.word_id(token) == lm.unknown_id and token != UNKNOWN_WORD]
    if len(unknown) == len(spoken):
        raise ConfigError(
            "decoder.lm_unit=token, but the language model knows none of the tokens; "
            "was it estimated from words? then give decoder.lm_unit=word"
        )
    if unknown:
        log.warning(
            "warning: the language model does not know %d of the %d tokens, e.g. %s",
            len(unknown),
            len(spoken),
            ", ".join(map(repr, unknown[:3])),
        )
    return tokens
