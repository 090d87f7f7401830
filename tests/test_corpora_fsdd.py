"""FSDD: speakers held out, and single digits joined into strings of digits."""

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.corpora import fsdd
from asr.corpora.collect import Reason
from asr.errors import ConfigError, ManifestError

CORPORA = Path(os.environ.get("CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))
SPEAKERS = ("ann", "ben", "cas", "d_e")


@pytest.fixture
def source(tmp_path) -> Path:
    """Four speakers (one with an underscore in the name), ten digits, two takes, 8 kHz."""
    recordings = tmp_path / "fsdd" / "recordings"
    recordings.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in range(2):
                clip = rng.integers(-9000, 9000, 300 + 10 * digit + take).astype(np.int16)
                soundfile.write(recordings / f"{digit}_{speaker}_{take}.wav", clip, 8000, subtype="PCM_16")
    return recordings.parent


def test_single_digits_by_speaker(source, tmp_path):
    corpus = fsdd.prepare(source, tmp_path / "out")
    assert {split: {u.speaker for u in part} for split, part in corpus.splits.items()} == {
        "train": {"ann", "ben"},
        "dev": {"cas"},
        "test": {"d_e"},
    }
    assert [len(part) for part in corpus.splits.values()] == [40, 20, 20]
    clip = next(u for u in corpus.splits["test"] if u.id == "7_d_e_1")
    assert (clip.text, clip.duration_seconds) == ("seven", 371 / 8000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dev_speaker": "ann"}, ("ann", "d_e")),
        ({"dev_speaker": "d_e"}, ("d_e", "cas")),
        ({"test_speaker": "ann"}, ("d_e", "ann")),
        ({"dev_speaker": "ben", "test_speaker": "none"}, ("ben", None)),
    ],
)
def test_held_out_speakers_can_be_chosen(source, tmp_path, options, expected):
    splits = fsdd.prepare(source, tmp_path / "out", **options).splits
    dev, test = expected
    assert {u.speaker for u in splits["dev"]} == {dev}
    assert {u.speaker for u in splits["test"]} == ({test} if test else set())
    assert {u.speaker for u in splits["train"]} == set(SPEAKERS) - {dev, test}


def test_connected_digits_are_the_clips_with_gaps_between(source, tmp_path):
    corpus = fsdd.prepare(source, tmp_path / "out", connected=True)
    for part in corpus.splits.values():
        assert Counter(clip for u in part for clip in u.extra["clips"]).most_common(1)[0][1] == 1
        assert sum(len(u.extra["clips"]) for u in part) == 20 * len({u.speaker for u in part})
        for utterance in part:
            check_joined(utterance, source)


def check_joined(utterance, source) -> None:
    """Cut the recording at the clips' lengths: each clip must be there, and quiet between them."""
    names = utterance.extra["clips"]
    assert 3 <= len(names) <= 8
    assert {name.split("_", 1)[1].rsplit("_", 1)[0] for name in names} == {utterance.speaker}
    assert utterance.text.split() == [fsdd.DIGIT_WORDS[int(name[0])] for name in names]
    joined, rate = soundfile.read(utterance.audio_path, dtype="int16")
    assert rate == 8000
    assert utterance.duration_seconds == len(joined) / 8000
    position, gaps = 0, []
    for name in names:
        clip, _ = soundfile.read(source / "recordings" / f"{name}.wav", dtype="int16")
        windows = np.lib.stride_tricks.sliding_window_view(joined[position:], len(clip))
        places = np.flatnonzero((np.abs(windows.astype(int) - clip) <= 1).all(axis=1))
        assert len(places), name
        gaps.append(joined[position : position + places[0]])
        position += places[0] + len(clip)
    assert position == len(joined)
    assert len(gaps[0]) == 0
    for gap in gaps[1:]:
        assert fsdd.MIN_GAP_SECONDS - 1e-3 <= len(gap) / 8000 <= fsdd.MAX_GAP_SECONDS + 1e-3
        assert np.abs(gap.astype(int)).max() < 0.02 * np.abs(joined.astype(int)).max()


def test_passes_repeat_training_clips_only_and_in_other_company(source, tmp_path):
    corpus = fsdd.prepare(source, tmp_path / "out", connected=True, connected_passes=3)
    train = corpus.splits["train"]
    assert set(Counter(clip for u in train for clip in u.extra["clips"]).values()) == {3}
    for split in ("dev", "test"):
        assert sum(len(u.extra["clips"]) for u in corpus.splits[split]) == 20
    assert len({u.id for u in train}) == len(train)
    assert len({tuple(u.extra["clips"]) for u in train}) > 0.9 * len(train)


def test_same_seed_same_files_other_seed_other_strings(source, tmp_path):
    def strings(name, seed):
        corpus = fsdd.prepare(source, tmp_path / name, connected=True, seed=seed)
        return [(u.text, u.audio_path.read_bytes()) for part in corpus.splits.values() for u in part]

    assert strings("a", 1) == strings("b", 1)
    assert strings("a", 1) != strings("c", 2)


def test_a_speaker_is_joined_alike_whatever_split_it_is_in(source, tmp_path):
    as_dev = fsdd.prepare(source, tmp_path / "a", connected=True, dev_speaker="ann").splits["dev"]
    as_train = fsdd.prepare(source, tmp_path / "b", connected=True).splits["train"]
    assert [u.text for u in as_dev] == [u.text for u in as_train if u.speaker == "ann"]


def test_clips_that_do_not_divide_are_named(source, tmp_path):
    corpus = fsdd.prepare(source, tmp_path / "out", connected=True, min_digits=6, max_digits=6)
    left_over = [e for e in corpus.excluded if e.reason is Reason.LEFT_OVER]
    assert len(left_over) == 4 * 2  # 20 clips a speaker = 3 groups of 6, and 2
    used = {clip for part in corpus.splits.values() for u in part for clip in u.extra["clips"]}
    assert used.isdisjoint(e.id for e in left_over)
    assert len(used) + len(left_over) == 80


def test_odd_files_are_accounted_for(source, tmp_path):
    recordings = source / "recordings"
    soundfile.write(recordings / "hello.wav", np.zeros(800), 8000)
    (recordings / "3_ann_9.wav").write_text("no audio")
    corpus = fsdd.prepare(source, tmp_path / "out")
    assert {(e.id, e.reason) for e in corpus.excluded} == {
        ("hello", Reason.MISSING_TRANSCRIPT),
        ("3_ann_9", Reason.UNREADABLE_AUDIO),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev_speaker": "eve"}, "dev_speaker=eve is not one of the speakers ann, ben, cas, d_e"),
        ({"dev_speaker": "ann", "test_speaker": "ann"}, "must not share a voice"),
        ({"dev_speaker": "none"}, "dev_speaker=none"),
        ({"connected_passes": 2}, "need connected=true"),
        ({"connected": True, "connected_passes": 0}, "connected_passes=0"),
        ({"connected": True, "min_digits": 9}, "min_digits=9 and max_digits=8"),
    ],
)
def test_contradictory_options_are_refused(source, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        fsdd.prepare(source, tmp_path / "out", **options)


def test_a_folder_that_is_not_fsdd_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="does not look like FSDD"):
        fsdd.prepare(tmp_path, tmp_path / "out")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 6), st.integers(0, 3))
def test_digit_groups_use_as_many_clips_as_can_be(num_clips, smallest, spread, seed):
    largest = smallest + spread
    sizes = fsdd.digit_groups(num_clips, smallest, largest, random.Random(seed))
    assert all(smallest <= size <= largest for size in sizes)
    # Brute force: the largest total that is reachable with groups of these sizes.
    reachable = {0}
    for total in range(1, num_clips + 1):
        if any(total - size in reachable for size in range(smallest, largest + 1)):
            reachable.add(total)
    assert sum(sizes) == max(reachable)


def test_real_corpus(tmp_path):
    if not (CORPORA / "fsdd").is_dir():
        pytest.skip(f"no FSDD in {CORPORA}")
    corpus = fsdd.prepare(CORPORA / "fsdd", tmp_path)
    everything = [u for part in corpus.splits.values() for u in part]
    assert len(everything) == 3000
    assert len({u.speaker for u in everything}) == 6
    assert Counter(u.text for u in everything) == dict.fromkeys(fsdd.DIGIT_WORDS, 300)
    assert [len(part) for part in corpus.splits.values()] == [2000, 500, 500]
    assert corpus.excluded == []
