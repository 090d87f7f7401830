"""Arrays made from a large file, kept in one file that is mapped into memory instead of read.

Layout: one line of JSON (format, what it was made from, name, type and place of each array, checksum of
all arrays), then the arrays, each aligned. A copy whose source has changed, or that is damaged or of
another version, is not used. It is written under another name and renamed, so nobody meets half of it.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_FORMAT = "asr n-gram arrays 1"  # raise the number when the arrays change their meaning
_ALIGNMENT = 64
_SUFFIX = ".cache"
_MAX_HEADER_BYTES = 65536

_log = logging.getLogger(__name__)


class Stored(NamedTuple):
    arrays: dict[str, np.ndarray]  # read-only
    sha256: str  # of the source


def places(source: Path, cache_dir: str | Path | None) -> list[Path]:
    """Where the copy may lie, best place first."""
    # Files of one name from several folders share a cache folder.
    distinct = f"{source.name}-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]}{_SUFFIX}"
    if cache_dir is not None:
        return [Path(cache_dir) / distinct]
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [source.with_name(source.name + _SUFFIX), user_cache / "asr" / distinct]


def fingerprint(source: Path) -> dict[str, int]:
    """What tells, without reading it, whether a file has changed."""
    status = source.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def load(place: Path, source: Path) -> Stored | None:
    """The arrays kept at ``place``, or None where there are none of this source as it is now."""
    try:
        with place.open("rb") as file:
            line = file.readline(_MAX_HEADER_BYTES)
    except OSError:
        return None
    try:
        header = json.loads(line)
        if header["format"] != _FORMAT or header["source"] != fingerprint(source):
            return None
        payload = np.memmap(place, np.uint8, mode="r").view(np.ndarray)[header["begin"] :]
        if len(payload) != header["size"] or zlib.crc32(payload.data) != header["crc32"]:
            raise ValueError("checksum differs")
        arrays = {name: _part(payload, **described) for name, described in header["arrays"].items()}
        return Stored(arrays, header["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("warning: %s is damaged (%s); it is made again from %s", place, error, source)
        return None


def store(place: Path, arrays: Mapping[str, np.ndarray], made_from: Mapping[str, int], sha256: str) -> bool:
    """Keep arrays; False, and a line in the log, where that is not possible."""
    described: dict[str, dict[str, Any]] = {}
    end = checksum = 0
    pieces: list[bytes | memoryview] = []
    for name, array in arrays.items():
        padding = bytes(-end % _ALIGNMENT)
        described[name] = {"begin": end + len(padding), "dtype": array.dtype.str, "length": len(array)}
        pieces += [padding, np.ascontiguousarray(array).view(np.uint8).data]
        end += len(padding) + array.nbytes
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    header = {"format": _FORMAT, "source": dict(made_from), "sha256": sha256, "size": end, "crc32": checksum}
    line = json.dumps(header | {"begin": 0, "arrays": described})
    begin = -(-(len(line) + 16) // _ALIGNMENT) * _ALIGNMENT  # leaves room for the digits of begin itself
    line = json.dumps(header | {"begin": begin, "arrays": described}).ljust(begin - 1) + "\n"
    unfinished = place.with_name(f"{place.name}.{os.getpid()}.unfinished")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                file.write(line.encode())
                for piece in pieces:
                    file.write(piece)
            unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        _log.info("%s cannot be written (%s)", place, error.strerror or error)
        return False
    return True


def _part(payload: np.ndarray, begin: int, dtype: str, length: int) -> np.ndarray:
    kind = np.dtype(dtype)
    return payload[begin : begin + length * kind.itemsize].view(kind)
