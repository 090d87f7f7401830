"""Reading tables of recordings: JSONL, CSV and TSV whose column names vary from tool to tool."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from asr.audio import AUDIO_EXTENSIONS
from asr.corpora.collect import Entry, Exclusion, Reason, read_text
from asr.errors import ConfigError, ManifestError

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (*_JSON_SUFFIXES, ".csv", ".tsv")

# For each meaning the usual column names, the most explicit first.
USUAL_NAMES = {
    "audio": (
        "audio_filepath",
        "audio_path",
        "audio",
        "path",
        "file_name",
        "filename",
        "wav_filename",
        "file",
        "wav",
    ),
    "text": ("text", "transcript", "transcription", "sentence", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk_id"),
    "id": ("id", "utterance_id", "utt_id"),
    "offset": ("offset",),
    "duration": ("duration",),
}
# Where tables that give bare file names keep their audio.
_AUDIO_FOLDERS = ("", "clips", "wavs", "audio")
_CSV_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names given by the user; ``None`` means: find the usual one."""

    audio: str | None = None
    text: str | None = None
    speaker: str | None = None


class _Row(NamedTuple):
    """One line of a table: its values by column, or what is wrong with it."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


class _Table(NamedTuple):
    path: Path
    rows: list[_Row]
    names: Mapping[str, str]
    """Meaning → column name, for the meanings that the table has."""
    text_is_path: bool = False


class _BadRowError(Exception):
    """What is wrong with one row."""


def read_table(path: Path, columns: Columns, split: str = "") -> tuple[list[Entry], list[Exclusion]]:
    """Every line as an entry of ``split``, and the lines that cannot be read as one.

    Raises:
        ManifestError: when the file is no table of audio files and texts.
        ConfigError: when a column that the user named is not there.
    """
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        table = _read_json_lines(path, columns)
    elif suffix in TABLE_SUFFIXES:
        table = _read_delimited(path, columns)
    else:
        raise ManifestError(f"{path} is neither a folder nor one of {', '.join(TABLE_SUFFIXES)}")
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    for row in table.rows:
        try:
            entries.append(_to_entry(table, row, split))
        except _BadRowError as error:
            excluded.append(Exclusion(row.where, Reason.BAD_LINE, row.where, str(error)))
    return entries, excluded


def _read_json_lines(path: Path, columns: Columns) -> _Table:
    rows = []
    keys: dict[str, None] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            rows.append(_Row(where, {}, f"not JSON ({error})"))
            continue
        if isinstance(values, dict):
            rows.append(_Row(where, values))
            keys |= dict.fromkeys(values)
        else:
            rows.append(_Row(where, {}, f"a JSON {type(values).__name__} instead of an object"))
    if not keys:
        raise ManifestError(f"{path} holds no JSON object: a JSONL table has one on each line")
    return _Table(path, rows, _find_names(path, list(keys), columns))


def _read_delimited(path: Path, columns: Columns) -> _Table:
    text = read_text(path)
    first_line = text.partition("\n")[0]
    is_tsv = path.suffix.lower() == ".tsv"
    delimiter = "\t" if is_tsv else max(_CSV_DELIMITERS, key=first_line.count)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        # Quotation marks in TSV files are ordinary characters of the text (Common Voice).
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=True,
    )
    lines: list[tuple[int, list[str]]] = []
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}: {error}; check the quotation marks there") from None
    if not lines:
        raise ManifestError(f"{path} is empty: it needs one line per recording, with its audio file and text")
    header = [cell.strip() for cell in lines[0][1]]
    has_header = _is_header(header, columns)
    if has_header:
        lines = lines[1:]
        names = _find_names(path, header, columns)
    else:
        names = _names_without_header(path, header, columns)
        header = _column_numbers(len(header))
    rows = []
    for number, cells in lines:
        where = f"{path}:{number}"
        if len(cells) == len(header):
            rows.append(_Row(where, dict(zip(header, cells, strict=True))))
        else:
            rows.append(_Row(where, {}, f"{len(cells)} columns instead of {len(header)}"))
    return _Table(path, rows, names, text_is_path=not has_header)


def _is_header(cells: Sequence[str], columns: Columns) -> bool:
    lowered = {cell.lower() for cell in cells}
    return columns.audio in cells or any(name in lowered for name in USUAL_NAMES["audio"])


def _find_names(path: Path, header: Sequence[str], columns: Columns) -> dict[str, str]:
    by_lower_case = {name.lower(): name for name in reversed(header)}
    names = {}
    for meaning, usual in USUAL_NAMES.items():
        asked = getattr(columns, meaning, None)
        if asked is not None:
            if asked not in header:
                raise ConfigError(
                    f"{meaning}_column={asked} is not a column of {path}; it has {', '.join(header)}"
                )
            names[meaning] = asked
            continue
        found = next((by_lower_case[name] for name in usual if name in by_lower_case), None)
        if found is not None:
            names[meaning] = found
    for meaning in ("audio", "text"):
        if meaning not in names:
            raise ManifestError(
                f"{path} has no {meaning} column among {', '.join(header)}: "
                f"give {meaning}_column=NAME, or call it {USUAL_NAMES[meaning][0]}"
            )
    return names


def _column_numbers(count: int) -> list[str]:
    return [f"column {number}" for number in range(1, count + 1)]


def _names_without_header(path: Path, first: Sequence[str], columns: Columns) -> dict[str, str]:
    """A table without header: one column of audio files and one other, which is the text."""
    audio = [number for number, cell in enumerate(first) if Path(cell).suffix.lower() in AUDIO_EXTENSIONS]
    if len(audio) != 1 or len(first) != 2 or columns != Columns():
        raise ManifestError(
            f"{path}: its first line ({', '.join(first)}) names no columns such as audio_filepath and text, "
            "and it is not an audio file and its text either: add a header line"
        )
    numbers = _column_numbers(2)
    return {"audio": numbers[audio[0]], "text": numbers[1 - audio[0]]}


def _to_entry(table: _Table, row: _Row, split: str) -> Entry:
    if row.problem:
        raise _BadRowError(row.problem)
    names, values = table.names, row.values

    def value(meaning: str) -> Any:
        return values.get(names[meaning]) if meaning in names else None

    audio = _label(value("audio"), names["audio"]).strip()
    if not audio:
        raise _BadRowError(f"no audio file in {names['audio']}")
    offset = _number(value("offset"), "offset") or 0.0
    stem = Path(audio).with_suffix("").as_posix() if Path(audio).suffix.lower() in AUDIO_EXTENSIONS else audio
    derived_id = stem.removeprefix("./") + (f"@{offset:g}" if offset else "")
    used = set(names.values())
    return Entry(
        id=_label(value("id"), "id").strip() or derived_id,
        where=row.where,
        audio_path=_find_audio(table.path.parent, audio),
        text=_text(table, value("text")),
        speaker=_label(value("speaker"), names.get("speaker", "")).strip(),
        offset_seconds=offset,
        duration_seconds=_number(value("duration"), "duration"),
        split=split,
        extra={key: item for key, item in values.items() if key not in used and item not in ("", None)},
    )


def _label(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _BadRowError(f"{column} is {value!r}, not text")
    return str(value)


def _number(value: Any, column: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _BadRowError(f"{column} is {value!r}, not a number of seconds") from None


def _text(table: _Table, value: Any) -> str | None:
    if value is None:
        return None
    text = _label(value, table.names["text"])
    if not table.text_is_path or Path(text.strip()).suffix != ".txt":
        return text
    # Tables without header often list transcript files instead of transcripts.
    path = table.path.parent / text.strip()
    if not path.is_file():
        raise _BadRowError(f"no transcript file {path}")
    try:
        return read_text(path)
    except ManifestError as error:
        raise _BadRowError(str(error)) from None


def _find_audio(folder: Path, audio: str) -> Path:
    """The first place where the file is; when it is nowhere, where the table says that it is."""
    for subfolder in _AUDIO_FOLDERS:
        path = folder / subfolder / audio
        if path.is_file():
            return path
        if path.suffix.lower() not in AUDIO_EXTENSIONS:
            for suffix in (".flac", ".wav", ".mp3"):
                if (with_suffix := path.with_name(path.name + suffix)).is_file():
                    return with_suffix
    return folder / audio
