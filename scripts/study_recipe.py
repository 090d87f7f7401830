"""What each part of a recipe does: trainings that differ in a few options, on the dev set of one corpus.

A plan names the trials, options of ``asr.train`` for each, and what all have in common:

    common: [experiment=an4]
    trials:
      recipe: []
      without dither: [features.dither=0]

``first: [options]`` makes each of them two trainings, as in recipes.py.

Each trial is trained once per seed, in a process of its own, and judged by its *last* weights, so that
nothing was chosen on the dev set but what the reader chooses from the table. Language-model weights are those
that the other dev speakers choose (other utterances, where not all speakers are known or there is only one).

Every trial is compared with the first, paired by utterance, over the seeds that both have. ``p`` is how often
chance would make so large a difference between recipes that are equally good: the chance of these utterances alone
where they share one seed, that of utterances and of seeds where they share more.

``loss`` is the dev loss per label. The table is also written as JSON, and the learning curves as a picture. What is
done is kept: several of these processes may work on the same plan and folder.

    python scripts/study_recipe.py --plan scripts/an4_search.yaml --data data/an4 --output studies/an4-search
    python scripts/study_recipe.py --plan scripts/an4_best.yaml --data data/an4 --output studies/an4-best --seeds 0 1 2
    python scripts/study_recipe.py --plan scripts/an4_search.yaml --data data/an4 --output studies/an4-search \\
        --table-only
"""

import argparse
import csv
import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import yaml
from cross_validate import decode, estimation_of_lm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recipes import Recipe, last_weights, minutes_of
from rich.console import Console
from rich.table import Table

from asr.config import TuneConfig
from asr.manifest import read_manifest
from asr.stats import compare_groups, rate_interval
from asr.tuning import cross_fitted, groups_of

DECODERS = ("greedy", "beam + LM")


@dataclass(frozen=True)
class Plan:
    trials: dict[str, Recipe]

    @classmethod
    def read(cls, path: Path) -> "Plan":
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        unknown = set(content) - {"first", "common", "trials"}
        if unknown or not content.get("trials"):
            raise SystemExit(f"{path}: needs trials: and may have common: and first:, not {sorted(unknown)}")
        slugs = [slug(name) for name in content["trials"]]
        if len(set(slugs)) < len(slugs):
            raise SystemExit(
                f"{path}: two trials would share a folder: give them names that differ in letters or digits"
            )
        first = tuple(content["first"]) if content.get("first") else None
        common = content.get("common") or []
        trials = content["trials"].items()
        return cls({name: Recipe((*common, *(options or [])), first) for name, options in trials})


class Judged(NamedTuple):
    """One training: errors per dev utterance under each decoder, dev loss per label, and processor minutes."""

    num_words: NDArray[np.float64]
    errors: Mapping[str, NDArray[np.float64]]
    loss: float
    minutes: float


def slug(trial: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", trial.lower()).strip("-")


def run_folder(output: Path, trial: str, seed: int) -> Path:
    return output / f"{slug(trial)}-{seed}"


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may work on it; another one does otherwise."""
    with open(folder.with_name(f"{folder.name}.lock"), "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def judge(folder: Path, minutes: float, manifest: Path, lm: Path, vocabulary: str) -> Judged:
    decoded = decode(last_weights(folder), manifest, lm, vocabulary, folder / "emissions")
    defaults = TuneConfig()
    groups = groups_of(decoded.utterances).names
    num_folds = min(defaults.folds, len(set(groups)))
    with_lm = cross_fitted(decoded.grid, groups, num_folds, defaults.seed)
    errors = dict(zip(DECODERS, (decoded.greedy.errors, with_lm), strict=True))
    return Judged(decoded.num_words, errors, learning_curve(folder)[-1].loss, minutes)


def require_others(manifest: Path) -> None:
    """Stop where no utterance has others that could choose its language-model weights."""
    if len(read_manifest(manifest)) < 2:
        raise SystemExit(
            f"{manifest} has one utterance only: others have to choose its language-model weights"
        )


def validations(run: Path) -> list[dict[str, str]]:
    """The rows of a training's ``metrics.csv`` that hold dev figures; none where there is no such file."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["dev/wer"]]


class Point(NamedTuple):
    """A validation: after so many epochs, WER and loss per label."""

    epoch: int
    wer: float
    loss: float


def learning_curve(folder: Path) -> list[Point]:
    """Of the recipe made in ``folder``; the epochs of a second training go on from those of the first."""
    points: list[Point] = []
    for training in ("first", "run"):
        before = points[-1].epoch if points else 0
        points += [
            Point(before + int(row["epoch"]) + 1, float(row["dev/wer"]), float(row["dev/loss"]))
            for row in validations(folder / training)
        ]
    return points


def make_all(plan: Plan, options: argparse.Namespace) -> None:
    """Every training that nobody has done or is doing, all trials with one seed before the next seed."""
    for seed in options.seeds:
        for name, recipe in plan.trials.items():
            folder = run_folder(options.output, name, seed)
            with claimed(folder) as is_mine:
                if is_mine:
                    for step in recipe.steps(folder, options.data, seed):
                        step.make_once()


def rates(runs: Mapping[int, Judged], decoder: str) -> str:
    """Mean over the seeds with its interval over utterances, and each seed's."""
    by_seed = [100 * float(run.errors[decoder].sum() / run.num_words.sum()) for run in runs.values()]
    mean_errors = np.mean([run.errors[decoder] for run in runs.values()], axis=0)
    interval = rate_interval(mean_errors, next(iter(runs.values())).num_words)
    spread = f" ({' '.join(f'{rate:.1f}' for rate in by_seed)})" if len(by_seed) > 1 else ""
    return f"{fmean(by_seed):.2f}{spread} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def difference(runs: Mapping[int, Judged], first: Mapping[int, Judged], decoder: str) -> str:
    """Against the first trial, in points, over the seeds that both have."""
    shared = sorted(set(runs) & set(first))
    if runs is first or not shared:
        return ""
    own, other = (np.array([one[seed].errors[decoder] for seed in shared]) for one in (runs, first))
    # Runs with the same seed are no pairs: in another recipe its luck is another.
    found = compare_groups(own, other, first[shared[0]].num_words).comparison
    return f"{100 * found.difference:+.2f} (p={found.p_value:.2f})"


def report(plan: Plan, options: argparse.Namespace, lm: Path) -> None:
    """What is done so far, as a table and ``PLAN.json``."""
    done: dict[str, dict[int, Judged]] = {name: {} for name in plan.trials}
    for name, runs in done.items():
        for seed in options.seeds:
            folder = run_folder(options.output, name, seed)
            minutes = minutes_of(plan.trials[name].steps(folder, options.data, seed))
            if minutes is not None:
                runs[seed] = judge(folder, minutes, options.data / "dev.jsonl", lm, options.vocabulary)
    table = Table(title="dev word error rate, %")
    for column in ("trial", "seeds", *DECODERS, *(f"{name}, change" for name in DECODERS), "loss", "minutes"):
        table.add_column(column, justify="left" if column == "trial" else "right")
    first = next(iter(done.values()))
    for name, runs in done.items():
        if runs:
            cells = [rates(runs, decoder) for decoder in DECODERS]
            cells += [difference(runs, first, decoder) for decoder in DECODERS]
            loss, minutes = (
                fmean(getattr(run, field) for run in runs.values()) for field in ("loss", "minutes")
            )
            table.add_row(name, str(len(runs)), *cells, f"{loss:.3f}", f"{minutes:.0f}")
    Console(width=160).print(table)
    content = {
        name: {
            "recipe": asdict(plan.trials[name]),
            "seeds": {
                seed: {
                    "cpu_minutes": run.minutes,
                    "dev_loss": run.loss,
                    **{
                        decoder: float(run.errors[decoder].sum() / run.num_words.sum())
                        for decoder in DECODERS
                    },
                }
                for seed, run in runs.items()
            },
        }
        for name, runs in done.items()
    }
    path = options.output / f"{options.plan.stem}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw_curves(plan: Plan, options: argparse.Namespace) -> None:
    """Dev WER and loss over the epochs, a line for each recipe and seed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, name in enumerate(plan.trials):
        for seed in options.seeds:
            curve = learning_curve(run_folder(options.output, name, seed))
            if not curve:
                continue
            style = {
                "color": f"C{number % 10}",
                "linewidth": 1,
                "alpha": 1.0 if seed == options.seeds[0] else 0.5,
                "label": name if seed == options.seeds[0] else None,
            }
            epochs = [point.epoch for point in curve]
            panels[0].plot(epochs, [100 * point.wer for point in curve], **style)
            panels[1].plot(epochs, [point.loss for point in curve], **style)
    for axes, what in zip(panels, ("dev WER, greedy, %", "dev loss per label"), strict=True):
        axes.set(xlabel="epoch", yscale="log")
        axes.set_title(what, loc="left", fontsize=10)
        axes.grid(which="both", linewidth=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(options.output / f"{options.plan.stem}.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", type=Path, required=True, help="YAML, as above")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and dev.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--lm-order", type=int, default=3)
    parser.add_argument("--vocabulary", choices=["open", "closed"], default="closed")
    parser.add_argument("--table-only", action="store_true", help="train nothing")
    options = parser.parse_args()
    options.output, options.data = options.output.absolute(), options.data.absolute()
    options.output.mkdir(parents=True, exist_ok=True)
    plan = Plan.read(options.plan)
    require_others(options.data / "dev.jsonl")
    if not options.table_only:
        make_all(plan, options)
    lm = options.output / f"words-{options.lm_order}.arpa"
    estimation_of_lm(options.data, options.lm_order, lm).make_once()
    report(plan, options, lm)
    draw_curves(plan, options)


if __name__ == "__main__":
    main()
