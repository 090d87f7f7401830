"""What each loss variant does to a small corpus: dev word errors against plain CTC, and how peaky it is.

Trains ``experiment=fsdd`` once per variant and seed, each in a process of its own, and keeps what is done:
a run that has its report is not repeated. Variants share the seeds, so plain CTC and a variant see the
same batches. The last two variants learn from transcripts of which a share of the words was taken out,
once silently and once with a wildcard in their place. Only the dev split is read.

    python scripts/study_variants.py --output study --seeds 0 1 2 --epochs 15
    python scripts/study_variants.py --output study --seeds 0 1 2 --epochs 15 --lock /tmp/cpu.lock
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from asr import checkpoint
from asr.audio import load_audio
from asr.config import GreedyConfig
from asr.manifest import read_manifest
from asr.report.json_report import EvaluationReport, read_report
from asr.stats import compare_paired

DATA = Path("data/fsdd")
WILDCARD = "*"


@dataclass(frozen=True)
class Variant:
    """Options beside ``experiment=fsdd``; ``manifest`` is what it learns from, ``against`` what it is compared with."""

    name: str
    options: tuple[str, ...] = ()
    manifest: str = "train"
    against: str = "plain"


VARIANTS = [
    Variant("plain"),
    Variant("cr_ctc", ("loss=cr_ctc",)),
    Variant("intermediate", ("loss=intermediate",)),
    Variant("self_conditioned", ("loss=intermediate", "model.self_conditioning=true")),
    Variant("label_priors", ("loss=label_priors",)),
    Variant("blank_penalty", ("loss.blank_penalty=0.5",)),
    Variant("entropy", ("loss.entropy_weight=0.1",)),
    Variant("label_smoothing", ("loss.label_smoothing=0.05",)),
    Variant("focal", ("loss.focal_gamma=1",)),
    Variant("damaged", (), "damaged"),
    Variant("wildcard", (f"text.wildcard='{WILDCARD}'",), "wildcard", "damaged"),
]


class Peakiness(NamedTuple):
    """Shares of the dev frames, and mean probabilities over them."""

    blank_share: float
    blank_probability: float
    top_probability: float


def damage(share: float, folder: Path, seed: int = 0) -> None:
    """Training manifests in which each word is missing with this chance; at least one word stays."""
    chance = random.Random(seed)
    silent, marked = [], []
    for line in (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entry["audio_filepath"] = str((DATA / entry["audio_filepath"]).absolute())
        words = entry["text"].split()
        kept = [chance.random() >= share for _ in words]
        kept[chance.randrange(len(words))] = True
        known = [word if keep else WILDCARD for word, keep in zip(words, kept, strict=True)]
        silent.append({**entry, "text": " ".join(word for word in known if word != WILDCARD)})
        marked.append({**entry, "text": " ".join(known)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in (("damaged", silent), ("wildcard", marked)):
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def train(variant: Variant, seed: int, run_dir: Path, options: argparse.Namespace) -> None:
    """One run; its output goes to the run's own log."""
    manifest = DATA / "train.jsonl"
    if variant.manifest != "train":
        manifest = options.output / f"{variant.manifest}.jsonl"
    command = [
        *([] if options.lock is None else ["flock", str(options.lock)]),
        *(sys.executable, "-m", "asr.train", "experiment=fsdd", f"seed={seed}", f"run_dir={run_dir}"),
        *(f"trainer.max_epochs={options.epochs}", "trainer.num_dev_samples=0", "logger.tensorboard=false"),
        *(f"data.train={manifest.absolute()}", *variant.options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def measure_peakiness(run_dir: Path) -> Peakiness:
    """From the emissions of the dev utterances under the best checkpoint."""
    recogniser = checkpoint.load_recogniser(run_dir, GreedyConfig(), torch.device("cpu"))
    blank_id = recogniser.tokenizer.blank_id
    frames = torch.cat(
        [
            recogniser.emissions([load_audio(utterance.audio_path, recogniser.sample_rate)]).log_probs[0]
            for utterance in read_manifest(DATA / "dev.jsonl")
        ]
    )
    return Peakiness(
        blank_share=float((frames.argmax(dim=1) == blank_id).float().mean()),
        blank_probability=float(frames[:, blank_id].exp().mean()),
        top_probability=float(frames.amax(dim=1).exp().mean()),
    )


def mean_errors(reports: list[EvaluationReport]) -> list[float]:
    """Word errors of each dev utterance, averaged over the seeds."""
    by_run = [[utterance.counts.num_errors for utterance in report.utterances] for report in reports]
    return [fmean(errors) for errors in zip(*by_run, strict=True)]


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    found: dict[str, list[EvaluationReport]] = {}
    for variant in VARIANTS:
        runs = [options.output / f"{variant.name}-{seed}" for seed in options.seeds]
        runs = [run for run in runs if (run / "report.json").exists()]
        if not runs:
            continue
        reports = found[variant.name] = [read_report(run / "report.json") for run in runs]
        wers = [100 * report.wer for report in reports]
        peaks = [measure_peakiness(run) for run in runs]
        comparison = "–"
        if variant.name != variant.against and len(found.get(variant.against, [])) == len(reports):
            lengths = [utterance.counts.num_reference for utterance in reports[0].utterances]
            paired = compare_paired(mean_errors(reports), mean_errors(found[variant.against]), lengths)
            low, high = 100 * paired.interval.low, 100 * paired.interval.high
            comparison = f"{100 * paired.difference:+.2f} [{low:+.2f}, {high:+.2f}] p={paired.p_value:.3f}"
        yield [
            variant.name,
            " ".join(variant.options) or "–",
            f"{fmean(wers):.2f} ± {stdev(wers) if len(wers) > 1 else float('nan'):.2f}",
            " ".join(f"{wer:.2f}" for wer in wers),
            comparison,
            *(f"{fmean(values):.3f}" for values in zip(*peaks, strict=True)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--missing", type=float, default=0.3, help="share of words taken out")
    parser.add_argument(
        "--only", nargs="*", choices=[variant.name for variant in VARIANTS], help="variants to train"
    )
    parser.add_argument("--lock", type=Path, help="hold this file's lock during each run (flock)")
    parser.add_argument("--table", action="store_true", help="no training, only the table of what is done")
    options = parser.parse_args()
    damage(options.missing, options.output)
    by_name = {variant.name: variant for variant in VARIANTS}
    chosen = [by_name[name] for name in options.only or by_name]
    plan = [(seed, variant) for seed in options.seeds for variant in chosen]
    for seed, variant in [] if options.table else track(plan, console=Console(stderr=True)):
        run_dir = options.output / f"{variant.name}-{seed}"
        if not (run_dir / "report.json").exists():
            train(variant, seed, run_dir, options)
    columns = (
        "variant",
        "options",
        "dev WER % (mean ± sd)",
        "each seed",
        "against plain (wildcard: damaged), points",
    )
    table = Table(*columns, "blank frames", "P(blank)", "P(top)", title=f"{options.epochs} epochs")
    for row in rows(options):
        table.add_row(*row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
