"""Prefix beam search: the likeliest labellings, each with the probability of all its alignments."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.decode.confidence import MAX_SECONDS, NUM_RIVALS, Rival, blend, word_shares
from asr.decode.decoder import DecodeError, unusable_frame
from asr.decode.scored_kernels import prefix_search
from asr.decode.scorer import Scorer
from asr.decode.token_times import aligned
from asr.device import to_host
from asr.errors import ConfigError
from asr.records import Emissions, Hypothesis, Word
from asr.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Pruning:
    """What the search may drop, frame by frame.

    Args:
        beam_width: at most so many prefixes are kept.
        score_gap: a prefix more than so many nats behind the best is dropped.
        token_gap: a token more than so many nats behind the frame's likeliest is not considered.
        max_tokens: at most so many tokens of a frame are considered, the likeliest (None: all).

    Raises:
        ConfigError: a value that would leave nothing to search.
    """

    beam_width: int = 50
    score_gap: float = 12.0
    token_gap: float = 8.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.beam_width < 1:
            raise ConfigError(f"decoder.beam_width={self.beam_width} must be at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"decoder.max_tokens={self.max_tokens} must be at least 1")
        for option in ("score_gap", "token_gap"):
            if not getattr(self, option) > 0:
                raise ConfigError(f"decoder.{option}={getattr(self, option)} must be above 0")

    @classmethod
    def none(cls, beam_width: int) -> "Pruning":
        """Drop nothing but what exceeds ``beam_width``."""
        return cls(beam_width, score_gap=math.inf, token_gap=math.inf)


class Labelling(NamedTuple):
    """A result of the search: token ids and natural-log score.

    ``is_complete`` is false when the last word is cut off: with a closed vocabulary it can happen that
    no prefix that survived to the end is a sequence of whole words.
    """

    token_ids: tuple[int, ...]
    score: float
    is_complete: bool = True


class BeamDecoder:
    """Prefix beam search (Hannun et al. 2014, arXiv 1408.2873).

    The score of a hypothesis is the natural log of the probability of its labelling, all alignments
    summed, plus what ``scorer`` adds for its text. With a ``scorer`` (but for models of tokens) a labelling
    stands for all that differ from it in superfluous spaces.

    Utterances of a batch are searched in parallel by threads; the compiled search holds no lock.
    Equally good prefixes at the edge of the beam are kept in the order in which they came.

    Args:
        tokenizer: gives the blank and turns labels into text.
        seconds_per_frame: for word times.
        pruning: how much is searched.
        scorer: words, language model and hotwords, if any.
        num_threads: utterances searched at a time (None: one per available core).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        seconds_per_frame: float,
        *,
        pruning: Pruning | None = None,
        scorer: Scorer | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.pruning = pruning or Pruning()
        self.scorer = scorer
        self.num_threads = num_threads or len(os.sched_getaffinity(0))

    def decode(self, emissions: Emissions) -> list[Hypothesis]:
        """``(batch, frames, vocab)`` log-probabilities → the best hypothesis of each utterance.

        Raises:
            DecodeError: NaN or a frame in which no token is possible.
        """
        return [hypotheses[0] for hypotheses in self.decode_nbest(emissions, 1)]

    def decode_nbest(self, emissions: Emissions, num_best: int) -> list[list[Hypothesis]]:
        """The ``num_best`` best labellings of each utterance, best first; fewer where fewer survive.

        Raises:
            DecodeError: see :meth:`decode`.
            ConfigError: log-probabilities and tokenizer differ in their number of classes.
        """
        utterances = frames_of(emissions, self.tokenizer)
        return self._map(lambda index: self._hypotheses(utterances[index], index, num_best), len(utterances))

    def search(self, log_probs: NDArray[np.float32], num_best: int) -> list[Labelling]:
        """The best labellings of one utterance ``(frames, vocab)``, without times.

        Raises:
            DecodeError: see :meth:`decode`.
        """
        return self._search(log_probs, 0, num_best)

    def text_score(self, token_ids: Sequence[int]) -> float:
        """What ``scorer`` adds for a labelling, in nats; minus infinity for one that it forbids.

        It is what the search itself finds where nothing else can be heard.
        """
        if self.scorer is None:
            return 0.0
        try:
            (labelling,) = self._search(only_these(token_ids, self.tokenizer), 0, 1)
        except DecodeError:
            return -math.inf
        return labelling.score if labelling.is_complete else -math.inf

    def _map(
        self, decode_one: Callable[[int], list[Hypothesis]], num_utterances: int
    ) -> list[list[Hypothesis]]:
        num_threads = min(self.num_threads, num_utterances)
        if num_threads <= 1:
            return [decode_one(index) for index in range(num_utterances)]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(decode_one, range(num_utterances)))

    def _hypotheses(self, log_probs: NDArray[np.float32], index: int, num_best: int) -> list[Hypothesis]:
        found = self._search(log_probs, index, max(num_best, NUM_RIVALS))
        rivals = self._rivals(found[:NUM_RIVALS])
        return [self._hypothesis(log_probs, labelling, rivals) for labelling in found[:num_best]]

    def _rivals(self, labellings: Sequence[Labelling]) -> list[Rival]:
        return [Rival(self.tokenizer.decode(found.token_ids).split(), found.score) for found in labellings]

    def _search(self, log_probs: NDArray[np.float32], index: int, num_best: int) -> list[Labelling]:
        num_best = min(num_best, self.pruning.beam_width)
        tokens = np.empty((num_best, max(1, len(log_probs))), np.int32)
        lengths, scores = np.empty(num_best, np.int64), np.empty(num_best)
        pruning = self.pruning
        limits = (
            pruning.beam_width,
            pruning.max_tokens or log_probs.shape[1],
            float(pruning.token_gap),
            float(pruning.score_gap),
        )
        scoring, lm = (None, None) if self.scorer is None else (self.scorer.scoring, self.scorer.lm_tables)
        found, is_complete = prefix_search(
            log_probs, self.tokenizer.blank_id, *limits, scoring, lm, tokens, lengths, scores
        )
        if found < 0:
            raise _unusable(log_probs[-1 - found], -1 - found, index)
        return [
            Labelling(tuple(tokens[rank, : lengths[rank]].tolist()), float(scores[rank]), is_complete)
            for rank in range(found)
        ]

    def _hypothesis(
        self, log_probs: NDArray[np.float32], labelling: Labelling, rivals: Sequence[Rival]
    ) -> Hypothesis:
        token_ids, num_kept = labelling.token_ids, len(labelling.token_ids)
        if not labelling.is_complete:
            num_kept = self.tokenizer.word_groups(token_ids)[-1].first
        hypothesis = aligned(
            self.tokenizer, log_probs, token_ids, labelling.score, self.seconds_per_frame, num_kept
        )
        return replace(hypothesis, words=self._with_confidence(hypothesis.words, log_probs, rivals))

    def _with_confidence(
        self, words: Sequence[Word], log_probs: NDArray[np.float32], rivals: Sequence[Rival]
    ) -> tuple[Word, ...]:
        """Words that come with the acoustic model's confidence; ``rivals`` are those of the utterance."""
        if len(log_probs) * self.seconds_per_frame <= MAX_SECONDS:
            shares = word_shares([word.text for word in words], rivals)
        else:
            shares = [share for part in _parts(words) for share in self._shares_of_part(part, log_probs)]
        confidences = blend(shares, [word.confidence for word in words])
        return tuple(
            replace(word, confidence=confidence) for word, confidence in zip(words, confidences, strict=True)
        )

    def _shares_of_part(self, words: Sequence[Word], log_probs: NDArray[np.float32]) -> list[float]:
        """Search the part of the audio that ``words`` are in, for rivals of its own."""
        first, last = (
            round(seconds / self.seconds_per_frame)
            for seconds in (words[0].start_seconds, words[-1].end_seconds)
        )
        try:
            found = self._search(np.ascontiguousarray(log_probs[first : last + 1]), 0, NUM_RIVALS)
        except DecodeError:  # a closed vocabulary may have nothing for a part alone
            return [word.confidence for word in words]
        return word_shares([word.text for word in words], self._rivals(found))


def _parts(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Consecutive words that last :data:`~asr.decode.confidence.MAX_SECONDS` at most, or a single one."""
    first = 0
    for number, word in enumerate(words):
        if number > first and word.end_seconds - words[first].start_seconds > MAX_SECONDS:
            yield words[first:number]
            first = number
    if words:
        yield words[first:]


def only_these(token_ids: Sequence[int], tokenizer: Tokenizer) -> NDArray[np.float32]:
    """``(frames, vocab)`` log-probabilities in which nothing but ``token_ids`` can be heard."""
    log_probs = np.full((2 * len(token_ids) + 1, tokenizer.vocab_size), -np.inf, np.float32)
    log_probs[0::2, tokenizer.blank_id] = 0.0
    log_probs[np.arange(len(token_ids)) * 2 + 1, np.asarray(token_ids, np.int64)] = 0.0
    return log_probs


def frames_of(emissions: Emissions, tokenizer: Tokenizer) -> list[NDArray[np.float32]]:
    """The ``(frames, vocab)`` of each utterance of a batch, in the CPU's memory.

    Raises:
        ConfigError: log-probabilities and tokenizer differ in their number of classes.
    """
    vocab_size = emissions.log_probs.shape[2]
    if vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"the model emits {vocab_size} classes but the tokenizer has {tokenizer.vocab_size} "
            "tokens: they are not of one training"
        )
    log_probs = to_host(emissions.log_probs.detach().float()).numpy()
    lengths = emissions.log_prob_lengths.tolist()
    return [np.ascontiguousarray(frames[:length]) for frames, length in zip(log_probs, lengths, strict=True)]


def _unusable(row: NDArray[np.float32], frame: int, index: int) -> DecodeError:
    if np.isnan(row).any():
        return unusable_frame(index, frame, "hold NaN")
    if row.max() == -np.inf:
        return unusable_frame(index, frame, "are all minus infinity")
    return DecodeError(
        index,
        f"no candidate survives frame {frame}; "
        "raise decoder.token_gap or decoder.beam_width, or allow an open vocabulary",
    )
