"""Short trials before a training: the learning rate at which the loss falls fastest, the batch that fits."""

import gc
import math
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from asr.errors import TrainingError
from asr.module import CtcModule
from asr.records import Batch
from asr.sampler import batches_by_length

# Learning-rate range test.
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
_SMOOTHING = 0.9
_DIVERGED = 3.0  # smoothed loss over the lowest one

# Batch size.
MAX_UTTERANCES = 4096
_GPU_SHARE, _CPU_SHARE = 0.9, 0.8
_PRECISION_SECONDS = 1.05  # stop when the largest that fits and the smallest that does not are this close
_GIB = 2**30


# ------------------------------------------------------------------ learning rate


@dataclass(frozen=True, slots=True)
class RateTrial:
    """``rates[i]`` was used in step ``i``; ``losses`` are smoothed, nats per label."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """Where the smoothed loss falls fastest with the logarithm of the rate, before its lowest point."""
        lowest = min(range(len(self.losses)), key=lambda step: self.losses[step])
        width = max(1, len(self.losses) // 20)
        slopes = {
            step: self.losses[step + width] - self.losses[step - width]
            for step in range(width, min(lowest + 1, len(self.losses) - width))
        }
        if not slopes:
            raise TrainingError(
                "the loss did not fall at any learning rate: check the transcripts (asr.doctor) and the model"
            )
        return self.rates[min(slopes, key=lambda step: slopes[step])]

    @property
    def limit(self) -> float:
        """The rate of the lowest loss; above it training is unstable."""
        return self.rates[min(range(len(self.losses)), key=lambda step: self.losses[step])]


def find_learning_rate(
    module: CtcModule,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    num_steps: int,
    *,
    autocast: bool,
    clip_norm: float,
) -> RateTrial:
    """Learning-rate range test (Smith 2017): one step at each rate from tiny to huge, until the loss explodes.

    The module's weights are changed.

    Args:
        batches: as many as there are; the trial ends with them.
        num_steps: over which the rate grows, evenly in its logarithm.
        autocast: bfloat16, as in the training to come.
        clip_norm: largest gradient norm, as in the training to come.
    """
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    module.train()
    for step, batch in enumerate(batches):
        if step == num_steps:
            break
        rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (step / max(num_steps - 1, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(module, optimizer, batch, autocast, clip_norm)
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or smoothed > _DIVERGED * min([*losses, smoothed]):
            break
        rates.append(rate)
        losses.append(smoothed)
    return RateTrial(tuple(rates), tuple(losses))


def _step(
    module: CtcModule, optimizer: Optimizer, batch: Batch, autocast: bool, clip_norm: float = 1.0
) -> float:
    device = module.device
    tensors: dict[str, Any] = {
        name: part.to(device) for name, part in batch._asdict().items() if isinstance(part, Tensor)
    }
    batch = batch._replace(**tensors)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = module.shared_step(batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()
    return float(loss.detach())


def plot_rates(trial: RateTrial, path: Path) -> None:
    """The loss over the rate, with the suggestion marked."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(trial.rates, trial.losses)
    axes.axvline(
        trial.suggestion, color="tab:green", linestyle="--", label=f"suggested: {trial.suggestion:.1e}"
    )
    axes.axvline(trial.limit, color="tab:red", linestyle=":", label=f"lowest loss: {trial.limit:.1e}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss per label, smoothed")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


# ------------------------------------------------------------------ batch size


@dataclass(frozen=True, slots=True)
class Shape:
    """The largest batch of a plan: utterances and seconds of the longest."""

    num_utterances: int
    longest_seconds: float

    @property
    def padded_seconds(self) -> float:
        return self.num_utterances * self.longest_seconds


@dataclass(frozen=True, slots=True)
class BatchTrial:
    """``peaks``: ``(max_batch_seconds, bytes)`` of every trial; ``max_seconds`` is the largest that fits."""

    peaks: tuple[tuple[float, int], ...]
    max_seconds: float
    largest: Shape
    budget_bytes: int


def worst_shapes(durations: Sequence[float], max_seconds: float) -> list[Shape]:
    """Of all batches that a limit allows: the ones with most padded audio, most utterances, longest audio."""
    batches = batches_by_length(durations, max_utterances=MAX_UTTERANCES, max_seconds=max_seconds)
    shapes = [Shape(len(batch), durations[batch[0]]) for batch in batches]
    keys: list[Callable[[Shape], float]] = [
        lambda shape: shape.padded_seconds,
        lambda shape: shape.num_utterances,
        lambda shape: shape.longest_seconds,
    ]
    return list(dict.fromkeys(max(shapes, key=key) for key in keys))


def find_batch_seconds(
    peak_bytes: Callable[[Shape], int | None],
    durations: Sequence[float],
    budget_bytes: int,
    on_trial: Callable[[float, int], None] = lambda seconds, peak: None,
) -> BatchTrial:
    """The largest ``max_batch_seconds`` whose worst batch fits: doubled until it does not, then narrowed down.

    Args:
        peak_bytes: memory of one training step on a batch of this shape; None when it ran out of memory.
        durations: seconds of each training utterance, slowed down as augmentation may.
        budget_bytes: what a step may take.
        on_trial: told each entry of ``peaks`` as it is measured: a large batch takes minutes on a CPU.

    Raises:
        TrainingError: not even the longest utterance alone fits.
    """
    peaks: list[tuple[float, int]] = []

    def fits(seconds: float) -> bool:
        measured = [peak_bytes(shape) for shape in worst_shapes(durations, seconds)]
        peak = sys.maxsize if None in measured else max(value for value in measured if value is not None)
        peaks.append((seconds, peak))
        on_trial(seconds, peak)
        return peak <= budget_bytes

    good, bad = max(durations), math.inf
    total = math.fsum(durations)
    if not fits(good):
        raise TrainingError(
            f"the longest utterance ({good:.1f} s) alone needs more than the {budget_bytes / _GIB:.1f} GiB there are: "
            "lower data.max_seconds, or use a smaller model or a larger time stride"
        )
    while math.isinf(bad) and good < total:
        good, bad = (2 * good, bad) if fits(2 * good) else (good, 2 * good)
    while math.isfinite(bad) and bad / good > _PRECISION_SECONDS:
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    largest = max(worst_shapes(durations, good), key=lambda shape: shape.num_utterances)
    return BatchTrial(tuple(peaks), good, largest, budget_bytes)


def measure_step(
    module: CtcModule,
    optimizer: Optimizer,
    sample_rate: int,
    labels_per_second: float,
    vocab_size: int,
    autocast: bool,
) -> Callable[[Shape], int | None]:
    """Shape → peak memory of one training step on noise of that shape, with as many labels as the densest text."""
    device = module.device
    labels = torch.tensor([label for label in range(vocab_size) if label != module.blank_id])

    def peak_bytes(shape: Shape) -> int | None:
        num_samples = math.ceil(shape.longest_seconds * sample_rate)
        num_labels = max(1, math.floor(shape.longest_seconds * labels_per_second))
        targets = labels.repeat(-(-num_labels // len(labels)))[:num_labels]
        batch = Batch(
            utterance_ids=tuple(f"noise-{number}" for number in range(shape.num_utterances)),
            waveforms=0.1 * torch.randn(shape.num_utterances, num_samples),
            waveform_lengths=torch.full((shape.num_utterances,), num_samples),
            targets=targets.repeat(shape.num_utterances, 1),
            target_lengths=torch.full((shape.num_utterances,), num_labels),
            texts=("",) * shape.num_utterances,
            seeds=torch.zeros(shape.num_utterances, dtype=torch.int64),
        )
        gc.collect()
        reset_peak(device)
        try:
            _step(module, optimizer, batch, autocast)
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
        return read_peak(device)

    return peak_bytes


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device: torch.device) -> int:
    """Most bytes held since the reset: by the GPU's allocator, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def memory_budget(device: torch.device) -> int:
    """Bytes that a training may take here: most of the GPU's, or of what is free beside this process."""
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        raise TrainingError("how much memory is free cannot be told here: give trainer.memory_gib")
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(_CPU_SHARE * int(line.split()[1]) * 1024)
