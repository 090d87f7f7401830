"""LibriSpeech: read English audiobooks; ``SUBSET/SPEAKER/CHAPTER/*.flac`` with ``.trans.txt`` per chapter.

Subsets named ``train-…``, ``dev-…`` and ``test-…`` become those splits; each dev and test subset gets
a manifest of its own as well (``test-clean.jsonl``), because results are published for each.
"""

from collections.abc import Sequence
from pathlib import Path

from asr.audio import files_below
from asr.corpora.collect import (
    SPLITS,
    AudioIndex,
    Entry,
    Exclusion,
    PreparedCorpus,
    Progress,
    collect,
    index_audio,
    read_text,
)
from asr.corpora.download import Archive
from asr.corpora.splits import Grouping, SplitPlan, by_speaker, carve
from asr.errors import ConfigError, ManifestError
from asr.records import Utterance

_SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}
DEFAULT_DOWNLOAD = ("train-clean-100", "dev-clean", "test-clean")
"""What is downloaded when no ``subsets`` are named: 7 GB."""


def archives(subsets: Sequence[str] | None) -> list[Archive]:
    """The official archives of ``subsets``; ``ConfigError`` for a name that LibriSpeech does not have."""
    chosen = list(subsets or DEFAULT_DOWNLOAD)
    unknown = [subset for subset in chosen if subset not in _SHA256]
    if unknown:
        raise ConfigError(f"subsets: LibriSpeech has no {', '.join(unknown)}; it has {', '.join(_SHA256)}")
    return [
        Archive(f"https://www.openslr.org/resources/12/{subset}.tar.gz", f"sha256:{_SHA256[subset]}")
        for subset in chosen
    ]


def prepare(
    source: Path,
    output: Path,
    *,
    subsets: list[str] | None = None,
    dev_fraction: float | None = None,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    split_by: str = "auto",
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read every subset found anywhere below ``source``, or those named in ``subsets``.

    Without a dev subset, dev is carved from train by whole speakers, or by chapters when there is
    only one speaker (or ``split_by=chapter``).

    Raises:
        ManifestError: when no transcripts are found.
        ConfigError: for subsets that are not there, or options that contradict each other.
    """
    plan = SplitPlan(dev_fraction=dev_fraction, seed=seed, folds=folds, fold=fold, split_by=split_by)
    entries, excluded = _read_chapters(source, subsets)
    collected = collect(entries, progress=progress)
    splits = {split: collected.of(split) for split in SPLITS}
    notes: list[str] = []
    if splits["dev"]:
        plan.require_unused(f"{source}, unless subsets=[…] names only train parts,")
    elif splits["train"]:
        carved = carve(splits["train"], [by_speaker(), Grouping("chapter", _chapter)], plan)
        splits |= {"train": carved.train, "dev": carved.dev}
        notes += ["no dev-clean or dev-other: dev is carved from the train part", *carved.notes]
    if not splits["test"]:
        notes.append(f"no test set: {source} has no test-clean or test-other")
    parts: dict[str, list[Utterance]] = {}
    for utterance in (*collected.of("dev"), *collected.of("test")):
        parts.setdefault(utterance.extra["subset"], []).append(utterance)
    return PreparedCorpus(splits, collected.excluded + excluded, notes, parts)


def _chapter(utterance: Utterance) -> str:
    return utterance.id.rpartition("-")[0]


def _read_chapters(source: Path, subsets: list[str] | None) -> tuple[list[Entry], list[Exclusion]]:
    # resolved: the subset's name is needed even when source is "." inside of it
    transcripts = sorted(path for path in files_below(source.resolve()) if path.name.endswith(".trans.txt"))
    if not transcripts:
        raise ManifestError(f"{source} does not look like LibriSpeech: there is no *.trans.txt below it")
    present = sorted({_subset(path) for path in transcripts})
    missing = sorted(set(subsets or []) - set(present))
    if missing:
        raise ConfigError(f"subsets: {source} has no {', '.join(missing)}; it has {', '.join(present)}")
    chosen = subsets or present
    odd = [subset for subset in chosen if subset.partition("-")[0] not in SPLITS]
    if odd:
        raise ManifestError(
            f"{source}: {odd[0]} is no LibriSpeech subset: their folders are named train-…, dev-… and test-…"
        )
    index = index_audio(source.resolve())
    entries: list[Entry] = []
    listed: set[str] = set()
    for path in transcripts:
        if _subset(path) in chosen:
            of_chapter = _read_chapter(path, index)
            entries += of_chapter
            listed |= {_stem(path, entry.id, index) for entry in of_chapter}
    unlisted = [
        exclusion
        for exclusion in index.unlisted(listed, "not in its chapter's .trans.txt")
        if _subset(Path(exclusion.where)) in chosen
    ]
    return entries, unlisted


def _read_chapter(transcript: Path, index: AudioIndex) -> list[Entry]:
    subset = _subset(transcript)
    entries = []
    for number, line in enumerate(read_text(transcript).splitlines(), start=1):
        if line.strip():
            utterance_id, _, text = line.strip().partition(" ")
            entries.append(
                Entry(
                    id=utterance_id,
                    where=f"{transcript}:{number}",
                    audio_path=index.find(_stem(transcript, utterance_id, index))
                    or transcript.with_name(f"{utterance_id}.flac"),
                    text=text,
                    speaker=utterance_id.partition("-")[0],
                    split=subset.partition("-")[0],
                    extra={"subset": subset},
                )
            )
    return entries


def _stem(transcript: Path, utterance_id: str, index: AudioIndex) -> str:
    return (transcript.parent.relative_to(index.root) / utterance_id).as_posix()


def _subset(file: Path) -> str:
    """The subset of ``SUBSET/SPEAKER/CHAPTER/FILE``."""
    return file.parents[2].name
