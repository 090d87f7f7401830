"""The doctor: each defect planted once is found, nothing else is; training leaves out the same."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import TINY_OPTIONS, compose_config

import asr.selection
from asr.config import DoctorConfig, TrainConfig
from asr.doctor import examine
from asr.errors import ConfigError, ManifestError
from asr.inspection import audio_fingerprint, inspect_audio, recall, remember
from asr.manifest import manifest_sha256, read_manifest
from asr.train import train

RATE = 8000
Sick = dict[str, Any]


class Ward:
    """A corpus of noise to which patients are added; each is of unique sound and text unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: dict[str, list[dict[str, Any]]] = {"train": [], "dev": [], "test": []}
        self.random = np.random.default_rng(0)
        self.texts: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def noise(self, seconds: float = 1.5) -> np.ndarray:
        return 0.1 * self.random.standard_normal(round(seconds * RATE)).clip(-3, 3)

    def text(self, num_characters: int = 10) -> str:
        while True:
            text = "".join(self.random.choice(list("abcd"), num_characters))
            if text not in self.texts:
                self.texts.add(text)
                return text

    def add(
        self,
        split: str,
        name: str,
        samples: np.ndarray | None = None,
        *,
        rate: int = RATE,
        subtype: str = "PCM_16",
        suffix: str = ".wav",
        **fields: Any,
    ) -> Path:
        samples = self.noise() if samples is None else samples
        path = self.folder / f"{name}{suffix}"
        soundfile.write(path, samples, rate, subtype=subtype)
        line = {
            "id": name,
            "audio_filepath": path.name,
            "duration": len(samples) / rate,
            "text": self.text(),
            "speaker": f"{split}-speaker",
        }
        self.lines[split].append({**line, **fields})
        return path

    def write(self) -> dict[str, Path]:
        paths = {split: self.folder / f"{split}.jsonl" for split in self.lines}
        for split, path in paths.items():
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines[split]))
        return paths


@dataclasses.dataclass(frozen=True)
class Hospital:
    manifests: dict[str, Path]
    expected: set[tuple[str, str, str]]  # severity, check and id

    def options(self, *more: str) -> list[str]:
        named = [f"data.{split}={path}" for split, path in self.manifests.items()]
        return [*TINY_OPTIONS, *named, "data.min_seconds=0.3", "data.max_seconds=10", *more]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """32 sound utterances and one patient for each check, with the diagnosis as its name."""
    ward = Ward(tmp_path_factory.mktemp("hospital"))
    for number in range(32):
        ward.add("train", f"sound-{number}")
    for number in range(4):
        ward.add("dev", f"dev-sound-{number}")
        ward.add("test", f"test-sound-{number}")
    errors = {
        "missing": "unreadable",
        "no-audio": "unreadable",
        "headless": "unreadable",
        "beyond": "outside_file",
        "cut": "damaged",
        "nan": "not_finite",
        "silent": "silent",
        "empty": "empty_text",
        "crowded": "too_few_frames",
        "short": "too_short",
        "long": "too_long",
    }
    ward.add("train", "missing").unlink()
    ward.add("train", "no-audio").write_text("this is no audio")
    path = ward.add("train", "headless")
    path.write_bytes(path.read_bytes()[:-5000])  # its header promises more
    ward.add("train", "beyond", duration=1.9)
    path = ward.add("train", "cut", suffix=".flac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    spoilt = ward.noise()
    spoilt[100] = np.nan
    ward.add("train", "nan", spoilt, subtype="FLOAT")
    ward.add("train", "silent", np.zeros(12000))
    ward.add("train", "empty", text=" ?! ")
    ward.add("train", "crowded", text="aabb" * 40)
    ward.add("train", "short", ward.noise(0.25), text="a")
    ward.add("train", "long", ward.noise(11.0), text=ward.text(80))
    warnings = {
        "twin": "duplicate_audio",
        "leak": "audio_in_several_splits",
        "slow": "speaking_rate",
        "unfinished": "shorter_than_file",
        "loud": "clipped",
        "shifted": "dc_offset",
        "narrow": "lower_rate",
        "stereo": "several_channels",
        "dev-guest": "speaker_in_several_splits",
        "dev-accent": "unknown_characters",
        "dev-empty": "empty_text",
        "dev-silent": "silent",
    }
    for name, original in (
        ("twin", "sound-3"),
        ("leak", "test-sound-1"),
    ):  # the same samples in another format
        ward.add("train", name, soundfile.read(ward.folder / f"{original}.wav")[0], suffix=".flac")
    ward.add("train", "slow", text="ab", samples=ward.noise(6.0))
    ward.add("train", "unfinished", duration=1.2)
    ward.add("train", "loud", 20 * ward.noise())
    ward.add("train", "shifted", ward.noise() + 0.1)
    ward.add("train", "narrow", ward.noise(0.75), rate=RATE // 2)
    ward.add("train", "stereo", np.stack([ward.noise(), ward.noise()], axis=1))
    ward.add("dev", "dev-guest", speaker="train-speaker")
    ward.add("dev", "dev-accent", text="abcdé abcd")
    ward.add("dev", "dev-empty", text="")
    ward.add("dev", "dev-silent", np.zeros(12000))
    ward.add("test", "test-gone").unlink()
    infos = {"dev-echo": "text_in_several_splits"}
    ward.add("dev", "dev-echo", text=ward.lines["train"][5]["text"])
    expected = {("error", check, name) for name, check in {**errors, "test-gone": "unreadable"}.items()}
    expected |= {("warning", check, name) for name, check in warnings.items()}
    expected |= {("info", check, name) for name, check in infos.items()}
    return Hospital(ward.write(), expected)


def doctor_config(hospital: Hospital, output: Path, *more: str) -> DoctorConfig:
    return compose_config("doctor", DoctorConfig, hospital.options(f"output={output}", *more))


def findings_in(folder: Path) -> list[Sick]:
    return [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]


def diagnoses(findings: list[Sick]) -> set[tuple[str, str, str]]:
    return {(finding["severity"], finding["check"], finding["id"]) for finding in findings}


# ------------------------------------------------------------------ what is found


def test_each_planted_defect_is_found_and_nothing_else(
    hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert examine(doctor_config(hospital, tmp_path)) == 1
    findings = findings_in(tmp_path)
    assert diagnoses(findings) == hospital.expected
    assert len(findings) == len(hospital.expected)
    details = {finding["id"]: finding["detail"] for finding in findings}
    assert "same audio as train sound-3, with another text" in details["twin"]
    assert "same audio as test test-sound-1" in details["leak"]
    assert "median of train is 6.7" in details["slow"]  # ten letters in 1.5 s
    assert "described as 1.20 s, the file has 1.50 s" in details["unfinished"]
    assert "'é'" in details["dev-accent"]

    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["num_errors"] == 12
    train_summary = report["splits"]["train"]
    assert train_summary["num_utterances"] == 32 + 11 + 8
    assert train_summary["num_used"] == 32 + 8
    assert report["splits"]["dev"]["num_used"] == 9  # what cannot be learned from is still scored
    unreadable = next(
        check for check in report["checks"] if check["check"] == "unreadable" and check["split"] == "train"
    )
    assert unreadable["num_utterances"] == 3
    assert unreadable["hours"] == pytest.approx(4.5 / 3600)
    assert set(unreadable["ids"]) == {"missing", "no-audio", "headless"}
    for histogram in report["histograms"].values():
        assert {name: sum(counts) for name, counts in histogram["counts"].items()} == {
            "train": 40,
            "dev": 9,
            "test": 4,
        }
    assert (tmp_path / "doctor.png").read_bytes()[:4] == b"\x89PNG"
    assert "12 errors" in capsys.readouterr().out


def test_headers_alone_do_not_know_what_sounds_wrong(hospital: Hospital, tmp_path: Path) -> None:
    examine(doctor_config(hospital, tmp_path, "doctor.depth=quick"))
    needs_samples = {"cut", "nan", "silent", "twin", "leak", "loud", "shifted", "dev-silent"}
    expected = {item for item in hospital.expected if item[2] not in needs_samples}
    assert diagnoses(findings_in(tmp_path)) == expected


def test_without_audio_only_the_manifests_speak(hospital: Hospital, tmp_path: Path) -> None:
    examine(doctor_config(hospital, tmp_path, "doctor.depth=off"))
    found = {check for _, check, _ in diagnoses(findings_in(tmp_path))}
    assert found == {
        *("empty_text", "too_few_frames", "too_short", "too_long", "unknown_characters"),
        *("speaking_rate", "speaker_in_several_splits", "text_in_several_splits"),
    }


def test_a_sound_corpus_has_exit_code_0(tmp_path: Path) -> None:
    ward = Ward(tmp_path / "audio")
    for number in range(30):
        ward.add("train", f"t{number}")
    ward.add("dev", "d")
    manifests = ward.write()
    manifests["test"].unlink()
    assert examine(doctor_config(Hospital(manifests, set()), tmp_path / "out")) == 0
    assert findings_in(tmp_path / "out") == []


def test_segments_of_a_long_file(tmp_path: Path) -> None:
    """Segments are no duplicates of each other, and none of them is shorter than its file."""
    ward = Ward(tmp_path / "audio")
    ward.add("train", "call", ward.noise(9.0))
    line = ward.lines["train"].pop()
    for number in range(6):
        ward.lines["train"].append(
            {**line, "id": f"s{number}", "offset": 1.5 * number, "duration": 1.5, "text": ward.text()}
        )
    ward.lines["train"].append({**ward.lines["train"][2], "id": "again"})
    ward.add("dev", "d")
    for depth in ("full", "quick"):
        output = tmp_path / depth
        config = doctor_config(
            Hospital(ward.write(), set()), output, f"doctor.depth={depth}", "data.test=null"
        )
        examine(config)
        assert diagnoses(findings_in(output)) == {("warning", "duplicate_audio", "again")}


# ------------------------------------------------------------------ fix


def test_fix_keeps_or_names_every_line(hospital: Hospital, tmp_path: Path) -> None:
    fixed = tmp_path / "clean" / "train.jsonl"
    drop = ["duplicate_audio", "clipped"]
    assert examine(doctor_config(hospital, tmp_path, f"fix={fixed}", f"drop=[{','.join(drop)}]")) == 1
    before = {utterance.id: utterance for utterance in read_manifest(hospital.manifests["train"])}
    kept = {utterance.id: utterance for utterance in read_manifest(fixed)}
    left_out = [json.loads(line) for line in fixed.with_suffix(".excluded.jsonl").read_text().splitlines()]
    assert kept.keys() | {line["id"] for line in left_out} == before.keys()
    assert len(kept) + len({line["id"] for line in left_out}) == len(before)
    assert all(kept[name] == before[name] for name in kept)
    expected = {
        (check, name)
        for severity, check, name in hospital.expected
        if name in before and (severity == "error" or check in drop)
    }
    assert {(line["check"], line["id"]) for line in left_out} == expected
    # What is left over is only the error in test; without it the exit code is 0.
    again = Hospital({"train": fixed, "dev": hospital.manifests["dev"]}, set())
    assert examine(doctor_config(again, tmp_path / "again", "data.test=null")) == 0
    assert examine(doctor_config(hospital, tmp_path, f"fix={fixed}", "data.test=null")) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["drop=[clipped]"], "fix="),
        (["fix=out.jsonl", "drop=[cliped]"], "cliped"),
        (["fix=out.txt"], ".jsonl"),
        (["fix=out.jsonl", "fix_split=test", "data.test=null"], "fix_split=test"),
        (["fix=out.jsonl", "fix_split=tset"], "did you mean 'test'"),
        (["doctor.depth=deep"], "doctor.depth=deep"),
        (["doctor.auto_hours=-1"], "doctor.auto_hours"),
    ],
)
def test_options_that_cannot_be_meant(
    hospital: Hospital, tmp_path: Path, options: list[str], words: str
) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        examine(doctor_config(hospital, tmp_path, *options))
    error = caught.value if isinstance(caught.value, ConfigError) else caught.value.__cause__ or caught.value
    assert words in str(error)
    assert not (tmp_path / "doctor.json").exists()


def test_a_manifest_is_never_replaced_by_its_cleaned_copy(hospital: Hospital, tmp_path: Path) -> None:
    before = hospital.manifests["train"].read_bytes()
    with pytest.raises(ConfigError, match="one of the manifests"):
        examine(doctor_config(hospital, tmp_path, f"fix={hospital.manifests['train']}"))
    assert hospital.manifests["train"].read_bytes() == before


def test_nothing_readable_says_why(tmp_path: Path) -> None:
    ward = Ward(tmp_path / "audio")
    ward.add("train", "gone").unlink()
    with pytest.raises(ManifestError, match=r"gone\.wav: no such audio file"):
        examine(doctor_config(Hospital(ward.write(), set()), tmp_path, "data.dev=gone", "data.test=null"))


# ------------------------------------------------------------------ remembering


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look at the audio decoded it."""
    calls: list[bool] = []

    def counting(utterances: Any, *, decode: bool, on_progress: Callable[[int], None]) -> Any:
        calls.append(decode)
        return inspect_audio(utterances, decode=decode, on_progress=on_progress)

    monkeypatch.setattr(asr.selection, "inspect_audio", counting)
    return calls


def test_audio_is_looked_at_again_only_when_it_changed(
    hospital: Hospital, tmp_path: Path, inspected: list[bool]
) -> None:
    cache = f"doctor.cache={tmp_path / 'cache'}"
    for _ in range(2):
        examine(doctor_config(hospital, tmp_path, cache))
        assert diagnoses(findings_in(tmp_path)) == hospital.expected
    assert inspected == [True] * 3  # train, dev, test; once
    os.utime(hospital.manifests["dev"].parent / "dev-sound-1.wav", (1, 1))
    examine(doctor_config(hospital, tmp_path, cache))
    assert inspected == [True] * 4
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    examine(doctor_config(hospital, tmp_path, cache))
    assert inspected == [True] * 7
    examine(doctor_config(hospital, tmp_path, "doctor.cache=/proc/cannot/be"))
    assert diagnoses(findings_in(tmp_path)) == hospital.expected


def test_what_is_remembered_is_what_was_found(hospital: Hospital, tmp_path: Path) -> None:
    utterances = read_manifest(hospital.manifests["train"])
    fingerprint = audio_fingerprint(utterances, manifest_sha256(hospital.manifests["train"]))
    facts = inspect_audio(utterances, decode=True, num_threads=3)
    assert remember(tmp_path, fingerprint, facts)
    known = recall(tmp_path, fingerprint, decoded=True)
    assert known is not None
    assert known.problems == facts.problems
    for name in ("sample_rates", "num_channels", "file_seconds", "digests"):
        np.testing.assert_array_equal(getattr(known, name), getattr(facts, name))
    assert recall(tmp_path, fingerprint, decoded=False) is None


@pytest.mark.parametrize(
    ("options", "decoded"),
    [
        (["doctor.depth=auto"], [True, True]),
        (["doctor.depth=auto", "doctor.auto_hours=0.001"], [False, False]),
        (["doctor.depth=quick"], [False, False]),
        (["doctor.depth=off"], []),
    ],
)
def test_training_looks_as_deeply_as_it_is_told(
    tiny_train_config: Any,
    tmp_path: Path,
    inspected: list[bool],
    options: list[str],
    decoded: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asr.train.make_trainer", stop)
    with pytest.raises(StopHereError):
        train(tiny_train_config(tmp_path / "run", *options))
    assert inspected == decoded
    log = (tmp_path / "run" / "train.log").read_text()
    assert ("decodes all of it once" in log) == ("doctor.auto_hours=0.001" in options)


def test_auto_uses_what_the_doctor_decoded_before(
    tiny_train_config: Any, tmp_path: Path, inspected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.train.make_trainer", stop)
    cache = f"doctor.cache={tmp_path / 'cache'}"
    for number, options in enumerate((["doctor.depth=full"], ["doctor.auto_hours=0"])):
        with pytest.raises(StopHereError):
            train(tiny_train_config(tmp_path / f"run{number}", cache, *options))
    assert inspected == [True, True]


class StopHereError(Exception):
    """Far enough."""


def stop(*unused: Any) -> None:
    raise StopHereError


# ------------------------------------------------------------------ training leaves out the same


def test_training_leaves_out_what_the_doctor_calls_errors(hospital: Hospital, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = compose_config(
        "train", TrainConfig, hospital.options(f"run_dir={run_dir}", "trainer.max_epochs=1")
    )
    assert train(config) == 0
    excluded = [json.loads(line) for line in (run_dir / "excluded.jsonl").read_text().splitlines()]
    errors = {(check, name) for severity, check, name in hospital.expected if severity == "error"}
    assert {(line["problem"], line["id"]) for line in excluded} == errors - {("unreadable", "test-gone")}
    log = (run_dir / "train.log").read_text()
    assert "train: 40 utterances" in log
    assert "warning: train: 1 utterances (0.00 hours): overdriven" in log
    assert len(findings_in(run_dir)) == len(excluded) + 12 + 1 - 1  # the leak is into test

    # Going on uses the same utterances, whatever the doctor would say now.
    before = (run_dir / "excluded.jsonl").read_bytes()
    options = [f"resume={run_dir}", f"run_dir={run_dir}", "trainer.max_epochs=2", "doctor.depth=off"]
    assert train(compose_config("train", TrainConfig, hospital.options(*options))) == 0
    assert (run_dir / "excluded.jsonl").read_bytes() == before
