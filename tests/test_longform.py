"""Stitching, against a model that hears tones: letter by letter, so that nothing can get lost unseen."""

import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asr import longform
from asr.audio import load_audio, stream_audio
from asr.build import make_acoustic_model
from asr.config import BiLstmConfig, LogMelConfig
from asr.decode.decoder import LETTER_SECONDS
from asr.decode.greedy import GreedyDecoder
from asr.longform import (
    PlacedEmissions,
    Stretch,
    WindowPlan,
    choose_cut,
    choose_pause,
    decodable_stretches,
    lacks_space,
    place_windows,
    recognise_long,
    stitch,
)
from asr.recogniser import Recogniser
from asr.records import Emissions
from asr.tokenizer import CharTokenizer

RATE = 8000
FRAME = 320  # samples of one emission frame: 40 ms
LETTERS = "abcdefgh"
GARBAGE = "x"  # what the model hears when a tone is cut off by the edge of a window
TOKENIZER = CharTokenizer([" ", *LETTERS, GARBAGE])
BLANK = TOKENIZER.blank_id


def tone(letter: str, num_frames: float) -> np.ndarray:
    time = np.arange(round(num_frames * FRAME)) / RATE
    return (0.3 * np.sin(2 * np.pi * (400 + 200 * LETTERS.index(letter)) * time)).astype(np.float32)


def silence(num_frames: float) -> np.ndarray:
    return np.zeros(round(num_frames * FRAME), dtype=np.float32)


def speak(words: list[str], seed: int) -> np.ndarray:
    """Tones of 2–3.5 frames, 1–2 frames apart within a word and 6–20 between words."""
    generator = random.Random(seed)
    pieces = [silence(10)]
    for word in words:
        for letter in word:
            pieces += [tone(letter, generator.uniform(2, 3.5)), silence(generator.uniform(1, 2))]
        pieces.append(silence(generator.uniform(5, 18)))
    return np.concatenate([*pieces, silence(10)])


class ToneModel(nn.Module):
    """Hears the tone of each letter as CTC models do: one peaked frame per token, not always the same one.

    With ``jitter``, a letter's frame may be one off and the space falls anywhere in the pause,
    differently in each window. A tone that touches the edge of its window is heard as garbage.
    """

    seconds_per_frame = FRAME / RATE

    def __init__(self, jitter: bool = True) -> None:
        super().__init__()
        self.features = SimpleNamespace(sample_rate=RATE)
        self.weight = nn.Parameter(torch.zeros(1))  # gives the model a device
        self.generator = random.Random(0) if jitter else None
        self.batch_sizes: list[int] = []

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Emissions:
        self.batch_sizes.append(len(waveforms))
        labels = [self.hear(waveform[:length]) for waveform, length in zip(waveforms, lengths, strict=True)]
        padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=BLANK)
        return Emissions(peaked(padded), torch.tensor([len(one) for one in labels]))

    def hear(self, waveform: Tensor) -> Tensor:
        """The label of each frame, ``(frames,)``."""
        labels = torch.full((len(waveform) // FRAME + 1,), BLANK)
        is_tone = torch.nn.functional.max_pool1d(waveform.abs()[None], 41, 1, 20)[0] > 0.01
        edges = torch.nonzero(torch.diff(is_tone.int(), prepend=is_tone[:1].int()))[:, 0].tolist()
        bounds = [0, *edges, len(waveform)]
        for start, end in pairwise(bounds):
            at_edge = start == 0 or end == len(waveform)
            if bool(is_tone[start]):
                label = TOKENIZER.encode(GARBAGE if at_edge else letter_of(waveform[start:end]))[0]
                labels[min(start // FRAME + 1 + self.random(0, 1), len(labels) - 1)] = label
            elif end - start > 4 * FRAME and not at_edge:
                first, last = start // FRAME + 2, end // FRAME - 1
                labels[first + self.random(0, last - first)] = TOKENIZER.encode("a a")[1]
        return labels

    def random(self, low: int, high: int) -> int:
        return self.generator.randint(low, high) if self.generator else low


def letter_of(waveform: Tensor) -> str:
    spectrum = torch.fft.rfft(waveform, n=RATE).abs()
    return LETTERS[round((int(spectrum.argmax()) - 400) / 200)]


def peaked(labels: Tensor) -> Tensor:
    """Labels of any shape → log-probabilities that prefer them."""
    return (8.0 * nn.functional.one_hot(labels, TOKENIZER.vocab_size)).float().log_softmax(dim=-1)


def emitted(text: str) -> Tensor:
    """``"-a-b"`` → ``(frames, vocab)``, with ``-`` for the blank."""
    return peaked(torch.tensor([BLANK if c == "-" else TOKENIZER.tokens.index(c) for c in text]))


def tone_recogniser(jitter: bool = True) -> Recogniser:
    decoder = GreedyDecoder(TOKENIZER, ToneModel.seconds_per_frame)
    return Recogniser(ToneModel(jitter), TOKENIZER, decoder, lambda text: " ".join(text.split()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


def write(path: Path, waveform: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, waveform, rate, subtype="FLOAT")
    return path


# --------------------------------------------------------------------------- whole recordings


@settings(max_examples=30, deadline=None)
@given(
    words=st.lists(st.text(LETTERS, min_size=1, max_size=7), min_size=10, max_size=40),
    seed=st.integers(0, 10**6),
    window_seconds=st.floats(2.5, 7),
    overlap_share=st.floats(0.35, 0.5),
)
def test_no_word_is_lost_or_doubled(
    folder: Path, words: list[str], seed: int, window_seconds: float, overlap_share: float
) -> None:
    path = write(folder / "words.wav", speak(words, seed))
    hypothesis = recognise_long(
        tone_recogniser(),
        path,
        window_seconds=window_seconds,
        overlap_seconds=window_seconds * overlap_share,
        max_batch_seconds=20,
    )
    assert hypothesis.text == " ".join(words)
    assert [word.text for word in hypothesis.words] == words


def test_one_letter_repeated_is_counted_exactly(folder: Path) -> None:
    """Nothing but the time tells these words apart."""
    words = ["aa"] * 60
    path = write(folder / "repeated.wav", speak(words, seed=3))
    for overlap_seconds in (1.0, 1.5, 2.0):
        hypothesis = recognise_long(
            tone_recogniser(), path, window_seconds=4, overlap_seconds=overlap_seconds, max_batch_seconds=8
        )
        assert hypothesis.text == " ".join(words)


def test_words_have_the_times_of_the_whole_recording(folder: Path) -> None:
    """Each word stands after as much silence as says its number: the last has no accumulated error."""
    starts = [3.0 + 4.013 * number for number in range(30)]
    waveform = np.zeros(round(130 * RATE), dtype=np.float32)
    for start in starts:
        word = np.concatenate([tone("c", 3), silence(1), tone("d", 3)])
        waveform[round(start * RATE) :][: len(word)] = word
    path = write(folder / "times.wav", waveform)
    hypothesis = recognise_long(
        tone_recogniser(jitter=False), path, window_seconds=7, overlap_seconds=2.3, max_batch_seconds=14
    )
    assert [word.text for word in hypothesis.words] == ["cd"] * 30
    for word, start in zip(hypothesis.words, starts, strict=True):
        assert 0 <= word.start_seconds + LETTER_SECONDS - start <= 2 * ToneModel.seconds_per_frame
        assert word.end_seconds > word.start_seconds
    labels = [
        frame for frame, token in zip(hypothesis.token_frames, hypothesis.token_ids, strict=True) if token > 1
    ]
    spike_seconds = labels[-2] * ToneModel.seconds_per_frame
    assert hypothesis.words[-1].start_seconds == pytest.approx(spike_seconds - LETTER_SECONDS)


def test_a_recording_at_another_rate(folder: Path) -> None:
    words = ["abc", "fed", "gh"] * 8
    narrow = torch.from_numpy(speak(words, seed=5))
    upsampled = nn.functional.interpolate(narrow[None, None], scale_factor=2.0, mode="linear")[0, 0]
    path = write(folder / "wide.wav", upsampled.numpy(), 2 * RATE)
    hypothesis = recognise_long(
        tone_recogniser(), path, window_seconds=5, overlap_seconds=2, max_batch_seconds=5
    )
    assert hypothesis.text == " ".join(words)


def test_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the model nor the decoder ever gets more than its share of a long recording."""
    monkeypatch.setattr(longform, "MAX_DECODED_SECONDS", 20.0)
    words = ["abc", "de", "fffg"] * 100
    waveform = speak(words, seed=1)
    path = write(folder / "long.wav", waveform)
    recogniser = tone_recogniser()
    decoded_seconds: list[float] = []
    decode = recogniser.decoder.decode
    monkeypatch.setattr(
        recogniser.decoder,
        "decode",
        lambda emissions: (
            decoded_seconds.append(emissions.log_probs.shape[1] * ToneModel.seconds_per_frame),
            decode(emissions),
        )[1],
    )
    done: list[float] = []
    hypothesis = recognise_long(
        recogniser, path, window_seconds=5, overlap_seconds=1.5, max_batch_seconds=17, on_progress=done.append
    )
    assert hypothesis.text == " ".join(words)
    assert max(recogniser.acoustic_model.batch_sizes) == 3  # of 5 s within 17 s
    assert max(decoded_seconds) <= 20
    assert min(decoded_seconds[:-1]) >= 10
    assert sum(decoded_seconds) == pytest.approx(len(waveform) / RATE, abs=0.05)
    assert done == sorted(done)
    assert done[-1] == pytest.approx(len(waveform) / RATE, abs=0.05)


# --------------------------------------------------------------------------- windows


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 60 * RATE),
    window_seconds=st.floats(1, 8),
    overlap_share=st.floats(0.05, 0.5),
)
@example(num_samples=84481, window_seconds=6.9375, overlap_share=0.4765625)  # a rest below one frame
def test_windows_are_the_recording_from_their_first_frame_on(
    folder: Path, num_samples: int, window_seconds: float, overlap_share: float
) -> None:
    samples = np.random.default_rng(num_samples).uniform(-1, 1, num_samples).astype(np.float32)
    path = write(folder / "noise.wav", samples)
    plan = WindowPlan.for_recogniser(tone_recogniser(), window_seconds, window_seconds * overlap_share)
    windows = list(
        place_windows(
            stream_audio(path, RATE, window_seconds=plan.window_seconds, hop_seconds=plan.hop_seconds), plan
        )
    )
    for window in windows:
        start = window.first_frame * FRAME
        np.testing.assert_array_equal(window.waveform, samples[start : start + len(window.waveform)])
    for window, following in pairwise(windows):
        assert 0 < following.first_frame - window.first_frame <= plan.hop_frames
    assert windows[-1].first_frame * FRAME + len(windows[-1].waveform) == num_samples
    if len(windows) > 1:  # no short rest
        assert len(windows[-1].waveform) > (plan.window_frames - 1) * FRAME


@settings(max_examples=30, deadline=None)
@given(num_samples=st.integers(16_000, 200_000))
def test_stitched_frames_number_what_the_model_makes_of_the_whole(folder: Path, num_samples: int) -> None:
    model = make_acoustic_model(
        LogMelConfig(num_mels=8),
        BiLstmConfig(conv_channels=[2, 2], conv_strides=[[2, 2], [2, 2]], rnn_size=4, rnn_layers=1),
        vocab_size=TOKENIZER.vocab_size,
    ).eval()
    recogniser = Recogniser(model, TOKENIZER, GreedyDecoder(TOKENIZER, model.seconds_per_frame), str)
    path = write(folder / "count.wav", np.zeros(num_samples, dtype=np.float32), 16_000)
    plan = WindowPlan.for_recogniser(recogniser, 1.5, 0.5)
    windows = place_windows(
        stream_audio(path, 16_000, window_seconds=plan.window_seconds, hop_seconds=plan.hop_seconds), plan
    )
    emissions = (
        PlacedEmissions(window.first_frame, recogniser.emissions([window.waveform]).log_probs[0])
        for window in windows
    )
    num_frames = sum(len(stretch.log_probs) for stretch in stitch(emissions, TOKENIZER, 12))
    assert num_frames == int(model.output_lengths(torch.tensor([num_samples]))[0])


def test_stitching_a_model_without_context_changes_nothing(folder: Path) -> None:
    path = write(folder / "local.wav", speak(["abc", "hgf", "e"] * 10, seed=2))
    recogniser = tone_recogniser(jitter=False)
    whole = recogniser.emissions([load_audio(path, RATE)]).log_probs[0]
    plan = WindowPlan.for_recogniser(recogniser, 4, 1.5)
    windows = place_windows(
        stream_audio(path, RATE, window_seconds=plan.window_seconds, hop_seconds=plan.hop_seconds), plan
    )
    emissions = (
        PlacedEmissions(window.first_frame, recogniser.emissions([window.waveform]).log_probs[0])
        for window in windows
    )
    assert torch.equal(torch.cat([stretch.log_probs for stretch in stitch(emissions, TOKENIZER, 12)]), whole)


# --------------------------------------------------------------------------- where to cut


@pytest.mark.parametrize(
    ("earlier", "later", "cut"),
    [
        # in silence: the middle
        ("----------------", "----------------", 8),
        # the longer of two common runs, as far as it lies in the middle half
        ("--------ab--c------------", "--------ab--c------------", 16),
        # of equal runs, the one nearest the middle
        ("----a--b--c--d--", "----a--b--c--d--", 9),
        # tokens placed apart: not between the two places of a token
        ("------a---b-----", "--------a-----b-", 5),
        ("a---a--a-----b-", "a---a----a---b-", 6),
        # no common blank: where both agree best
        ("aaaabbbb", "cccchbhh", 5),
        # the later window has not read the beginning, the earlier one not the end
        ("--a---b---------", "----------c---d-", 8),
        # … but this may be one token that they place differently
        ("----a-----------", "-----------a----", 2),
        # the space is early for one and late for the other: not where it would get lost
        ("a---b---------- c-", "a---b ----------c-", 2),
    ],
)
def test_choose_cut_by_hand(earlier: str, later: str, cut: int) -> None:
    assert choose_cut(emitted(earlier), emitted(later), BLANK) == cut


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_cut_never_loses_or_doubles_a_token_that_both_windows_read(data: st.DataObject) -> None:
    """Tokens at least four frames apart, each window placing each of them up to one frame off."""
    num_tokens = data.draw(st.integers(0, 12))
    gaps = data.draw(st.lists(st.integers(4, 12), min_size=num_tokens, max_size=num_tokens))
    tokens = data.draw(st.lists(st.sampled_from("ab "), min_size=num_tokens, max_size=num_tokens))
    frames = np.cumsum(gaps) if gaps else np.zeros(0, dtype=int)
    num_frames = int(frames[-1]) + 6 if gaps else 20
    readings = []
    for _ in range(2):
        text = ["-"] * num_frames
        for frame, token in zip(frames, tokens, strict=True):
            text[frame + data.draw(st.integers(-1, 1))] = token
        readings.append("".join(text))
    cut = choose_cut(emitted(readings[0]), emitted(readings[1]), BLANK)
    stitched = readings[0][:cut] + readings[1][cut:]
    assert stitched.replace("-", "") == "".join(tokens)


def test_a_stretch_ends_in_the_longest_pause_between_words() -> None:
    # The longest blank run is inside a word; the pause between the words is shorter.
    text = "ab-- --cd---------ef--- ---gh-- -a"
    cut = choose_pause(emitted(text), TOKENIZER, 5, len(text))
    assert (text[:cut], text[cut:]) == ("ab-- --cd---------ef---", " ---gh-- -a")
    # What lies outside the limits does not count.
    cut = choose_pause(emitted(text), TOKENIZER, 1, 10)
    assert (text[:cut], text[cut:]) == ("ab--", " --cd---------ef--- ---gh-- -a")


def test_a_pause_longer_than_the_overlap_separates_words(folder: Path) -> None:
    """No window sees both words, so no window writes the space between them."""
    pieces = [silence(10), tone("a", 3), silence(100), tone("b", 3), silence(300), tone("c", 3), silence(99)]
    path = write(folder / "pauses.wav", np.concatenate(pieces))
    recogniser = tone_recogniser()
    hypothesis = recognise_long(recogniser, path, window_seconds=3, overlap_seconds=1, max_batch_seconds=9)
    assert hypothesis.text == "a b c"


@pytest.mark.parametrize(
    ("done", "rest", "expected"),
    [
        ("ab---", "---c", True),
        ("ab---", "--c-", False),  # too short a pause
        ("ab- --", "----c", False),  # has a space
        ("ab---", "--- c", False),
        ("------", "--c", True),  # nothing read: the word before is further back
        ("ab----", "----", True),
    ],
)
def test_lacks_space(done: str, rest: str, expected: bool) -> None:
    assert lacks_space(emitted(done), emitted(rest), TOKENIZER, min_pause_frames=6) is expected


def test_a_script_without_spaces_is_cut_at_a_blank() -> None:
    text = "abcdefghabcd-efghabcdefgh"
    assert choose_pause(emitted(text), TOKENIZER, 8, 20) == text.index("-")


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=12), max_frames=st.integers(2, 40), seed=st.integers(0, 99)
)
def test_stretches_hold_every_frame_once(lengths: list[int], max_frames: int, seed: int) -> None:
    torch.manual_seed(seed)
    whole = torch.randn(sum(lengths), TOKENIZER.vocab_size).log_softmax(dim=1)
    stretches = [Stretch(log_probs) for log_probs in whole.split(lengths)] if lengths else []
    parts = list(decodable_stretches(stretches, TOKENIZER, max_frames))
    assert torch.equal(torch.cat([whole[:0], *(part.log_probs for part in parts)]), whole)
    assert [part.first_frame for part in parts] == [
        sum(len(part.log_probs) for part in parts[:number]) for number in range(len(parts))
    ]
    assert all(0 < len(part.log_probs) <= max_frames for part in parts)
    assert all(len(part.log_probs) >= max_frames // 2 for part in parts[:-1])
