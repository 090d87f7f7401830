"""The chain of changes to a training waveform, in the order in which sound would meet them."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePosixPath

import torch
import torchaudio
from torch import Tensor

from asr.augment import streams
from asr.augment.codecs import Codecs
from asr.augment.noise import MadeNoise, NoiseDraw, RecordedNoise, SimulatedNoise
from asr.augment.rooms import MeasuredRoom, MeasuredRooms, SimulatedRoom, SimulatedRooms, reverberate

# Speed factors are exact to two decimals.
MAX_SPEED_DENOMINATOR = 100


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one seed does to an utterance; None: not that."""

    speed: float
    room: MeasuredRoom | SimulatedRoom | None
    noise: NoiseDraw | MadeNoise | None
    codec: str | None
    gain_db: float

    def describe(self) -> list[str]:
        """In words that can be part of a file name, without what is left alone."""
        words = [f"speed{self.speed:g}"] if self.speed != 1.0 else []
        if isinstance(self.room, MeasuredRoom):
            words.append(f"room-{PurePosixPath(self.room.part.name).stem}")
        elif self.room is not None:
            words.append(f"room{self.room.rt60_seconds:.2f}s{self.room.direct_db:+.0f}dB")
        if isinstance(self.noise, MadeNoise):
            words.append(f"snr{self.noise.snr_db:.1f}dB{self.noise.slope_db:+.0f}dBoct")
        elif self.noise is not None:
            words.append(f"snr{self.noise.snr_db:.1f}dB-{PurePosixPath(self.noise.part.name).stem}")
        if self.codec is not None:
            words.append(self.codec)
        if self.gain_db:
            words.append(f"gain{self.gain_db:+.1f}dB")
        return words


class WaveformAugmenter:
    """Speed (Ko et al., Interspeech 2015), room, noise, codec, level, one utterance at a time.

    Samples are floats and no stage clips them: levels above full scale are kept, as a gain of the
    whole utterance would be.

    Args:
        speed_factors: one is drawn per call; 1.1 makes the audio play 10 % faster and higher.
        gain_db: the level changes by a uniform number of decibels within ± this.
        rooms, noise, codecs: further changes, each with its own probability; None: never.
    """

    def __init__(
        self,
        *,
        speed_factors: list[float],
        gain_db: float,
        rooms: MeasuredRooms | SimulatedRooms | None = None,
        noise: RecordedNoise | SimulatedNoise | None = None,
        codecs: Codecs | None = None,
    ) -> None:
        self.speed_factors = list(speed_factors)
        self.gain_db = gain_db
        self.rooms = rooms
        self.noise = noise
        self.codecs = codecs

    def __call__(self, waveform: Tensor, seed: int) -> Tensor:
        """``(samples,)`` → ``(other_samples,)``, the same for the same seed."""
        return self.apply(waveform, self.draw(seed))

    def draw(self, seed: int) -> Drawn:
        generator = streams.stream(seed, streams.SPEED_AND_LEVEL)
        speed = self.speed_factors[streams.below(len(self.speed_factors), generator)]
        gain_db = self.gain_db * (2 * torch.rand((), generator=generator).item() - 1)
        return Drawn(
            speed=speed,
            room=self.rooms.draw(streams.stream(seed, streams.ROOM)) if self.rooms else None,
            noise=self.noise.draw(streams.stream(seed, streams.NOISE)) if self.noise else None,
            codec=self.codecs.draw(streams.stream(seed, streams.CODEC)) if self.codecs else None,
            gain_db=gain_db,
        )

    def apply(self, waveform: Tensor, drawn: Drawn) -> Tensor:
        waveform = change_speed(waveform, drawn.speed)
        if drawn.room is not None:
            assert self.rooms is not None
            waveform = reverberate(waveform, self.rooms.response(drawn.room))  # type: ignore[arg-type]
        if drawn.noise is not None:
            assert self.noise is not None
            waveform = self.noise.apply(waveform, drawn.noise)  # type: ignore[arg-type]
        if drawn.codec is not None:
            assert self.codecs is not None
            waveform = self.codecs.apply(waveform, drawn.codec)
        return waveform * 10 ** (drawn.gain_db / 20) if drawn.gain_db else waveform


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """Play ``(samples,)`` faster by ``factor``, tempo and pitch together."""
    return waveform if factor == 1.0 else _resampler(factor)(waveform)


@lru_cache(maxsize=16)
def _resampler(factor: float) -> torchaudio.transforms.Resample:
    """Resampling by the nearest ratio of small numbers.

    The ratio of whole sample rates, which ``torchaudio.transforms.Speed`` takes, can be one of large
    numbers (22050 Hz at 1.05: 11576 to 11025), whose kernel fills hundreds of megabytes.
    """
    ratio = Fraction(factor).limit_denominator(MAX_SPEED_DENOMINATOR)
    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)
