"""AN4 on CMU's layout, in each audio format that it has been shipped in."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpora import an4
from asr.corpora.collect import Reason
from asr.errors import ConfigError, ManifestError

CORPORA = Path(os.environ.get("CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))
SPEAKERS = [f"f{letter}" for letter in "abcdefghij"]


def samples(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, 1600 + 16 * seed).astype(np.int16)


def write_audio(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".raw":
        path.write_bytes(content.astype(">i2").tobytes())
    else:
        kind = {".sph": "NIST", ".wav": "WAV", ".flac": "FLAC"}[path.suffix]
        soundfile.write(path, content, 16000, subtype="PCM_16", format=kind)


def build(root: Path, suffix: str = ".sph", *, test_part: bool = True) -> Path:
    """Ten speakers with two utterances each, and two test speakers."""
    parts = {"train": ("an4_clstk", SPEAKERS)} | (
        {"test": ("an4test_clstk", ["mx", "my"])} if test_part else {}
    )
    (root / "etc").mkdir(parents=True)
    seed = 0
    for split, (folder, speakers) in parts.items():
        fileids, transcription = [], []
        for speaker in speakers:
            for name in ("an1", "cen2"):
                seed += 1
                utterance_id = f"{name}-{speaker}-b"
                write_audio(root / "wav" / folder / speaker / f"{utterance_id}{suffix}", samples(seed))
                fileids.append(f"{folder}/{speaker}/{utterance_id}")
                # CMU's own test transcription has no sentence marks.
                text = f"<s> RUBOUT G M {seed} </s>" if split == "train" else f"RUBOUT G M {seed}"
                transcription.append(f"{text} ({utterance_id})")
        (root / "etc" / f"an4_{split}.fileids").write_text("\n".join(fileids) + "\n")
        (root / "etc" / f"an4_{split}.transcription").write_text("\n".join(transcription) + "\n")
    return root


@pytest.mark.parametrize("suffix", [".sph", ".raw", ".wav", ".flac"])
def test_every_shipped_format_gives_the_same_samples(tmp_path, suffix):
    corpus = an4.prepare(build(tmp_path / "an4", suffix), tmp_path / "out")
    assert {split: len(part) for split, part in corpus.splits.items()} == {"train": 18, "dev": 2, "test": 4}
    assert corpus.excluded == []
    everything = {u.id: u for part in corpus.splits.values() for u in part}
    first = everything["an1-fa-b"]
    assert (first.text, first.speaker) == ("rubout g m 1", "fa")
    assert first.duration_seconds == pytest.approx((1600 + 16) / 16000)
    assert everything["cen2-my-b"].text == "rubout g m 24"
    for number, utterance_id in ((1, "an1-fa-b"), (24, "cen2-my-b")):
        content, rate = soundfile.read(everything[utterance_id].audio_path, dtype="int16")
        assert rate == 16000
        np.testing.assert_array_equal(content, samples(number))


def test_raw_is_decoded_beside_the_manifest_and_other_formats_stay_where_they_are(tmp_path):
    out = tmp_path / "out"
    raw = an4.prepare(build(tmp_path / "raw", ".raw"), out)
    assert all(u.audio_path.is_relative_to(out) for u in raw.splits["train"])
    sphere = an4.prepare(build(tmp_path / "sphere", ".sph"), tmp_path / "out2")
    assert all(u.audio_path.suffix == ".sph" for u in sphere.splits["train"])
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("num_swapped", [24, 2])
def test_raw_audio_of_either_byte_order_gives_the_same_samples(tmp_path, num_swapped):
    root = build(tmp_path / "an4", ".raw")
    for path in sorted(root.rglob("*.raw"))[:num_swapped]:
        path.write_bytes(np.frombuffer(path.read_bytes(), "<i2").byteswap().tobytes())
    corpus = an4.prepare(root, tmp_path / "out")
    everything = {u.id: u for part in corpus.splits.values() for u in part}
    for number, utterance_id in ((1, "an1-fa-b"), (2, "cen2-fa-b"), (3, "an1-fb-b"), (24, "cen2-my-b")):
        content, _ = soundfile.read(everything[utterance_id].audio_path, dtype="int16")
        np.testing.assert_array_equal(content, samples(number))
    assert [note for note in corpus.notes if "little-endian" in note] == [
        f"{num_swapped} raw files are little-endian, by their samples, and read as such"
    ]
    as_shipped = an4.prepare(build(tmp_path / "big", ".raw"), tmp_path / "out2")
    assert not any("endian" in note for note in as_shipped.notes)


def test_converted_copy_beside_the_raw_file_is_taken(tmp_path):
    root = build(tmp_path / "an4", ".raw")
    converted = root / "wav" / "an4_clstk" / "fa" / "an1-fa-b.wav"
    write_audio(converted, samples(1))
    corpus = an4.prepare(root, tmp_path / "out")
    paths = {u.id: u.audio_path for part in corpus.splits.values() for u in part}
    assert paths["an1-fa-b"] == converted
    assert corpus.excluded == []


def test_absent_test_part_is_said_and_its_lines_are_not_lost(tmp_path):
    without = an4.prepare(build(tmp_path / "a", test_part=False), tmp_path / "out")
    assert without.splits["test"] == []
    assert any(note.startswith("no test set:") and "wav/an4test_clstk" in note for note in without.notes)
    root = build(tmp_path / "b")
    for path in (root / "wav" / "an4test_clstk").rglob("*.sph"):
        path.unlink()
    listed = an4.prepare(root, tmp_path / "out")
    assert [exclusion.reason for exclusion in listed.excluded] == [Reason.MISSING_AUDIO] * 4
    assert any(note.startswith("no test set:") for note in listed.notes)


def test_everything_listed_or_lying_there_is_accounted_for(tmp_path):
    root = build(tmp_path / "an4", ".raw")
    train = root / "wav" / "an4_clstk"
    (train / "fa" / "an1-fa-b.raw").write_bytes(b"")
    (train / "fb" / "an1-fb-b.raw").write_bytes(b"abc")
    (train / "fc" / "an1-fc-b.raw").unlink()
    write_audio(train / "fd" / "an99-fd-b.raw", samples(3))
    transcription = root / "etc" / "an4_train.transcription"
    lines = transcription.read_text().splitlines()
    lines = [line for line in lines if "(an1-fe-b)" not in line]
    lines = ["<s>  </s> (an1-ff-b)" if "(an1-ff-b)" in line else line for line in lines]
    lines += ["<s> NOBODY </s> (an7-zz-b)", "no id here", "<s> AGAIN </s> (an1-fg-b)"]
    transcription.write_text("\n".join(lines))
    with (root / "etc" / "an4_train.fileids").open("a") as file:
        file.write("an4_clstk/fh/an1-fh-b\n")

    corpus = an4.prepare(root, tmp_path / "out")
    reasons = {(Path(e.id).name, e.reason) for e in corpus.excluded}
    assert reasons == {
        ("an1-fa-b", Reason.UNREADABLE_AUDIO),
        ("an1-fb-b", Reason.UNREADABLE_AUDIO),
        ("an1-fc-b", Reason.MISSING_AUDIO),
        ("an99-fd-b", Reason.MISSING_TRANSCRIPT),
        ("an1-fe-b", Reason.MISSING_TRANSCRIPT),
        ("an1-ff-b", Reason.EMPTY_TEXT),
        ("an7-zz-b", Reason.MISSING_AUDIO),
        (f"{transcription.name}:21", Reason.BAD_LINE),
        ("an1-fg-b", Reason.DUPLICATE_ID),
        ("an1-fh-b", Reason.DUPLICATE_ID),
    }
    assert len(corpus.splits["train"]) + len(corpus.splits["dev"]) == 20 - 5
    assert all(exclusion.where for exclusion in corpus.excluded)


def test_a_folder_that_is_not_an4_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"does not look like AN4.*an4_train\.fileids"):
        an4.prepare(tmp_path, tmp_path / "out")
    root = build(tmp_path / "an4")
    (root / "etc" / "an4_train.transcription").unlink()
    with pytest.raises(ManifestError, match=r"an4_train\.transcription"):
        an4.prepare(root, tmp_path / "out")
    with pytest.raises(ConfigError, match="fold=9"):
        an4.prepare(root, tmp_path / "out", folds=5, fold=9)


@pytest.fixture(scope="module")
def real() -> Path:
    if not (CORPORA / "an4").is_dir():
        pytest.skip(f"no AN4 in {CORPORA}")
    return CORPORA / "an4"


def test_real_train_part(real, tmp_path):
    corpus = an4.prepare(real, tmp_path)
    train, dev = corpus.splits["train"], corpus.splits["dev"]
    assert len(train) + len(dev) == 948
    speakers = {u.speaker for u in train}, {u.speaker for u in dev}
    assert len(speakers[0] | speakers[1]) == 74
    assert speakers[0].isdisjoint(speakers[1])
    assert len(dev) == pytest.approx(95, abs=7)
    assert corpus.excluded == []
    assert set("".join(u.text for u in train)) <= set("abcdefghijklmnopqrstuvwxyz '")


def test_real_folds_cover_every_utterance_once(real, tmp_path):
    dev_ids = [
        u.id for fold in range(5) for u in an4.prepare(real, tmp_path, folds=5, fold=fold).splits["dev"]
    ]
    assert len(dev_ids) == len(set(dev_ids)) == 948


def test_folders_may_be_links(tmp_path):
    """Audio on another disk, and a ring of links, which is walked once."""
    root = build(tmp_path / "an4")
    (tmp_path / "disk").mkdir()
    (root / "wav" / "an4_clstk").rename(tmp_path / "disk" / "clips")
    (root / "wav" / "an4_clstk").symlink_to(tmp_path / "disk" / "clips")
    (tmp_path / "disk" / "clips" / "ring").symlink_to(root / "wav")
    corpus = an4.prepare(root, tmp_path / "out")
    assert {split: len(part) for split, part in corpus.splits.items()} == {"train": 18, "dev": 2, "test": 4}
    assert corpus.excluded == []


def test_no_audio_for_any_training_utterance(tmp_path):
    root = build(tmp_path / "an4")
    (root / "wav" / "an4_clstk").rename(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match=r"no utterance of the train part is usable \(20 missing audio\)"):
        an4.prepare(root, tmp_path / "out")
    (root / "wav").rename(tmp_path / "gone")
    with pytest.raises(ManifestError, match=r"cannot list .*wav: No such file"):
        an4.prepare(root, tmp_path / "out")
