"""Convolutional subsampling and bidirectional LSTM layers (Deep Speech 2, Amodei et al., ICML 2016)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.features import length_mask
from asr.models.encoder import Encoder
from asr.records import Emissions, Features


class BiLstmEncoder(Encoder):
    """Conv2d × n → BiLSTM × n → linear → ``log_softmax``.

    Args:
        num_bins: features per frame.
        vocab_size: labels including the blank.
        conv_channels: output channels of each convolution.
        conv_kernels: ``(time, bin)`` sizes of each, odd.
        conv_strides: ``(time, bin)`` strides of each; the time strides multiply to ``subsampling``.
        rnn_size: LSTM units per direction.
        rnn_layers: number of bidirectional layers.
        rnn_norm: ``batch``, ``layer`` or ``none``, before each LSTM.
        dropout: on the input of each LSTM and of the output layer.
    """

    def __init__(
        self,
        *,
        num_bins: int,
        vocab_size: int,
        conv_channels: Sequence[int],
        conv_kernels: Sequence[Sequence[int]],
        conv_strides: Sequence[Sequence[int]],
        rnn_size: int,
        rnn_layers: int,
        rnn_norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        inputs = [1, *conv_channels[:-1]]
        self.convolutions = nn.ModuleList(
            MaskedConv2d(*options)
            for options in zip(inputs, conv_channels, conv_kernels, conv_strides, strict=True)
        )
        self.subsampling = prod(stride[0] for stride in conv_strides)
        bins = torch.tensor([num_bins])
        for stride in conv_strides:
            bins = strided_lengths(bins, stride[1])
        rnn_inputs = [conv_channels[-1] * int(bins)] + [2 * rnn_size] * (rnn_layers - 1)
        self.norms = nn.ModuleList(make_norm(rnn_norm, size) for size in rnn_inputs)
        self.rnns = nn.ModuleList(BiLstm(size, rnn_size) for size in rnn_inputs)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * rnn_size, vocab_size)

    def output_lengths(self, feature_lengths: Tensor) -> Tensor:
        for convolution in self.convolutions:
            feature_lengths = convolution.output_lengths(feature_lengths)
        return feature_lengths

    def forward(self, batch: Features) -> Emissions:
        states, lengths = batch.features.unsqueeze(1), batch.feature_lengths
        for convolution in self.convolutions:
            states, lengths = convolution(states, lengths)
        states = states.permute(0, 2, 1, 3).flatten(2)  # (batch, frames, channels * bins)
        mask = length_mask(lengths, states.shape[1])
        for norm, rnn in zip(self.norms, self.rnns, strict=True):
            states = rnn(self.dropout(norm(states, mask)), lengths)
        logits = self.output(self.dropout(states))
        return Emissions(logits.float().log_softmax(dim=-1), lengths)


class MaskedConv2d(nn.Module):
    """Convolution, batch norm, clipped ReLU; frames beyond the length are zero before and after.

    Without the mask the layer's bias would leak from the padding into the last frames of every
    utterance that is not the longest of its batch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, tuple(kernel), tuple(stride), padding=padding, bias=False
        )
        self.norm = MaskedBatchNorm(out_channels)
        self.time_stride = stride[0]

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return strided_lengths(lengths, self.time_stride)

    def forward(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, channels, frames, bins)`` and lengths → the same, strided."""
        states, lengths = self.conv(states), self.output_lengths(lengths)
        mask = length_mask(lengths, states.shape[2])
        states = self.norm(states.movedim(1, -1), mask).movedim(-1, 1)
        return F.hardtanh(states, 0.0, 20.0) * mask[:, None, :, None], lengths


class MaskedBatchNorm(nn.Module):
    """Batch normalisation whose statistics count real frames only, never the padding.

    ``torch.nn.BatchNorm1d`` on the valid frames gives the same numbers; this form needs no gather,
    which on a GPU would wait for the mask.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, num_channels: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_variance", torch.ones(num_channels))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """``(batch, frames, …, channels)`` with ``mask`` ``(batch, frames)``."""
        if not self.training:
            return self._apply(states, self.running_mean, self.running_variance)
        mask = mask.view(*mask.shape, *[1] * (states.dim() - 2)).to(states.dtype)
        over = tuple(range(states.dim() - 1))
        count = mask.sum() * prod(states.shape[2:-1])
        mean = (states * mask).sum(dim=over) / count
        variance = ((states - mean).square() * mask).sum(dim=over) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_variance.lerp_(unbiased.float(), self.momentum)
        return self._apply(states, mean, variance)

    def _apply(self, states: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.weight * (variance + self.epsilon).rsqrt()
        return states * scale + (self.bias - mean * scale)


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


class BiLstm(nn.Module):
    """One bidirectional LSTM layer whose output does not depend on the padding.

    The usual way is ``pack_padded_sequence``; on CPU that leaves the compiled (oneDNN) kernel and
    costs 3–5 times as much (`scripts/bench_lstm.py`). Here each utterance is reversed within its own length for the
    backward direction, so that both directions meet the padding last, and dense kernels apply.
    """

    def __init__(self, input_size: int, size: int) -> None:
        super().__init__()
        self.forward_lstm = nn.LSTM(input_size, size, batch_first=True)
        self.backward_lstm = nn.LSTM(input_size, size, batch_first=True)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """``(batch, frames, input_size)`` → ``(batch, frames, 2 * size)``, zero beyond the lengths."""
        mask = length_mask(lengths, states.shape[1])
        order = reversed_order(lengths, states.shape[1]).unsqueeze(2)
        ahead, _ = self.forward_lstm(states)
        behind, _ = self.backward_lstm(states.gather(1, order.expand_as(states)))
        behind = behind.gather(1, order.expand_as(behind))
        return torch.cat([ahead, behind], dim=2) * mask.unsqueeze(2)


def reversed_order(lengths: Tensor, max_length: int) -> Tensor:
    """``(batch, max_length)`` indices that reverse the first ``length`` positions; its own inverse."""
    positions = torch.arange(max_length, device=lengths.device)
    mirrored = lengths.unsqueeze(1) - 1 - positions
    return torch.where(mirrored >= 0, mirrored, positions)


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Output size of an odd, centre-padded convolution: ``ceil(length / stride)``."""
    return torch.div(lengths - 1, stride, rounding_mode="floor") + 1
