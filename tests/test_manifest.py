"""Manifests: what is written comes back, and every bad line is named."""

import hashlib
import json
import math
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import ManifestError
from asr.manifest import manifest_sha256, read_manifest, write_manifest
from asr.records import Utterance

GOOD: dict[str, Any] = {"id": "a1", "audio_filepath": "wav/a1.flac", "duration": 1.5, "text": "hello"}


def write_lines(path: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class TestReading:
    def test_all_fields(self, tmp_path: Path) -> None:
        path = write_lines(
            tmp_path / "train.jsonl",
            GOOD | {"speaker": "bob", "offset": 2.25, "accent": "x", "tags": [1]},
        )
        assert read_manifest(path) == [
            Utterance(
                id="a1",
                audio_file=str(tmp_path / "wav" / "a1.flac"),
                duration_seconds=1.5,
                text="hello",
                speaker="bob",
                offset_seconds=2.25,
                extra={"accent": "x", "tags": [1]},
            )
        ]

    def test_defaults(self, tmp_path: Path) -> None:
        (utterance,) = read_manifest(write_lines(tmp_path / "a.jsonl", GOOD))
        assert (utterance.speaker, utterance.offset_seconds, dict(utterance.extra)) == ("", 0.0, {})

    def test_absolute_paths_stay_and_relative_ones_start_at_the_manifest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "corpus").mkdir()
        write_lines(
            tmp_path / "corpus" / "a.jsonl", GOOD, GOOD | {"id": "a2", "audio_filepath": "/data/語音 ü.wav"}
        )
        monkeypatch.chdir(tmp_path)
        first, second = read_manifest("corpus/a.jsonl")
        assert first.audio_path == tmp_path / "corpus" / "wav" / "a1.flac"
        assert second.audio_path == Path("/data/語音 ü.wav")

    def test_two_ways_to_write_one_path_are_the_same(self, tmp_path: Path) -> None:
        names = ["wav/a1.flac", "./wav//a1.flac", f"{tmp_path}/wav/./a1.flac", "wav/a1.flac/"]
        lines = [GOOD | {"id": str(number), "audio_filepath": name} for number, name in enumerate(names)]
        texts = {
            utterance.audio_file for utterance in read_manifest(write_lines(tmp_path / "a.jsonl", *lines))
        }
        assert texts == {str(tmp_path / "wav" / "a1.flac")}

    def test_memory(self, tmp_path: Path) -> None:
        """A path for each of a million utterances alone would take 0.3 GB."""
        num = 5_000
        lines = [
            GOOD | {"id": f"utterance-{number}", "audio_filepath": f"speaker-{number // 400}/{number}.flac"}
            for number in range(num)
        ]
        path = write_lines(tmp_path / "a.jsonl", *lines)
        tracemalloc.start()
        utterances = read_manifest(path)
        num_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        texts = sum(sys.getsizeof(one.id) + sys.getsizeof(one.audio_file) for one in utterances)
        assert (num_bytes - texts) / num < 250

    def test_whole_numbers_serve_as_seconds_ids_and_speakers(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", GOOD | {"id": 7, "speaker": 12, "duration": 3, "offset": 1})
        (utterance,) = read_manifest(path)
        assert (utterance.id, utterance.speaker) == ("7", "12")
        assert (utterance.duration_seconds, utterance.offset_seconds) == (3.0, 1.0)
        assert isinstance(utterance.duration_seconds, float)

    def test_blank_lines_windows_line_ends_and_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        lines = ["", json.dumps(GOOD), "  ", json.dumps(GOOD | {"id": "a2"})]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
        assert [utterance.id for utterance in read_manifest(path)] == ["a1", "a2"]

    def test_empty_text_passes_unless_forbidden(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", GOOD | {"text": ""}, GOOD | {"id": "a2"})
        assert [utterance.text for utterance in read_manifest(path)] == ["", "hello"]
        with pytest.raises(ManifestError, match=r"line 1: text is empty"):
            read_manifest(path, allow_empty_text=False)


class TestUtterance:
    def test_a_path_is_kept_as_text_and_comes_back(self) -> None:
        given = Utterance("a1", Path("/data/a1.flac"), 1.5, "hello")  # type: ignore[arg-type]
        assert given == Utterance("a1", "/data/a1.flac", 1.5, "hello")
        assert given.audio_file == "/data/a1.flac"
        assert given.audio_path == Path("/data/a1.flac")


class TestDerivedIds:
    @staticmethod
    def ids(tmp_path: Path, *records: dict[str, Any]) -> list[str]:
        complete = [{"duration": 1.0, "text": "x"} | record for record in records]
        return [utterance.id for utterance in read_manifest(write_lines(tmp_path / "a.jsonl", *complete))]

    def test_file_stem(self, tmp_path: Path) -> None:
        ids = self.ids(tmp_path, {"audio_filepath": "x/a.b.wav"}, {"audio_filepath": "c.flac"})
        assert ids == ["a.b", "c"]

    def test_segments_of_one_file_are_told_apart_by_offset(self, tmp_path: Path) -> None:
        segments = [{"audio_filepath": "a.wav", "offset": offset} for offset in (0.0, 1.25)]
        assert self.ids(tmp_path, *segments) == ["a-0.000", "a-1.250"]

    def test_files_of_the_same_name_are_told_apart_by_line(self, tmp_path: Path) -> None:
        assert self.ids(tmp_path, {"audio_filepath": "x/a.wav"}, {"audio_filepath": "y/a.wav"}) == [
            "a-line1",
            "a-line2",
        ]

    def test_a_given_id_is_never_taken(self, tmp_path: Path) -> None:
        assert self.ids(tmp_path, {"audio_filepath": "a.wav"}, {"audio_filepath": "b.wav", "id": "a"}) == [
            "a-0.000",
            "a",
        ]

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "audio_filepath": st.sampled_from(
                        ["a.wav", "x/a.wav", "b.wav", "a-0.000.wav", "a-line1.wav"]
                    )
                },
                optional={
                    "offset": st.sampled_from([0.0, 1.0]),
                    "id": st.sampled_from(["a", "a-1.000", "a-line2", "a-line3"]),
                },
            ),
            min_size=1,
            max_size=12,
            unique_by=lambda record: record.get("id", id(record)),
        )
    )
    def test_always_unique_and_stable(
        self, tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
    ) -> None:
        folder = tmp_path_factory.mktemp("ids")
        ids = self.ids(folder, *records)
        assert len(set(ids)) == len(ids)
        assert all(ids)
        assert self.ids(folder, *records) == ids


class TestBadLines:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"id": "a", ', "not JSON"),
            ("hello", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ('{"duration": ' + "9" * 5000 + "}", "not JSON"),
            ("[1, 2]", "[1, 2] is not a JSON object with the keys audio_filepath"),
            ("null", "null is not a JSON object"),
            ({"id": "a"}, "missing audio_filepath, duration, text"),
            ({**GOOD, "text": None}, "text must be a string, not null"),
            ({**GOOD, "text": 5}, "text must be a string, not 5"),
            ({**GOOD, "audio_filepath": ["a"]}, 'audio_filepath must be a string, not ["a"]'),
            ({**GOOD, "audio_filepath": ""}, "audio_filepath is empty"),
            ({**GOOD, "duration": "1.5"}, 'duration must be a number of seconds, not "1.5"'),
            ({**GOOD, "duration": True}, "duration must be a number of seconds, not true"),
            ({**GOOD, "duration": 0}, "duration must be above 0 seconds, not 0"),
            ({**GOOD, "duration": -2.5}, "duration must be above 0 seconds, not -2.5"),
            ({**GOOD, "duration": math.nan}, "duration must be a finite number of seconds, not NaN"),
            ({**GOOD, "duration": math.inf}, "duration must be a finite number of seconds, not Infinity"),
            ({**GOOD, "duration": 10**400}, "duration must be a finite number of seconds, not 1000"),
            ({**GOOD, "offset": -0.1}, "offset must not be negative, not -0.1"),
            ({**GOOD, "offset": None}, "offset must be a number of seconds, not null"),
            ({**GOOD, "id": 1.5}, "id must be a string, not 1.5"),
            ({**GOOD, "id": ""}, "id is empty"),
            ({**GOOD, "speaker": ["x"]}, 'speaker must be a string, not ["x"]'),
        ],
    )
    def test_reason_and_line_number(self, tmp_path: Path, line: Any, reason: str) -> None:
        message = complaint(write_lines(tmp_path / "a.jsonl", {**GOOD, "id": "other"}, line))
        assert f"1 problem to correct: line 2: {reason}" in message

    def test_invalid_utf8(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", GOOD)
        path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
        assert "line 2: not UTF-8 text" in complaint(path)

    def test_duplicate_ids_name_both_lines(self, tmp_path: Path) -> None:
        message = complaint(write_lines(tmp_path / "a.jsonl", GOOD, GOOD | {"id": "b"}, "", GOOD))
        assert "line 4: id 'a1' is already on line 1" in message

    def test_all_bad_lines_are_told_at_once(self, tmp_path: Path) -> None:
        lines = [GOOD | {"id": str(number), "duration": -1 if number % 3 == 0 else 1} for number in range(75)]
        message = complaint(write_lines(tmp_path / "a.jsonl", *lines, "oops"))
        assert "26 problems to correct" in message
        for line_number in range(1, 20 * 3, 3):
            assert f"line {line_number}: duration" in message
        assert "line 61:" not in message
        assert message.endswith("… and 6 more")


class TestBadFiles:
    def test_missing_file_hints_at_prepare(self, tmp_path: Path) -> None:
        assert "no such manifest; make it with asr.prepare" in complaint(tmp_path / "train.jsonl")
        with pytest.raises(ManifestError, match=r"asr\.prepare"):
            manifest_sha256(tmp_path / "train.jsonl")

    @pytest.mark.parametrize("content", ["", "\n", "  \n\n"])
    def test_empty_file(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.jsonl").write_text(content)
        assert "the manifest is empty" in complaint(tmp_path / "a.jsonl")

    def test_folder(self, tmp_path: Path) -> None:
        assert "is a folder; name a manifest file in it" in complaint(tmp_path)

    def test_an_impossible_name(self, tmp_path: Path) -> None:
        assert "cannot be read" in complaint(tmp_path / ("x" * 300))


class TestWriting:
    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(
            st.builds(
                Utterance,
                id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
                audio_file=st.sampled_from(["wav/a.wav", "b ü 語.flac", "../c.wav", "/elsewhere/d.wav"]),
                duration_seconds=st.floats(1e-3, 1e6),
                text=st.text(st.characters(exclude_categories=["Cs"])),
                speaker=st.text("abc", max_size=3),
                offset_seconds=st.floats(0, 1e6),
                extra=st.dictionaries(st.sampled_from(["accent", "channel"]), st.integers() | st.text("xy")),
            ),
            min_size=1,
            max_size=5,
            unique_by=lambda utterance: utterance.id,
        )
    )
    def test_what_is_written_comes_back(
        self, tmp_path_factory: pytest.TempPathFactory, utterances: list[Utterance]
    ) -> None:
        folder = tmp_path_factory.mktemp("corpus")
        absolute = [
            Utterance(
                utterance.id,
                Path(os.path.normpath(folder / utterance.audio_path)),
                utterance.duration_seconds,
                utterance.text,
                utterance.speaker,
                utterance.offset_seconds,
                utterance.extra,
            )
            for utterance in utterances
        ]
        write_manifest(folder / "new" / "a.jsonl", absolute)
        assert read_manifest(folder / "new" / "a.jsonl") == absolute

    def test_keys_are_those_of_nemo_and_paths_relative(self, tmp_path: Path) -> None:
        inside = Utterance("a", tmp_path / "wav" / "a.wav", 1.25, "zwölf", "bob", 0.5, {"accent": "x"})
        outside = Utterance("b", tmp_path.parent / "b.wav", 2.0, "")
        write_manifest(tmp_path / "a.jsonl", [inside, outside])
        lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[0]) == {
            "id": "a",
            "audio_filepath": "wav/a.wav",
            "duration": 1.25,
            "text": "zwölf",
            "speaker": "bob",
            "offset": 0.5,
            "accent": "x",
        }
        assert "zwölf" in lines[0]
        assert json.loads(lines[1]) == {
            "id": "b",
            "audio_filepath": str(tmp_path.parent / "b.wav"),
            "duration": 2.0,
            "text": "",
        }

    def test_the_folder_can_be_moved(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        write_manifest(tmp_path / "old" / "a.jsonl", [Utterance("a", tmp_path / "old" / "a.wav", 1.0, "x")])
        (tmp_path / "old").rename(tmp_path / "new")
        assert read_manifest(tmp_path / "new" / "a.jsonl")[0].audio_path == tmp_path / "new" / "a.wav"

    def test_a_failure_leaves_the_old_manifest_and_no_litter(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        good = Utterance("a", tmp_path / "a.wav", 1.0, "x")
        write_manifest(path, [good])
        before = path.read_bytes()
        with pytest.raises(ManifestError, match="two utterances have the id 'a'"):
            write_manifest(path, [good, good])
        with pytest.raises(ManifestError, match="not valid Unicode"):
            write_manifest(path, [Utterance("b", tmp_path / "\udcff.wav", 1.0, "x")])
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.jsonl"]

    def test_an_unwritable_place_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ManifestError, match=r"a\.jsonl: cannot be written"):
            write_manifest(tmp_path / "file" / "a.jsonl", [])


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a.jsonl").write_bytes(content)
    assert manifest_sha256(tmp_path / "a.jsonl") == hashlib.sha256(content).hexdigest()
