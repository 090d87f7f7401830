"""From what a corpus *lists* to utterances that can be used, with nothing lost on the way.

Every corpus reader turns its official layout into :class:`Entry` records and says which audio
files no transcript mentions; :func:`collect` opens each file, normalises each text, and returns
every entry either as an :class:`~asr.records.Utterance` or as an :class:`Exclusion` with its reason.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from asr.audio import AUDIO_EXTENSIONS, END_TOLERANCE_SECONDS, AudioInfo, audio_info, file_of, files_below
from asr.errors import AudioError, ManifestError
from asr.records import Utterance
from asr.text import normalise

SPLITS = ("train", "dev", "test")
"""The order in which splits are written and shown."""

SPLIT_NAMES = {
    "train": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
    "eval": "test",
}
"""What splits are called in names of files and folders."""

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(stage, num_done, num_total)``; ``num_total`` is ``None`` while unknown."""

# Where one recording is there in several formats the first of these is taken.
_PREFERRED_FORMATS = (".flac", ".wav", ".sph")


class Reason(str, Enum):
    """Why something that a corpus holds is in no manifest."""

    MISSING_AUDIO = "missing audio"
    UNREADABLE_AUDIO = "unreadable audio"
    MISSING_TRANSCRIPT = "missing transcript"
    EMPTY_TEXT = "empty text"
    DUPLICATE_ID = "duplicate id"
    BAD_LINE = "bad line"
    BAD_SEGMENT = "bad offset or duration"
    LEFT_OVER = "left over"


@dataclass(frozen=True, slots=True)
class Entry:
    """One utterance as its corpus lists it, before anything about it is believed.

    ``where`` names the file (and line) that lists it. ``duration_seconds`` is ``None`` when the
    entry means the rest of the file. ``split`` is empty when the corpus fixes none.
    """

    id: str
    where: str
    audio_path: Path
    text: str | None
    speaker: str = ""
    offset_seconds: float = 0.0
    duration_seconds: float | None = None
    split: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Something that is in no manifest: what it is, why, and the file or line it comes from."""

    id: str
    reason: Reason
    where: str
    detail: str = ""


@dataclass(slots=True)
class Collected:
    """Usable utterances by official split (``""`` where the corpus fixes none), and all the rest."""

    utterances: dict[str, list[Utterance]]
    excluded: list[Exclusion]

    def of(self, split: str) -> list[Utterance]:
        """The usable utterances of ``split``; an empty list when it has none."""
        return self.utterances.get(split, [])


@dataclass(slots=True)
class PreparedCorpus:
    """What a corpus reader returns.

    ``splits`` maps ``train``, ``dev`` and ``test`` to utterances; a missing or empty one gets no
    manifest. ``parts`` are named subsets of those splits that get a manifest of their own as well.
    ``notes`` are sentences that the user has to read.
    """

    splits: dict[str, list[Utterance]]
    excluded: list[Exclusion]
    notes: list[str] = field(default_factory=list)
    parts: dict[str, list[Utterance]] = field(default_factory=dict)


def collect(entries: Sequence[Entry], *, progress: Progress | None = None) -> Collected:
    """Check every entry against its audio; each ends up usable or excluded, in the order listed."""
    collected = Collected({}, [])
    first_listing: dict[str, str] = {}
    for num_done, entry in enumerate(entries, start=1):
        outcome: Utterance | Exclusion
        if entry.id in first_listing:
            detail = f"already listed at {first_listing[entry.id]}"
            outcome = Exclusion(entry.id, Reason.DUPLICATE_ID, entry.where, detail)
        else:
            outcome = _check(entry)
        if isinstance(outcome, Exclusion):
            collected.excluded.append(outcome)
        else:
            first_listing[entry.id] = entry.where
            collected.utterances.setdefault(entry.split, []).append(outcome)
        if progress is not None:
            progress("reading audio headers", num_done, len(entries))
    return collected


def _check(entry: Entry) -> Utterance | Exclusion:
    def excluded(reason: Reason, detail: str = "") -> Exclusion:
        return Exclusion(entry.id, reason, entry.where, detail)

    if entry.text is None:
        return excluded(Reason.MISSING_TRANSCRIPT)
    text = normalise(entry.text)
    if not text:
        return excluded(Reason.EMPTY_TEXT, f"transcript is {entry.text!r}" if entry.text.strip() else "")
    if not file_of(entry.audio_path).is_file():
        return excluded(Reason.MISSING_AUDIO, f"no file {entry.audio_path}")
    try:
        info = audio_info(entry.audio_path)
    except AudioError as error:
        return excluded(Reason.UNREADABLE_AUDIO, str(error))
    problem = _segment_problem(entry, info)
    if problem:
        return excluded(Reason.BAD_SEGMENT, problem)
    rest = info.duration_seconds - entry.offset_seconds
    asked = rest if entry.duration_seconds is None else entry.duration_seconds
    # A listed duration within the tolerance of the whole file is that file's rounded length.
    whole = abs(asked - rest) <= END_TOLERANCE_SECONDS
    return Utterance(
        id=entry.id,
        audio_file=str(entry.audio_path.absolute()),
        duration_seconds=rest if whole else asked,
        text=text,
        speaker=entry.speaker,
        offset_seconds=entry.offset_seconds,
        extra=entry.extra,
    )


def _segment_problem(entry: Entry, info: AudioInfo) -> str:
    """What is wrong with the listed stretch of audio; empty when nothing is."""
    offset, duration = entry.offset_seconds, entry.duration_seconds
    if not math.isfinite(offset) or offset < 0:
        return f"offset {offset:g} s is not a time in the file"
    if duration is not None and (not math.isfinite(duration) or duration <= 0):
        return f"duration {duration:g} s is not positive"
    end = offset + (duration or 0.0)
    if offset >= info.duration_seconds or end > info.duration_seconds + END_TOLERANCE_SECONDS:
        return f"listed up to {end:.2f} s, but {entry.audio_path} is {info.duration_seconds:.2f} s long"
    return ""


@dataclass(frozen=True, slots=True)
class AudioIndex:
    """All audio files under a folder, found by their path without suffix relative to it."""

    root: Path
    paths_by_stem: Mapping[str, Sequence[Path]]

    def find(self, stem: str) -> Path | None:
        """The file for ``stem``, or ``None``; of several formats FLAC, then WAV, then the others."""
        paths = self.paths_by_stem.get(stem)
        return paths[0] if paths else None

    def unlisted(self, listed_stems: Iterable[str], detail: str) -> list[Exclusion]:
        """An exclusion for each recording that ``listed_stems`` leaves out."""
        left_out = sorted(self.paths_by_stem.keys() - set(listed_stems))
        return [
            Exclusion(stem, Reason.MISSING_TRANSCRIPT, str(self.paths_by_stem[stem][0]), detail)
            for stem in left_out
        ]


def index_audio(root: Path, further_suffixes: Collection[str] = ()) -> AudioIndex:
    """Index every audio file below ``root``, by suffix; ``further_suffixes`` come after all others.

    Raises:
        ManifestError: a folder cannot be listed.
    """

    def preference(path: Path) -> tuple[bool, int, str]:
        suffix = path.suffix.lower()
        rank = _PREFERRED_FORMATS.index(suffix) if suffix in _PREFERRED_FORMATS else len(_PREFERRED_FORMATS)
        return suffix in further_suffixes, rank, path.name

    found: dict[str, list[Path]] = {}
    try:
        for path in files_below(root):
            suffix = path.suffix.lower()
            if suffix in AUDIO_EXTENSIONS or suffix in further_suffixes:
                found.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
    except OSError as error:
        raise ManifestError(f"cannot list {error.filename}: {error.strerror}") from None
    return AudioIndex(root, {stem: sorted(paths, key=preference) for stem, paths in found.items()})


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without byte-order mark; ``ManifestError`` when it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, e.g. with iconv"
        ) from None
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror or error}") from None


def count_reasons(excluded: Iterable[Exclusion]) -> dict[str, int]:
    """How many exclusions each reason has, the most frequent first."""
    return dict(Counter(exclusion.reason.value for exclusion in excluded).most_common())
