"""Several processes that train together: starting them, joining them, and saying things to all of them.

The variables are torchrun's (RANK, WORLD_SIZE, …), so that a training started by torchrun on one or many
machines is the same as one that starts its own processes.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist

from asr.errors import TrainingError

# Other processes are given so long to save and leave when one of them has ended.
_PATIENCE_SECONDS = 30.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Of this process among those that train together, and how many of them this machine has."""

    rank: int
    num_processes: int
    num_local_processes: int


@cache
def place() -> Place | None:
    """None if nobody has started several processes. (Lightning tidies the variables away: read once.)"""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ.get(name, "1")) for name in names))


def is_launched() -> bool:
    """Whether this process is one of several that somebody has started together."""
    return place() is not None


def rank() -> int:
    own = place()
    return own.rank if own else 0


def num_processes() -> int:
    own = place()
    return own.num_processes if own else 1


def num_local_processes() -> int:
    own = place()
    return own.num_local_processes if own else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def launch(module: str, arguments: Sequence[str], num: int) -> int:
    """Run ``python -m module arguments`` in ``num`` processes; the exit code of the first that failed, or 0.

    When one ends with an error or is killed, the others are stopped: none waits for the dead.

    Raises:
        TrainingError: a process was killed.
    """
    everyone = os.environ | {
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "NODE_RANK": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=everyone | {"RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(num)
    ]
    code = _wait_for_first_failure(processes)
    _stop(processes)
    if code < 0:
        raise TrainingError(
            f"one of the {num} processes was killed (signal {-code}; out of memory?), and the others were stopped; "
            "go on from the last checkpoint with resume=true"
        )
    return code


def _wait_for_first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        try:
            codes = [process.poll() for process in processes]
            failed = next((code for code in codes if code), None)
            if failed is not None:
                return failed
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.2)
        except KeyboardInterrupt:
            # The terminal's Ctrl-C has reached the processes too: they save and leave.
            continue


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def joined(use_gpu: bool, timeout_minutes: float = 30.0) -> Iterator[None]:
    """Meet the other processes, if there are any; part from them at the end."""
    if not is_launched():
        yield
        return
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes))
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_first(value: str) -> str:
    """What the first process says, in all of them."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all processes, in float64."""
    if not dist.is_initialized():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def any_process(decision: bool, device: torch.device) -> bool:
    """Whether any of the processes says yes; all of them must ask."""
    return total([float(decision)], device)[0] > 0


def gathered(values: list[T]) -> list[T]:
    """The lists of all processes, one after the other."""
    if not dist.is_initialized():
        return values
    parts: list[list[T]] = [[] for _ in range(num_processes())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first process does the work, the others do it after it (and find it done)."""
    if dist.is_initialized() and rank() > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and rank() == 0:
        dist.barrier()
