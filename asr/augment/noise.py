"""Noise mixed into speech at a drawn signal-to-noise ratio: recorded, or made up."""

from typing import NamedTuple

import torch
import torchaudio.functional
from torch import Tensor
from torch.nn.functional import interpolate

from asr.augment.convolution import fast_length
from asr.augment.sounds import Part, Sound, SoundLibrary
from asr.augment.streams import uniform

STEEPEST_DB_PER_OCTAVE = 9.0
MOST_GUSTY_DB = 10.0
GUSTS_PER_SECOND = 3.0
LOWEST_HZ = 50.0
# An amplitude proportional to the frequency rises by so much.
DB_PER_OCTAVE = 6.0206


class NoiseDraw(NamedTuple):
    """Which noise, how loud, and which stretch of it.

    ``instant`` in [0, 1) is a moment of the noise, as a share of its energy; ``place`` in [0, 1) is
    where in the speech that moment falls.
    """

    part: Part
    snr_db: float
    instant: float
    place: float


class MadeNoise(NamedTuple):
    """``slope_db``: of its spectrum, per octave; ``gust_db``: standard deviation of its level, which moves slowly."""

    snr_db: float
    slope_db: float
    gust_db: float
    seed: int


class RecordedNoise:
    """Recordings mixed in with a probability, at an SNR that is uniform in decibels.

    The SNR is the ratio of the energies of the whole utterance and of the noise under it
    (``torchaudio.functional.add_noise``). The speech keeps its level and nothing is clipped: samples
    are floats, and may exceed 1.
    """

    def __init__(self, library: SoundLibrary, *, probability: float, snr_db: tuple[float, float]) -> None:
        self.library = library
        self.probability = probability
        self.snr_db = snr_db

    def draw(self, generator: torch.Generator) -> NoiseDraw | None:
        if uniform(0, 1, generator) >= self.probability:
            return None
        return draw_noise(self.library, self.snr_db, generator)

    def apply(self, waveform: Tensor, drawn: NoiseDraw) -> Tensor:
        return mix_noise(waveform, self.library.load(drawn.part), drawn)


class SimulatedNoise:
    """Made-up noise mixed in with a probability, at an SNR that is uniform in decibels.

    Gaussian noise whose spectrum falls by 0 (white) to 9 dB per octave (traffic and engines are around
    6), from ``LOWEST_HZ`` up. Its level in decibels moves as slow Gaussian noise does: from steady, as a
    fan is, to gusts and single events. It has no tones and no voices; recordings do.
    """

    def __init__(self, *, sample_rate: int, probability: float, snr_db: tuple[float, float]) -> None:
        self.sample_rate = sample_rate
        self.probability = probability
        self.snr_db = snr_db

    def draw(self, generator: torch.Generator) -> MadeNoise | None:
        if uniform(0, 1, generator) >= self.probability:
            return None
        return MadeNoise(
            snr_db=uniform(*self.snr_db, generator),
            slope_db=uniform(-STEEPEST_DB_PER_OCTAVE, 0, generator),
            gust_db=uniform(0, MOST_GUSTY_DB, generator),
            seed=int(torch.randint(2**62, (), generator=generator).item()),
        )

    def apply(self, waveform: Tensor, drawn: MadeNoise) -> Tensor:
        """``(samples,)`` speech with noise under all of it."""
        noise = self.make(len(waveform), drawn)
        return torchaudio.functional.add_noise(waveform, noise, torch.tensor(drawn.snr_db))

    def make(self, num_samples: int, drawn: MadeNoise) -> Tensor:
        """``(num_samples,)`` of noise, at any level."""
        generator = torch.Generator().manual_seed(drawn.seed)
        num_values = fast_length(num_samples)
        spectrum = torch.fft.rfft(torch.randn(num_values, generator=generator))
        hertz = torch.linspace(0, self.sample_rate / 2, len(spectrum)).clamp(min=LOWEST_HZ)
        spectrum *= (hertz / LOWEST_HZ) ** (drawn.slope_db / DB_PER_OCTAVE)
        steady = torch.fft.irfft(spectrum, num_values)[:num_samples]
        num_knots = 2 + int(num_samples / self.sample_rate * GUSTS_PER_SECOND)
        level_db = drawn.gust_db * torch.randn(1, 1, num_knots, generator=generator)
        level_db = interpolate(level_db, size=num_samples, mode="linear", align_corners=True)[0, 0]
        return steady * 10 ** (level_db / 20)


def draw_noise(library: SoundLibrary, snr_db: tuple[float, float], generator: torch.Generator) -> NoiseDraw:
    return NoiseDraw(
        part=library.draw(generator),
        snr_db=uniform(*snr_db, generator),
        instant=uniform(0, 1, generator),
        place=uniform(0, 1, generator),
    )


def mix_noise(waveform: Tensor, noise: Sound, drawn: NoiseDraw) -> Tensor:
    """``(samples,)`` speech with noise under all of it; silent noise changes nothing."""
    if noise.energy[-1] == 0:
        return waveform
    stretch = cut_stretch(noise, len(waveform), drawn.instant, drawn.place)
    return torchaudio.functional.add_noise(waveform, stretch, torch.tensor(drawn.snr_db))


def cut_stretch(noise: Sound, num_samples: int, instant: float, place: float) -> Tensor:
    """``(num_samples,)`` of a noise around a moment at which it is heard; a short one is repeated.

    Many noises are short events in silence (a bark, a door). A moment drawn in proportion to the
    energy lies within such an event, so that no SNR is reached by blowing up silence; of a steady
    noise every stretch is about as likely as any other.
    """
    length = len(noise.waveform)
    block = int(torch.searchsorted(noise.energy, instant * noise.energy[-1], right=True))
    block_start = block * noise.block_samples
    loudest = noise.waveform[block_start : block_start + noise.block_samples].abs().argmax()
    start = block_start + int(loudest) - int(place * num_samples)
    if num_samples <= length:
        start = min(max(start, 0), length - num_samples)
        return noise.waveform[start : start + num_samples]
    start %= length
    num_repeats = -(-(start + num_samples) // length)
    return noise.waveform.repeat(num_repeats)[start : start + num_samples]
