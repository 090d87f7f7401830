"""Files for NIST's scoring tools: ``.trn``, ``.stm`` and ``.ctm``, as sclite reads them.

``sclite -s -i spu_id -r ref.trn trn -h hyp.trn trn -o sum pra`` scores what
:func:`write_sclite_files` wrote; with word times also ``sclite -s -r ref.stm stm -h hyp.ctm ctm``.
(``-s`` keeps case; without it sclite folds ASCII letters.) sclite weighs errors differently from
jiwer, see :mod:`asr.score`.

sclite has no way to quote: braces mark alternatives, parentheses and angle brackets mark
identifiers and labels. Texts with such characters are refused; the ``basic`` normaliser
removes them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from asr.errors import TextError
from asr.records import Word
from asr.report.json_report import EvaluationReport
from asr.report.transcripts import SCLITE_CHANNEL, ctm_line, sclite_name

Record = TypeVar("Record")

_UNKNOWN_SPEAKER = "unknown"
_SPECIAL = re.compile(r"[{}()<>]|^;;|^@$|^IGNORE_TIME_SEGMENT_IN_SCORING$")


class Transcript(NamedTuple):
    """What one utterance says; the audio runs from ``start_seconds`` to ``end_seconds``."""

    utterance_id: str
    speaker: str
    text: str
    start_seconds: float = 0.0
    end_seconds: float = 0.0


class TimedWords(NamedTuple):
    """The recognised words of one utterance, with times from the beginning of its audio."""

    utterance_id: str
    words: Sequence[Word]


def write_sclite_files(report: EvaluationReport, folder: Path) -> tuple[Path, ...]:
    """Write ``ref.trn`` and ``hyp.trn``, and ``ref.stm`` and ``hyp.ctm`` where all words have times.

    Each utterance is a recording of its own in the timed files, from 0 to its duration.

    Returns:
        The files written.

    Raises:
        TextError: an identifier or a word that sclite would misread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = report.utterances
    references = [
        Transcript(result.id, result.speaker, result.reference, 0.0, result.duration_seconds)
        for result in results
    ]
    hypotheses = [Transcript(result.id, result.speaker, result.hypothesis) for result in results]
    written = [folder / "ref.trn", folder / "hyp.trn"]
    write_trn(references, written[0])
    write_trn(hypotheses, written[1])
    if all(" ".join(word.text for word in result.words) == result.hypothesis for result in results):
        written += [folder / "ref.stm", folder / "hyp.ctm"]
        write_stm(references, written[2])
        write_ctm([TimedWords(result.id, result.words) for result in results], written[3])
    return tuple(written)


def write_trn(transcripts: Iterable[Transcript], path: Path) -> None:
    """Write one ``words (speaker-utterance)`` line each; sclite's ``-i spu_id`` finds the speaker."""
    transcripts = list(transcripts)
    names = _file_names([transcript.utterance_id for transcript in transcripts])
    lines = [
        # The speaker ends at the first hyphen or underscore, so it must not hold one.
        f"{_checked_text(transcript)} ({re.sub('[-_]', '.', _speaker(transcript))}-{name})".strip()
        for transcript, name in zip(transcripts, names, strict=True)
    ]
    _write_lines(lines, path)


def write_stm(transcripts: Iterable[Transcript], path: Path) -> None:
    """Write one ``file channel speaker start end words`` line each, sorted as sclite wants it."""
    transcripts = list(transcripts)
    names = _file_names([transcript.utterance_id for transcript in transcripts])
    lines = [
        f"{name} {SCLITE_CHANNEL} {_speaker(transcript)} {transcript.start_seconds:.3f} "
        f"{transcript.end_seconds:.3f} {_checked_text(transcript)}".rstrip()
        for name, transcript in _in_byte_order(names, transcripts)
    ]
    _write_lines(lines, path)


def write_ctm(utterances: Iterable[TimedWords], path: Path) -> None:
    """Write one ``file channel start duration word confidence`` line per word, sorted."""
    utterances = list(utterances)
    names = _file_names([utterance.utterance_id for utterance in utterances])
    lines = []
    for name, utterance in _in_byte_order(names, utterances):
        _checked_text(Transcript(utterance.utterance_id, "", " ".join(word.text for word in utterance.words)))
        for word in sorted(utterance.words, key=lambda word: word.start_seconds):
            lines.append(ctm_line(name, word))
    _write_lines(lines, path)


def _in_byte_order(names: Sequence[str], items: Sequence[Record]) -> list[tuple[str, Record]]:
    return sorted(zip(names, items, strict=True), key=lambda pair: pair[0].encode())


def _file_names(utterance_ids: Sequence[str]) -> list[str]:
    """Identifiers without the characters that end or comment out an identifier."""
    owners: dict[str, str] = {}
    for utterance_id in utterance_ids:
        name = sclite_name(utterance_id)
        if name in owners:
            raise TextError(
                f"utterances {owners[name]!r} and {utterance_id!r} are both {name!r} for sclite: rename one"
            )
        owners[name] = utterance_id
    return list(owners)


def _speaker(transcript: Transcript) -> str:
    return sclite_name(transcript.speaker) or _UNKNOWN_SPEAKER


def _checked_text(transcript: Transcript) -> str:
    words = transcript.text.split()
    for word in words:
        if _SPECIAL.search(word):
            raise TextError(
                f"utterance {transcript.utterance_id}: the word {word!r} has a meaning of its own in "
                "sclite's files; score with normaliser=basic"
            )
    return " ".join(words)


def _write_lines(lines: Sequence[str], path: Path) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
