"""Vocal tract length perturbation: formants of another speaker, at the same rate of speech."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.augment import streams
from asr.augment.masks import SpecAugment
from asr.records import Features

_BEND = 0.6  # of the highest frequency: Jaitly & Hinton's 4800 Hz of 8000


class VocalTractWarp:
    """Moves the features' frequency axis by a factor drawn for each utterance (Jaitly & Hinton, ICML workshop 2013).

    A frequency below the bend becomes ``factor`` times as high; the rest of the axis is stretched or squeezed so that
    the highest frequency stays. Between the centres of bins, values are interpolated.

    Args:
        bin_hertz: ``(bins,)`` centres of the bins, ascending.
        highest_hertz: half the sample rate.
        factors: the lowest and the highest factor.
    """

    def __init__(self, *, bin_hertz: Tensor, highest_hertz: float, factors: tuple[float, float]) -> None:
        self.bin_hertz = bin_hertz.double()
        self.highest_hertz = highest_hertz
        self.factors = factors

    def __call__(self, batch: Features, seeds: Tensor) -> Features:
        """Warped copy of ``(batch, frames, bins)`` features; ``seeds``: ``(batch,)`` int64 on the CPU."""
        factors = [
            streams.uniform(*self.factors, streams.stream(seed, streams.VOCAL_TRACT))
            for seed in seeds.tolist()
        ]
        places = torch.stack([self.places(factor) for factor in factors])
        lower = places.long().clamp(max=len(self.bin_hertz) - 2)
        share = (places - lower).to(batch.features.dtype)
        lower, share = (one.unsqueeze(1).to(batch.features.device) for one in (lower, share))
        lower = lower.expand_as(batch.features)
        below, above = batch.features.gather(2, lower), batch.features.gather(2, lower + 1)
        return Features(torch.lerp(below, above, share.expand_as(below)), batch.feature_lengths)

    def places(self, factor: float) -> Tensor:
        """``(bins,)`` float64: where each warped bin is read, counted in bins."""
        highest, bend = self.highest_hertz, _BEND * self.highest_hertz * min(factor, 1.0)
        above = highest - (highest - self.bin_hertz) * (highest - bend / factor) / (highest - bend)
        source = torch.where(self.bin_hertz <= bend, self.bin_hertz / factor, above)
        source = source.clamp(float(self.bin_hertz[0]), float(self.bin_hertz[-1]))
        upper = torch.searchsorted(self.bin_hertz, source).clamp(1, len(self.bin_hertz) - 1)
        left, right = self.bin_hertz[upper - 1], self.bin_hertz[upper]
        return upper - 1 + (source - left) / (right - left)


@dataclass(frozen=True)
class FeatureAugmenter:
    """All that is done to the features of a training batch, in this order."""

    vocal_tract: VocalTractWarp | None
    masks: SpecAugment

    def __call__(self, batch: Features, seeds: Tensor) -> Features:
        """Changed copy of ``(batch, frames, bins)`` features; ``seeds``: ``(batch,)`` int64 on the CPU."""
        return self.masks(batch if self.vocal_tract is None else self.vocal_tract(batch, seeds), seeds)
