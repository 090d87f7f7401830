"""Recordings to mix into speech or to convolve it with: found once, decoded once, kept within a limit."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from asr.audio import AUDIO_EXTENSIONS, audio_info, files_below, load_audio, seconds_to_samples
from asr.augment.streams import below
from asr.errors import AudioError, ConfigError
from asr.manifest import read_manifest

logger = logging.getLogger(__name__)

# Longer recordings are read in parts of this length, so that an hour of traffic costs no more than a minute.
MAX_PART_SECONDS = 30.0
_MAX_LISTED = 5
_BLOCK_SECONDS = 0.02


class Part(NamedTuple):
    """A stretch of a recording; ``name`` is the path below the folder that was given."""

    name: str
    path: Path
    offset_seconds: float
    duration_seconds: float


class Sound(NamedTuple):
    """``waveform``: ``(samples,)``; ``energy``: ``(blocks,)`` float64, summed from the start to each block's end."""

    waveform: Tensor
    block_samples: int
    energy: Tensor


def list_files(path: str, option: str) -> list[Part]:
    """Audio files below a folder or the lines of a manifest, in a fixed order; a folder's have no length yet.

    Raises:
        ConfigError: it is not there or holds no audio; names the option.
        ManifestError: the manifest is malformed.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        files = sorted(file for file in files_below(given) if file.suffix.lower() in AUDIO_EXTENSIONS)
        if not files:
            raise ConfigError(f"{option}={path} holds no audio files; name a folder (or a manifest) of them")
        return [Part(file.relative_to(given).as_posix(), file, 0.0, 0.0) for file in files]
    if not given.is_file():
        raise ConfigError(f"{option}={path} does not exist; name a folder or a manifest of recordings")
    if given.suffix.lower() in AUDIO_EXTENSIONS:
        return [Part(given.name, given, 0.0, 0.0)]
    return [
        Part(utterance.id, utterance.audio_path, utterance.offset_seconds, utterance.duration_seconds)
        for utterance in read_manifest(given)
    ]


def sounds_sha256(path: str, option: str) -> str:
    """Hash of which recordings ``path`` holds (names, sizes, stretches): others would train another model.

    Raises:
        ConfigError, ManifestError: as :func:`list_files`.
    """
    digest = hashlib.sha256()
    for part in list_files(path, option):
        size = part.path.stat().st_size if part.path.exists() else -1
        digest.update(repr((part.name, size, part.offset_seconds, part.duration_seconds)).encode())
    return digest.hexdigest()


def find_sounds(path: str, option: str) -> list[Part]:
    """What :func:`list_files` finds, with lengths; files that cannot be read are named and left out.

    Raises:
        ConfigError: nothing is left; names the option.
        ManifestError: the manifest is malformed.
    """
    listed = list_files(path, option)
    with ThreadPoolExecutor() as pool:
        measured = list(pool.map(_measured, listed))
    problems = [str(found) for found in measured if isinstance(found, AudioError)]
    sounds = [found for found in measured if isinstance(found, Part)]
    if not sounds:
        raise ConfigError(f"{option}={path}: no recording can be read, such as {problems[0]}")
    if problems:
        logger.warning("%s: %d of %d recordings left out:", option, len(problems), len(listed))
        for problem in problems[:_MAX_LISTED]:
            logger.warning("  %s", problem)
    return sounds


def _measured(part: Part) -> Part | AudioError:
    try:
        info = audio_info(part.path)
    except AudioError as error:
        return error
    left = info.duration_seconds - part.offset_seconds
    if left <= 0:
        return AudioError(
            f"{part.path}: offset {part.offset_seconds:g} s lies outside its {info.duration_seconds:g} s"
        )
    return part._replace(duration_seconds=min(part.duration_seconds or left, left))


class SoundLibrary:
    """Recordings at the model's rate.

    Args:
        sounds: what :func:`find_sounds` found.
        sample_rate: Hz of what is returned.
        cache_bytes: decoded sounds kept in memory (by each loader process), up to this size; what
            does not fit is decoded each time.
    """

    def __init__(self, sounds: Sequence[Part], *, sample_rate: int, cache_bytes: int) -> None:
        self.sounds = sounds
        self.sample_rate = sample_rate
        self._cache: dict[Part, Sound] = {}
        self._cache_bytes_left = cache_bytes
        self._silent: set[Part] = set()

    def draw(self, generator: torch.Generator) -> Part:
        """A recording, each as likely as any other, and a part of it if it is long."""
        sound = self.sounds[below(len(self.sounds), generator)]
        number = below(max(1, round(sound.duration_seconds / MAX_PART_SECONDS)), generator)
        start = number * MAX_PART_SECONDS
        left = sound.duration_seconds - start
        # The rest goes with the last part, which is at most half as long again.
        length = left if left <= 1.5 * MAX_PART_SECONDS else MAX_PART_SECONDS
        return sound._replace(offset_seconds=sound.offset_seconds + start, duration_seconds=length)

    def load(self, part: Part) -> Sound:
        """Decode a part, or take it from memory.

        Raises:
            AudioError: it turned out to be damaged; names the file.
        """
        sound = self._cache.get(part)
        if sound is None:
            waveform = load_audio(
                part.path,
                self.sample_rate,
                offset_seconds=part.offset_seconds,
                duration_seconds=part.duration_seconds,
            )
            sound = _with_energy(waveform, max(1, seconds_to_samples(_BLOCK_SECONDS, self.sample_rate)))
            num_bytes = sound.waveform.nbytes + sound.energy.nbytes
            if num_bytes <= self._cache_bytes_left:
                self._cache[part] = sound
                self._cache_bytes_left -= num_bytes
        if sound.energy[-1] == 0 and part not in self._silent:
            self._silent.add(part)
            logger.warning("%s is silent: speech stays as it is where it is drawn", part.path)
        return sound


def _with_energy(waveform: Tensor, block_samples: int) -> Sound:
    num_blocks = -(-len(waveform) // block_samples)
    padded = torch.nn.functional.pad(waveform, (0, num_blocks * block_samples - len(waveform)))
    powers = padded.view(num_blocks, block_samples).double().square().sum(dim=1)
    return Sound(waveform, block_samples, powers.cumsum(dim=0))
