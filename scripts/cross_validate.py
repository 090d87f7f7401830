"""A recipe judged on speakers it has never heard: trained once per fold, every speaker held out once.

Each fold is prepared and trained in processes of their own and kept, so that an interrupted cross-validation goes on
with the folds that are missing. Nothing is chosen on the speakers that are held out: the recipe is fixed, its
*last* weights are taken rather than the best on the held-out part, the language model is estimated from
the fold's training text, and its weights are those that do best on the other folds. ``beam + words`` allows the
words of the training text, and says nothing of their probabilities.

    python scripts/cross_validate.py --corpus an4 --source AN4 --folds 5 --output cv/an4 experiment=an4
    python scripts/cross_validate.py --corpus fsdd --source FSDD --output cv/fsdd experiment=fsdd \\
        --speakers george,jackson,lucas,nicolas,theo,yweweler

``--first OPTIONS`` makes it two trainings: a first one with these options, whose model splices more utterances from the
fold's training part (``asr.prepare corpus=spliced``), and one on both that begins with its weights:

    python scripts/cross_validate.py --corpus an4 --source AN4 --folds 5 --output cv/an4-best \\
        --first "experiment=an4 trainer.max_epochs=80" experiment=an4-best
"""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from recipes import Recipe, Step, last_weights, minutes_of
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from asr import build, checkpoint
from asr.config import BeamLmConfig, GreedyConfig, TuneConfig
from asr.corpora import fsdd
from asr.manifest import manifest_sha256, read_manifest
from asr.records import Utterance
from asr.stats import Interval, compare_paired, rate_interval
from asr.tuning import Trial, Trials, cached_emissions, choose_weights, groups_of

_PREPARE = {"an4": [], "fsdd": ["connected=true", "connected_passes=4", f"test_speaker={fsdd.NO_SPEAKER}"]}


@dataclass(frozen=True)
class Fold:
    """Options of ``asr.prepare`` that hold its speakers out as dev, and where everything of it goes."""

    name: str
    prepare: tuple[str, ...]
    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def lm(self) -> Path:
        return self.folder / "lm.arpa"


class Decoded(NamedTuple):
    """A fold's held-out utterances: ``grid`` holds the same settings in the same order in every fold."""

    utterances: list[Utterance]
    num_words: NDArray[np.float64]
    greedy: Trial
    grid: list[Trial]

    def words_alone(self) -> Trial | None:
        """The search among the training text's words without their probabilities; None for an open vocabulary."""
        without = [trial for trial in self.grid if trial.option("alpha") == trial.option("beta") == 0]
        return next((trial for trial in without if trial.option("vocabulary") == "closed"), None)


# --------------------------------------------------------------------------- one fold


def steps(fold: Fold, recipe: Recipe, options: argparse.Namespace) -> list[Step]:
    """Prepare and train, and estimate the language model."""
    corpus = (f"corpus={options.corpus}", f"source={options.source}", f"output={fold.data}", *fold.prepare)
    return [
        Step("asr.prepare", corpus, fold.data),
        *recipe.steps(fold.folder, fold.data, options.seed),
        estimation_of_lm(fold.data, options.lm_order, fold.lm),
    ]


def make(fold: Fold, recipe: Recipe, options: argparse.Namespace) -> None:
    for step in steps(fold, recipe, options):
        step.make_once()


def estimation_of_lm(data: Path, order: int, lm: Path) -> Step:
    """Of the training text."""
    return Step("asr.lm", (f"text={data / 'train.jsonl'}", f"order={order}", f"output={lm}"), lm)


def decode(checkpoint_path: Path, manifest: Path, lm: Path, vocabulary: str, cache: Path) -> Decoded:
    """Greedy, and with every pair of language-model weights."""
    recogniser = checkpoint.load_recogniser(checkpoint_path, GreedyConfig(), torch.device("cpu"))
    utterances = read_manifest(manifest)
    identity = checkpoint.identify(checkpoint_path)
    dev = cached_emissions(
        recogniser,
        utterances,
        cache,
        checkpoint_sha256=identity.sha256,
        manifest_sha256=manifest_sha256(manifest),
        max_batch_utterances=16,
        max_batch_seconds=240.0,
    )
    if len(dev.examples) != len(utterances):
        raise SystemExit(f"{manifest}: {len(utterances) - len(dev.examples)} utterances cannot be read")
    trials = Trials(
        dev,
        lambda decoder: build.make_decoder(
            decoder, recogniser.tokenizer, recogniser.acoustic_model.seconds_per_frame
        ),
        recogniser.normalise,
    )
    greedy = trials.run("greedy", GreedyConfig())
    defaults = TuneConfig()
    with_lm = BeamLmConfig(lm=str(lm), vocabulary=vocabulary)
    grid = trials.grid("grid", with_lm, {"alpha": defaults.alphas, "beta": defaults.betas})
    num_words = np.array([count.num_reference for count in greedy.counts], np.float64)
    return Decoded([example.utterance for example in dev.examples], num_words, greedy, grid)


# --------------------------------------------------------------------------- all folds


def joined(trials: Sequence[Trial]) -> Trial:
    """The same settings on several folds as one trial; the language model's file differs between them."""
    counts = tuple(count for trial in trials for count in trial.counts)
    decoder = replace(trials[0].decoder, lm="")  # type: ignore[call-arg]
    return Trial("grid", decoder, counts, sum(trial.cpu_seconds for trial in trials))


class WithLm(NamedTuple):
    """Of one fold: the weights that the other folds choose, and what they do here."""

    alpha: float
    beta: float
    errors: NDArray[np.float64]


def cross_fit(folds: Sequence[Decoded]) -> list[WithLm]:
    """For each fold the language-model weights that are best on the others."""
    found = []
    for number, own in enumerate(folds):
        others = [fold for place, fold in enumerate(folds) if place != number]
        pooled = [joined(trials) for trials in zip(*(fold.grid for fold in others), strict=True)]
        chosen = pooled.index(choose_weights(pooled))
        trial = own.grid[chosen]
        found.append(WithLm(trial.option("alpha"), trial.option("beta"), trial.errors))
    return found


def mean_interval(rates: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean over folds (an approximation: folds share training data)."""
    half = float(student.ppf(0.975, len(rates) - 1)) * stdev(rates) / len(rates) ** 0.5
    return fmean(rates) - half, fmean(rates) + half


def percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def held_out(folds: Sequence[Decoded]) -> list[Utterance]:
    """Of all folds."""
    return [utterance for fold in folds for utterance in fold.utterances]


def summary(name: str, errors: Sequence[NDArray[np.float64]], folds: Sequence[Decoded]) -> dict[str, object]:
    """Mean of the folds and pooled rate, each with its interval; speakers, if known, are the pooled one's units."""
    rates = [float(own.sum() / fold.num_words.sum()) for own, fold in zip(errors, folds, strict=True)]
    words = np.concatenate([fold.num_words for fold in folds])
    pooled = rate_interval(np.concatenate(errors), words, groups=groups_of(held_out(folds)).names)
    return {
        "decoder": name,
        "folds": rates,
        "mean": fmean(rates),
        "mean_interval": mean_interval(rates),
        "pooled": float(sum(own.sum() for own in errors) / words.sum()),
        "pooled_interval": bounds(pooled),
    }


def bounds(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def report(plan: Sequence[Fold], folds: Sequence[Decoded], output: Path, recipe: Recipe) -> None:
    """Table on the terminal and ``cross_validation.json``."""
    fitted = cross_fit(folds)
    by_decoder = {"greedy": [fold.greedy.errors for fold in folds]}
    words_alone = [trial.errors for trial in (fold.words_alone() for fold in folds) if trial is not None]
    if words_alone:
        by_decoder["beam + words"] = words_alone
    by_decoder["beam + LM"] = [one.errors for one in fitted]
    utterances = held_out(folds)
    groups = groups_of(utterances)
    table = Table(title=f"word error rate on held-out {groups.unit}s, %")
    for column in ("fold", "speakers", "utterances", "words", *by_decoder, "alpha", "beta"):
        table.add_column(column, justify="left" if column == "fold" else "right")
    for place, (fold, decoded, one) in enumerate(zip(plan, folds, fitted, strict=True)):
        rates = [errors[place].sum() / decoded.num_words.sum() for errors in by_decoder.values()]
        speakers = {utterance.speaker for utterance in decoded.utterances} - {""}
        sizes = (len(speakers), len(decoded.utterances), int(decoded.num_words.sum()))
        table.add_row(fold.name, *map(str, sizes), *map(percent, rates), f"{one.alpha:g}", f"{one.beta:g}")
    console = Console(width=110, soft_wrap=True)
    console.print(table)
    summaries = [summary(name, errors, folds) for name, errors in by_decoder.items()]
    for one in summaries:
        (low, high), (pooled_low, pooled_high) = one["mean_interval"], one["pooled_interval"]  # type: ignore[misc]
        console.print(
            f"{one['decoder']}: mean of folds {percent(one['mean'])} % [{percent(low)}, {percent(high)}], "  # type: ignore[arg-type]
            f"pooled {percent(one['pooled'])} % [{percent(pooled_low)}, {percent(pooled_high)}] by {groups.unit}"  # type: ignore[arg-type]
        )
    words = np.concatenate([fold.num_words for fold in folds])
    pooled = {name: np.concatenate(errors) for name, errors in by_decoder.items()}
    paired = compare_paired(pooled["beam + LM"], pooled["greedy"], words, groups=groups.names)
    low, high = bounds(paired.interval)
    console.print(
        f"the language model changes it by {100 * paired.difference:+.2f} points "
        f"[{100 * low:+.2f}, {100 * high:+.2f}], p={paired.p_value:.4f}, paired by {groups.unit}"
    )
    weights = [{"alpha": one.alpha, "beta": one.beta} for one in fitted]
    by_utterance = [
        {
            "id": utterance.id,
            "speaker": utterance.speaker,
            "words": int(size),
            "errors": {name: int(errors[place]) for name, errors in pooled.items()},
        }
        for place, (utterance, size) in enumerate(zip(utterances, words, strict=True))
    ]
    content = {
        "recipe": asdict(recipe),
        "summaries": summaries,
        "weights": weights,
        "lm_against_greedy": asdict(paired),
        "utterances": by_utterance,
    }
    path = output / "cross_validation.json"
    path.write_text(json.dumps(content, indent=1, default=list) + "\n", encoding="utf-8")
    console.print(f"wrote {path}", markup=False, highlight=False)


def plan_of(options: argparse.Namespace) -> list[Fold]:
    """All folds; those of ``--speakers`` hold one speaker out each."""
    if options.speakers is not None:
        chosen = [(name, (f"dev_speaker={name}",)) for name in options.speakers.split(",")]
    else:
        chosen = [(str(k), (f"folds={options.folds}", f"fold={k}")) for k in range(options.folds)]
    base = _PREPARE.get(options.corpus, [])
    return [Fold(name, (*base, *own), options.output / f"fold-{name}") for name, own in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="an4", help="as for asr.prepare")
    parser.add_argument("--source", type=Path, required=True, help="where the corpus is")
    parser.add_argument("--folds", type=int, default=5, help="of speakers")
    parser.add_argument("--speakers", metavar="A,B,...", help="one fold for each of these (fsdd) instead")
    parser.add_argument("--first", metavar="OPTIONS", help="of a first training, which splices (see above)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the folds")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing, report the folds that are done"
    )
    parser.add_argument("--jobs", type=int, default=1, help="folds trained at the same time")
    parser.add_argument("--lm-order", type=int, default=3)
    parser.add_argument("--vocabulary", choices=["open", "closed"], default="closed")
    parser.add_argument("overrides", nargs="*", help="options of asr.train, e.g. experiment=an4")
    options = parser.parse_intermixed_args()
    options.output, options.source = options.output.absolute(), options.source.absolute()
    if options.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    plan = plan_of(options)
    first = None if options.first is None else tuple(shlex.split(options.first))
    recipe = Recipe(tuple(options.overrides), first)
    folds = len(plan)
    if options.table_only:
        plan = [fold for fold in plan if minutes_of(steps(fold, recipe, options)) is not None]
    if len(plan) < 2:
        parser.error(f"{len(plan)} of {folds} folds: a cross-validation needs two at least")
    if not options.table_only:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda fold: make(fold, recipe, options), plan))
    decoded = [
        decode(
            last_weights(fold.folder),
            fold.data / "dev.jsonl",
            fold.lm,
            options.vocabulary,
            fold.folder / "emissions",
        )
        for fold in plan
    ]
    report(plan, decoded, options.output, recipe)


if __name__ == "__main__":
    main()
