"""Emission tables from files: CSV, NumPy and JSON, holding probabilities, logs of them or raw scores.

What a table holds is detected only where it can be nothing else; otherwise the reader asks.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from asr.ctc.contract import ROW_TOLERANCE
from asr.ctc.paths import FloatArray
from asr.errors import AsrError

TableInputs = Literal["auto", "probs", "logits", "log_probs"]
_KINDS: tuple[TableInputs, ...] = ("probs", "logits", "log_probs")


class TableError(AsrError):
    """An emission table that cannot be read or understood."""


@dataclass(frozen=True, slots=True)
class EmissionTable:
    """Scores of one utterance as the loss sees them.

    - ``log_probs``: ``(frames, vocab)`` natural logs; logits have passed a log-softmax, the other
      two are taken at their word, so rows that are not normalised stay so
    - ``inputs``: what the file held
    - ``symbols``: one name per column, or empty when the file has none
    """

    log_probs: FloatArray
    inputs: Literal["probs", "logits", "log_probs"]
    symbols: tuple[str, ...]


def read_table(path: Path | str, inputs: TableInputs = "auto") -> EmissionTable:
    """Read a table of one row per frame and one column per token.

    - ``.csv``, ``.tsv``: an optional first row names the tokens
    - ``.npy``: ``(frames, vocab)``; an axis of length one for the batch is dropped
    - ``.json``: nested lists, or ``{"symbols": […], "probs" | "logits" | "log_probs": [[…], …]}``

    Raises:
        TableError: a file that is missing or malformed, or contents that could be several things.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".npy": _read_npy, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise TableError(
            f"{path}: tables are {', '.join(readers)} files, not {path.suffix or 'without suffix'!r}"
        )
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    try:
        values, symbols, named = readers[path.suffix.lower()](path)
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    scores = _as_matrix(values, path)
    if symbols and len(symbols) != scores.shape[1]:
        raise TableError(f"{path}: {len(symbols)} symbols for {scores.shape[1]} columns")
    if len(set(symbols)) != len(symbols):
        repeated = next(symbol for symbol in symbols if symbols.count(symbol) > 1)
        raise TableError(f"{path}: the symbol {repeated!r} names more than one column")
    if inputs == "auto":
        inputs = named or _detect(scores, path)
    elif named is not None and named != inputs:
        raise TableError(
            f"{path}: the file calls its values {named!r} but inputs={inputs}; drop one of the two"
        )
    return EmissionTable(_to_log_probs(scores, inputs, path), inputs, symbols)


def normalise_rows(scores: FloatArray) -> FloatArray:
    """Log-softmax over the last axis of ``(frames, vocab)``."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


_Read = tuple[Any, tuple[str, ...], Literal["probs", "logits", "log_probs"] | None]


def _read_csv(path: Path) -> _Read:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    delimiter = max("\t;,", key=(lines[0] if lines else "").count)
    rows = [(number, row) for number, row in enumerate(csv.reader(lines, delimiter=delimiter), 1) if row]
    symbols: tuple[str, ...] = ()
    if rows and any(not _is_number(cell) for cell in rows[0][1]):
        symbols = tuple(cell.strip() or cell for cell in rows.pop(0)[1])
    for number, row in rows:
        if len(row) != len(rows[0][1]):
            raise TableError(
                f"{path}, line {number}: {len(row)} values where line {rows[0][0]} has {len(rows[0][1])}"
            )
        for cell in row:
            if not _is_number(cell):
                raise TableError(f"{path}, line {number}: {cell!r} is not a number")
    return [[float(cell) for cell in row] for _, row in rows], symbols, None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_npy(path: Path) -> _Read:
    try:
        return np.load(path, allow_pickle=False), (), None
    except (ValueError, EOFError) as error:
        raise TableError(f"{path}: not a NumPy array of numbers ({error})") from error


def _read_json(path: Path) -> _Read:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TableError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        return content, (), None
    present = [kind for kind in _KINDS if kind in content]
    if len(present) != 1:
        found = " and ".join(present) or f"only {', '.join(map(repr, content)) or 'nothing'}"
        raise TableError(f"{path}: needs exactly one of the keys {', '.join(_KINDS)}; it has {found}")
    symbols = content.get("symbols", [])
    if not isinstance(symbols, list | str):
        raise TableError(f"{path}: 'symbols' must be a list of names or a string of characters")
    return content[present[0]], tuple(map(str, symbols)), present[0]  # type: ignore[return-value]


def _as_matrix(values: Any, path: Path) -> FloatArray:
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TableError(f"{path}: rows must be lists of numbers, all equally long") from error
    if scores.ndim == 3 and 1 in scores.shape[:2]:
        scores = scores.squeeze(1 if scores.shape[1] == 1 else 0)
    if scores.ndim != 2 or 0 in scores.shape:
        raise TableError(
            f"{path}: shape {scores.shape}; a table has one row per frame and one column per token"
        )
    if scores.shape[1] < 2:
        raise TableError(f"{path}: one column only; a table needs the blank and at least one more token")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        frame, token = np.argwhere(np.isnan(scores) | np.isposinf(scores))[0].tolist()
        raise TableError(
            f"{path}: frame {frame}, column {token} is {scores[frame, token]}; values must be finite"
        )
    return scores


def _sum_to_one(scores: FloatArray, axis: int = 1) -> bool:
    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=axis) - 1) <= ROW_TOLERANCE).all())


def _detect(scores: FloatArray, path: Path) -> Literal["probs", "logits", "log_probs"]:
    if _sum_to_one(scores):
        return "probs"
    if _sum_to_one(np.exp(np.minimum(scores, 1.0))):
        return "log_probs"
    if _sum_to_one(scores, axis=0):
        raise TableError(f"{path}: columns sum to one but rows do not; transpose it: one row per frame")
    if (scores < 0).any() and (scores > 0).any():
        return "logits"
    sums = scores.sum(axis=1)
    raise TableError(
        f"{path}: could be several things (rows sum to {sums.min():.4g} … {sums.max():.4g}, and their "
        "exponentials do not sum to one either); say inputs=logits for raw scores, to which a softmax "
        "is applied, or inputs=probs or inputs=log_probs to take it at its word"
    )


def _to_log_probs(scores: FloatArray, inputs: str, path: Path) -> FloatArray:
    if inputs not in get_args(TableInputs):
        raise TableError(f"inputs={inputs} is not one of {', '.join(get_args(TableInputs))}")
    if np.isneginf(scores).all(axis=1).any():
        raise TableError(f"{path}: a row of nothing but -inf leaves no token possible")
    if inputs == "log_probs":
        return scores
    if inputs == "logits":
        return normalise_rows(scores)
    if (scores < 0).any():
        frame, token = np.argwhere(scores < 0)[0].tolist()
        raise TableError(
            f"{path}: frame {frame}, column {token} is {scores[frame, token]:g}, which no probability is; "
            "say inputs=logits or inputs=log_probs"
        )
    if (scores == 0).all(axis=1).any():
        raise TableError(f"{path}: a row of nothing but zeros leaves no token possible")
    with np.errstate(divide="ignore"):
        return np.log(scores)
