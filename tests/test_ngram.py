"""Queries of n-gram models, against hand arithmetic, the definition of back-off, and KenLM."""

import os
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decode import ngram
from asr.decode.arpa import LanguageModelError, NgramBlock, read_arpa, write_arpa
from asr.decode.ngram import ROOT, NgramModel

SHARED = Path(os.environ.get("CORPORA", Path(__file__).parents[2] / "shared" / "corpora")).parent
GOLDENS = SHARED / "goldens" / "lm"

MODEL = """\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.5\t<unk>\t0
0\t<s>\t-0.25
-0.75\t</s>\t0
-1\ta\t-0.5
-2\tb\t0

\\2-grams:
-0.25\t<s> a\t-0.0625
-0.5\ta </s>
-0.125\ta b\t-4

\\3-grams:
-0.375\t<s> a b

\\end\\
"""


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "lm.arpa"
    file.write_text(MODEL)
    return file


def test_scores_by_hand(path):
    model = NgramModel.load(path)
    assert (model.order, model.num_ngrams) == (3, 9)
    score = model.score_sentence(["a", "b"])
    # <s> a; <s> a b; then b </s> is not listed: back-off of "a b", then of "b", then </s> itself
    assert score.token_log10_probs == (-0.25, -0.375, -4 + 0 - 0.75)
    assert score.log10_prob == sum(score.token_log10_probs)
    # <s> b is not listed; "a" after b neither; <s> a does not apply any more: a </s>
    assert model.score_sentence(["b", "a"]).token_log10_probs == (-0.25 - 2, 0 - 1, -0.5)
    # an unknown word ends the context; a a is not listed
    scored = model.score_sentence(["zebra", "a", "a"])
    assert scored.token_log10_probs == (-0.25 - 1.5, -1, -0.5 - 1, -0.5)
    assert scored.num_unknown == 1
    assert model.score_sentence(["a", "b"], start=False, end=False).token_log10_probs == (-1, -0.125)
    assert model.score_sentence([]).token_log10_probs == (-0.25 - 0.75,)


def test_vocabulary(path):
    model = NgramModel.load(path)
    assert list(model.vocabulary) == ["<unk>", "<s>", "</s>", "a", "b"]
    assert [model.word_id(word) for word in ("a", "zebra", "</s>")] == [3, model.unknown_id, model.end_id]
    np.testing.assert_array_equal(model.unigram_log10_probs, np.float32([-1.5, 0, -0.75, -1, -2]))


def test_states_forget_what_cannot_matter(path):
    model = NgramModel.load(path)
    a, b = model.word_id("a"), model.word_id("b")
    _, after_unknown = model.score(model.start_state, model.unknown_id)
    _, after_b = model.score(ROOT, b)
    assert after_unknown == after_b == ROOT  # nothing continues them, and they have no back-off weight
    _, after_a = model.score(ROOT, a)
    _, after_start_a = model.score(model.start_state, a)
    _, after_a_b = model.score(after_a, b)
    assert len({ROOT, after_a, after_start_a, after_a_b}) == 4
    # two words of context are enough for order 3: "<s> a b" leads to the state of "a b"
    assert model.score(after_start_a, b)[1] == after_a_b


def test_compiled_code_can_score(path):
    model = NgramModel.load(path)

    @numba.njit
    def total(tables, state, word_ids):
        result = 0.0
        for word_id in word_ids:
            log10_prob, state = ngram.score(tables, state, word_id)
            result += log10_prob
        return result

    word_ids = np.array([model.word_id(word) for word in ("a", "b", "</s>")])
    assert total(model.tables, model.start_state, word_ids) == model.score_sentence(["a", "b"]).log10_prob


def by_definition(ngrams, order, context, word):
    """Back-off as ARPA defines it: the longest listed n-gram, plus the weights of longer contexts."""
    context = tuple(context)[max(0, len(context) - order + 1) :]
    if (*context, word) in ngrams:
        return ngrams[(*context, word)][0]
    return (ngrams[context][1] if context in ngrams else 0.0) + by_definition(
        ngrams, order, context[1:], word
    )


@st.composite
def models(draw):
    """Random back-off models. Every n-gram's context is listed; its suffix need not be."""
    num_words, order = draw(st.integers(4, 6)), draw(st.integers(1, 4))
    numbers = st.sampled_from([0.0, -0.25, -0.5, -1.0, -3.0])
    ngrams = {(word,): (draw(numbers), draw(numbers)) for word in range(num_words)}
    for length in range(2, order + 1):
        contexts = [ngram for ngram in ngrams if len(ngram) == length - 1]
        candidates = (
            st.tuples(st.sampled_from(contexts), st.integers(0, num_words - 1)) if contexts else st.nothing()
        )
        for context, word in draw(st.sets(candidates, max_size=12)) if contexts else ():
            ngrams[(*context, word)] = (draw(numbers), draw(numbers))
    while not any(len(ngram) == order for ngram in ngrams):
        order -= 1
    return (
        num_words,
        order,
        {ngram: (p, 0.0 if len(ngram) == order else b) for ngram, (p, b) in ngrams.items()},
    )


@settings(deadline=None, max_examples=60)
@given(models(), st.lists(st.integers(0, 5), max_size=12), st.randoms())
def test_any_model_scores_as_defined(tmp_path_factory, drawn, text, random):
    num_words, order, ngrams = drawn
    blocks = []
    for length in range(1, order + 1):
        rows = [ngram for ngram in ngrams if len(ngram) == length]
        if length > 1:
            random.shuffle(rows)
        values = np.array([ngrams[row] for row in rows], np.float32).T
        blocks.append(NgramBlock(np.array(rows, np.int32), *values))
    path = tmp_path_factory.mktemp("model") / "lm.arpa"
    words = ["<unk>", "<s>", "</s>", "a", "b", "c"][:num_words]
    write_arpa(path, words, [len(block.log10_probs) for block in blocks], [[block] for block in blocks])
    model = NgramModel.load(path, cache=False)
    state, context = model.start_state, [1]
    for word in (number % num_words for number in text):
        log10_prob, state = model.score(state, word)
        assert log10_prob == pytest.approx(by_definition(ngrams, order, context, word), abs=1e-6)
        context.append(word)


def test_a_model_without_unknown_word_says_so(path, caplog):
    path.write_text(MODEL.replace("<unk>", "c"))
    model = NgramModel.load(path)
    assert "has no <unk>" in caplog.text
    assert model.score_sentence(["zebra"], start=False).token_log10_probs[0] == -100
    assert model.score_sentence(["a", "b"]).token_log10_probs == (-0.25, -0.375, -4 - 0.75)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("-0.125\ta b\t-4", "-0.125\ta </s>\t-4", "line 16: 'a </s>': it is listed twice"),
        ("<s> a b", "b a b", "line 19: 'b a b': its first words are not listed by themselves"),
    ],
)
def test_ngrams_that_do_not_fit_together(path, old, new, expected):
    path.write_text(MODEL.replace(old, new))
    with pytest.raises(LanguageModelError) as raised:
        NgramModel.load(path)
    assert str(raised.value) == f"{path}: {expected}"


def test_perplexity_by_hand(path):
    model = NgramModel.load(path)
    result = model.perplexity([["a", "b"], ["zebra", "a"]])
    known, unknown = -0.25 - 0.375 - 4.75 - 1 - 0.5, -0.25 - 1.5
    assert (result.num_tokens, result.num_unknown) == (6, 1)
    assert result.including_unknown == pytest.approx(10 ** (-(known + unknown) / 6))
    assert result.excluding_unknown == pytest.approx(10 ** (-known / 5))
    with pytest.raises(LanguageModelError, match="no sentence"):
        model.perplexity([])


# --------------------------------------------------------------------------- the mapped copy


def refuse_to_parse(path):
    raise AssertionError(f"{path} was parsed again")


def same_scores(model):
    return model.score_sentence(["a", "b"]).token_log10_probs == (-0.25, -0.375, -4.75)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_second_load_maps_the_copy(path, tmp_path, monkeypatch, elsewhere):
    cache_dir = tmp_path / "cache" if elsewhere else None
    first = NgramModel.load(path, cache_dir=cache_dir)
    monkeypatch.setattr(ngram, "read_arpa", refuse_to_parse)
    model = NgramModel.load(path, cache_dir=cache_dir)
    assert same_scores(model)
    assert (model.vocabulary, model.order, model.sha256) == (first.vocabulary, 3, first.sha256)
    assert path.with_name("lm.arpa.cache").exists() is not elsewhere
    with pytest.raises(AssertionError):
        NgramModel.load(path, cache=False)


def test_a_changed_model_is_read_again(path):
    NgramModel.load(path)
    path.write_text(MODEL.replace("-0.375\t<s> a b", "-0.5\t<s> a b"))
    os.utime(path, ns=(1, 1))
    assert NgramModel.load(path).score_sentence(["a", "b"]).token_log10_probs[1] == -0.5


def flip_last_byte(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [flip_last_byte, lambda content: content[:-9], lambda content: content[:40], lambda _: b"", lambda _: b"{}\n",
     lambda content: content + b"more", lambda content: b"\xff" * len(content)],
)  # fmt: skip
def test_a_damaged_copy_is_made_again(path, damage, caplog):
    NgramModel.load(path)
    copy = path.with_name("lm.arpa.cache")
    good = copy.read_bytes()
    copy.write_bytes(damage(good))
    assert same_scores(NgramModel.load(path))
    assert "is damaged" in caplog.text
    assert copy.read_bytes() == good


def test_a_copy_of_another_version_is_made_again(path, monkeypatch):
    NgramModel.load(path)
    monkeypatch.setattr("asr.decode.ngram_cache._FORMAT", "asr n-gram arrays 999")
    assert same_scores(NgramModel.load(path))
    assert b"999" in path.with_name("lm.arpa.cache").read_bytes().splitlines()[0]


def test_where_no_copy_can_be_written_the_model_still_loads(path, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert same_scores(NgramModel.load(path, cache_dir=tmp_path / "file"))


def test_missing_model(tmp_path):
    with pytest.raises(LanguageModelError, match="no such ARPA file"):
        NgramModel.load(tmp_path / "gone.arpa")


# --------------------------------------------------------------------------- KenLM

needs_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"no reference models in {GOLDENS}")


@needs_goldens
@pytest.mark.parametrize("order", [2, 3, 4])
def test_perplexity_is_that_of_kenlm(order, tmp_path):
    lines = (GOLDENS / "perplexity.txt").read_text().splitlines()
    begin = lines.index(f"harvard o{order}")
    expected = [float(line.split("\t")[1]) for line in lines[begin + 1 : begin + 5]]
    model = NgramModel.load(GOLDENS / f"harvard.o{order}.arpa", cache_dir=tmp_path)
    text = (GOLDENS / "harvard.eval.txt").read_text().splitlines()
    assert model.perplexity(line.split() for line in text) == pytest.approx(expected, rel=1e-6)


@needs_goldens
@pytest.mark.parametrize("order", [2, 3, 4])
def test_word_scores_are_those_of_kenlm(order, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="the kenlm package is not installed")
    path = GOLDENS / f"harvard.o{order}.arpa"
    reference, model = kenlm.Model(str(path)), NgramModel.load(path, cache_dir=tmp_path)
    for line in (GOLDENS / "harvard.eval.txt").read_text().splitlines():
        expected = [log10_prob for log10_prob, _, _ in reference.full_scores(line)]
        assert model.score_sentence(line.split()).token_log10_probs == pytest.approx(expected, abs=1e-5)


@needs_goldens
def test_every_ngram_of_a_real_model_scores_as_listed(tmp_path):
    path = GOLDENS / "an4_train.o3.arpa"
    model, arpa = NgramModel.load(path, cache_dir=tmp_path), read_arpa(path)
    for block in arpa.orders[1:]:
        for word_ids, expected in zip(block.word_ids, block.log10_probs, strict=True):
            words = [arpa.words[word_id] for word_id in word_ids]
            scored = model.score_sentence(words, start=False, end=False)
            assert scored.token_log10_probs[-1] == pytest.approx(expected, abs=1e-6)
