"""Run directories: made, held while a training writes to them, and gone on with."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from asr import checkpoint
from asr.augment.sounds import sounds_sha256
from asr.cli import given_options
from asr.config import NO_RESUME, TrainConfig
from asr.errors import CheckpointError, ConfigError, TrainingError
from asr.manifest import manifest_sha256
from asr.provenance import command_line, flatten

logger = logging.getLogger(__name__)


def make_run_dir(run_dir: Path) -> Path:
    """Create it.

    Raises:
        TrainingError: it cannot be written, or holds a run already.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / checkpoint.CHECKPOINT_FOLDER).mkdir(exist_ok=True)
        probe = run_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(
            f"cannot write the run directory {run_dir} ({error.strerror}); choose another: run_dir=PATH"
        ) from error
    if any((run_dir / checkpoint.CHECKPOINT_FOLDER).glob("*.ckpt")):
        raise TrainingError(
            f"{run_dir} already holds a run: go on with resume={run_dir}, or choose another run_dir"
        )
    return run_dir


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """No other process trains in ``run_dir`` meanwhile. The lock goes with the process, however that ends.

    (``lockf`` rather than ``flock``: loader processes do not inherit it, so that a killed run can be gone on with.)

    Raises:
        TrainingError: another one does.
    """
    try:
        file = open(run_dir / ".lock", "w", encoding="utf-8")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise TrainingError(f"cannot write to the run directory {run_dir} ({error.strerror})") from error
    with file as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise TrainingError(
                f"another training is writing to {run_dir}: wait for it, or choose another run_dir"
            ) from None
        except OSError:  # a file system without locks
            logger.warning("%s: cannot be locked, a second training there would not be noticed", run_dir)
        yield


def find_resume(config: TrainConfig) -> Path | None:
    """The ``last.ckpt`` to go on from, or None to start afresh.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: its configuration differs in more than how long and where to train, its manifests
            have changed, or ``init_from`` is given, too.
    """
    wanted = config.resume
    if wanted.lower() in NO_RESUME:
        return None
    if (
        config.init_from is not None and "init_from" in given_options()
    ):  # a preset's is of the run that is gone on with
        raise ConfigError("init_from begins a new run and resume goes on with an old one: give one of them")
    if wanted.lower() == "true":
        runs = Path(config.run_dir).parent
        found = sorted(
            runs.glob(f"*/{checkpoint.CHECKPOINT_FOLDER}/{checkpoint.LAST}"), key=lambda p: p.stat().st_mtime
        )
        if not found:
            raise CheckpointError(f"resume=true: no run below {runs} has a checkpoint to go on from")
        path = found[-1]
    else:
        given = Path(wanted).expanduser()
        path = given if given.is_file() else given / checkpoint.CHECKPOINT_FOLDER / checkpoint.LAST
        if not path.is_file():
            raise CheckpointError(f"resume={wanted}: {path} does not exist")
        if path.absolute().parent.name != checkpoint.CHECKPOINT_FOLDER:
            raise CheckpointError(
                f"resume={wanted}: {path} is not in a run directory (…/{checkpoint.CHECKPOINT_FOLDER}/{path.name})"
            )
    path = path.absolute()
    recipe = checkpoint.read(path)["recipe"]
    check_same_recipe(recipe["config"], dataclasses.asdict(config), path)
    check_same_manifests(recipe["provenance"]["manifests"], describe_manifests(config), path)
    return path


MAY_DIFFER_ON_RESUME = (
    *("resume", "run_dir", "init_from", "trainer", "logger", "data.num_workers", "data.cache_audio_gib"),
    "doctor",  # what it found is taken from the run's excluded.jsonl
)
# What a checkpoint holds depends on the first, how its steps are counted on the second.
MUST_AGREE_ON_RESUME = ("trainer.ema_decay", "trainer.accumulate_batches")


def check_same_recipe(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Going on with other data, model or schedule would be neither the old run nor a new one."""
    old, new = flatten(before), flatten(now)
    changed = [
        f"{name}: {old.get(name)} → {new.get(name)}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
        and (name in MUST_AGREE_ON_RESUME or not name.startswith(MAY_DIFFER_ON_RESUME))
    ]
    if changed:
        raise ConfigError(f"cannot go on from {path} with other options ({'; '.join(changed)})")


def check_same_manifests(
    before: dict[str, dict[str, str]], now: dict[str, dict[str, str]], path: Path
) -> None:
    """Batches are planned from the manifests: with others the plan would be neither old nor new."""
    changed = [now[name]["path"] for name in now if before[name]["sha256"] != now[name]["sha256"]]
    if changed:
        raise ConfigError(
            f"cannot go on from {path}: changed since then: {', '.join(changed)}; start a new run instead"
        )


def resume_command(run_dir: Path) -> str:
    """The running command, going on with this run."""
    kept = [
        part
        for part in shlex.split(command_line())
        if not part.startswith(("resume=", "run_dir=", "init_from="))
    ]
    return shlex.join([*kept, f"resume={run_dir}"])


def write_run_files(config: TrainConfig, run_dir: Path, recipe: dict[str, Any]) -> None:
    """What is needed to understand and repeat the run: config, provenance, command."""
    (run_dir / "config.yaml").write_text(yaml.safe_dump(recipe["config"], sort_keys=False), encoding="utf-8")
    provenance = json.dumps(recipe["provenance"], indent=2, ensure_ascii=False)
    (run_dir / "provenance.json").write_text(provenance + "\n", encoding="utf-8")
    with open(run_dir / "command.sh", "a", encoding="utf-8") as file:
        file.write(command_line() + "\n")


def describe_manifests(config: TrainConfig) -> dict[str, dict[str, str]]:
    """What the training learns from: the manifests, and the recordings mixed into their audio.

    Raises:
        ConfigError: there are no such recordings; names the option.
    """
    manifests = {
        split: {"path": path, "sha256": manifest_sha256(path)}
        for split, path in (("train", config.data.train), ("dev", config.data.dev))
    }
    sounds = {
        option: {"path": path, "sha256": sounds_sha256(path, f"augment.{option}")}
        for option in ("noise", "reverb_responses")
        if (path := getattr(config.augment, option)) is not None
    }
    return manifests | sounds
