"""CMU AN4 ("census"): 948 training and 130 test utterances of spelled names, numbers and commands.

Official layout: ``etc/an4_{train,test}.{fileids,transcription}`` and ``wav/an4_clstk`` (train),
``wav/an4test_clstk`` (test), one folder per speaker; the audio is NIST sphere, raw 16-bit at 16 kHz, or whatever
it was converted to. CMU ships the raw audio in both byte orders (``an4_raw.bigendian``, ``an4_raw.littleendian``) on
one layout, so the order is told from the samples.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.corpora.collect import (
    AudioIndex,
    Entry,
    Exclusion,
    PreparedCorpus,
    Progress,
    Reason,
    collect,
    count_reasons,
    index_audio,
    read_text,
)
from asr.corpora.download import Archive
from asr.corpora.splits import SplitPlan, by_speaker, carve
from asr.corpora.written import remove_written
from asr.errors import ManifestError

ARCHIVES = (Archive("http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"),)
"""CMU publishes no checksum."""

RAW_SAMPLE_RATE = 16000
_AUDIO_FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
_TRANSCRIPTION = re.compile(r"^(?P<text>.*?)\s*\((?P<id>[^()\s]+)\)\s*$")
_SENTENCE_MARKS = re.compile(r"</?s>|<sil>")


def prepare(
    source: Path,
    output: Path,
    *,
    dev_fraction: float | None = None,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read AN4 from ``source`` (the folder that holds ``etc`` and ``wav``, or its parent).

    Dev is carved from the train part by whole speakers; test is CMU's own, where it is there.
    Raw files are decoded to FLAC below ``output/audio``, because they carry no header.

    Raises:
        ManifestError: when the train part's lists are not there, or none of its utterances can be used.
        ConfigError: for options out of range.
    """
    plan = SplitPlan(dev_fraction=dev_fraction, seed=seed, folds=folds, fold=fold)
    root = _find_root(source)
    # Headerless files come last: a converted copy beside them saves the decoding.
    index = index_audio(root / "wav", [".raw"])
    entries: list[Entry] = []
    excluded: list[Exclusion] = []
    listed: set[str] = set()
    for split in _AUDIO_FOLDERS:
        lists = _read_lists(root, split, index)
        entries += lists.entries
        excluded += lists.excluded
        listed |= lists.fileids
    excluded += index.unlisted(listed, "in none of the fileids lists")
    decoded = _decode_raw(entries, index.root, output, progress)
    collected = collect(decoded.entries, progress=progress)
    excluded = collected.excluded + decoded.excluded + excluded
    if not collected.of("train"):
        reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(excluded).items())
        raise ManifestError(f"{root}: no utterance of the train part is usable ({reasons})")
    carved = carve(collected.of("train"), [by_speaker()], plan)
    test = collected.of("test")
    notes = carved.notes if test else [*carved.notes, _why_no_test(root)]
    if decoded.num_little_endian:
        notes.append(
            f"{decoded.num_little_endian} raw files are little-endian, by their samples, and read as such"
        )
    return PreparedCorpus({"train": carved.train, "dev": carved.dev, "test": test}, excluded, notes)


class _Listed(NamedTuple):
    entries: list[Entry]
    excluded: list[Exclusion]
    fileids: set[str]


def _find_root(source: Path) -> Path:
    for candidate in (source, source / "an4", *sorted(source.glob("*/an4"))):
        if (candidate / "etc" / "an4_train.fileids").is_file():
            return candidate
    raise ManifestError(
        f"{source} does not look like AN4: there is no etc/an4_train.fileids in it or in its an4 folder"
    )


def _read_lists(root: Path, split: str, index: AudioIndex) -> _Listed:
    """The split's two lists, matched by utterance id: one entry per file id, and the rest excluded."""
    fileids_path = root / "etc" / f"an4_{split}.fileids"
    transcription_path = root / "etc" / f"an4_{split}.transcription"
    if split != "train" and not fileids_path.is_file() and not transcription_path.is_file():
        return _Listed([], [], set())
    texts, excluded = _read_transcription(transcription_path)
    entries = []
    for number, fileid in _lines(fileids_path):
        path = Path(fileid)
        entries.append(
            Entry(
                id=path.name,
                where=f"{fileids_path}:{number}",
                audio_path=index.find(fileid) or index.root / fileid,
                text=texts.pop(path.name, None),
                speaker=path.parent.name,
                split=split,
            )
        )
    for utterance_id in texts:
        detail = f"not in {fileids_path.name}"
        excluded.append(Exclusion(utterance_id, Reason.MISSING_AUDIO, str(transcription_path), detail))
    return _Listed(entries, excluded, {fileid for _, fileid in _lines(fileids_path)})


def _read_transcription(path: Path) -> tuple[dict[str, str], list[Exclusion]]:
    """Texts by utterance id from ``<s> TEXT </s> (id)`` lines, and the lines that are none."""
    texts: dict[str, str] = {}
    excluded = []
    for number, line in _lines(path):
        match = _TRANSCRIPTION.match(line)
        where = f"{path}:{number}"
        if match is None:
            excluded.append(Exclusion(where, Reason.BAD_LINE, where, "no (id) at the end of the line"))
        elif match["id"] in texts:
            excluded.append(Exclusion(match["id"], Reason.DUPLICATE_ID, where, "transcribed twice"))
        else:
            texts[match["id"]] = _SENTENCE_MARKS.sub(" ", match["text"])
    return texts, excluded


def _lines(path: Path) -> list[tuple[int, str]]:
    """Non-empty lines with their numbers, from 1."""
    lines = read_text(path).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


class _Decoded(NamedTuple):
    entries: list[Entry]
    excluded: list[Exclusion]
    num_little_endian: int


def _decode_raw(entries: list[Entry], root: Path, output: Path, progress: Progress | None) -> _Decoded:
    """Replace every headerless file by a FLAC copy at the same place below ``output/audio``."""
    num_raw = sum(entry.audio_path.suffix == ".raw" for entry in entries)
    if num_raw:
        remove_written(output)
    found: list[Entry] = []
    excluded: list[Exclusion] = []
    num_done = num_little_endian = 0
    for entry in entries:
        if entry.audio_path.suffix != ".raw":
            found.append(entry)
            continue
        target = (output / "audio" / entry.audio_path.relative_to(root)).with_suffix(".flac")
        content = entry.audio_path.read_bytes()
        problem = _why_not_16_bit(content)
        if problem:
            detail = f"{entry.audio_path} {problem}"
            excluded.append(Exclusion(entry.id, Reason.UNREADABLE_AUDIO, entry.where, detail))
        else:
            order = _byte_order(content)
            num_little_endian += order == "<"
            _write_flac(target, np.frombuffer(content, f"{order}i2").astype(np.int16))
            found.append(replace(entry, audio_path=target))
        num_done += 1
        if progress is not None:
            progress("decoding raw audio", num_done, num_raw)
    return _Decoded(found, excluded, num_little_endian)


def _why_not_16_bit(content: bytes) -> str:
    if not content:
        return "is empty"
    if len(content) % 2:
        return f"has an odd number of bytes ({len(content)}), so it is not 16-bit audio"
    return ""


def _byte_order(content: bytes) -> str:
    """``>`` (big-endian) or ``<``. Speech is smooth: in the wrong order, neighbouring samples jump."""
    jumps = {
        order: int(np.abs(np.diff(np.frombuffer(content, f"{order}i2").astype(np.int64))).sum())
        for order in (">", "<")  # the first of equals is taken
    }
    return min(jumps, key=jumps.__getitem__)


def _write_flac(target: Path, samples: NDArray[np.int16]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, samples, RAW_SAMPLE_RATE, subtype="PCM_16")


def _why_no_test(root: Path) -> str:
    wanted = ("etc/an4_test.fileids", "etc/an4_test.transcription", "wav/an4test_clstk")
    missing = [name for name in wanted if not (root / name).exists()]
    why = f"{root} has no {', '.join(missing)}" if missing else "none of its utterances is usable"
    return f"no test set: {why}; CMU's archive of AN4 ships the test part beside the train part"
