"""Recipes of one training or of two, each step in a process of its own that is not repeated once it is done."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from asr.checkpoint import LAST


class Step(NamedTuple):
    """``python -m MODULE ARGUMENTS``, which makes ``product`` (a file or folder).

    Beside the product, ``NAME.log`` keeps what the command printed, and ``NAME.json`` the command and its
    processor minutes.
    """

    module: str
    arguments: tuple[str, ...]
    product: Path

    def minutes(self) -> float | None:
        """Processor minutes in which this command made the product; None if it has not.

        Raises:
            SystemExit: another command made it.
        """
        record = self._beside("json")
        if not record.exists():
            return None
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["command"] != [self.module, *self.arguments]:
            raise SystemExit(
                f"{self.product} was made with other options (see {record}): give another --output"
            )
        return float(content["cpu_minutes"])

    def make_once(self) -> None:
        """Run the command unless it has made the product before. What an interrupted one left is removed first.

        Raises:
            SystemExit: the command failed (its last words are shown), or another command made the product.
        """
        if self.minutes() is not None:
            return
        if self.product.is_dir():
            shutil.rmtree(self.product)
        self.product.parent.mkdir(parents=True, exist_ok=True)
        log = self._beside("log")
        command = [sys.executable, "-m", self.module, *self.arguments]
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{' '.join(command)}\n{log.read_text(encoding='utf-8')[-2000:]}")
        content = {
            "command": [self.module, *self.arguments],
            "cpu_minutes": (usage.ru_utime + usage.ru_stime) / 60,
        }
        self._beside("json").write_text(json.dumps(content) + "\n", encoding="utf-8")

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
    """

    options: tuple[str, ...]
    first: tuple[str, ...] | None = None

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


def _training(options: Sequence[str], run: Path, train: Path, dev: Path, seed: int) -> Step:
    manifests = (f"data.train={train / 'train.jsonl'}", f"data.dev={dev / 'dev.jsonl'}")
    common = (f"run_dir={run}", f"seed={seed}", "trainer.num_dev_samples=0")
    return Step("asr.train", (*options, *manifests, *common), run)
