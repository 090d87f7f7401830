"""Hotwords against counting: a finished text gains the bonus of each whole-word occurrence, and no more."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labellings import acoustic_sums, merged

from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.hotwords import WORD_START, Hotwords, read_hotwords
from asr.decode.scorer import Scorer
from asr.errors import ConfigError
from asr.records import Emissions
from asr.tokenizer import CharTokenizer, SentencePieceTokenizer

TOKENIZER = CharTokenizer([" ", "a", "b"], blank_id=0)
TEXTS = st.text("ab ", min_size=1, max_size=6).filter(lambda text: text.strip() != "")


def counted(phrases: dict[str, float], text: str) -> float:
    """Summed bonus of all occurrences as whole words; they may overlap."""
    words = text.split()
    total = 0.0
    for phrase, bonus in phrases.items():
        wanted = phrase.split()
        total += bonus * sum(
            words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1)
        )
    return total


def one_per_phrase(phrases: dict[str, float]) -> dict[str, float]:
    return {" ".join(phrase.split()): bonus for phrase, bonus in phrases.items()}


@given(
    phrases=st.dictionaries(TEXTS, st.floats(0.5, 9), min_size=1, max_size=5).map(one_per_phrase),
    text=st.text("ab x", max_size=20),
)
@settings(deadline=None, max_examples=300)
def test_a_text_is_worth_its_occurrences(phrases: dict[str, float], text: str) -> None:
    assert Hotwords(phrases, TOKENIZER).score(text) == pytest.approx(counted(phrases, text), abs=1e-9)


@given(
    phrases=st.dictionaries(TEXTS, st.floats(0.5, 4), min_size=1, max_size=4).map(one_per_phrase),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=30)
def test_the_search_adds_exactly_that(phrases: dict[str, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_probs = torch.from_numpy(2 * rng.normal(size=(5, 4))).log_softmax(-1).float()
    sums = merged(acoustic_sums(log_probs, 0), TOKENIZER)
    scorer = Scorer(TOKENIZER, hotwords=Hotwords(phrases, TOKENIZER))
    decoder = BeamDecoder(TOKENIZER, 1.0, pruning=Pruning.none(3000), scorer=scorer, num_threads=1)
    found = decoder.decode_nbest(Emissions(log_probs[None], torch.tensor([5])), 3000)[0]
    assert {hypothesis.token_ids for hypothesis in found} == set(sums)
    for hypothesis in found:
        expected = sums[hypothesis.token_ids] + counted(phrases, hypothesis.text)
        assert hypothesis.score == pytest.approx(expected, abs=1e-4)


def test_credit_grows_along_a_phrase_and_is_taken_back() -> None:
    hotwords = Hotwords({"ab ba": 6.0}, TOKENIZER)
    state, credits_ = WORD_START, []
    for character in "ab b":
        state = int(hotwords.next_state[state, hotwords.letters[character]])
        credits_.append(float(hotwords.credit[state]))
    # Seven characters with the spaces on either side; the first space is free.
    assert credits_ == pytest.approx([1.0, 2.0, 3.0, 4.0])
    failed = int(hotwords.next_state[state, hotwords.letters["b"]])
    assert hotwords.credit[failed] == 0.0


def test_a_phrase_inside_a_word_is_none() -> None:
    hotwords = Hotwords({"ab": 5.0}, TOKENIZER)
    scores = {text: hotwords.score(text) for text in ["ab", "bab", "aba", "a b", "b ab a", "ab  ab", ""]}
    assert scores == pytest.approx(
        {"ab": 5.0, "bab": 0.0, "aba": 0.0, "a b": 0.0, "b ab a": 5.0, "ab  ab": 10.0, "": 0.0}
    )


def spoken(tokenizer: object, text: str, wrong: dict[int, int], share: float) -> torch.Tensor:
    """Each token for a frame and a blank after it; some frames lean to another token."""
    token_ids = tokenizer.encode(text)  # type: ignore[attr-defined]
    probs = torch.full((2 * len(token_ids), tokenizer.vocab_size), 1e-4)  # type: ignore[attr-defined]
    for index, token in enumerate(token_ids):
        probs[2 * index, token] = 1 - share if index in wrong else 1.0
        probs[2 * index, wrong.get(index, token)] = share if index in wrong else 1.0
        probs[2 * index + 1, tokenizer.blank_id] = 1.0  # type: ignore[attr-defined]
    return (probs / probs.sum(dim=1, keepdim=True)).log()


def test_a_bonus_turns_what_was_misheard() -> None:
    tokenizer = CharTokenizer(sorted(set("call zoe joe ")), blank_id=0)
    wrong = tokenizer.encode("j")[0]
    log_probs = spoken(tokenizer, "call zoe", {5: wrong}, share=0.97)
    emissions = Emissions(log_probs[None], torch.tensor([len(log_probs)]))
    assert BeamDecoder(tokenizer, 0.04).decode(emissions)[0].text == "call joe"
    scorer = Scorer(tokenizer, hotwords=Hotwords({"zoe": 5.0}, tokenizer))
    assert BeamDecoder(tokenizer, 0.04, scorer=scorer).decode(emissions)[0].text == "call zoe"


def test_subwords_need_no_particular_spelling() -> None:
    tokenizer = SentencePieceTokenizer.train(["one two three four", "three two one"] * 3, vocab_size=13)
    log_probs = spoken(tokenizer, "three two one", {}, share=0.5)
    emissions = Emissions(log_probs[None], torch.tensor([len(log_probs)]))
    plain = BeamDecoder(tokenizer, 0.04).decode(emissions)[0]
    scorer = Scorer(tokenizer, hotwords=Hotwords({"two one": 3.0, "tw": 9.0}, tokenizer))
    boosted = BeamDecoder(tokenizer, 0.04, scorer=scorer).decode(emissions)[0]
    assert boosted.text == plain.text == "three two one"
    assert boosted.score == pytest.approx(plain.score + 3.0, abs=1e-3)


# ------------------------------------------------------------------ files and bad input


def test_a_file_has_one_phrase_a_line_and_may_weigh_each(tmp_path: Path) -> None:
    path = tmp_path / "hotwords.txt"
    path.write_text("new york\n\nzoe\t7.5\n")
    assert read_hotwords(path, 4.0) == {"new york": 4.0, "zoe": 7.5}


@pytest.mark.parametrize("bonus", ["many", "-1", "0", "inf", ""])
def test_a_bonus_that_is_no_positive_number_is_named(tmp_path: Path, bonus: str) -> None:
    path = tmp_path / "hotwords.txt"
    path.write_text(f"ab\nb\t{bonus} \t\n" if bonus else "ab\nb\t0\n")
    with pytest.raises(ConfigError, match=r"hotwords\.txt line 2: the bonus"):
        read_hotwords(path, 4.0)


def test_phrases_that_cannot_be_recognised_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hotword 'Ab' has characters without a token \('A'\)"):
        Hotwords({"Ab": 1.0}, TOKENIZER)
    with pytest.raises(ConfigError, match="a hotword is empty"):
        Hotwords({" ": 1.0}, TOKENIZER)
    with pytest.raises(ConfigError, match="must be a number above 0"):
        Hotwords({"ab": -1.0}, TOKENIZER)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder\.hotword_file=.*none\.txt: No such file") as caught:
        read_hotwords(tmp_path / "none.txt", 1.0)
    assert "\n" not in str(caught.value)
