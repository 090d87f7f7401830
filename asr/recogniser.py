"""Waveforms → text, the same way for evaluation and transcription."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.decode.decoder import Decoder
from asr.device import in_float32, to_device
from asr.models.acoustic import AcousticModel
from asr.records import Emissions, Hypothesis, Word
from asr.tokenizer import Tokenizer


@dataclass(frozen=True)
class Recogniser:
    """A trained model, ready: front-end and encoder on their device, tokenizer, decoder, text rules."""

    acoustic_model: AcousticModel
    tokenizer: Tokenizer
    decoder: Decoder
    normalise: Callable[[str], str]
    wildcard: str | None = None  # what stands for missing words in transcripts

    @property
    def sample_rate(self) -> int:
        return self.acoustic_model.features.sample_rate

    @property
    def device(self) -> torch.device:
        return next(self.acoustic_model.parameters()).device

    def emissions(self, waveforms: Sequence[Tensor]) -> Emissions:
        """Log-probabilities of some waveforms, each ``(samples,)``, as one batch."""
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        padded = pad_sequence(list(waveforms), batch_first=True)
        device = self.device
        with torch.inference_mode(), in_float32(device):
            return self.acoustic_model(to_device(padded, device), to_device(lengths, device))

    def hypotheses(self, emissions: Emissions) -> list[Hypothesis]:
        """One hypothesis per utterance of a batch, its text and words normalised as the training text was."""
        return [normalised(hypothesis, self.normalise) for hypothesis in self.decoder.decode(emissions)]

    def recognise(self, waveforms: Sequence[Tensor]) -> list[Hypothesis]:
        """One hypothesis per waveform; see :meth:`hypotheses`."""
        return self.hypotheses(self.emissions(waveforms))


def normalised(hypothesis: Hypothesis, normalise: Callable[[str], str]) -> Hypothesis:
    """Normalise text and words alike, so that the words still spell the text.

    A word that normalises to several shares its time among them by their letters; one that
    normalises to nothing goes.
    """
    words = tuple(part for word in hypothesis.words for part in _split(word, normalise(word.text).split()))
    return replace(hypothesis, text=normalise(hypothesis.text), words=words)


def _split(word: Word, texts: Sequence[str]) -> Iterator[Word]:
    seconds_per_letter = (word.end_seconds - word.start_seconds) / max(1, sum(map(len, texts)))
    start = word.start_seconds
    for text, following in zip_longest(texts, texts[1:]):
        end = start + seconds_per_letter * len(text) if following is not None else word.end_seconds
        yield Word(text, start, end, word.confidence)
        start = end
