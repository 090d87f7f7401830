"""flashlight-text's beam search (that of wav2letter and of torchaudio) behind our interface.

What its options mean here:

- KenLM, which reads the language model, gives log10, and flashlight multiplies it by a weight: with
  ``alpha * ln(10)`` that is the ``alpha`` of :class:`asr.decode.scorer.Weights`. Its word score is in
  nats, as ``beta`` is. Alignments of a text are summed, not only the best one counted (``log_add``).
- In its lexicon every word ends with a space, which models seldom write at the end of an utterance.
  A last frame that is certainly a space is added: it costs nothing and ends the last word.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.decode.arpa import SPECIAL_WORDS, UNKNOWN_WORD, LanguageModelError
from asr.decode.beam import Labelling, frames_of, only_these
from asr.decode.decoder import FORBIDDEN, refuse_unusable
from asr.decode.lexicon import read_lexicon, spellable
from asr.decode.ngram import NgramModel
from asr.decode.scorer import token_names, warn_of_unknown_words, when_changed
from asr.decode.token_times import aligned
from asr.errors import ConfigError
from asr.records import Emissions, Hypothesis
from asr.tokenizer import Tokenizer


class Search(NamedTuple):
    """A decoder of flashlight; ``words`` are those of its lexicon by number, if it has one.

    ``closing_token`` is certain in the frame that is added to every utterance.
    """

    decoder: Any
    closing_token: int
    words: tuple[str, ...] | None


class FlashlightDecoder:
    """Beam search by flashlight-text.

    Scores are those of :class:`asr.decode.beam.BeamDecoder` with the same weights and a closed vocabulary.
    flashlight lets nothing else of Python run while it searches, so utterances are decoded one by one.

    Args:
        tokenizer: gives the blank and turns labels into text.
        seconds_per_frame: for word times.
        search: see :func:`make_search`.
    """

    def __init__(self, tokenizer: Tokenizer, seconds_per_frame: float, search: Search) -> None:
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self._search = search

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        """``(batch, frames, vocab)`` log-probabilities → the best hypothesis of each utterance.

        Raises:
            DecodeError: NaN or a frame in which no token is possible.
        """
        return [hypotheses[0] for hypotheses in self.decode_nbest(emissions, 1)]

    def decode_nbest(self, emissions: Emissions, num_best: int) -> list[list[Hypothesis]]:
        """The ``num_best`` best texts of each utterance, best first; fewer where fewer survive.

        Raises:
            DecodeError: see :meth:`decode`.
            ConfigError: log-probabilities and tokenizer differ in their number of classes.
        """
        return [
            self._hypotheses(log_probs, index, num_best)
            for index, log_probs in enumerate(frames_of(emissions, self.tokenizer))
        ]

    def text_score(self, token_ids: Sequence[int]) -> float:
        """What lexicon and language model add for a labelling, in nats; minus infinity if they forbid it."""
        (found,) = self.search(only_these(token_ids, self.tokenizer), 1)
        return found.score if found.is_complete and found.token_ids == tuple(token_ids) else -math.inf

    def search(self, log_probs: NDArray[np.float32], num_best: int) -> list[Labelling]:
        """The best texts of one utterance ``(frames, vocab)``, without times.

        ``log_probs`` hold no NaN, and something is possible in each frame.
        """
        closing = np.full((1, log_probs.shape[1]), 2 * FORBIDDEN, np.float32)
        closing[0, self.tokenizer.blank_id] = FORBIDDEN  # the way out where no word can end
        closing[0, self._search.closing_token] = 0.0
        padded = np.concatenate([np.maximum(log_probs, np.float32(FORBIDDEN)), closing])
        found: dict[tuple[int, ...], Labelling] = {}
        for result in self._search.decoder.decode(padded.ctypes.data, *padded.shape):
            token_ids = self._token_ids(result)
            is_complete = result.score > FORBIDDEN / 2  # else the added frame has cost that much
            score = result.score if is_complete else result.score - FORBIDDEN
            found.setdefault(token_ids, Labelling(token_ids, score, is_complete))
            if len(found) == num_best:
                break
        return list(found.values())

    def _hypotheses(self, log_probs: NDArray[np.float32], index: int, num_best: int) -> list[Hypothesis]:
        refuse_unusable(log_probs, index)
        return [
            aligned(self.tokenizer, log_probs, one.token_ids, one.score, self.seconds_per_frame)
            for one in self.search(log_probs, num_best)
        ]

    def _token_ids(self, result: Any) -> tuple[int, ...]:
        words = self._search.words
        if words is not None:
            return tuple(self.tokenizer.encode(" ".join(words[word] for word in result.words if word >= 0)))
        path = result.tokens[1:-2]  # one per frame, between where the search starts and what was added
        return tuple(token for token, _ in groupby(path) if token != self.tokenizer.blank_id)


def make_search(
    tokenizer: Tokenizer,
    *,
    beam_width: int,
    score_gap: float,
    max_tokens: int | None,
    lexicon_path: str | None = None,
    lm_path: str | None = None,
    lm_unit: Literal["word", "token"] = "word",
    alpha: float = 0.0,
    beta: float = 0.0,
) -> Search:
    """flashlight's search over the words of a lexicon, or without one over tokens.

    Args:
        beam_width, score_gap, max_tokens: see :class:`asr.decode.beam.Pruning`.
        lexicon_path, lm_path, lm_unit: see :func:`asr.decode.scorer.make_scorer`.
        alpha, beta: see :class:`asr.decode.scorer.Weights`; beta has no effect without words.

    Raises:
        ConfigError: flashlight-text is not installed, or has no words for these tokens.
        AsrError: a file is missing or damaged, or does not fit the tokenizer.
    """
    flashlight = _flashlight()
    words = _load_words(tokenizer, lm_path, lexicon_path, lm_unit, when_changed(lm_path, lexicon_path))
    common = {
        "beam_size": beam_width,
        "beam_size_token": max_tokens or tokenizer.vocab_size,
        "beam_threshold": score_gap,
        "lm_weight": alpha * math.log(10),
        "sil_score": 0.0,
        "log_add": True,
        "criterion_type": flashlight.CriterionType.CTC,
    }
    blank = tokenizer.blank_id
    if words.trie is None:
        options = flashlight.LexiconFreeDecoderOptions(**common)
        # The search starts as if after a silence. A blank is that, and changes no labels.
        return Search(flashlight.LexiconFreeDecoder(options, words.model, blank, blank, []), blank, None)
    space = _space(tokenizer)
    options = flashlight.LexiconDecoderOptions(word_score=beta, unk_score=-math.inf, **common)
    unknown = len(words.names)
    decoder = flashlight.LexiconDecoder(options, words.trie, words.model, space, blank, unknown, [], False)
    return Search(decoder, space, words.names)


class _Words(NamedTuple):
    """A language model and, if the search is over words, the trie that spells them and their ``names``."""

    model: Any
    trie: Any = None
    names: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def _load_words(
    tokenizer: Tokenizer,
    lm_path: str | None,
    lexicon_path: str | None,
    lm_unit: Literal["word", "token"],
    changed: tuple[int, ...],
) -> _Words:
    """What does not depend on weights; kept for the next call, as that of :mod:`asr.decode.scorer` is."""
    lm = None if lm_path is None else NgramModel.load(lm_path)  # says what is wrong with it in one line
    if lexicon_path is None and (lm is None or lm_unit == "token"):
        names = token_names(tokenizer, lm) if lm is not None else tokenizer.tokens
        return _Words(_language_model(lm_path, names))
    space = _space(tokenizer)
    if lexicon_path is not None:
        words = spellable(sorted(set(read_lexicon(Path(lexicon_path)))), tokenizer, lexicon_path)
        if lm is not None:
            warn_of_unknown_words(words, lm, lexicon_path)
    else:
        assert lm is not None
        words = spellable(sorted(set(lm.vocabulary) - set(SPECIAL_WORDS)), tokenizer, str(lm_path))
    model = _language_model(lm_path, [*words, UNKNOWN_WORD])
    flashlight = _flashlight()
    trie = flashlight.Trie(tokenizer.vocab_size, space)
    start = model.start(False)
    for number, word in enumerate(words):
        trie.insert([*tokenizer.encode(word), space], number, model.score(start, number)[1])
    trie.smear(flashlight.SmearingMode.MAX)
    return _Words(model, trie, tuple(words))


def _flashlight() -> Any:
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise ConfigError(
            f"decoder=flashlight needs flashlight-text ({error}): pip install flashlight-text, "
            "or use decoder=beam or decoder=beam_lm"
        ) from error
    return decoder


def _language_model(path: str | None, words: list[str]) -> Any:
    """KenLM over numbered ``words``; without a path, a model that finds everything equally likely."""
    if path is None:
        return _flashlight().ZeroLM()
    from flashlight.lib.text.dictionary import Dictionary

    try:
        from flashlight.lib.text.decoder.kenlm import KenLM
    except ImportError as error:
        raise ConfigError(
            "decoder.lm needs a flashlight-text that has KenLM, as its wheels have: "
            "pip install --force-reinstall flashlight-text, or use decoder=beam_lm"
        ) from error
    try:
        with _silent_stderr():
            return KenLM(path, Dictionary(words))
    except RuntimeError as error:
        raise LanguageModelError(
            f"{path}: KenLM cannot read it ({' '.join(str(error).split())[-200:]})"
        ) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """KenLM draws a progress bar for every model that it reads, past Python and every option."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _space(tokenizer: Tokenizer) -> int:
    """The token that ends words.

    Raises:
        ConfigError: there is none, or other tokens hold spaces.
    """
    with_space = [index for index, token in enumerate(tokenizer.tokens) if " " in token]
    if [tokenizer.tokens[index] for index in with_space] != [" "]:
        raise ConfigError(
            "decoder=flashlight finds words by the token for the space, and these tokens are subwords or have "
            "none: use decoder=beam_lm, or leave out decoder.lexicon and take a decoder.lm_unit=token model"
        )
    return with_space[0]
