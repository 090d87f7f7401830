"""Your own recordings: a table of audio files and texts, or a folder of audio with text files beside it.

Tables are JSONL (NeMo manifests), CSV or TSV with or without a header (Common Voice among them).
A folder may hold one table, or ``train``/``dev``/``test`` tables, or ``a.wav`` + ``a.txt`` (``.lab``) pairs,
possibly in ``train``/``dev``/``test`` subfolders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asr.corpora.collect import (
    SPLIT_NAMES,
    SPLITS,
    AudioIndex,
    Entry,
    Exclusion,
    PreparedCorpus,
    Progress,
    Reason,
    collect,
    index_audio,
    read_text,
)
from asr.corpora.splits import Carved, SplitPlan, carve_by_speaker
from asr.corpora.table import TABLE_SUFFIXES, Columns, read_table
from asr.errors import ConfigError, ManifestError

_TEXT_SUFFIXES = (".txt", ".lab")
DEFAULT_TEST_FRACTION = 0.1


def prepare(
    source: Path,
    output: Path,
    *,
    audio_column: str | None = None,
    text_column: str | None = None,
    speaker_column: str | None = None,
    speaker_folders: bool = False,
    dev_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    split_by: str = "auto",
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read a table or a folder.

    Args:
        source: a ``.jsonl``, ``.csv`` or ``.tsv`` file, or a folder as described above.
        audio_column, text_column, speaker_column: names of table columns, where the usual ones
            are not used.
        speaker_folders: take the name of each audio file's folder as its speaker.
        dev_fraction: carved by whole speakers where they are known, unless the source has a dev
            part of its own; default 0.1.
        test_fraction: likewise; default 0.1 for a source that fixes no split at all, otherwise 0.

    Raises:
        ManifestError: when nothing usable is found or a table has no recognisable columns.
        ConfigError: for options that do not fit what is there.
    """
    plan = SplitPlan(dev_fraction, test_fraction or 0.0, seed, folds, fold, split_by)
    columns = Columns(audio_column, text_column, speaker_column)
    if source.is_dir() and source.resolve() == output.resolve():
        raise ConfigError(f"output={output} is the source folder itself: choose another, e.g. data/mine")
    entries, excluded = _read(source, columns)
    if speaker_folders:
        entries = [_with_folder_as_speaker(entry) for entry in entries]
    collected = collect(entries, progress=progress)
    fixed = {split: collected.of(split) for split in SPLITS if collected.of(split)}
    if "dev" in fixed:
        plan.require_unused(str(source))
        plan = replace(plan, dev_fraction=0.0)
    if "test" in fixed and test_fraction is not None:
        raise ConfigError(f"test_fraction has no use here: {source} has a test part of its own")
    if not fixed and test_fraction is None:
        plan = replace(plan, test_fraction=DEFAULT_TEST_FRACTION)
    trainable = collected.of("") + collected.of("train")
    carved = carve_by_speaker(trainable, plan) if trainable else Carved([], [], [], [])
    splits = {"train": carved.train, "dev": carved.dev or fixed.get("dev", [])}
    splits["test"] = carved.test or fixed.get("test", [])
    return PreparedCorpus(splits, collected.excluded + excluded, carved.notes)


def _with_folder_as_speaker(entry: Entry) -> Entry:
    if entry.speaker:
        return entry
    return replace(entry, speaker=entry.audio_path.parent.name)


def _read(source: Path, columns: Columns) -> tuple[list[Entry], list[Exclusion]]:
    if source.is_file():
        return read_table(source, columns)
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    split_tables = _by_split(source, [path for path in tables if path.stem.lower() in SPLIT_NAMES])
    if split_tables:
        return _read_tables(source, split_tables, columns)
    index = index_audio(source)
    texts = _text_files(source)
    if tables and not texts.keys() & index.paths_by_stem.keys():
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise ManifestError(f"{source} holds several tables ({names}): give one of them as source=FILE")
        return _read_tables(source, {"": tables[0]}, columns)
    if tables:
        raise ManifestError(
            f"{source} holds text files beside the audio and {tables[0].name} too: "
            "give source=TABLE, or move the table away"
        )
    if columns != Columns():
        raise ConfigError(f"audio_column, text_column and speaker_column need a table: {source} holds none")
    return _read_pairs(index, texts)


def _by_split(source: Path, tables: Sequence[Path]) -> dict[str, Path]:
    chosen: dict[str, Path] = {}
    for table in tables:
        split = SPLIT_NAMES[table.stem.lower()]
        if split in chosen:
            raise ManifestError(f"{source} holds two {split} tables: {chosen[split].name} and {table.name}")
        chosen[split] = table
    return chosen


def _read_tables(
    source: Path, tables: Mapping[str, Path], columns: Columns
) -> tuple[list[Entry], list[Exclusion]]:
    """All tables of a folder, and the audio files in it that none of them lists."""
    index = index_audio(source)
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    for split, table in tables.items():
        read, left_out = read_table(table, columns, split)
        entries += read
        excluded += left_out
    listed = {
        entry.audio_path.relative_to(source).with_suffix("").as_posix()
        for entry in entries
        if entry.audio_path.is_relative_to(source)
    }
    names = ", ".join(table.name for table in tables.values())
    return entries, excluded + index.unlisted(listed, f"not in {names}")


def _text_files(source: Path) -> dict[str, Path]:
    """Text files by their path without suffix; ``.txt`` goes before ``.lab``."""
    found: dict[str, Path] = {}
    for suffix in _TEXT_SUFFIXES:
        for path in sorted(source.rglob(f"*{suffix}")):
            found.setdefault(path.relative_to(source).with_suffix("").as_posix(), path)
    return found


def _read_pairs(index: AudioIndex, texts: Mapping[str, Path]) -> tuple[list[Entry], list[Exclusion]]:
    """``a.wav`` with ``a.txt``: every audio file and every text file without audio is accounted for."""
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    for stem, paths in index.paths_by_stem.items():
        try:
            text = read_text(texts[stem]) if stem in texts else None
        except ManifestError as error:
            excluded.append(Exclusion(stem, Reason.BAD_LINE, str(texts[stem]), str(error)))
            continue
        first, _, rest = stem.partition("/")
        split = SPLIT_NAMES.get(first.lower(), "") if rest else ""
        entries.append(Entry(stem, str(paths[0]), paths[0], text, split=split))
    for stem in sorted(texts.keys() - index.paths_by_stem.keys()):
        excluded.append(Exclusion(stem, Reason.MISSING_AUDIO, str(texts[stem]), "no audio file of this name"))
    return entries, excluded
