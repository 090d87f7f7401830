"""Convolution with an impulse response, aligned with what came in."""

import torch
import torchaudio.functional
from torch import Tensor


def fast_length(num_values: int) -> int:
    """The next length without large prime factors, at which Fourier transforms are several times faster."""
    step = 1 << max(0, num_values.bit_length() - 5)
    return num_values + -num_values % step


def convolve_aligned(waveform: Tensor, response: Tensor, delay: int) -> Tensor:
    """``(samples,)`` convolved with ``(taps,)``, ``delay`` samples earlier and as long as it was."""
    num_values = len(waveform) + len(response) - 1
    padded = torch.nn.functional.pad(waveform, (0, fast_length(num_values) - num_values))
    return torchaudio.functional.fftconvolve(padded, response)[delay : delay + len(waveform)]
