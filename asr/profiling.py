"""Where the time of a training step goes, and what to change first."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import nn

from asr.module import CtcModule

# The first steps compile kernels, fill caches and start loaders.
WARMUP_STEPS = 5
_PARTS = ("waiting for data", "features", "encoder", "loss", "backward", "optimizer", "other")
_ADVICE = {
    "waiting for data": (
        0.05,
        "audio comes too slowly: raise data.num_workers, or data.cache_audio_gib if the corpus fits",
    ),
    "features": (
        0.2,
        "the front-end is large beside the encoder: fewer features.num_mels, or a longer hop_seconds",
    ),
    "loss": (
        0.2,
        "see that loss.backend is fused; a larger time stride (model.conv_strides) shortens the loss too",
    ),
    "optimizer": (0.15, "batches are small for this model: raise data.max_batch_utterances"),
    "other": (0.15, "bookkeeping is large beside so small a model: raise data.max_batch_utterances"),
}


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Seconds of an average step, by part; ``num_steps`` were measured."""

    seconds: dict[str, float]
    num_steps: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def share(self, part: str) -> float:
        return self.seconds[part] / max(self.total, 1e-12)

    def advice(self) -> str:
        """The one thing to change first."""
        excess = {part: self.share(part) / limit for part, (limit, _) in _ADVICE.items()}
        worst = max(excess, key=lambda part: excess[part])
        if excess[worst] > 1:
            return f"{worst} takes {self.share(worst):.0%} of a step: {_ADVICE[worst][1]}"
        return (
            "the model itself takes the time, as it should: bf16 (trainer.precision), another number of threads "
            "(trainer.num_threads), a larger time stride, a smaller model or a faster device would help"
        )


class StepProfiler(Callback):
    """Times the parts of every step after a few; the device is waited for between them, which costs a little."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(_PARTS, 0.0)
        self._num_steps = 0
        self._num_seen = 0
        self._mark = 0.0
        self._device = torch.device("cpu")

    @property
    def profile(self) -> StepProfile:
        steps = max(self._num_steps, 1)
        return StepProfile(
            {part: seconds / steps for part, seconds in self._seconds.items()}, self._num_steps
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CtcModule)
        self._device = pl_module.device
        model = pl_module.acoustic_model
        for part, module in (
            ("features", model.features),
            ("encoder", model.encoder),
            ("loss", pl_module.training_loss),
        ):
            module.register_forward_pre_hook(self._hook("other"))
            module.register_forward_hook(self._hook(part))
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *unused: self._take("optimizer"))

    def _hook(self, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, *unused: Any) -> None:
            if module.training:
                self._take(part)

        return hook

    def _take(self, part: str) -> None:
        """Book the time since the last mark."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._num_seen >= WARMUP_STEPS:
            self._seconds[part] += now - self._mark
        self._mark = now

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = time.perf_counter()  # validation does not count

    def on_train_batch_start(self, *unused: Any) -> None:
        self._take("waiting for data")

    def on_before_backward(self, *unused: Any) -> None:
        self._take("other")

    def on_after_backward(self, *unused: Any) -> None:
        self._take("backward")

    def on_train_batch_end(self, *unused: Any) -> None:
        self._take("other")
        self._num_steps += self._num_seen >= WARMUP_STEPS
        self._num_seen += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print_profile(self.profile, Console(stderr=True))


def print_profile(profile: StepProfile, console: Console) -> None:
    """The table and the advice."""
    if profile.num_steps == 0:
        console.print(f"no profile: the run had no more than {WARMUP_STEPS} steps")
        return
    table = Table(title=f"an average of {profile.num_steps} training steps", title_justify="left")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for part, seconds in profile.seconds.items():
        table.add_row(part, f"{1000 * seconds:.1f}", f"{profile.share(part):.1%}")
    table.add_row("step", f"{1000 * profile.total:.1f}", "", style="bold")
    console.print(table)
    console.print(f"change first: {profile.advice()}", soft_wrap=True, highlight=False)
