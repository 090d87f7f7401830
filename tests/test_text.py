"""Normalisation: examples by hand; idempotent and closed for any text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.text import Case, normalise

CASES: list[Case] = ["lower", "upper", "keep"]
# Characters that have bitten: accents, ligatures, apostrophes, joiners, special casings.
TRICKY = "aeis'’ʼŉ`´´–—︱…“İıßẞΣςǰﬁ½Å\u0301\u0307\u00ad\u200b\u200d\ufeff\t\n\u00a0\u3000-.,!$ "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  two \t words\n", "two words"),
        ("don’t can`t wonʼt", "don't can't won't"),
        ("'quoted' and ‘so’ the dogs' tails", "quoted and so the dogs tails"),
        ("rock 'n' roll ''", "rock n roll"),
        ("well-known—really", "well known really"),
        ("a $5.50 50% & more", "a 5 50 50 more"),
        ("cafe\u0301", "café"),
        ("ﬁne Ａ１", "fine a1"),
        ("ΟΔΟΣ Straße İ", "οδος straße i̇"),
        ("co\u00adoperate \ufeffzero\u200bwidth", "cooperate zero width"),
        ("語音，辨識。", "語音 辨識"),
        ("नमस्ते", "नमस्ते"),
        ("", ""),
        ("…!?", ""),
    ],
)
def test_lower_case_without_punctuation(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_case() -> None:
    assert normalise("Straße Ab", case="upper") == "STRASSE AB"
    assert normalise("Straße Ab", case="keep") == "Straße Ab"


def test_punctuation_can_stay() -> None:
    assert normalise("“Well—yes…”,  he  said.", keep_punctuation=True) == '"well-yes...", he said.'
    assert normalise("a\x00b\u00ad", keep_punctuation=True) == "a b"


@settings(deadline=None, max_examples=400)
@given(st.text(TRICKY) | st.text(), st.sampled_from(CASES), st.booleans())
def test_idempotent(text: str, case: Case, keep_punctuation: bool) -> None:
    once = normalise(text, case=case, keep_punctuation=keep_punctuation)
    assert normalise(once, case=case, keep_punctuation=keep_punctuation) == once


@settings(deadline=None, max_examples=200)
@given(st.text(TRICKY) | st.text())
def test_only_letters_marks_digits_and_inner_apostrophes_remain(text: str) -> None:
    words = normalise(text).split(" ") if normalise(text) else []
    for word in words:
        assert word
        assert not word.startswith("'")
        assert not word.endswith("'")
        assert {unicodedata.category(character)[0] for character in word.replace("'", "")} <= set("LMN")


@settings(deadline=None, max_examples=100)
@given(st.text(TRICKY) | st.text())
def test_composed_and_decomposed_text_are_the_same(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))


def test_every_character_is_idempotent_between_letters_and_accents() -> None:
    for code_point in range(0x10000):
        for text in (chr(code_point), f"a{chr(code_point)}b", f"e{chr(code_point)}\u0301"):
            once = normalise(text)
            assert normalise(once) == once, f"U+{code_point:04X}"
