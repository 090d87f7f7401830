"""Start-up of training with a very large manifest: processor time, and the memory it takes.

A manifest is made up (random sentences and durations as in LibriSpeech, everything seeded). A fresh
process then does what `asr.train` does before the first step: read and validate the manifest, look
at the audio headers, normalise the texts, train the tokenizer, check every utterance against the
model, compare the utterances with each other, plan the epoch and load the first batch.

Layouts: `segments` of a few long files, a file for each utterance (`files`), and members of tar
shards (`shards`). The headers of the last two are not read there (doctor.depth=off): that time is
measured on files of their own and told beside the rest, per million. Two sizes show how time and memory grow; the
figures for 10 million are the line through them, not measured. The table goes to stderr, the
figures as JSON to stdout; exit code 1 where a million utterances miss the limits.

    python scripts/bench_manifest.py > manifest.json
"""

import argparse
import json
import os
import platform
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
LIMIT_GIB = 1.5e9 / 2**30
EXTRAPOLATED = 10_000_000
LAYOUTS = ("segments", "files", "shards")
SHARD_UTTERANCES = 5_000


def make_audio(folder: Path, num_files: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(num_files):
        noise = 0.1 * random.standard_normal(int(FILE_SECONDS * RATE))
        soundfile.write(folder / f"{number}.flac", noise, RATE)


def make_manifest(folder: Path, num_utterances: int, num_files: int, layout: str, seed: int) -> Path:
    """Sentences of random words with Zipf's frequencies, 13 characters per second."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    words = ["".join(random.choice(letters, length)) for length in random.integers(1, 10, 20_000)]
    frequencies = 1 / np.arange(1, len(words) + 1)
    chosen = random.choice(len(words), size=1_000_000, p=frequencies / frequencies.sum())
    num_bytes = (folder / "audio" / "0.flac").stat().st_size
    path = folder / f"{layout}-{num_utterances}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        durations = np.clip(random.gamma(9.0, 1.4, num_utterances), 1.5, 20.0).round(2)
        offsets = (random.random(num_utterances) * (FILE_SECONDS - 21)).round(2)
        for number, (duration, offset) in enumerate(zip(durations.tolist(), offsets.tolist(), strict=True)):
            num_words = min(30, max(2, round(2.4 * duration)))
            position = int(random.integers(len(chosen) - num_words))
            text = " ".join(words[index] for index in chosen[position : position + num_words].tolist())
            shard = f"train-{number // SHARD_UTTERANCES:06d}.tar"
            paths = {
                "segments": f"audio/{number * num_files // num_utterances}.flac",
                "files": f"speaker-{number // 400}/{number}.flac",
                "shards": f"shards/{shard}/{number:08d}-utt.flac@512+{num_bytes}",
            }
            line = {
                "id": f"utt-{number:08d}",
                "audio_filepath": paths[layout],
                "offset": offset if layout == "segments" else 0.0,
                "duration": duration,
                "text": text,
                "speaker": f"speaker-{number // 400}",
            }
            file.write(json.dumps(line) + "\n")
    return path


def start_training(manifest: Path, dev: Path, layout: str) -> dict[str, Any]:
    """What ``asr.train`` does up to its first batch, timed phase by phase; runs in a process of its own."""
    import torch

    from asr import build, config
    from asr.audio import file_of
    from asr.datamodule import SpeechDataModule
    from asr.dataset import select_readable
    from asr.finders import read_peak
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
        doctor=config.DoctorOptions(depth="quick" if layout == "segments" else "off", cache=None),
    )

    def peak_gib() -> float:
        return round(read_peak(torch.device("cpu")) / 2**30, 2)

    phases: dict[str, float] = {}
    idle_gib = peak_gib()
    wall_started = time.perf_counter()
    started = time.process_time()

    def done(phase: str) -> None:
        nonlocal started
        now = time.process_time()
        phases[phase] = round(now - started, 2)
        started = now

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
        tokenizer=tokenizer,
        augment=augment,
        max_batch_utterances=16,
        max_batch_seconds=240.0,
        num_workers=0,
        cache_bytes=0,
        seed=0,
    )
    picks = next(iter(module.train_sampler))
    for example in (module.train_set.examples[pick.position] for pick in picks):
        path = file_of(example.utterance.audio_path)
        if not path.exists():  # only what is loaded here has to be there
            path.parent.mkdir(exist_ok=True)
            audio = (manifest.parent / "audio" / "0.flac").read_bytes()
            path.write_bytes(bytes(512) + audio if path.suffix == ".tar" else audio)
    batch = module.train_set[picks]
    done("first batch")
    return {
        "num_utterances": len(utterances["train"]),
        "num_used": len(selections["train"].examples),
        "num_findings": num_findings,
        "batch_utterances": len(batch.utterance_ids),
        "layout": layout,
        "processor_seconds": round(sum(phases.values()), 2),
        "wall_seconds": round(time.perf_counter() - wall_started, 2),
        "peak_gib": peak_gib(),
        "of_that_imports_gib": idle_gib,
        "phases_seconds": phases,
    }


def header_seconds_per_million(audio: Path, num_headers: int) -> float:
    """Processor time for one header each of files of their own (links to one)."""
    from asr.inspection import inspect_audio
    from asr.records import Utterance

    folder = audio.parent / "links"
    folder.mkdir()
    utterances = []
    for number in range(num_headers):
        path = folder / f"{number}.flac"
        path.symlink_to(audio / "0.flac")
        utterances.append(Utterance(str(number), path, FILE_SECONDS, "a"))
    start = time.process_time()
    inspect_audio(utterances, decode=False)
    return (time.process_time() - start) / num_headers * 1e6


def run_child(arguments: list[str]) -> dict[str, Any]:
    output = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(output.stdout)
    return result


def extrapolate(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The line through the measured sizes."""
    sizes = [run["num_utterances"] for run in runs]
    return {
        figure: round(float(np.polyval(np.polyfit(sizes, [run[figure] for run in runs], 1), EXTRAPOLATED)), 1)
        for figure in ("processor_seconds", "peak_gib")
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--files", type=int, default=100, help="of the layout `segments`")
    parser.add_argument("--headers", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        manifest, dev, layout = options.child
        sys.stdout.write(json.dumps(start_training(Path(manifest), Path(dev), layout)))
        return 0
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_audio(folder / "audio", options.files, options.seed)
        dev = make_manifest(folder, 1_000, options.files, "segments", options.seed + 1)
        for layout in options.layouts:
            for size in options.utterances:
                manifest = make_manifest(folder, size, options.files, layout, options.seed)
                runs.append(run_child(["--child", str(manifest), str(dev), layout]))
                manifest.unlink()
        headers = header_seconds_per_million(folder / "audio", options.headers)
    by_layout = {layout: [run for run in runs if run["layout"] == layout] for layout in options.layouts}
    report = {
        "runs": runs,
        "header_seconds_per_million_files": round(headers, 1),
        "extrapolated_to_10_million": {
            layout: extrapolate(found) for layout, found in by_layout.items() if len(found) > 1
        },
        "limit_seconds": LIMIT_SECONDS,
        "limit_gib": LIMIT_GIB,
        "load_average": round(os.getloadavg()[0], 1),
        "num_processors": os.cpu_count(),
        "python": platform.python_version(),
    }
    show(report)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    million = [run for run in runs if run["num_utterances"] == 1_000_000]
    return int(
        any(run["processor_seconds"] > LIMIT_SECONDS or run["peak_gib"] > LIMIT_GIB for run in million)
    )


def show(report: dict[str, Any]) -> None:
    table = Table("phase", title="Start of training, seconds of processor time", title_justify="left")
    for run in report["runs"]:
        table.add_column(f"{run['num_utterances']:,}\n{run['layout']}", justify="right")
    for phase in report["runs"][0]["phases_seconds"]:
        table.add_row(phase, *(f"{run['phases_seconds'][phase]:.2f}" for run in report["runs"]))
    table.add_section()
    for name in ("processor_seconds", "wall_seconds", "of_that_imports_gib", "peak_gib"):
        table.add_row(name.replace("_", " "), *(f"{run[name]:.2f}" for run in report["runs"]))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"headers of a million files: {report['header_seconds_per_million_files']:.0f} s")
    for layout, figures in report["extrapolated_to_10_million"].items():
        console.print(
            f"{layout}, 10 million, extrapolated: {figures['processor_seconds']:.0f} s, "
            f"{figures['peak_gib']:.1f} GiB"
        )


if __name__ == "__main__":
    sys.exit(main())
