"""``python -m asr.train``: manifests → trained recogniser, report, everything in one run directory."""

import contextlib
import dataclasses
import itertools
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console

from asr import build, checkpoint, finders, optim, parallel
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
    StopEarly,
    TimeLimit,
    ValidateAtEnd,
    forget_metrics_after,
    write_atomically,
)
from asr.cli import INTERRUPTED, launch, setup_logging
from asr.config import NO_RESUME, TrainConfig
from asr.datamodule import SpeechDataModule
from asr.dataset import Example, Selection, load_utterance
from asr.dev_pictures import DevPictures
from asr.device import has_fast_bf16
from asr.errors import ConfigError
from asr.evaluation import evaluate_utterances, write_views
from asr.firewall import (
    BEST_CHECKPOINT,
    EARLY_STOPPING,
    Choice,
    EvaluatedData,
    check_data_use,
    choose_on,
    training_choices,
    training_manifests,
)
from asr.models.acoustic import AcousticModel
from asr.module import CtcModule
from asr.profiling import StepProfiler
from asr.provenance import command_line, describe_environment
from asr.recogniser import Recogniser
from asr.records import Utterance
from asr.report.terminal import print_report, sample_markdown
from asr.runs import (
    describe_manifests,
    find_resume,
    held,
    make_run_dir,
    resume_command,
    write_run_files,
)
from asr.selection import check_dev_is_complete, read_split
from asr.tokenizer import Tokenizer, tokenizer_from_state
from asr.training_corpus import Corpus, look_at_audio, report_corpus, report_findings, select_corpus
from asr.tuned_decoder import decoder_files
from asr.tuned_decoder import describe as describe_decoder
from asr.warm_start import take_over

logger = logging.getLogger("asr.train")  # __name__ is "__main__" under python -m

METRICS_NAME = "metrics.csv"
# The report that a training ends with; asr.evaluate can make a larger one.
NUM_WORST = 10
NUM_PICTURES = 12
AUDIO_MIB = 2.0


def main() -> int:
    """Entry point; returns the exit code."""
    return launch(train, config_name="train", schema=TrainConfig)


@dataclass(frozen=True)
class Origin:
    """What the weights that a training begins with have learned from, and what was chosen for them."""

    choices: list[Choice] = field(default_factory=list)
    manifests: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of_resumed(cls, recipe: dict[str, Any]) -> "Origin":
        provenance = recipe["provenance"]
        return cls(training_choices(provenance), provenance.get("learned_before", []))

    @classmethod
    def of_other(cls, recipe: dict[str, Any], path: Path) -> "Origin":
        provenance = recipe["provenance"]
        choices = training_choices(provenance, is_last=path.name == checkpoint.LAST)
        return cls([choice.of_earlier_training() for choice in choices], training_manifests(provenance))


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
    if config.init_from is not None and config.resume.lower() in NO_RESUME:
        checkpoint.resolve(config.init_from)
    return utterances


@dataclass(frozen=True)
class Attempt:
    """A training that begins in ``run_dir`` or, where ``before`` is the checkpoint it has left, goes on there."""

    run_dir: Path
    resume_from: Path | None
    before: dict[str, Any] | None


def fit(config: TrainConfig) -> tuple[Path, int]:
    """The run directory of the training, and the exit code; in every process that takes part."""
    utterances = read_inputs(config)
    manifests = describe_manifests(config)
    attempt = agree_on_run(config)
    with held(attempt.run_dir) if parallel.is_first() else contextlib.nullcontext():
        return attempt.run_dir, fit_in(attempt, config, utterances, manifests)


def fit_in(
    attempt: Attempt,
    config: TrainConfig,
    utterances: dict[str, list[Utterance]],
    manifests: dict[str, dict[str, str]],
) -> int:
    """Train in a run directory that no other process writes to; returns the exit code."""
    run_dir, before = attempt.run_dir, attempt.before
    begin_process(config, run_dir)
    readable, facts = look_at_audio(config, utterances, None if before is None else run_dir)
    if before is None:
        texts = [build.known_text(config.text, example.text) for example in readable["train"].examples]
        tokenizer = build.make_tokenizer(config.tokenizer, texts)
    else:
        tokenizer = tokenizer_from_state(before["recipe"]["tokenizer"])
        config = dataclasses.replace(config, init_from=before["recipe"]["config"].get("init_from"))
    acoustic_model = build.make_acoustic_model(config.features, config.model, tokenizer.vocab_size)
    corpus = select_corpus(config, readable["train"], readable["dev"], tokenizer, acoustic_model)
    if parallel.is_first():
        report_corpus(corpus, run_dir)
        report_findings(corpus, utterances, facts, acoustic_model.features.sample_rate, run_dir)
    origin = begin_weights(config, before, acoustic_model, tokenizer)
    datamodule, module = make_modules(config, corpus, tokenizer, acoustic_model, manifests, origin)
    if parallel.is_first():
        write_run_files(config, run_dir, module.recipe)
        forget_metrics_after(run_dir / METRICS_NAME, 0 if before is None else before["global_step"])
    if config.find is not None:
        find(config, datamodule, module, tokenizer.vocab_size, run_dir)
        return 0
    pictures = dev_pictures(config, corpus.dev, tokenizer, module)
    trainer = make_trainer(config, run_dir, module.training_loss.part_names, pictures)
    try:
        trainer.fit(module, datamodule, ckpt_path=attempt.resume_from, weights_only=True)
    except Interrupted:
        logger.info("interrupted; go on with: %s", resume_command(run_dir))
        return INTERRUPTED
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        logger.info("stopped; go on from the last finished epoch with: %s", resume_command(run_dir))
        return INTERRUPTED
    if parallel.is_first():
        for reason in why_stopped(trainer, config):
            logger.info("stopped: %s", reason)
        average_best(trainer, run_dir)
    return 0


def agree_on_run(config: TrainConfig) -> Attempt:
    """Where to train and what to go on from; the first process decides."""
    resume_from, run_dir = None, Path(config.run_dir)
    if parallel.is_first():
        resume_from = find_resume(config)
        run_dir = resume_from.parent.parent if resume_from else make_run_dir(run_dir)
    run_dir, resumed = Path(parallel.from_first(str(run_dir))), parallel.from_first(str(resume_from or ""))
    return (
        Attempt(run_dir, Path(resumed), checkpoint.read(Path(resumed)))
        if resumed
        else Attempt(run_dir, None, None)
    )


def begin_process(config: TrainConfig, run_dir: Path) -> None:
    """Logging, threads and random numbers."""
    setup_logging(run_dir / "train.log" if parallel.is_first() else None)
    quieten_libraries()
    if not parallel.is_first():
        logging.getLogger("asr").setLevel(logging.ERROR)
    logger.info("run directory: %s", run_dir)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    # TF32's 10 bits of mantissa would be a surprise beside precision=32's 23, and are none beside bfloat16's 7.
    torch.backends.cudnn.allow_tf32 = use_bf16(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)


# ------------------------------------------------------------------ objects


def make_modules(
    config: TrainConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    acoustic_model: AcousticModel,
    manifests: dict[str, dict[str, str]],
    origin: Origin,
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
    choices = {
        (choice.what, choice.sha256): choice
        for choice in [*origin.choices, *choices_on_dev(config, corpus.dev)]
    }
    provenance = {
        **describe_environment(),
        "manifests": manifests,
        "learned_before": origin.manifests,
        "choices": [dataclasses.asdict(choice) for choice in choices.values()],
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


def begin_weights(
    config: TrainConfig, before: dict[str, Any] | None, acoustic_model: AcousticModel, tokenizer: Tokenizer
) -> Origin:
    """What the weights come from: the run's own checkpoint (which Lightning loads), another's, or nothing."""
    if before is not None:
        planned = before["recipe"]["config"]["trainer"]["max_epochs"]
        if planned != config.trainer.max_epochs:
            logger.info(
                "the learning-rate schedule, which spanned %d epochs, now spans %d: the rate goes on from there",
                planned,
                config.trainer.max_epochs,
            )
        return Origin.of_resumed(before["recipe"])
    if config.init_from is not None:
        return warm_start(config.init_from, acoustic_model, tokenizer)
    return Origin()


def warm_start(init_from: str, acoustic_model: AcousticModel, tokenizer: Tokenizer) -> Origin:
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
    return Origin.of_other(content["recipe"], path)


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
        rates = finders.find_learning_rate(
            module,
            optimizer,
            batches,
            FIND_STEPS,
            autocast=use_bf16(config),
            clip_norm=config.trainer.gradient_clip_norm,
        )
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
    limits = batch_limits(batch.max_seconds, config.data.max_seconds)
    logger.info(
        "within %.1f GiB: %s data.max_batch_utterances=%d",
        budget / 2**30,
        limits,
        batch.largest.num_utterances,
    )
    logger.info("that is what fits; small corpora learn better from smaller batches (more steps per epoch)")


def batch_limits(max_batch_seconds: float, max_seconds: float) -> str:
    """Options for batches of so many seconds; no utterance may be longer than a batch."""
    if math.floor(max_batch_seconds) >= max_seconds:
        return f"data.max_batch_seconds={math.floor(max_batch_seconds)}"
    seconds = math.ceil(100 * max_batch_seconds) / 100  # not below the longest utterance
    return f"data.max_batch_seconds={seconds:g} data.max_seconds={seconds:g}"


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
        callbacks.append(TimeLimit(timedelta(minutes=options.max_minutes), interval="step", verbose=False))
    callbacks.append(ValidateAtEnd(options.validate_every_epochs))  # after the timer, which stops
    if options.early_stopping_epochs is not None:
        patience = -(-options.early_stopping_epochs // options.validate_every_epochs)
        callbacks.append(StopEarly("dev/wer", mode="min", patience=patience, check_on_train_epoch_end=False))
    # Last: what it saves holds the state that the others have after the validation.
    if options.profile:
        callbacks.append(StepProfiler())
    best, last, average = (folder / name for name in (checkpoint.BEST, checkpoint.LAST, checkpoint.AVERAGE))
    return [*callbacks, KeepBestAndLast(best, last, average, options.average_best or 0)]


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
        loggers.append(MetricsFile(run_dir / METRICS_NAME, loss_parts))
    return loggers


def quieten_libraries() -> None:
    """Lightning's hints do not fit here: workers and samplers are chosen by this program."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


# ------------------------------------------------------------------ the end


def why_stopped(trainer: pl.Trainer, config: TrainConfig) -> Iterator[str]:
    """The reasons for which a training ended before its last epoch."""
    if trainer.current_epoch >= config.trainer.max_epochs:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StopEarly) and callback.has_stopped:
            yield f"no lower dev WER in {config.trainer.early_stopping_epochs} epochs"
        if isinstance(callback, TimeLimit) and callback.is_over:
            yield f"trainer.max_minutes={config.trainer.max_minutes:g} are over"


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
    if missing := [path.name for path in paths if not path.is_file()]:
        logger.warning("%s is not made: %s are gone", checkpoint.AVERAGE, ", ".join(missing))
        return
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
    choices = training_choices(identity.provenance, is_last=path.name == checkpoint.LAST)
    dev = EvaluatedData(config.data.dev, provenance["manifest"]["sha256"], utterances, "dev")
    report = evaluate_utterances(
        recogniser,
        utterances,
        max_batch_utterances=config.data.max_batch_utterances,
        max_batch_seconds=config.data.max_batch_seconds,
        provenance=provenance,
        data_use=check_data_use(dev, choices, training_manifests(identity.provenance)),
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
