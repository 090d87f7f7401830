"""The bidirectional LSTM layer against torch.nn.LSTM with pack_padded_sequence, with equal results.

Both sides run the same weights on the same batch in one process, turn about, forward and backward;
medians are compared. Utterances of a batch differ in length as they do after bucketing (`--shortest`).
Outputs and gradients of both sides are compared first, and a difference ends the benchmark with exit
code 1. The table goes to stderr, the figures as JSON to stdout.

    python scripts/bench_lstm.py --threads 2 > lstm.json
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.models.bilstm import BiLstm


class Shape(NamedTuple):
    batch: int
    frames: int
    input_size: int
    size: int


# Inner layers of the model presets, one frame every 40 ms.
SHAPES = {
    "tiny, 16 x 3 s": Shape(16, 75, 256, 128),
    "small, 16 x 5 s": Shape(16, 125, 512, 256),
    "ds2, 8 x 5 s": Shape(8, 125, 1024, 512),
    "small, 1 x 10 s": Shape(1, 250, 512, 256),
}
TOLERANCE = 1e-3


class PackedBiLstm(nn.Module):
    """The usual way, with the weights of a ``BiLstm``."""

    def __init__(self, ours: BiLstm) -> None:
        super().__init__()
        one = ours.forward_lstm
        self.lstm = nn.LSTM(one.input_size, one.hidden_size, batch_first=True, bidirectional=True)
        weights = {name: value.clone() for name, value in ours.forward_lstm.state_dict().items()}
        backward = ours.backward_lstm.state_dict()
        weights |= {f"{name}_reverse": value.clone() for name, value in backward.items()}
        self.lstm.load_state_dict(weights)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.lstm(packed)
        return pad_packed_sequence(output, batch_first=True, total_length=states.shape[1])[0]


def make_batch(shape: Shape, shortest: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random states and lengths spread evenly from ``shortest`` of the longest to the longest."""
    states = torch.randn(shape.batch, shape.frames, shape.input_size, device=device)
    shares = torch.linspace(1.0, shortest, shape.batch, device=device)
    return states, (shares * shape.frames).round().long().clamp(min=1)


def run(layer: nn.Module, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """One forward and backward pass: the output and the gradient of the input."""
    layer.zero_grad(set_to_none=True)
    states = states.detach().requires_grad_()
    output = layer(states, lengths)
    output.square().sum().backward()
    assert states.grad is not None
    return output.detach(), states.grad


def compare(shape: Shape, shortest: float, num_repeats: int, device: torch.device) -> dict[str, Any]:
    """Check that both sides agree, then time them turn about."""
    torch.manual_seed(0)
    ours = BiLstm(shape.input_size, shape.size).to(device)
    layers = {"ours": ours, "packed": PackedBiLstm(ours).to(device)}
    states, lengths = make_batch(shape, shortest, device)
    results = {name: run(layer, states, lengths) for name, layer in layers.items()}
    differences = [
        float((one - other).abs().max()) / float(other.abs().max())
        for one, other in zip(results["ours"], results["packed"], strict=True)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(num_repeats):
        for name, layer in layers.items():
            seconds[name].append(timed(lambda layer=layer: run(layer, states, lengths), device))
    return {
        "shape": shape._asdict(),
        "seconds_median": {name: round(median(times), 5) for name, times in seconds.items()},
        "seconds_minimum": {name: round(min(times), 5) for name, times in seconds.items()},
        "times_packed": round(median(seconds["packed"]) / median(seconds["ours"]), 2),
        "largest_relative_difference": max(differences),
        "equal": max(differences) < TOLERANCE,
    }


def timed(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def print_table(results: dict[str, dict[str, Any]]) -> None:
    table = Table(title="Bidirectional LSTM, forward and backward (medians)")
    for name in ("batch", "ours, ms", "packed, ms", "packed / ours"):
        table.add_column(name, justify="left" if name == "batch" else "right")
    for name, result in results.items():
        medians = result["seconds_median"]
        milliseconds = [f"{1000 * medians[side]:.1f}" for side in ("ours", "packed")]
        table.add_row(name, *milliseconds, f"{result['times_packed']:.2f}")
    Console(stderr=True).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shortest", type=float, default=0.9, help="shortest utterance / longest")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    results = {
        name: compare(shape, options.shortest, options.repeats, device) for name, shape in SHAPES.items()
    }
    print_table(results)
    report = {
        "device": options.device,
        "threads": options.threads,
        "shortest": options.shortest,
        "layers": results,
        "versions": {"torch": version("torch"), "python": platform.python_version()},
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if all(result["equal"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
