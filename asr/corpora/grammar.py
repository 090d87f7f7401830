"""Sentences for the demo corpus, from one of three grammars.

``assistant``: digits, numbers, spelled words, names, dates, times and commands. ``spelling``: random
letters and numbers, dates and a dozen commands, what people say in AN4; the sentences are not AN4's.
``digits``: three to eight of them, as in FSDD's connected digits.

Every sentence is in spoken form ("nineteen ninety four"). Spelled letters are single capitals, the
form in which :func:`asr.corpora.espeak.speak` reads letter names; the transcript is the lower-case
sentence. The article "a" and words that sound like a letter, a digit or each other ("see", "for",
"oh", "weak") are left out of ``assistant``, so that every sentence has exactly one right transcript;
``spelling`` has "oh", which only its neighbours tell from the letter.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from asr.errors import ConfigError

# A context-free grammar: a rule is a list of alternatives, and {name} stands for a rule. {spelled} is
# the one exception: a word followed by its letters.
_WORDS = {
    "digit": "zero one two three four five six seven eight nine",
    "unit": "one two three four five six seven eight nine",
    "teen": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "letter": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "first_name": "adam alice anna ben carla clara daniel david emma frank george helen henry jack "
    "julia karen laura lucas maria martin nina oliver paul peter robert sarah simon susan thomas victor",
    "last_name": "anderson baker carter cooper fisher hughes jackson morgan parker roberts smith "
    "taylor turner walker watson wilson",
    "weekday": "monday tuesday wednesday thursday friday saturday sunday",
    "month": "january february march april may june july august september october november december",
    "unit_ordinal": "first second third fourth fifth sixth seventh eighth ninth",
    "teen_ordinal": "tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth "
    "eighteenth nineteenth",
    "colour": "black blue brown green orange purple silver white yellow",
    "room": "attic bathroom bedroom cellar garage garden hallway kitchen library office",
    "device": "camera computer fan heater lamp light oven printer radio television",
    "opening": "box cupboard curtain door drawer gate window",
    "city": "athens berlin boston cairo chicago dublin geneva london madrid moscow oxford paris prague "
    "toronto vienna",
    "vehicle": "bus ferry flight taxi train",
    "goods": "apples bananas bread butter carrots cheese coffee honey lemons milk onions potatoes rice "
    "sugar tomatoes",
    "document": "contract invoice letter message photograph report ticket",
    "weather": "cloudy cold foggy rainy snowy sunny windy",
    "subject": "cooking football history music physics travel",
    "direction": "east left north right south west",
    "spellable": "bridge castle eagle forest guitar jazz king lizard quick uncle velvet zebra",
}
_PHRASES = {
    "number": (
        "{teen}",
        "{tens}",
        "{tens} {unit}",
        "{tens} {unit}",
        "{unit} hundred",
        "{unit} hundred {tens}",
    ),
    "small_number": ("{unit}", "{teen}", "{tens} {unit}"),
    "name": ("{first_name} {last_name}", "{first_name}"),
    "ordinal": (
        "{unit_ordinal}",
        "{teen_ordinal}",
        "{teen_ordinal}",
        "twenty {unit_ordinal}",
        "twentieth",
        "thirtieth",
    ),
    "year": ("nineteen {tens} {unit}", "eighteen {tens} {unit}", "two thousand {unit}", "twenty {teen}"),
    "clock": (
        "{hour} fifteen",
        "{hour} thirty",
        "{hour} forty five",
        "half past {hour}",
        "quarter past {hour}",
        "quarter to {hour}",
        "{hour} o'clock",
    ),
    "when": ("today", "tomorrow", "tonight", "on {weekday}", "on {weekday} morning", "this evening"),
    "place": ("in the {room}", "near the {room}"),
    "sentence": (
        "{digit} {digit} {digit} {digit}",
        "dial {digit} {digit} {digit} {digit} {digit}",
        "enter {digit} {digit} {digit}",
        "{small_number} plus {number}",
        "set the {device} to {number}",
        "count from {small_number} to {number}",
        "spell {spelled}",
        "spell {spelled}",
        "{spelled}",
        "the code is {letter} {letter} {digit}",
        "{letter} {letter} {digit} {digit}",
        "press {letter} then {letter}",
        "{weekday} {month} {ordinal}",
        "the {ordinal} of {month}",
        "{month} {ordinal} {year}",
        "born in {year}",
        "wake {first_name} at {clock}",
        "start the {device} at {clock}",
        "meeting with {name} {when}",
        "turn on the {colour} {device}",
        "turn off the {device} {place}",
        "switch the {colour} {device} off",
        "open the {opening} {place}",
        "close the {colour} {opening}",
        "lock every {opening} {when}",
        "call {name} {when}",
        "ask {name} about {subject}",
        "send the {document} to {name}",
        "print the {ordinal} {document}",
        "delete the {document} from {first_name}",
        "find the next {vehicle} to {city}",
        "book {unit} seats from {city} to {city}",
        "the {vehicle} leaves {city} at {clock}",
        "add {goods} and {goods} to the list",
        "buy {number} {colour} {goods}",
        "remove the {goods} from the list",
        "will it get {weather} in {city}",
        "{weather} and {weather} {when}",
        "play some {subject} videos {when}",
        "pause the {subject} lesson {when}",
        "go {direction} then turn {direction}",
        "walk {number} metres {direction}",
        "stop {place} please",
    ),
}
_SPELLING_PHRASES = {
    "command": ("yes", "no", "go", "help", "stop", "start", "erase", "rubout", "repeat", "enter"),
    "spoken_digit": ("zero", "oh", *_WORDS["unit"].split()),
    "small": ("{teen}", "{tens}", "{tens} {unit}", "{tens} {unit}"),
    "number": (
        *("{unit}", "{small}", "{small}", "{small}"),
        *("{unit} hundred {small}", "{unit} hundred and {small}", "{unit} hundred and {unit}"),
        *("{unit} thousand {small}", "{unit} thousand {unit} hundred and {small}"),
    ),
    "ordinal": _PHRASES["ordinal"],
    "letters": tuple(" ".join(["{letter}"] * count) for count in range(3, 11)),
    "code": tuple(" ".join(["{letter}"] * count) for count in range(2, 7)),
    "digits": tuple(" ".join(["{spoken_digit}"] * count) for count in range(3, 9)),
    "sentence": (
        *("{letters}", "{letters}", "{letters}", "{letters}"),
        *("{command} {code} {number}", "{command} {code} {number}", "{command} {number}", "{code} {number}"),
        *("{digits}", "{number}", "{number} {small}"),
        *("{month} {ordinal} nineteen {small}", "{month} {ordinal}", "{command}"),
    ),
}


def _rules(words: Iterable[str], phrases: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {**{name: tuple(_WORDS[name].split()) for name in words}, **phrases}


GRAMMARS = {
    "assistant": _rules(_WORDS, _PHRASES),
    "spelling": _rules(
        ("letter", "unit", "teen", "tens", "month", "unit_ordinal", "teen_ordinal"), _SPELLING_PHRASES
    ),
    "digits": _rules(("digit",), {"sentence": tuple(" ".join(["{digit}"] * count) for count in range(3, 9))}),
}
DEFAULT_GRAMMAR = "assistant"
_SLOT = re.compile(r"{(\w+)}")
_MAX_SPELLED_LETTERS = 6
# A word of a dev or test sentence should have been heard in at least this many training sentences.
_PREFERRED_TRAIN_SENTENCES = 5


class SplitSentences(NamedTuple):
    """Sentences per split; no sentence occurs twice, within or across splits."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


class Grammar:
    """Draws sentences so that all alternatives of a rule come up about equally often.

    Args:
        rng: source of all choices; the same state gives the same sentences.
        name: of the grammar.
    """

    def __init__(self, rng: random.Random, name: str = DEFAULT_GRAMMAR) -> None:
        self._rng = rng
        self._rules = GRAMMARS[name]
        self._decks: dict[str, list[str]] = {}

    def sentence(self) -> str:
        """One sentence."""
        return self._expand("sentence")

    def _expand(self, rule: str) -> str:
        if rule == "spelled":
            word = self._deal(self._rng.choice(("first_name", "spellable")))
            return f"{word} {' '.join(word[:_MAX_SPELLED_LETTERS].upper())}"
        return _SLOT.sub(lambda slot: self._expand(slot[1]), self._deal(rule))

    def _deal(self, rule: str) -> str:
        """Deal from the rule's shuffled alternatives, which are shuffled anew when they run out."""
        deck = self._decks.setdefault(rule, [])
        if not deck:
            alternatives = self._rules[rule]
            deck.extend(self._rng.sample(alternatives, len(alternatives)))
        return deck.pop()


def vocabulary(grammar: str = DEFAULT_GRAMMAR) -> frozenset[str]:
    """All words that sentences are made of, in lower case."""
    rules = GRAMMARS[grammar].values()
    text = " ".join(_SLOT.sub(" ", alternative) for rule in rules for alternative in rule)
    return frozenset(text.lower().split())


def split_sentences(
    num_train: int, num_dev: int, num_test: int, rng: random.Random, grammar: str = DEFAULT_GRAMMAR
) -> SplitSentences:
    """Draw distinct sentences and split them.

    Words of dev and test occur in training too: in five sentences or more where the corpus is large
    enough for that, otherwise in as many as possible.

    Raises:
        ConfigError: the grammar does not hold that many different sentences.
    """
    num_held_out = num_dev + num_test
    sentences = _distinct_sentences(num_train + num_held_out, Grammar(rng, grammar))
    held_out = _choose_held_out(sentences, num_held_out)
    train = tuple(sentence for sentence in sentences if sentence not in held_out)
    return SplitSentences(train, tuple(held_out[:num_dev]), tuple(held_out[num_dev:]))


def _distinct_sentences(count: int, grammar: Grammar) -> tuple[str, ...]:
    sentences: dict[str, None] = {}
    # Repeats are rare at sensible sizes; the bound only ends the search at absurd ones.
    for _ in range(20 * count + 1000):
        if len(sentences) == count:
            return tuple(sentences)
        sentences[grammar.sentence()] = None
    raise ConfigError(f"the grammar has too few sentences for num_utterances={count}: ask for fewer")


def _choose_held_out(sentences: tuple[str, ...], count: int) -> list[str]:
    num_sentences_with = Counter(word for sentence in sentences for word in set(sentence.split()))
    held_out: dict[str, None] = {}
    for least_left in range(_PREFERRED_TRAIN_SENTENCES, -1, -1):
        for sentence in sentences:
            if len(held_out) == count:
                return list(held_out)
            words = set(sentence.split())
            if sentence not in held_out and all(num_sentences_with[word] > least_left for word in words):
                held_out[sentence] = None
                num_sentences_with.subtract(words)
    return list(held_out)
