"""Training step: this program's Lightning loop against a bare PyTorch loop.

Both train a copy of the same model on the same batches in one process, turn about: after every
Lightning step the bare loop does one. What is timed on the Lightning side is everything from one
step's end to the next step's end, so hooks, metrics and logging count. The bare loop is forward,
loss, backward, clipping, optimizer and schedule, and nothing else.

    python scripts/bench_train_step.py --steps 60 --threads 2 model=small

With --ctc it compares two bare loops instead, one with PyTorch's CTC loss and one with the fused loss, and
says how much of each step the loss is, forward and backward, on the log-probabilities of that step.

    python scripts/bench_train_step.py --ctc --threads 2 model=tiny
    python scripts/bench_train_step.py --ctc --bf16 --threads 2 model=tiny

With --precision the two bare loops differ in precision, float32 and bf16 (the loss is float32 in both); with
--compile one of them runs the encoder through torch.compile.

    python scripts/bench_train_step.py --precision model=ds2-large
    python scripts/bench_train_step.py --compile --bf16 model=conformer-s
"""

import argparse
import copy
import dataclasses
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
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


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
        augment_features=build.make_augmenters(config.augment, model.features)[1],
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


def make_bare_step(module: CtcModule, clip_norm: float, bf16: bool = False) -> Callable[[Batch], None]:
    """The shortest correct training step."""
    module.train()
    optimizer = module.make_optimizer(module.acoustic_model)
    schedule = module.make_schedule(optimizer)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = module.shared_step(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        schedule.step()

    return step


class TurnAbout(Callback):
    """Times each Lightning step, then does and times another program's."""

    def __init__(self, other_step: Callable[[Batch], None], clock: Clock) -> None:
        self.other_step = other_step
        self.clock = clock
        self.lightning_seconds: list[float] = []
        self.other_seconds: list[float] = []
        self._since = math.nan

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        now = self.clock()
        self.lightning_seconds.append(now - self._since)
        self.other_step(batch)
        self._since = self.clock()
        self.other_seconds.append(self._since - now)


def measure(
    config: TrainConfig,
    module: CtcModule,
    other_step: Callable[[Batch], None],
    batches: list[Batch],
    run_dir: Path,
    clock: Clock,
) -> TurnAbout:
    """Lightning's training of ``module`` and ``other_step``, on the same batches, turn about."""
    turns = TurnAbout(other_step, clock)
    trainer = train.make_trainer(config, run_dir)
    trainer.callbacks.append(turns)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return turns


def measure_bare(
    config: TrainConfig, batches: list[Batch], clock: Clock, *, precision: bool, bf16: bool
) -> dict[str, Any]:
    """Medians of bare steps, turn about: float32 and bf16, or as they are and compiled."""
    names = ("float32", "bf16") if precision else ("eager", "compiled")
    steps = {}
    for name in names:
        torch.manual_seed(0)
        module = make_module(config, num_steps=len(batches))
        if name == "compiled":
            module.acoustic_model.encoder.compile(dynamic=True)
        steps[name] = make_bare_step(module, config.trainer.gradient_clip_norm, bf16 or name == "bf16")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for batch in batches:
        for name, step in steps.items():
            start = clock()
            step(batch)
            seconds[name].append(clock() - start)
    return {
        "step": {name: figures(values) for name, values in seconds.items()},
        "speed_up": compare(*(seconds[name] for name in names)),
        "first_step_seconds": {name: round(values[0], 1) for name, values in seconds.items()},
    }


def compare(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as long ``ours`` take: by medians, by minima, and the median of the pairs' ratios."""
    ours, theirs = ours[WARM_UP_STEPS:], theirs[WARM_UP_STEPS:]
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "of_medians": round(median(ours) / median(theirs), 4),
        "of_minima": round(min(ours) / min(theirs), 4),
        "median_of_pairs": round(median(ratios), 4),
    }


def measure_ctc(config: TrainConfig, batches: list[Batch], clock: Clock, bf16: bool) -> dict[str, Any]:
    """Medians of steps with either loss, turn about, and of the loss alone."""
    modules, steps = {}, {}
    for backend in ("native", "fused"):
        torch.manual_seed(0)
        loss = dataclasses.replace(config.loss, backend=backend)
        modules[backend] = make_module(dataclasses.replace(config, loss=loss), num_steps=len(batches))
        steps[backend] = make_bare_step(modules[backend], config.trainer.gradient_clip_norm, bf16)
    step_seconds: dict[str, list[float]] = {backend: [] for backend in modules}
    loss_seconds: dict[str, list[float]] = {backend: [] for backend in modules}
    for batch in batches:
        for backend, module in modules.items():
            start = clock()
            steps[backend](batch)
            step_seconds[backend].append(clock() - start)
            emissions = module.acoustic_model(batch.waveforms, batch.waveform_lengths)
            log_probs = emissions.log_probs.detach().requires_grad_()
            start = clock()
            leaf = emissions._replace(log_probs=log_probs)
            losses, _ = module.training_loss(leaf, batch.targets, batch.target_lengths)
            losses.sum().backward()
            loss_seconds[backend].append(clock() - start)
    step, loss_alone = (
        {name: figures(values) for name, values in seconds.items()}
        for seconds in (step_seconds, loss_seconds)
    )
    return {
        "step": step,
        "loss": loss_alone,
        "share": {
            name: round(loss_alone[name]["median_ms"] / step[name]["median_ms"], 4) for name in modules
        },
        "speed_up": round(step["native"]["median_ms"] / step["fused"]["median_ms"], 3),
        "speed_up_of_minima": round(step["native"]["minimum_ms"] / step["fused"]["minimum_ms"], 3),
    }


def figures(seconds: list[float]) -> dict[str, float]:
    kept = [1000 * value for value in seconds[WARM_UP_STEPS:]]
    return {"median_ms": round(median(kept), 2), "minimum_ms": round(min(kept), 2)}


def add_clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: seconds of work of all threads, for one thread on a busy machine",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--ctc", action="store_true", help="PyTorch's CTC loss against the fused one")
    mode.add_argument("--precision", action="store_true", help="float32 against bf16")
    mode.add_argument("--compile", action="store_true", help="the encoder as it is against torch.compile")
    parser.add_argument("--bf16", action="store_true", help="with --ctc, --compile: forward under autocast")
    add_clock(parser)
    parser.add_argument("overrides", nargs="*", help="options of asr.train, such as model=tiny")
    options = parser.parse_args()
    if options.bf16 and not (options.ctc or options.compile):
        parser.error("--bf16 goes with --ctc and --compile; the Lightning loop is compared in float32")
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    train.quieten_libraries()
    with tempfile.TemporaryDirectory() as folder:
        config = compose(options.overrides, folder)
        batches = make_batches(config, options.steps + WARM_UP_STEPS, options.batch_size, options.seconds)
        if options.ctc or options.precision or options.compile:
            found = (
                measure_ctc(config, batches, clock, options.bf16)
                if options.ctc
                else measure_bare(config, batches, clock, precision=options.precision, bf16=options.bf16)
            )
            sys.stdout.write(json.dumps(vars(options) | found, indent=2) + "\n")
            return 0
        torch.manual_seed(0)
        module = make_module(config, num_steps=len(batches))
        bare_step = make_bare_step(copy.deepcopy(module), config.trainer.gradient_clip_norm)
        turns = measure(config, module, bare_step, batches, Path(folder), clock)
    lightning, bare = figures(turns.lightning_seconds), figures(turns.other_seconds)
    result = {
        **{
            name: getattr(options, name)
            for name in ("steps", "threads", "batch_size", "seconds", "clock", "overrides")
        },
        "lightning": lightning,
        "bare": bare,
        "ratio": compare(turns.lightning_seconds, turns.other_seconds),
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
