"""Word and character error counts: alignment, pooling, and what the errors are made of.

Texts and token sequences only; tensors never get here. Rates are pooled counts divided once.

**Which alignment.** Several alignments can have the smallest number of errors and still split
them differently into substitutions, deletions and insertions. :func:`align` and every count in
this module take rapidfuzz's choice, which is jiwer's too, so both report the same figures.
NIST sclite minimises ``4 S + 3 D + 3 I`` instead, so it prefers a deletion with an insertion
around a correct word to two substitutions (``a b`` read as ``b c``: jiwer 2 S, sclite 1 D + 1 I)
and its total can, rarely, be above the smallest one. :func:`align_sclite` follows its rule.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from asr import english, text
from asr.errors import ConfigError

Operation = Literal["equal", "substitute", "delete", "insert"]


class ErrorCounts(NamedTuple):
    """Hits, substitutions, deletions and insertions of one utterance or of many, added up."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":  # type: ignore[override]
        return ErrorCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def num_reference(self) -> int:
        """Length of the reference in words (or characters, or tokens)."""
        return self.hits + self.substitutions + self.deletions

    @property
    def num_hypothesis(self) -> int:
        return self.hits + self.substitutions + self.insertions

    @property
    def num_errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference item: the WER of words, the CER of characters.

        ``nan`` when the reference is empty: no rate exists, and the counts still hold what was
        inserted. Pooled over utterances an empty reference is harmless: its insertions count.
        """
        return self.num_errors / self.num_reference if self.num_reference else float("nan")


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Pool ``counts``: what a rate over several utterances is computed from."""
    columns = list(zip(*counts, strict=True))
    return ErrorCounts(*map(sum, columns)) if columns else ErrorCounts()


class AlignedPair(NamedTuple):
    """One step of an alignment; ``reference`` is empty in insertions, ``hypothesis`` in deletions."""

    operation: Operation
    reference: str
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """A reference and a hypothesis set side by side, from the first word to the last."""

    pairs: tuple[AlignedPair, ...]

    @property
    def counts(self) -> ErrorCounts:
        operations = Counter(pair.operation for pair in self.pairs)
        return ErrorCounts(
            hits=operations["equal"],
            substitutions=operations["substitute"],
            deletions=operations["delete"],
            insertions=operations["insert"],
        )

    def errors_by_slot(self) -> tuple[int, ...]:
        """Errors by place in the reference, so that two systems can be set against each other.

        Returns:
            ``(2 * words + 1,)`` error counts. Slot ``2 i`` is the gap before reference word ``i``
            (how many words were inserted there), slot ``2 i + 1`` is the word itself (1 when it
            was substituted or deleted).
        """
        slots = [0]
        for pair in self.pairs:
            if pair.operation == "insert":
                slots[-1] += 1
            else:
                slots += [int(pair.operation != "equal"), 0]
        return tuple(slots)


def count_errors(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> ErrorCounts:
    """Count the errors between two sequences: lists of words, token ids, or strings (characters)."""
    operations = Levenshtein.editops(reference, hypothesis)
    length_difference = len(reference) - len(hypothesis)
    # Errors beyond the difference in length are substitutions or deletion-insertion pairs;
    # with at most one of them there is no choice, and no need to look at the operations.
    num_substitutions = len(operations) - abs(length_difference)
    if num_substitutions > 1:
        num_substitutions = [tag for tag, _, _ in operations].count("replace")
    num_deletions = (len(operations) - num_substitutions + length_difference) // 2
    return ErrorCounts(
        len(reference) - num_substitutions - num_deletions,
        num_substitutions,
        num_deletions,
        num_deletions - length_difference,
    )


def count_token_errors(
    references: Sequence[Sequence[Hashable]], hypotheses: Sequence[Sequence[Hashable]]
) -> tuple[ErrorCounts, ...]:
    """Count errors per utterance over tokens (BPE pieces, ids), one sequence per utterance."""
    _check_same_number(references, hypotheses)
    return tuple(map(count_errors, references, hypotheses))


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align two sequences of words (or of characters, or of pieces) with the fewest errors."""
    pairs: list[AlignedPair] = []
    for block in Levenshtein.opcodes(reference, hypothesis):
        words = reference[block.src_start : block.src_end]
        others = hypothesis[block.dest_start : block.dest_end]
        match block.tag:
            case "equal":
                pairs += (AlignedPair("equal", *both) for both in zip(words, others, strict=True))
            case "replace":
                pairs += (AlignedPair("substitute", *both) for both in zip(words, others, strict=True))
            case "delete":
                pairs += (AlignedPair("delete", word, "") for word in words)
            case "insert":
                pairs += (AlignedPair("insert", "", word) for word in others)
    return Alignment(tuple(pairs))


def align_words(reference: str, hypothesis: str) -> Alignment:
    """Align two transcripts word by word; words are what white space separates."""
    return align(reference.split(), hypothesis.split())


_SCLITE_SUBSTITUTION = 4
_SCLITE_GAP = 3  # a deletion or an insertion


def align_sclite(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align as NIST sclite does: the least ``4 S + 3 D + 3 I``, ties broken its way.

    Written for checking published figures: plain Python, words × words steps, and case matters
    (sclite's ``-s``). Reports use :func:`align`.
    """
    cost = _sclite_costs(reference, hypothesis)
    row, column = len(reference), len(hypothesis)
    backwards: list[AlignedPair] = []
    while row or column:
        word = reference[row - 1] if row else ""
        other = hypothesis[column - 1] if column else ""
        diagonal = 0 if word == other else _SCLITE_SUBSTITUTION
        if row and column and cost[row][column] == cost[row - 1][column - 1] + diagonal:
            backwards.append(AlignedPair("substitute" if diagonal else "equal", word, other))
            row, column = row - 1, column - 1
        elif column and cost[row][column] == cost[row][column - 1] + _SCLITE_GAP:
            backwards.append(AlignedPair("insert", "", other))
            column -= 1
        else:
            backwards.append(AlignedPair("delete", word, ""))
            row -= 1
    return Alignment(tuple(reversed(backwards)))


def _sclite_costs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[list[int]]:
    """Least costs of aligning the first ``row`` words with the first ``column`` words."""
    costs = [[_SCLITE_GAP * column for column in range(len(hypothesis) + 1)]]
    for word in reference:
        above = costs[-1]
        current = [above[0] + _SCLITE_GAP]
        for column, other in enumerate(hypothesis):
            diagonal = above[column] + (0 if word == other else _SCLITE_SUBSTITUTION)
            current.append(min(diagonal, above[column + 1] + _SCLITE_GAP, current[column] + _SCLITE_GAP))
        costs.append(current)
    return costs


@dataclass(frozen=True)
class Score:
    """Counts of a set of utterances, one entry each, in the order they were given.

    ``characters`` count the single spaces between words as characters, as jiwer does.
    ``normaliser`` names what was done to the texts before counting.
    """

    words: tuple[ErrorCounts, ...]
    characters: tuple[ErrorCounts, ...]
    normaliser: str

    @property
    def word_total(self) -> ErrorCounts:
        return total(self.words)

    @property
    def character_total(self) -> ErrorCounts:
        return total(self.characters)

    @property
    def sentence_errors(self) -> tuple[bool, ...]:
        """Whether each utterance has at least one word wrong."""
        return tuple(counts.num_errors > 0 for counts in self.words)

    @property
    def wer(self) -> float:
        return self.word_total.rate

    @property
    def cer(self) -> float:
        return self.character_total.rate

    @property
    def sentence_error_rate(self) -> float:
        """Share of utterances with an error; ``nan`` without utterances."""
        return sum(self.sentence_errors) / len(self.words) if self.words else float("nan")


def score(references: Sequence[str], hypotheses: Sequence[str], *, normaliser: str = "none") -> Score:
    """Count word and character errors of each hypothesis against its reference.

    Args:
        references, hypotheses: one transcript per utterance, in the same order.
        normaliser: a name in :data:`NORMALISERS`, applied to both sides first.

    Raises:
        ConfigError: the normaliser is unknown.
        ValueError: the two lists differ in length.
    """
    _check_same_number(references, hypotheses)
    change = get_normaliser(normaliser)
    words: list[ErrorCounts] = []
    characters: list[ErrorCounts] = []
    for reference, hypothesis in zip(map(change, references), map(change, hypotheses), strict=True):
        reference_words = reference.split()
        if reference == hypothesis:  # often most of a test set, and nothing to align
            words.append(ErrorCounts(len(reference_words)))
            characters.append(ErrorCounts(len(" ".join(reference_words))))
        else:
            hypothesis_words = hypothesis.split()
            words.append(count_errors(reference_words, hypothesis_words))
            characters.append(count_errors(" ".join(reference_words), " ".join(hypothesis_words)))
    return Score(tuple(words), tuple(characters), normaliser)


def count_words(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[ErrorCounts, ...]:
    """Count word errors alone, one entry per utterance: about twice as fast as :func:`score`."""
    _check_same_number(references, hypotheses)
    return tuple(
        ErrorCounts(len(reference.split()))
        if reference == hypothesis
        else count_errors(reference.split(), hypothesis.split())
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    )


def _check_same_number(references: Sequence[object], hypotheses: Sequence[object]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")


# --- what the errors are made of ------------------------------------------------------------


class WordConfusion(NamedTuple):
    """``reference`` was recognised as ``hypothesis`` ``num_times`` times."""

    reference: str
    hypothesis: str
    num_times: int


class WordCount(NamedTuple):
    word: str
    num_times: int


@dataclass(frozen=True, slots=True)
class ErrorTables:
    """The most frequent errors, most frequent first, ties in alphabetical order."""

    confusions: tuple[WordConfusion, ...]
    deleted: tuple[WordCount, ...]
    inserted: tuple[WordCount, ...]


def tabulate_errors(alignments: Iterable[Alignment], *, max_rows: int = 20) -> ErrorTables:
    """Count which words were confused, deleted and inserted, keeping ``max_rows`` rows of each."""
    by_operation: dict[Operation, Counter[AlignedPair]] = {
        "substitute": Counter(),
        "delete": Counter(),
        "insert": Counter(),
    }
    for pair in chain.from_iterable(alignment.pairs for alignment in alignments):
        if pair.operation != "equal":
            by_operation[pair.operation][pair] += 1

    def most_frequent(operation: Operation) -> list[tuple[AlignedPair, int]]:
        ranked = sorted(by_operation[operation].items(), key=lambda item: (-item[1], item[0]))
        return ranked[:max_rows]

    return ErrorTables(
        tuple(
            WordConfusion(pair.reference, pair.hypothesis, times)
            for pair, times in most_frequent("substitute")
        ),
        tuple(WordCount(pair.reference, times) for pair, times in most_frequent("delete")),
        tuple(WordCount(pair.hypothesis, times) for pair, times in most_frequent("insert")),
    )


def rank_worst(counts: Sequence[ErrorCounts], *, max_utterances: int = 10) -> tuple[int, ...]:
    """Positions of the utterances with the most errors, worst first; flawless ones are left out.

    By number of errors, because that is what an utterance adds to the pooled rate; among equals
    the higher rate (the shorter reference) comes first.
    """
    faulty = [position for position, count in enumerate(counts) if count.num_errors]
    faulty.sort(key=lambda position: (-counts[position].num_errors, counts[position].num_reference))
    return tuple(faulty[:max_utterances])


# --- normalisers ---------------------------------------------------------------------------


def _leave(transcript: str) -> str:
    return transcript


NORMALISERS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"none": _leave, "basic": text.normalise, "english": english.normalise}
)
"""What may be done to both sides before counting; reports name the one that was used.

- ``none``: nothing; words are what white space separates
- ``basic``: lower case, no punctuation (:func:`asr.text.normalise`)
- ``english``: as ``basic``, contractions spelt out, numbers as digits (:func:`asr.english.normalise`)
"""


def get_normaliser(name: str) -> Callable[[str], str]:
    """Return the normaliser called ``name``.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in NORMALISERS:
        raise ConfigError(f"normaliser={name} is unknown: choose one of {', '.join(NORMALISERS)}")
    return NORMALISERS[name]
