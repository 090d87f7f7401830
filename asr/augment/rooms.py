"""Reverberation: speech convolved with the impulse response of a room, measured or made up."""

from typing import NamedTuple

import torch
from torch import Tensor

from asr.audio import seconds_to_samples
from asr.augment.convolution import convolve_aligned
from asr.augment.sounds import Part, SoundLibrary
from asr.augment.streams import uniform

# What arrives this soon after the direct sound counts as direct (Zahorik, JASA 2002).
DIRECT_SECONDS = 0.0025
# In the time RT60 the energy decays by 60 dB, the amplitude by a factor of 1000.
_DECAY = 6.907755  # ln 1000


class MeasuredRoom(NamedTuple):
    part: Part


class SimulatedRoom(NamedTuple):
    """``rt60_seconds``: until the sound has decayed by 60 dB; ``direct_db``: direct to reverberant energy."""

    rt60_seconds: float
    direct_db: float
    seed: int


class MeasuredRooms:
    """Impulse responses from files (the mean of their channels), applied with a probability."""

    def __init__(self, library: SoundLibrary, *, probability: float) -> None:
        self.library = library
        self.probability = probability

    def draw(self, generator: torch.Generator) -> MeasuredRoom | None:
        if uniform(0, 1, generator) >= self.probability:
            return None
        return MeasuredRoom(self.library.draw(generator))

    def response(self, drawn: MeasuredRoom) -> Tensor:
        return self.library.load(drawn.part).waveform


class SimulatedRooms:
    """Made-up impulse responses, applied with a probability.

    The direct sound and, after it, white Gaussian noise that decays exponentially: the diffuse
    reverberation of Polack's statistical model ("La transmission de l'énergie sonore dans les
    salles", 1988). It has no single early reflections and the same decay at all frequencies.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        probability: float,
        rt60_seconds: tuple[float, float],
        direct_db: tuple[float, float],
    ) -> None:
        self.sample_rate = sample_rate
        self.probability = probability
        self.rt60_seconds = rt60_seconds
        self.direct_db = direct_db

    def draw(self, generator: torch.Generator) -> SimulatedRoom | None:
        if uniform(0, 1, generator) >= self.probability:
            return None
        return SimulatedRoom(
            rt60_seconds=uniform(*self.rt60_seconds, generator),
            direct_db=uniform(*self.direct_db, generator),
            seed=int(torch.randint(2**62, (), generator=generator).item()),
        )

    def response(self, drawn: SimulatedRoom) -> Tensor:
        """``(samples,)`` from the direct sound, 1, to the end of the decay."""
        generator = torch.Generator().manual_seed(drawn.seed)
        num_direct = max(1, seconds_to_samples(DIRECT_SECONDS, self.sample_rate))
        num_tail = max(1, seconds_to_samples(drawn.rt60_seconds, self.sample_rate))
        seconds = torch.arange(num_tail) / self.sample_rate
        tail = torch.randn(num_tail, generator=generator) * torch.exp(-_DECAY / drawn.rt60_seconds * seconds)
        tail *= 10 ** (-drawn.direct_db / 20) / torch.linalg.vector_norm(tail)
        response = torch.zeros(num_direct + num_tail)
        response[0] = 1.0
        response[num_direct:] = tail
        return response


def reverberate(waveform: Tensor, response: Tensor) -> Tensor:
    """``(samples,)`` speech in a room, as long and as loud as before.

    The delay of the direct path (the strongest sample of the response) is taken out, so that the
    words stay where they were. What rings on after the end of the utterance is cut off.
    """
    wet = convolve_aligned(waveform, response, delay=int(response.abs().argmax()))
    loudness = torch.linalg.vector_norm(wet)
    return wet * (torch.linalg.vector_norm(waveform) / loudness) if loudness > 0 else waveform
