"""Your own recordings: tables of several dialects, and folders of audio with text beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpora import folder
from asr.corpora.collect import Reason
from asr.errors import ConfigError, ManifestError


def tone(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(8000 * seconds), 0.1), 8000)
    return path


@pytest.fixture
def audio(tmp_path) -> Path:
    """Twelve recordings of six speakers: ``s0/a.wav``, ``s0/b.wav``, …"""
    for speaker in range(6):
        for name in "ab":
            tone(tmp_path / "audio" / f"s{speaker}" / f"{name}.wav", 0.5 + speaker / 10)
    return tmp_path / "audio"


RECORDINGS = [f"s{speaker}/{name}.wav" for speaker in range(6) for name in "ab"]


def everything(corpus) -> dict:
    return {u.id: u for part in corpus.splits.values() for u in part}


def prepare(source, **options):
    return folder.prepare(source, Path("/nowhere/out"), **options)


TABLES = {
    "nemo.jsonl": "".join(
        json.dumps({"audio_filepath": path, "text": "Hello, you", "duration": 0.1, "speaker": path[:2]})
        + "\n"
        for path in RECORDINGS
    ),
    "comma.csv": "path,transcript,speaker\n"
    + "".join(f'{path},"Hello, you",{path[:2]}\n' for path in RECORDINGS),
    "semicolon.csv": "speaker;Sentence;Audio\n"
    + "".join(f"{path[:2]};Hello, you;{path}\n" for path in RECORDINGS),
    "tabs.tsv": "client_id\tpath\tsentence\n"
    + "".join(f"{path[:2]}\t{path}\tHello, you\n" for path in RECORDINGS),
    "bom.csv": "\ufefffile_name,transcription,speaker_id\n"
    + "".join(f'{path},"Hello, you",{path[:2]}\n' for path in RECORDINGS),
    "windows.csv": "path,text,speaker\r\n"
    + "".join(f'{path},"Hello, you",{path[:2]}\r\n' for path in RECORDINGS),
}


@pytest.mark.parametrize("name", TABLES)
def test_table_dialects_say_the_same(audio, name):
    table = audio / name
    table.write_bytes(TABLES[name].encode())
    corpus = prepare(table)
    found = everything(corpus)
    assert found.keys() == {path.removesuffix(".wav") for path in RECORDINGS}
    assert {u.text for u in found.values()} == {"hello you"}
    assert found["s3/b"].speaker == "s3"
    assert found["s3/b"].audio_path == audio / "s3" / "b.wav"
    # JSONL rows say 0.1 s: a stretch from the start. The other tables mean whole files.
    assert found["s3/b"].duration_seconds == pytest.approx(0.1 if name == "nemo.jsonl" else 0.8)
    assert corpus.excluded == []
    parts = [{u.speaker for u in part} for part in corpus.splits.values()]
    assert [len(speakers) for speakers in parts] == [4, 1, 1]
    assert len(set().union(*parts)) == 6


def test_table_without_header_and_with_transcript_files(audio):
    table = audio / "list.csv"
    table.write_text("".join(f"{path},yes\n" for path in RECORDINGS))
    assert len(everything(prepare(table))) == 12
    for path in RECORDINGS:
        (audio / path).with_suffix(".txt").write_text("FROM A FILE\n")
    table.write_text("".join(f"{path},{path[:-4]}.txt\n" for path in RECORDINGS[:-1]) + "s5/b.wav,gone.txt\n")
    corpus = prepare(table)
    assert {u.text for u in everything(corpus).values()} == {"from a file"}
    assert [(e.reason, e.where) for e in corpus.excluded] == [(Reason.BAD_LINE, f"{table}:12")]


def test_common_voice_layout(tmp_path):
    for number in range(4):
        tone(tmp_path / "clips" / f"common_voice_en_{number}.wav")
    header = "client_id\tpath\tsentence\tage\taccents\n"
    rows = [
        f'{"x" * 8}{number}\tcommon_voice_en_{number}.wav\t"Quoted" it\'s {number}\t\tScottish\n'
        for number in range(4)
    ]
    (tmp_path / "train.tsv").write_text(header + rows[0])
    (tmp_path / "dev.tsv").write_text(header + rows[1])
    (tmp_path / "test.tsv").write_text(header + rows[2])
    (tmp_path / "validated.tsv").write_text(header + "".join(rows))
    corpus = prepare(tmp_path)
    assert {split: [u.text for u in part] for split, part in corpus.splits.items()} == {
        "train": ["quoted it's 0"],
        "dev": ["quoted it's 1"],
        "test": ["quoted it's 2"],
    }
    assert corpus.splits["dev"][0].extra == {"accents": "Scottish"}
    [left_out] = corpus.excluded
    assert (left_out.id, left_out.reason) == ("clips/common_voice_en_3", Reason.MISSING_TRANSCRIPT)
    with pytest.raises(ConfigError, match="dev_fraction has no use"):
        prepare(tmp_path, dev_fraction=0.2)
    with pytest.raises(ConfigError, match="test_fraction has no use"):
        prepare(tmp_path, test_fraction=0.2)


def test_segments_of_long_recordings(tmp_path):
    tone(tmp_path / "long.wav", 10.0)
    lines = [
        {"audio_filepath": "long.wav", "offset": 0, "duration": 2.5, "text": "a"},
        {"audio_filepath": "long.wav", "offset": 2.5, "duration": 7.52, "text": "b"},
        {"audio_filepath": "long.wav", "offset": 4, "text": "c"},
        {"audio_filepath": "long.wav", "offset": 9, "duration": 1.5, "text": "too long"},
        {"audio_filepath": "long.wav", "offset": 10, "duration": 1, "text": "behind the end"},
        {"audio_filepath": "long.wav", "offset": -1, "duration": 1, "text": "negative"},
        {"audio_filepath": "long.wav", "offset": 1, "duration": 0, "text": "nothing"},
        {"audio_filepath": "long.wav", "offset": 1, "duration": float("nan"), "text": "nan"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    corpus = prepare(tmp_path / "t.jsonl")
    assert {u.id: (u.offset_seconds, u.duration_seconds) for u in everything(corpus).values()} == {
        "long": (0, 2.5),
        "long@2.5": (2.5, 7.5),  # 20 ms past the end: rounding, so the rest of the file
        "long@4": (4, 6),
    }
    assert [e.reason for e in corpus.excluded] == [Reason.BAD_SEGMENT] * 5


def test_no_line_of_a_table_is_lost(audio):
    (audio / "empty.wav").write_bytes(b"")
    (audio / "words.wav").write_text("these are words")
    good = [json.dumps({"audio_filepath": path, "text": "yes"}) for path in RECORDINGS]
    bad = {
        '{"audio_filepath": "s0/a.wav", "text": "twice"}': Reason.DUPLICATE_ID,
        '{"audio_filepath": "gone.wav", "text": "x"}': Reason.MISSING_AUDIO,
        '{"audio_filepath": "empty.wav", "text": "x"}': Reason.UNREADABLE_AUDIO,
        '{"audio_filepath": "words.wav", "text": "x"}': Reason.UNREADABLE_AUDIO,
        '{"audio_filepath": "s0/a.wav", "id": "n1", "text": " ?! "}': Reason.EMPTY_TEXT,
        '{"audio_filepath": "s0/a.wav", "id": "n2"}': Reason.MISSING_TRANSCRIPT,
        '{"audio_filepath": "s0/a.wav", "id": "n3", "text": ["x"]}': Reason.BAD_LINE,
        '{"audio_filepath": "s0/a.wav", "id": "n4", "text": "x", "duration": "long"}': Reason.BAD_LINE,
        '{"text": "no audio"}': Reason.BAD_LINE,
        '{"audio_filepath": "s0/a.wav", "text"': Reason.BAD_LINE,
        '["a list"]': Reason.BAD_LINE,
    }
    table = audio / "t.jsonl"
    table.write_text("\n".join([*good, "", *bad]) + "\n")
    corpus = prepare(table)
    assert len(everything(corpus)) == 12
    by_line = {int(e.where.rpartition(":")[2]): e.reason for e in corpus.excluded}
    assert by_line == {14 + index: reason for index, reason in enumerate(bad.values())}


def test_a_comma_in_unquoted_text_is_a_bad_line_not_a_shorter_text(audio):
    table = audio / "t.csv"
    lines = [f"{path},yes" for path in RECORDINGS]
    table.write_text("\n".join(["path,text", *lines[:-1], "s5/b.wav,yes, and more", ""]))
    corpus = prepare(table)
    assert "s5/b" not in everything(corpus)
    [left_out] = corpus.excluded
    assert (left_out.reason, left_out.detail) == (Reason.BAD_LINE, "3 columns instead of 2")
    table.write_text("\n".join(["path,text", *lines[:-1], 's5/b.wav,"never closed', ""]))
    with pytest.raises(ManifestError, match="check the quotation marks"):
        prepare(table)


def test_columns_can_be_named(audio):
    table = audio / "t.csv"
    table.write_text("Clip,Said,Who\n" + "".join(f"{path},yes,{path[:2]}\n" for path in RECORDINGS))
    with pytest.raises(ManifestError, match="names no columns such as audio_filepath and text"):
        prepare(table)
    found = everything(prepare(table, audio_column="Clip", text_column="Said", speaker_column="Who"))
    assert found["s4/a"].speaker == "s4"
    with pytest.raises(ConfigError, match=r"text_column=said is not a column of .*it has Clip, Said, Who"):
        prepare(table, audio_column="Clip", text_column="said")
    table.write_text("path,words\n" + "".join(f"{path},yes\n" for path in RECORDINGS))
    with pytest.raises(ManifestError, match="no text column among path, words: give text_column=NAME"):
        prepare(table)


def test_folder_of_pairs(audio):
    for path in RECORDINGS:
        suffix = ".txt" if path.startswith("s0") else ".lab"
        (audio / path).with_suffix(suffix).write_text("Well then\n")
    tone(audio / "s9" / "silent.wav")
    (audio / "s9" / "orphan.txt").write_text("nobody says this")
    (audio / "s1" / "a.lab").write_bytes(b"\xff\xfe")
    corpus = prepare(audio)
    assert len(everything(corpus)) == 11
    assert any("no speakers are known" in note for note in corpus.notes)
    assert {(e.id, e.reason) for e in corpus.excluded} == {
        ("s9/silent", Reason.MISSING_TRANSCRIPT),
        ("s9/orphan", Reason.MISSING_AUDIO),
        ("s1/a", Reason.BAD_LINE),
    }
    by_speaker = prepare(audio, speaker_folders=True)
    speakers = [{u.speaker for u in part} for part in by_speaker.splits.values()]
    assert [len(names) for names in speakers] == [4, 1, 1]
    assert len(set().union(*speakers)) == 6


def test_every_unknown_speaker_is_warned_of(audio):
    table = audio / "t.csv"

    def warnings(known: int) -> list[str]:
        rows = [f"{path},yes,{path[:2] if place < known else ''}\n" for place, path in enumerate(RECORDINGS)]
        table.write_text("path,text,speaker\n" + "".join(rows))
        return [note for note in prepare(table).notes if "may hold voices" in note]

    assert warnings(12) == []
    assert warnings(11) == ["1 utterance without a speaker: dev and test may hold voices that are in train"]
    assert warnings(2) == ["10 utterances without a speaker: dev and test may hold voices that are in train"]
    assert warnings(0) == ["no speakers are known: dev and test may hold voices that are in train"]


def test_split_folders_are_kept(tmp_path):
    for part, count in (("train", 3), ("valid", 2), ("test", 1)):
        for number in range(count):
            tone(tmp_path / part / f"{number}.flac").with_suffix(".txt").write_text("yes")
    corpus = prepare(tmp_path)
    assert {split: sorted(u.id for u in part) for split, part in corpus.splits.items()} == {
        "train": ["train/0", "train/1", "train/2"],
        "dev": ["valid/0", "valid/1"],
        "test": ["test/0"],
    }


def test_training_part_alone_gives_up_a_dev_set_only(audio):
    (audio / "train.jsonl").write_text(TABLES["nemo.jsonl"])
    corpus = prepare(audio)
    assert [len(part) for part in corpus.splits.values()] == [10, 2, 0]
    assert [len(part) for part in prepare(audio, test_fraction=0.2).splits.values()] == [8, 2, 2]


def test_ambiguous_and_empty_sources_are_refused(audio, tmp_path):
    with pytest.raises(ConfigError, match="source folder itself"):
        folder.prepare(audio, audio)
    (audio / "one.csv").write_text(TABLES["comma.csv"])
    assert len(everything(prepare(audio))) == 12
    (audio / "two.csv").write_text(TABLES["comma.csv"])
    with pytest.raises(ManifestError, match=r"several tables \(one\.csv, two\.csv\)"):
        prepare(audio)
    (audio / "two.csv").unlink()
    (audio / "s0" / "a.txt").write_text("yes")
    with pytest.raises(ManifestError, match=r"text files beside the audio and one\.csv too"):
        prepare(audio)
    (audio / "dev.csv").write_text(TABLES["comma.csv"])
    (audio / "valid.tsv").write_text(TABLES["tabs.tsv"])
    with pytest.raises(ManifestError, match=r"two dev tables: dev\.csv and valid\.tsv"):
        prepare(audio)
    (tmp_path / "notes.docx").write_text("x")
    with pytest.raises(ManifestError, match=r"neither a folder nor one of \.jsonl"):
        prepare(tmp_path / "notes.docx")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(ManifestError, match=r"empty\.csv is empty"):
        prepare(tmp_path / "empty.csv")
    (tmp_path / "latin.csv").write_bytes("path,text\na.wav,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        prepare(tmp_path / "latin.csv")
