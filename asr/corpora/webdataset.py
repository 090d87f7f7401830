"""Tar shards in WebDataset's convention: ``KEY.flac`` beside ``KEY.json`` (or ``KEY.txt``), many to an archive.

Writing them (``asr.prepare … shards=1GB``) and reading those of others (``corpus=webdataset``). A manifest
names each recording by its place in the archive (see :func:`asr.audio.member_path`), so that everything that
reads manifests reads shards, one read for each recording, and nothing has to be unpacked.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asr.audio import (
    AUDIO_EXTENSIONS,
    END_TOLERANCE_SECONDS,
    audio_info,
    cut_audio,
    file_of,
    files_below,
    member_path,
)
from asr.corpora.collect import (
    SPLIT_NAMES,
    Entry,
    Exclusion,
    PreparedCorpus,
    Progress,
    Reason,
    collect,
)
from asr.corpora.splits import SplitPlan, with_dev
from asr.corpora.table import USUAL_NAMES
from asr.corpora.written import remove_written
from asr.errors import AudioError, ConfigError, ManifestError
from asr.records import Utterance

SHARD_FOLDER = "shards"
_TEXT_SUFFIXES = (".txt", ".lab")
# Of KEY.json: what the fields of an utterance are called, and what of it no longer holds.
_FIELDS = ("text", "id", "speaker")
_USED = {name for meaning in _FIELDS for name in USUAL_NAMES[meaning]} | {
    "duration",
    "offset",
    "audio_filepath",
}


# ------------------------------------------------------------------ writing


class Packed(NamedTuple):
    """The utterances with their places in shards, and those whose audio could not be read."""

    utterances: list[Utterance]
    excluded: list[Exclusion]


def pack(
    utterances: Sequence[Utterance],
    folder: Path,
    split: str,
    max_bytes: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Packed:
    """Write ``folder/SPLIT-000000.tar`` and so on.

    Training utterances are shuffled, so that each shard is a random part of the corpus. Whole files are
    copied as they are, segments become files of their own. A shard that is begun is not left half-written.

    Args:
        max_bytes: a shard is closed before it would be larger.

    Raises:
        ConfigError: the utterances lie in these very shards.
        ManifestError: the folder cannot be written to.
    """
    own = folder.resolve()
    if any(file_of(utterance.audio_path).resolve().is_relative_to(own) for utterance in utterances):
        raise ConfigError(f"the audio lies in {folder} already: choose another output")
    order = list(range(len(utterances)))
    if split == "train":
        order = np.random.default_rng(seed).permutation(len(utterances)).tolist()
    excluded: list[Exclusion] = []
    remove_written(folder.parent)  # manifests lie beside the folder of their shards
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{split}-*.tar"):
            old.unlink()
        with _ShardWriter(folder, split, max_bytes) as writer:
            for number, position in enumerate(order):
                utterance = utterances[position]
                try:
                    writer.add(f"{number:08d}-{_safe(utterance.id)}", utterance)
                except AudioError as error:
                    where = str(utterance.audio_path)
                    excluded.append(Exclusion(utterance.id, Reason.UNREADABLE_AUDIO, where, str(error)))
                if progress is not None:
                    progress(f"writing {split} shards", number + 1, len(order))
            packed = writer.finished()
    except OSError as error:
        raise ManifestError(
            f"{folder}: shards cannot be written ({error.strerror or error}); choose another output"
        ) from error
    return Packed(packed, excluded)


def _safe(name: str) -> str:
    """Dots end a key in this convention, slashes begin a folder."""
    return re.sub(r"[^\w-]", "_", name)[:80]


class _ShardWriter:
    """One tar after the other, each under a temporary name until it is whole."""

    def __init__(self, folder: Path, split: str, max_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._max_bytes = max_bytes
        self._temporary = folder / f".{split}.{os.getpid()}.tmp"
        self._tar: tarfile.TarFile | None = None
        self._pending: list[tuple[str, Utterance]] = []
        self._done: list[Utterance] = []
        self._num_shards = 0

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *unused: object) -> None:
        if self._tar is not None:
            self._tar.close()
        with suppress(OSError):
            self._temporary.unlink()

    def add(self, key: str, utterance: Utterance) -> None:
        content, suffix, seconds = _content(utterance)
        fields = {
            "id": utterance.id,
            "text": utterance.text,
            "duration": seconds,
            **({"speaker": utterance.speaker} if utterance.speaker else {}),
            **utterance.extra,
        }
        description = json.dumps(fields, ensure_ascii=False).encode()
        if self._tar is not None and self._tar.offset + len(content) + len(description) > self._max_bytes:
            self._close()
        if self._tar is None:
            self._tar = tarfile.open(self._temporary, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        for name, data in ((key + suffix, content), (key + ".json", description)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))
        self._pending.append((key + suffix, replace(utterance, offset_seconds=0.0, duration_seconds=seconds)))

    def finished(self) -> list[Utterance]:
        """All of them, in the order in which they were added."""
        if self._tar is not None:
            self._close()
        return self._done

    def _close(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._tar = None
        path = self._folder / f"{self._split}-{self._num_shards:06d}.tar"
        places = {member.name: member for member in _members(self._temporary)}
        for name, utterance in self._pending:
            place = member_path(path, name, places[name].offset_data, places[name].size)
            self._done.append(replace(utterance, audio_file=str(place)))
        os.replace(self._temporary, path)
        self._pending = []
        self._num_shards += 1


def _content(utterance: Utterance) -> tuple[bytes, str, float]:
    """The bytes of an audio file, its suffix, and its seconds."""
    path = utterance.audio_path
    info = audio_info(path)
    rest = info.duration_seconds - utterance.offset_seconds
    is_whole = utterance.offset_seconds == 0 and utterance.duration_seconds >= rest - END_TOLERANCE_SECONDS
    if is_whole and file_of(path) == path and path.suffix.lower() in AUDIO_EXTENSIONS:
        return path.read_bytes(), path.suffix.lower(), utterance.duration_seconds
    seconds = min(utterance.duration_seconds, rest)
    content = cut_audio(path, offset_seconds=utterance.offset_seconds, duration_seconds=seconds)
    return content, ".wav" if content[:4] == b"RIFF" else ".flac", seconds


def _members(path: Path) -> list[tarfile.TarInfo]:
    """The files of a tar.

    Raises:
        ManifestError: it is none, damaged, or compressed.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return [member for member in tar.getmembers() if member.isfile()]
    except (tarfile.TarError, OSError) as error:
        raise ManifestError(
            f"{path} cannot be read as an uncompressed tar ({error}); unpack a compressed one first"
        ) from error


# ------------------------------------------------------------------ reading


def prepare(
    source: Path,
    output: Path,
    *,
    dev_fraction: float | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    split_by: str = "auto",
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read a tar, or a folder of them; the audio stays where it is.

    Shards whose path holds ``train``, ``dev`` (``valid``) or ``test`` (``eval``) are those splits; without a
    dev split, dev is carved by whole speakers. Text is that of ``KEY.txt``, or ``text`` in ``KEY.json``.

    Raises:
        ManifestError: there are no shards, or one cannot be read.
        ConfigError: options contradict each other.
    """
    plan = SplitPlan(dev_fraction, test_fraction, seed, folds, fold, split_by)
    shards = [source] if source.is_file() else [path for path in files_below(source) if path.suffix == ".tar"]
    if not shards:
        raise ManifestError(f"{source} holds no .tar shards")
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    for number, shard in enumerate(shards, start=1):
        for item in _read_shard(shard.absolute(), _split_of(shard, source)):
            (entries if isinstance(item, Entry) else excluded).append(item)  # type: ignore[arg-type]
        if progress is not None:
            progress("reading shards", number, len(shards))
    collected = collect(entries, progress=progress)
    return with_dev(collected, excluded, plan, str(source))


def _split_of(shard: Path, source: Path) -> str:
    inside = shard.name if source.is_file() else shard.relative_to(source).as_posix()
    words = re.split(r"[\W_]+", inside.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _read_shard(path: Path, split: str) -> Iterator[Entry | Exclusion]:
    """Every sample of a shard: the files of one key, up to the first dot of their name."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(path):
        folder, _, name = member.name.rpartition("/")
        key, dot, suffix = name.partition(".")
        if key:
            samples.setdefault(f"{folder}/{key}" if folder else key, {})[(dot + suffix).lower()] = member
    with path.open("rb") as file:
        for key, files in samples.items():
            where = f"{path}:{key}"
            audio = next((member for suffix, member in files.items() if suffix in AUDIO_EXTENSIONS), None)
            if audio is None:
                yield Exclusion(f"{path.stem}/{key}", Reason.MISSING_AUDIO, where, f"only {', '.join(files)}")
                continue
            try:
                fields = _fields(file, files)
            except ValueError as error:
                yield Exclusion(f"{path.stem}/{key}", Reason.BAD_LINE, where, str(error))
                continue
            yield _entry(path, key, split, audio, fields)


def _fields(file: io.BufferedReader, files: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    """What is known of a sample: its ``.json``, and the text of its ``.txt``."""

    def content(member: tarfile.TarInfo) -> str:
        file.seek(member.offset_data)
        return file.read(member.size).decode("utf-8-sig")

    fields = json.loads(content(files[".json"])) if ".json" in files else {}
    if not isinstance(fields, dict):
        raise ValueError("its .json is no object")
    text = next((content(files[suffix]) for suffix in _TEXT_SUFFIXES if suffix in files), None)
    return fields if text is None else fields | {"text": text.strip()}


def _entry(path: Path, key: str, split: str, audio: tarfile.TarInfo, fields: dict[str, Any]) -> Entry:
    text, own_id, speaker = (
        next((fields[name] for name in USUAL_NAMES[meaning] if fields.get(name) not in (None, "")), None)
        for meaning in _FIELDS
    )
    return Entry(
        id=f"{path.stem}/{key}" if own_id is None else str(own_id),
        where=f"{path}:{key}",
        audio_path=member_path(path, audio.name, audio.offset_data, audio.size),
        text=None if text is None else str(text),
        speaker="" if speaker is None else str(speaker),
        split=split,
        extra={
            name: value
            for name, value in fields.items()
            if name not in _USED and isinstance(value, str | int | float)
        },
    )
