"""Transcript normalisation: one function, used for training targets and for scoring alike."""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

Case = Literal["lower", "upper", "keep"]

_APOSTROPHE = "'"
_PLAIN = re.compile("[a-z0-9 ]*")


def normalise(
    text: str, *, case: Case = "lower", keep_punctuation: bool = False, wildcard: str | None = None
) -> str:
    """Return ``text`` in the form in which it is trained on and scored.

    Unicode NFKC (so that composed and decomposed accents are the same character), one case,
    invisible characters (soft hyphens, joiners, byte-order marks) removed, punctuation and
    symbols replaced by a space except word-internal apostrophes, runs of white space collapsed
    to one space. Idempotent: normalising twice changes nothing.

    Args:
        text: any transcript.
        case: ``lower``, ``upper`` or ``keep``.
        keep_punctuation: leave punctuation and symbols in place.
        wildcard: a mark that stands for missing words; it stays, as a word of its own. A text of
            nothing else is empty.
    """
    if wildcard is not None and wildcard in text:
        parts = [
            normalise(part, case=case, keep_punctuation=keep_punctuation) for part in text.split(wildcard)
        ]
        if not any(parts):
            return ""
        # An empty part between two marks is no part: words missing beside missing words are one gap.
        inner = [part for part in parts[1:-1] if part]
        return f" {wildcard} ".join([parts[0], *inner, parts[-1]]).strip()
    if case != "upper" and _PLAIN.fullmatch(text):  # most of a corpus that asr.prepare has written
        return " ".join(text.split())
    # Before NFKC, which would turn '´' into a space and an accent, and not see past a joiner.
    text = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY))
    if case == "lower":
        # NFKC again: lower-casing can decompose (e.g. 'İ' becomes 'i' + combining dot).
        text = unicodedata.normalize("NFKC", text.lower())
    elif case == "upper":
        text = unicodedata.normalize("NFKC", text.upper())
    # After NFKC too: it makes typographic characters of its own (e.g. 'ʼn' of 'ŉ').
    text = text.translate(_TYPOGRAPHY)
    if not keep_punctuation:
        text = text.translate(_PUNCTUATION)
        if _APOSTROPHE in text:
            text = " ".join(word.strip(_APOSTROPHE) for word in text.split())
    return " ".join(text.split())


class _Replacements(dict[int, str]):
    """A table for ``str.translate`` that is filled as characters are met."""

    def __init__(self, replacement: Callable[[str], str], fixed: dict[str, str]) -> None:
        super().__init__({ord(character): plain for character, plain in fixed.items()})
        self._replacement = replacement

    def __missing__(self, code_point: int) -> str:
        self[code_point] = self._replacement(chr(code_point))
        return self[code_point]


def _without_control(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":  # format characters, which have no width
        return ""
    return " " if category[0] == "C" else character


def _without_punctuation(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "PS" else character


_TYPOGRAPHY = _Replacements(
    _without_control,
    {
        # Variants of ASCII punctuation that keyboards and corpora mix freely.
        **dict.fromkeys("’‘ʼ`´", "'"),
        **dict.fromkeys("–—", "-"),
        **dict.fromkeys("“”", '"'),
        "…": "...",
        "\u200b": " ",  # the zero-width space separates words where no space is written
    },
)
_PUNCTUATION = _Replacements(_without_punctuation, {_APOSTROPHE: _APOSTROPHE})
