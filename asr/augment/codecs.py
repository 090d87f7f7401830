"""Telephone lines and lossy files: speech coded and decoded, as long and as loud as before."""

import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import soundfile
import torch
import torchaudio
from torch import Tensor

from asr.augment.convolution import convolve_aligned
from asr.augment.streams import below, uniform

TELEPHONE_RATE = 8000
TELEPHONE_BAND_HZ = (300.0, 3400.0)
_MU_LAW_LEVELS = 256
_FILTER_SECONDS = 0.03


class Codec(NamedTuple):
    """``rates`` are those it is defined for; ``file_format`` is libsndfile's, None for μ-law.

    ``compression`` is libsndfile's compression level: 0 is its best quality, 1 its worst.
    """

    is_telephone: bool
    rates: tuple[int, ...]
    file_format: tuple[str, str] | None = None
    compression: float | None = None


_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
CODECS: Mapping[str, Codec] = {
    "mu_law": Codec(True, (TELEPHONE_RATE,)),
    "gsm": Codec(True, (TELEPHONE_RATE,), ("WAV", "GSM610")),
    "opus": Codec(False, (8000, 12000, 16000, 24000, 48000), ("OGG", "OPUS"), 0.95),
    "vorbis": Codec(False, _MP3_RATES, ("OGG", "VORBIS"), 1.0),
    "mp3": Codec(False, _MP3_RATES, ("MP3", "MPEG_LAYER_III"), 0.9),
}
"""μ-law and GSM full rate are telephone lines (300-3400 Hz, 8 kHz); the others code the whole band."""


class Codecs:
    """One of some codecs, each as likely as any other, with a probability."""

    def __init__(self, names: Sequence[str], *, sample_rate: int, probability: float) -> None:
        self.names = list(names)
        self.sample_rate = sample_rate
        self.probability = probability

    def draw(self, generator: torch.Generator) -> str | None:
        if uniform(0, 1, generator) >= self.probability:
            return None
        return self.names[below(len(self.names), generator)]

    def apply(self, waveform: Tensor, name: str) -> Tensor:
        return code(waveform, self.sample_rate, name)


def code(waveform: Tensor, sample_rate: int, name: str) -> Tensor:
    """``(samples,)`` as it comes out of a codec.

    Codecs cannot go beyond full scale: a waveform that does is coded at full scale and gets its
    level back afterwards, so that nothing is clipped.
    """
    codec = CODECS[name]
    rate = min((rate for rate in codec.rates if rate >= sample_rate), default=codec.rates[-1])
    coded = _resampled(waveform, sample_rate, rate)
    if codec.is_telephone:
        coded = telephone_band(coded, rate)
    scale = max(1.0, float(coded.abs().max())) if len(coded) else 1.0
    coded = _mu_law(coded / scale) if codec.file_format is None else _through_file(coded / scale, rate, codec)
    coded = _resampled(coded * scale, rate, sample_rate)
    # Codecs work in whole blocks: what one adds is cut off, what one lacks is silence.
    return torch.nn.functional.pad(coded, (0, max(0, len(waveform) - len(coded))))[: len(waveform)]


def telephone_band(waveform: Tensor, rate: int) -> Tensor:
    """300-3400 Hz of ``(samples,)``, without delay."""
    taps = _telephone_taps(rate)
    return convolve_aligned(waveform, taps, delay=len(taps) // 2)


@lru_cache(maxsize=2)
def _telephone_taps(rate: int) -> Tensor:
    """A windowed-sinc band-pass: half amplitude at the edges, some 100 Hz from passing to stopping."""
    half = round(_FILTER_SECONDS / 2 * rate)
    seconds = torch.arange(-half, half + 1, dtype=torch.float64) / rate
    low, high = TELEPHONE_BAND_HZ
    band = 2 * high * torch.sinc(2 * high * seconds) - 2 * low * torch.sinc(2 * low * seconds)
    window = torch.hann_window(2 * half + 3, periodic=False, dtype=torch.float64)[1:-1]
    return (band / rate * window).float()


def _mu_law(waveform: Tensor) -> Tensor:
    """Eight bits per sample, at logarithmic steps (the curve that ITU-T G.711 approximates)."""
    codes = torchaudio.functional.mu_law_encoding(waveform, _MU_LAW_LEVELS)
    return torchaudio.functional.mu_law_decoding(codes, _MU_LAW_LEVELS)


def _through_file(waveform: Tensor, rate: int, codec: Codec) -> Tensor:
    assert codec.file_format is not None
    file_format, subtype = codec.file_format
    with io.BytesIO() as memory:
        soundfile.write(
            memory,
            waveform.numpy(),
            rate,
            format=file_format,
            subtype=subtype,
            compression_level=codec.compression,
        )
        memory.seek(0)
        samples, _ = soundfile.read(memory, dtype="float32")
    return torch.from_numpy(samples)


def _resampled(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    return waveform if from_rate == to_rate else _resampler(from_rate, to_rate)(waveform)


@lru_cache(maxsize=8)
def _resampler(from_rate: int, to_rate: int) -> torchaudio.transforms.Resample:
    divisor = math.gcd(from_rate, to_rate)
    return torchaudio.transforms.Resample(from_rate // divisor, to_rate // divisor)
