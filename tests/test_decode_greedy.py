"""Greedy decoding against a literal reading of the collapse rule, and word times by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.decode.decoder import words_from_tokens
from asr.decode.greedy import GreedyDecoder
from asr.records import Emissions
from asr.tokenizer import CharTokenizer, SentencePieceTokenizer, Tokenizer

TOKENIZER = CharTokenizer([" ", "a", "b", "c"], blank_id=0)
LAST_BLANK = CharTokenizer([" ", "a", "b", "c"], blank_id=4)
SECONDS_PER_FRAME = 0.04


def emissions_of(paths: list[str], probability: float = 0.9) -> Emissions:
    """Each character of a path is the likeliest label of its frame; ``_`` is the blank."""
    num_frames = max(len(path) for path in paths)
    log_probs = torch.full((len(paths), num_frames, 5), math.log((1 - probability) / 4))
    for index, path in enumerate(paths):
        for frame, character in enumerate(path):
            label = 0 if character == "_" else TOKENIZER.encode(f"a{character}a")[1]
            log_probs[index, frame, label] = math.log(probability)
    return Emissions(log_probs, torch.tensor([len(path) for path in paths]))


def decode(paths: list[str], probability: float = 0.9) -> list:
    return GreedyDecoder(TOKENIZER, SECONDS_PER_FRAME).decode(emissions_of(paths, probability))


# ------------------------------------------------------------------ collapsing


@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_it_is_the_collapsed_best_path(seed: int, lengths: list[int]) -> None:
    for tokenizer in (TOKENIZER, LAST_BLANK):
        rng = np.random.default_rng(seed)
        logits = torch.from_numpy(3 * rng.normal(size=(len(lengths), max(lengths) + 2, 5)))
        log_probs = logits.float().log_softmax(dim=2)
        hypotheses = GreedyDecoder(tokenizer, 1.0).decode(Emissions(log_probs, torch.tensor(lengths)))
        for frames, length, hypothesis in zip(log_probs, lengths, hypotheses, strict=True):
            path = [int(frame.argmax()) for frame in frames[:length]]
            runs = [(label, len(list(group))) for label, group in itertools.groupby(path)]
            starts = list(itertools.accumulate([0, *(size for _, size in runs)]))
            spoken = [
                (label, start)
                for (label, _), start in zip(runs, starts, strict=False)
                if label != tokenizer.blank_id
            ]
            assert hypothesis.token_ids == tuple(label for label, _ in spoken)
            assert hypothesis.token_frames == tuple(start for _, start in spoken)
            assert hypothesis.text == tokenizer.decode([label for label, _ in spoken])
            best = sum(float(frame.max()) for frame in frames[:length])
            assert hypothesis.score == pytest.approx(best, abs=1e-4)


def test_a_path_no_other_can_beat() -> None:
    rng = np.random.default_rng(0)
    log_probs = torch.from_numpy(rng.normal(size=(1, 4, 5))).log_softmax(dim=2)
    hypothesis = GreedyDecoder(TOKENIZER, 1.0).decode(Emissions(log_probs, torch.tensor([4])))[0]
    scores = [
        sum(float(log_probs[0, frame, label]) for frame, label in enumerate(path))
        for path in itertools.product(range(5), repeat=4)
    ]
    assert hypothesis.score == pytest.approx(max(scores))


def test_texts_by_hand() -> None:
    texts = {
        "_": "",
        "____": "",
        "a": "a",
        "aaa": "a",
        "a_a": "aa",
        "aa__ab_b": "aabb",
        "_ab_ c__": "ab c",
        "a  _ b": "a b",
        "  a  ": "a",
        "abcabc": "abcabc",
    }
    assert [hypothesis.text for hypothesis in decode(list(texts))] == list(texts.values())


def test_frames_beyond_the_length_are_not_read() -> None:
    emissions = emissions_of(["ab_c", "aacc"])
    for padding in (0.0, float("nan")):
        padded = torch.nn.functional.pad(emissions.log_probs, (0, 0, 0, 3), value=padding)
        cut = Emissions(padded, torch.tensor([2, 4]))
        found = GreedyDecoder(TOKENIZER, 1.0).decode(cut)
        assert [hypothesis.text for hypothesis in found] == ["ab", "ac"]


def test_emissions_that_carry_gradients_can_be_decoded() -> None:
    emissions = emissions_of(["ab"])
    emissions.log_probs.requires_grad_()
    assert GreedyDecoder(TOKENIZER, 1.0).decode(emissions)[0].text == "ab"


# ------------------------------------------------------------------ words


def test_word_times_and_confidence_by_hand() -> None:
    #                    0123456789
    hypothesis = decode(["_aab_  __c"], probability=0.8)[0]
    first, second = hypothesis.words
    assert (first.text, second.text) == ("ab", "c")
    # From a letter before the first frame of "a" (1), but not before 0, to the end of the last frame of "b" (3).
    assert (first.start_seconds, first.end_seconds) == pytest.approx((0, 4 * 0.04))
    assert (second.start_seconds, second.end_seconds) == pytest.approx((9 * 0.04 - 0.07, 10 * 0.04))
    assert first.confidence == pytest.approx(0.8**2)
    assert hypothesis.token_frames == (1, 3, 5, 9)


def test_a_tokens_confidence_is_its_surest_frame_and_a_words_the_product() -> None:
    probabilities: Tensor = torch.tensor(
        [
            # blank, space, a, b, c
            [0.10, 0.00, 0.60, 0.30, 0.00],
            [0.05, 0.00, 0.90, 0.05, 0.00],
            [0.20, 0.00, 0.30, 0.40, 0.10],
        ]
    )
    emissions = Emissions(probabilities.log()[None], torch.tensor([3]))
    (word,) = GreedyDecoder(TOKENIZER, 1.0).decode(emissions)[0].words
    assert word.text == "ab"
    assert word.confidence == pytest.approx(0.9 * 0.4, rel=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_words_spell_the_text_and_follow_each_other(seed: int) -> None:
    logits = torch.from_numpy(2 * np.random.default_rng(seed).normal(size=(1, 30, 5))).float()
    emissions = Emissions(logits.log_softmax(dim=2), torch.tensor([30]))
    hypothesis = GreedyDecoder(TOKENIZER, SECONDS_PER_FRAME).decode(emissions)[0]
    assert " ".join(word.text for word in hypothesis.words) == hypothesis.text
    times = [time for word in hypothesis.words for time in (word.start_seconds, word.end_seconds)]
    assert times == sorted(times)
    assert all(word.start_seconds < word.end_seconds <= 30 * SECONDS_PER_FRAME for word in hypothesis.words)
    assert all(0 < word.confidence <= 1 for word in hypothesis.words)


class Pieces(Tokenizer):
    """Given pieces; nothing is encoded."""

    def state(self) -> dict[str, Any]:
        return {}

    def _encode_known(self, text: str) -> list[int]:
        raise AssertionError(text)


def test_neighbours_share_the_time_between_their_spikes() -> None:
    """Frames of 10 ms. "ab" as a piece would end 70 ms after its spike and "c" begin 70 ms before its own."""
    tokenizer, token_ids = Pieces(["ab", " c"], blank_id=0), [1, 2]
    first, second = words_from_tokens(tokenizer, token_ids, [10, 20], [10, 20], [1.0, 1.0], 0.01, 21)
    assert (first.start_seconds, first.end_seconds) == pytest.approx((0.03, 0.155))  # half of 0.11 … 0.20
    assert (second.start_seconds, second.end_seconds) == pytest.approx((0.155, 0.21))
    # Characters: the word before has had its last letter, so the next one may begin at once.
    letters = words_from_tokens(
        TOKENIZER, TOKENIZER.encode("a b"), [10, 12, 14], [10, 12, 14], [1.0] * 3, 0.01, 20
    )
    assert [word.start_seconds for word in letters] == pytest.approx([0.03, 0.11])
    assert [word.end_seconds for word in letters] == pytest.approx([0.11, 0.15])


def test_subword_tokens_make_words_too() -> None:
    tokenizer = SentencePieceTokenizer.train(["one two three four"] * 3, vocab_size=12)
    token_ids = tokenizer.encode("three one")
    starts = [5 * index for index in range(len(token_ids))]
    ends = [start + 1 for start in starts]
    words = words_from_tokens(tokenizer, token_ids, starts, ends, [0.5] * len(token_ids), 0.1, starts[-1] + 9)
    assert [word.text for word in words] == ["three", "one"]
    assert words[0].start_seconds == 0
    num_letters = len(tokenizer.decode(token_ids[-1:]))
    assert words[-1].end_seconds == pytest.approx((starts[-1] + 2) * 0.1 + 0.07 * (num_letters - 1))
    last = tokenizer.word_groups(token_ids)[-1]
    assert words[-1].confidence == pytest.approx(0.5 ** (last.last - last.first + 1))
    assert words_from_tokens(tokenizer, [], [], [], [], 0.02, 0) == ()
