"""How fast the doctor looks at audio: times real time per core, on FLAC.

Every file below a folder (or noise made up here) is inspected as `asr.doctor` does: header, every
sample decoded, hashed and judged. Decoding alone (soundfile, whole files) is the bound that no
checker can pass. Both run turn about in one thread; processor time is what counts, since other
programs may be running, and medians are told. The table goes to stderr, the figures as JSON to
stdout. The exit code is 1 below `--limit`.

    python scripts/bench_doctor.py --folder LibriSpeech/train-clean-100 > doctor.json
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from asr.audio import AUDIO_EXTENSIONS, audio_info
from asr.inspection import inspect_audio
from asr.records import Utterance

RATE = 16_000


def make_audio(folder: Path, num_files: int, seconds: float) -> None:
    """Noise whose level changes like that of speech, so that FLAC has something to predict."""
    random = np.random.default_rng(0)
    for number in range(num_files):
        smooth = np.convolve(random.standard_normal(int(seconds * RATE)), np.ones(8) / 8, "same")
        level = np.repeat(random.gamma(0.5, 0.1, int(seconds * 10) + 1), RATE // 10)[: len(smooth)]
        soundfile.write(folder / f"{number}.flac", (smooth * level).clip(-1, 1), RATE)


def decode_only(utterances: Sequence[Utterance]) -> None:
    for utterance in utterances:
        soundfile.read(utterance.audio_path, dtype="float32")


def headers(utterances: Sequence[Utterance]) -> None:
    inspect_audio(utterances, decode=False, num_threads=1)


def full(utterances: Sequence[Utterance]) -> None:
    inspect_audio(utterances, decode=True, num_threads=1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--files", type=int, default=100, help="made up where there is no --folder")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=2000.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if options.folder is None:
            make_audio(folder, options.files, options.seconds)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_EXTENSIONS)
        utterances = [Utterance(str(path), path, audio_info(path).duration_seconds, "text") for path in paths]
        seconds = measure(
            {"decode only": decode_only, "headers": headers, "full": full}, utterances, options.repeats
        )
    audio_seconds = sum(utterance.duration_seconds for utterance in utterances)
    speeds = {kind: round(audio_seconds / took) for kind, took in seconds.items()}
    report = {
        "files": len(utterances),
        "audio_hours": round(audio_seconds / 3600, 3),
        "times_real_time_per_core": speeds,
        "microseconds_per_header": round(1e6 * seconds["headers"] / len(utterances), 1),
        "limit": options.limit,
        "repeats": options.repeats,
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"soundfile": version("soundfile"), "python": platform.python_version()},
    }
    table = Table("one thread", title="Times real time", title_justify="left")
    table.add_column("", justify="right")
    for kind, speed in speeds.items():
        table.add_row(kind, f"{speed:,}")
    Console(stderr=True).print(table)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return int(speeds["full"] < options.limit)


def measure(
    kinds: dict[str, Callable[[Sequence[Utterance]], None]], utterances: Sequence[Utterance], num_repeats: int
) -> dict[str, float]:
    """Median processor seconds of each kind, after one unmeasured run."""
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(num_repeats + 1):
        for kind, function in kinds.items():
            start = time.process_time()
            function(utterances)
            if repeat:
                taken[kind].append(time.process_time() - start)
    return {kind: median(times) for kind, times in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
