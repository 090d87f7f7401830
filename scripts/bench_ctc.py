"""Time, exactness and memory of the CTC loss, forward and backward, against PyTorch's.

    python scripts/bench_ctc.py                      # speed and gradient error on the four shapes
    python scripts/bench_ctc.py --kinds              # the same on collapsed, peaky and long inputs
    python scripts/bench_ctc.py --memory             # extra peak memory, each figure from a process of its own
    python scripts/bench_ctc.py --device cuda        # on a GPU
    python scripts/bench_ctc.py --threads 1 --clock cpu   # on a machine with other work
    python scripts/bench_ctc.py --json results.json

Contenders take turns in one process with the same number of threads, so that whatever else the machine
does hits all of them; ratios of medians count, milliseconds do not. Everything goes through the public
loss with its checks on. The fused loss computes gradients into the memory of the previous call's if that
is free, as it is in training; the column "fresh memory" denies it that.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.ctc import CTCLoss, fused_cpu

SHAPES = [(200, 16, 29, 40), (800, 16, 29, 150), (400, 16, 1024, 60), (1500, 8, 5000, 200)]
KINDS_SHAPES = [(800, 16, 29, 150), (400, 16, 1024, 60)]
KINDS = ["random", "collapsed", "peaky", "long"]
MEGABYTE = 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Problem(NamedTuple):
    """``logits`` ``(frames, batch, vocab)``, a leaf; the rest as ``torch.nn.CTCLoss`` takes it."""

    logits: Tensor
    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor


def make_problem(shape: tuple[int, int, int, int], kind: str, device: str) -> Problem:
    """Inputs as an untrained, a blank-collapsed or a trained model makes them; "long" leaves few frames to spare."""
    frames, batch, vocab, labels = shape
    generator = torch.Generator().manual_seed(0)
    if kind == "long":
        labels = frames * 2 // 5
    logits = torch.randn(frames, batch, vocab, generator=generator) * 2
    targets = torch.randint(1, vocab, (batch, labels), generator=generator)
    input_lengths = torch.randint(frames * 4 // 5, frames + 1, (batch,), generator=generator)
    target_lengths = torch.randint(labels * 7 // 10, labels + 1, (batch,), generator=generator)
    input_lengths[0], target_lengths[0] = frames, labels
    if kind in ("collapsed", "peaky"):
        logits[..., 0] += 15
    if kind == "peaky":
        step = frames * 4 // 5 // labels
        for utterance in range(batch):
            logits[torch.arange(labels) * step, utterance, targets[utterance]] += 25
    return Problem(*(tensor.to(device) for tensor in (logits, targets, input_lengths, target_lengths)))


def native(problem: Problem) -> Tensor:
    log_probs = problem.logits.log_softmax(-1)
    return F.ctc_loss(
        log_probs, problem.targets, problem.input_lengths, problem.target_lengths, reduction="sum"
    )


def cudnn(problem: Problem) -> Tensor:
    """PyTorch switches to cuDNN for concatenated int32 targets on the CPU and full input lengths."""
    pieces = [row[:length] for row, length in zip(problem.targets, problem.target_lengths, strict=True)]
    targets = torch.cat(pieces).cpu().int()
    input_lengths = torch.full_like(problem.input_lengths, len(problem.logits))
    lengths = input_lengths.cpu().int(), problem.target_lengths.cpu().int()
    return F.ctc_loss(problem.logits.log_softmax(-1), targets, *lengths, reduction="sum")


FROM_LOGITS = CTCLoss(reduction="sum", inputs="logits", backend="fused")
FROM_LOG_PROBS = CTCLoss(reduction="sum", inputs="log_probs", backend="fused")


def fused(problem: Problem) -> Tensor:
    return FROM_LOGITS(*problem)


def fused_fresh(problem: Problem) -> Tensor:
    fused_cpu._spare_blocks.clear()
    return FROM_LOGITS(*problem)


def fused_after_log_softmax(problem: Problem) -> Tensor:
    return FROM_LOG_PROBS(problem.logits.log_softmax(-1), *problem[1:])


def step(contender: Callable[[Problem], Tensor], problem: Problem) -> Tensor:
    """Loss and gradient of the logits, as one training step asks for them."""
    logits = problem.logits.detach().requires_grad_()
    contender(problem._replace(logits=logits)).backward()
    assert logits.grad is not None
    return logits.grad


def time_step(contender: Callable[[Problem], Tensor], problem: Problem, clock: Callable[[], float]) -> float:
    """Milliseconds."""
    if problem.logits.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    step(contender, problem)
    if problem.logits.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (clock() - start)


def measure(shape: tuple[int, int, int, int], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved steps, and the largest gradient error against float64."""
    device, seconds, clock = options.device, options.seconds, CLOCKS[options.clock]
    problem = make_problem(shape, kind, device)
    contenders = {"native": native, "fused": fused, "after log_softmax": fused_after_log_softmax}
    contenders |= {"cudnn": cudnn} if device == "cuda" else {"fresh memory": fused_fresh}
    exact = step(native, problem._replace(logits=problem.logits.double()))
    errors = {
        name: float((step(contenders[name], problem) - exact).abs().max()) for name in ("native", "fused")
    }
    del exact
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["native"]) < 5:
        for name, contender in contenders.items():
            times[name].append(time_step(contender, problem, clock))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "shape": shape,
        "kind": kind,
        "rounds": len(times["native"]),
        "median_ms": medians,
        "min_ms": {name: min(values) for name, values in times.items()},
        "ratio": {name: medians["native"] / medians[name] for name in medians if name != "native"},
        "gradient_error": errors,
        "gradient_error_ratio": errors["fused"] / errors["native"],
    }


def report_speed(
    cases: Iterator[tuple[tuple[int, int, int, int], str]], options: argparse.Namespace
) -> dict[str, Any]:
    rows = []
    last = "cudnn" if options.device == "cuda" else "fresh memory"
    write(f"{'frames,batch,vocab,labels':>26} {'input':>10} {'native':>9} {'fused':>9} {'ratio':>7}")
    write(
        f" {'min':>6} {'log_softmax+':>12} {last:>12} {'native error':>13} {'fused error':>12} {'ratio':>6}\n"
    )
    for shape, kind in cases:
        row = measure(shape, kind, options)
        rows.append(row)
        median, fastest, ratio, error = (
            row[key] for key in ("median_ms", "min_ms", "ratio", "gradient_error")
        )
        write(
            f"{','.join(map(str, shape)):>26} {kind:>10} {median['native']:7.1f}ms {median['fused']:7.1f}ms"
        )
        write(f" {ratio['fused']:6.1f}x {fastest['native'] / fastest['fused']:5.1f}x")
        write(f" {ratio['after log_softmax']:11.1f}x {ratio[last]:11.1f}x {error['native']:13.1e}")
        write(f" {error['fused']:12.1e} {row['gradient_error_ratio']:6.3f}\n")
    summary = {
        "geometric_mean_ratio": statistics.geometric_mean(row["ratio"]["fused"] for row in rows),
        "lowest_ratio": min(row["ratio"]["fused"] for row in rows),
        "largest_gradient_error_ratio": max(row["gradient_error_ratio"] for row in rows),
    }
    write(f"geometric mean {summary['geometric_mean_ratio']:.1f}x, lowest {summary['lowest_ratio']:.1f}x; ")
    write(f"gradient error at most {summary['largest_gradient_error_ratio']:.3f} of native's\n")
    return {"rows": rows, "summary": summary}


def measure_memory(shape: tuple[int, int, int, int], contender: str) -> float:
    """Extra peak memory of one step beyond its inputs, in bytes; run in a fresh process, on Linux."""
    function = {"native": native, "fused": fused}[contender]
    step(function, make_problem((20, 2, 5, 3), "random", "cpu"))
    problem = make_problem(shape, "random", "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
    before = _status_bytes("VmRSS")
    step(function, problem)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def report_memory(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    write(f"{'frames,batch,vocab,labels':>26} {'logits':>8} {'native':>9} {'fused':>8} {'goal':>8}\n")
    for shape in SHAPES:
        logits = 4 * shape[0] * shape[1] * shape[2]
        extra = {}
        for contender in ("native", "fused"):
            command = [sys.executable, __file__, "--threads", str(options.threads)]
            command += ["--one-memory", contender, *map(str, shape)]
            extra[contender] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
        goal = 1.1 * logits + 5e6
        rows.append({"shape": shape, "logits_bytes": logits, "extra_bytes": extra, "goal_bytes": goal})
        write(
            f"{','.join(map(str, shape)):>26} {logits / MEGABYTE:6.1f}MB {extra['native'] / MEGABYTE:7.1f}MB"
        )
        write(f" {extra['fused'] / MEGABYTE:6.1f}MB {goal / MEGABYTE:6.1f}MB\n")
    return {"rows": rows}


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for every contender")
    parser.add_argument("--seconds", type=float, default=10.0, help="time per row")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: for busy machines, with --threads 1"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--kinds", action="store_true", help="vary the kind of input instead of the shape")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--one-memory", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one_memory:
        contender, *sizes = options.one_memory
        frames, batch, vocab, labels = map(int, sizes)
        write(str(measure_memory((frames, batch, vocab, labels), contender)))
        return
    write(f"torch {torch.__version__}, {options.threads} threads, {options.device}, {options.clock} time\n")
    if options.memory:
        results = report_memory(options)
    elif options.kinds:
        results = report_speed(((shape, kind) for shape in KINDS_SHAPES for kind in KINDS), options)
    else:
        results = report_speed(((shape, "random") for shape in SHAPES), options)
    if options.json:
        options.json.write_text(
            json.dumps(
                {"threads": options.threads, "device": options.device, "clock": options.clock} | results,
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
