"""Splits by whole groups: what must hold for any corpus, and what the user is told."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr.corpora.collect import Collected
from asr.corpora.splits import (
    Grouping,
    SplitPlan,
    assign_folds,
    by_speaker,
    by_utterance,
    carve,
    choose_groups,
    shared_speakers_notes,
    with_dev,
)
from asr.errors import ConfigError
from asr.records import Utterance

SIZES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 40), min_size=2, max_size=25
)


def utterances(sizes: dict[str, int]) -> list[Utterance]:
    return [
        Utterance(f"{speaker}-{number}", Path("a.wav"), 1.0, "yes", speaker=speaker)
        for speaker, size in sizes.items()
        for number in range(size)
    ]


@settings(deadline=None, max_examples=100)
@given(SIZES, st.floats(0.01, 0.9), st.integers(0, 5))
def test_chosen_groups_come_near_the_fraction_and_leave_something(sizes, fraction, seed):
    chosen = choose_groups(sizes, fraction, seed)
    assert chosen < sizes.keys()
    assert chosen
    target = fraction * sum(sizes.values())
    taken = sum(sizes[group] for group in chosen)
    # Greedy over whole groups: off by at most the largest one.
    assert abs(taken - target) <= max(sizes.values())


@settings(deadline=None, max_examples=50)
@given(SIZES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_choice_does_not_depend_on_the_order_of_groups(sizes, seed, rng: random.Random):
    items = list(sizes.items())
    rng.shuffle(items)
    assert choose_groups(dict(items), 0.2, seed) == choose_groups(sizes, 0.2, seed)
    assert assign_folds(dict(items), 3, seed) == assign_folds(sizes, 3, seed)


def test_choice_is_the_same_on_every_machine_and_moves_with_the_seed():
    sizes = {f"speaker{number:02d}": 10 for number in range(40)}
    choices = [choose_groups(sizes, 0.1, seed) for seed in range(6)]
    assert [len(choice) for choice in choices] == [4] * 6
    assert len(set(choices)) == 6
    # Written down once (the smallest of `printf dev:0:speaker00 | sha256sum`, …): a change here
    # silently changes every user's dev set.
    assert sorted(choices[0]) == ["speaker16", "speaker18", "speaker24", "speaker34"]


def test_groups_too_large_for_the_fraction_give_the_smallest_one():
    assert choose_groups({"a": 50, "b": 40, "c": 60}, 0.05, 0) == {"b"}


@settings(deadline=None, max_examples=100)
@given(SIZES, st.integers(2, 5), st.integers(0, 3))
def test_folds_partition_the_groups_and_are_balanced(sizes, num_folds, seed):
    assignment = assign_folds(sizes, num_folds, seed)
    assert assignment.keys() == sizes.keys()
    totals = Counter(dict.fromkeys(range(num_folds), 0))
    for group, fold in assignment.items():
        totals[fold] += sizes[group]
    assert set(totals) == set(range(num_folds))
    assert max(totals.values()) - min(totals.values()) <= max(sizes.values())


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 9), min_size=3, max_size=12)
)
@example({"a": 1, "b": 1, "aa": 6})  # the test set must not take what dev and train need
def test_carving_loses_nothing_and_shares_no_speaker(sizes):
    corpus = utterances(sizes)
    carved = carve(corpus, [by_speaker()], SplitPlan(dev_fraction=0.2, test_fraction=0.2))
    parts = [carved.train, carved.dev, carved.test]
    assert all(parts)
    assert Counter(u.id for part in parts for u in part) == Counter(u.id for u in corpus)
    speakers = [{u.speaker for u in part} for part in parts]
    assert sum(map(len, speakers)) == len(set().union(*speakers))


def test_dev_folds_cover_the_corpus_once_and_leave_the_test_set_alone():
    corpus = utterances({f"s{number}": 7 for number in range(12)})
    folds = [
        carve(corpus, [by_speaker()], SplitPlan(test_fraction=0.2, folds=4, fold=fold)) for fold in range(4)
    ]
    assert len({tuple(u.id for u in carved.test) for carved in folds}) == 1
    dev_ids = Counter(u.id for carved in folds for u in carved.dev)
    assert dev_ids + Counter(u.id for u in folds[0].test) == Counter(u.id for u in corpus)


def test_unknown_speakers_are_split_one_by_one():
    corpus = [Utterance(str(number), Path("a.wav"), 1.0, "yes") for number in range(50)]
    carved = carve(corpus, [by_speaker()], SplitPlan())
    assert len(carved.dev) == 5


def test_a_dev_set_with_unknown_voices_says_so():
    corpus = [*utterances({"a": 5, "b": 5}), Utterance("x", Path("a.wav"), 1.0, "yes")]
    notes = with_dev(Collected({"train": corpus}, []), [], SplitPlan(), "here").notes
    assert notes[-1] == "1 utterance without a speaker: dev and test may hold voices that are in train"
    assert len(with_dev(Collected({"train": corpus[:-1]}, []), [], SplitPlan(), "here").notes) == 1
    uncarved = with_dev(Collected({"train": corpus}, []), [], SplitPlan(dev_fraction=0.0), "here")
    assert uncarved.notes == []


def test_auto_falls_back_to_a_finer_grouping_and_says_so():
    corpus = utterances({"only": 20})
    chapters = Grouping("chapter", lambda utterance: utterance.id[-1])
    carved = carve(corpus, [by_speaker(), chapters, by_utterance()], SplitPlan())
    assert {u.id[-1] for u in carved.dev}.isdisjoint(u.id[-1] for u in carved.train)
    assert "1 of 10 chapters, whole" in carved.notes[0]
    with pytest.raises(ConfigError, match="1 speaker cannot be split into 2 parts"):
        carve(corpus, [by_speaker(), by_utterance()], SplitPlan(split_by="speaker"))


def test_grouping_that_the_corpus_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="split_by=chapter is not known for this corpus"):
        carve(utterances({"a": 2, "b": 2}), [by_speaker()], SplitPlan(split_by="chapter"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev_fraction": 1.0}, "dev_fraction=1 must be"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1 must be"),
        ({"dev_fraction": 0.6, "test_fraction": 0.5}, "leave nothing for training"),
        ({"folds": 5}, "folds and fold go together"),
        ({"fold": 0}, "folds and fold go together"),
        ({"folds": 5, "fold": 5}, "fold=5 must be between 0 and 4"),
        ({"folds": 1, "fold": 0}, "folds=1 must be at least 2"),
        ({"folds": 5, "fold": 0, "dev_fraction": 0.1}, "contradict each other"),
        ({"split_by": "colour"}, "split_by=colour must be one of"),
    ],
)
def test_impossible_plans_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        SplitPlan(**options)


def test_speakers_in_two_splits_are_named():
    splits = {
        "train": utterances({"a": 1, "b": 1}),
        "dev": utterances({"b": 1}),
        "test": utterances({"c": 1}),
    }
    assert shared_speakers_notes(splits) == [
        "train and dev share 1 speaker (b): WER on dev is that of known voices"
    ]
