"""Start of the transcriber: from the command to the text of one 10-second file, in fresh processes.

The disk is warmed by one run that does not count. Times are the wall clock and, since that depends
on what else the machine does, the processor time; the phases come from inside the same process,
and the packages whose modules take longest to import from one more run. Without ``--checkpoint``
the model has the size of the ``tiny`` preset and random weights, which costs the same.

    python scripts/bench_startup.py --runs 5
    python scripts/bench_startup.py --checkpoint runs/an4/RUN --limit-seconds 6

Exit code 1 when the median wall time exceeds ``--limit-seconds``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import soundfile

AUDIO_SECONDS = 10.0
SAMPLE_RATE = 16_000

# Runs in the measured process: the phases go to a file, standard output stays the command's own.
PROGRAM = """
import json, sys, time
marks = [("start", time.perf_counter())]
import torch
marks.append(("import torch", time.perf_counter()))
from asr import transcribe
marks.append(("import asr.transcribe, the rest", time.perf_counter()))
phases_path = sys.argv.pop()
code = transcribe.main()
marks.append(("options, checkpoint, audio, text", time.perf_counter()))
phases = {name: end - begin for (_, begin), (name, end) in zip(marks, marks[1:])}
with open(phases_path, "w") as file:
    json.dump(phases, file)
sys.exit(code)
"""


class Run(NamedTuple):
    """One start: wall-clock and processor seconds of the whole process, and its phases."""

    wall_seconds: float
    processor_seconds: float
    phases: dict[str, float]


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint of the ``tiny`` preset's size with random weights."""
    import torch
    from hydra import compose, initialize_config_dir

    from asr.build import make_acoustic_model
    from asr.checkpoint import MODEL_PREFIX, describe
    from asr.cli import CONFIG_DIR, register_schemas, to_typed
    from asr.config import TrainConfig
    from asr.tokenizer import CharTokenizer

    register_schemas("train", TrainConfig)
    options = ["model=tiny", "data.name=none", "data.train=none", "data.dev=none", "run_dir=none"]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = to_typed(compose("train", options))
    tokenizer = CharTokenizer(list(" abcdefghijklmnopqrstuvwxyz'"))
    model = make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    weights = {MODEL_PREFIX + name: weight for name, weight in model.state_dict().items()}
    path = folder / "tiny.ckpt"
    torch.save({"state_dict": weights, "recipe": describe(config, tokenizer, model.features, {})}, path)
    return path


def start_once(checkpoint: Path, audio: Path) -> Run:
    phases = audio.with_suffix(".phases.json")
    before = os.times()
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", PROGRAM, f"checkpoint={checkpoint}", str(audio), str(phases)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall_seconds = time.perf_counter() - started
    after = os.times()
    processor_seconds = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return Run(wall_seconds, processor_seconds, json.loads(phases.read_text()))


def slowest_imports(num_packages: int) -> list[tuple[str, float]]:
    """Top-level packages with the seconds that importing their modules takes, without nested imports."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import asr.transcribe"],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds: dict[str, float] = defaultdict(float)
    for line in result.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdigit():
            seconds[rest.partition("|")[2].strip().split(".")[0]] += int(own) / 1e6
    return sorted(seconds.items(), key=lambda item: -item[1])[:num_packages]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--limit-seconds", type=float, default=6.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = folder / "ten_seconds.wav"
        samples = 0.1 * np.random.default_rng(0).standard_normal(round(AUDIO_SECONDS * SAMPLE_RATE))
        soundfile.write(audio, samples, SAMPLE_RATE)
        checkpoint = options.checkpoint.absolute() if options.checkpoint else make_checkpoint(folder)
        start_once(checkpoint, audio)
        runs = [start_once(checkpoint, audio) for _ in range(options.runs)]
    wall_seconds = median(run.wall_seconds for run in runs)
    report = {
        "runs": options.runs,
        "wall_seconds": round(wall_seconds, 2),
        "fastest_wall_seconds": round(min(run.wall_seconds for run in runs), 2),
        "processor_seconds": round(median(run.processor_seconds for run in runs), 2),
        "limit_seconds": options.limit_seconds,
        "load_average": round(os.getloadavg()[0], 1),
        "num_processors": os.cpu_count(),
        "phases_seconds": {
            phase: round(median(run.phases[phase] for run in runs), 2) for phase in runs[0].phases
        },
        "slowest_imports_seconds": {name: round(seconds, 2) for name, seconds in slowest_imports(8)},
    }
    print(json.dumps(report, indent=1))
    return 1 if wall_seconds > options.limit_seconds else 0


if __name__ == "__main__":
    sys.exit(main())
