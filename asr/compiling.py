"""Compiled code (numba) that is kept on disk, and made again when what it was made from changes."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from numba import njit

_log = logging.getLogger(__name__)


def compiled_to_disk(function: Callable[..., Any], sources: Sequence[Path] = (), **options: Any) -> Any:
    """Compile ``function`` when it is first called, or take what an earlier process has compiled.

    Where no folder can be written to, every process compiles anew, and a warning says so once.

    Args:
        sources: other files whose functions or constants the function takes in. numba itself
            notices changes of the function's own file only.
        options: of ``numba.njit``.
    """
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:
        _warn_that_nothing_is_kept()
        return njit(**options)(function)
    if not hasattr(dispatcher, "_cache"):  # NUMBA_DISABLE_JIT
        return dispatcher
    kept = dispatcher._cache._cache_file  # as numba 0.68 calls it
    kept._source_stamp = (kept._source_stamp, *map(_digest, sources))
    return dispatcher


@lru_cache
def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


@lru_cache
def _warn_that_nothing_is_kept() -> None:
    _log.warning(
        "warning: compiled code is made anew by every process, which takes up to a minute: neither the package's "
        "folder nor the user's cache folder can be written; set NUMBA_CACHE_DIR to one that can"
    )
