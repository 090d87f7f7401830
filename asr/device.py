"""Where to compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from asr.errors import ConfigError


def choose_device(wanted: str) -> torch.device:
    """``auto`` (a GPU if one is usable), ``cpu`` or ``gpu``.

    Raises:
        ConfigError: a GPU is wanted and none is usable.
    """
    if wanted == "gpu" and not torch.cuda.is_available():
        raise ConfigError("device=gpu but no GPU is usable here; use device=auto or device=cpu")
    use_gpu = wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def has_fast_bf16(device_type: str) -> bool:
    """Whether the hardware multiplies in bfloat16 (else it is emulated, and slower).

    On CPUs this means Intel's AMX, or AVX-512 with BF16.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_matrix_units() or bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def has_matrix_units() -> bool:
    """Whether this CPU has units for whole products of bfloat16 matrices (Intel's AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """What a model computes here is float32, whatever training uses, on a GPU as on a CPU.

    cuDNN would otherwise round the factors of convolutions and LSTMs to the 10 bits of TF32, and a text that
    hangs by a hair would be another one.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def to_host(values: Tensor) -> Tensor:
    """``values`` in the CPU's memory, waiting for the current stream alone.

    From a GPU the copy goes to page-locked memory, at the full speed of the bus and beside whatever
    other streams compute.
    """
    if not values.is_cuda:
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return host


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the CPU on ``device``; a GPU fetches them when its current stream gets there."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class SideStream:
    """A stream of a GPU's work beside that of the model; on a CPU, which is done when it is asked, nothing.

    A GPU works through each stream in order and knows of no order between two. So what is given to this
    one waits for a mark in the other, and for nothing that the other is asked for later.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> torch.cuda.Event | None:
        """What has been reached when the device has done all that the calling thread has asked of it so far."""
        return None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()

    @contextmanager
    def after(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """The calling thread's work goes to this stream, and begins when ``mark`` is reached.

        What it reads must be kept until its results have arrived in the CPU's memory: other streams do not
        know that it is read, and would use its place again.
        """
        if self._stream is None or mark is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(mark)
            yield
