"""Recipes of one training or of two, each step in a process of its own that is not repeated once it is done."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.errors import HydraException

from asr.checkpoint import LAST
from asr.cli import CONFIG_DIR, one_line, register_schemas
from asr.config import TrainConfig
from asr.manifest import manifest_sha256


class Step(NamedTuple):
    """``python -m MODULE ARGUMENTS``, which makes ``product`` (a file or folder).

    Beside the product, ``NAME.log`` keeps what the command printed, and ``NAME.json`` the command, the hashes of the
    files that it names and its processor minutes.
    """

    module: str
    arguments: tuple[str, ...]
    product: Path

    def minutes(self) -> float | None:
        """Processor minutes in which this command made the product; None if it has not.

        Raises:
            SystemExit: another command made it, or this one from files that have changed.
        """
        record = self._beside("json")
        if not record.exists():
            return None
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["command"] != [self.module, *self.arguments]:
            raise SystemExit(
                f"{self.product} was made with other options (see {record}): give another --output"
            )
        for path, made_from in content.get("inputs", {}).items():  # none in records of earlier versions
            if os.path.isfile(path) and manifest_sha256(path) != made_from:
                raise SystemExit(f"{self.product} was made from another {path}: give another --output")
        return float(content["cpu_minutes"])

    def make_once(self) -> None:
        """Run the command unless it has made the product before. What an interrupted one left is removed first.

        Raises:
            SystemExit: the command failed (its last words are shown), or the product was made otherwise.
        """
        if self.minutes() is not None:
            return
        if self.product.is_dir():
            shutil.rmtree(self.product)
        self.product.parent.mkdir(parents=True, exist_ok=True)
        log = self._beside("log")
        command = [sys.executable, "-m", self.module, *self.arguments]
        inputs = self._inputs()
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{' '.join(command)}\n{log.read_text(encoding='utf-8')[-2000:]}")
        content = {
            "command": [self.module, *self.arguments],
            "inputs": inputs,
            "cpu_minutes": (usage.ru_utime + usage.ru_stime) / 60,
        }
        self._beside("json").write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _inputs(self) -> dict[str, str]:
        """SHA-256 of every file that an argument names, those aside that the step makes itself."""
        values = [argument.partition("=")[2] for argument in self.arguments]
        product = self.product.absolute()
        return {
            value: manifest_sha256(value)
            for value in values
            if os.path.isfile(value) and not Path(value).absolute().is_relative_to(product)
        }

    def _beside(self, suffix: str) -> Path:
        return self.product.with_name(f"{self.product.name}.{suffix}")


def minutes_of(steps: Sequence[Step]) -> float | None:
    """Processor minutes of all; None if one is not done."""
    minutes = [step.minutes() for step in steps]
    done = [one for one in minutes if one is not None]
    return sum(done) if len(done) == len(minutes) else None


def last_weights(folder: Path) -> Path:
    """The last checkpoint of the recipe made in ``folder``."""
    return folder / "run" / "checkpoints" / LAST


@dataclass(frozen=True)
class Recipe:
    """Options of ``asr.train``; with ``first``, those of a training before it.

    The first training's model splices more utterances (``asr.prepare corpus=spliced``), and the training on
    these and the real ones begins with its weights.

    Raises:
        SystemExit: the options are none of ``asr.train``, or a preset among them begins with weights that may have
            heard anybody.
    """

    options: tuple[str, ...]
    first: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.first is not None:
            _composed((*self.options, "init_from=FIRST"))
        begin = self.options if self.first is None else self.first
        weights = _composed(begin).init_from
        is_given = any(option.lstrip("+").startswith("init_from=") for option in begin)
        if weights is not None and not is_given:
            raise SystemExit(
                f"{' '.join(begin)}: the preset begins with weights of another training ({weights}), which may "
                "have heard the held-out speakers: give --first (cross_validate.py) or first: (a plan), or init_from= "
                "yourself"
            )

    def steps(self, folder: Path, data: Path, seed: int) -> list[Step]:
        """All that makes ``folder``/run out of the manifests in ``data``."""
        if self.first is None:
            return [_training(self.options, folder / "run", data, data, seed)]
        first, spliced = folder / "first", folder / "spliced"
        weights = first / "checkpoints" / LAST
        splicing = ("corpus=spliced", f"source={data}", f"output={spliced}", f"checkpoint={weights}")
        return [
            _training(self.first, first, data, data, seed),
            Step("asr.prepare", splicing, spliced),
            _training((*self.options, f"init_from={weights}"), folder / "run", spliced, data, seed),
        ]


def _composed(options: Sequence[str]) -> Any:
    """The configuration of ``asr.train`` with these options."""
    register_schemas("train", TrainConfig)
    try:
        with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            return hydra.compose("train", list(options))
    except HydraException as error:
        raise SystemExit(f"{' '.join(options)}: {one_line(error, TrainConfig)}") from None


def _training(options: Sequence[str], run: Path, train: Path, dev: Path, seed: int) -> Step:
    manifests = (f"data.train={train / 'train.jsonl'}", f"data.dev={dev / 'dev.jsonl'}")
    common = (f"run_dir={run}", f"seed={seed}", "trainer.num_dev_samples=0")
    return Step("asr.train", (*options, *manifests, *common), run)
