"""Search with words and a language model against the sum it stands for, written out for every labelling."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labellings import acoustic_sums, merged
from torch import Tensor

from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.lexicon import Lexicon, read_lexicon
from asr.decode.ngram import NgramModel
from asr.decode.scorer import Scorer, Weights
from asr.errors import ConfigError
from asr.records import Emissions, Hypothesis
from asr.tokenizer import CharTokenizer, SentencePieceTokenizer, Tokenizer

CHARACTERS = CharTokenizer([" ", "a", "b"], blank_id=0)
WORDS = ["a", "ab", "ba", "bb"]
Ngrams = dict[tuple[str, ...], tuple[float, float]]


class Subwords(Tokenizer):
    """Pieces that spell several characters, some with a space before them, in more than one way."""

    def __init__(self) -> None:
        super().__init__([" a", "b", "ab", " ", "a"], blank_id=5)

    def state(self) -> dict:
        raise AssertionError("never stored")

    def _encode_known(self, text: str) -> list[int]:
        raise AssertionError("never encoded")


def random_ngrams(seed: int, words: list[str], order: int) -> Ngrams:
    """A back-off model whose numbers mean nothing, ``(log10 probability, back-off)`` of each n-gram."""
    rng = np.random.default_rng(seed)
    ngrams: Ngrams = {}
    unigrams = ["<unk>", "<s>", "</s>", *words]
    for word in unigrams:
        ngrams[(word,)] = (-float(rng.uniform(0.2, 2)), -float(rng.uniform(0, 1)))
    for length in range(2, order + 1):
        for ngram in itertools.product(unigrams, repeat=length):
            inner = "</s>" not in ngram[:-1] and "<s>" not in ngram[1:]
            if inner and ngram[:-1] in ngrams and ngram[1:] in ngrams and rng.random() < 0.4:
                ngrams[ngram] = (-float(rng.uniform(0.2, 2)), -float(rng.uniform(0, 1)))
    return ngrams


def write_arpa(path: Path, ngrams: Ngrams) -> NgramModel:
    order = max(map(len, ngrams))
    by_order = [[ngram for ngram in ngrams if len(ngram) == length] for length in range(1, order + 1)]
    lines = ["\\data\\", *(f"ngram {n}={len(listed)}" for n, listed in enumerate(by_order, start=1))]
    for length, listed in enumerate(by_order, start=1):
        lines += ["", f"\\{length}-grams:"]
        for ngram in listed:
            log10_prob, backoff = ngrams[ngram]
            lines.append(
                f"{log10_prob:.6f}\t{' '.join(ngram)}" + (f"\t{backoff:.6f}" if length < order else "")
            )
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return NgramModel.load(path, cache=False)


def log10_of_sentence(ngrams: Ngrams, words: list[str]) -> float:
    def log10_prob(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in ngrams:
            return ngrams[(*context, word)][0]
        return ngrams.get(context, (0.0, 0.0))[1] + log10_prob(context[1:], word)

    order = max(map(len, ngrams))
    known = ["<s>", *(word if (word,) in ngrams else "<unk>" for word in words), "</s>"]
    return sum(
        log10_prob(tuple(known[max(0, index - order + 1) : index]), known[index])
        for index in range(1, len(known))
    )


def random_log_probs(seed: int, num_frames: int, vocab_size: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(2 * rng.normal(size=(num_frames, vocab_size))).log_softmax(-1).float()


def decode_one(
    log_probs: Tensor,
    tokenizer: Tokenizer,
    scorer: Scorer,
    num_best: int = 3000,
    pruning: Pruning | None = None,
) -> list[Hypothesis]:
    decoder = BeamDecoder(tokenizer, 1.0, pruning=pruning or Pruning.none(3000), scorer=scorer, num_threads=1)
    emissions = Emissions(log_probs[None], torch.tensor([len(log_probs)]))
    return decoder.decode_nbest(emissions, num_best)[0]


def assert_same(found: list[Hypothesis], expected: dict[tuple[int, ...], float]) -> None:
    assert {hypothesis.token_ids for hypothesis in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.token_ids], abs=2e-4)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


# ------------------------------------------------------------------ exactness


@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.integers(1, 3),
    subwords=st.booleans(),
    is_open=st.booleans(),
    num_frames=st.integers(0, 4),
)
@settings(deadline=None, max_examples=60)
def test_words_with_a_language_model(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    order: int,
    subwords: bool,
    is_open: bool,
    num_frames: int,
) -> None:
    tokenizer = Subwords() if subwords else CHARACTERS
    ngrams = random_ngrams(seed, ["a", "ab", "ba"], order)
    model = write_arpa(tmp_path_factory.mktemp("lm") / "model.arpa", ngrams)
    weights = Weights(alpha=0.7, beta=0.4, unknown_penalty=-1.5)
    scorer = Scorer(
        tokenizer,
        lexicon=Lexicon.build(WORDS, tokenizer, "words"),
        vocabulary="open" if is_open else "closed",
        lm=model,
        weights=weights,
    )
    log_probs = random_log_probs(seed, num_frames, tokenizer.vocab_size)
    expected = {}
    for labelling, acoustic in acoustic_sums(log_probs, tokenizer.blank_id).items():
        words = tokenizer.decode(labelling).split()
        if is_open or all(word in WORDS for word in words):
            num_unknown = sum((word,) not in ngrams for word in words)
            expected[labelling] = (
                acoustic
                + 0.7 * math.log(10) * log10_of_sentence(ngrams, words)
                + 0.4 * len(words)
                - 1.5 * num_unknown
            )
    assert_same(decode_one(log_probs, tokenizer, scorer), merged(expected, tokenizer))


@given(seed=st.integers(0, 2**32 - 1), subwords=st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_language_model_over_tokens(
    tmp_path_factory: pytest.TempPathFactory, seed: int, subwords: bool
) -> None:
    tokenizer = Subwords() if subwords else CHARACTERS
    names = ["▁a", "b", "ab", "<space>", "a"] if subwords else ["<space>", "a", "b"]
    names.insert(tokenizer.blank_id, "blank")
    ngrams = random_ngrams(seed, [name for name in names if name != "blank"], 2)
    model = write_arpa(tmp_path_factory.mktemp("lm") / "model.arpa", ngrams)
    scorer = Scorer(tokenizer, lm=model, lm_unit="token", weights=Weights(alpha=0.9, beta=-0.5))
    log_probs = random_log_probs(seed, 4, tokenizer.vocab_size)
    expected = {
        labelling: acoustic
        + 0.9 * math.log(10) * log10_of_sentence(ngrams, [names[token] for token in labelling])
        - 0.5 * len(tokenizer.decode(labelling).split())
        for labelling, acoustic in acoustic_sums(log_probs, tokenizer.blank_id).items()
    }
    assert_same(decode_one(log_probs, tokenizer, scorer), expected)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_a_lexicon_alone_only_forbids(seed: int) -> None:
    scorer = Scorer(CHARACTERS, lexicon=Lexicon.build(WORDS, CHARACTERS, "words"), vocabulary="closed")
    log_probs = random_log_probs(seed, 5, 4)
    expected = {
        labelling: score
        for labelling, score in acoustic_sums(log_probs, 0).items()
        if set(CHARACTERS.decode(labelling).split()) <= set(WORDS)
    }
    assert_same(decode_one(log_probs, CHARACTERS, scorer), merged(expected, CHARACTERS))


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_without_anything_to_add_it_is_the_plain_search(seed: int) -> None:
    """But for superfluous spaces; where there is no bare space, exactly and in any beam."""
    log_probs = random_log_probs(seed, 5, 4)
    emissions = Emissions(log_probs[None], torch.tensor([5]))
    plain = BeamDecoder(CHARACTERS, 0.04, pruning=Pruning.none(3000)).decode_nbest(emissions, 3000)[0]
    scores = {hypothesis.token_ids: hypothesis.score for hypothesis in plain}
    assert_same(decode_one(log_probs, CHARACTERS, Scorer(CHARACTERS)), merged(scores, CHARACTERS))
    letters = CharTokenizer(["a", "b", "c"], blank_id=0)
    log_probs = random_log_probs(seed, 30, 4)
    emissions = Emissions(log_probs[None], torch.tensor([30]))
    plain = BeamDecoder(letters, 0.04).decode_nbest(emissions, 5)[0]
    scored = BeamDecoder(letters, 0.04, scorer=Scorer(letters)).decode_nbest(emissions, 5)[0]
    assert [h.token_ids for h in plain] == [h.token_ids for h in scored]
    assert [h.score for h in plain] == pytest.approx([h.score for h in scored], abs=1e-9)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_scores_of_a_pruned_search_are_still_those_of_the_text(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """What was anticipated is settled: a narrow beam misses texts and mass, but adds nothing."""
    ngrams = random_ngrams(seed, ["a", "ab", "ba"], 2)
    model = write_arpa(tmp_path_factory.mktemp("lm") / "model.arpa", ngrams)
    tables = {"lexicon": Lexicon.build(WORDS, CHARACTERS, "words"), "lm": model}
    scorer = Scorer(CHARACTERS, vocabulary="closed", weights=Weights(0.7, 0.4, -1.5), **tables)
    log_probs = random_log_probs(seed, 6, 4)
    exact = {h.token_ids: h.score for h in decode_one(log_probs, CHARACTERS, scorer)}
    for hypothesis in decode_one(log_probs, CHARACTERS, scorer, 5, Pruning(5, 8.0, 5.0)):
        if hypothesis.token_ids in exact:
            assert hypothesis.score <= exact[hypothesis.token_ids] + 1e-4


def test_a_word_cut_off_at_the_end_is_dropped() -> None:
    tokenizer = CharTokenizer([" ", "a", "b", "c"], blank_id=0)
    scorer = Scorer(tokenizer, lexicon=Lexicon.build(["ab", "abc"], tokenizer, "words"), vocabulary="closed")
    path = tokenizer.encode("ab a")
    log_probs = torch.full((4, 5), -30.0)
    log_probs[torch.arange(4), torch.tensor(path)] = 0.0
    [hypothesis] = decode_one(log_probs, tokenizer, scorer, 1, Pruning(1, 5.0, 5.0))
    assert hypothesis.text == "ab"
    assert [word.text for word in hypothesis.words] == ["ab"]
    assert hypothesis.token_frames == (0, 1, 2)


# ------------------------------------------------------------------ lexicon


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=12),
    pieces=st.lists(st.text("abc", min_size=2, max_size=3), max_size=6, unique=True),
)
@settings(deadline=None, max_examples=60)
def test_the_lexicon_accepts_its_words_under_every_spelling(words: list[str], pieces: list[str]) -> None:
    class Pieces(Subwords):
        def __init__(self) -> None:
            spelled = [*"abc ", *pieces, *(f" {piece}" for piece in ["a", *pieces])]
            Tokenizer.__init__(self, list(dict.fromkeys(spelled)), blank_id=0)

    tokenizer = Pieces()
    lexicon = Lexicon.build(words, tokenizer, "words")
    edges: dict[int, list[tuple[int, int]]] = {
        state: [
            (int(lexicon.edge_tokens[edge]), int(lexicon.edge_targets[edge]))
            for edge in range(lexicon.first_edge[state], lexicon.first_edge[state + 1])
        ]
        for state in range(lexicon.num_states)
    }
    final = dict(zip(lexicon.word_states.tolist(), lexicon.words, strict=True))
    accepted = set()
    stack: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while stack:
        state, spelled = stack.pop()
        if state in final:
            accepted.add(spelled)
            assert tokenizer.decode(spelled) == final[state]
        stack += [(target, (*spelled, token)) for token, target in edges[state]]
    every = {
        spelled
        for length in range(1, 6)
        for spelled in itertools.product(range(1, 5), repeat=length)
        if tokenizer.decode(spelled) in words and tokenizer.tokens.index(" ") not in spelled
    }
    assert set(lexicon.words) == set(words)
    assert every <= accepted
    for tokens in edges.values():
        assert tokens == sorted(tokens)


def test_sentencepiece_words_are_found() -> None:
    tokenizer = SentencePieceTokenizer.train(["one two three four", "three two one"] * 3, vocab_size=13)
    lexicon = Lexicon.build(["one", "two", "three"], tokenizer, "words")
    scorer = Scorer(tokenizer, lexicon=lexicon, vocabulary="closed")
    token_ids = tokenizer.encode("two three")
    log_probs = torch.full((2 * len(token_ids), tokenizer.vocab_size), -8.0)
    for index, token in enumerate(token_ids):
        log_probs[2 * index, token] = 0.0
        log_probs[2 * index + 1, tokenizer.blank_id] = 0.0
    hypothesis = decode_one(log_probs.log_softmax(-1), tokenizer, scorer, 1, Pruning())[0]
    assert [word.text for word in hypothesis.words] == ["two", "three"]


# ------------------------------------------------------------------ bad input


def test_words_in_the_wrong_case_are_reported_with_their_share(caplog: pytest.LogCaptureFixture) -> None:
    lexicon = Lexicon.build(["ab", "BA", "AB", "b"], CHARACTERS, "lm.arpa")
    assert lexicon.words == ("ab", "b")
    assert "lm.arpa: 2 of its 4 words (50 %) cannot be spelled" in caplog.text
    assert "make the words lower case" in caplog.text
    with pytest.raises(ConfigError, match=r"2 of its 2 words \(100 %\) .* lower case"):
        Lexicon.build(["AB", "BA"], CHARACTERS, "lm.arpa")


def test_a_lexicon_with_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("ab\n\nba b a |\n")
    with pytest.raises(ConfigError, match=r"lexicon\.txt line 3: 'ba b a \|' is more than one word"):
        read_lexicon(path)
    with pytest.raises(ConfigError, match=r"decoder\.lexicon=.*missing"):
        read_lexicon(tmp_path / "missing")
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no words"):
        read_lexicon(path)


def test_tokens_that_hold_a_space_inside_are_refused() -> None:
    class Phrases(Subwords):
        def __init__(self) -> None:
            Tokenizer.__init__(self, ["a b", "a"], blank_id=0)

    with pytest.raises(ConfigError, match="token 'a b' has a space after a letter"):
        Scorer(Phrases())


def test_a_word_model_taken_for_a_token_model_is_refused(tmp_path: Path) -> None:
    model = write_arpa(tmp_path / "words.arpa", random_ngrams(0, ["abba", "baab"], 2))
    with pytest.raises(ConfigError, match="knows none of the tokens"):
        Scorer(CHARACTERS, lm=model, lm_unit="token")


@pytest.mark.parametrize("option", ["alpha", "unknown_penalty"])
def test_weights_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"decoder.{option}"):
        Weights(**{option: -1.0 if option == "alpha" else 1.0})


def test_a_closed_vocabulary_needs_words() -> None:
    with pytest.raises(ConfigError, match=r"vocabulary=closed needs the words"):
        Scorer(CHARACTERS, vocabulary="closed")
