"""Text and words of a hypothesis, normalised together."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.recogniser import normalised
from asr.records import Hypothesis, Word
from asr.text import normalise


def hypothesis_of(texts: list[str]) -> Hypothesis:
    words = tuple(Word(text, float(start), start + 0.6, 0.5) for start, text in enumerate(texts))
    return Hypothesis((), " ".join(texts), -1.0, (), words)


def test_words_by_hand() -> None:
    """Six letters of "e-mails" share 0.6 s; the dash alone is no word."""
    found = normalised(hypothesis_of(["Send", "e-mails", "–", "NOW!"]), normalise)
    assert found.text == "send e mails now"
    assert [word.text for word in found.words] == ["send", "e", "mails", "now"]
    assert [word.start_seconds for word in found.words] == pytest.approx([0, 1, 1.1, 3])
    assert [word.end_seconds for word in found.words] == pytest.approx([0.6, 1.1, 1.6, 3.6])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=8).filter(lambda text: len(text.split()) == 1), max_size=6),
    st.booleans(),
    st.sampled_from(["lower", "upper", "keep"]),
)
def test_words_spell_the_text_whatever_was_recognised(texts: list[str], keep: bool, case: str) -> None:
    texts = [text.split()[0] for text in texts]
    found = normalised(
        hypothesis_of(texts),
        lambda text: normalise(text, keep_punctuation=keep, case=case),  # type: ignore[arg-type]
    )
    assert " ".join(word.text for word in found.words) == found.text
    assert all(word.start_seconds < word.end_seconds for word in found.words)
    assert all(before.end_seconds <= after.start_seconds for before, after in pairwise(found.words))
