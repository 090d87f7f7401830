"""LJSpeech: one reader, 13 100 clips of non-fiction; ``metadata.csv`` and ``wavs/LJ001-0001.wav``."""

from pathlib import Path

from asr.corpora.collect import (
    Entry,
    Exclusion,
    PreparedCorpus,
    Progress,
    Reason,
    collect,
    index_audio,
    read_text,
)
from asr.corpora.download import Archive
from asr.corpora.splits import Grouping, SplitPlan, by_utterance, carve
from asr.errors import ManifestError
from asr.records import Utterance

ARCHIVES = (
    Archive(
        "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
        "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
    ),
)
SPEAKER = "LJ"


def prepare(
    source: Path,
    output: Path,
    *,
    dev_fraction: float | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    split_by: str = "auto",
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read LJSpeech from ``source`` (the folder that holds ``metadata.csv``, or its parent).

    The text is the third, spelled-out column. Dev and test are whole chapters (``LJ001``), so that
    no sentence continues from one split into another.

    Raises:
        ManifestError: when there is no ``metadata.csv``.
    """
    plan = SplitPlan(dev_fraction, test_fraction, seed, folds, fold, split_by)
    entries, excluded = _read_metadata(_find_root(source))
    collected = collect(entries, progress=progress)
    carved = carve(collected.of(""), [Grouping("chapter", _chapter), by_utterance()], plan)
    splits = {"train": carved.train, "dev": carved.dev, "test": carved.test}
    return PreparedCorpus(splits, collected.excluded + excluded, carved.notes)


def _find_root(source: Path) -> Path:
    for candidate in (source, *sorted(source.glob("LJSpeech*")), *sorted(source.glob("*/LJSpeech*"))):
        if (candidate / "metadata.csv").is_file():
            return candidate
    raise ManifestError(
        f"{source} does not look like LJSpeech: there is no metadata.csv in it or in its LJSpeech-1.1 folder"
    )


def _chapter(utterance: Utterance) -> str:
    return utterance.id.partition("-")[0]


def _read_metadata(root: Path) -> tuple[list[Entry], list[Exclusion]]:
    metadata = root / "metadata.csv"
    index = index_audio(root / "wavs")
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    for number, line in enumerate(read_text(metadata).splitlines(), start=1):
        if not line.strip():
            continue
        # Quotation marks are part of the text here, so this is no CSV file in the usual sense.
        columns = line.split("|")
        where = f"{metadata}:{number}"
        if len(columns) != 3:
            detail = f"{len(columns)} columns instead of id|text|normalised text"
            excluded.append(Exclusion(columns[0] or where, Reason.BAD_LINE, where, detail))
            continue
        utterance_id, _, text = columns
        audio_path = index.find(utterance_id) or root / "wavs" / f"{utterance_id}.wav"
        entries.append(Entry(utterance_id, where, audio_path, text, speaker=SPEAKER))
    listed = [entry.id for entry in entries] + [exclusion.id for exclusion in excluded]
    return entries, excluded + index.unlisted(listed, f"not in {metadata.name}")
