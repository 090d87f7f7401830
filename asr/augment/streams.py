"""Random streams: one per kind of change, all from an utterance's one seed.

A stream of its own for each kind means that switching one on leaves the others as they were.
"""

import torch

# 3 is the stream of the training step (dropout and dither).
SPEED_AND_LEVEL, MASKS, NOISE, ROOM, CODEC, VOCAL_TRACT = 1, 2, 4, 5, 6, 7


def stream(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + number)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def below(limit: int, generator: torch.Generator) -> int:
    """A whole number from 0 to ``limit - 1``."""
    return int(torch.randint(limit, (), generator=generator).item())
