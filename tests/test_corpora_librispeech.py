"""LibriSpeech and LJSpeech on their official layouts."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpora import librispeech, ljspeech
from asr.corpora.collect import Reason
from asr.errors import ConfigError, ManifestError

CORPORA = Path(os.environ.get("CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))


def tone(path: Path, seconds: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(16000 * seconds), 0.1), 16000)


def chapter(root: Path, subset: str, speaker: int, number: int, texts: list[str]) -> Path:
    folder = root / "LibriSpeech" / subset / str(speaker) / str(number)
    lines = []
    for index, text in enumerate(texts):
        tone(folder / f"{speaker}-{number}-{index:04d}.flac", 0.1 + 0.01 * index)
        lines.append(f"{speaker}-{number}-{index:04d} {text}\n")
    (folder / f"{speaker}-{number}.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    chapter(tmp_path, "train-clean-100", 19, 198, ["NORTHANGER ABBEY", "DON'T"])
    chapter(tmp_path, "train-other-500", 20, 5, ["ONE"])
    chapter(tmp_path, "dev-clean", 30, 7, ["TWO", "THREE"])
    chapter(tmp_path, "test-clean", 40, 8, ["FOUR"])
    chapter(tmp_path, "test-other", 41, 9, ["FIVE", "SIX"])
    return tmp_path


def ids(utterances) -> list[str]:
    return [utterance.id for utterance in utterances]


def test_subsets_become_splits_and_evaluation_subsets_have_their_own_manifest(source, tmp_path):
    corpus = librispeech.prepare(source, tmp_path / "out")
    assert ids(corpus.splits["train"]) == ["19-198-0000", "19-198-0001", "20-5-0000"]
    assert ids(corpus.splits["dev"]) == ["30-7-0000", "30-7-0001"]
    assert ids(corpus.splits["test"]) == ["40-8-0000", "41-9-0000", "41-9-0001"]
    assert {name: ids(part) for name, part in corpus.parts.items()} == {
        "dev-clean": ["30-7-0000", "30-7-0001"],
        "test-clean": ["40-8-0000"],
        "test-other": ["41-9-0000", "41-9-0001"],
    }
    first, second = corpus.splits["train"][:2]
    assert (first.text, first.speaker, second.text) == ("northanger abbey", "19", "don't")
    assert second.duration_seconds == pytest.approx(0.11)
    assert corpus.excluded == []


def test_subsets_can_be_named_and_the_source_may_be_one_of_them(source, tmp_path):
    some = librispeech.prepare(source, tmp_path / "out", subsets=["train-other-500", "dev-clean"])
    assert [len(part) for part in some.splits.values()] == [1, 2, 0]
    assert some.excluded == []
    inside = librispeech.prepare(source / "LibriSpeech" / "dev-clean", tmp_path / "out")
    assert ids(inside.splits["dev"]) == ["30-7-0000", "30-7-0001"]
    with pytest.raises(ConfigError, match="has no dev-other; it has dev-clean, test-clean"):
        librispeech.prepare(source, tmp_path / "out", subsets=["dev-other"])


def test_dev_is_carved_by_speakers_else_by_chapters_and_this_is_said(tmp_path):
    for speaker in (1, 2, 3):
        chapter(tmp_path / "a", "train-clean-100", speaker, 5, ["YES"] * 4)
    three = librispeech.prepare(tmp_path / "a", tmp_path / "out")
    assert len({u.speaker for u in three.splits["dev"]}) == 1
    assert any("dev: 1 of 3 speakers, whole" in n and "4 of 12 utterances, 33.3 %" in n for n in three.notes)
    for number in (5, 6, 7):
        chapter(tmp_path / "b", "train-clean-100", 1, number, ["YES"] * 4)
    one = librispeech.prepare(tmp_path / "b", tmp_path / "out")
    assert len({u.id.rsplit("-", 1)[0] for u in one.splits["dev"]}) == 1
    assert any("1 of 3 chapters" in note for note in one.notes)


def test_options_that_a_dev_subset_makes_useless_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="folds has no use here"):
        librispeech.prepare(source, tmp_path / "out", folds=5, fold=0)
    with pytest.raises(ConfigError, match="dev_fraction has no use here"):
        librispeech.prepare(source, tmp_path / "out", dev_fraction=0.2)


def test_lines_and_files_that_are_left_out_are_named(source, tmp_path):
    folder = source / "LibriSpeech" / "train-clean-100" / "19" / "198"
    (folder / "19-198-0001.flac").unlink()
    tone(folder / "19-198-0099.flac")
    with (folder / "19-198.trans.txt").open("a") as file:
        file.write("19-198-0003\n")
    tone(folder / "19-198-0003.flac")
    corpus = librispeech.prepare(source, tmp_path / "out")
    assert {(Path(e.id).name, e.reason) for e in corpus.excluded} == {
        ("19-198-0001", Reason.MISSING_AUDIO),
        ("19-198-0099", Reason.MISSING_TRANSCRIPT),
        ("19-198-0003", Reason.EMPTY_TEXT),
    }


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="does not look like LibriSpeech"):
        librispeech.prepare(tmp_path, tmp_path / "out")
    chapter(tmp_path, "mysubset", 1, 2, ["YES"])
    with pytest.raises(ManifestError, match="mysubset is no LibriSpeech subset"):
        librispeech.prepare(tmp_path, tmp_path / "out")


def test_official_archives_are_known_by_subset():
    [archive] = librispeech.archives(["dev-clean"])
    assert archive.url == "https://www.openslr.org/resources/12/dev-clean.tar.gz"
    with pytest.raises(ConfigError, match="LibriSpeech has no dev-dirty"):
        librispeech.archives(["dev-dirty"])


def test_checksums_agree_with_those_that_torchaudio_carries():
    from torchaudio.datasets.librispeech import _CHECKSUMS

    ours = {Path(url).name: checksum for url, checksum in _CHECKSUMS.items()}
    subsets = [name.removesuffix(".tar.gz") for name in ours]
    assert {a.filename: a.checksum for a in librispeech.archives(subsets)} == {
        name: f"sha256:{checksum}" for name, checksum in ours.items()
    }


def lj_corpus(root: Path, chapters: int, suffix: str = ".wav") -> Path:
    lines = []
    for number in range(1, chapters + 1):
        for index in (1, 2):
            utterance_id = f"LJ{number:03d}-{index:04d}"
            tone(root / "LJSpeech-1.1" / "wavs" / f"{utterance_id}{suffix}")
            lines.append(f"{utterance_id}|It was 1{index} \"o'clock.|It was \"one {index} o'clock.")
    (root / "LJSpeech-1.1" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_ljspeech_takes_the_spelled_out_column_and_splits_by_chapter(tmp_path, suffix):
    corpus = ljspeech.prepare(lj_corpus(tmp_path, 20, suffix), tmp_path / "out")
    chapters = {split: {u.id[:5] for u in part} for split, part in corpus.splits.items()}
    assert {split: len(names) for split, names in chapters.items()} == {"train": 16, "dev": 2, "test": 2}
    assert sum(len(names) for names in chapters.values()) == len(set().union(*chapters.values())) == 20
    assert {u.text for part in corpus.splits.values() for u in part} == {
        "it was one 1 o'clock",
        "it was one 2 o'clock",
    }
    assert corpus.excluded == []


def test_ljspeech_bad_lines_and_unlisted_files(tmp_path):
    root = lj_corpus(tmp_path, 5) / "LJSpeech-1.1"
    tone(root / "wavs" / "LJ999-0001.wav")
    with (root / "metadata.csv").open("a") as file:
        file.write("LJ006-0001|only two columns\nLJ007-0001|x|x\n")
    corpus = ljspeech.prepare(tmp_path, tmp_path / "out")
    assert {(e.id, e.reason) for e in corpus.excluded} == {
        ("LJ006-0001", Reason.BAD_LINE),
        ("LJ007-0001", Reason.MISSING_AUDIO),
        ("LJ999-0001", Reason.MISSING_TRANSCRIPT),
    }
    with pytest.raises(ManifestError, match="does not look like LJSpeech"):
        ljspeech.prepare(tmp_path / "nothing", tmp_path / "out")


def test_ljspeech_checksum_agrees_with_the_one_that_torchaudio_carries():
    from torchaudio.datasets.ljspeech import _RELEASE_CONFIGS

    [archive] = ljspeech.ARCHIVES
    assert archive.url == _RELEASE_CONFIGS["release1"]["url"]
    assert archive.checksum == f"sha256:{_RELEASE_CONFIGS['release1']['checksum']}"


@pytest.mark.parametrize(
    ("name", "reader", "num_utterances", "num_speakers"),
    [("librispeech", librispeech.prepare, 150, 3), ("ljspeech", ljspeech.prepare, 40, 1)],
)
def test_real_corpora(tmp_path, name, reader, num_utterances, num_speakers):
    if not (CORPORA / name).is_dir():
        pytest.skip(f"no {name} in {CORPORA}")
    corpus = reader(CORPORA / name, tmp_path)
    everything = [u for part in corpus.splits.values() for u in part]
    assert len(everything) == len({u.id for u in everything}) == num_utterances
    assert len({u.speaker for u in everything}) == num_speakers
    assert corpus.splits["dev"]
    assert corpus.excluded == []
