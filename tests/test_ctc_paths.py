"""The collapse map and its inverse against the printed worked example and brute force."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc.paths import (
    best_labelling,
    best_path,
    best_paths,
    collapse,
    count_paths,
    enumerate_paths,
    iter_paths,
    min_num_frames,
    num_repeats,
    path_log_prob,
    sum_paths,
)

BLANK = 0
CAT_TABLE = Path(__file__).parents[1] / "docs" / "examples" / "cat.csv"
CAT_LABELS = (3, 1, 20)
# As printed, in units of 1e-8, in the order in which the paths are listed.
PRINTED_CAT_PATHS = {
    "--CAT": 4.5374,
    "-C-AT": 5.6482,
    "-CCAT": 4.7006,
    "-CA-T": 6.6003,
    "-CAAT": 4.7014,
    "-CAT-": 5.1401,
    "-CATT": 6.8965,
    "C--AT": 5.005,
    "C-A-T": 5.8487,
    "C-AAT": 4.166,
    "C-AT-": 4.5547,
    "C-ATT": 6.1111,
    "CC-AT": 5.185,
    "CCCAT": 4.3151,
    "CCA-T": 6.059,
    "CCAAT": 4.3158,
    "CCAT-": 4.7185,
    "CCATT": 6.3309,
    "CA--T": 4.8163,
    "CA-T-": 3.7508,
    "CA-TT": 5.0324,
    "CAA-T": 4.009,
    "CAAAT": 2.8556,
    "CAAT-": 3.122,
    "CAATT": 4.1889,
    "CAT--": 4.0583,
    "CATT-": 4.2404,
    "CATTT": 5.6894,
}


@pytest.fixture
def cat_log_probs() -> np.ndarray:
    return np.log(np.loadtxt(CAT_TABLE, delimiter=",", skiprows=1))


def brute_force(log_probs: np.ndarray, blank: int) -> dict[tuple[int, ...], list[float]]:
    """Log-probabilities of all ``vocab ** frames`` paths, by the labelling they collapse to."""
    num_frames, vocab_size = log_probs.shape
    by_labelling: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(vocab_size), repeat=num_frames):
        labels: list[int] = []
        for frame, token in enumerate(path):
            if token != blank and (frame == 0 or path[frame - 1] != token):
                labels.append(token)
        score = sum(log_probs[frame, token] for frame, token in enumerate(path))
        by_labelling.setdefault(tuple(labels), []).append(score)
    return by_labelling


@st.composite
def tables(draw: st.DrawFn, max_frames: int = 5, max_vocab: int = 4) -> tuple[np.ndarray, int]:
    num_frames = draw(st.integers(1, max_frames))
    vocab_size = draw(st.integers(2, max_vocab))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(num_frames, vocab_size)) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return log_probs, draw(st.integers(0, vocab_size - 1))


@pytest.mark.parametrize(
    ("path", "labels"),
    [("a-ab-", "aab"), ("-aa--abb", "aab"), ("C-AT-", "CAT"), ("CC-AT", "CAT"), ("---", ""), ("", "")],
)
def test_collapse_matches_the_textbook_cases(path: str, labels: str) -> None:
    def ids(text: str) -> list[int]:
        return ["-abCAT".index(character) for character in text]

    assert collapse(ids(path), blank=0) == tuple(ids(labels))


def test_the_printed_example_is_reproduced_path_by_path(cat_log_probs: np.ndarray) -> None:
    symbols = "-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    scored = enumerate_paths(cat_log_probs, CAT_LABELS, BLANK)
    names = ["".join(symbols[token] for token in one.path) for one in scored]
    assert names == list(PRINTED_CAT_PATHS)
    assert np.exp([one.log_prob for one in scored]) * 1e8 == pytest.approx(
        list(PRINTED_CAT_PATHS.values()), abs=0.0001
    )
    assert math.exp(sum_paths(scored)) == pytest.approx(1.366e-6, abs=0.0005e-6)
    assert -sum_paths(scored) == pytest.approx(13.50364304, abs=5e-7)


def test_counts_of_hand_checked_cases() -> None:
    assert count_paths([3, 1, 20], 5) == 28
    assert count_paths([1, 1], 3) == 1  # A-A only
    assert count_paths([1, 1], 4) == 5
    assert count_paths([1, 1], 2) == 0
    assert count_paths([], 7) == 1
    assert count_paths([], 0) == 1
    assert count_paths([1], 0) == 0
    assert count_paths([1], 20) == 20 * 21 // 2  # choose where the run starts and ends
    assert num_repeats([1, 1, 1, 2, 1]) == 2
    assert min_num_frames([1, 1, 1, 2, 1]) == 7


@given(st.lists(st.integers(1, 3), max_size=4), st.integers(0, 7))
@settings(deadline=None, max_examples=150)
def test_closed_form_count_is_the_number_of_listed_paths(labels: list[int], num_frames: int) -> None:
    listed = list(iter_paths(labels, num_frames, BLANK))
    assert len(listed) == count_paths(labels, num_frames)
    assert len(set(listed)) == len(listed)
    assert all(len(path) == num_frames and collapse(path, BLANK) == tuple(labels) for path in listed)
    assert (min_num_frames(labels) <= num_frames) == bool(listed)


@given(tables())
@settings(deadline=None, max_examples=40)
def test_every_labelling_agrees_with_brute_force(table: tuple[np.ndarray, int]) -> None:
    log_probs, blank = table
    by_labelling = brute_force(log_probs, blank)
    for labels, scores in by_labelling.items():
        listed = enumerate_paths(log_probs, labels, blank)
        assert sorted(one.log_prob for one in listed) == pytest.approx(sorted(scores))
        kept = best_paths(log_probs, labels, blank, num_paths=3)
        assert [one.log_prob for one in kept] == pytest.approx(sorted(scores, reverse=True)[:3])
        assert len({one.path for one in kept}) == len(kept)
        for one in kept:
            assert collapse(one.path, blank) == labels
            assert path_log_prob(log_probs, one.path) == pytest.approx(one.log_prob)


@given(tables(), st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_most_probable_path_and_labelling_agree_with_brute_force(
    table: tuple[np.ndarray, int], shift: float
) -> None:
    log_probs, blank = table
    totals = {labels: np.logaddexp.reduce(scores) for labels, scores in brute_force(log_probs, blank).items()}
    found = best_labelling(log_probs, blank)
    assert found.exact
    assert found.log_prob == pytest.approx(max(totals.values()))
    assert found.log_prob == pytest.approx(totals[found.labels])
    assert best_path(log_probs).log_prob == pytest.approx(log_probs.max(axis=1).sum())
    # A constant added to every score of a frame changes nothing but the total.
    shifted = best_labelling(log_probs + shift, blank)
    assert shifted.log_prob == pytest.approx(found.log_prob + shift * len(log_probs))


def test_best_path_and_best_labelling_can_differ() -> None:
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert collapse(best_path(log_probs).path, BLANK) == ()
    assert math.exp(best_path(log_probs).log_prob) == pytest.approx(0.36)
    found = best_labelling(log_probs, BLANK)
    assert found.labels == (1,)
    assert math.exp(found.log_prob) == pytest.approx(0.64)


def test_a_stopped_search_says_so_and_bounds_what_it_missed(cat_log_probs: np.ndarray) -> None:
    exact = best_labelling(cat_log_probs, BLANK)
    stopped = best_labelling(cat_log_probs, BLANK, max_expansions=5)
    assert exact.exact
    assert not stopped.exact
    assert stopped.log_prob <= exact.log_prob <= stopped.upper_bound_log_prob


def test_best_paths_stay_cheap_when_all_paths_are_equally_good() -> None:
    log_probs = np.full((200, 5), -math.log(5))
    assert count_paths([1, 2, 2, 3] * 10, 200) > 10**50
    kept = best_paths(log_probs, [1, 2, 2, 3] * 10, BLANK, num_paths=4)
    assert len({one.path for one in kept}) == 4
    assert [one.log_prob for one in kept] == pytest.approx([-200 * math.log(5)] * 4)


def test_zero_probabilities_leave_only_possible_paths() -> None:
    log_probs = np.full((2, 3), -math.log(2))
    log_probs[:, 2] = -np.inf
    assert {one.path for one in best_paths(log_probs, [1], BLANK, 10)} == {(0, 1), (1, 0), (1, 1)}
    assert best_paths(log_probs, [2], BLANK, 10) == []
    assert sum_paths([]) == -math.inf


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="label 1 is the blank"):
        list(iter_paths([1, 0], 5, blank=0))
    with pytest.raises(ValueError, match=r"log_probs\[1, 0\] is nan"):
        best_path([[0.0, 0.0], [math.nan, 0.0]])
    with pytest.raises(ValueError, match=r"must be \(frames, vocab\)"):
        best_path([0.0, 1.0])
    with pytest.raises(ValueError, match="one per frame"):
        path_log_prob([[0.0, 0.0]], [0, 1])
    with pytest.raises(ValueError, match="frame 0 gives every token probability zero"):
        best_labelling([[-math.inf, -math.inf]], BLANK)
