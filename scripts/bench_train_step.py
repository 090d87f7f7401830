"""Training step: this program's Lightning loop against a bare PyTorch loop.

Both train a copy of the same model on the same batches in one process, turn about: after every
Lightning step the bare loop does one. What is timed on the Lightning side is everything from one
step's end to the next step's end, so hooks, metrics and logging count. The bare loop is forward,
loss, backward, clipping, optimizer and schedule, and nothing else.

    python scripts/bench_train_step.py --steps 60 --threads 2 model=small
"""

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from asr import build, checkpoint, optim, train
from asr.cli import CONFIG_DIR, register_schemas, to_typed
from asr.config import TrainConfig
from asr.module import CtcModule
from asr.records import Batch
from asr.tokenizer import CharTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz '"
WARM_UP_STEPS = 5


def compose(overrides: list[str], run_dir: str) -> TrainConfig:
    register_schemas("train", TrainConfig)
    # float32 on both sides: the bare loop has no autocast.
    fixed = [
        "trainer.accelerator=cpu",
        "trainer.precision=32",
        "trainer.progress_bar=false",
        f"run_dir={run_dir}",
    ]
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config: TrainConfig = to_typed(hydra.compose("train", [*fixed, *overrides]))
    return config


def make_module(config: TrainConfig, num_steps: int) -> CtcModule:
    tokenizer = CharTokenizer.train([LETTERS])
    model = build.make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    return CtcModule(
        acoustic_model=model,
        loss=build.make_loss(config.loss, tokenizer.blank_id),
        training_loss=build.make_training_loss(config.loss, config.text, tokenizer),
        decoder=build.make_decoder(config.decoder, tokenizer, model.seconds_per_frame),
        blank_id=tokenizer.blank_id,
        spec_augment=build.make_augmenters(config.augment, model.features)[1],
        make_optimizer=lambda network: optim.make_optimizer(config.optimizer, network),
        make_schedule=lambda optimizer: optim.make_schedule(config.schedule, optimizer, num_steps),
        normalise=build.make_normalise(config.text),
        recipe=checkpoint.describe(config, tokenizer, model.features, {}),
        skip_non_finite=config.trainer.non_finite_loss == "skip",
        log_every_steps=config.trainer.log_every_steps,
    )


def make_batches(config: TrainConfig, num_batches: int, batch_size: int, seconds: float) -> list[Batch]:
    """Noise with about 14 characters a second, as in read English; lengths within a fifth of each other."""
    tokenizer = CharTokenizer.train([LETTERS])
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(num_batches):
        share = 0.8 + 0.2 * torch.rand(batch_size, generator=generator)
        lengths = (share * seconds * config.features.sample_rate).long()
        num_labels = (14 * lengths / config.features.sample_rate).long()
        labels = torch.tensor(tokenizer.encode(LETTERS))
        targets = labels[torch.randint(len(labels), (batch_size, int(num_labels.max())), generator=generator)]
        batches.append(
            Batch(
                utterance_ids=tuple(f"{number}-{index}" for index in range(batch_size)),
                waveforms=0.1 * torch.randn(batch_size, int(lengths.max()), generator=generator),
                waveform_lengths=lengths,
                targets=targets,
                target_lengths=num_labels,
                texts=("",) * batch_size,
                seeds=torch.randint(2**40, (batch_size,), generator=generator),
            )
        )
    return batches


def make_bare_step(module: CtcModule, clip_norm: float) -> Callable[[Batch], None]:
    """The shortest correct training step."""
    module.train()
    optimizer = module.make_optimizer(module.acoustic_model)
    schedule = module.make_schedule(optimizer)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = module.shared_step(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        schedule.step()

    return step


class TurnAbout(Callback):
    """Times each Lightning step, then does and times a bare one."""

    def __init__(self, bare_step: Callable[[Batch], None]) -> None:
        self.bare_step = bare_step
        self.lightning_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._since = math.nan

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        now = time.perf_counter()
        self.lightning_seconds.append(now - self._since)
        self.bare_step(batch)
        self._since = time.perf_counter()
        self.bare_seconds.append(self._since - now)


def measure(config: TrainConfig, batches: list[Batch], run_dir: Path) -> TurnAbout:
    torch.manual_seed(0)
    module = make_module(config, num_steps=len(batches))
    turns = TurnAbout(make_bare_step(copy.deepcopy(module), config.trainer.gradient_clip_norm))
    trainer = train.make_trainer(config, run_dir)
    trainer.callbacks.append(turns)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return turns


def figures(seconds: list[float]) -> dict[str, float]:
    kept = [1000 * value for value in seconds[WARM_UP_STEPS:]]
    return {"median_ms": round(median(kept), 2), "minimum_ms": round(min(kept), 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("overrides", nargs="*", help="options of asr.train, such as model=tiny")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train.quieten_libraries()
    with tempfile.TemporaryDirectory() as folder:
        config = compose(options.overrides, folder)
        batches = make_batches(config, options.steps + WARM_UP_STEPS, options.batch_size, options.seconds)
        turns = measure(config, batches, Path(folder))
    lightning, bare = figures(turns.lightning_seconds), figures(turns.bare_seconds)
    pairs = zip(turns.lightning_seconds[WARM_UP_STEPS:], turns.bare_seconds[WARM_UP_STEPS:], strict=True)
    result = {
        **{
            name: getattr(options, name)
            for name in ("steps", "threads", "batch_size", "seconds", "overrides")
        },
        "lightning": lightning,
        "bare": bare,
        "ratio_of_medians": round(lightning["median_ms"] / bare["median_ms"], 4),
        "ratio_of_minima": round(lightning["minimum_ms"] / bare["minimum_ms"], 4),
        "median_of_ratios": round(median(ours / theirs for ours, theirs in pairs), 4),
        "torch": torch.__version__,
    }
    table = Table("loop", "median, ms", "minimum, ms", title="One training step")
    for name, row in (("Lightning", lightning), ("bare PyTorch", bare)):
        table.add_row(name, str(row["median_ms"]), str(row["minimum_ms"]))
    Console(stderr=True).print(table)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
