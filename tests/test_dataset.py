"""Batches that do not depend on the loader, and every reason to leave an utterance out."""

import copy
import math
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import asr.dataset
from asr.audio import load_audio
from asr.augment import WaveformAugmenter
from asr.ctc import min_frames
from asr.datamodule import SpeechDataModule
from asr.dataset import (
    DURATION_TOLERANCE_SECONDS,
    Example,
    Selection,
    SpeechDataset,
    collate,
    load_utterance,
    num_label_frames,
    select_learnable,
    select_readable,
    select_scorable,
    unlearnable_reason,
    unreadable_reason,
)
from asr.errors import AudioError
from asr.records import Batch, Problem, Utterance
from asr.sampler import Pick
from asr.tokenizer import CharTokenizer

RATE = 8000
TOKENIZER = CharTokenizer([" ", "a", "b", "c"], blank_id=0)


def write_noise(path: Path, seconds: float, seed: int = 0) -> Path:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


def example(utterance_id: str, text: str, *, seconds: float = 1.0, path: Path = Path("none.wav")) -> Example:
    return Example(Utterance(utterance_id, path, seconds, text), text)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Ten files of 0.2 to 1.1 s."""
    folder = tmp_path_factory.mktemp("audio")
    found = []
    for index in range(10):
        seconds = 0.2 + index / 10
        path = write_noise(folder / f"{index}.wav", seconds, seed=index)
        text = "abc"[: 1 + index % 3]
        utterance = Utterance(f"utt{index}", path, seconds, text)
        found.append(Example(utterance, text))
    return found


def dataset(
    examples: list[Example], *, augmented: bool = True, cache_bytes: int = 0, sample_rate: int = RATE
) -> SpeechDataset:
    augment = WaveformAugmenter(speed_factors=[0.9, 1.0, 1.1], gain_db=6.0)
    return SpeechDataset(
        examples,
        sample_rate=sample_rate,
        tokenizer=TOKENIZER,
        augment=augment if augmented else None,
        cache_bytes=cache_bytes,
    )


def assert_same(one: Batch, other: Batch) -> None:
    for name, first, second in zip(Batch._fields, one, other, strict=True):
        same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
        assert same, name


# ------------------------------------------------------------------ batches


def test_a_batch_is_what_its_picks_say(examples: list[Example]) -> None:
    batch = dataset(examples, augmented=False)[[Pick(4, 11), Pick(0, 12), Pick(2, 13)]]
    assert batch.utterance_ids == ("utt4", "utt0", "utt2")
    assert batch.texts == ("ab", "a", "abc")
    assert batch.seeds.tolist() == [11, 12, 13]
    assert batch.target_lengths.tolist() == [2, 1, 3]
    assert batch.targets.tolist() == [[2, 3, 0], [2, 0, 0], [2, 3, 4]]
    assert batch.waveform_lengths.tolist() == [4800, 1600, 3200]
    assert batch.waveforms.shape == (3, 4800)
    assert batch.waveforms.dtype == torch.float32
    for waveform, length, position in zip(batch.waveforms, batch.waveform_lengths, [4, 0, 2], strict=True):
        samples, _ = soundfile.read(examples[position].utterance.audio_path, dtype="float32")
        assert torch.equal(waveform[:length], torch.from_numpy(samples))
        assert (waveform[length:] == 0).all()
    counts = (batch.waveform_lengths, batch.targets, batch.target_lengths, batch.seeds)
    assert all(tensor.dtype == torch.int64 for tensor in counts)


def test_targets_are_padded_with_the_blank_wherever_it_is() -> None:
    targets = [[0, 1], [2], []]
    batch = collate([example("u", "")] * 3, targets, [torch.ones(2)] * 3, [Pick(0, 0)] * 3, blank_id=9)
    assert batch.targets.tolist() == [[0, 1], [2, 9], [9, 9]]
    assert batch.target_lengths.tolist() == [2, 1, 0]


def test_a_batch_may_have_no_labels_at_all() -> None:
    batch = collate([example("u", "")] * 2, [[], []], [torch.ones(2)] * 2, [Pick(0, 0)] * 2, blank_id=0)
    assert batch.targets.shape == (2, 0)
    assert batch.targets.dtype == torch.int64


@pytest.mark.slow
def test_the_number_of_loader_processes_changes_nothing(examples: list[Example]) -> None:
    loaded = []
    for num_workers in (0, 2):
        datamodule = SpeechDataModule(
            examples,
            examples[:1],
            sample_rate=RATE,
            tokenizer=TOKENIZER,
            augment=WaveformAugmenter(speed_factors=[0.9, 1.0, 1.1], gain_db=6.0),
            max_batch_utterances=3,
            max_batch_seconds=10.0,
            num_workers=num_workers,
            cache_bytes=10**9,
            seed=5,
        )
        loader = datamodule.train_dataloader()
        epochs = []
        for epoch in range(2):
            datamodule.train_sampler.set_epoch(epoch)
            epochs += list(loader)
        loaded.append(epochs)
    assert len(loaded[0]) == len(loaded[1])
    for one, other in zip(*loaded, strict=True):
        assert_same(one, other)


def test_a_batch_comes_from_a_loader_process_with_one_tensor_in_shared_memory(
    examples: list[Example],
) -> None:
    batch = dataset(examples)[[Pick(4, 2**61), Pick(0, 12)]]
    pickled = ForkingPickler.dumps(batch)
    assert bytes(pickled).count(b"rebuild_storage") == 1
    assert_same(ForkingPickler.loads(pickled), batch)
    assert all(tensor.dtype == torch.int64 for tensor in copy.deepcopy(batch)[2:5])


def test_an_utterance_does_not_depend_on_its_place_or_company(examples: list[Example]) -> None:
    picks = [Pick(index, 100 + index) for index in range(4)]
    forward, backward = dataset(examples)[picks], dataset(examples)[picks[::-1]]
    for index, pick in enumerate(picks):
        alone = dataset(examples)[[pick]]
        length = int(alone.waveform_lengths)
        assert int(forward.waveform_lengths[index]) == int(backward.waveform_lengths[3 - index]) == length
        assert torch.equal(forward.waveforms[index, :length], alone.waveforms[0])
        assert torch.equal(backward.waveforms[3 - index, :length], alone.waveforms[0])


def test_augmentation_follows_the_seed_and_its_absence_leaves_the_audio(examples: list[Example]) -> None:
    changed = [dataset(examples)[[Pick(5, seed)]].waveforms for seed in range(6)]
    assert len({tuple(waveform.flatten()[:50].tolist()) for waveform in changed}) == 6
    plain = [dataset(examples, augmented=False)[[Pick(5, seed)]].waveforms for seed in range(2)]
    assert torch.equal(*plain)


# ------------------------------------------------------------------ cache


def test_the_cache_changes_nothing_but_the_reading(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counting(utterance: Utterance, sample_rate: int) -> Tensor:
        reads.append(utterance.id)
        return load_utterance(utterance, sample_rate)

    monkeypatch.setattr(asr.dataset, "load_utterance", counting)
    picks = [Pick(1, 7), Pick(3, 8)]
    # Room for the first file (0.3 s of float32 samples) alone.
    cached, uncached = dataset(examples, cache_bytes=4 * 2400), dataset(examples)
    for _ in range(3):
        assert_same(cached[picks], uncached[picks])
    assert reads.count("utt1") == 1 + 3
    assert reads.count("utt3") == 3 + 3


def test_augmentation_does_not_reach_into_the_cache(examples: list[Example]) -> None:
    cached = dataset(examples, cache_bytes=10**9)
    first = cached[[Pick(5, 1)]]
    cached[[Pick(5, 2)]].waveforms.zero_()
    assert_same(cached[[Pick(5, 1)]], first)


# ------------------------------------------------------------------ segments


def test_segments_are_the_right_samples(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "long.wav", 5.0)
    samples, _ = soundfile.read(path, dtype="float32")
    for offset, seconds in ((0.0, 1.0), (1.25, 2.5), (4.0, 0.5)):
        segment = load_utterance(Utterance("u", path, seconds, "a", offset_seconds=offset), RATE)
        start = round(offset * RATE)
        assert torch.equal(segment, torch.from_numpy(samples[start : start + round(seconds * RATE)]))


@pytest.mark.parametrize("seconds", [2.9, 2.96, 3.0, 3.04, 3.09])
def test_a_rounded_duration_means_the_whole_file(tmp_path: Path, seconds: float) -> None:
    path = write_noise(tmp_path / "whole.wav", 3.0)
    utterance = Utterance("u", path, seconds, "a")
    assert unreadable_reason(utterance) is None
    assert torch.equal(load_utterance(utterance, RATE), load_audio(path, RATE))
    tail = Utterance("u", path, seconds - 1, "a", offset_seconds=1.0)
    assert torch.equal(load_utterance(tail, RATE), load_audio(path, RATE)[RATE:])


def test_audio_is_resampled_when_it_is_loaded(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "u.wav", 1.0)
    assert len(load_utterance(Utterance("u", path, 1.0, "a"), 2 * RATE)) == 2 * RATE


def test_a_file_that_goes_bad_later_is_named(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "gone.wav", 1.0)
    chosen = dataset([example("u", "a", path=path)])
    path.unlink()
    with pytest.raises(AudioError, match=r"gone\.wav"):
        chosen[[Pick(0, 0)]]


# ------------------------------------------------------------------ what is left out


def reason_for(
    text: str, *, seconds: float = 1.0, num_frames: Callable[[float], int] = lambda seconds: 1000
) -> str | None:
    problem = unlearnable_reason(example("u", text, seconds=seconds), TOKENIZER, 0.5, 20.0, num_frames)
    return problem.detail if problem is not None else None


def test_reasons_not_to_learn() -> None:
    assert reason_for("abc cab") is None
    assert reason_for("") == "empty text"
    assert reason_for("abc", seconds=0.499) == "shorter than data.min_seconds=0.5"
    assert reason_for("abc", seconds=0.5) is None
    assert reason_for("abc", seconds=20.0) is None
    assert reason_for("abc", seconds=20.01) == "longer than data.max_seconds=20"
    assert reason_for("xaéb") == "unknown characters 'x' 'é'"


@pytest.mark.parametrize(
    ("text", "needed"), [("a", 1), ("abc", 3), ("aa", 3), ("aab", 4), ("aaa", 5), ("abab", 4), ("ab  ba", 5)]
)
def test_labels_and_repeats_need_frames_to_the_exact_count(text: str, needed: int) -> None:
    target = TOKENIZER.encode(text)
    assert num_label_frames(target) == needed
    assert int(min_frames(torch.tensor([target]), torch.tensor([len(target)]))) == needed
    assert reason_for(text, num_frames=lambda seconds: needed) is None
    refused = reason_for(text, num_frames=lambda seconds: needed - 1)
    assert refused == (
        f"too few frames: {needed} needed for the labels and their repeats, {needed - 1} there"
    )
    # The loss itself draws the line at the same place.
    for num_frames in (needed, needed - 1):
        if num_frames > 0:
            loss = torch.nn.functional.ctc_loss(
                torch.zeros(num_frames, 1, 5).log_softmax(2),
                torch.tensor([target]),
                torch.tensor([num_frames]),
                torch.tensor([len(target)]),
            )
            assert math.isfinite(loss) == (num_frames == needed)


def test_reasons_not_to_read(tmp_path: Path) -> None:
    good = write_noise(tmp_path / "good.wav", 2.0)
    text_file = tmp_path / "text.wav"
    text_file.write_text("this is no audio")
    utterances = [
        Utterance("good", good, 2.0, "A b"),
        Utterance("missing", tmp_path / "missing.wav", 1.0, "a"),
        Utterance("text", text_file, 1.0, "a"),
        Utterance("longer", good, 2.0 + DURATION_TOLERANCE_SECONDS + 0.01, "a"),
        Utterance("beyond", good, 1.0, "a", offset_seconds=1.5),
        Utterance("outside", good, 0.05, "a", offset_seconds=2.0),
        Utterance("segment", good, 0.5, "a", offset_seconds=1.5),
    ]
    selection = select_readable(utterances, str.lower)
    assert [(kept.utterance.id, kept.text) for kept in selection.examples] == [
        ("good", "a b"),
        ("segment", "a"),
    ]
    reasons = {exclusion.id: exclusion.reason for exclusion in selection.exclusions}
    assert list(reasons) == ["missing", "text", "longer", "beyond", "outside"]
    assert "missing.wav: no such audio file" in reasons["missing"]
    assert "text.wav: cannot be decoded as audio" in reasons["text"]
    assert reasons["longer"] == f"the manifest says the audio reaches to 2.11 s but {good} is 2.00 s long"
    assert reasons["beyond"] == f"the manifest says the audio reaches to 2.50 s but {good} is 2.00 s long"
    assert reasons["outside"] == f"the manifest says the audio begins at 2.00 s but {good} is 2.00 s long"
    assert [exclusion.duration_seconds for exclusion in selection.exclusions[:2]] == [1.0, 1.0]
    for kept in selection.examples:  # whatever was kept can really be loaded
        assert len(load_utterance(kept.utterance, RATE)) > 0


def test_training_leaves_out_what_validation_still_counts() -> None:
    kept, empty, strange = example("kept", "ab"), example("empty", ""), example("strange", "x")
    unreadable = asr.dataset.Exclusion("unreadable", "unreadable", "no such audio file", 3.0)
    readable = Selection([kept, empty, strange], [unreadable])

    def reasons(one: Example) -> Problem | None:
        return unlearnable_reason(one, TOKENIZER, 0.0, 20.0, lambda seconds: 100)

    learnable = select_learnable(readable, reasons)
    assert [one.utterance.id for one in learnable.examples] == ["kept"]
    assert dataset(learnable.examples).target(0) == [2, 3]
    assert [one.id for one in learnable.exclusions] == ["unreadable", "empty", "strange"]

    scorable = select_scorable(readable, reasons)
    assert [one.utterance.id for one in scorable.examples] == ["kept", "empty", "strange"]
    assert [dataset(scorable.examples).target(position) for position in range(3)] == [[2, 3], [], []]
    assert scorable.exclusions == [unreadable]
    assert [(one.id, one.problem) for one in scorable.without_target] == [
        ("empty", "empty_text"),
        ("strange", "unknown_characters"),
    ]
    assert readable.exclusions == [unreadable]  # the given lists stay as they were
