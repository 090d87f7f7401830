"""Transcript normalisation: one function, used for training targets and for scoring alike."""

import unicodedata
from typing import Literal

Case = Literal["lower", "upper", "keep"]

# Typographic variants of ASCII punctuation that keyboards and corpora mix freely.
_PLAIN_PUNCTUATION = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'", "–": "-", "—": "-", "“": '"', "”": '"', "…": "."}
)
_APOSTROPHE = "'"


def normalise(text: str, *, case: Case = "lower", keep_punctuation: bool = False) -> str:
    """Return ``text`` in the form in which it is trained on and scored.

    Unicode NFKC (so that composed and decomposed accents are the same character), one case,
    punctuation and symbols replaced by a space except word-internal apostrophes, runs of
    white space collapsed to one space. Idempotent: normalising twice changes nothing.

    Args:
        text: any transcript.
        case: ``lower``, ``upper`` or ``keep``.
        keep_punctuation: leave punctuation and symbols in place.
    """
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN_PUNCTUATION))
    if case == "lower":
        # NFKC again: lower-casing can decompose (e.g. 'İ' becomes 'i' + combining dot).
        text = unicodedata.normalize("NFKC", text.lower())
    elif case == "upper":
        text = unicodedata.normalize("NFKC", text.upper())
    if not keep_punctuation:
        text = "".join(_blank_out_punctuation(character) for character in text)
        text = " ".join(word.strip(_APOSTROPHE) for word in text.split())
    return " ".join(text.split())


def _blank_out_punctuation(character: str) -> str:
    if character == _APOSTROPHE:
        return character
    # P* punctuation, S* symbols, C* control and format characters.
    return " " if unicodedata.category(character)[0] in "PSC" else character
