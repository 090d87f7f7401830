"""Gated convolutions over time, dilated if wanted, over convolutional subsampling.

Gated linear units: Dauphin et al. 2017 (arXiv 1612.08083), for speech Liptchinsky et al. 2017 (arXiv
1712.09444). With dilations it is a time-delay network (Waibel et al. 1989; Peddinti et al. 2015).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from asr.models.conv_encoder import ConvEncoder
from asr.models.layers import make_norm


class ConvGluEncoder(ConvEncoder):
    """Conv2d × n → linear → gated Conv1d × n → linear → ``log_softmax``. No recurrence: all frames at once.

    Args:
        vocab_size: labels including the blank.
        size: of the states.
        kernel_sizes: of each gated convolution, odd, frames.
        dilations: distance between the frames that each looks at.
        norm: ``batch``, ``layer`` or ``none``, before each.
        dropout: after each.
        intermediate_layers, self_conditioning: see :meth:`ConvEncoder.make_outputs`.
        convolution: see :class:`ConvEncoder`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        size: int,
        kernel_sizes: Sequence[int],
        dilations: Sequence[int],
        norm: str,
        dropout: float,
        intermediate_layers: Sequence[int] = (),
        self_conditioning: bool = False,
        **convolution: Any,
    ) -> None:
        super().__init__(dropout=dropout, **convolution)
        self.num_layers = len(kernel_sizes)
        self.project = nn.Linear(self.frame_size, size)
        self.norms = nn.ModuleList(make_norm(norm, size) for _ in kernel_sizes)
        self.gated = nn.ModuleList(
            nn.Conv1d(size, 2 * size, kernel, padding=kernel // 2 * dilation, dilation=dilation)
            for kernel, dilation in zip(kernel_sizes, dilations, strict=True)
        )
        self.make_outputs(size, vocab_size, intermediate_layers, self_conditioning)

    def layer(self, number: int, states: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(2)
        if number == 1:
            states = self.project(states)
        hidden = self.norms[number - 1](states, mask) * real
        hidden = F.glu(self.gated[number - 1](hidden.transpose(1, 2)).transpose(1, 2), dim=2)
        return (states + self.dropout(hidden)) * real
