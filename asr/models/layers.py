"""Layers whose output does not depend on the padding: convolution, normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F

from asr.features import length_mask


class MaskedConv2d(nn.Module):
    """Convolution, batch norm, clipped ReLU; frames beyond the length are zero before and after.

    Otherwise the bias of one layer would leak through the next one's kernel from the padding into
    the last frames of every utterance that is not the longest of its batch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = ChannelsLastConv2d(
            in_channels,
            out_channels,
            (kernel[0], kernel[1]),
            (stride[0], stride[1]),
            padding=padding,
            bias=False,
        )
        self.norm = MaskedBatchNorm(out_channels)
        self.time_stride = stride[0]

    def forward(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, channels, frames, bins)`` and lengths → the same, strided."""
        states, lengths = self.conv(states), strided_lengths(lengths, self.time_stride)
        mask = length_mask(lengths, states.shape[2])
        states = self.norm(states.movedim(1, -1), mask).movedim(-1, 1)
        return F.hardtanh(states, 0.0, 20.0), lengths


class ChannelsLastConv2d(nn.Conv2d):
    """Convolution that keeps the channels of a position together in memory, as the norm after it wants them.

    It is also faster itself, 1.2 to 1.8 times on a CPU. The weights' layout asks for it, since that of an
    input with one channel says nothing.
    """

    def forward(self, states: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(states, weight, self.bias)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the real frames only: padding neither enters the statistics nor the output.

    Processes that train together normalise by the statistics of all their frames, as one process with the
    whole batch would.
    """

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """``(batch, frames, …, channels)`` with ``mask`` ``(batch, frames)``; zero where masked."""
        if not self.training:  # known statistics need no picking, for which a GPU would be waited for
            normalised = self._by_running_statistics(states.reshape(-1, self.num_features))
            is_padding = ~mask.view(*mask.shape, *[1] * (states.dim() - mask.dim()))
            return normalised.view(states.shape).masked_fill(is_padding, 0.0)
        frames = states.flatten(0, 1)
        real = mask.flatten().nonzero().squeeze(1)
        picked = pick_frames(frames, real)
        rows = picked.reshape(-1, self.num_features)
        if distributed.is_initialized():
            normalised = self._by_statistics_of_all(rows)
        else:  # one frame alone has no variance: it is normalised as in eval mode
            normalised = super().forward(rows) if len(rows) > 1 else self._by_running_statistics(rows)
        return torch.zeros_like(frames).index_copy_(0, real, normalised.view_as(picked)).view_as(states)

    def _by_statistics_of_all(self, rows: Tensor) -> Tensor:
        """(``nn.SyncBatchNorm`` does the same, on GPUs only.)"""
        values = rows.float()
        count = all_reduce(values.new_tensor(len(values)))
        mean = all_reduce(values.sum(dim=0)) / count
        centred = values - mean
        variance = all_reduce(centred.square().sum(dim=0)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1).clamp(min=1), self.momentum)
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(rows.dtype)

    def _by_running_statistics(self, rows: Tensor) -> Tensor:
        return F.batch_norm(
            rows, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class PickFrames(torch.autograd.Function):
    """See :func:`pick_frames`."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.num_frames = len(frames)
        return frames.index_select(0, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        zeros = gradient.new_zeros(ctx.num_frames, *gradient.shape[1:])
        return zeros.index_copy_(0, positions, gradient), None


def pick_frames(frames: Tensor, positions: Tensor) -> Tensor:
    """``(frames, …)`` at distinct ``positions``: no two gradients meet, so copying replaces adding, which is slow."""
    picked: Tensor = PickFrames.apply(frames, positions)
    return picked


class Dropout(nn.Dropout):
    """Dropout; on a CPU its random numbers have 16 bits, and cost a quarter of torch's."""

    def forward(self, states: Tensor) -> Tensor:
        threshold = round(self.p * 2**16)
        is_usual = threshold in (0, 2**16) or states.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or is_usual:
            return super().forward(states)
        words = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        numbers = words.view(torch.int16)[: states.numel()].view(states.shape)
        kept = torch.ge(numbers, threshold - 2**15, out=torch.empty_like(states, requires_grad=False))
        return states * kept.mul_(2**16 / (2**16 - threshold))


class FrameNorm(nn.Module):
    """Layer normalisation of each frame (or nothing), with the mask argument of its batch sibling."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.norm(states)


def make_norm(kind: str, size: int) -> nn.Module:
    """``batch``, ``layer`` or ``none``; all are called with ``(states, mask)``."""
    if kind == "batch":
        return MaskedBatchNorm(size)
    return FrameNorm(nn.LayerNorm(size) if kind == "layer" else nn.Identity())


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Output size of an odd, centre-padded convolution: ``ceil(length / stride)``."""
    return torch.div(lengths - 1, stride, rounding_mode="floor") + 1
