"""Timed words → subtitles of readable length, as SubRip (``.srt``) and WebVTT (``.vtt``).

A cue ends in a pause; one that is too long or lasts too long is halved at the longest gap near its
middle. SubRip has no standard, only players' habits; WebVTT is https://www.w3.org/TR/webvtt1/.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from asr.records import Word

MAX_LINE_CHARACTERS = 42
MAX_LINES = 2
MAX_CUE_MS = 7000
MIN_CUE_MS = 1000
"""A shorter cue stays on screen for so long, if the next one leaves it the time."""
PAUSE_MS = 800
"""A cue never spans so long a silence."""


class TimedWord(NamedTuple):
    """A word in whole milliseconds."""

    text: str
    start_ms: int
    end_ms: int


class Cue(NamedTuple):
    """``lines`` are on screen from ``start_ms`` to ``end_ms``."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def in_milliseconds(words: Sequence[Word]) -> list[TimedWord]:
    """Words that follow each other and last at least a millisecond, as no format takes less."""
    placed: list[TimedWord] = []
    for word in words:
        start = max(round(1000 * word.start_seconds), placed[-1].end_ms if placed else 0)
        placed.append(TimedWord(word.text, start, max(round(1000 * word.end_seconds), start + 1)))
    return placed


def make_cues(words: Sequence[Word]) -> list[Cue]:
    """Subtitles for words in order of time; none overlap."""
    groups = [group for phrase in _phrases(in_milliseconds(words)) for group in _readable(phrase)]
    next_starts = [*(group[0].start_ms for group in groups), math.inf][1:]
    return [
        Cue(
            start_ms=group[0].start_ms,
            end_ms=int(max(group[-1].end_ms, min(group[0].start_ms + MIN_CUE_MS, next_start))),
            lines=_lines([word.text for word in group]),
        )
        for group, next_start in zip(groups, next_starts, strict=True)
    ]


def _phrases(words: Sequence[TimedWord]) -> Iterator[Sequence[TimedWord]]:
    """Words between pauses."""
    cuts = [number for number in range(1, len(words)) if _gap(words, number) >= PAUSE_MS]
    for first, end in pairwise([0, *cuts, len(words)]):
        if end > first:
            yield words[first:end]


def _readable(words: Sequence[TimedWord]) -> Iterator[Sequence[TimedWord]]:
    """Halve until each part fits; a single word is never cut."""
    lasts_ms = words[-1].end_ms - words[0].start_ms
    if len(words) == 1 or (
        lasts_ms <= MAX_CUE_MS and len(_lines([word.text for word in words])) <= MAX_LINES
    ):
        yield words
        return
    middle = len(words) / 2
    near = range(max(1, len(words) // 3), max(2, len(words) - len(words) // 3))
    cut = max(near, key=lambda number: (_gap(words, number), -abs(number - middle)))
    yield from _readable(words[:cut])
    yield from _readable(words[cut:])


def _gap(words: Sequence[TimedWord], number: int) -> int:
    """Silence before word ``number``."""
    return words[number].start_ms - words[number - 1].end_ms


def _lines(words: Sequence[str]) -> tuple[str, ...]:
    """One line, or two of about equal length; a line for each word says that it is too much for a cue."""
    whole = " ".join(words)
    if len(whole) <= MAX_LINE_CHARACTERS or len(words) == 1:
        return (whole,)
    if len(whole) > MAX_LINES * MAX_LINE_CHARACTERS + 1:
        return tuple(words)
    halves = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    best = min(halves, key=lambda lines: max(map(len, lines)))
    return best if max(map(len, best)) <= MAX_LINE_CHARACTERS else tuple(words)


def as_srt(words: Sequence[Word]) -> str:
    """SubRip. Players obey ``<i>`` and ``{\\an8}`` and know no escapes, so brackets become ``‹›`` and ``()``."""
    harmless = str.maketrans("<>{}", "‹›()")
    return "".join(
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n"
        + "".join(f"{line.translate(harmless)}\n" for line in cue.lines)
        + "\n"
        for number, cue in enumerate(make_cues(words), start=1)
    )


def as_vtt(words: Sequence[Word]) -> str:
    """WebVTT; ``&``, ``<`` and ``>`` are escaped as it prescribes."""
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n"
        + "".join(f"{line.translate(escapes)}\n" for line in cue.lines)
        + "\n"
        for cue in make_cues(words)
    )


def _clock(milliseconds: int, separator: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{separator}{milliseconds:03}"
