"""Time that each kind of augmentation takes for one utterance, on one core.

Signals are made up: speech of the given length, noise of five seconds, a measured room of one.
Reverberation and noise are also done to a whole batch at once (`--device`, padded, as a transform on
the training's device would), to see whether that would be faster than one by one in the loader.
Processor time, which does not depend on what else the machine does; the clock on the wall for batches
on a GPU. The table goes to stderr, the figures as JSON to stdout.

    python scripts/bench_augment.py --seconds 5 > augment.json
    python scripts/bench_augment.py --device cuda
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
import torchaudio.functional
from rich.console import Console
from rich.table import Table

from asr.augment import RecordedNoise, SimulatedRooms, SoundLibrary, SpecAugment, VocalTractWarp, find_sounds
from asr.augment.codecs import CODECS, code
from asr.augment.rooms import reverberate
from asr.augment.waveform import change_speed
from asr.records import Features

BATCH = 16
ROOM_SECONDS = 1.0


def milliseconds(
    action: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Median over ``repeats``, after two that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = clock()
        action()
        times.append(1000 * (clock() - started))
    return median(times[2:])


def one_by_one(seconds: float, rate: int, repeats: int, folder: Path) -> dict[str, float]:
    speech = 0.1 * torch.randn(round(seconds * rate))
    soundfile.write(folder / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(5 * rate), rate)
    room = torch.randn(round(ROOM_SECONDS * rate)) * torch.linspace(1, 0, round(ROOM_SECONDS * rate)) ** 4
    library = SoundLibrary(find_sounds(str(folder), "noise"), sample_rate=rate, cache_bytes=2**26)
    noise = RecordedNoise(library, probability=1.0, snr_db=(0.0, 20.0))
    rooms = SimulatedRooms(sample_rate=rate, probability=1.0, rt60_seconds=(0.5, 0.5), direct_db=(0.0, 0.0))
    drawn_noise, drawn_room = (kind.draw(torch.Generator()) for kind in (noise, rooms))
    assert drawn_noise is not None
    assert drawn_room is not None
    mask = SpecAugment(
        num_time_masks=2, max_time_frames=40, max_time_share=0.1, num_mel_masks=2, max_mel_share=0.2
    )
    warp = VocalTractWarp(
        bin_hertz=torch.linspace(0, rate / 2, 80), highest_hertz=rate / 2, factors=(0.85, 1.15)
    )
    batch = Features(torch.zeros(1, round(100 * seconds), 80), torch.tensor([round(100 * seconds)]))
    actions: dict[str, Callable[[], object]] = {
        "speed 0.9": lambda: change_speed(speech, 0.9),
        "noise": lambda: noise.apply(speech, drawn_noise),
        "measured room of 1 s": lambda: reverberate(speech, room),
        "simulated room of 0.5 s": lambda: reverberate(speech, rooms.response(drawn_room)),
        **{name: (lambda name=name: code(speech, rate, name)) for name in CODECS},
        "vocal tract": lambda: warp(batch, torch.tensor([1])),
        "SpecAugment": lambda: mask(batch, torch.tensor([1])),
    }
    return {name: milliseconds(action, repeats) for name, action in actions.items()}


def in_batches(seconds: float, rate: int, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds per utterance of the same on a padded batch, with its transfers to the device."""
    speech = 0.1 * torch.randn(BATCH, round(seconds * rate), device=device)
    rooms = torch.randn(BATCH, round(ROOM_SECONDS * rate))
    noise = torch.randn(speech.shape)
    ratios = torch.zeros(BATCH, device=device)

    def waited(action: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: action().sum().item()

    actions = {
        "measured room of 1 s": lambda: torchaudio.functional.fftconvolve(speech, rooms.to(device)),
        "noise": lambda: torchaudio.functional.add_noise(speech, noise.to(device), ratios),
    }
    clock = time.process_time if device == "cpu" else time.perf_counter
    return {name: milliseconds(waited(action), repeats, clock) / BATCH for name, action in actions.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=int, default=16000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        alone = one_by_one(options.seconds, options.rate, options.repeats, Path(folder))
    batched = in_batches(options.seconds, options.rate, options.repeats, options.device)
    table = Table("", "ms per utterance", f"ms in batches on {options.device}")
    for name, time_alone in alone.items():
        table.add_row(name, f"{time_alone:.2f}", f"{batched[name]:.2f}" if name in batched else "")
    Console(stderr=True).print(table)
    report = {
        **{name: vars(options)[name] for name in ("seconds", "rate", "repeats", "device")},
        "milliseconds": {name: round(value, 3) for name, value in alone.items()},
        "milliseconds_in_batches": {name: round(value, 3) for name, value in batched.items()},
    }
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
