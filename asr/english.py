"""English spellings brought to one form before scoring: contractions spelt out, numbers as digits.

``I'll pay twenty-five dollars`` and ``i will pay $25`` become the same words, so a difference in
spelling is not counted as an error of recognition. Both sides of a comparison go through the same
function; nothing is lost when a form is ambiguous, as long as both sides take the same road.
"""

import re

from asr import text

_CONTRACTIONS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\bwon't\b", "will not"),
        (r"\bshan't\b", "shall not"),
        (r"\b(?:can't|cannot)\b", "can not"),
        (r"\bain't\b", "is not"),
        (r"n't\b", " not"),
        (r"\blet's\b", "let us"),
        (r"\by'all\b", "you all"),
        (r"\bgonna\b", "going to"),
        (r"\bwanna\b", "want to"),
        (r"\bgotta\b", "got to"),
        (r"'m\b", " am"),
        (r"'re\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"'d (been|better|had)\b", r" had \1"),
        (r"'d\b", " would"),
        # Elsewhere 's is a possessive and stays.
        (r"\b(it|he|she|that|there|here|what|where|who|how|when)'s (been|got|had)\b", r"\1 has \2"),
        (r"\b(it|he|she|that|there|here|what|where|who|how|when)'s\b", r"\1 is"),
    )
)

_WRITTEN_NUMBERS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),  # thousands separators
        (r"\$\s*(\d+(?:\.\d+)?)", r"\1 dollars"),
        (r"£\s*(\d+(?:\.\d+)?)", r"\1 pounds"),
        (r"€\s*(\d+(?:\.\d+)?)", r"\1 euros"),
        (r"(?<=\d)\.(?=\d)", " point "),
        (r"(?<=\d)\s*%", " percent"),
        (r"\s&\s", " and "),
    )
)

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_CARDINALS = {word: value for value, word in enumerate(_ONES + _TEENS)} | {
    word: 10 * tens for tens, word in enumerate(_TENS, start=2)
}
_IRREGULAR_ORDINALS = {
    "first": 1,
    "second": 2,
    "third": 3,
    "fifth": 5,
    "eighth": 8,
    "ninth": 9,
    "twelfth": 12,
}
_ORDINALS = (
    _IRREGULAR_ORDINALS
    | {word + "th": value for word, value in _CARDINALS.items() if value in {4, 6, 7, *range(10, 20)} - {12}}
    | {word[:-1] + "ieth": value for word, value in _CARDINALS.items() if value >= 20}
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_YEAR_CENTURIES = range(13, 21)  # "nineteen ninety nine", "twenty twenty": 1300 to 2099


def normalise(transcript: str) -> str:
    """Return ``transcript`` in lower case, without punctuation, contractions or number words."""
    transcript = text.normalise(transcript, keep_punctuation=True)
    for pattern, replacement in _WRITTEN_NUMBERS:
        transcript = pattern.sub(replacement, transcript)
    transcript = text.normalise(transcript)
    for pattern, replacement in _CONTRACTIONS:
        transcript = pattern.sub(replacement, transcript)
    return " ".join(_numbers_as_digits(transcript.split()))


def _numbers_as_digits(words: list[str]) -> list[str]:
    digits: list[str] = []
    position = 0
    while position < len(words):
        phrase = _NumberPhrase()
        while position < len(words) and phrase.accepts(words, position):
            position += 1
        if phrase.num_words:
            year = _spoken_year(words, position, phrase)
            if year is not None:
                position = year[1]
            digits.append(str(year[0]) if year is not None else phrase.written())
        else:
            digits.append(words[position])
            position += 1
    return digits


def _spoken_year(words: list[str], position: int, century: "_NumberPhrase") -> tuple[int, int] | None:
    """Read the second half of a year said in two halves: ``(year, position after it)``."""
    if century.value not in _YEAR_CENTURIES or not century.is_plain:
        return None
    rest = _NumberPhrase()
    while position < len(words) and rest.accepts(words, position):
        position += 1
    if rest.is_plain and 10 <= rest.value <= 99:
        return century.value * 100 + rest.value, position
    return None


class _NumberPhrase:
    """A number being read word by word, as far as the words still belong to one number."""

    def __init__(self) -> None:
        self.num_words = 0
        self.suffix = ""
        self._finished_groups = 0  # what came before the last "thousand", "million", …
        self._group: int | None = None  # below the next such word
        self._last_scale = 10**15
        self._has_scale = False
        self._has_digits = False

    @property
    def value(self) -> int:
        return self._finished_groups + (self._group or 0)

    @property
    def is_plain(self) -> bool:
        """Whether it was said with cardinal words below a hundred alone."""
        return self.num_words > 0 and not (self._has_scale or self._has_digits or self.suffix)

    def written(self) -> str:
        return f"{self.value}{self.suffix}"

    def accepts(self, words: list[str], position: int) -> bool:
        """Take the word at ``position`` into the number when it continues it."""
        word = words[position]
        following = words[position + 1] if position + 1 < len(words) else ""
        taken = not self.suffix and (
            self._take_joint(word, following)
            or self._take_digits(word, following)
            or self._take_small(word)
            or self._take_scale(word)
        )
        self.num_words += taken
        return taken

    def _take_joint(self, word: str, following: str) -> bool:
        if word == "a" and not self.num_words:
            return following in _SCALES
        ends_a_group = self._group is None or self._group % 100 == 0
        return word == "and" and self._has_scale and ends_a_group and following in _CARDINALS | _ORDINALS

    def _take_digits(self, word: str, following: str) -> bool:
        if self.num_words or following not in _SCALES or not (word.isascii() and word.isdigit()):
            return False
        self._group, self._has_digits = int(word), True
        return True

    def _take_small(self, word: str) -> bool:
        value = _CARDINALS.get(word, _ORDINALS.get(word))
        if value is None or not self._has_room_for(value):
            return False
        self._group = (self._group or 0) + value
        if word in _ORDINALS:
            self.suffix = _ordinal_suffix(self.value)
        return True

    def _has_room_for(self, value: int) -> bool:
        if self._group is None:
            return value > 0 or self.num_words == 0
        if value == 0 or self._group == 0:
            return False
        below_hundred = self._group % 100
        if below_hundred == 0:
            return value < 100
        return below_hundred >= 20 and below_hundred % 10 == 0 and value < 10

    def _take_scale(self, word: str) -> bool:
        ordinal = word.endswith("th") and word[:-2] in _SCALES
        scale = _SCALES.get(word[:-2] if ordinal else word)
        if scale is None or self._group == 0 or (self._group is None and self._finished_groups):
            return False
        group = self._group if self._group is not None else 1
        if scale == 100:
            if group >= 100 and not self._has_digits:
                return False
            self._group = group * scale
        elif scale < self._last_scale:
            self._finished_groups += group * scale
            self._group, self._last_scale = None, scale
        else:
            return False
        self._has_scale = True
        if ordinal:
            self.suffix = _ordinal_suffix(self.value)
        return True


def _ordinal_suffix(value: int) -> str:
    if value % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
