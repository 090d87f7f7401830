"""What a checkpoint holds beside weights, and loading one safely.

A checkpoint is Lightning's file with one more entry, ``recipe``: schema version, configuration as
plain data, tokenizer, provenance and a fingerprint of the front-end. It is read with
``weights_only=True`` (tensors and plain data; nothing in it can run code) and its configuration
can only name the kinds that this version knows.
"""

import dataclasses
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr.build import make_acoustic_model, make_decoder, make_normalise
from asr.config import DecoderConfig, TextConfig, TrainConfig, from_plain, from_plain_kind
from asr.errors import AsrError, CheckpointError
from asr.features import SpectralFeatures
from asr.manifest import manifest_sha256
from asr.models.acoustic import MODEL_PREFIX
from asr.provenance import describe_environment
from asr.recogniser import Recogniser
from asr.tokenizer import Tokenizer, tokenizer_from_state

SCHEMA_VERSION = 1
CHECKPOINT_FOLDER = "checkpoints"
BEST, LAST, AVERAGE = "best.ckpt", "last.ckpt", "average.ckpt"


def describe(
    config: TrainConfig, tokenizer: Tokenizer, features: SpectralFeatures, provenance: dict[str, Any]
) -> dict[str, Any]:
    """The ``recipe`` entry: all that is needed to rebuild the recogniser, as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "config": dataclasses.asdict(config),
        "tokenizer": tokenizer.state(),
        "front_end_fingerprint": front_end_fingerprint(features),
        "provenance": provenance,
    }


def resolve(path: str | Path) -> Path:
    """The checkpoint file meant by a path: itself, or that of a run directory.

    That is the average of the best ones where the run made it, else the best, else the last.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    candidates = [
        path / folder / name for folder in (CHECKPOINT_FOLDER, "") for name in (AVERAGE, BEST, LAST)
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise CheckpointError(f"{path} holds no {BEST} or {LAST}: give a .ckpt file or a run directory")
    raise CheckpointError(f"{path} does not exist: give a .ckpt file or a run directory")


def home(path: Path) -> Path:
    """The run directory of a checkpoint file, or the folder of one that is in no run directory."""
    return path.parent.parent if path.parent.name == CHECKPOINT_FOLDER else path.parent


def read(path: Path) -> dict[str, Any]:
    """The whole content of a checkpoint, on the CPU.

    Raises:
        CheckpointError: damaged, not a checkpoint, unsafe, or of another schema version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise a dozen types for damaged files
        raise CheckpointError(
            f"{path} is damaged or is not a checkpoint of this program ({_why_unreadable(error)})"
        ) from error
    recipe = content.get("recipe") if isinstance(content, dict) else None
    if not isinstance(recipe, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a checkpoint of this program: it has no recipe entry")
    version = recipe.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} was written with checkpoint schema {version}, this version reads {SCHEMA_VERSION}: "
            "use the version of the program that wrote it, or train again"
        )
    return content


def _why_unreadable(error: Exception) -> str:
    """In one line, without torch's advice to load whatever it is without care."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" of the type {found[1]}" if found else ""
        return f"it holds an object{what} beside tensors and plain data, or is no such file; nothing of it was run"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def load_recogniser(path: str | Path, decoder: DecoderConfig, device: torch.device) -> Recogniser:
    """Rebuild the recogniser of a checkpoint file or run directory.

    Raises:
        CheckpointError: see :func:`read`; also when weights and configuration do not fit together or
            the front-end computes other features than it did in training.
    """
    path = resolve(path)
    content = read(path)
    recipe = content["recipe"]
    try:
        config = recipe["config"]
        tokenizer = tokenizer_from_state(recipe["tokenizer"])
        features = from_plain_kind("features", config["features"], str(path))
        model = from_plain_kind("model", config["model"], str(path))
        text = from_plain(TextConfig, config["text"], str(path))
        acoustic_model = make_acoustic_model(features, model, tokenizer.vocab_size)
        acoustic_model.load_state_dict(model_weights(content["state_dict"]))
    except AsrError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{path}: its parts do not fit together ({reason})") from error
    check_fingerprint(path, acoustic_model.features, recipe.get("front_end_fingerprint"))
    acoustic_model.eval().to(device)
    return Recogniser(
        acoustic_model=acoustic_model,
        tokenizer=tokenizer,
        decoder=make_decoder(decoder, tokenizer, acoustic_model.seconds_per_frame),
        normalise=make_normalise(text),
        wildcard=text.wildcard,
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """A checkpoint file, its tokenizer's fingerprint, and where it comes from."""

    path: str
    sha256: str
    tokenizer: str
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]


def identify(path: Path) -> Identity:
    """Read who a checkpoint is.

    Raises:
        CheckpointError: see :func:`read`.
    """
    recipe = read(path)["recipe"]
    try:
        fingerprint = tokenizer_from_state(recipe["tokenizer"]).fingerprint
        return Identity(str(path), manifest_sha256(path), fingerprint, recipe["provenance"], recipe["config"])
    except (AsrError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its recipe is incomplete ({error})") from error


def describe_evaluation(
    identity: Identity, manifest: Path, decoder_description: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the figures of an evaluation come from: checkpoint, manifest, decoder, training, environment."""
    training = {name: value for name, value in identity.provenance.items() if name != "choices"}
    return {
        **describe_environment(),
        "checkpoint": {"path": identity.path, "sha256": identity.sha256},
        "tokenizer_sha256": identity.tokenizer,
        "manifest": {"path": str(manifest), "sha256": manifest_sha256(manifest)},
        **decoder_description,
        "training": training,
        "training_config": identity.config,
    }


def model_weights(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The acoustic model's part of a training state."""
    return {
        name.removeprefix(MODEL_PREFIX): weight
        for name, weight in state_dict.items()
        if name.startswith(MODEL_PREFIX)
    }


def front_end_fingerprint(features: SpectralFeatures) -> list[float]:
    """Mean feature of every eighth frame of a fixed chirp: tells when the front-end has drifted."""
    num_samples = features.sample_rate
    time = torch.arange(num_samples, dtype=torch.float64) / features.sample_rate
    chirp = 0.3 * torch.sin(2 * math.pi * (100 + 0.2 * features.sample_rate * time) * time)
    was_training = features.training
    features.eval()
    with torch.no_grad():
        frames = features(chirp.float().unsqueeze(0), torch.tensor([num_samples])).features[0]
    features.train(was_training)
    bins = frames.square().cumsum(dim=1)  # the cumulative sum makes every bin count
    return [round(float(value), 4) for value in bins[::8].mean(dim=1)]


def same_front_end(features: SpectralFeatures, fingerprint: Any) -> bool:
    """Whether these are the features that a checkpoint's fingerprint is of."""
    found = front_end_fingerprint(features)
    fits = isinstance(fingerprint, list) and len(fingerprint) == len(found)
    fits = fits and all(isinstance(value, int | float) for value in fingerprint)
    return fits and np.allclose(fingerprint, found, rtol=1e-2, atol=1e-2)


def check_fingerprint(path: Path, features: SpectralFeatures, expected: Any) -> None:
    """Refuse a checkpoint whose features are not the ones computed here.

    Raises:
        CheckpointError: the front-end has drifted.
    """
    if not same_front_end(features, expected):
        raise CheckpointError(
            f"{path}: this version computes other features than the checkpoint was trained with, so its output "
            "would be wrong; use the version of the program (and of torchaudio) that wrote it"
        )
