"""Causes of errors against sums over every path, and against every way in which a decoder can fail."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_lm import (
    CHARACTERS,
    WORDS,
    acoustic_sums,
    decode_one,
    log10_of_sentence,
    random_log_probs,
    random_ngrams,
    write_arpa,
)
from torch import Tensor

from asr.attribution import attribute_errors
from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.greedy import GreedyDecoder
from asr.decode.lexicon import Lexicon
from asr.decode.scorer import Scorer, Weights
from asr.tokenizer import CharTokenizer

GREEDY = GreedyDecoder(CHARACTERS, 1.0)


def frames(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


@given(seed=st.integers(0, 2**32 - 1), text=st.sampled_from(["a", "ab", "ba b", "bb a", "b b", ""]))
@settings(deadline=None, max_examples=25)
def test_text_scores_are_those_of_the_formula(
    tmp_path_factory: pytest.TempPathFactory, seed: int, text: str
) -> None:
    ngrams = random_ngrams(seed, ["a", "ab", "ba"], 2)  # bb is in the lexicon, but unknown to the model
    model = write_arpa(tmp_path_factory.mktemp("lm") / "model.arpa", ngrams)
    scorer = Scorer(
        CHARACTERS,
        lexicon=Lexicon.build(WORDS, CHARACTERS, "words"),
        vocabulary="closed",
        lm=model,
        weights=Weights(0.7, 0.4, -1.5),
    )
    decoder = BeamDecoder(CHARACTERS, 1.0, scorer=scorer)
    words = text.split()
    unknown = sum((word,) not in ngrams for word in words)
    expected = 0.7 * math.log(10) * log10_of_sentence(ngrams, words) + 0.4 * len(words) - 1.5 * unknown
    allowed = all(word in WORDS for word in words)
    found = decoder.text_score(CHARACTERS.encode(text))
    assert found == pytest.approx(expected if allowed else -math.inf, abs=1e-4)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_scores_are_sums_over_all_paths_and_name_the_cause(seed: int) -> None:
    log_probs = random_log_probs(seed, 4, 4)
    sums = acoustic_sums(log_probs, CHARACTERS.blank_id)
    (heard,) = GREEDY.best_paths(_emissions(log_probs))
    hypothesis = CHARACTERS.decode(heard.token_ids)
    best = max(sums, key=lambda labels: sums[labels])
    for reference in ("ab", "b a"):
        if hypothesis == reference:
            continue
        found = attribute_errors(log_probs, reference, hypothesis, heard.token_ids, CHARACTERS, GREEDY)
        expected = sums[tuple(CHARACTERS.encode(reference))]
        assert found.reference.acoustic == pytest.approx(expected, abs=1e-4)
        assert found.hypothesis.acoustic == pytest.approx(sums[tuple(heard.token_ids)], abs=1e-4)
        is_search = expected > sums[tuple(heard.token_ids)] + 1e-3
        assert found.cause == ("search" if is_search else "acoustic_model")
        if tuple(heard.token_ids) == best:
            assert found.cause == "acoustic_model"


def _emissions(log_probs: Tensor):
    from asr.records import Emissions

    return Emissions(log_probs[None], torch.tensor([len(log_probs)]))


def test_a_best_path_that_is_not_the_best_labelling_is_a_search_error() -> None:
    log_probs = frames([0.6, 1e-9, 0.4, 1e-9], [0.6, 1e-9, 0.4, 1e-9])  # blank 0.36, "a" 0.64
    found = attribute_errors(log_probs, "a", "", [], CHARACTERS, GREEDY)
    assert found.cause == "search"
    assert math.exp(found.reference.acoustic) == pytest.approx(0.64, abs=1e-6)
    assert math.exp(found.hypothesis.acoustic) == pytest.approx(0.36, abs=1e-6)
    assert [region.cause for region in found.regions] == ["search"]


def test_the_language_model_is_to_blame_where_it_overrules_what_was_heard(tmp_path: Path) -> None:
    ngrams = {(word,): (-1.0, 0.0) for word in ("<unk>", "<s>", "</s>")}
    ngrams |= {("a",): (-3.0, 0.0), ("b",): (-0.1, 0.0)}
    model = write_arpa(tmp_path / "model.arpa", ngrams)
    lexicon = Lexicon.build(["a", "b"], CHARACTERS, "words")
    scorer = Scorer(CHARACTERS, lexicon=lexicon, vocabulary="closed", lm=model, weights=Weights(1.0))
    log_probs = frames([1e-9, 1e-9, 0.6, 0.4])
    (best, *_) = decode_one(log_probs, CHARACTERS, scorer)
    assert best.text == "b"
    decoder = BeamDecoder(CHARACTERS, 1.0, scorer=scorer)
    found = attribute_errors(log_probs, "a", "b", best.token_ids, CHARACTERS, decoder)
    assert found.cause == "language_model"
    assert found.regions[0].acoustic_gain == pytest.approx(math.log(0.6 / 0.4), abs=1e-4)
    assert found.regions[0].text_gain == pytest.approx(-2.9 * math.log(10), abs=1e-4)
    # A word that the closed vocabulary lacks: never found, although it was heard.
    outside = attribute_errors(log_probs, "a", "b", best.token_ids, CHARACTERS, _only_b())
    assert outside.cause == "language_model"
    assert outside.reference.total == -math.inf


def _only_b() -> BeamDecoder:
    lexicon = Lexicon.build(["b"], CHARACTERS, "words")
    return BeamDecoder(CHARACTERS, 1.0, scorer=Scorer(CHARACTERS, lexicon=lexicon, vocabulary="closed"))


def test_a_narrow_beam_is_to_blame_for_what_a_wide_one_finds() -> None:
    """Of 200 random tables, every text that only the wide beam finds is a search error of the narrow one."""
    tokenizer = CharTokenizer(list("abc"), blank_id=0)
    num_found = 0
    for seed in range(200):
        log_probs = random_log_probs(seed, 5, 4)
        narrow = BeamDecoder(tokenizer, 1.0, pruning=Pruning(1, 3.0, 3.0), num_threads=1)
        wide = BeamDecoder(tokenizer, 1.0, pruning=Pruning.none(3000), num_threads=1)
        missed = narrow.decode(_emissions(log_probs))[0]
        best = wide.decode(_emissions(log_probs))[0]
        if missed.text != best.text:
            found = attribute_errors(log_probs, best.text, missed.text, missed.token_ids, tokenizer, narrow)
            assert found.cause == "search"
            num_found += 1
    assert num_found > 5


def test_regions_are_judged_one_by_one() -> None:
    tokenizer = CharTokenizer([" ", "a", "b", "c"], blank_id=0)
    text, blank = tokenizer.encode("a b a c a"), tokenizer.blank_id
    rows = torch.full((2 * len(text), tokenizer.vocab_size), 1e-6)
    for index, token in enumerate(text):
        rows[2 * index, token] = rows[2 * index + 1, blank] = 1.0
    rows[4, tokenizer.encode("c")[0]] = 3.0  # where b was said, c was heard more clearly
    log_probs = (rows / rows.sum(1, keepdim=True)).log()
    heard = tokenizer.encode("a c a b a")  # the second error is a mistake of the decoder: c is what was heard
    found = attribute_errors(log_probs, "a b a c a", "a c a b a", heard, tokenizer, GREEDY)
    assert [(r.reference, r.hypothesis, r.cause) for r in found.regions] == [
        ("b", "c", "acoustic_model"),
        ("c", "b", "search"),
    ]
    assert found.regions[0].acoustic_gain == pytest.approx(math.log(1 / 3), abs=1e-3)
    gains = sum(region.acoustic_gain for region in found.regions)
    assert found.reference.acoustic - found.hypothesis.acoustic == pytest.approx(gains, abs=1e-3)


def test_many_candidates_are_scored_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs = random_log_probs(1, 30, 4)
    heard = CHARACTERS.encode("a b a b a b")
    arguments = (log_probs, "b b b b b b", "a b a b a b", heard, CHARACTERS, GREEDY)
    at_once = attribute_errors(*arguments)
    assert len(at_once.regions) == 3
    monkeypatch.setattr("asr.attribution._MAX_CELLS", 1)
    assert attribute_errors(*arguments) == at_once


def test_references_that_no_model_could_emit() -> None:
    log_probs = frames([0.2, 0.2, 0.3, 0.3], [0.2, 0.2, 0.3, 0.3])
    strange = attribute_errors(log_probs, "aß", "a", CHARACTERS.encode("a"), CHARACTERS, GREEDY)
    assert strange.cause == "unwritable"
    assert "ß" in strange.reason
    long = attribute_errors(log_probs, "bb", "b", CHARACTERS.encode("b"), CHARACTERS, GREEDY)
    assert long.cause == "unwritable"
    assert "frames" in long.reason
    assert long.reference.acoustic == -math.inf
    assert math.isfinite(long.hypothesis.acoustic)


def test_every_text_of_the_alphabet_is_scored_alike_with_and_without_company() -> None:
    """Candidates of different lengths share one batch; padding must not leak into the scores."""
    log_probs = random_log_probs(3, 4, 4)
    sums = acoustic_sums(log_probs, CHARACTERS.blank_id)
    texts = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab", repeat=n)]
    for text in texts:
        labels = tuple(CHARACTERS.encode(text))
        if text != "ab" and labels in sums:
            found = attribute_errors(log_probs, "ab", text, labels, CHARACTERS, GREEDY)
            assert found.hypothesis.acoustic == pytest.approx(sums[labels], abs=1e-4)
