"""Whether the words of a language model can be written with the characters of a tokenizer."""

from collections.abc import Callable, Collection, Iterable, Mapping

from asr.decode.arpa import SPECIAL_WORDS

_NUM_EXAMPLES = 3
_CASES: Mapping[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper}


def spellable_share(vocabulary: Iterable[str], characters: Collection[str]) -> float:
    """Share of words that consist of known characters; ``<unk>``, ``<s>`` and ``</s>`` do not count.

    One when there are no words.
    """
    known = frozenset(characters)
    spellable = [known.issuperset(word) for word in vocabulary if word not in SPECIAL_WORDS]
    return sum(spellable) / len(spellable) if spellable else 1.0


def spelling_warning(
    vocabulary: Collection[str], characters: Collection[str], *, tolerated_share: float = 0.01
) -> str | None:
    """One line for the user when more than ``tolerated_share`` of the words can never be recognised, else None."""
    share = spellable_share(vocabulary, characters)
    if 1 - share <= tolerated_share:
        return None
    known = frozenset(characters)
    bad = [word for word in vocabulary if word not in SPECIAL_WORDS and not known.issuperset(word)]
    message = (
        f"{1 - share:.1%} of the language model's words cannot be spelled with the tokenizer's characters, "
        f"such as {', '.join(repr(word) for word in bad[:_NUM_EXAMPLES])}"
    )
    for case, change in _CASES.items():
        if spellable_share((change(word) for word in bad), characters) > 0.5:
            return f"{message}; they could in {case} case: estimate the model with case={case}"
    return message
