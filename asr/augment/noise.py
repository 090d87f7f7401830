"""Noise mixed into speech at a drawn signal-to-noise ratio."""

from typing import NamedTuple

import torch
import torchaudio.functional
from torch import Tensor

from asr.augment.sounds import Part, Sound, SoundLibrary
from asr.augment.streams import uniform


class NoiseDraw(NamedTuple):
    """Which noise, how loud, and which stretch of it.

    ``instant`` in [0, 1) is a moment of the noise, as a share of its energy; ``place`` in [0, 1) is
    where in the speech that moment falls.
    """

    part: Part
    snr_db: float
    instant: float
    place: float


class Noise:
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
