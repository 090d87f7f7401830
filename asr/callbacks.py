"""What happens around training steps: progress lines, checkpoints, Ctrl-C."""

import contextlib
import csv
import dataclasses
import logging
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from asr import parallel
from asr.coach import Coach, Figures, State
from asr.errors import TrainingError
from asr.module import CtcModule, DevSample, spread

logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818  (an event, not an error)
    """The user pressed Ctrl-C (or the job was told to stop); the last checkpoint is saved."""


class EpochLine(Callback):
    """After each validation: one line of figures and a few decoded dev utterances, always the same.

    Args:
        align: reference and hypothesis as Markdown, for TensorBoard.
    """

    def __init__(self, num_samples: int, align: Callable[[DevSample], str]) -> None:
        self.num_samples = num_samples
        self.align = align
        self._started = time.monotonic()
        self._frames_before = 0
        self.best_wer = float("inf")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()
        self._frames_before = _ctc(pl_module).num_frames_trained

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._seconds = max(time.monotonic() - self._started, 1e-9)
            own_frames = _ctc(pl_module).num_frames_trained - self._frames_before
            frames = parallel.total([own_frames], pl_module.device)[0]
            self.frames_per_second = frames / self._seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loss = _ctc(pl_module).latest_train_loss
        for own_logger in trainer.loggers:
            own_logger.log_metrics(
                {"epoch": trainer.current_epoch, "train/frames_per_second": self.frames_per_second},
                step=trainer.global_step,
            )
        wer = metrics["dev/wer"]
        star = " *" if wer < self.best_wer else ""
        self.best_wer = min(self.best_wer, wer)
        logger.info(
            "epoch %d/%s  loss %.3f  dev loss %.3f  WER %.2f %%  CER %.2f %%  blanks %.0f %%  %.0f frames/s  %.0f s%s",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            loss,
            metrics["dev/loss"],
            100 * wer,
            100 * metrics["dev/cer"],
            100 * metrics["dev/blank_rate"],
            self.frames_per_second,
            self._seconds,
            star,
        )
        samples = spread(_ctc(pl_module).dev_samples, self.num_samples)
        for sample in samples:
            logger.info("    %s", sample.utterance_id)
            logger.info("      said  %s", sample.reference)
            logger.info("      heard %s", sample.hypothesis or "(nothing)")
        for own_logger in trainer.loggers:
            if isinstance(own_logger, TensorBoardLogger) and samples:
                text = "\n\n".join(map(self.align, samples))
                own_logger.experiment.add_text("dev/samples", text, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"best_wer": self.best_wer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_wer = state_dict["best_wer"]


class CoachLine(Callback):
    """After a validation: what the figures mean, when that has changed."""

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.coach = Coach()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        norms, _ctc(pl_module).gradient_norms = _ctc(pl_module).gradient_norms, []
        figures = Figures(
            step=trainer.global_step,
            train_loss=_ctc(pl_module).latest_train_loss,
            dev_loss=metrics["dev/loss"],
            wer=metrics["dev/wer"],
            blank_rate=metrics["dev/blank_rate"],
            entropy=metrics["dev/entropy"],
            length_ratio=metrics["dev/length_ratio"],
            gradient_norm=statistics.median(norms) if norms else 0.0,
            clip_norm=self.clip_norm,
            learning_rate=float(trainer.optimizers[0].param_groups[0]["lr"]),
        )
        advice = self.coach.observe(figures)
        if advice is not None and advice.is_warning:
            logger.warning("coach: %s; %s", advice.finding, advice.remedy)
        elif advice is not None:
            logger.info("coach: %s", advice.finding)

    def state_dict(self) -> dict[str, Any]:
        state = self.coach.state
        return {
            "history": [dataclasses.asdict(figures) for figures in self.coach.history],
            "state": None if state is None else state.value,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.coach.history = [Figures(**figures) for figures in state_dict["history"]]
        self.coach.state = None if state_dict["state"] is None else State(state_dict["state"])


class KeepBestAndLast(Callback):
    """After each validation: ``last`` always, ``best`` when the dev WER is lower than ever before.

    For an average of checkpoints, the ``num_averaged`` with the lowest dev WER are kept beside them. An ``average``
    that an earlier part of the training has left goes, which would pass for the result of this one.

    (Lightning's ``ModelCheckpoint`` writes its last checkpoint only together with a best one, and
    forgets the best when the run directory has moved.)
    """

    def __init__(self, best: Path, last: Path, average: Path, num_averaged: int = 0) -> None:
        self.best = best
        self.last = last
        self.average = average
        self.num_averaged = num_averaged
        self.best_wer = float("inf")
        self.kept: list[tuple[float, str]] = []  # (dev WER, file name), the best first

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        wer = float(trainer.callback_metrics["dev/wer"])
        dropped = self._rank(wer, trainer.current_epoch + 1)
        if wer < self.best_wer:
            self.best_wer = wer
            trainer.save_checkpoint(self.best)
        if self.kept and self._name(trainer.current_epoch + 1) in {name for _, name in self.kept}:
            trainer.save_checkpoint(self.best.with_name(self._name(trainer.current_epoch + 1)))
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            self.average.unlink(missing_ok=True)
            for name in dropped:
                self.best.with_name(name).unlink(missing_ok=True)

    def _rank(self, wer: float, epoch: int) -> list[str]:
        """Enter this epoch's checkpoint, and return the names of those that are no longer among the best."""
        # A run that was stopped within this epoch has validated it before.
        others = [entry for entry in self.kept if entry[1] != self._name(epoch)]
        ranked = sorted([*others, (wer, self._name(epoch))])
        self.kept, dropped = ranked[: self.num_averaged], ranked[self.num_averaged :]
        return [name for _, name in dropped]

    @staticmethod
    def _name(epoch: int) -> str:
        return f"epoch-{epoch:04d}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best_wer": self.best_wer, "kept": [list(entry) for entry in self.kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_wer = state_dict["best_wer"]
        self.kept = [(wer, name) for wer, name in state_dict.get("kept", [])]


class ValidateAtEnd(Callback):
    """Validates after the last epoch and wherever training stops, even if the interval has not passed.

    What was trained after the last validation would be in no checkpoint otherwise.
    """

    def __init__(self, every_epochs: int) -> None:
        self.every_epochs = every_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        # Going on after such a validation: Lightning takes an epoch for finished only where one is due.
        if loop.restarted_on_last and loop.batch_progress.is_last_batch:
            trainer.check_val_every_n_epoch = 1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.check_val_every_n_epoch = self.every_epochs

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: Any) -> None:
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class StopEarly(EarlyStopping):
    """Stops when the dev WER has not fallen for ``patience`` validations.

    (Lightning's goes on with the patience of the checkpoint, whatever it is given, and trains an epoch
    more whenever a run that it has stopped is resumed.)
    """

    @property
    def has_stopped(self) -> bool:
        return bool(self.wait_count >= self.patience)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.has_stopped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


class TimeLimit(Timer):
    """Stops when the time is over, at the end of a step: the gradients of half a step are in no checkpoint."""

    @property
    def is_over(self) -> bool:
        remaining = self.time_remaining()
        return remaining is not None and remaining <= 0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any, **options: Any) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            super().on_train_batch_end(trainer, *arguments, **options)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the loss and the dev WER, without the name of the logger's folder."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in shown.items() if name != "v_num"}


class SaveBetween(Callback):
    """Saves ``last.ckpt`` in the middle of epochs: every so often, and on Ctrl-C or SIGTERM, which stop.

    A second Ctrl-C stops at once. In the middle of an accumulated step it goes on to the step's end, and
    after an epoch's last batch to the end of the validation: what is saved is always a state that
    training can go on from exactly. Several processes decide together, after each step.

    Args:
        path: of the checkpoint.
        every_minutes: time between two savings, None for never.
    """

    def __init__(self, path: Path, every_minutes: float | None = None) -> None:
        self.path = path
        self.every_seconds = math.inf if every_minutes is None else 60 * every_minutes
        self._saved_at = time.monotonic()
        self._requested = False
        self._previous: dict[int, Any] = {}
        self._device = torch.device("cpu")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._device = pl_module.device
        self._saved_at = time.monotonic()
        # Not earlier: Lightning would take these handlers for the ones to restore at the end.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        # Not by logging: the code that was interrupted may be in the middle of it.
        with contextlib.suppress(OSError):
            os.write(2, b"stopping after this step; press Ctrl-C again to stop at once\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or loop.batch_progress.is_last_batch:
            return
        self._stop_if_requested(trainer)
        is_due = time.monotonic() - self._saved_at >= self.every_seconds
        if math.isfinite(self.every_seconds) and parallel.any_process(is_due, self._device):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_requested(trainer)

    def _stop_if_requested(self, trainer: pl.Trainer) -> None:
        if parallel.any_process(self._requested, self._device):
            self._save(trainer)
            raise Interrupted

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._give_signals_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class MetricsFile(Logger):
    """``metrics.csv``: one row per logged step or validation, appended to when a run is resumed.

    (Lightning's own CSV logger deletes what an earlier part of the run has written.)
    """

    COLUMNS = (
        *("step", "epoch"),
        *(f"train/{name}" for name in ("loss", "gradient_norm", "learning_rate", "blank_rate")),
        "train/frames_per_second",
        *(f"dev/{name}" for name in ("wer", "cer", "loss", "blank_rate", "entropy", "length_ratio")),
    )

    def __init__(self, path: Path, loss_parts: Sequence[str] = ()) -> None:
        super().__init__()
        self.path = path
        self.columns = [*self.COLUMNS, *(f"train/loss_{name}" for name in loss_parts)]
        self._row: dict[str, float] = {}

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *unused: Any, **unused_by_name: Any) -> None:
        """The run directory has its config.yaml."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Figures of the same step share a row; a validation and the next epoch's first step do not."""
        row = {"step": -1 if step is None else step, **metrics}
        if any(self._row.get(name) != row.get(name) for name in ("step", "epoch")):
            self._write_row()
        self._row |= row

    def finalize(self, status: str) -> None:
        self._write_row()

    def _write_row(self) -> None:
        if self._row:
            is_new = not self.path.exists()
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                if is_new:
                    writer.writeheader()
                writer.writerow(self._row)
        self._row = {}


def forget_metrics_after(path: Path, step: int) -> None:
    """Keep the rows of ``metrics.csv`` up to the end of ``step`` steps, its validation included.

    What is no row (the end of a file that a power cut has torn) goes as well.
    """
    if not path.exists():
        return
    if step == 0:
        path.unlink()
        return

    def is_before(row: dict[str, str]) -> bool:
        number = row["step"]
        return number.isdecimal() and (int(number) < step or (int(number) == step and bool(row["dev/wer"])))

    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(line.replace("\0", "") for line in file)
        columns = reader.fieldnames or []
        rows = [row for row in reader if is_before(row)]
    beside = path.with_name(f"{path.name}.partial")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear whole or not at all: written beside their place, flushed, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(checkpoint, Path(path))


def write_atomically(content: dict[str, Any], path: Path) -> None:
    """Save tensors and plain data.

    Raises:
        TrainingError: the folder cannot be written or the disk is full; what was there before still is.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # a full disk surfaces as either
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise TrainingError(
            f"cannot write the checkpoint {path} ({error}); the previous one is untouched"
        ) from error


def _ctc(module: pl.LightningModule) -> CtcModule:
    assert isinstance(module, CtcModule)
    return module
