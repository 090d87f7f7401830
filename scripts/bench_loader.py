"""Loading audio: files against tar shards, the share of a step spent waiting for it, and what buckets save.

1. Throughput: batches of a corpus as training asks for them (augmentation off), from its own files
   and from shards packed from them, with 0, 1 and 2 loader processes. Before each run the page
   cache is asked to forget the audio (`--warm` keeps it). Utterances per second of wall-clock time,
   hours of audio per hour, and processor time of all processes together.
2. Waiting: `asr.train experiment=an4 trainer.profile=true` for an epoch in a process of its own
   (`--wait ''` leaves it out).
3. Buckets: durations as in LibriSpeech train-clean-100 (made up, seeded). Padding efficiency of the
   batches, and frames of real audio trained per second of processor time, against batches of the
   same number of utterances drawn at random; a model of this package trains on both in turn.

The table goes to stderr, the figures as JSON to stdout.

    python scripts/bench_loader.py --manifest data/demo/train.jsonl > loader.json
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from asr import build, config
from asr.audio import file_of
from asr.corpora.webdataset import pack
from asr.ctc import CTCLoss
from asr.dataset import Example, SpeechDataset
from asr.manifest import read_manifest
from asr.records import Utterance
from asr.sampler import BucketSampler
from asr.tokenizer import CharTokenizer

RATE = 16_000
MAX_UTTERANCES, MAX_SECONDS = 16, 240.0
LAYOUTS = ("files", "shards")


def forget(utterances: Sequence[Utterance]) -> None:
    """Ask the system to drop the pages of the audio."""
    for path in {file_of(utterance.audio_path) for utterance in utterances}:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure_loading(utterances: Sequence[Utterance], num_workers: int) -> dict[str, float]:
    tokenizer = CharTokenizer.train(utterance.text for utterance in utterances)
    dataset = SpeechDataset([Example(u, u.text) for u in utterances], sample_rate=RATE, tokenizer=tokenizer)
    sampler = BucketSampler(
        dataset.durations,
        max_utterances=MAX_UTTERANCES,
        max_seconds=MAX_SECONDS,
        seed=0,
        shards=dataset.shards,
        shards_per_window=8,
    )
    loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=num_workers)
    wall, used = time.perf_counter(), processor_seconds()
    num_loaded = sum(len(batch.utterance_ids) for batch in loader)
    wall, used = time.perf_counter() - wall, processor_seconds() - used
    assert num_loaded == len(utterances)
    audio = float(dataset.durations.sum())
    return {
        "utterances_per_second": round(num_loaded / wall, 1),
        "times_real_time": round(audio / wall, 1),
        "processor_ms_per_utterance": round(1e3 * used / num_loaded, 3),
        "times_real_time_per_processor_second": round(audio / used, 1),
    }


def compare_layouts(
    manifest: Path, workers: Sequence[int], num_utterances: int, repeats: int, warm: bool
) -> list[dict[str, Any]]:
    """The median of several runs of each kind, taken in turn."""
    files = read_manifest(manifest)[:num_utterances]
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        shards = pack(files, Path(folder), "train", 20_000_000).utterances
        for _ in range(repeats):
            for num_workers in workers:
                for layout, utterances in zip(LAYOUTS, (files, shards), strict=True):
                    if not warm:
                        forget(utterances)
                    measured = measure_loading(utterances, num_workers)
                    runs.setdefault((layout, num_workers), []).append(measured)
    return [
        {
            "layout": layout,
            "workers": num_workers,
            **{name: round(float(np.median([run[name] for run in found])), 3) for name in found[0]},
        }
        for (layout, num_workers), found in sorted(runs.items())
    ]


def waiting_share(options: Sequence[str]) -> float:
    """Of an average training step, as ``trainer.profile=true`` prints it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "asr.train", *options, f"run_dir={folder}/run"]
        command += ["trainer.profile=true", "trainer.max_epochs=1", "logger.tensorboard=false"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"waiting for data\D+[\d.]+\D+([\d.]+)%", done.stderr)
    if found is None:
        raise RuntimeError(f"no profile in: {done.stderr[-500:]}")
    return float(found[1])


def librispeech_like(num_utterances: int, seed: int = 0) -> np.ndarray:
    """Durations as in train-clean-100: most near 14 s, a tail of short ones, none above 24.5 s."""
    random = np.random.default_rng(seed)
    long = random.normal(14.2, 1.3, num_utterances)
    short = random.uniform(1.4, 14.0, num_utterances)
    return np.clip(np.where(random.random(num_utterances) < 0.75, long, short), 1.4, 24.5)


def efficiency(durations: np.ndarray, batches: Sequence[Sequence[int]]) -> float:
    """Audio over audio with padding."""
    padded = sum(len(batch) * float(durations[list(batch)].max()) for batch in batches)
    return float(durations.sum()) / padded


def compare_batching(num_utterances: int, num_steps: int) -> dict[str, float]:
    durations = librispeech_like(num_utterances)
    sampler = BucketSampler(durations, max_utterances=MAX_UTTERANCES, max_seconds=MAX_SECONDS, seed=0)
    plans = {
        "buckets": [[pick.position for pick in batch] for batch in sampler.plan(0)],
        "random": [
            part.tolist()
            for part in np.array_split(np.random.default_rng(0).permutation(num_utterances), len(sampler))
        ],
    }
    torch.manual_seed(0)
    model = build.make_acoustic_model(
        config.LogMelConfig(), config.BiLstmConfig(rnn_size=128, rnn_layers=2), vocab_size=29
    )
    loss_of = CTCLoss(blank=0, reduction="mean", inputs="log_probs", layout="NTC")
    used = dict.fromkeys(plans, 0.0)
    seconds = dict.fromkeys(plans, 0.0)
    for step in range(-1, num_steps):  # the first compiles and warms up
        for name, plan in plans.items():
            chosen = durations[plan[step]]
            lengths = torch.tensor(np.ceil(chosen * RATE).astype(int))
            waveforms = 0.1 * torch.randn(len(chosen), int(lengths.max()))
            started = time.process_time()
            emissions = model(waveforms, lengths)
            targets = torch.randint(1, 29, (len(chosen), 100))
            num_labels = torch.tensor(np.clip(chosen * 7, 1, 100).astype(int))
            loss_of(emissions.log_probs, targets, emissions.log_prob_lengths, num_labels).backward()
            if step >= 0:
                used[name] += time.process_time() - started
                seconds[name] += float(chosen.sum())
    speed = {name: 100 * seconds[name] / used[name] for name in plans}
    return {
        **{f"efficiency_{name}": round(efficiency(durations, plan), 4) for name, plan in plans.items()},
        **{f"frames_per_processor_second_{name}": round(value, 1) for name, value in speed.items()},
        "speed_up": round(speed["buckets"] / speed["random"], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, default=Path("data/demo/train.jsonl"))
    parser.add_argument("--utterances", type=int, default=2_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--wait", default="experiment=an4", help="options of the training that is profiled")
    parser.add_argument("--bucket-utterances", type=int, default=28_000)
    parser.add_argument("--bucket-steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "loading": compare_layouts(
            options.manifest, options.workers, options.utterances, options.repeats, options.warm
        ),
        "cache_dropped": not options.warm,
        "waiting_percent": waiting_share(options.wait.split()) if options.wait else None,
        "batching": compare_batching(options.bucket_utterances, options.bucket_steps),
        "load_average": round(os.getloadavg()[0], 1),
        "num_processors": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    show(report)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


def show(report: dict[str, Any]) -> None:
    console = Console(stderr=True)
    table = Table("layout", title="Loading", title_justify="left")
    for name in [name for name in report["loading"][0] if name != "layout"]:
        table.add_column(name.replace("_", " "), justify="right")
    for run in report["loading"]:
        table.add_row(*(str(value) for value in run.values()))
    console.print(table)
    if report["waiting_percent"] is not None:
        console.print(f"waiting for data: {report['waiting_percent']:.1f} % of a step")
    batching = report["batching"]
    console.print(
        f"padding efficiency {batching['efficiency_buckets']:.1%} in buckets, "
        f"{batching['efficiency_random']:.1%} at random; frames per processor second × {batching['speed_up']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
