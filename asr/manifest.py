"""Manifests: one JSON object per line (NeMo-compatible) ↔ :class:`Utterance`, validated once.

Keys: ``audio_filepath``, ``duration`` (seconds) and ``text`` are required; ``id``, ``speaker``
and ``offset`` (seconds into the file) are optional; any other key is kept in ``Utterance.extra``.
"""

import codecs
import gc
import hashlib
import json
import math
import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from asr.errors import ManifestError
from asr.records import Utterance

_REQUIRED_KEYS = ("audio_filepath", "duration", "text")
_KNOWN_KEYS = frozenset({*_REQUIRED_KEYS, "id", "speaker", "offset"})
_MAX_PROBLEMS_SHOWN = 20
# Shared by all utterances without further fields: a dict each would cost 64 MB per million lines.
_NO_EXTRA: Mapping[str, Any] = {}


def read_manifest(path: str | Path, *, allow_empty_text: bool = True) -> list[Utterance]:
    """Read and validate a manifest.

    Relative audio paths are resolved against the manifest's folder. Whether the audio files
    exist is not looked at here. Utterances without an ``id`` get the stem of their file, with
    the offset or the line number added where the stem alone is not unique.

    Args:
        allow_empty_text: accept empty transcripts (training excludes and counts them later).

    Raises:
        ManifestError: the file is missing or empty, or has bad lines; all of these are found
            in one pass and listed with line number and reason.
    """
    path = Path(path)
    utterances: list[Utterance] = []
    line_numbers = array("L")  # a list of a million numbers would take 36 MB
    problems: list[str] = []
    resolve = _make_resolve(os.path.abspath(path.parent))
    with _garbage_left_alone():
        for line_number, line in enumerate(_read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                utterances.append(_parse_line(line, resolve, allow_empty_text))
                line_numbers.append(line_number)
            except _BadLineError as error:
                problems.append(f"line {line_number}: {error}")
    problems += _duplicate_ids(utterances, line_numbers)
    if problems:
        raise ManifestError(_summarise(path, problems))
    if not utterances:
        raise ManifestError(f"{path}: the manifest is empty; run asr.prepare again to rebuild it")
    return _with_derived_ids(utterances, line_numbers)


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write ``utterances`` so that :func:`read_manifest` gives them back; all or nothing.

    Audio paths below the manifest's folder are written relative to it, so that the folder can
    be moved as a whole. Missing parent folders are made.

    Raises:
        ManifestError: two utterances share an id, a path or text is not valid Unicode, or the
            folder cannot be written to.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    seen: set[str] = set()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for utterance in utterances:
                if utterance.id in seen:
                    raise ManifestError(
                        f"{path}: two utterances have the id {utterance.id!r}; make ids unique"
                    )
                seen.add(utterance.id)
                file.write(_to_line(utterance, folder))
        os.replace(temporary, path)
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"{path}: {error.object!r} is not valid Unicode; rename or re-encode it"
        ) from error
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be written ({error.strerror}); choose another output folder"
        ) from error
    finally:
        with suppress(OSError):  # there is none after success, or where no file can be
            temporary.unlink()


def manifest_sha256(path: str | Path) -> str:
    """Return the SHA-256 (hex) of the manifest file's bytes.

    Raises:
        ManifestError: the file is missing.
    """
    digest = hashlib.sha256()
    with _open(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _BadLineError(Exception):
    """What is wrong with one line."""


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ManifestError(
            f"{path}: no such manifest; make it with asr.prepare, or correct the path"
        ) from error
    except IsADirectoryError as error:
        raise ManifestError(
            f"{path} is a folder; name a manifest file in it, such as {path / 'train.jsonl'}"
        ) from error
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _read_lines(path: Path) -> Iterable[bytes]:
    with _open(path) as file:
        yield file.readline().removeprefix(codecs.BOM_UTF8)
        yield from file


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Collections would go through all records read so far, again and again: a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _make_resolve(folder: str) -> Callable[[str], str]:
    """Audio path as written → absolute, as text; the segments of a file, which stand together, share one.

    Two ways to write one path become the same text, so that texts can be compared.
    """
    last_name, last_path = "", folder

    def resolve(name: str) -> str:
        nonlocal last_name, last_path
        if name != last_name:
            path = os.path.join(folder, name)
            is_plain = not ("//" in path or "/." in path or path.endswith("/"))
            last_name, last_path = name, path if is_plain else str(Path(path))
        return last_path

    return resolve


def _parse_line(line: bytes, resolve: Callable[[str], str], allow_empty_text: bool) -> Utterance:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _BadLineError("not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"not JSON ({error}); a manifest has one JSON object per line") from error
    if type(record) is not dict:
        raise _BadLineError(f"{_json(record)} is not a JSON object with the keys {', '.join(_REQUIRED_KEYS)}")
    missing = [key for key in _REQUIRED_KEYS if key not in record]
    if missing:
        raise _BadLineError(f"missing {', '.join(missing)}")
    if record.get("id") == "":
        raise _BadLineError("id is empty; leave it out to have one derived from the file name")
    audio_path = _string(record, "audio_filepath")
    if not audio_path:
        raise _BadLineError("audio_filepath is empty")
    text = _string(record, "text")
    if not allow_empty_text and not text.strip():
        raise _BadLineError("text is empty")
    duration = _number(record, "duration")
    if duration <= 0:
        raise _BadLineError(f"duration must be above 0 seconds, not {duration:g}")
    offset = _number(record, "offset") if "offset" in record else 0.0
    if offset < 0:
        raise _BadLineError(f"offset must not be negative, not {offset:g}")
    return Utterance(
        id=_label(record, "id"),
        audio_file=resolve(audio_path),
        duration_seconds=duration,
        text=text,
        speaker=sys.intern(_label(record, "speaker")),
        offset_seconds=offset
        or 0.0,  # the same object for all: a number each would cost 32 MB per million lines
        extra=_extra(record),
    )


def _string(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if type(value) is not str:
        raise _BadLineError(f"{key} must be a string, not {_json(value)}")
    return value


def _number(record: dict[str, Any], key: str) -> float:
    value = record[key]
    if type(value) not in (float, int):
        raise _BadLineError(f"{key} must be a number of seconds, not {_json(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _BadLineError(f"{key} must be a finite number of seconds, not {_json(value)}")
    return number


def _label(record: dict[str, Any], key: str) -> str:
    """Return an id or speaker; whole numbers, which other tools write, become text."""
    value = record.get(key, "")
    if type(value) not in (str, int):
        raise _BadLineError(f"{key} must be a string, not {_json(value)}")
    return str(value)


def _extra(record: dict[str, Any]) -> Mapping[str, Any]:
    if record.keys() <= _KNOWN_KEYS:
        return _NO_EXTRA
    return {key: value for key, value in record.items() if key not in _KNOWN_KEYS}


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _duplicate_ids(utterances: list[Utterance], line_numbers: Sequence[int]) -> list[str]:
    ids = {utterance.id for utterance in utterances}
    if len(ids) == len(utterances):
        return []
    first_lines: dict[str, int] = {}
    problems = []
    for utterance, line_number in zip(utterances, line_numbers, strict=True):
        if not utterance.id:
            continue
        first_line = first_lines.setdefault(utterance.id, line_number)
        if first_line != line_number:
            problems.append(f"line {line_number}: id {utterance.id!r} is already on line {first_line}")
    return problems


def _summarise(path: Path, problems: list[str]) -> str:
    noun = "problem" if len(problems) == 1 else "problems"
    shown = "; ".join(problems[:_MAX_PROBLEMS_SHOWN])
    more = len(problems) - _MAX_PROBLEMS_SHOWN
    return f"{path}: {len(problems)} {noun} to correct: {shown}" + (
        f"; … and {more} more" if more > 0 else ""
    )


def _with_derived_ids(utterances: list[Utterance], line_numbers: Sequence[int]) -> list[Utterance]:
    """Name the utterances without an id: file stem, else stem and offset, else stem and line number."""
    pending = [index for index, utterance in enumerate(utterances) if not utterance.id]
    if not pending:
        return utterances
    utterances = list(utterances)
    taken = {utterance.id for utterance in utterances if utterance.id}
    for derive in (_stem, _stem_with_offset):
        names = [derive(utterances[index]) for index in pending]
        counts = Counter(names)
        unresolved = []
        for index, name in zip(pending, names, strict=True):
            # All that share a name move on together, so that ids do not depend on the order of lines.
            if counts[name] > 1 or name in taken:
                unresolved.append(index)
            else:
                utterances[index] = replace(utterances[index], id=name)
        taken.update(name for name in names if counts[name] == 1)
        pending = unresolved
    for index in pending:
        name = f"{_stem(utterances[index])}-line{line_numbers[index]}"
        while name in taken:
            name += "-"
        taken.add(name)
        utterances[index] = replace(utterances[index], id=name)
    return utterances


def _stem(utterance: Utterance) -> str:
    return utterance.audio_path.stem


def _stem_with_offset(utterance: Utterance) -> str:
    return f"{_stem(utterance)}-{utterance.offset_seconds:.3f}"


def _to_line(utterance: Utterance, folder: str) -> str:
    record: dict[str, Any] = {
        "id": utterance.id,
        "audio_filepath": _written_path(utterance.audio_path, folder),
        "duration": utterance.duration_seconds,
        "text": utterance.text,
    }
    if utterance.speaker:
        record["speaker"] = utterance.speaker
    if utterance.offset_seconds:
        record["offset"] = utterance.offset_seconds
    record.update((key, value) for key, value in utterance.extra.items() if key not in _KNOWN_KEYS)
    return json.dumps(record, ensure_ascii=False) + "\n"


def _written_path(audio_path: Path, folder: str) -> str:
    absolute = Path(os.path.abspath(audio_path))
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)
