"""lhotse's manifests → ours: the samples that lhotse itself would load, and nothing lost."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.config import PrepareConfig
from asr.corpora.lhotse import prepare
from asr.dataset import load_utterance
from asr.errors import ConfigError, ManifestError
from asr.prepare import prepare as prepare_command

RATE = 8000


def test_without_lhotse_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lhotse", None)
    (tmp_path / "cuts.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"pip install 'asr\[lhotse\]'"):
        prepare(tmp_path, tmp_path / "out")


def test_a_folder_without_manifests(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no lhotse manifests"):
        prepare(tmp_path, tmp_path / "out")


def test_a_source_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="corpus=lhotse needs source="):
        prepare_command(PrepareConfig(corpus="lhotse", output=str(tmp_path)))


@pytest.fixture
def recordings(tmp_path: Path) -> dict[str, Path]:
    """Two recordings of one channel, and one of two."""
    paths = {}
    for number, (name, channels) in enumerate((("call", 1), ("talk", 1), ("stereo", 2))):
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, (6 * RATE, channels))
        paths[name] = tmp_path / f"{name}.flac"
        soundfile.write(paths[name], samples, RATE)
    return paths


def test_recordings_and_supervisions(recordings: dict[str, Path], tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    found = lhotse.RecordingSet.from_recordings(
        lhotse.Recording.from_file(path, recording_id=name) for name, path in recordings.items()
    )
    segment = lhotse.SupervisionSegment
    supervisions = [
        segment(
            "a", "call", 0.5, 1.25, text="Good morning", speaker="agent", language="en", custom={"line": 4}
        ),
        segment("b", "call", 2.0, 1.0, text="HELLO?", speaker="caller"),
        segment("c", "talk", 0.0, 6.0, text="the whole of it", speaker="third"),
        segment("mute", "talk", 1.0, 1.0, speaker="third"),
        segment("left", "stereo", 0.0, 1.0, channel=0, text="one side", speaker="fourth"),
        segment("both", "stereo", 0.0, 1.0, channel=[0, 1], text="both sides", speaker="fourth"),
        segment("lost", "nowhere", 0.0, 1.0, text="lost", speaker="fourth"),
    ]
    folder = tmp_path / "manifests"
    folder.mkdir()
    found.to_file(folder / "mine_recordings_train.jsonl.gz")
    lhotse.SupervisionSet.from_segments(supervisions).to_file(folder / "mine_supervisions_train.jsonl.gz")
    corpus = prepare(folder, tmp_path / "out")
    utterances = {u.id: u for split in corpus.splits.values() for u in split}
    excluded = {exclusion.id: exclusion.detail for exclusion in corpus.excluded}
    assert utterances.keys() == {"a", "b", "c", "both"}
    assert utterances.keys() | excluded.keys() == {supervision.id for supervision in supervisions}
    assert "channel [0] of [0, 1]" in excluded["left"]
    assert "nowhere" in excluded["lost"]
    a = utterances["a"]
    assert (a.text, a.speaker, a.offset_seconds, a.duration_seconds) == ("good morning", "agent", 0.5, 1.25)
    assert a.extra == {"language": "en", "line": 4}
    by_speaker = [{u.speaker for u in corpus.splits[split]} for split in ("train", "dev")]
    assert by_speaker[0]
    assert by_speaker[1]
    assert not by_speaker[0] & by_speaker[1]
    for name in ("a", "b", "c"):
        supervision = next(item for item in supervisions if item.id == name)
        expected = found[supervision.recording_id].load_audio(
            offset=supervision.start, duration=supervision.duration
        )
        np.testing.assert_array_equal(load_utterance(utterances[name], RATE).numpy(), expected[0])


def test_cuts_of_each_split(recordings: dict[str, Path], tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(recordings["call"], recording_id="call")
    whole = lhotse.MonoCut("whole", 0.0, 6.0, 0, recording=recording)
    whole.supervisions = [
        lhotse.SupervisionSegment("x", "call", 1.0, 2.0, text="first", speaker="s"),
        lhotse.SupervisionSegment("y", "call", 4.0, 1.5, text="second", speaker="s"),
    ]
    part = whole.truncate(offset=3.5, duration=2.4)  # y begins half a second into it
    fast = whole.perturb_speed(1.1)
    mute = lhotse.MonoCut("mute", 0.0, 1.0, 0, recording=recording)
    folder = tmp_path / "cuts"
    folder.mkdir()
    lhotse.CutSet.from_cuts([whole, mute]).to_file(folder / "cuts_train.jsonl.gz")
    lhotse.CutSet.from_cuts(
        [part.with_id("part").map_supervisions(lambda s: s.with_alignment("w", []))]
    ).to_file(folder / "cuts_dev.jsonl.gz")
    lhotse.CutSet.from_cuts([fast]).to_file(folder / "cuts_test.jsonl.gz")
    corpus = prepare(folder, tmp_path / "out")
    kept = {split: [(u.id, u.offset_seconds) for u in corpus.splits[split]] for split in ("train", "dev")}
    assert kept == {"train": [("x", 1.0)], "dev": [("y", 4.0)]}  # the same supervision in both: dev has it
    reasons = {(item.id, item.reason.value) for item in corpus.excluded}
    assert ("mute", "missing transcript") in reasons
    assert ("y", "duplicate id") in reasons
    assert any("while loading" in item.detail for item in corpus.excluded)

    only_dev = tmp_path / "only"
    only_dev.mkdir()
    late = part.truncate(offset=1.0)  # begins in the middle of y, whose text is that of the whole
    assert late.supervisions[0].start < 0
    lhotse.CutSet.from_cuts([late.with_id("late")]).to_file(only_dev / "cuts_dev.jsonl.gz")
    (utterance,) = prepare(only_dev, tmp_path / "out").splits["dev"]
    assert utterance.offset_seconds == pytest.approx(4.0)
    expected = recording.load_audio(offset=4.0, duration=1.5)
    np.testing.assert_array_equal(load_utterance(utterance, RATE).numpy(), expected[0])


def test_the_command_writes_manifests(recordings: dict[str, Path], tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    cuts = []
    for name in ("call", "talk"):
        recording = lhotse.Recording.from_file(recordings[name], recording_id=name)
        cut = lhotse.MonoCut(f"cut-{name}", 0.0, 6.0, 0, recording=recording)
        cut.supervisions = [lhotse.SupervisionSegment(name, name, 1.0, 2.0, text="hi there", speaker=name)]
        cuts.append(cut)
    source = tmp_path / "mine.jsonl.gz"
    lhotse.CutSet.from_cuts(cuts).to_file(source)
    output = tmp_path / "out"
    prepare_command(PrepareConfig(corpus="lhotse", source=str(source), output=str(output)))
    lines = [
        json.loads(line)
        for split in ("train", "dev")
        for line in (output / f"{split}.jsonl").read_text().splitlines()
    ]
    assert {(line["id"], line["offset"], line["duration"]) for line in lines} == {
        ("call", 1.0, 2.0),
        ("talk", 1.0, 2.0),
    }
    (tmp_path / "bad.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(ManifestError, match=r"bad\.jsonl"):
        prepare_command(
            PrepareConfig(corpus="lhotse", source=str(tmp_path / "bad.jsonl"), output=str(output))
        )
