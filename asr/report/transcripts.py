"""Transcripts of audio files: what they hold, how each format looks, where each file goes."""

import dataclasses
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from asr.calibration import Calibration
from asr.errors import AsrError
from asr.records import Hypothesis, Word
from asr.report.subtitles import as_srt, as_vtt, in_milliseconds


class TranscriptError(AsrError):
    """A transcript that cannot be written."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in one audio file, and what said so (``origin``: of checkpoint and decoder)."""

    path: str
    duration_seconds: float
    text: str
    words: tuple[Word, ...]
    score: float
    checkpoint: str
    origin: Mapping[str, Any]
    calibration: Calibration | None = None


def make_transcript(
    path: str,
    duration_seconds: float,
    hypothesis: Hypothesis,
    checkpoint: str,
    origin: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> Transcript:
    """A hypothesis with its origin; the last emission frame may reach past the end, its word may not."""
    words = tuple(
        Word(
            word.text,
            min(word.start_seconds, duration_seconds),
            min(word.end_seconds, duration_seconds),
            word.confidence,
        )
        for word in hypothesis.words
    )
    return Transcript(
        path=printable(path),
        duration_seconds=duration_seconds,
        text=hypothesis.text,
        words=words if calibration is None else calibration.of_words(words),
        score=hypothesis.score,
        checkpoint=printable(checkpoint),
        origin=origin,
        calibration=calibration,
    )


def printable(path: str) -> str:
    """A path as valid Unicode (Linux allows any bytes in file names)."""
    return os.fsencode(path).decode("utf-8", "replace")


# --------------------------------------------------------------------------- formats


class Format(NamedTuple):
    """``suffix`` of its files, and ``render``: a transcript as the content of one."""

    suffix: str
    render: Callable[[Transcript], str]


def as_text(transcript: Transcript) -> str:
    """The bare text."""
    return transcript.text + "\n"


def as_json(transcript: Transcript) -> str:
    """All that is known, indented."""
    return json.dumps(_plain(transcript), ensure_ascii=False, indent=1) + "\n"


def as_text_line(transcript: Transcript) -> str:
    """``path<TAB>text``; a tab, line break or other control character of the path is escaped as in Python."""
    path = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in transcript.path)
    return f"{path}\t{transcript.text}\n"


def as_json_line(transcript: Transcript) -> str:
    """All that is known, on one line."""
    return json.dumps(_plain(transcript), ensure_ascii=False) + "\n"


def as_ctm(transcript: Transcript) -> str:
    """NIST's time-marked words; the recording is called by its file name without suffix."""
    return _ctm(Path(transcript.path).stem, transcript.words)


def as_ctm_lines(transcript: Transcript) -> str:
    """The same with the whole path for a name, so that files of many folders stay apart."""
    return _ctm(str(Path(transcript.path).with_suffix("")), transcript.words)


def _ctm(name: str, words: Sequence[Word]) -> str:
    return "".join(ctm_line(sclite_name(name), word) + "\n" for word in words)


def ctm_line(name: str, word: Word) -> str:
    """``file channel start duration word confidence``."""
    start, end = round(word.start_seconds, 3), round(word.end_seconds, 3)
    return f"{name} {SCLITE_CHANNEL} {start:.3f} {end - start:.3f} {sclite_name(word.text)} {word.confidence:.4f}"


SCLITE_CHANNEL = "A"


def sclite_name(text: str) -> str:
    """``text`` without the characters that end, comment out or mark up a field of sclite's files."""
    return re.sub(r"[\s();<>{}]", "_", text)


def as_textgrid(transcript: Transcript) -> str:
    """Praat's TextGrid (long text format): one tier of words; silences are intervals without text."""
    words = in_milliseconds(transcript.words)
    intervals: list[tuple[int, int, str]] = []
    end_ms = 0
    for word in words:
        if word.start_ms > end_ms:
            intervals.append((end_ms, word.start_ms, ""))
        intervals.append((word.start_ms, word.end_ms, word.text.replace('"', '""')))
        end_ms = word.end_ms
    last_ms = max(round(1000 * transcript.duration_seconds), end_ms, 1)
    if last_ms > end_ms:
        intervals.append((end_ms, last_ms, ""))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {last_ms / 1000}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        f"        xmax = {last_ms / 1000}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (start, end, text) in enumerate(intervals, start=1):
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {start / 1000}",
            f"            xmax = {end / 1000}",
            f'            text = "{text}"',
        ]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Format] = {
    "text": Format(".txt", as_text),
    "json": Format(".json", as_json),
    "ctm": Format(".ctm", as_ctm),
    "srt": Format(".srt", lambda transcript: as_srt(transcript.words)),
    "vtt": Format(".vtt", lambda transcript: as_vtt(transcript.words)),
    "textgrid": Format(".TextGrid", as_textgrid),
}
"""What one file per input can look like."""

LINE_FORMATS: Mapping[str, Callable[[Transcript], str]] = {
    "text": as_text_line,
    "json": as_json_line,
    "ctm": as_ctm_lines,
}
"""What lines of many inputs can look like, one after the other on standard output."""


def _plain(transcript: Transcript) -> dict[str, Any]:
    words = [
        {
            "text": word.text,
            "start_seconds": round(word.start_seconds, 3),
            "end_seconds": round(word.end_seconds, 3),
            "confidence": round(word.confidence, 4),
        }
        for word in transcript.words
    ]
    return {
        "path": transcript.path,
        "duration_seconds": round(transcript.duration_seconds, 3),
        "text": transcript.text,
        "words": words,
        "score": round(transcript.score, 4) if math.isfinite(transcript.score) else None,
        "checkpoint": transcript.checkpoint,
        **transcript.origin,
        "calibration": None if transcript.calibration is None else dataclasses.asdict(transcript.calibration),
    }


# --------------------------------------------------------------------------- files


class Source(NamedTuple):
    """An audio file (``path``, absolute) and its place below the folder that was asked for (``relative``)."""

    path: Path
    relative: Path


def beside(sources: Sequence[Source], suffix: str) -> list[Path]:
    """A file next to each source, named after it; each of its own (see :func:`inside`)."""
    choices = [[path.with_suffix(suffix), _appended(path, suffix)] for path, _ in sources]
    return _distinct(choices, taken=[source.path for source in sources])


def inside(folder: Path, sources: Sequence[Source], suffix: str) -> list[Path]:
    """A file in ``folder`` for each source, at the same place as below the folder that was asked for.

    ``a.wav`` gives ``a.txt``. Where two sources would give the same file, they keep what tells them
    apart: their own suffix (``a.wav.txt``, ``a.flac.txt``), then the folders they come from
    (``monday/a.wav.txt``). Files that differ in upper and lower case alone count as the same, as
    they are in many file systems.
    """
    common = Path(os.path.commonpath([source.path.parent for source in sources])) if sources else Path()
    return _distinct(
        [
            [
                folder / relative.with_suffix(suffix),
                folder / _appended(relative, suffix),
                folder / _appended(path.relative_to(common), suffix),
            ]
            for path, relative in sources
        ],
        taken=[source.path for source in sources],
    )


def _appended(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _distinct(choices: Sequence[Sequence[Path]], taken: Iterable[Path]) -> list[Path]:
    """For each the first choice, or a later one where others have the same; numbered if all are taken."""
    levels = [0] * len(choices)
    for _ in range(max(map(len, choices), default=1) - 1):
        names = [_key(options[level]) for options, level in zip(choices, levels, strict=True)]
        num_users = Counter(names)
        levels = [
            min(level + (num_users[name] > 1), len(options) - 1)
            for options, level, name in zip(choices, levels, names, strict=True)
        ]
    taken_keys = set(map(_key, taken))
    paths = []
    for options, level in zip(choices, levels, strict=True):
        path = next(path for path in _numbered(options[level]) if _key(path) not in taken_keys)
        taken_keys.add(_key(path))
        paths.append(path)
    return paths


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _key(path: Path) -> str:
    return str(path).casefold()


def write_file(path: Path, content: str) -> None:
    """Write in one step: a reader never sees half a file. Folders are made as needed.

    Raises:
        TranscriptError: it cannot be written.
    """
    # Not derived from the file's own name, which may be as long as a name can be.
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise TranscriptError(f"{path}: cannot be written ({error.strerror})") from error
