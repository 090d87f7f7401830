"""Conformer layers over convolutional subsampling (Gulati et al., Interspeech 2020, arXiv 2005.08100)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchaudio.models.conformer import ConformerLayer

from asr.models.conv_encoder import ConvEncoder
from asr.models.layers import MaskedBatchNorm


class ConformerEncoder(ConvEncoder):
    """Conv2d × n → linear → Conformer × n → linear → ``log_softmax``.

    The layers are torchaudio's, which know positions through their convolutions alone.

    Args:
        vocab_size: labels including the blank.
        size: of the states.
        num_layers: Conformer layers.
        num_heads: of attention; divides ``size``.
        feed_forward_size: inside the feed-forward modules.
        kernel_size: of the depthwise convolutions, odd, frames.
        dropout: everywhere.
        intermediate_layers, self_conditioning: see :meth:`ConvEncoder.make_outputs`.
        convolution: see :class:`ConvEncoder`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        size: int,
        num_layers: int,
        num_heads: int,
        feed_forward_size: int,
        kernel_size: int,
        dropout: float,
        intermediate_layers: Sequence[int] = (),
        self_conditioning: bool = False,
        **convolution: Any,
    ) -> None:
        super().__init__(dropout=dropout, **convolution)
        self.num_layers = num_layers
        self.project = nn.Linear(self.frame_size, size)
        self.layers = nn.ModuleList(
            MaskedConformerLayer(size, feed_forward_size, num_heads, kernel_size, dropout)
            for _ in range(num_layers)
        )
        self.make_outputs(size, vocab_size, intermediate_layers, self_conditioning)

    def layer(self, number: int, states: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        if number == 1:
            states = self.dropout(self.project(states))
        return self.layers[number - 1](states.transpose(0, 1), ~mask).transpose(0, 1)


class MaskedConformerLayer(ConformerLayer):
    """torchaudio's layer, with a convolution that neither hears the padding nor counts it in its statistics.

    (In torchaudio's own, the last frames of an utterance depend on what else is in the batch.)
    """

    def __init__(
        self, size: int, feed_forward_size: int, num_heads: int, kernel_size: int, dropout: float
    ) -> None:
        super().__init__(size, feed_forward_size, num_heads, kernel_size, dropout=dropout)
        self.conv_module.sequential[3] = MaskedBatchNorm(size)
        self._mask: Tensor | None = None

    def forward(self, states: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """``(frames, batch, size)``; the mask ``(batch, frames)`` is true in the padding."""
        assert key_padding_mask is not None
        self._mask = ~key_padding_mask
        try:
            return super().forward(states, key_padding_mask)
        finally:
            self._mask = None

    def _apply_convolution(self, states: Tensor) -> Tensor:
        assert self._mask is not None
        module = self.conv_module
        pointwise, gate, depthwise, norm, activation, mix, dropout = module.sequential
        hidden = gate(pointwise(module.layer_norm(states).permute(1, 2, 0)))  # (batch, size, frames)
        hidden = depthwise(hidden * self._mask.unsqueeze(1))
        hidden = norm(hidden.transpose(1, 2), self._mask).transpose(1, 2)
        return states + dropout(mix(activation(hidden))).permute(2, 0, 1)
