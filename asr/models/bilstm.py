"""Bidirectional LSTM layers over convolutional subsampling (Deep Speech 2, Amodei et al., ICML 2016)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asr.features import length_mask
from asr.models.bf16_lstm import MIN_SIZE, Bf16Lstms
from asr.models.conv_encoder import ConvEncoder
from asr.models.layers import make_norm, pick_frames


class BiLstmEncoder(ConvEncoder):
    """Conv2d × n → BiLSTM × n → linear → ``log_softmax``.

    Args:
        vocab_size: labels including the blank.
        rnn_size: LSTM units per direction.
        rnn_layers: number of bidirectional layers.
        rnn_norm: ``batch``, ``layer`` or ``none``, before each LSTM.
        dropout: on the input of each LSTM and of the output layer.
        intermediate_layers, self_conditioning: see :meth:`ConvEncoder.make_outputs`.
        convolution: see :class:`ConvEncoder`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        rnn_size: int,
        rnn_layers: int,
        rnn_norm: str,
        dropout: float,
        intermediate_layers: Sequence[int] = (),
        self_conditioning: bool = False,
        **convolution: Any,
    ) -> None:
        super().__init__(dropout=dropout, **convolution)
        self.num_layers = rnn_layers
        sizes = [self.frame_size] + [2 * rnn_size] * (rnn_layers - 1)
        self.norms = nn.ModuleList(make_norm(rnn_norm, size) for size in sizes)
        self.rnns = nn.ModuleList(BiLstm(size, rnn_size) for size in sizes)
        self.make_outputs(2 * rnn_size, vocab_size, intermediate_layers, self_conditioning)

    def layer(self, number: int, states: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        return self.rnns[number - 1](self.dropout(self.norms[number - 1](states, mask)), lengths)


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
        order = reversed_order(lengths, states.shape[1])
        if self._learns_in_bf16_on_cpu(states):
            ahead, behind = self._both_in_bf16(states, reordered(states, order))
        elif states.is_cuda:
            # Autocast would compute in float16, whose gradients vanish or overflow unless they are scaled.
            with torch.autocast("cuda", enabled=False):
                ahead, behind = self._one_by_one(states.float(), order)
        else:
            ahead, behind = self._one_by_one(states, order)
        return torch.cat([ahead, reordered(behind, order)], dim=2) * mask.unsqueeze(2)

    def _one_by_one(self, states: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_lstm(states)[0], self.backward_lstm(reordered(states, order))[0]

    def _learns_in_bf16_on_cpu(self, states: Tensor) -> bool:
        return (
            states.device.type == "cpu"
            and self.forward_lstm.hidden_size >= MIN_SIZE
            and torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        )

    def _both_in_bf16(self, *states: Tensor) -> tuple[Tensor, Tensor]:
        layers = [dict(layer.named_parameters()) for layer in (self.forward_lstm, self.backward_lstm)]
        weights = (
            torch.stack([layer["weight_ih_l0"] for layer in layers]),
            torch.stack([layer["weight_hh_l0"] for layer in layers]),
            torch.stack([layer["bias_ih_l0"] + layer["bias_hh_l0"] for layer in layers]),
        )
        inputs = torch.stack([one.bfloat16().transpose(0, 1) for one in states])
        with torch.autocast("cpu", enabled=False):
            ahead, behind = Bf16Lstms.apply(inputs, *(weight.bfloat16() for weight in weights)).transpose(
                1, 2
            )
        return ahead, behind


def reordered(states: Tensor, order: Tensor) -> Tensor:
    """``(batch, frames, …)`` with the frames of each utterance in the ``order``, ``(batch, frames)``."""
    starts = order.shape[1] * torch.arange(len(order), device=order.device)
    return pick_frames(states.flatten(0, 1), (order + starts.unsqueeze(1)).flatten()).view_as(states)


def reversed_order(lengths: Tensor, max_length: int) -> Tensor:
    """``(batch, max_length)`` indices that reverse the first ``length`` positions; its own inverse."""
    positions = torch.arange(max_length, device=lengths.device)
    mirrored = lengths.unsqueeze(1) - 1 - positions
    return torch.where(mirrored >= 0, mirrored, positions)
