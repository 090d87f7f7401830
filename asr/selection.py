"""Manifests → the utterances that are used and those that are not, for training and the doctor alike."""

import logging
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from asr.audio import seconds_to_samples
from asr.config import DataConfig, DoctorOptions, TrainConfig
from asr.dataset import Example, Selection, select_learnable, select_scorable, unlearnable_reason
from asr.errors import ConfigError, ManifestError
from asr.inspection import (
    UNLEARNABLE_AUDIO,
    UNUSABLE_AUDIO,
    AudioFacts,
    audio_fingerprint,
    inspect_audio,
    recall,
    remember,
)
from asr.manifest import manifest_sha256, read_manifest
from asr.models.acoustic import AcousticModel
from asr.records import Problem, Utterance
from asr.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def read_split(data: DataConfig, split: str) -> list[Utterance]:
    """The utterances of a split.

    Raises:
        ManifestError: missing (with the command that makes it), empty or malformed.
    """
    path = Path(getattr(data, split))
    if not path.exists():
        raise ManifestError(f"{path} is not there; make it with: {data.prepare_hint}")
    return read_manifest(path)


def check_dev_is_complete(config: TrainConfig, utterances: Sequence[Utterance]) -> None:
    """A word error rate against unknown words would mean nothing.

    Raises:
        ManifestError: a dev transcript has a wildcard.
    """
    wildcard = config.text.wildcard
    partial = [
        utterance.id for utterance in utterances if wildcard is not None and wildcard in utterance.text
    ]
    if partial:
        raise ManifestError(
            f"{len(partial)} transcripts of data.dev={config.data.dev} have the wildcard {wildcard!r} for missing "
            f"words (first: {partial[0]}): only training can use them, move them to data.train"
        )


def find_manifest(data: DataConfig, split: str, manifest: str | None) -> Path:
    """The manifest meant by ``manifest``, else by ``data`` and ``split``.

    Raises:
        ConfigError: the data has no such split.
        ManifestError: it does not exist; says how to make it.
    """
    if manifest is not None:
        return Path(manifest)
    named = getattr(data, split)
    if named is None:
        raise ConfigError(f"split={split}: data.{split} is not set for data={data.name}")
    if not Path(named).exists():
        raise ManifestError(f"{named} is not there; make it with: {data.prepare_hint}")
    return Path(named)


def claimed_split(data: DataConfig, split: str, manifest: str | None) -> str:
    """What a manifest is evaluated as; empty for one that claims nothing.

    By ``split=test``, by ``test`` in its name, or by being the manifest of one of the data's splits.
    """
    if manifest is None:
        return split
    if split == "test" or "test" in re.split(r"[\W_\d]+", Path(manifest).stem.lower()):
        return "test"
    for name in ("test", "dev", "train"):
        named = getattr(data, name)
        is_there = named is not None and Path(named).is_file()
        if is_there and manifest_sha256(named) == manifest_sha256(manifest):
            return name
    return ""


def inspect_splits(
    options: DoctorOptions, data: DataConfig, utterances: Mapping[str, Sequence[Utterance]]
) -> dict[str, AudioFacts | None]:
    """Look at the audio of every split as deeply as ``options`` say; says what it does.

    What was found is remembered and used again until the manifest or an audio file changes.
    Values are None with ``depth=off``.
    """
    if options.depth == "off":
        return dict.fromkeys(utterances)
    hours = math.fsum(u.duration_seconds for split in utterances.values() for u in split) / 3600
    decode = options.depth == "full" or (options.depth == "auto" and hours <= options.auto_hours)
    facts: dict[str, AudioFacts | None] = {}
    for split in utterances:
        facts[split] = _inspect_split(options, Path(getattr(data, split)), utterances[split], decode)
    if options.depth == "auto" and not all(
        known is not None and known.is_decoded for known in facts.values()
    ):
        logger.info(
            "doctor: %.0f hours are more than doctor.auto_hours=%g: only file headers were read; "
            "doctor.depth=full, or python -m asr.doctor before training, decodes all of it once",
            hours,
            options.auto_hours,
        )
    return facts


def _inspect_split(
    options: DoctorOptions, manifest: Path, utterances: Sequence[Utterance], decode: bool
) -> AudioFacts:
    cache = None if options.cache is None else Path(options.cache).expanduser()
    fingerprint = "" if cache is None else audio_fingerprint(utterances, manifest_sha256(manifest))
    if cache is not None:
        known = recall(cache, fingerprint, decoded=True) if options.depth != "quick" else None
        if known is None and not decode:
            known = recall(cache, fingerprint, decoded=False)
        if known is not None:
            logger.info("doctor: %s: audio unchanged since it was looked at", manifest)
            return known
    hours = math.fsum(utterance.duration_seconds for utterance in utterances) / 3600
    what = f"decoding all audio ({hours:.1f} hours)" if decode else "reading file headers"
    logger.info("doctor: %s: %s of %d utterances", manifest, what, len(utterances))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("looking at audio", total=len(utterances))
        facts = inspect_audio(
            utterances,
            decode=decode,
            on_progress=lambda num_done: bar.update(task, completed=num_done),
        )
    if cache is not None and not remember(cache, fingerprint, facts):
        logger.info("doctor: %s cannot be written: the next start looks at the audio again", cache)
    return facts


def unusable(split: str, utterances: Sequence[Utterance], facts: AudioFacts | None) -> list[Problem | None]:
    """For each utterance why its audio is of no use in this split, or None."""
    if facts is None:
        return [None] * len(utterances)
    return facts.excluding(UNLEARNABLE_AUDIO if split == "train" else UNUSABLE_AUDIO)


def select_split(
    config: TrainConfig, split: str, readable: Selection, tokenizer: Tokenizer, acoustic_model: AcousticModel
) -> Selection:
    """Train: what can be learned from, at the fastest speed perturbation. Others: all that can be scored."""
    speed = max(config.augment.speed_factors) if split == "train" else 1.0
    reasons = unlearnable(config.data, tokenizer, acoustic_model, speed, readable.examples)
    select = select_learnable if split == "train" else select_scorable
    return select(readable, reasons)


def unlearnable(
    data: DataConfig,
    tokenizer: Tokenizer,
    acoustic_model: AcousticModel,
    speed: float,
    examples: Sequence[Example],
) -> Callable[[Example], Problem | None]:
    """Why one of ``examples`` cannot be learned from at this speed perturbation, or None."""
    rate = acoustic_model.features.sample_rate
    durations = sorted({example.utterance.duration_seconds for example in examples})
    num_samples = [math.ceil(seconds_to_samples(seconds, rate) / speed) for seconds in durations]
    num_frames = dict(
        zip(durations, acoustic_model.output_lengths(torch.tensor(num_samples)).tolist(), strict=True)
    )

    def reason(example: Example) -> Problem | None:
        return unlearnable_reason(
            example, tokenizer, data.min_seconds, data.max_seconds, num_frames.__getitem__
        )

    return reason
