"""SpecAugment: masks on the features of a training batch."""

import torch
from torch import Tensor

from asr.augment import streams
from asr.records import Features


class SpecAugment:
    """Time and band masks on normalised features (Park et al., Interspeech 2019).

    Masked stretches become 0, which is the mean of normalised features. A time mask is at most
    ``max_time_frames`` long and never longer than ``max_time_share`` of its utterance; a band mask
    covers at most ``max_mel_share`` of the bins.

    Args:
        num_time_masks: per utterance; with ``frames_per_time_mask`` the most that a long one gets.
        frames_per_time_mask: makes the number of time masks grow with the utterance, one for so many
            frames (Park et al., "SpecAugment on large scale datasets", ICASSP 2020).
    """

    def __init__(
        self,
        *,
        num_time_masks: int,
        max_time_frames: int,
        max_time_share: float,
        num_mel_masks: int,
        max_mel_share: float,
        frames_per_time_mask: float | None = None,
    ) -> None:
        self.num_time_masks = num_time_masks
        self.max_time_frames = max_time_frames
        self.max_time_share = max_time_share
        self.num_mel_masks = num_mel_masks
        self.max_mel_share = max_mel_share
        self.frames_per_time_mask = frames_per_time_mask

    def __call__(self, batch: Features, seeds: Tensor) -> Features:
        """Masked copy of ``(batch, frames, bins)`` features; ``seeds``: ``(batch,)`` int64 on the CPU."""
        features, lengths = batch
        num_frames, num_bins = features.shape[1:]
        # Masks are small: drawn on the CPU, they are the same on every device.
        keep = torch.ones(features.shape, dtype=torch.bool)
        for index, (seed, length) in enumerate(zip(seeds.tolist(), lengths.tolist(), strict=True)):
            generator = streams.stream(seed, streams.MASKS)
            longest = min(self.max_time_frames, int(self.max_time_share * length))
            for _ in range(self._num_time_masks(length)):
                start, width = _draw_span(longest, min(length, num_frames), generator)
                keep[index, start : start + width] = False
            for _ in range(self.num_mel_masks):
                start, width = _draw_span(int(self.max_mel_share * num_bins), num_bins, generator)
                keep[index, :, start : start + width] = False
        return Features(features * keep.to(features.device), lengths)

    def _num_time_masks(self, num_frames: int) -> int:
        if self.frames_per_time_mask is None:
            return self.num_time_masks
        return min(self.num_time_masks, int(num_frames / self.frames_per_time_mask))


def _draw_span(longest: int, extent: int, generator: torch.Generator) -> tuple[int, int]:
    """A uniform width up to ``longest`` and a uniform start such that it lies within ``extent``."""
    width = streams.below(longest + 1, generator)
    return streams.below(extent - width + 1, generator), width
