"""Convolution with an impulse response, aligned with what came in."""

import torch
import torchaudio.functional
from torch import Tensor


def convolve_aligned(waveform: Tensor, response: Tensor, delay: int) -> Tensor:
    """``(samples,)`` convolved with ``(taps,)``, ``delay`` samples earlier and as long as it was."""
    # Transforms are several times faster at lengths without large prime factors.
    num_values = len(waveform) + len(response) - 1
    step = 1 << max(0, num_values.bit_length() - 5)
    padded = torch.nn.functional.pad(waveform, (0, -num_values % step))
    return torchaudio.functional.fftconvolve(padded, response)[delay : delay + len(waveform)]
