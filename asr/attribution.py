"""Which part of a recogniser is to blame for an error: the acoustic model, the language model or the search.

The decoder looks for the text with the highest total score: the acoustic log-probability of its labelling
(all CTC alignments summed) plus what language model, word bonus and hotwords add. So an error is

- of the **search** when the reference has the higher total: it was missed by pruning, or by a best path
  that is not the best labelling,
- else of the **language model** when the reference has the higher acoustic score alone,
- else of the **acoustic model**: no search and no weight of this language model would have found the reference.

This is the blame assignment of Chase, "Blame assignment for errors made by large vocabulary speech
recognizers" (Eurospeech 1997), with exact CTC scores. (A search with words sums the labellings of a text that differ
in superfluous spaces. Here each text is one labelling, so what those sums alone decided counts as the search's.)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from asr.ctc.loss import ctc_loss
from asr.decode.decoder import Decoder
from asr.errors import TextError
from asr.score import AlignedPair, align_words
from asr.tokenizer import Tokenizer

Cause = Literal["acoustic_model", "language_model", "search", "unwritable"]

_MAX_CELLS = 20_000_000
_TOLERANCE = 1e-3  # nats; the scores are sums in float32


@dataclass(frozen=True, slots=True)
class TextScore:
    """Natural logs: ``acoustic`` of the labelling given the audio, ``text`` all that the decoder adds.

    Minus infinity for what is impossible: too few frames, or words that a closed vocabulary lacks.
    """

    acoustic: float
    text: float

    @property
    def total(self) -> float:
        return self.acoustic + self.text


@dataclass(frozen=True, slots=True)
class ErrorRegion:
    """Neighbouring wrong words, and what writing ``reference`` there instead would change, in nats.

    The rest of the hypothesis stays as it is, errors elsewhere included.
    """

    reference: str
    hypothesis: str
    cause: Cause
    acoustic_gain: float
    text_gain: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """Why one utterance was not recognised as its reference; ``reason`` explains what is ``unwritable``."""

    cause: Cause
    reason: str
    reference: TextScore
    hypothesis: TextScore
    regions: tuple[ErrorRegion, ...]


def attribute_errors(
    log_probs: Tensor,
    reference: str,
    hypothesis: str,
    token_ids: Sequence[int],
    tokenizer: Tokenizer,
    decoder: Decoder,
) -> Attribution:
    """Find the cause of the errors of one utterance, as a whole and for each error region.

    A text other than the hypothesis is scored as the tokenizer spells it.

    Args:
        log_probs: ``(frames, vocab)``, what the decoder saw.
        reference, hypothesis: different texts, both normalised as in training.
        token_ids: the labelling that the decoder returned for ``hypothesis``.
    """
    runs = list(_runs(align_words(reference, hypothesis).pairs))
    texts = [reference, *(_corrected(runs, index) for index, run in enumerate(runs) if run[0])]
    labellings: list[list[int] | None] = [_encode(tokenizer, text) for text in texts]
    known = [labels for labels in labellings if labels is not None]
    found, *others = _scores(log_probs, [list(token_ids), *known], tokenizer.blank_id, decoder)
    remaining = iter(others)
    scores = [None if labels is None else next(remaining) for labels in labellings]
    regions = tuple(
        _region(pairs, found, score)
        for pairs, score in zip((pairs for is_wrong, pairs in runs if is_wrong), scores[1:], strict=True)
    )
    impossible = TextScore(-math.inf, -math.inf)
    return Attribution(
        cause=_cause(found, scores[0]),
        reason=_obstacle(reference, tokenizer, scores[0]),
        reference=scores[0] or impossible,
        hypothesis=found,
        regions=regions,
    )


def _cause(found: TextScore, other: TextScore | None) -> Cause:
    if other is None or other.acoustic == -math.inf:
        return "unwritable"
    if other.total > found.total + _TOLERANCE:
        return "search"
    return "language_model" if other.acoustic > found.acoustic + _TOLERANCE else "acoustic_model"


def _obstacle(reference: str, tokenizer: Tokenizer, score: TextScore | None) -> str:
    """Why no model could emit the reference; empty where one could."""
    if score is None:
        unknown = " ".join(sorted(tokenizer.unknown_characters(reference)))
        return f"the reference has characters that the model does not know: {unknown}"
    if score.acoustic == -math.inf:
        return "the reference has more tokens than the audio has frames"
    return ""


def _region(pairs: Sequence[AlignedPair], found: TextScore, other: TextScore | None) -> ErrorRegion:
    return ErrorRegion(
        reference=" ".join(pair.reference for pair in pairs if pair.reference),
        hypothesis=" ".join(pair.hypothesis for pair in pairs if pair.hypothesis),
        cause=_cause(found, other),
        acoustic_gain=-math.inf if other is None else other.acoustic - found.acoustic,
        text_gain=-math.inf if other is None else other.text - found.text,
    )


def _runs(pairs: Sequence[AlignedPair]) -> Iterator[tuple[bool, list[AlignedPair]]]:
    """Right and wrong stretches of an alignment, in turn."""
    for is_wrong, run in groupby(pairs, lambda pair: pair.operation != "equal"):
        yield is_wrong, list(run)


def _corrected(runs: Sequence[tuple[bool, list[AlignedPair]]], corrected: int) -> str:
    """The hypothesis with the reference's words in one run."""
    words = [
        pair.reference if index == corrected else pair.hypothesis
        for index, (_, pairs) in enumerate(runs)
        for pair in pairs
    ]
    return " ".join(word for word in words if word)


def _encode(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text)
    except TextError:
        return None


def _scores(
    log_probs: Tensor, labellings: Sequence[Sequence[int]], blank: int, decoder: Decoder
) -> list[TextScore]:
    num_frames, vocab_size = log_probs.shape
    longest = max(map(len, labellings))
    # The loss keeps a number for each frame and state of each labelling.
    at_a_time = max(1, _MAX_CELLS // (num_frames * (2 * longest + 1 + vocab_size)))
    acoustic = [
        score
        for first in range(0, len(labellings), at_a_time)
        for score in _acoustic_scores(log_probs, labellings[first : first + at_a_time], blank)
    ]
    return [
        TextScore(score, decoder.text_score(labels))
        for score, labels in zip(acoustic, labellings, strict=True)
    ]


def _acoustic_scores(log_probs: Tensor, labellings: Sequence[Sequence[int]], blank: int) -> list[float]:
    lengths = torch.tensor([len(labels) for labels in labellings])
    targets = torch.full((len(labellings), max(1, int(lengths.max()))), blank)
    for row, labels in zip(targets, labellings, strict=True):
        row[: len(labels)] = torch.tensor(labels, dtype=torch.long)
    losses = ctc_loss(
        log_probs.detach().float().cpu().expand(len(labellings), -1, -1).contiguous(),
        targets,
        torch.full((len(labellings),), len(log_probs)),
        lengths,
        blank=blank,
        reduction="none",
        layout="NTC",
        backend="native",  # as exact as the others, and nothing has to be compiled
        check=False,
    )
    return [-loss for loss in losses.tolist()]
