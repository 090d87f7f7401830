"""What the encoders have in common: convolutional subsampling before their layers, outputs after them."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from asr.features import length_mask
from asr.models.encoder import Encoder
from asr.models.layers import Dropout, MaskedConv2d, strided_lengths
from asr.records import Emissions, Features


class ConvEncoder(Encoder):
    """Conv2d × n → layers → linear → ``log_softmax``.

    A subclass makes its layers, calls :meth:`make_outputs` and implements :meth:`layer`.

    Args:
        num_bins: features per frame.
        conv_channels: output channels of each convolution.
        conv_kernels: ``(time, bin)`` sizes of each, odd.
        conv_strides: ``(time, bin)`` strides of each; the time strides multiply to ``subsampling``.
        dropout: on the input of the output layer.
    """

    num_layers: int

    def __init__(
        self,
        *,
        num_bins: int,
        conv_channels: Sequence[int],
        conv_kernels: Sequence[Sequence[int]],
        conv_strides: Sequence[Sequence[int]],
        dropout: float,
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
        self.frame_size = conv_channels[-1] * int(bins)  # of what the first layer gets
        self.dropout = Dropout(dropout)

    def make_outputs(
        self, size: int, vocab_size: int, intermediate_layers: Sequence[int], self_conditioning: bool
    ) -> None:
        """The output layer, and where else it is read.

        Args:
            size: of the layers' states.
            vocab_size: labels including the blank.
            intermediate_layers: after which layers (from 1) the output layer is read as well (Lee & Watanabe
                2021, arXiv 2102.03216).
            self_conditioning: what it reads there is also added to the next layer's input, through one linear
                layer for all (Nozaki & Komatsu 2021, arXiv 2104.02724).
        """
        self.output = nn.Linear(size, vocab_size)
        self.intermediate_layers = tuple(intermediate_layers)
        self.conditioning = nn.Linear(vocab_size, size) if self_conditioning else None

    def layer(self, number: int, states: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """``(batch, frames, size)`` after layer ``number``, from 1; ``mask`` ``(batch, frames)``: real frames."""
        raise TypeError(f"{type(self).__name__} must implement layer")

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
        for number in range(1, self.num_layers + 1):
            states = self.layer(number, states, lengths, mask)
            if number in self.intermediate_layers and (with_intermediate or self.conditioning is not None):
                intermediate.append(self._log_probs(states))
                if self.conditioning is not None:
                    states = states + self.conditioning(intermediate[-1].exp()) * mask.unsqueeze(2)
        return Emissions(self._log_probs(states), lengths, tuple(intermediate) if with_intermediate else ())

    def _log_probs(self, states: Tensor) -> Tensor:
        return self.output(self.dropout(states)).float().log_softmax(dim=-1)
