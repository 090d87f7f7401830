"""``python -m asr.train``: manifests → trained recogniser, report, everything in one run directory."""

import dataclasses
import itertools
import json
import logging
import math
import shlex
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console

from asr import build, checkpoint, finders, optim, parallel
from asr.augment.sounds import sounds_sha256
from asr.averaging import MovingAverage, mean_of_weights
from asr.callbacks import (
    AtomicCheckpointIO,
    CoachLine,
    EpochLine,
    Interrupted,
    KeepBestAndLast,
    MetricsFile,
    ProgressBar,
    SaveBetween,
    ValidateAtEnd,
    write_atomically,
)
from asr.cli import launch, setup_logging
from asr.config import NO_RESUME, TrainConfig
from asr.datamodule import SpeechDataModule
from asr.dataset import Example, Exclusion, Selection, load_utterance, select_readable
from asr.dev_pictures import DevPictures
from asr.device import has_fast_bf16
from asr.errors import CheckpointError, ConfigError, TrainingError
from asr.evaluation import evaluate_utterances, write_views
from asr.findings import CHECKS, ExaminedSplit, Finding, find_problems
from asr.firewall import (
    BEST_CHECKPOINT,
    EARLY_STOPPING,
    Choice,
    EvaluatedData,
    check_data_use,
    choose_on,
    training_choices,
)
from asr.inspection import UNLEARNABLE_AUDIO
from asr.manifest import manifest_sha256
from asr.models.acoustic import AcousticModel
from asr.module import CtcModule
from asr.profiling import StepProfiler
from asr.provenance import command_line, describe_environment, flatten
from asr.recogniser import Recogniser
from asr.records import Problem, Utterance
from asr.report.corpus_report import FINDINGS_NAME, write_findings
from asr.report.terminal import print_report, sample_markdown
from asr.selection import check_dev_is_complete, inspect_splits, read_split, select_split, unusable
from asr.tokenizer import Tokenizer, report_unknown_characters, tokenizer_from_state
from asr.tuned_decoder import decoder_files
from asr.tuned_decoder import describe as describe_decoder
from asr.warm_start import take_over

logger = logging.getLogger("asr.train")  # __name__ is "__main__" under python -m

MAX_LISTED_EXCLUSIONS = 10
EXCLUDED_NAME = "excluded.jsonl"
# The report that a training ends with; asr.evaluate can make a larger one.
NUM_WORST = 10
NUM_PICTURES = 12
AUDIO_MIB = 2.0


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(train, config_name="train", schema=TrainConfig)


@dataclass(frozen=True)
class Corpus:
    """The training and dev utterances that are used, and those that are not."""

    train: Selection
    dev: Selection


def train(config: TrainConfig) -> int:
    """Train as configured; returns the exit code."""
    check_accelerator(config)
    if config.trainer.devices > 1 and not parallel.is_launched():
        return parallel.launch("asr.train", sys.argv[1:], config.trainer.devices)
    with parallel.joined(use_gpu(config)):
        run_dir, code = fit(config)
    return finish(config, run_dir) if code == 0 and config.find is None and parallel.is_first() else code


def read_inputs(config: TrainConfig) -> dict[str, list[Utterance]]:
    """The utterances of train and dev. A wrong ``init_from`` is told as well, before all audio is looked at."""
    utterances = {split: read_split(config.data, split) for split in ("train", "dev")}
    check_dev_is_complete(config, utterances["dev"])
    if config.init_from is not None:
        checkpoint.resolve(config.init_from)
    return utterances


def fit(config: TrainConfig) -> tuple[Path, int]:
    """The run directory of the training, and the exit code; in every process that takes part."""
    utterances = read_inputs(config)
    manifests = describe_manifests(config)
    run_dir, resume_from = agree_on_run(config)
    setup_logging(run_dir / "train.log" if parallel.is_first() else None)
    quieten_libraries()
    if not parallel.is_first():
        logging.getLogger("asr").setLevel(logging.ERROR)
    logger.info("run directory: %s", run_dir)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    pl.seed_everything(config.seed, workers=True, verbose=False)

    normalise = build.make_normalise(config.text)
    problems = recorded_problems(run_dir, utterances) if resume_from else None
    with parallel.first_before_others():
        facts = inspect_splits(config.doctor, config.data, utterances) if problems is None else {}
    readable = {
        split: select_readable(
            of_split, normalise, problems[split] if problems else unusable(split, of_split, facts[split])
        )
        for split, of_split in utterances.items()
    }
    for split, selection in readable.items():
        check_not_empty(config, split, selection)
    texts = [build.known_text(config.text, example.text) for example in readable["train"].examples]
    tokenizer = (
        tokenizer_from_state(checkpoint.read(resume_from)["recipe"]["tokenizer"])
        if resume_from
        else build.make_tokenizer(config.tokenizer, texts)
    )
    acoustic_model = build.make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    corpus = select_corpus(config, readable["train"], readable["dev"], tokenizer, acoustic_model)
    if parallel.is_first():
        report_corpus(corpus, run_dir)
    if facts and parallel.is_first():
        splits = {"train": corpus.train, "dev": corpus.dev}
        examined = [ExaminedSplit(name, utterances[name], facts[name], splits[name]) for name in splits]
        report_findings(find_problems(examined, acoustic_model.features.sample_rate), run_dir)
    if config.init_from is not None and resume_from is None:
        warm_start(config.init_from, acoustic_model, tokenizer)
    datamodule, module = make_modules(config, corpus, tokenizer, acoustic_model, manifests)
    if parallel.is_first():
        write_run_files(config, run_dir, module.recipe)
    if config.find is not None:
        find(config, datamodule, module, tokenizer.vocab_size, run_dir)
        return run_dir, 0
    pictures = dev_pictures(config, corpus.dev, tokenizer, module)
    trainer = make_trainer(config, run_dir, module.training_loss.part_names, pictures)
    try:
        trainer.fit(module, datamodule, ckpt_path=resume_from, weights_only=True)
    except Interrupted:
        logger.info("interrupted; go on with: %s", resume_command(run_dir))
        return run_dir, 130
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        logger.info("stopped; go on from the last finished epoch with: %s", resume_command(run_dir))
        return run_dir, 130
    if parallel.is_first():
        average_best(trainer, run_dir)
    return run_dir, 0


def agree_on_run(config: TrainConfig) -> tuple[Path, Path | None]:
    """Run directory, and the checkpoint to go on from; the first process decides."""
    resume_from, run_dir = None, Path(config.run_dir)
    if parallel.is_first():
        resume_from = find_resume(config)
        run_dir = resume_from.parent.parent if resume_from else make_run_dir(run_dir)
    resumed = parallel.from_first(str(resume_from or ""))
    return Path(parallel.from_first(str(run_dir))), Path(resumed) if resumed else None


# ------------------------------------------------------------------ data


def select_corpus(
    config: TrainConfig,
    train_readable: Selection,
    dev_readable: Selection,
    tokenizer: Tokenizer,
    acoustic_model: AcousticModel,
) -> Corpus:
    """Decide for every utterance whether it is used; names the unknown characters.

    Raises:
        TrainingError: nothing is left to train on or to validate with.
    """
    tokenizer = build.make_target_tokenizer(config.text, tokenizer)
    train_set = select_split(config, "train", train_readable, tokenizer, acoustic_model)
    dev_set = select_split(config, "dev", dev_readable, tokenizer, acoustic_model)
    for name, readable in (("train", train_readable), ("dev", dev_readable)):
        utterances = [
            dataclasses.replace(example.utterance, text=example.text)
            for example in readable.examples
            if tokenizer.unknown_characters(example.text)
        ]
        for line in report_unknown_characters(tokenizer, utterances).lines():
            logger.warning("%s: character unknown to the tokenizer: %s", name, line)
    for name, selection in (("train", train_set), ("dev", dev_set)):
        check_not_empty(config, name, selection)
    return Corpus(train_set, dev_set)


def check_not_empty(config: TrainConfig, split: str, selection: Selection) -> None:
    """Stop with the reasons when no utterance can be used.

    Raises:
        TrainingError: nothing is left.
    """
    if not selection.examples:
        reasons = sorted({exclusion.reason for exclusion in selection.exclusions})[:3]
        raise TrainingError(
            f"no usable utterance in data.{split}={getattr(config.data, split)}; "
            f"left out because: {'; '.join(reasons)}"
        )


def report_corpus(corpus: Corpus, run_dir: Path) -> None:
    """Say how much is used; list what is not, in full in ``excluded.jsonl``."""
    for name, selection in (("train", corpus.train), ("dev", corpus.dev)):
        seconds = sum(example.utterance.duration_seconds for example in selection.examples)
        logger.info("%s: %d utterances, %.2f hours", name, len(selection.examples), seconds / 3600)
        report_exclusions(name, selection.exclusions)
    lines = [
        {"split": name, **dataclasses.asdict(exclusion)}
        for name, selection in (("train", corpus.train), ("dev", corpus.dev))
        for exclusion in selection.exclusions
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (run_dir / EXCLUDED_NAME).write_text(text, encoding="utf-8")


def recorded_problems(
    run_dir: Path, utterances: dict[str, list[Utterance]]
) -> dict[str, list[Problem | None]] | None:
    """What an interrupted run found wrong with the audio, so that it goes on with the same batches.

    None where it left no such record.
    """
    found: dict[tuple[str, str], Problem] = {}
    try:
        for line in (run_dir / EXCLUDED_NAME).read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            if item["problem"] in UNLEARNABLE_AUDIO:
                found[item["split"], item["id"]] = Problem(item["problem"], item["reason"])
    except (OSError, ValueError, KeyError):
        return None
    return {
        split: [found.get((split, utterance.id)) for utterance in utterances[split]] for split in utterances
    }


def report_exclusions(split: str, exclusions: Sequence[Exclusion]) -> None:
    if not exclusions:
        return
    seconds = sum(exclusion.duration_seconds for exclusion in exclusions)
    logger.warning(
        "%s: %d utterances (%.2f hours) left out, all named in excluded.jsonl:",
        split,
        len(exclusions),
        seconds / 3600,
    )
    for exclusion in exclusions[:MAX_LISTED_EXCLUSIONS]:
        logger.warning("  %s: %s", exclusion.id, exclusion.reason)


def report_findings(findings: Sequence[Finding], run_dir: Path) -> None:
    """One line for each check and split that found something; all of it in ``findings.jsonl``."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.check, finding.split].append(finding)
    for (check, split), found in groups.items():
        if found[0].severity != "error":  # those have been left out, and named
            logger.info(
                "%s: %s: %d utterances (%.2f hours): %s, e.g. %s (%s)",
                found[0].severity,
                split,
                len(found),
                sum(finding.duration_seconds for finding in found) / 3600,
                CHECKS[check].meaning,
                found[0].id,
                found[0].detail,
            )
    write_findings(findings, run_dir / FINDINGS_NAME)


# ------------------------------------------------------------------ objects


def make_modules(
    config: TrainConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    acoustic_model: AcousticModel,
    manifests: dict[str, dict[str, str]],
) -> tuple[SpeechDataModule, CtcModule]:
    """The Lightning views of data and model."""
    features = acoustic_model.features
    waveform_augmenter, augment_features = build.make_augmenters(
        build.masks_of_views(config.augment, config.loss), features
    )
    datamodule = SpeechDataModule(
        corpus.train.examples,
        corpus.dev.examples,
        sample_rate=features.sample_rate,
        tokenizer=build.make_target_tokenizer(config.text, tokenizer),
        augment=waveform_augmenter,
        max_batch_utterances=config.data.max_batch_utterances,
        max_batch_seconds=config.data.max_batch_seconds,
        num_workers=config.data.num_workers,
        cache_bytes=int(config.data.cache_audio_gib * 2**30),
        seed=config.seed,
        sortagrad_epochs=config.data.sortagrad_epochs,
        shards_per_window=config.data.shards_per_window,
    )
    batches_per_step = config.trainer.accumulate_batches
    steps_per_epoch = -(-datamodule.num_train_batches // batches_per_step)
    num_steps = steps_per_epoch * config.trainer.max_epochs
    provenance = {
        **describe_environment(),
        "manifests": manifests,
        "choices": [dataclasses.asdict(choice) for choice in choices_on_dev(config, corpus.dev)],
    }
    module = CtcModule(
        acoustic_model=acoustic_model,
        loss=build.make_loss(config.loss, tokenizer.blank_id),
        training_loss=build.make_training_loss(config.loss, config.text, tokenizer),
        decoder=build.make_decoder(config.decoder, tokenizer, acoustic_model.seconds_per_frame),
        blank_id=tokenizer.blank_id,
        augment_features=augment_features,
        make_optimizer=lambda model: optim.make_optimizer(config.optimizer, model),
        make_schedule=lambda optimizer: optim.make_schedule(config.schedule, optimizer, num_steps),
        normalise=build.make_normalise(config.text),
        recipe=checkpoint.describe(config, tokenizer, features, provenance),
        skip_non_finite=config.trainer.non_finite_loss == "skip",
        log_every_steps=config.trainer.log_every_steps,
    )
    num_parameters = sum(parameter.numel() for parameter in acoustic_model.parameters())
    logger.info(
        "model: %.2f M parameters, %d labels, one output frame every %.0f ms; %d batches per epoch",
        num_parameters / 1e6,
        tokenizer.vocab_size,
        1000 * acoustic_model.seconds_per_frame,
        datamodule.num_train_batches,
    )
    return datamodule, module


def warm_start(init_from: str, acoustic_model: AcousticModel, tokenizer: Tokenizer) -> None:
    """Begin with the weights of another run, and say which.

    Raises:
        CheckpointError: there are none, or none that fit.
    """
    path = checkpoint.resolve(init_from)
    content = checkpoint.read(path)
    other = tokenizer_from_state(content["recipe"]["tokenizer"])
    weights = checkpoint.model_weights(content["state_dict"])
    logger.info("weights of %s:", path)
    for line in take_over(weights, other.tokens, acoustic_model, tokenizer).lines():
        logger.info("  %s", line)
    if not checkpoint.same_front_end(acoustic_model.features, content["recipe"]["front_end_fingerprint"]):
        logger.warning(
            "  it was trained on other features than this model will see: it must get used to them"
        )


def describe_manifests(config: TrainConfig) -> dict[str, dict[str, str]]:
    """What the training learns from: the manifests, and the recordings mixed into their audio.

    Raises:
        ConfigError: there are no such recordings; names the option.
    """
    manifests = {
        split: {"path": path, "sha256": manifest_sha256(path)}
        for split, path in (("train", config.data.train), ("dev", config.data.dev))
    }
    sounds = {
        option: {"path": path, "sha256": sounds_sha256(path, f"augment.{option}")}
        for option in ("noise", "reverb_responses")
        if (path := getattr(config.augment, option)) is not None
    }
    return manifests | sounds


def choices_on_dev(config: TrainConfig, dev: Selection) -> list[Choice]:
    """What this training will choose by its results on the dev set."""
    chosen = [BEST_CHECKPOINT]
    if config.trainer.early_stopping_epochs is not None:
        chosen.append(EARLY_STOPPING)
    utterances = [example.utterance for example in dev.examples]
    return [choose_on(what, config.data.dev, utterances) for what in chosen]


def check_accelerator(config: TrainConfig) -> None:
    """Say at once that there is no GPU, before any file is read.

    Raises:
        ConfigError: a GPU is asked for and none is usable, or more than there are.
    """
    if use_gpu(config) and config.trainer.devices > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}, but there are {torch.cuda.device_count()} GPUs here"
        )
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu but no GPU is usable here; use auto or cpu")


def use_gpu(config: TrainConfig) -> bool:
    return torch.cuda.is_available() and config.trainer.accelerator != "cpu"


def use_bf16(config: TrainConfig) -> bool:
    wanted = config.trainer.precision
    return wanted == "bf16" or (wanted == "auto" and has_fast_bf16("cuda" if use_gpu(config) else "cpu"))


FIND_STEPS = 200


def find(
    config: TrainConfig, datamodule: SpeechDataModule, module: CtcModule, vocab_size: int, run_dir: Path
) -> None:
    """Suggest a learning rate or a batch size, with the command line's option to set it."""
    module.to("cuda" if use_gpu(config) else "cpu")
    optimizer = module.make_optimizer(module.acoustic_model)
    if config.find == "learning_rate":
        logger.info("up to %d steps at rates from tiny to huge", FIND_STEPS)
        epochs = -(-FIND_STEPS // datamodule.num_train_batches)
        batches = itertools.chain.from_iterable(datamodule.train_dataloader() for _ in range(epochs))
        rates = finders.find_learning_rate(module, optimizer, batches, FIND_STEPS, use_bf16(config))
        picture = run_dir / "learning_rate.png"
        finders.plot_rates(rates, picture)
        logger.info(
            "the loss falls fastest at %.1e and stops falling at %.1e (%s)",
            rates.suggestion,
            rates.limit,
            picture,
        )
        logger.info("suggested: optimizer.learning_rate=%.1e", rates.suggestion)
        return
    examples = datamodule.train_set.examples
    slowest = min(config.augment.speed_factors)
    durations = [example.utterance.duration_seconds / slowest for example in examples]
    density = max(
        len(datamodule.train_set.target(position)) / example.utterance.duration_seconds
        for position, example in enumerate(examples)
    )
    device = module.device
    gib = config.trainer.memory_gib
    budget = finders.memory_budget(device) if gib is None else int(gib * 2**30)
    measure = finders.measure_step(
        module, optimizer, datamodule.train_set.sample_rate, density, vocab_size, use_bf16(config)
    )
    logger.info("looking for the largest batch within %.1f GiB: a step each", budget / 2**30)
    batch = finders.find_batch_seconds(measure, durations, budget, report_trial)
    logger.info(
        "within %.1f GiB: data.max_batch_seconds=%.0f data.max_batch_utterances=%d",
        budget / 2**30,
        math.floor(batch.max_seconds),
        batch.largest.num_utterances,
    )
    logger.info("that is what fits; small corpora learn better from smaller batches (more steps per epoch)")


def report_trial(padded_seconds: float, peak_bytes: int) -> None:
    size = "out of memory" if peak_bytes == sys.maxsize else f"{peak_bytes / 2**30:.2f} GiB"
    logger.info("  %6.0f padded seconds: %s", padded_seconds, size)


def make_trainer(
    config: TrainConfig, run_dir: Path, loss_parts: Sequence[str] = (), pictures: Sequence[Callback] = ()
) -> pl.Trainer:
    """Lightning's trainer with this program's callbacks, loggers and atomic checkpoints."""
    options = config.trainer
    return pl.Trainer(
        accelerator="gpu" if use_gpu(config) else "cpu",
        devices=parallel.num_local_processes(),
        num_nodes=parallel.num_processes() // parallel.num_local_processes(),
        strategy="ddp" if parallel.num_processes() > 1 else "auto",
        precision="bf16-mixed" if use_bf16(config) else "32-true",
        max_epochs=options.max_epochs,
        gradient_clip_val=options.gradient_clip_norm,
        accumulate_grad_batches=options.accumulate_batches,
        check_val_every_n_epoch=options.validate_every_epochs,
        log_every_n_steps=options.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=options.progress_bar and sys.stderr.isatty(),
        enable_model_summary=False,
        callbacks=[*pictures, *make_callbacks(config, run_dir)],  # pictures before weights are exchanged
        logger=make_loggers(config, run_dir, loss_parts),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run_dir,
        enable_checkpointing=False,  # KeepBestAndLast does it
    )


def make_callbacks(config: TrainConfig, run_dir: Path) -> list[Callback]:
    options = config.trainer
    folder = run_dir / checkpoint.CHECKPOINT_FOLDER
    # The average first: what is saved after a step holds it as that step has left it.
    callbacks: list[Callback] = [] if options.ema_decay is None else [MovingAverage(options.ema_decay)]
    callbacks += [
        EpochLine(options.num_dev_samples, lambda sample: sample_markdown(*sample)),
        CoachLine(options.gradient_clip_norm),
        SaveBetween(folder / checkpoint.LAST, options.save_every_minutes),
    ]
    if options.progress_bar and sys.stderr.isatty():
        callbacks.append(ProgressBar(refresh_rate=5))
    if options.max_minutes is not None:
        callbacks.append(Timer(timedelta(minutes=options.max_minutes), interval="step", verbose=False))
    callbacks.append(ValidateAtEnd())  # after the timer, which stops
    if options.early_stopping_epochs is not None:
        patience = -(-options.early_stopping_epochs // options.validate_every_epochs)
        callbacks.append(
            EarlyStopping("dev/wer", mode="min", patience=patience, check_on_train_epoch_end=False)
        )
    # Last: what it saves holds the state that the others have after the validation.
    if options.profile:
        callbacks.append(StepProfiler())
    best, last = folder / checkpoint.BEST, folder / checkpoint.LAST
    return [*callbacks, KeepBestAndLast(best, last, options.average_best or 0)]


def dev_pictures(
    config: TrainConfig, dev: Selection, tokenizer: Tokenizer, module: CtcModule
) -> list[Callback]:
    """What draws dev utterances in TensorBoard; nothing where that is not wanted."""
    options = config.logger
    if not (options.tensorboard and options.num_pictures and parallel.is_first()):
        return []
    recogniser = Recogniser(module.acoustic_model, tokenizer, module.decoder, module.normalise)

    def draw(example: Example) -> NDArray[np.uint8] | None:
        from asr.report.recording import picture_of_recording  # plotting is slow to load

        waveform = load_utterance(example.utterance, recogniser.sample_rate)
        return picture_of_recording(recogniser, waveform, example.text, example.utterance.id)

    pictures = DevPictures(
        draw,
        dev.examples,
        num_pictures=options.num_pictures,
        every_validations=options.picture_every_validations,
    )
    return [pictures]


def make_loggers(config: TrainConfig, run_dir: Path, loss_parts: Sequence[str]) -> list[Logger]:
    loggers: list[Logger] = []
    if not parallel.is_first():
        return loggers
    if config.logger.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    if config.logger.csv:
        loggers.append(MetricsFile(run_dir / "metrics.csv", loss_parts))
    return loggers


def quieten_libraries() -> None:
    """Lightning's hints do not fit here: workers and samplers are chosen by this program."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


# ------------------------------------------------------------------ run directory and resuming


def make_run_dir(run_dir: Path) -> Path:
    """Create it.

    Raises:
        TrainingError: it cannot be written, or holds a run already.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / checkpoint.CHECKPOINT_FOLDER).mkdir(exist_ok=True)
        probe = run_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(
            f"cannot write the run directory {run_dir} ({error.strerror}); choose another: run_dir=PATH"
        ) from error
    if (run_dir / checkpoint.CHECKPOINT_FOLDER / checkpoint.LAST).exists():
        raise TrainingError(
            f"{run_dir} already holds a run: go on with resume={run_dir}, or choose another run_dir"
        )
    return run_dir


def find_resume(config: TrainConfig) -> Path | None:
    """The ``last.ckpt`` to go on from, or None to start afresh.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: its configuration differs in more than how long and where to train, or its
            manifests have changed.
    """
    wanted = config.resume
    if wanted.lower() in NO_RESUME:
        return None
    if wanted.lower() == "true":
        runs = Path(config.run_dir).parent
        found = sorted(
            runs.glob(f"*/{checkpoint.CHECKPOINT_FOLDER}/{checkpoint.LAST}"), key=lambda p: p.stat().st_mtime
        )
        if not found:
            raise CheckpointError(f"resume=true: no run below {runs} has a checkpoint to go on from")
        path = found[-1]
    else:
        given = Path(wanted).expanduser()
        path = given if given.is_file() else given / checkpoint.CHECKPOINT_FOLDER / checkpoint.LAST
        if not path.is_file():
            raise CheckpointError(f"resume={wanted}: {path} does not exist")
        if path.absolute().parent.name != checkpoint.CHECKPOINT_FOLDER:
            raise CheckpointError(
                f"resume={wanted}: {path} is not in a run directory (…/{checkpoint.CHECKPOINT_FOLDER}/{path.name})"
            )
    path = path.absolute()
    recipe = checkpoint.read(path)["recipe"]
    check_same_recipe(recipe["config"], dataclasses.asdict(config), path)
    check_same_manifests(recipe["provenance"]["manifests"], describe_manifests(config), path)
    return path


MAY_DIFFER_ON_RESUME = (
    *("resume", "run_dir", "init_from", "trainer", "logger", "data.num_workers", "data.cache_audio_gib"),
    "doctor",  # what it found is taken from the run's excluded.jsonl
)
# What a checkpoint holds depends on it.
MUST_AGREE_ON_RESUME = ("trainer.ema_decay",)


def check_same_recipe(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Going on with other data, model or schedule would be neither the old run nor a new one."""
    old, new = flatten(before), flatten(now)
    changed = [
        f"{name}: {old.get(name)} → {new.get(name)}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
        and (name in MUST_AGREE_ON_RESUME or not name.startswith(MAY_DIFFER_ON_RESUME))
    ]
    if changed:
        raise ConfigError(f"cannot go on from {path} with other options ({'; '.join(changed)})")


def check_same_manifests(
    before: dict[str, dict[str, str]], now: dict[str, dict[str, str]], path: Path
) -> None:
    """Batches are planned from the manifests: with others the plan would be neither old nor new."""
    changed = [now[name]["path"] for name in now if before[name]["sha256"] != now[name]["sha256"]]
    if changed:
        raise ConfigError(
            f"cannot go on from {path}: changed since then: {', '.join(changed)}; start a new run instead"
        )


def resume_command(run_dir: Path) -> str:
    """The running command, going on with this run."""
    kept = [
        part
        for part in shlex.split(command_line())
        if not part.startswith(("resume=", "run_dir=", "init_from="))
    ]
    return shlex.join([*kept, f"resume={run_dir}"])


def write_run_files(config: TrainConfig, run_dir: Path, recipe: dict[str, Any]) -> None:
    """What is needed to understand and repeat the run: config, provenance, command."""
    (run_dir / "config.yaml").write_text(yaml.safe_dump(recipe["config"], sort_keys=False), encoding="utf-8")
    provenance = json.dumps(recipe["provenance"], indent=2, ensure_ascii=False)
    (run_dir / "provenance.json").write_text(provenance + "\n", encoding="utf-8")
    with open(run_dir / "command.sh", "a", encoding="utf-8") as file:
        file.write(command_line() + "\n")


def average_best(trainer: pl.Trainer, run_dir: Path) -> None:
    """Write ``average.ckpt`` where several of the best checkpoints have been kept for it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = [
        entry for callback in callbacks if isinstance(callback, KeepBestAndLast) for entry in callback.kept
    ]
    if len(kept) < 2:
        return
    folder = run_dir / checkpoint.CHECKPOINT_FOLDER
    paths = [folder / name for _, name in kept]
    recipe = checkpoint.read(paths[0])["recipe"]
    recipe["provenance"] = recipe["provenance"] | {"average_of": [[name, wer] for wer, name in kept]}
    content = {"state_dict": mean_of_weights(paths), "recipe": recipe}
    write_atomically(content, folder / checkpoint.AVERAGE)
    logger.info("%s: average of %s", checkpoint.AVERAGE, ", ".join(path.name for path in paths))


def finish(config: TrainConfig, run_dir: Path) -> int:
    """Evaluate the best checkpoint on dev, print the table, say where everything is and how to repeat it.

    The evaluation runs through the same code as ``asr.evaluate``, which gives the same report.
    """
    path = checkpoint.resolve(run_dir)
    device = torch.device("cuda" if use_gpu(config) else "cpu")
    recogniser = checkpoint.load_recogniser(path, config.decoder, device)
    identity = checkpoint.identify(path)
    decoder = describe_decoder(config.decoder, decoder_files(config.decoder))
    provenance = checkpoint.describe_evaluation(identity, Path(config.data.dev), decoder)
    utterances = read_split(config.data, "dev")
    dev = EvaluatedData(config.data.dev, provenance["manifest"]["sha256"], utterances, "dev")
    report = evaluate_utterances(
        recogniser,
        utterances,
        max_batch_utterances=config.data.max_batch_utterances,
        max_batch_seconds=config.data.max_batch_seconds,
        provenance=provenance,
        data_use=check_data_use(
            dev, training_choices(identity.provenance), identity.provenance["manifests"]["train"]
        ),
    )
    report, written = write_views(
        report,
        recogniser,
        utterances,
        run_dir,
        html=True,
        num_worst=NUM_WORST,
        num_pictures=NUM_PICTURES,
        audio_mib=AUDIO_MIB,
        max_batch_utterances=config.data.max_batch_utterances,
        max_batch_seconds=config.data.max_batch_seconds,
    )
    console = Console()
    print_report(report, console, num_worst=3)
    for name, value in (
        ("checkpoint", path),
        *(("report", file) for file in written),
        ("repeat with", command_line()),
    ):
        console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
