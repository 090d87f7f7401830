"""Where to compute."""

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
    """Whether bfloat16 is computed by the hardware's matrix units (else it is emulated, and slower).

    On CPUs this means Intel's AMX.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


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
