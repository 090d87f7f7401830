"""Changes made to training audio: speed and level on the waveform, SpecAugment on the features.

Everything random is drawn from one seed per utterance and epoch, so a batch is the same whatever
the number of loader processes, and nothing here ever runs in validation.
"""

from fractions import Fraction
from functools import lru_cache

import torch
import torchaudio
from torch import Tensor

from asr.records import Features

# Speed factors are exact to two decimals.
MAX_SPEED_DENOMINATOR = 100

# Fixed offsets keep the random streams of the two stages apart although they share one seed.
_WAVEFORM_STREAM, _FEATURE_STREAM = 1, 2


class WaveformAugmenter:
    """Speed perturbation (Ko et al., Interspeech 2015) and level change, one utterance at a time.

    Args:
        speed_factors: one is drawn per call; 1.1 makes the audio play 10 % faster and higher.
        gain_db: the level changes by a uniform number of decibels within ± this.
    """

    def __init__(self, *, speed_factors: list[float], gain_db: float) -> None:
        self.speed_factors = list(speed_factors)
        self.gain_db = gain_db

    def __call__(self, waveform: Tensor, seed: int) -> Tensor:
        """``(samples,)`` → ``(other_samples,)``, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed + _WAVEFORM_STREAM)
        factor = self.speed_factors[
            int(torch.randint(len(self.speed_factors), (), generator=generator).item())
        ]
        gain_db = self.gain_db * (2 * torch.rand((), generator=generator).item() - 1)
        if factor != 1.0:
            waveform = _resampler(factor)(waveform)
        return waveform * 10 ** (gain_db / 20) if gain_db else waveform


@lru_cache(maxsize=16)
def _resampler(factor: float) -> torchaudio.transforms.Resample:
    """Resampling by the nearest ratio of small numbers.

    The ratio of whole sample rates, which ``torchaudio.transforms.Speed`` takes, can be one of large
    numbers (22050 Hz at 1.05: 11576 to 11025), whose kernel fills hundreds of megabytes.
    """
    ratio = Fraction(factor).limit_denominator(MAX_SPEED_DENOMINATOR)
    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)


class SpecAugment:
    """Time and band masks on normalised features (Park et al., Interspeech 2019).

    Masked stretches become 0, which is the mean of normalised features. A time mask is at most
    ``max_time_frames`` long and never longer than ``max_time_share`` of its utterance; a band mask
    covers at most ``max_mel_share`` of the bins.
    """

    def __init__(
        self,
        *,
        num_time_masks: int,
        max_time_frames: int,
        max_time_share: float,
        num_mel_masks: int,
        max_mel_share: float,
    ) -> None:
        self.num_time_masks = num_time_masks
        self.max_time_frames = max_time_frames
        self.max_time_share = max_time_share
        self.num_mel_masks = num_mel_masks
        self.max_mel_share = max_mel_share

    def __call__(self, batch: Features, seeds: Tensor) -> Features:
        """Masked copy of ``(batch, frames, bins)`` features; ``seeds``: ``(batch,)`` int64 on the CPU."""
        features, lengths = batch
        num_frames, num_bins = features.shape[1:]
        # Masks are small: drawn on the CPU, they are the same on every device.
        keep = torch.ones(features.shape, dtype=torch.bool)
        for index, (seed, length) in enumerate(zip(seeds.tolist(), lengths.tolist(), strict=True)):
            generator = torch.Generator().manual_seed(seed + _FEATURE_STREAM)
            longest = min(self.max_time_frames, int(self.max_time_share * length))
            for _ in range(self.num_time_masks):
                start, width = _draw_span(longest, min(length, num_frames), generator)
                keep[index, start : start + width] = False
            for _ in range(self.num_mel_masks):
                start, width = _draw_span(int(self.max_mel_share * num_bins), num_bins, generator)
                keep[index, :, start : start + width] = False
        return Features(features * keep.to(features.device), lengths)


def _draw_span(longest: int, extent: int, generator: torch.Generator) -> tuple[int, int]:
    """A uniform width up to ``longest`` and a uniform start such that it lies within ``extent``."""
    width = int(torch.randint(longest + 1, (), generator=generator).item())
    start = int(torch.randint(extent - width + 1, (), generator=generator).item())
    return start, width
