"""``python -m asr.tune``: language-model weights and pruning, chosen on the dev set and on nothing else."""

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from asr import build, checkpoint, tuned_decoder
from asr.cli import launch, setup_logging
from asr.config import BeamConfig, CudaConfig, DecoderConfig, GreedyConfig, TuneConfig
from asr.device import choose_device
from asr.errors import ConfigError, ManifestError
from asr.firewall import (
    EvaluatedData,
    check_data_use,
    choose_on,
    record_choice,
    require_dev_data,
    training_manifests,
)
from asr.manifest import manifest_sha256, read_manifest
from asr.provenance import describe_environment
from asr.recogniser import Recogniser
from asr.records import Utterance
from asr.report.schema import to_json
from asr.report.tuning_report import Point, Step, front_table, plot, steps_table
from asr.score import get_normaliser
from asr.selection import claimed_split, find_manifest
from asr.stats import Interval, compare_paired, rate_interval
from asr.tuned_decoder import FileIdentity, TunedDecoder, decoder_files
from asr.tuning import (
    DevSet,
    Trial,
    Trials,
    cached_emissions,
    choose_pruning,
    choose_weights,
    cross_fitted,
    groups_of,
    indistinguishable,
    pareto_front,
)

logger = logging.getLogger("asr.tune")  # __name__ is "__main__" under python -m

RULE = (
    "alpha and beta in the middle of those that cannot be told from the lowest WER (one paired standard error); "
    "then the fastest pruning that makes no more errors than the widest"
)


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(tune, config_name="tune", schema=TuneConfig)


def tune(config: TuneConfig) -> int:
    """Search as configured, write ``tuned_decoder.yaml`` and what it rests on; returns the exit code."""
    setup_logging()
    searched = searched_options(config)
    manifest = find_manifest(config.data, config.split, config.manifest)
    utterances = read_manifest(manifest)
    data = EvaluatedData(
        str(manifest),
        manifest_sha256(manifest),
        utterances,
        claimed_split(config.data, config.split, config.manifest),
    )
    require_dev_data(data, config.data.test, "tune")
    path = checkpoint.resolve(config.checkpoint)
    identity = checkpoint.identify(path)
    files = decoder_files(config.decoder)
    output = Path(config.output) if config.output else checkpoint.home(path) / "tuning" / output_name(config)
    warn_of_training_data(data, identity)

    recogniser = checkpoint.load_recogniser(path, GreedyConfig(), choose_device(config.device))
    normalise = get_normaliser(config.normaliser)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        dev = make_dev_set(config, recogniser, utterances, output, identity, manifest, progress)
        task = progress.add_task("searching", total=most_trials(config, searched))
        trials = Trials(
            dev,
            lambda decoder: build.make_decoder(
                decoder, recogniser.tokenizer, recogniser.acoustic_model.seconds_per_frame
            ),
            lambda text: normalise(recogniser.normalise(text)),
            on_trial=lambda: progress.advance(task),
        )
        found = Search(config, searched, trials, dev)
        found.run()
    chosen_on = choose_on(
        f"{', '.join(searched)} (asr.tune)", manifest, [example.utterance for example in dev.examples]
    )
    report(config, found, output)
    environment = describe_environment()
    tuned = TunedDecoder(
        format=tuned_decoder.FORMAT,
        decoder=dataclasses.asdict(found.chosen.decoder),
        results=found.results(),
        date=date.today().isoformat(),
        environment={name: environment[name] for name in ("asr", "git_revision", "command")},
        checkpoint=FileIdentity(identity.path, identity.sha256),
        tokenizer=identity.tokenizer,
        files=files,
        chosen_on=chosen_on,
    )
    tuned_decoder.write(tuned, output / tuned_decoder.FILE_NAME)
    record_choice(checkpoint.home(path), chosen_on)
    console = Console(soft_wrap=True)
    written = f"{output / tuned_decoder.FILE_NAME}, tuning.json and tuning.{config.image_format}"
    console.print(f"wrote {written}", markup=False, highlight=False)
    return 0


# --------------------------------------------------------------------------- what may be searched on what


def searched_options(config: TuneConfig) -> dict[str, list[Any]]:
    """The options to search and their values.

    Raises:
        ConfigError: the decoder has nothing to tune.
    """
    decoder = config.decoder
    if isinstance(decoder, GreedyConfig | CudaConfig):
        raise ConfigError(
            f"decoder={decoder.kind} has no weights to tune: choose decoder=beam_lm or decoder=beam"
        )
    has_words = getattr(decoder, "lm_unit", "word") == "word" or getattr(decoder, "lexicon", None) is not None
    applies = {
        "alpha": getattr(decoder, "lm", None) is not None,
        "beta": getattr(decoder, "lm", None) is not None and getattr(decoder, "has_words", True),
        "unknown_penalty": getattr(decoder, "vocabulary", "closed") == "open" and has_words,
        "hotword_weight": bool(getattr(decoder, "hotwords", None) or getattr(decoder, "hotword_file", None)),
        "beam_width": True,
        "score_gap": True,
        "token_gap": hasattr(decoder, "token_gap"),
    }
    values: dict[str, list[Any]] = {
        "alpha": config.alphas,
        "beta": config.betas,
        "unknown_penalty": config.unknown_penalties,
        "hotword_weight": config.hotword_weights,
        "beam_width": config.beam_widths,
        "score_gap": config.score_gaps,
        "token_gap": config.token_gaps,
    }
    return {name: values[name] for name, does_apply in applies.items() if does_apply}


def warn_of_training_data(data: EvaluatedData, identity: checkpoint.Identity) -> None:
    use = check_data_use(data, [], training_manifests(identity.provenance))
    for notice in use.notices:
        if notice.severity == "warning":
            logger.warning("warning: %s: the weights will trust the model too much", notice.text)


def output_name(config: TuneConfig) -> str:
    return Path(config.manifest).stem if config.manifest is not None else f"{config.data.name}-{config.split}"


def make_dev_set(
    config: TuneConfig,
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    output: Path,
    identity: checkpoint.Identity,
    manifest: Path,
    progress: Progress,
) -> DevSet:
    """Emissions of the dev set; says where they are from, and how many utterances have none."""
    task = progress.add_task("listening", total=len(utterances))
    try:
        dev = cached_emissions(
            recogniser,
            utterances,
            output,
            checkpoint_sha256=identity.sha256,
            manifest_sha256=manifest_sha256(manifest),
            max_batch_utterances=config.data.max_batch_utterances,
            max_batch_seconds=config.data.max_batch_seconds,
            on_progress=lambda num_done: progress.update(task, completed=num_done),
        )
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written ({error.strerror})") from error
    progress.remove_task(task)
    if not any(example.text for example in dev.examples):
        raise ManifestError(f"{manifest}: no utterance has a text to score against")
    where = "kept from an earlier search" if dev.is_from_cache else "computed"
    logger.info("emissions of %d utterances: %s", len(dev.examples), where)
    num_lost = len(utterances) - len(dev.examples)
    if num_lost:
        logger.warning("warning: %d utterances of %s cannot be read and are left out", num_lost, manifest)
    return dev


def most_trials(config: TuneConfig, searched: dict[str, list[Any]]) -> int:
    """An upper bound, for the progress bar."""
    num = math.prod(
        len(searched[name]) for name in ("beam_width", "score_gap", "token_gap") if name in searched
    )
    if "alpha" in searched:
        num += math.prod(len(searched[name]) for name in ("alpha", "beta") if name in searched)
        num += 9 * config.refine_rounds
    return num + sum(len(searched.get(name, [])) for name in ("unknown_penalty", "hotword_weight")) + 3


# --------------------------------------------------------------------------- the search


class Search:
    """Weights on a grid, then around the best of it; penalties; then pruning."""

    def __init__(
        self, config: TuneConfig, searched: dict[str, list[Any]], trials: Trials, dev: DevSet
    ) -> None:
        self.trials = trials
        self.audio_seconds = sum(example.utterance.duration_seconds for example in dev.examples)
        self.groups = groups_of([example.utterance for example in dev.examples])
        self._config = config
        self._searched = searched

    def run(self) -> None:
        """Make all trials and choose."""
        config, trials, searched = self._config, self.trials, self._searched
        self.greedy = trials.run("greedy", GreedyConfig())
        self.beam = self._without_lm()
        self.untuned = trials.run("untuned", config.decoder)
        chosen = self.untuned
        weighing = self._choices("alpha", "beta")
        self.cross_fitted: NDArray[np.float64] | None = None
        if weighing:
            grid = trials.grid("grid", config.decoder, weighing)
            num_folds = min(config.folds, len(set(self.groups.names)))
            if num_folds > 1:
                self.cross_fitted = cross_fitted(grid, self.groups.names, num_folds, config.seed)
            chosen = choose_weights(grid)
            weights = list(grid)
        for name in ("unknown_penalty", "hotword_weight"):
            if name in searched:
                tried = [chosen, *trials.grid(name, chosen.decoder, {name: searched[name]})]
                best = indistinguishable(tried)
                if chosen not in best:  # else the given value is as good as any
                    chosen = min(best, key=lambda trial: trial.num_errors)
                    weights = [chosen]
        if weighing:
            if len(weights) == 1:
                weights = trials.grid("grid", chosen.decoder, weighing)
            chosen = choose_weights(trials.refine("refined", weights, list(weighing), config.refine_rounds))
        choices = self._choices("beam_width", "score_gap", "token_gap")
        self.pruned = [chosen, *trials.grid("pruning", chosen.decoder, choices)]
        self.pruned = list(dict.fromkeys(self.pruned))
        self.front = pareto_front(self.pruned)
        widest = {name: max([*values, chosen.option(name)]) for name, values in choices.items()}
        self.chosen = choose_pruning(
            self.pruned, trials.run("pruning", dataclasses.replace(chosen.decoder, **widest))
        )

    def _choices(self, *names: str) -> dict[str, list[Any]]:
        return {name: self._searched[name] for name in names if name in self._searched}

    def _without_lm(self) -> Trial | None:
        decoder: DecoderConfig = self._config.decoder
        if not isinstance(decoder, BeamConfig) or getattr(decoder, "lm", None) is None:
            return None
        pruning = ("beam_width", "score_gap", "token_gap", "max_tokens", "num_threads")
        return self.trials.run("beam", BeamConfig(**{name: getattr(decoder, name) for name in pruning}))

    @property
    def num_words(self) -> NDArray[np.float64]:
        return np.array([count.num_reference for count in self.greedy.counts], np.float64)

    def interval(self, errors: NDArray[np.float64]) -> Interval:
        return rate_interval(errors, self.num_words, seed=self._config.seed)

    def steps(self) -> list[Step]:
        """From greedy decoding to the chosen settings."""
        given = "beam search with the language model" if "alpha" in self._searched else "beam search"
        steps = [self._step("greedy", self.greedy.errors, self.greedy)]
        if self.beam is not None:
            steps.append(self._step("beam search", self.beam.errors, self.beam, greedy=self.greedy))
        steps.append(self._step(f"{given}, as given", self.untuned.errors, self.untuned, greedy=self.greedy))
        both = {"greedy": self.greedy, "as given": self.untuned}
        if self.cross_fitted is not None:
            name = f"weights chosen on other {self.groups.unit}s"
            steps.append(self._step(name, self.cross_fitted, None, **both))
        steps.append(self._step("tuned here (optimistic)", self.chosen.errors, self.chosen, **both))
        return steps

    def _step(self, name: str, errors: NDArray[np.float64], trial: Trial | None, **others: Trial) -> Step:
        num_words = self.num_words
        return Step(
            name=name,
            wer=float(errors.sum() / num_words.sum()),
            interval=self.interval(errors),
            speed=None if trial is None else self.audio_seconds / max(trial.cpu_seconds, 1e-9),
            against={
                other: compare_paired(errors, compared.errors, num_words, seed=self._config.seed)
                for other, compared in others.items()
            },
        )

    def points(self) -> list[Point]:
        """All trials of the decoder itself."""
        return [
            Point(
                stage=trial.stage,
                options={name: trial.option(name) for name in self._searched},
                wer=trial.wer,
                speed=self.audio_seconds / max(trial.cpu_seconds, 1e-9),
                interval=self.interval(trial.errors) if trial in self.pruned else None,
                is_on_front=trial in self.front,
                is_chosen=trial is self.chosen,
            )
            for trial in self.trials.all
            if trial.stage not in {"greedy", "beam"}
        ]

    def results(self) -> dict[str, Any]:
        """What the file of settings says of the search."""
        return {
            "rule": RULE,
            "num_trials": len(self.trials.all),
            "num_words": int(self.num_words.sum()),
            "wer": {
                step.name: {
                    "wer": round(step.wer, 5),
                    "low": round(step.interval.low, 5),
                    "high": round(step.interval.high, 5),
                }
                for step in self.steps()
            },
        }


def report(config: TuneConfig, search: Search, output: Path) -> None:
    """Tables to the terminal; everything to ``tuning.json`` and the picture."""
    steps, points = search.steps(), search.points()
    console = Console()
    console.print(steps_table(steps))
    console.print(front_table(sorted(points, key=lambda point: -point.speed)))
    options = next(point.options for point in points if point.is_chosen)
    listed = ", ".join(f"{name} {value}" for name, value in options.items())
    console.print(f"chosen: {listed}\nrule: {RULE}", markup=False, highlight=False, soft_wrap=True)
    content = {"rule": RULE, "steps": to_json(steps), "trials": to_json(points)}
    (output / "tuning.json").write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    plot(points, steps, output / f"tuning.{config.image_format}")


if __name__ == "__main__":
    sys.exit(main())
