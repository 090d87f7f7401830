"""Where to compute."""

import torch

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
