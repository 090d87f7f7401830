"""ARPA files, the exchange format of back-off n-gram models: reading with every line checked, and writing.

A file lists each n-gram with its log10 probability and, when it can be continued, the log10 back-off
weight that applies when a continuation is not listed. Format: Doug Paul's, as documented in SRILM's
``ngram-format(5)``. Files whose name ends in ``.gz`` are compressed.
"""

import gzip
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from asr.errors import AsrError

UNKNOWN_WORD = "<unk>"
SENTENCE_START = "<s>"
SENTENCE_END = "</s>"
SPECIAL_WORDS = (UNKNOWN_WORD, SENTENCE_START, SENTENCE_END)
SPACE = "<space>"
"""The space between words in character-level models: a space itself would separate fields."""

MAX_ORDER = 10

_BLOCK_LINES = 4096  # larger ones cost more: their many small lists outlive several garbage collections
_KENLM_BINARY = b"mmap lm "


class LanguageModelError(AsrError):
    """A language model or its training text that cannot be used."""


class NgramBlock(NamedTuple):
    """Some n-grams of one order."""

    word_ids: np.ndarray  # (ngrams, order) int32, indices into the model's words
    log10_probs: np.ndarray  # (ngrams,) float32
    backoffs: np.ndarray  # (ngrams,) float32, log10; 0 where the file gives none


@dataclass(frozen=True)
class Arpa:
    """A whole model as it stands in its file; ``orders[n - 1]`` holds the n-grams of order ``n``."""

    words: list[str]
    orders: list[NgramBlock]
    first_lines: list[int]
    """Line number of the first n-gram of each order; the others follow without a gap."""


def read_arpa(path: Path) -> Arpa:
    """Read an ARPA file, plain or gzip.

    Raises:
        LanguageModelError: one line with file and line number, for a file that is cut off, holds more or
            fewer n-grams than it declares, lacks ``<s>`` or ``</s>``, or has a malformed line.
    """
    try:
        with _open(path, "rb") as file:
            return _Reader(path, file).read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LanguageModelError(f"{path}: damaged gzip file ({error}); copy or download it again") from None
    except OSError as error:
        raise LanguageModelError(f"cannot read {path}: {error.strerror or error}") from None


def write_arpa(
    path: Path, words: Sequence[str], num_ngrams: Sequence[int], sections: Iterable[Iterable[NgramBlock]]
) -> None:
    """Write a model; the file appears under its name only when it is complete.

    Args:
        words: what the ids in the blocks mean.
        num_ngrams: how many n-grams each order has.
        sections: the n-grams of order 1, then of order 2, and so on. The last order has no back-offs.

    Raises:
        LanguageModelError: when the file cannot be written.
    """
    # The ending stays, for gzip is chosen by it.
    unfinished = path.with_name(f".{os.getpid()}-unfinished-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(unfinished, words, num_ngrams, sections)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise LanguageModelError(f"cannot write {path}: {error.strerror or error}") from None


def _write(
    path: Path, words: Sequence[str], num_ngrams: Sequence[int], sections: Iterable[Iterable[NgramBlock]]
) -> None:
    with _open(path, "wb") as file:
        header = "".join(f"ngram {order}={count}\n" for order, count in enumerate(num_ngrams, start=1))
        file.write(f"\\data\\\n{header}".encode())
        for order, blocks in enumerate(sections, start=1):
            file.write(f"\n\\{order}-grams:\n".encode())
            for block in blocks:
                file.write(_lines(block, words, with_backoffs=order < len(num_ngrams)).encode())
        file.write(b"\n\\end\\\n")


def _open(path: Path, mode: str) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, mode, compresslevel=6)  # type: ignore[return-value]
    return path.open(mode)


def _lines(block: NgramBlock, words: Sequence[str], *, with_backoffs: bool) -> str:
    columns = [[words[word_id] for word_id in column] for column in block.word_ids.T.tolist()]
    ngrams = map(" ".join, zip(*columns, strict=True))
    log10_probs = block.log10_probs.tolist()
    if with_backoffs:
        rows = zip(log10_probs, ngrams, block.backoffs.tolist(), strict=True)
        return "".join([f"{prob:.7g}\t{ngram}\t{backoff:.7g}\n" for prob, ngram, backoff in rows])
    return "".join([f"{prob:.7g}\t{ngram}\n" for prob, ngram in zip(log10_probs, ngrams, strict=True)])


class _Reader:
    """One pass over an open file that always knows its line number."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.line_number = 0
        self.word_ids: dict[bytes, int] = {}

    def read(self) -> Arpa:
        declared = self._header()
        orders, first_lines = [], []
        for order, (count, where) in enumerate(declared, start=1):
            self._expect_section(order)
            first_lines.append(self.line_number + 1)
            blocks = list(self._section(order, len(declared), count, where))
            orders.append(NgramBlock(*(np.concatenate(parts) for parts in zip(*blocks, strict=True))))
        line = self._next_line()
        if line != b"\\end\\":
            raise self._error(f"expected \\end\\, found {_shown(line)}")
        return Arpa(self._words(first_lines[0]), orders, first_lines)

    def _header(self) -> list[tuple[int, int]]:
        """``(number of n-grams, line that declares it)`` for each order."""
        line = self._next_line()
        if line is not None and line.startswith(_KENLM_BINARY):
            raise self._error("this is a KenLM binary; give the ARPA file that it was built from")
        while line != b"\\data\\":
            if line is None or line.startswith(b"\\"):
                raise self._error("no \\data\\ header: this is not an ARPA file")
            line = self._next_line()
        declared: list[tuple[int, int]] = []
        while (line := self._next_line(skip_blank=False)) not in {b"", None}:
            name, _, number = line.partition(b"=")  # type: ignore[union-attr]
            if name.split() != [b"ngram", str(len(declared) + 1).encode()] or not number.strip().isdigit():
                raise self._error(f"expected 'ngram {len(declared) + 1}=COUNT', found {_shown(line)}")
            declared.append((int(number), self.line_number))
        if not declared:
            raise self._error("\\data\\ declares no n-grams")
        if len(declared) > MAX_ORDER:
            raise self._error(f"order {len(declared)} is more than the {MAX_ORDER} that are supported")
        return declared

    def _expect_section(self, order: int) -> None:
        line = self._next_line()
        if line != f"\\{order}-grams:".encode():
            raise self._error(f"expected \\{order}-grams:, found {_shown(line)}")

    def _section(self, order: int, max_order: int, count: int, where: int) -> Iterator[NgramBlock]:
        """The n-grams of one order, in blocks; the blank line after them is consumed."""
        yield _no_ngrams(order)
        num_read = 0
        while num_read < count:
            lines = list(islice(self.file, min(count - num_read, _BLOCK_LINES)))
            block = self._block(lines, order, max_order)
            yield block
            num_read += len(block.log10_probs)
            self.line_number += len(block.log10_probs)
            if not lines:
                raise self._error(
                    f"the file ends inside \\{order}-grams:, after {num_read} of {count} n-grams"
                )
            if len(block.log10_probs) < len(lines):
                raise self._error(
                    f"\\{order}-grams: ends after {num_read} n-grams, but line {where} declares {count}",
                    index=0,
                )
        line = self._next_line(skip_blank=False)
        if line is None:
            raise self._error("the file ends without \\end\\: it is cut off")
        if line:
            raise self._error(
                f"\\{order}-grams: goes on after the {count} n-grams that line {where} declares: {_shown(line)}"
            )

    def _block(self, lines: list[bytes], order: int, max_order: int) -> NgramBlock:
        """The n-grams of these lines, up to the first line that ends the section."""
        max_fields = order + (1 if order == max_order else 2)
        rows = [line.split() for line in lines]
        if set(map(len, rows)) - {order + 1, max_fields}:
            rows = self._up_to_end(rows, order, max_fields)
        if not rows:
            return _no_ngrams(order)
        for row in rows:
            if len(row) == order + 1:
                row.append(b"0")
        columns = list(zip(*rows, strict=True))
        if order == 1:
            self._add_words(columns[1])
        log10_probs = self._numbers(columns[0], "log10 probability")
        if (log10_probs > 0).any():
            index = int(np.argmax(log10_probs > 0))
            raise self._error(f"log10 probability {_shown(columns[0][index])} is above 0", index)
        word_ids = np.stack([self._ids(column) for column in columns[1:-1]], axis=1)
        return NgramBlock(word_ids, log10_probs, self._numbers(columns[-1], "back-off"))

    def _up_to_end(self, rows: list[list[bytes]], order: int, max_fields: int) -> list[list[bytes]]:
        """The rows before the end of the section; an error for one with too few or too many fields."""
        for index, row in enumerate(rows):
            if not row or row[0].startswith(b"\\"):
                return rows[:index]
            if not order + 1 <= len(row) <= max_fields:
                expected = "PROBABILITY" + " WORD" * order + " [BACK-OFF]" * (max_fields - order - 1)
                found = _shown(b" ".join(row))
                raise self._error(f"expected {expected} in \\{order}-grams:, found {found}", index)
        return rows

    def _numbers(self, column: Sequence[bytes], what: str) -> np.ndarray:
        try:
            numbers = np.array(list(map(float, column)))
        except ValueError:
            numbers = np.array([_number(field) for field in column])
        finite = np.isfinite(numbers)
        if not finite.all():
            index = int(np.argmin(finite))
            raise self._error(f"{what} {_shown(column[index])} is not a finite number", index)
        return numbers.astype(np.float32)

    def _add_words(self, column: Sequence[bytes]) -> None:
        for index, word in enumerate(column):
            name = UNKNOWN_WORD.encode() if word == b"<UNK>" else word
            if name in self.word_ids:
                raise self._error(f"word {_shown(word)} is listed twice", index)
            self.word_ids[name] = len(self.word_ids)

    def _ids(self, column: Sequence[bytes]) -> np.ndarray:
        ids = self.word_ids
        if b"<UNK>" in column:
            column = [UNKNOWN_WORD.encode() if word == b"<UNK>" else word for word in column]
        try:
            return np.fromiter(map(ids.__getitem__, column), np.int32, len(column))
        except KeyError:
            index = next(index for index, word in enumerate(column) if word not in ids)
            raise self._error(f"word {_shown(column[index])} is not among the 1-grams", index) from None

    def _words(self, first_line: int) -> list[str]:
        words = []
        for line_number, word in enumerate(self.word_ids, start=first_line):
            try:
                words.append(word.decode())
            except UnicodeDecodeError:
                raise self._error_at(line_number, f"{_shown(word)} is not UTF-8; convert the file") from None
        for needed in (SENTENCE_START, SENTENCE_END):
            if needed.encode() not in self.word_ids:
                raise self._error_at(
                    first_line - 1, f"\\1-grams: has no {needed}; estimate the model with sentence boundaries"
                )
        return words

    def _next_line(self, skip_blank: bool = True) -> bytes | None:
        """The next line without surrounding white space, or None at the end of the file."""
        for line in self.file:
            self.line_number += 1
            stripped = line.strip()
            if stripped or not skip_blank:
                return stripped
        return None

    def _error(self, message: str, index: int | None = None) -> LanguageModelError:
        """About the line just read, or about line ``index`` of the block that follows it."""
        return self._error_at(self.line_number + (0 if index is None else 1 + index), message)

    def _error_at(self, line_number: int, message: str) -> LanguageModelError:
        return LanguageModelError(f"{self.path}: line {max(1, line_number)}: {message}")


def _no_ngrams(order: int) -> NgramBlock:
    return NgramBlock(np.empty((0, order), np.int32), np.empty(0, np.float32), np.empty(0, np.float32))


def _shown(field: bytes | None) -> str:
    if field is None:
        return "the end of the file"
    text = field.decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _number(field: bytes) -> float:
    """The number, or NaN where there is none."""
    try:
        return float(field)
    except ValueError:
        return math.nan
