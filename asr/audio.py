"""Audio files → mono float32 waveforms at one sample rate; every bad file is a named error.

Decoding is soundfile's (libsndfile), resampling torchaudio's windowed sinc. Files are read and
resampled in blocks with enough context on both sides that the result does not depend on the
block size, so a two-hour file can be streamed in the memory that a short one needs.
"""

import io
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from asr.errors import AudioError, ConfigError, NotFiniteAudioError
from asr.records import Problem

# An audio file inside an uncompressed tar, found without reading the archive: ``a.tar/NAME@START+BYTES``.
_MEMBER = re.compile(r"(?P<tar>.+\.tar)/[^/]+@(?P<start>\d+)\+(?P<num_bytes>\d+)", re.DOTALL)

# File names that a folder is searched for; what a file really holds is read from its header.
AUDIO_EXTENSIONS = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd"}
    | {".sph", ".nist", ".w64", ".rf64", ".caf", ".voc"}
)

# Manifests round durations to a few decimals, so a segment may end this far past its file.
END_TOLERANCE_SECONDS = 0.05

_BLOCK_SECONDS = 30.0
# A pair of rates without a common divisor needs a kernel of (rate × rate) values.
_MAX_KERNEL_VALUES = 64_000_000
# What recorders write as the data size when they cannot go back and correct it: 0xFFFFFFFF
# (ffmpeg) and values just below 2^31 (sox, arecord).
_SMALLEST_UNKNOWN_SIZE = 0x7FFF_F000
_UNKNOWN_NUM_SAMPLES = 1 << 62
# Title tags at an MP3's end that hold no sound.
_MAX_MP3_TAIL_BYTES = 4096

_SILENT_PEAK = 1e-4
_CLIPPED_LEVEL = 0.999
_CLIPPED_SHARE = 0.001
_DC_OFFSET = 0.02


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in and below a folder, in a fixed order; links to folders are followed, each folder once.

    Nothing hidden, such as the ``._a.wav`` that some systems add.

    Raises:
        OSError: a folder cannot be listed.
    """
    seen = {os.path.realpath(folder)}  # links between folders may form a ring

    def stop(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        real = {name: os.path.realpath(os.path.join(root, name)) for name in visible}
        folders[:] = [name for name in visible if real[name] not in seen]
        seen.update(real.values())
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says; ``num_samples`` counts per channel, ``subtype`` is libsndfile's."""

    path: Path
    sample_rate: int
    num_channels: int
    num_samples: int
    duration_seconds: float
    subtype: str


class Window(NamedTuple):
    """A stretch of a long recording: ``waveform`` is ``(samples,)`` and begins at ``start_seconds``."""

    start_seconds: float
    waveform: Tensor
    is_last: bool


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Return the nearest whole number of samples."""
    return round(seconds * sample_rate)


def samples_to_seconds(num_samples: int, sample_rate: int) -> float:
    """Return the exact duration of ``num_samples``."""
    return num_samples / sample_rate


def resampled_num_samples(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Return the length after resampling: ``ceil(num_samples · to_rate / from_rate)``, in whole numbers."""
    return -(-num_samples * to_rate // from_rate)


def member_path(tar: Path, name: str, start: int, num_bytes: int) -> Path:
    """How manifests name an audio file inside a tar; every function here reads it like a file."""
    return tar / f"{Path(name).name}@{start}+{num_bytes}"


def file_of(path: Path) -> Path:
    """The file on the disk: the tar of a member, else ``path``."""
    return path.parent if "@" in path.name and _MEMBER.fullmatch(str(path)) else path


def audio_info(path: str | Path) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        AudioError: the file is missing, unreadable, truncated, not audio or holds no samples.
    """
    with _open_audio(Path(path)) as source:
        return source.info


def load_audio(
    path: str | Path, sample_rate: int, *, offset_seconds: float = 0.0, duration_seconds: float | None = None
) -> Tensor:
    """Return a file, or a segment of it, as ``(samples,)`` float32 mono at ``sample_rate``.

    Channels are averaged. The length is ``resampled_num_samples`` of the segment's length in the
    file. Integer formats are scaled to [-1, 1); samples of float files are kept as they are.

    Args:
        offset_seconds: where in the file the segment begins.
        duration_seconds: how long it is; to the end of the file by default.

    Raises:
        AudioError: the file is missing, unreadable, truncated, not audio, holds no samples or
            non-finite ones, or the segment lies outside it (by more than
            ``END_TOLERANCE_SECONDS``, which is cut off).
    """
    with _open_audio(Path(path)) as source:
        start, stop = _segment(source.info, offset_seconds, duration_seconds)
        pieces = list(_resampled(source, start, stop, sample_rate))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def cut_audio(path: str | Path, *, offset_seconds: float, duration_seconds: float) -> bytes:
    """A segment as a file of its own, channels and rate kept: FLAC, or WAV where the samples are floats.

    Raises:
        AudioError: as for :func:`load_audio`.
    """
    with _open_audio(Path(path)) as source:
        start, stop = _segment(source.info, offset_seconds, duration_seconds)
        is_float = source.info.subtype in ("FLOAT", "DOUBLE")
        source.file.seek(start)
        samples = source.file.read(stop - start, dtype="float32" if is_float else "int32", always_2d=True)
    if len(samples) < stop - start:
        raise AudioError(f"{path}: is truncated or damaged; copy or record it again")
    wide = source.info.subtype in ("PCM_24", "PCM_32")
    content = io.BytesIO()
    soundfile.write(
        content,
        samples,
        source.info.sample_rate,
        format="WAV" if is_float else "FLAC",
        subtype="FLOAT" if is_float else "PCM_24" if wide else "PCM_16",
    )
    return content.getvalue()


def stream_audio(
    path: str | Path, sample_rate: int, *, window_seconds: float, hop_seconds: float
) -> Iterator[Window]:
    """Yield overlapping windows of a recording of any length, in bounded memory.

    Window ``i`` begins at ``i · hop`` and equals that slice of ``load_audio(path, sample_rate)``;
    the last one ends with the recording and may be shorter.

    Raises:
        ConfigError: the hop is not in (0, window].
        AudioError: as for :func:`load_audio`, when the bad place is reached.
    """
    window_samples = seconds_to_samples(window_seconds, sample_rate)
    hop_samples = seconds_to_samples(hop_seconds, sample_rate)
    if not 0 < hop_samples <= window_samples:
        raise ConfigError(
            f"hop_seconds={hop_seconds:g} must be above 0 and not above window_seconds={window_seconds:g}"
        )
    return _windows(Path(path), sample_rate, window_samples, hop_samples)


def describe_problems(waveform: Tensor) -> list[Problem]:
    """Name what is wrong with the sound of ``waveform`` ``(samples,)``; empty when nothing is.

    Names: ``not_finite``, ``silent``, ``clipped``, ``dc_offset``.
    """
    samples = waveform.numpy()  # one thread: many files are looked at side by side
    peak = max(float(samples.max()), -float(samples.min())) if len(samples) else 0.0
    if not math.isfinite(peak):
        return [Problem("not_finite", "has NaN or infinite samples")]
    if peak < _SILENT_PEAK:
        return [Problem("silent", f"is silent (peak {peak:.1e} of full scale)")]
    problems = []
    num_clipped = np.count_nonzero(np.abs(samples) >= _CLIPPED_LEVEL) if peak >= _CLIPPED_LEVEL else 0
    if num_clipped > _CLIPPED_SHARE * len(samples):
        share = num_clipped / len(samples)
        problems.append(Problem("clipped", f"has {share:.1%} of its samples at full scale"))
    mean = float(samples.mean(dtype=np.float64))
    if abs(mean) > _DC_OFFSET:
        problems.append(Problem("dc_offset", f"is shifted by {mean:+.3f} of full scale"))
    return problems


class _Source(NamedTuple):
    file: soundfile.SoundFile
    info: AudioInfo


@contextmanager
def _open_audio(path: Path) -> Iterator[_Source]:
    # A Python file rather than a path: libsndfile refuses paths above 1023 bytes.
    with _open_file(path) as raw:
        try:
            file = soundfile.SoundFile(raw)
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
            raise AudioError(
                f"{path}: cannot be decoded as audio ({_reason(error)}); "
                f"convert it to WAV or FLAC, or remove it"
            ) from error
        with file:
            try:
                yield _Source(file, _checked_info(path, file, raw))
            except soundfile.SoundFileError as error:
                raise AudioError(
                    f"{path}: is truncated or damaged ({_reason(error)}); copy or record it again"
                ) from error


_RawFile = FileIO | io.BytesIO


def _open_file(path: Path) -> _RawFile:
    try:
        raw = _read_member(path) or FileIO(path)
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such audio file; correct the path or restore the file") from error
    except IsADirectoryError as error:
        raise AudioError(f"{path} is a folder, not an audio file; name the files in it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(
            f"{path}: cannot be opened ({reason}); check the path and its permissions"
        ) from error
    try:
        return _checked_length(path, raw)
    except BaseException:
        raw.close()
        raise


def _read_member(path: Path) -> io.BytesIO | None:
    """The bytes of a tar's member, in one read; None for a path that names none."""
    member = _MEMBER.fullmatch(str(path)) if "@" in path.name else None
    if member is None:
        return None
    num_bytes = int(member["num_bytes"])
    with open(member["tar"], "rb", buffering=0) as file:
        file.seek(int(member["start"]))
        content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise AudioError(f"{path}: the archive ends before it; make or copy it again")
    return io.BytesIO(content)


def _num_bytes(raw: _RawFile) -> int:
    position = raw.tell()
    num_bytes = raw.seek(0, os.SEEK_END)
    raw.seek(position)
    return num_bytes


def _checked_info(path: Path, file: soundfile.SoundFile, raw: _RawFile) -> AudioInfo:
    num_samples = _counted_mp3_samples(file, raw) if _is_mp3_without_length(file, raw) else file.frames
    if num_samples == 0:
        raise AudioError(f"{path}: holds no samples; record or copy it again, or remove it")
    if num_samples is None or not 0 < num_samples < _UNKNOWN_NUM_SAMPLES:
        raise AudioError(
            f"{path}: its header does not say how long it is; write it anew, e.g. with ffmpeg or sox"
        )
    return AudioInfo(
        path=path,
        sample_rate=file.samplerate,
        num_channels=file.channels,
        num_samples=num_samples,
        duration_seconds=samples_to_seconds(num_samples, file.samplerate),
        subtype=file.subtype,
    )


def _is_mp3_without_length(file: soundfile.SoundFile, raw: _RawFile) -> bool:
    """Look for the tag in an MP3's first frame that holds its number of frames."""
    if file.format != "MP3":
        return False
    position = raw.tell()
    raw.seek(0)
    start = raw.read(10)
    if start[:3] == b"ID3":  # a title tag, whose size is written in four groups of seven bits
        raw.seek(10 + sum(byte << shift for byte, shift in zip(start[6:], (21, 14, 7, 0), strict=True)))
    first_frame = raw.read(512)
    raw.seek(position)
    return not any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))


def _counted_mp3_samples(file: soundfile.SoundFile, raw: _RawFile) -> int | None:
    """Count by decoding what libsndfile only estimates from the first frames' bit rate.

    Returns None where it estimates too few, since it then stops before the end.
    """
    num_samples = 0
    while num_read := len(file.read(file.samplerate * int(_BLOCK_SECONDS), dtype="float32")):
        num_samples += num_read
    num_bytes_left = _num_bytes(raw) - raw.tell()
    return num_samples if num_bytes_left < _MAX_MP3_TAIL_BYTES else None


def _segment(info: AudioInfo, offset_seconds: float, duration_seconds: float | None) -> tuple[int, int]:
    """Return where a segment starts and stops, in samples of the file."""
    start = seconds_to_samples(offset_seconds, info.sample_rate)
    if not 0 <= start < info.num_samples:
        raise AudioError(
            f"{info.path}: offset {offset_seconds:g} s lies outside its {info.duration_seconds:g} s; "
            f"correct the manifest"
        )
    if duration_seconds is None:
        return start, info.num_samples
    stop = start + seconds_to_samples(duration_seconds, info.sample_rate)
    if stop <= start:
        raise AudioError(
            f"{info.path}: a segment of {duration_seconds:g} s holds no samples; correct the manifest"
        )
    if stop > info.num_samples + seconds_to_samples(END_TOLERANCE_SECONDS, info.sample_rate):
        raise AudioError(
            f"{info.path}: offset {offset_seconds:g} s + duration {duration_seconds:g} s end past its "
            f"{info.duration_seconds:g} s; correct the manifest"
        )
    return start, min(stop, info.num_samples)


def _mono_blocks(source: _Source, start: int, stop: int) -> Iterator[Tensor]:
    """Yield samples ``start … stop`` of a file as consecutive ``(samples,)`` float32 blocks."""
    file, info = source
    block_samples = seconds_to_samples(_BLOCK_SECONDS, info.sample_rate)
    file.seek(start)
    for position in range(start, stop, block_samples):
        num_wanted = min(block_samples, stop - position)
        block = file.read(num_wanted, dtype="float32", always_2d=True)
        mono = block[:, 0] if info.num_channels == 1 else block.mean(axis=1)
        _check_block(info, position, num_wanted, mono)
        yield torch.from_numpy(mono)


def _check_block(info: AudioInfo, position: int, num_wanted: int, mono: np.ndarray) -> None:
    if len(mono) < num_wanted:
        end = samples_to_seconds(position + len(mono), info.sample_rate)
        raise AudioError(
            f"{info.path}: is truncated: its header promises {info.duration_seconds:.3f} s and "
            f"it ends at {end:.3f} s; copy or record it again"
        )
    finite = np.isfinite(mono)  # a non-finite channel makes the mean non-finite
    if not finite.all():
        place = samples_to_seconds(position + int(np.argmin(finite)), info.sample_rate)
        raise NotFiniteAudioError(
            f"{info.path}: has NaN or infinite samples at {place:.3f} s; write it anew or remove it"
        )


def _resampled(source: _Source, start: int, stop: int, to_rate: int) -> Iterator[Tensor]:
    """Yield samples ``start … stop`` of a file at ``to_rate``, as if resampled in one piece."""
    from_rate = source.info.sample_rate
    blocks = _mono_blocks(source, start, stop)
    if from_rate == to_rate:
        yield from blocks
        return
    divisor = math.gcd(from_rate, to_rate)
    step_in, step_out = from_rate // divisor, to_rate // divisor
    resampler = _resampler(source.info, step_in, step_out)
    # Every `step_in` input samples the output grid meets the input grid: cut only there.
    context = math.ceil(resampler.width / step_in) * step_in
    buffer, num_left = torch.empty(0), 0  # the first num_left samples are done and serve as context
    num_missing = stop - start
    for block in blocks:
        buffer = torch.cat([buffer, block])
        num_missing -= len(block)
        if num_missing == 0:
            break
        num_done = (len(buffer) - context) // step_in * step_in
        if num_done > num_left:
            output = resampler(buffer[: num_done + context])
            yield output[num_left // step_in * step_out : num_done // step_in * step_out]
            num_kept = max(0, num_done - context)
            buffer, num_left = buffer[num_kept:], num_done - num_kept
    num_output = resampled_num_samples(len(buffer), step_in, step_out)
    # Zeros behind the end change no value; without them the resampler's own length, which is
    # rounded in float32, may be one sample short.
    output = resampler(torch.nn.functional.pad(buffer, (0, step_in)))
    yield output[num_left // step_in * step_out : num_output]


def _resampler(info: AudioInfo, step_in: int, step_out: int) -> torchaudio.transforms.Resample:
    if step_in * step_out > _MAX_KERNEL_VALUES:
        raise AudioError(
            f"{info.path}: its rate of {info.sample_rate} Hz has no handy ratio to the model's; "
            f"resample it first, e.g. with sox or ffmpeg"
        )
    return _cached_resampler(step_in, step_out)


@lru_cache(maxsize=16)
def _cached_resampler(step_in: int, step_out: int) -> torchaudio.transforms.Resample:
    # The kernel in float64 before it is rounded: torchaudio's default is off by up to 1e-5.
    return torchaudio.transforms.Resample(step_in, step_out, dtype=torch.float64).float()


def _windows(path: Path, sample_rate: int, window_samples: int, hop_samples: int) -> Iterator[Window]:
    with _open_audio(path) as source:
        num_total = resampled_num_samples(source.info.num_samples, source.info.sample_rate, sample_rate)
        buffer, start = torch.empty(0), 0
        for piece in _resampled(source, 0, source.info.num_samples, sample_rate):
            buffer = torch.cat([buffer, piece])
            while len(buffer) >= window_samples and start + window_samples < num_total:
                yield Window(samples_to_seconds(start, sample_rate), buffer[:window_samples].clone(), False)
                buffer, start = buffer[hop_samples:], start + hop_samples
        yield Window(samples_to_seconds(start, sample_rate), buffer, True)


class _DataSize(NamedTuple):
    """The data size in a file's header: where it stands, what it says, and where the data begin."""

    position: int
    num_bytes: int
    data_start: int
    is_unclosed: bool = False


class _UnclosedWav(FileIO):
    """A WAV whose writer never filled in the data size 0: reads as if the size were unknown."""

    def __init__(self, path: Path, size_position: int) -> None:
        super().__init__(path)
        self._size_position = size_position

    def readinto(self, buffer: Any) -> int | None:
        start = self.tell()
        num_bytes = super().readinto(buffer)
        view = memoryview(buffer).cast("B")
        for position in range(self._size_position, self._size_position + 4):
            if 0 <= position - start < (num_bytes or 0):
                view[position - start] = 0xFF
        return num_bytes


def _checked_length(path: Path, raw: _RawFile) -> _RawFile:
    """Compare the header's promise with the file's size, since libsndfile reads short files silently."""
    num_bytes = _num_bytes(raw)
    if num_bytes == 0:
        raise AudioError(f"{path}: is empty (0 bytes); copy or record it again, or remove it")
    try:
        size = _find_data_size(raw, num_bytes)
    except (struct.error, ValueError):
        size = None  # no header to trust: the decoder will say what is wrong
    raw.seek(0)
    if size is None or size.num_bytes >= _SMALLEST_UNKNOWN_SIZE:
        return raw
    if size.is_unclosed and isinstance(raw, io.BytesIO):
        raw.getbuffer()[size.position : size.position + 4] = b"\xff" * 4
        return raw
    if size.is_unclosed:
        raw.close()
        return _UnclosedWav(path, size.position)
    num_present = num_bytes - size.data_start
    if size.num_bytes > num_present:
        raise AudioError(
            f"{path}: is truncated: its header promises {size.num_bytes} bytes of samples and "
            f"{max(num_present, 0)} are there; copy or record it again"
        )
    return raw


def _find_data_size(raw: _RawFile, num_file_bytes: int) -> _DataSize | None:
    magic = raw.read(12)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
        return _find_chunk(raw, b"data", "<", struct.unpack("<I", magic[4:8])[0], num_file_bytes)
    if magic[:4] == b"RIFX" and magic[8:] == b"WAVE":
        return _find_chunk(raw, b"data", ">", struct.unpack(">I", magic[4:8])[0], num_file_bytes)
    if magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        return _find_chunk(raw, b"SSND", ">", struct.unpack(">I", magic[4:8])[0], num_file_bytes)
    if magic[:4] == b".snd":
        data_start, num_bytes = struct.unpack(">II", magic[4:])
        return _DataSize(8, num_bytes, data_start)
    if magic[:7] == b"NIST_1A":
        return _sphere_data_size(raw)
    return None


def _find_chunk(
    raw: _RawFile, name: bytes, order: str, form_size: int, num_file_bytes: int
) -> _DataSize | None:
    """Walk the chunks of a RIFF or IFF file to the one that holds the samples."""
    size_64 = None
    while len(header := raw.read(8)) == 8:
        num_bytes = struct.unpack(order + "I", header[4:])[0]
        start = raw.tell()
        if header[:4] == b"ds64":  # RF64: the data size as 64 bits (EBU Tech 3306)
            size_64 = struct.unpack("<Q", raw.read(16)[8:])[0]
        if header[:4] == name:
            if size_64 is not None and num_bytes == 0xFFFF_FFFF:
                num_bytes = size_64
            is_unclosed = num_bytes == 0 and start < num_file_bytes and form_size + 8 != num_file_bytes
            return _DataSize(start - 4, num_bytes, start, is_unclosed)
        raw.seek(start + num_bytes + num_bytes % 2)
    return None


def _sphere_data_size(raw: _RawFile) -> _DataSize | None:
    """Multiply the fields of a NIST SPHERE header; compressed files (``sample_coding``) are let through."""
    raw.seek(8)
    data_start = int(raw.read(8))
    raw.seek(0)
    lines = raw.read(data_start).decode("latin-1").splitlines()
    fields = {words[0]: words[2] for line in lines if len(words := line.split(maxsplit=2)) == 3}
    if "," in fields.get("sample_coding", "") or "sample_count" not in fields:
        return None
    samples_and_widths = (
        fields["sample_count"],
        fields.get("sample_n_bytes", "2"),
        fields.get("channel_count", "1"),
    )
    return _DataSize(0, math.prod(int(number) for number in samples_and_widths), data_start)


def _reason(error: Exception) -> str:
    """Return the decoder's own words without the file object's name in front."""
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.removeprefix("Error : ").rstrip(".")
