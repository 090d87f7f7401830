"""Waveforms → text, the same way for evaluation and transcription."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.decode.decoder import Decoder
from asr.device import to_device
from asr.models.acoustic import AcousticModel
from asr.records import Emissions, Hypothesis
from asr.tokenizer import Tokenizer


@dataclass(frozen=True)
class Recogniser:
    """A trained model, ready: front-end and encoder on their device, tokenizer, decoder, text rules."""

    acoustic_model: AcousticModel
    tokenizer: Tokenizer
    decoder: Decoder
    normalise: Callable[[str], str]

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
        with torch.inference_mode():
            return self.acoustic_model(to_device(padded, self.device), to_device(lengths, self.device))

    def hypotheses(self, emissions: Emissions) -> list[Hypothesis]:
        """One hypothesis per utterance of a batch, its text normalised as the training text was."""
        return [
            replace(hypothesis, text=self.normalise(hypothesis.text))
            for hypothesis in self.decoder.decode(emissions)
        ]

    def recognise(self, waveforms: Sequence[Tensor]) -> list[Hypothesis]:
        """One hypothesis per waveform."""
        return self.hypotheses(self.emissions(waveforms))
