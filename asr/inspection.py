"""What the audio files behind a manifest really hold: read in parallel, once, and remembered.

The headers say rate, channels and length. Decoding everything finds what headers hide: files cut
short, NaN, silence, clipping, a shifted zero line, and by a hash of the samples the same recording
under two names.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.audio import AudioInfo, audio_info, describe_problems, file_of
from asr.dataset import load_segment, segment_problem
from asr.errors import AudioError, NotFiniteAudioError
from asr.records import Problem, Utterance

UNUSABLE_AUDIO = frozenset({"unreadable", "outside_file", "damaged", "not_finite"})
"""Problems with which an utterance can neither be trained on nor scored."""
UNLEARNABLE_AUDIO = UNUSABLE_AUDIO | {"silent"}
"""Problems with which there is nothing to learn; what is silent still counts when it is scored."""

_DIGEST_BYTES = 16
_CHUNK = 64  # utterances per task: a future for each of a million would need a gigabyte
_CACHE_VERSION = 1

Progress = Callable[[int], None]
"""Called with the number of utterances done so far."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What is known of each utterance's audio, in the manifest's order; arrays are ``(utterances,)``.

    ``sample_rates`` is 0 where the file cannot be read. ``digests``, 16 bytes each, are equal for equal
    samples, and all zero where nothing was decoded.
    """

    is_decoded: bool
    sample_rates: NDArray[np.int32]
    num_channels: NDArray[np.int32]
    file_seconds: NDArray[np.float64]
    digests: NDArray[np.uint8]
    problems: dict[int, list[Problem]]

    def excluding(self, names: frozenset[str]) -> list[Problem | None]:
        """For each utterance the first of its problems that is among ``names``, or None."""
        found: list[Problem | None] = [None] * len(self.sample_rates)
        for position, problems in self.problems.items():
            found[position] = next((problem for problem in problems if problem.name in names), None)
        return found


class _Inspected(NamedTuple):
    info: AudioInfo | None
    digest: bytes
    problems: list[Problem]


def inspect_audio(
    utterances: Sequence[Utterance],
    *,
    decode: bool,
    num_threads: int | None = None,
    on_progress: Progress = lambda num_done: None,
) -> AudioFacts:
    """Look at the audio of every utterance: its header, and with ``decode`` every sample.

    Threads suffice: decoding, hashing and the arithmetic all run outside the interpreter's lock.
    """
    facts = AudioFacts(
        is_decoded=decode,
        sample_rates=np.zeros(len(utterances), np.int32),
        num_channels=np.zeros(len(utterances), np.int32),
        file_seconds=np.zeros(len(utterances), np.float64),
        digests=np.zeros((len(utterances), _DIGEST_BYTES), np.uint8),
        problems={},
    )
    header = lru_cache(maxsize=1024)(lambda path: audio_info(Path(path)))  # many segments may lie in one file
    num_done = 0

    def inspect_chunk(start: int) -> list[_Inspected]:
        return [_inspect(utterance, header, decode) for utterance in utterances[start : start + _CHUNK]]

    for start, inspected in _in_parallel(
        inspect_chunk, range(0, len(utterances), _CHUNK), num_threads or os.cpu_count() or 1
    ):
        here = slice(start, start + len(inspected))
        headers = [
            (0, 0, 0.0) if info is None else (info.sample_rate, info.num_channels, info.duration_seconds)
            for info, _, _ in inspected
        ]
        facts.sample_rates[here], facts.num_channels[here], facts.file_seconds[here] = zip(
            *headers, strict=True
        )
        for position, (_, digest, problems) in enumerate(inspected, start=start):
            if digest:
                facts.digests[position] = np.frombuffer(digest, np.uint8)
            if problems:
                facts.problems[position] = problems
        num_done += len(inspected)
        on_progress(num_done)
    return facts


def _in_parallel(
    task: Callable[[int], list[_Inspected]], starts: range, num_threads: int
) -> Iterator[tuple[int, list[_Inspected]]]:
    """``(start, task(start))`` as they are done, with only a few waiting at a time."""
    pending: dict[Future[list[_Inspected]], int] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for start in starts:
                pending[pool.submit(task, start)] = start
                if len(pending) > 2 * num_threads:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        yield pending.pop(future), future.result()
            for future, start in pending.items():
                yield start, future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C at once


def _inspect(utterance: Utterance, header: Callable[[str], AudioInfo], decode: bool) -> _Inspected:
    try:
        info = header(utterance.audio_file)
    except AudioError as error:
        return _Inspected(None, b"", [Problem("unreadable", str(error))])
    problem = segment_problem(utterance, info)
    if problem is not None:
        return _Inspected(info, b"", [problem])
    if not decode:
        return _Inspected(info, b"", [])
    try:
        waveform = load_segment(utterance, info, info.sample_rate)
    except NotFiniteAudioError as error:
        return _Inspected(info, b"", [Problem("not_finite", str(error))])
    except AudioError as error:
        return _Inspected(info, b"", [Problem("damaged", str(error))])
    digest = hashlib.blake2b(waveform.numpy().data, digest_size=_DIGEST_BYTES).digest()
    return _Inspected(info, digest, describe_problems(waveform))


# ------------------------------------------------------------------ remembering


def audio_fingerprint(utterances: Sequence[Utterance], manifest_sha256: str) -> str:
    """Changes when the manifest does, or the size or time of any of its audio files."""
    digest = hashlib.sha256(f"{_CACHE_VERSION} {manifest_sha256}".encode())
    previous = None
    for utterance in utterances:
        if utterance.audio_file == previous:
            continue
        previous = utterance.audio_file
        try:
            status = os.stat(file_of(Path(previous)))
            digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):  # missing, or no possible path
            digest.update(b"-\n")
    return digest.hexdigest()


def recall(folder: Path, fingerprint: str, *, decoded: bool) -> AudioFacts | None:
    """The facts remembered for this fingerprint, or None."""
    try:
        with np.load(_cache_path(folder, fingerprint, decoded), allow_pickle=False) as arrays:
            stored = json.loads(arrays["problems"].tobytes())
            return AudioFacts(
                is_decoded=decoded,
                sample_rates=arrays["sample_rates"],
                num_channels=arrays["num_channels"],
                file_seconds=arrays["file_seconds"],
                digests=arrays["digests"],
                problems={
                    int(position): [Problem(*problem) for problem in problems]
                    for position, problems in stored.items()
                },
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):  # none there, or damaged
        return None


def remember(folder: Path, fingerprint: str, facts: AudioFacts) -> bool:
    """Store ``facts``; False where the folder cannot be written to."""
    path = _cache_path(folder, fingerprint, facts.is_decoded)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    problems = json.dumps(facts.problems, ensure_ascii=True).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(
                file,
                sample_rates=facts.sample_rates,
                num_channels=facts.num_channels,
                file_seconds=facts.file_seconds,
                digests=facts.digests,
                problems=np.frombuffer(problems, np.uint8),
            )
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def _cache_path(folder: Path, fingerprint: str, decoded: bool) -> Path:
    return folder / f"{fingerprint[:32]}-{'decoded' if decoded else 'headers'}.npz"
