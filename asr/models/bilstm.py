"""Convolutional subsampling and bidirectional LSTM layers (Deep Speech 2, Amodei et al., ICML 2016)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
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
        intermediate_layers: after which LSTMs (from 1) the output layer is read as well (Lee & Watanabe
            2021, arXiv 2102.03216).
        self_conditioning: what it reads there is also added to the next LSTM's input, through one linear
            layer for all (Nozaki & Komatsu 2021, arXiv 2104.02724).
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
        intermediate_layers: Sequence[int] = (),
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        inputs = [1, *conv_channels[:-1]]
        self.convolutions = nn.ModuleList(
            MaskedConv2d(*options)
            for options in zip(inputs, conv_channels, conv_kernels, conv_strides, strict=True)
        )
        self.time_strides = [stride[0] for stride in conv_strides]
        self.subsampling = prod(self.time_strides)
        bins = torch.tensor([num_bins])
        for stride in conv_strides:
            bins = strided_lengths(bins, stride[1])
        rnn_inputs = [conv_channels[-1] * int(bins)] + [2 * rnn_size] * (rnn_layers - 1)
        self.norms = nn.ModuleList(make_norm(rnn_norm, size) for size in rnn_inputs)
        self.rnns = nn.ModuleList(BiLstm(size, rnn_size) for size in rnn_inputs)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * rnn_size, vocab_size)
        self.intermediate_layers = tuple(intermediate_layers)
        self.conditioning = nn.Linear(vocab_size, 2 * rnn_size) if self_conditioning else None

    def output_lengths(self, feature_lengths: Tensor) -> Tensor:
        for stride in self.time_strides:
            feature_lengths = strided_lengths(feature_lengths, stride)
        return feature_lengths

    def forward(self, batch: Features, with_intermediate: bool = False) -> Emissions:
        states, lengths = batch.features.unsqueeze(1), batch.feature_lengths
        for convolution in self.convolutions:
            states, lengths = convolution(states, lengths)
        states = states.permute(0, 2, 1, 3).flatten(2)  # (batch, frames, channels * bins)
        mask = length_mask(lengths, states.shape[1])
        intermediate = []
        for number, (norm, rnn) in enumerate(zip(self.norms, self.rnns, strict=True), start=1):
            states = rnn(self.dropout(norm(states, mask)), lengths)
            if number in self.intermediate_layers and (with_intermediate or self.conditioning is not None):
                intermediate.append(self._log_probs(states))
                if self.conditioning is not None:
                    states = states + self.conditioning(intermediate[-1].exp()) * mask.unsqueeze(2)
        return Emissions(self._log_probs(states), lengths, tuple(intermediate) if with_intermediate else ())

    def _log_probs(self, states: Tensor) -> Tensor:
        return self.output(self.dropout(states)).float().log_softmax(dim=-1)


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
        self.conv = nn.Conv2d(
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


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the real frames only: padding neither enters the statistics nor the output.

    Processes that train together normalise by the statistics of all their frames, as one process with the
    whole batch would.
    """

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """``(batch, frames, …, channels)`` with ``mask`` ``(batch, frames)``; zero where masked."""
        frames = states.flatten(0, 1)
        real = mask.flatten().nonzero().squeeze(1)
        picked = frames.index_select(0, real)
        rows = picked.reshape(-1, self.num_features)
        if self.training and distributed.is_initialized():
            normalised = self._by_statistics_of_all(rows)
        else:  # one frame alone has no variance: it is normalised as in eval mode
            normalised = super().forward(rows) if len(rows) > 1 else self._by_running_statistics(rows)
        return torch.zeros_like(frames).index_copy(0, real, normalised.view_as(picked)).view_as(states)

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

    The usual way, ``pack_padded_sequence``, leaves the compiled (oneDNN) kernel on a CPU and costs
    3–5 times as much (``scripts/bench_lstm.py``). Here each utterance is reversed within its own
    length for the backward direction: both directions meet the padding last, and dense kernels apply.
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
