"""Start-up of training with a very large manifest, and the memory it takes.

A manifest is made up (random sentences and durations as in LibriSpeech, everything seeded) whose
utterances are segments of a few real files. A fresh process then does what `asr.train` does before
the first step: read and validate the manifest, read the audio headers, normalise the texts, train
the tokenizer, check every utterance against the model, plan the epoch and load the first batch.

With `--files` as large as `--utterances` every utterance has a file of its own; the time for the
headers of that case is measured on `--headers` files and told beside the rest, per million.
Several sizes show how time and memory grow; the figures for 10 million are the line through them.
The table goes to stderr, the figures as JSON to stdout.

    python scripts/bench_manifest.py --utterances 250000 1000000 > manifest.json
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

RATE = 16_000
FILE_SECONDS = 60.0
LIMIT_SECONDS = 20.0
LIMIT_GIB = 1.5
EXTRAPOLATED = 10_000_000


def make_manifest(folder: Path, num_utterances: int, num_files: int, seed: int) -> Path:
    """Sentences of random words with Zipf's frequencies, 13 characters per second."""
    random = np.random.default_rng(seed)
    audio = folder / "audio"
    audio.mkdir(exist_ok=True)
    for number in range(num_files):
        path = audio / f"{number}.flac"
        if not path.exists():
            soundfile.write(path, 0.1 * random.standard_normal(int(FILE_SECONDS * RATE)), RATE)
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    words = ["".join(random.choice(letters, length)) for length in random.integers(1, 10, 20_000)]
    frequencies = 1 / np.arange(1, len(words) + 1)
    chosen = random.choice(len(words), size=num_utterances * 30, p=frequencies / frequencies.sum())
    path = folder / f"{num_utterances}.jsonl"
    position = 0
    with path.open("w", encoding="utf-8") as file:
        durations = np.clip(random.gamma(9.0, 1.4, num_utterances), 1.5, 20.0).round(2)
        offsets = (random.random(num_utterances) * (FILE_SECONDS - 21)).round(2)
        for number, (duration, offset) in enumerate(zip(durations.tolist(), offsets.tolist(), strict=True)):
            num_words = min(30, max(2, round(2.4 * duration)))
            text = " ".join(words[index] for index in chosen[position : position + num_words])
            position += num_words
            line = {
                "id": f"utt-{number:08d}",
                "audio_filepath": f"audio/{number * num_files // num_utterances}.flac",
                "offset": offset,
                "duration": duration,
                "text": text,
                "speaker": f"speaker-{number // 400}",
            }
            file.write(json.dumps(line) + "\n")
    return path


def start_training(manifest: Path, dev: Path, cache: Path) -> dict[str, Any]:
    """What ``asr.train`` does up to its first batch, timed phase by phase; runs in a process of its own."""
    from asr import build, config
    from asr.datamodule import SpeechDataModule
    from asr.dataset import select_readable
    from asr.findings import ExaminedSplit, find_problems
    from asr.selection import inspect_splits, read_split, select_split, unusable

    options = config.TrainConfig(
        run_dir="unused",
        features=config.LogMelConfig(),
        augment=config.AugmentConfig(),
        tokenizer=config.CharTokenizerConfig(),
        model=config.BiLstmConfig(),
        loss=config.LossConfig(),
        optimizer=config.AdamConfig(),
        schedule=config.ConstantConfig(),
        data=config.DataConfig(name="made-up", train=str(manifest), dev=str(dev)),
        decoder=config.GreedyConfig(),
        trainer=config.TrainerConfig(),
        logger=config.LoggerConfig(),
        doctor=config.DoctorOptions(depth="quick", cache=str(cache)),
    )
    phases: dict[str, float] = {}
    started = [time.perf_counter()]
    idle_gib = peak_gib()

    def done(phase: str) -> None:
        now = time.perf_counter()
        phases[phase] = round(now - started[0], 2)
        started[0] = now

    utterances = {split: read_split(options.data, split) for split in ("train", "dev")}
    done("read and validate")
    facts = inspect_splits(options.doctor, options.data, utterances)
    done("audio headers")
    normalise = build.make_normalise(options.text)
    readable = {
        split: select_readable(of_split, normalise, unusable(split, of_split, facts[split]))
        for split, of_split in utterances.items()
    }
    done("normalise texts")
    tokenizer = build.make_tokenizer(
        options.tokenizer, [example.text for example in readable["train"].examples]
    )
    model = build.make_acoustic_model(options.features, options.model, tokenizer.vocab_size)
    done("tokenizer and model")
    selections = {
        split: select_split(options, split, readable[split], tokenizer, model) for split in utterances
    }
    done("check every utterance")
    examined = [ExaminedSplit(name, utterances[name], facts[name], selections[name]) for name in utterances]
    num_findings = len(find_problems(examined, RATE))
    done("compare utterances")
    augment, _ = build.make_augmenters(options.augment, model.features)
    module = SpeechDataModule(
        selections["train"].examples,
        selections["dev"].examples,
        sample_rate=RATE,
        blank_id=tokenizer.blank_id,
        augment=augment,
        max_batch_utterances=16,
        max_batch_seconds=240.0,
        num_workers=0,
        cache_bytes=0,
        seed=0,
    )
    batch = module.train_set[next(iter(module.train_sampler))]
    done("first batch")
    return {
        "num_utterances": len(utterances["train"]),
        "num_used": len(selections["train"].examples),
        "num_findings": num_findings,
        "batch_utterances": len(batch.utterance_ids),
        "seconds": round(sum(phases.values()), 2),
        "peak_gib": round(peak_gib(), 2),
        "of_that_imports_gib": round(idle_gib, 2),
        "phases_seconds": phases,
    }


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def header_seconds_per_million(audio: Path, num_headers: int) -> float:
    """Reading one header each of files of their own (links to one, under names of their own)."""
    from asr.inspection import inspect_audio
    from asr.records import Utterance

    folder = audio.parent / "links"
    folder.mkdir()
    utterances = []
    for number in range(num_headers):
        path = folder / f"{number}.flac"
        path.symlink_to(audio / "0.flac")
        utterances.append(Utterance(str(number), path, FILE_SECONDS, "a"))
    start = time.perf_counter()
    inspect_audio(utterances, decode=False)
    return (time.perf_counter() - start) / num_headers * 1e6


def run_child(arguments: list[str]) -> dict[str, Any]:
    output = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(output.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--headers", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(start_training(*options.child)))
        return 0
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dev = make_manifest(folder, 1_000, options.files, options.seed + 1)
        for size in options.utterances:
            manifest = make_manifest(folder, size, options.files, options.seed)
            arguments = ["--child", str(manifest), str(dev), str(folder / "cache")]
            first = run_child(arguments)
            runs.append({**first, "again_seconds": run_child(arguments)["seconds"]})
        headers = header_seconds_per_million(folder / "audio", options.headers)
    report = {
        "runs": runs,
        "header_seconds_per_million_files": round(headers, 1),
        "limit_seconds": LIMIT_SECONDS,
        "limit_gib": LIMIT_GIB,
        "load_average": round(os.getloadavg()[0], 1),
        "num_processors": os.cpu_count(),
        "python": platform.python_version(),
    }
    if len(runs) > 1:
        sizes = [run["num_utterances"] for run in runs]
        report["extrapolated_to_10_million"] = {
            figure: round(
                float(np.polyval(np.polyfit(sizes, [run[figure] for run in runs], 1), EXTRAPOLATED)), 1
            )
            for figure in ("seconds", "peak_gib")
        }
    show(report)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    million = [run for run in runs if run["num_utterances"] == 1_000_000]
    return int(any(run["seconds"] > LIMIT_SECONDS or run["peak_gib"] > LIMIT_GIB for run in million))


def show(report: dict[str, Any]) -> None:
    table = Table("phase", title="Start of training, seconds", title_justify="left")
    for run in report["runs"]:
        table.add_column(f"{run['num_utterances']:,}", justify="right")
    for phase in report["runs"][0]["phases_seconds"]:
        table.add_row(phase, *(f"{run['phases_seconds'][phase]:.2f}" for run in report["runs"]))
    table.add_section()
    for name in ("seconds", "again_seconds", "peak_gib"):
        table.add_row(name.replace("_", " "), *(f"{run[name]:.2f}" for run in report["runs"]))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
