"""Several processes train the model that one would have trained; none waits for a dead one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from asr import parallel
from asr.errors import TrainingError

# What is random in a process is drawn apart in each (dropout, dither); all else must agree.
SAME = [
    *("model.dropout=0", "features.dither=0", "optimizer.learning_rate=3e-3", "trainer.max_epochs=3"),
    *(
        "data.max_batch_utterances=3",
        "trainer.precision=32",
        "augment=standard",
        "augment.time_mask_seconds=0.1",
    ),
]


def run(options: Sequence[str], run_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asr.train", *options, *SAME, f"run_dir={run_dir}", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def rows(run_dir: Path) -> list[dict[str, str]]:
    header, *lines = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def last(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tiny_train_options: list[str], tmp_path: Path) -> None:
    """8 utterances in batches of 3, 3 and 2: uneven shares, and none is left waiting."""
    one, two = (run(tiny_train_options, tmp_path / name, f"trainer.devices={name}") for name in ("1", "2"))
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    expected, found = rows(tmp_path / "1"), rows(tmp_path / "2")
    assert len(expected) == len(found) == 12  # 3 epochs of 3 steps and a validation
    for row, other in zip(expected, found, strict=True):
        for name, value in row.items():
            if value and "frames_per_second" not in name:
                assert float(other[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), name
    for name, weight in last(tmp_path / "1")["state_dict"].items():
        torch.testing.assert_close(last(tmp_path / "2")["state_dict"][name], weight, rtol=1e-3, atol=1e-4)
    # One process writes and speaks.
    assert two.stderr.count("epoch 3/3") == 1
    assert two.stdout.count("report.json") == one.stdout.count("report.json") == 1
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        path.name for path in (tmp_path / "1").iterdir()
    )
    assert (tmp_path / "2" / "report.json").exists()


KILL_ONE = """
import os, signal, sys
from asr import parallel, train
from asr.callbacks import SaveBetween

def on_train_batch_start(callback, trainer, *unused):
    if parallel.rank() == 1 and trainer.fit_loop.epoch_loop.total_batch_idx == 4:
        os.kill(os.getpid(), signal.SIGKILL)

SaveBetween.on_train_batch_start = on_train_batch_start
sys.exit(train.main())
"""


@pytest.mark.slow
def test_one_killed_process_ends_the_run_which_can_be_resumed(
    tiny_train_options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "killed.py").write_text(KILL_ONE)
    run_dir = tmp_path / "run"
    options = [*tiny_train_options, *SAME, "trainer.devices=2", f"run_dir={run_dir}"]
    script = (
        "import sys; from asr import parallel; from asr.cli import fail; from asr.errors import AsrError\n"
        "try: sys.exit(parallel.launch('killed', sys.argv[1:], 2))\n"
        "except AsrError as error: sys.exit(fail(str(error), code=1))"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    started = time.monotonic()
    killed = subprocess.run(
        [sys.executable, "-c", script, *options, "trainer.save_every_minutes=1e-9"],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert killed.returncode == 1
    assert "killed (signal 9" in killed.stderr
    assert time.monotonic() - started < 200
    assert last(run_dir)["global_step"] == 4
    resumed = run(tiny_train_options, tmp_path / "unused", "trainer.devices=2", f"resume={run_dir}")
    assert resumed.returncode == 0, resumed.stderr
    whole = run(tiny_train_options, tmp_path / "whole", "trainer.devices=2")
    assert whole.returncode == 0, whole.stderr
    for name, weight in last(tmp_path / "whole")["state_dict"].items():
        assert torch.equal(last(run_dir)["state_dict"][name], weight), name


def failing(code: str) -> int:
    """Two processes that run ``code``, which knows its ``rank``."""
    return parallel.launch("timeit", ["-n", "1", "-r", "1", "-s", "import os, sys, time", code], 2)


def test_the_first_failure_is_the_result_and_stops_the_others() -> None:
    started = time.monotonic()
    assert failing("os._exit(7) if os.environ['RANK'] == '1' else time.sleep(60)") == 7
    assert time.monotonic() - started < 30
    assert failing("pass") == 0


def test_a_killed_process_is_said_to_be_killed() -> None:
    with pytest.raises(TrainingError, match=r"signal 9.*resume=true"):
        failing(
            f"os.kill(os.getpid(), {int(signal.SIGKILL)}) if os.environ['RANK'] == '0' else time.sleep(60)"
        )


def test_alone_there_is_nobody_to_wait_for() -> None:
    assert (parallel.rank(), parallel.num_processes(), parallel.num_local_processes()) == (0, 1, 1)
    assert parallel.total([1.5, 2.0], torch.device("cpu")) == [1.5, 2.0]
    assert parallel.gathered([1, 2]) == [1, 2]
    assert parallel.from_first("x") == "x"
    assert not parallel.any_process(False, torch.device("cpu"))
    with parallel.joined(use_gpu=False), parallel.first_before_others():
        assert parallel.is_first()
