"""Kneser-Ney estimation against its definition, hand arithmetic and models made by KenLM."""

import math
import os
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asr.decode.arpa import LanguageModelError, read_arpa
from asr.decode.estimate import FALLBACK_DISCOUNTS, estimate
from asr.decode.ngram import ROOT, NgramModel

SHARED = Path(os.environ.get("CORPORA", Path(__file__).parents[2] / "shared" / "corpora")).parent
GOLDENS = SHARED / "goldens" / "lm"

RHYME = [
    "the cat sat on the mat",
    "the cat sat on the hat",
    "the dog sat on the cat",
    "a dog ate the hat",
    "a cat ate a mouse",
    "the mouse ate the hat",
    "on the mat the dog sat",
]


def as_table(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    """N-gram → (log10 probability, log10 back-off)."""
    arpa = read_arpa(path)
    return {
        tuple(arpa.words[word_id] for word_id in word_ids): (log10_prob, backoff)
        for order in arpa.orders
        for word_ids, log10_prob, backoff in zip(*(column.tolist() for column in order), strict=True)
    }


def assert_same_model(ours, reference, tolerance):
    assert ours.keys() == reference.keys()
    for ngram, numbers in reference.items():
        assert ours[ngram] == pytest.approx(numbers, abs=tolerance), ngram


# --------------------------------------------------------------------------- the definition


def kneser_ney(sentences, order, thresholds, allowed):
    """Interpolated modified Kneser-Ney, word for word from the papers, on dictionaries."""
    raw, before, vocabulary = Counter(), defaultdict(set), {"<unk>", "<s>", "</s>"}
    for sentence in sentences:
        words = ["<s>", *sentence, "</s>"]
        vocabulary |= set(words)
        for begin in range(len(words)):
            for end in range(begin + 1, min(begin + order, len(words)) + 1):
                raw[tuple(words[begin:end])] += 1
                if begin > 0:
                    before[tuple(words[begin:end])].add(words[begin - 1])
    adjusted = {
        ngram: count if len(ngram) == order or ngram[0] == "<s>" else len(before[ngram])
        for ngram, count in raw.items()
        if ngram != ("<s>",)
    }
    adjusted[("<unk>",)] = 0
    specials = {"<unk>", "<s>", "</s>"}

    def kept(ngram):
        frequent = len(ngram) == 1 or raw[ngram] > thresholds[len(ngram) - 1]
        return frequent and all(word in specials or word in allowed for word in ngram)

    discounts = {}
    for length in range(1, order + 1):
        found = Counter(count for ngram, count in adjusted.items() if len(ngram) == length)
        discounts[length] = [0.0, *FALLBACK_DISCOUNTS]
        if found[1] and found[2] and found[3]:
            ratio = found[1] / (found[1] + 2 * found[2])
            amounts = [n - (n + 1) * ratio * found[n + 1] / found[n] for n in (1, 2, 3)]
            if all(0 <= amount <= n for n, amount in enumerate(amounts, start=1)):
                discounts[length] = [0.0, *amounts]
    longer = defaultdict(list)
    for ngram in adjusted:
        longer[ngram[:-1]].append(ngram)

    def backoff(context):
        if not longer[context]:
            return 1.0
        total = sum(adjusted[ngram] for ngram in longer[context])
        freed = sum(
            discounts[len(ngram)][min(adjusted[ngram], 3)] if kept(ngram) else adjusted[ngram]
            for ngram in longer[context]
        )
        return freed / total

    def probability(ngram):
        if not ngram:
            return 1 / (sum(kept((word,)) for word in vocabulary) - 1)
        total = sum(adjusted[other] for other in longer[ngram[:-1]])
        own = (adjusted[ngram] - discounts[len(ngram)][min(adjusted[ngram], 3)]) / total
        return own + backoff(ngram[:-1]) * probability(ngram[1:])

    def log10_backoff(ngram):
        return max(-99, math.log10(backoff(ngram) or 1e-99)) if len(ngram) < order else 0.0

    table = {
        ngram: (math.log10(probability(ngram)), log10_backoff(ngram)) for ngram in adjusted if kept(ngram)
    }
    table[("<s>",)] = (0.0, log10_backoff(("<s>",)))
    return table


TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=8), min_size=1, max_size=30)


@settings(deadline=None, max_examples=40)
@given(
    TEXTS,
    st.integers(1, 4),
    st.lists(st.integers(0, 2), max_size=3),
    st.sets(st.sampled_from("abcdefg"), min_size=3),
    st.sampled_from([64 * 10, 64 * 100, 1 << 20]),
)
def test_every_number_is_that_of_the_definition(
    tmp_path_factory, text, order, thresholds, allowed, memory_bytes
):
    prune = [0, *sorted(thresholds)][:order]
    prune += [prune[-1]] * (order - len(prune))
    expected = kneser_ney(text, order, prune, allowed)
    output = tmp_path_factory.mktemp("lm") / "lm.arpa"
    options = {"order": order, "prune": prune, "vocabulary": allowed, "memory_bytes": memory_bytes}
    if not all(any(len(ngram) == length for ngram in expected) for length in range(1, order + 1)):
        with pytest.raises(LanguageModelError, match="pruning leaves no"):
            estimate(text, output, **options)
        return
    estimate(text, output, **options)
    assert_same_model(as_table(output), expected, 1e-5)


@settings(deadline=None, max_examples=30)
@given(TEXTS, st.integers(1, 4), st.integers(0, 2), st.sampled_from([None, 3]))
def test_what_follows_any_context_sums_to_one(tmp_path_factory, text, order, threshold, max_words):
    output = tmp_path_factory.mktemp("lm") / "lm.arpa"
    try:
        estimate(text, output, order=order, prune=[0, threshold][:order], max_words=max_words)
    except LanguageModelError:
        assume(False)  # everything was pruned
    model = NgramModel.load(output, cache=False)
    possible = [word_id for word_id, word in enumerate(model.vocabulary) if word != "<s>"]
    for sentence in text[:3]:
        states = [ROOT, model.start_state]
        for word in sentence:
            states.append(model.score(states[-1], model.word_id(word))[1])
        for state in states:
            total = sum(10 ** model.score(state, word_id)[0] for word_id in possible)
            assert total == pytest.approx(1, abs=1e-5)


def test_bigrams_by_hand(tmp_path):
    """``a b`` and ``a``: too small to estimate discounts, so 0.5 off one and 1 off two."""
    path = tmp_path / "lm.arpa"
    summary = estimate([["a", "b"], ["a"]], path, order=2)
    assert [order.discounts for order in summary.orders] == [FALLBACK_DISCOUNTS] * 2
    assert [order.num_kept for order in summary.orders] == [5, 4]
    assert (summary.num_sentences, summary.num_tokens) == (2, 5)
    # Words seen before: a: <s>; b: a; </s>: b, a. Total 4, freed 0.5 + 0.5 + 1 = 2, over <unk> </s> a b.
    a = b = (1 - 0.5) / 4 + 2 / 4 / 4
    end, unknown = (2 - 1) / 4 + 2 / 4 / 4, 2 / 4 / 4
    # <s> is followed by a twice: (2 - 1) / 2, back-off 1/2. a by b and </s>: 0.5 / 2 each, back-off 1/2.
    expected = {
        ("<unk>",): (unknown, 1),
        ("<s>",): (1, 1 / 2),
        ("</s>",): (end, 1),
        ("a",): (a, 1 / 2),
        ("b",): (b, 0.5),
        ("<s>", "a"): (1 / 2 + a / 2, 1),
        ("a", "b"): (1 / 4 + b / 2, 1),
        ("a", "</s>"): (1 / 4 + end / 2, 1),
        ("b", "</s>"): (1 / 2 + end / 2, 1),
    }
    logs = {ngram: tuple(map(math.log10, numbers)) for ngram, numbers in expected.items()}
    assert_same_model(as_table(path), logs, 1e-6)


def test_discounts_by_hand(tmp_path):
    """Single words seen 1, 1, 1, 2, 3 and 4 times; with </s>, seen six times."""
    summary = estimate([list(word * count) for word, count in zip("abcdef", (1, 1, 1, 2, 3, 4), strict=True)],
                       tmp_path / "lm.arpa", order=1, discount_fallback=False)  # fmt: skip
    ratio = 3 / (3 + 2 * 1)
    expected = (1 - 2 * ratio * 1 / 3, 2 - 3 * ratio * 1 / 1, 3 - 4 * ratio * 1 / 1)
    assert summary.orders[0].discounts == pytest.approx(expected)


# --------------------------------------------------------------------------- size


def test_sorting_in_parts_on_disk_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    text = [[f"w{word}" for word in np.minimum(rng.zipf(1.4, 12), 300)] for _ in range(400)]
    outputs = []
    for memory_bytes in (1 << 30, 64 * 1000, 64 * 190):
        outputs.append(tmp_path / f"{memory_bytes}.arpa")
        estimate(
            text, outputs[-1], order=4, prune=[0, 0, 1], memory_bytes=memory_bytes, scratch_folder=tmp_path
        )
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == outputs[2].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(outputs), "scratch files are left over"


def test_max_words_keeps_the_most_frequent(tmp_path):
    path = tmp_path / "lm.arpa"
    estimate([line.split() for line in RHYME], path, order=2, max_words=3)
    # 'the' 9 times, 'cat' 5, 'sat' 4; of those seen 3 times none
    assert {ngram[0] for ngram in as_table(path)} == {"<unk>", "<s>", "</s>", "the", "cat", "sat"}


def test_prune_repeats_its_last_threshold(tmp_path):
    sentences = [line.split() for line in RHYME]
    for prune, name in (([0, 1], "short"), ([0, 1, 1], "long")):
        estimate(sentences, tmp_path / name, order=3, prune=prune)
    assert (tmp_path / "short").read_bytes() == (tmp_path / "long").read_bytes()
    kept = as_table(tmp_path / "short")
    assert ("sat", "on", "the") in kept
    assert ("the", "dog") in kept
    assert ("a", "mouse") not in kept


@pytest.mark.slow
def test_fifty_thousand_sentences_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(20_001)])
    text = [words[np.minimum(rng.zipf(1.2, 10), 20_000)].tolist() for _ in range(50_000)]
    begin = time.process_time()
    estimate(text, tmp_path / "lm.arpa", order=3)
    assert time.process_time() - begin < 20


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("sentences", "options", "expected"),
    [
        ([], {"order": 2}, "holds no sentence"),
        ([["a", "b"], ["a", "<s>"]], {"order": 2}, "sentence 2 holds the word <s>"),
        ([["a", "b"]], {"order": 0}, "order=0 must be between 1 and"),
        ([["a", "b"]], {"order": 5}, "order=5 is too high: no sentence has 3 words"),
        ([["a", "b"]], {"order": 2, "prune": [1]}, "first threshold, for single words, must be 0"),
        ([["a", "b"]], {"order": 3, "prune": [0, 2, 1]}, "no threshold may be lower"),
        ([["a", "b"]], {"order": 1, "prune": [0, 0]}, "more thresholds than order=1"),
        ([["a", "b"]], {"order": 2, "prune": [0, 9]}, "pruning leaves no 2-gram"),
        ([["a", "b"]], {"order": 2, "discount_fallback": False},
         "discounts of 1-grams cannot be estimated: no n-gram has an adjusted count of 2"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, sentences, options, expected):
    with pytest.raises(LanguageModelError) as raised:
        estimate(sentences, tmp_path / "lm.arpa", **options)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- KenLM


@pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"no reference models in {GOLDENS}")
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize(("name", "text"), [("an4_train", "an4_train.txt"), ("harvard", "harvard.train.txt")])
def test_reproduces_models_of_lmplz(tmp_path, name, text, order):
    lines = (GOLDENS / text).read_text().splitlines()
    estimate((line.split() for line in lines), tmp_path / "lm.arpa", order=order)
    assert_same_model(as_table(tmp_path / "lm.arpa"), as_table(GOLDENS / f"{name}.o{order}.arpa"), 1e-5)
