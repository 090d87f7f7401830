"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from asr.config import (
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    NoamConfig,
    OneCycleConfig,
    OptimizerConfig,
    ScheduleConfig,
    SgdConfig,
)
from asr.errors import ConfigError


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The configured optimizer; weight decay acts on matrices and kernels, not on biases and norms.

    (``fused``: each parameter is read and written once a step; on a CPU that is 4 times faster.)
    """
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    free = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    if isinstance(config, AdamConfig):
        kind = torch.optim.AdamW if isinstance(config, AdamWConfig) else torch.optim.Adam
        first, second = config.betas
        return kind(groups, lr=config.learning_rate, betas=(first, second), eps=config.epsilon, fused=True)
    raise ConfigError(f"optimizer.kind={config.kind} has no implementation")


def make_schedule(config: ScheduleConfig, optimizer: Optimizer, num_steps: int) -> LambdaLR:
    """The configured schedule over ``num_steps`` optimizer steps; Noam's alone has no end."""
    return LambdaLR(optimizer, schedule_factor(config, num_steps))


def schedule_factor(config: ScheduleConfig, num_steps: int) -> Callable[[int], float]:
    """Step → share of ``optimizer.learning_rate``, a pure function (so that resuming needs no state)."""
    last = max(num_steps - 1, 1)
    if isinstance(config, NoamConfig):
        warmup = config.warmup_steps
        return lambda step: min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
    if isinstance(config, OneCycleConfig):
        start, end = 1 / config.initial_divisor, 1 / (config.initial_divisor * config.final_divisor)
        peak = max(config.warmup_share * num_steps - 1, 1e-9)
        return lambda step: (
            half_cosine(start, 1.0, step / peak)
            if step < peak
            else half_cosine(1.0, end, (step - peak) / max(last - peak, 1e-9))
        )
    if isinstance(config, CosineConfig):
        warmup = max(round(config.warmup_share * num_steps), 1)
        peak_step = warmup - 1
        return lambda step: (
            (step + 1) / warmup
            if step < peak_step
            else half_cosine(1.0, config.final_share, (step - peak_step) / max(last - peak_step, 1))
        )
    if isinstance(config, ConstantConfig):
        warmup = max(round(config.warmup_share * num_steps), 1)
        return lambda step: min((step + 1) / warmup, 1.0)
    raise ConfigError(f"schedule.kind={config.kind} has no implementation")


def half_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a cosine as ``progress`` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
