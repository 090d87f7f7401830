"""Text ↔ token ids: characters or sentencepiece. The only owner of ``blank_id`` and ``vocab_size``."""

import base64
import hashlib
import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

from asr.errors import CheckpointError, TextError
from asr.records import Utterance

BLANK_DISPLAY = "<blank>"
BlankPosition = Literal["first", "last"]
SentencePieceModelType = Literal["unigram", "bpe"]

# sentencepiece writes a space as this character (U+2581, "lower one eighth block").
_SENTENCEPIECE_SPACE = "▁"
_MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class WordGroup:
    """A word and the tokens that spell it: ``token_ids[first : last + 1]``."""

    text: str
    first: int
    last: int


class Tokenizer(ABC):
    """Turns normalised text into label ids and back.

    Ids ``0 … vocab_size - 1`` are the classes of the acoustic model; ``blank_id`` is one of them
    and never stands for text. White space is a separator: runs of it count as one space, and
    none is kept at the ends, when encoding and decoding alike.
    """

    def __init__(self, pieces: Sequence[str], blank_id: int) -> None:
        """``pieces``: what each id except the blank spells, spaces as spaces, in the order of the ids."""
        if not pieces:
            raise ValueError("a tokenizer needs at least one token besides the blank")
        if len(set(pieces)) != len(pieces):
            raise ValueError("two tokens spell the same text")
        if not 0 <= blank_id <= len(pieces):
            raise ValueError(f"blank_id {blank_id} is outside 0…{len(pieces)}")
        self._blank_id = blank_id
        self._spellings = [*pieces[:blank_id], BLANK_DISPLAY, *pieces[blank_id:]]
        self._texts = {id_: text for id_, text in enumerate(self._spellings) if id_ != blank_id}
        self._characters = frozenset(piece for piece in pieces if len(piece) == 1)
        alphabet = "".join(map(re.escape, sorted(self._characters)))
        self._known_text = re.compile(f"[{alphabet}]*" if alphabet else "")

    @property
    def vocab_size(self) -> int:
        """Number of classes, the blank included."""
        return len(self._spellings)

    @property
    def blank_id(self) -> int:
        """Id of the CTC blank."""
        return self._blank_id

    @property
    def tokens(self) -> list[str]:
        """How to display each id; the blank is ``<blank>``."""
        return list(self._spellings)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``; never contains the blank.

        Raises:
            TextError: ``text`` has characters outside the alphabet; all of them are named.
        """
        text = _single_spaced(text)
        unknown = self.unknown_characters(text)
        if unknown:
            raise TextError(
                f"text {_shortened(text)!r} has characters the tokenizer does not know: "
                f"{_describe_characters(unknown)}; normalise the text or train the tokenizer on it"
            )
        return self._encode_known(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text that ``token_ids`` (after collapsing, without blanks) spell."""
        try:
            return _single_spaced("".join(map(self._texts.__getitem__, token_ids)))
        except KeyError as error:
            raise self._spells_nothing(error.args[0]) from None

    def word_groups(self, token_ids: Sequence[int]) -> list[WordGroup]:
        """Return the words of ``token_ids`` with the tokens that spell each.

        The texts equal ``decode(token_ids).split()``. A token that is only a space belongs to no word.
        """
        groups: list[WordGroup] = []
        text, first, last = "", 0, 0
        for index, token_id in enumerate(token_ids):
            if token_id not in self._texts:
                raise self._spells_nothing(token_id)
            for character in self._texts[token_id]:
                if character.isspace():
                    if text:
                        groups.append(WordGroup(text, first, last))
                    text = ""
                else:
                    first = first if text else index
                    text, last = text + character, index
        if text:
            groups.append(WordGroup(text, first, last))
        return groups

    def unknown_characters(self, text: str) -> Counter[str]:
        """Return the characters of ``text`` that have no token, with their counts."""
        if self._known_text.fullmatch(text):
            return Counter()
        text = _single_spaced(text)
        unknown = set(text) - self._characters
        return Counter(character for character in text if character in unknown)

    def max_labels(self, text: str) -> int:
        """What :meth:`encode` stays within, known without its work: every label spells at least a character.

        One more, since sentencepiece puts a space in front.
        """
        return len(text) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of :meth:`state`: equal exactly when two tokenizers are the same."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return plain data from which :func:`tokenizer_from_state` rebuilds this tokenizer."""

    @abstractmethod
    def _encode_known(self, text: str) -> list[int]:
        """Encode single-spaced ``text`` all of whose characters are known."""

    def _spells_nothing(self, token_id: int) -> ValueError:
        return ValueError(
            f"token id {token_id} spells no text (vocabulary of {self.vocab_size}, blank {self._blank_id})"
        )


class CharTokenizer(Tokenizer):
    """One token per character, the space included."""

    def __init__(self, characters: Sequence[str], *, blank_id: int = 0) -> None:
        if any(len(character) != 1 for character in characters):
            raise ValueError("every token of a character tokenizer must be one character")
        super().__init__(characters, blank_id)
        self._ids = {token: id_ for id_, token in enumerate(self._spellings) if id_ != blank_id}

    @classmethod
    def train(cls, texts: Iterable[str], *, blank: BlankPosition = "first") -> "CharTokenizer":
        """Take the sorted characters of ``texts``, which should be the training transcripts only.

        Raises:
            TextError: ``texts`` hold no characters.
        """
        characters: set[str] = set()
        for text in texts:
            characters.update(_single_spaced(text))
        if not characters:
            raise TextError(
                "the tokenizer's training text is empty; check the transcripts of the train manifest"
            )
        return cls(sorted(characters), blank_id=0 if blank == "first" else len(characters))

    def state(self) -> dict[str, Any]:
        characters = [token for id_, token in enumerate(self._spellings) if id_ != self.blank_id]
        return {"type": "character", "characters": characters, "blank_id": self.blank_id}

    def _encode_known(self, text: str) -> list[int]:
        return [self._ids[character] for character in text]


class SentencePieceTokenizer(Tokenizer):
    """Subwords of a sentencepiece model (Kudo and Richardson 2018, arXiv 1808.06226).

    The model's own unknown, control and padding pieces get no id here, since a recogniser must
    not be able to output them; the blank takes their place.
    """

    def __init__(self, model_proto: bytes, *, blank: BlankPosition = "first") -> None:
        """``model_proto``: a serialised sentencepiece model, the contents of a ``.model`` file.

        Raises:
            RuntimeError: ``model_proto`` is no such model.
        """
        if blank not in ("first", "last"):
            raise ValueError(f"the blank is first or last, not {blank!r}")
        self._model_proto = model_proto
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        model_ids = [id_ for id_ in range(self._processor.vocab_size()) if _spells_text(self._processor, id_)]
        pieces = [self._processor.id_to_piece(id_).replace(_SENTENCEPIECE_SPACE, " ") for id_ in model_ids]
        super().__init__(pieces, blank_id=0 if blank == "first" else len(pieces))
        self._blank: BlankPosition = blank
        first_id = 1 if blank == "first" else 0
        self._ids = {model_id: first_id + index for index, model_id in enumerate(model_ids)}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        model_type: SentencePieceModelType = "unigram",
        character_coverage: float = 1.0,
        blank: BlankPosition = "first",
    ) -> "SentencePieceTokenizer":
        """Train on ``texts``, which should be the training transcripts only. Deterministic.

        Args:
            vocab_size: number of classes, the blank included.
            model_type: ``unigram`` (Kudo 2018) or ``bpe`` (Sennrich et al. 2016).
            character_coverage: share of the text that the kept characters must cover; the rarest
                are unknown to the tokenizer when it is below 1.
            blank: first or last id.

        Raises:
            TextError: ``texts`` are empty, or ``vocab_size`` is too large or too small for them;
                the message names the limit.
        """
        sentences = [sentence for sentence in map(_single_spaced, texts) if sentence]
        if not sentences:
            raise TextError(
                "the tokenizer's training text is empty; check the transcripts of the train manifest"
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                # sentencepiece counts its unknown piece, whose place our blank takes: the sizes agree.
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=character_coverage,
                # Text arrives normalised; a second normalisation here would part training from scoring.
                normalization_rule_name="identity",
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                # The default silently skips sentences above 4192 bytes.
                max_sentence_length=max(len(sentence.encode()) for sentence in sentences) + 1,
                num_threads=1,  # the sum order of several threads is not reproducible
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _training_error(str(error), vocab_size) from error
        return cls(model.getvalue(), blank=blank)

    def state(self) -> dict[str, Any]:
        model = base64.b64encode(self._model_proto).decode("ascii")
        return {"type": "sentencepiece", "model": model, "blank": self._blank}

    def _encode_known(self, text: str) -> list[int]:
        return [self._ids[model_id] for model_id in self._processor.encode(text)]


class PartialTokenizer(Tokenizer):
    """Encodes transcripts in which a wildcard stands for missing words, else as the tokenizer it wraps.

    The wildcard's label is ``vocab_size``, one more than there are classes: only the training loss knows
    it. The spaces around it are known: what is missing is whole words.
    """

    def __init__(self, tokenizer: Tokenizer, wildcard: str) -> None:
        blank_id = tokenizer.blank_id
        super().__init__([*tokenizer.tokens[:blank_id], *tokenizer.tokens[blank_id + 1 :]], blank_id)
        self.tokenizer = tokenizer
        self.wildcard = wildcard

    def encode(self, text: str) -> list[int]:
        labels: list[int] = []
        parts = text.split(self.wildcard)
        space = " " if " " in self._characters else ""
        for number, part in enumerate(parts):
            self.tokenizer.encode(part)  # refuses what it does not know
            known = _single_spaced(part)
            before = space if number > 0 and known else ""
            after = space if number < len(parts) - 1 and known else ""
            labels += [self.vocab_size] if number else []
            labels += self._encode_known(before + known + after)
        return labels

    def unknown_characters(self, text: str) -> Counter[str]:
        return self.tokenizer.unknown_characters(text.replace(self.wildcard, " "))

    def max_labels(self, text: str) -> int:
        # Each may get spaces at both sides, and begins another part.
        return self.tokenizer.max_labels(text) + 3 * text.count(self.wildcard)

    def state(self) -> dict[str, Any]:
        return self.tokenizer.state()

    def _encode_known(self, text: str) -> list[int]:
        return self.tokenizer._encode_known(text)


def tokenizer_from_state(state: Mapping[str, Any]) -> Tokenizer:
    """Rebuild the tokenizer whose :meth:`Tokenizer.state` is ``state``.

    Raises:
        CheckpointError: ``state`` is damaged or of an unknown type.
    """
    try:
        if state["type"] == "character":
            return CharTokenizer(state["characters"], blank_id=state["blank_id"])
        if state["type"] == "sentencepiece":
            return SentencePieceTokenizer(
                base64.b64decode(state["model"], validate=True), blank=state["blank"]
            )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the stored tokenizer is damaged ({error}); use an intact checkpoint"
        ) from error
    raise CheckpointError(
        f"the stored tokenizer has the unknown type {state['type']!r}; update asr to read it"
    )


@dataclass(frozen=True, slots=True)
class UnknownCharacter:
    """A character without a token: how often it occurs, in how many utterances, and some of them."""

    character: str
    count: int
    num_utterances: int
    example_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnknownCharacterReport:
    """What of a manifest the tokenizer cannot encode; empty (false) when everything is known."""

    characters: tuple[UnknownCharacter, ...]
    utterance_ids: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.characters)

    def lines(self) -> list[str]:
        """Return one readable line per character, the most frequent first."""
        return [
            f"{describe_character(unknown.character)}: {unknown.count}× "
            f"in {unknown.num_utterances} utterances, e.g. {', '.join(unknown.example_ids)}"
            for unknown in self.characters
        ]


def report_unknown_characters(
    tokenizer: Tokenizer,
    utterances: Iterable[Utterance],
    *,
    normalise_text: Callable[[str], str] | None = None,
) -> UnknownCharacterReport:
    """Count and name every character of ``utterances`` that ``tokenizer`` does not know.

    Args:
        normalise_text: applied to each text first; pass what training will apply.
    """
    counts: Counter[str] = Counter()
    ids_by_character: dict[str, list[str]] = {}
    affected: list[str] = []
    for utterance in utterances:
        text = utterance.text if normalise_text is None else normalise_text(utterance.text)
        unknown = tokenizer.unknown_characters(text)
        counts.update(unknown)
        for character in unknown:
            ids_by_character.setdefault(character, []).append(utterance.id)
        if unknown:
            affected.append(utterance.id)
    characters = tuple(
        UnknownCharacter(character, count, len(ids), tuple(ids[:_MAX_EXAMPLES]))
        for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        for ids in [ids_by_character[character]]
    )
    return UnknownCharacterReport(characters, tuple(affected))


def describe_character(character: str) -> str:
    """Return the character with its code point and Unicode name, since many look alike."""
    return f"{character!r} (U+{ord(character):04X} {unicodedata.name(character, 'unnamed')})"


def _describe_characters(counts: Mapping[str, int]) -> str:
    return ", ".join(describe_character(character) for character in sorted(counts))


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _shortened(text: str, num_characters: int = 60) -> str:
    return text if len(text) <= num_characters else text[: num_characters - 1] + "…"


def _spells_text(processor: sentencepiece.SentencePieceProcessor, model_id: int) -> bool:
    return not (
        processor.is_unknown(model_id)
        or processor.is_control(model_id)
        or processor.is_unused(model_id)
        or processor.is_byte(model_id)
    )


def _training_error(message: str, vocab_size: int) -> TextError:
    if too_high := re.search(r"too high \(\d+\).*?<= (\d+)", message):
        return TextError(
            f"tokenizer vocab_size={vocab_size} is too large for this text; "
            f"the maximum possible is {too_high.group(1)}"
        )
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return TextError(
            f"tokenizer vocab_size={vocab_size} is too small for the characters of this text; "
            f"the minimum possible is {too_low.group(1)}"
        )
    return TextError(
        f"sentencepiece cannot train a tokenizer of vocab_size={vocab_size} on this text: {message}"
    )
