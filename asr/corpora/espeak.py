"""Speech from text with espeak-ng, through its C interface: exact samples and true word times.

The library comes with the ``espeakng-loader`` wheel. It keeps hidden state between utterances
(pitch flutter, wave phase, noise generator) that neither ``espeak_Terminate`` nor its seed resets,
so the same sentence would come out differently depending on what was said before. The library is
therefore loaded afresh for every utterance, which costs about 4 ms: the samples are a pure function
of the text and the voice, as long as nothing else in the process keeps the same library loaded.

Source: ``speak_lib.h`` of espeak-ng 1.52, https://github.com/espeak-ng/espeak-ng
"""

import _ctypes
import ctypes
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

from asr.errors import ConfigError, TextError

# Constants of speak_lib.h.
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: hand the samples to the callback, return when done
_PHONEME_EVENTS = 0x0001
_DONT_EXIT = 0x8000  # report missing data instead of ending the process
_UTF8 = 1
_PHONEMES = 0x100  # text inside [[ ]] is phoneme mnemonics
_POSITION_CHARACTER = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_END_OF_LIST, _WORD_EVENT, _PHONEME_EVENT = 0, 1, 7

# At espeak-ng's normal volume of 100 several variants clip.
_UNCLIPPED_VOLUME = 50
# espeak-ng keeps its data path in a fixed buffer of 160 bytes and adds file names to it.
_MAX_DATA_PATH_BYTES = 120
# The British voice's file is called plain "en", and voice variants are looked up by file name.
_VOICE_FILES = {"en-gb": "en"}
_ENGLISH = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
# One utterance at a time: the library is a single global synthesiser.
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Voice:
    """How to speak: an English accent, a timbre and three settings.

    Args:
        accent: one of :func:`accents`.
        variant: an espeak-ng voice variant such as ``m3``, ``f2`` or ``croak``; empty for the plain voice.
        words_per_minute: 80 to 450, 175 being espeak-ng's default.
        pitch: base pitch, 0 to 99; 50 is the variant's own.
        pitch_range: liveliness of intonation, 0 (monotone) to 99.
    """

    accent: str = "en-us"
    variant: str = ""
    words_per_minute: int = 175
    pitch: int = 50
    pitch_range: int = 50

    def __post_init__(self) -> None:
        if self.accent not in _ENGLISH:
            raise ConfigError(f"unknown accent {self.accent!r}: choose one of {', '.join(_ENGLISH)}")
        for name, value, low, high in (
            ("words_per_minute", self.words_per_minute, 80, 450),
            ("pitch", self.pitch, 0, 99),
            ("pitch_range", self.pitch_range, 0, 99),
        ):
            if not low <= value <= high:
                raise ConfigError(f"voice {name}={value} is out of range: choose {low} to {high}")


class SpokenWord(NamedTuple):
    """A word and where it was spoken, in seconds from the first sample."""

    text: str
    start_seconds: float
    end_seconds: float


class Speech(NamedTuple):
    """``waveform``: ``(samples,)`` float32 in [-1, 1]; ``words``: one per word of the text, in order."""

    waveform: NDArray[np.float32]
    sample_rate: int
    words: tuple[SpokenWord, ...]


def accents() -> tuple[str, ...]:
    """Names of the English accents that :class:`Voice` takes."""
    return _ENGLISH


def speak(text: str, voice: Voice | None = None) -> Speech:
    """Speak ``text``; the same text and voice always give the same samples.

    Words are separated by white space and should be spelled out (``nineteen ninety four``). A single
    capital letter is read by its name, so that ``c A t`` and ``C A T`` differ from the article in
    ``a cat``; ``words`` holds them in lower case.

    A word starts where its first sound starts (the closure of a stop included) and ends where the
    next word or a pause starts.

    Raises:
        TextError: the text is empty, or a word of it has no sound.
        ConfigError: the voice variant does not exist.
    """
    words = text.split()
    if not words:
        raise TextError("there is nothing to speak: the text is empty")
    voice = voice or Voice()
    with _lock, _engine(voice) as engine:
        written = [engine.letter_name(word) if _is_spelled(word) else word for word in words]
        spoken = engine.synthesise(written)
        joined = [index for index, start in enumerate(spoken.word_starts) if start is None]
        if not joined:
            return _to_speech(words, spoken, engine.sample_rate)
        # espeak-ng runs some function words together ("in the", "to be") and reports one event for
        # both. Giving it their sounds instead of their letters keeps them apart.
        for index in joined:
            written[index] = engine.phonemes_of(words[index])
    with _lock, _engine(voice) as engine:
        spoken = engine.synthesise(written)
    for word, start in zip(words, spoken.word_starts, strict=True):
        if start is None:
            raise TextError(f"espeak-ng has no sound of its own for {word!r} in {text!r}: rephrase it")
    return _to_speech(words, spoken, engine.sample_rate)


def _is_spelled(word: str) -> bool:
    return len(word) == 1 and word.isupper()


class _Spoken(NamedTuple):
    """Raw result: 16-bit samples; per word its first sample, or None; first samples of the pauses."""

    samples: NDArray[np.int16]
    word_starts: list[int | None]
    pause_starts: list[int]


def _to_speech(words: list[str], spoken: _Spoken, sample_rate: int) -> Speech:
    starts = [start for start in spoken.word_starts if start is not None]
    ends = []
    for start, limit in zip(starts, [*starts[1:], len(spoken.samples)], strict=True):
        ends.append(min([limit, *(pause for pause in spoken.pause_starts if pause > start)]))
    return Speech(
        waveform=spoken.samples.astype(np.float32) / 32768.0,
        sample_rate=sample_rate,
        words=tuple(
            SpokenWord(word.lower() if _is_spelled(word) else word, start / sample_rate, end / sample_rate)
            for word, start, end in zip(words, starts, ends, strict=True)
        ),
    )


class _Event(ctypes.Structure):
    """``espeak_EVENT``; ``text_position`` counts characters from 1, ``sample`` is exact."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _RecordedEvent(NamedTuple):
    type: int
    text_position: int
    sample: int
    phoneme: str

    @property
    def is_sound(self) -> bool:
        return self.type == _PHONEME_EVENT and not self.is_pause

    @property
    def is_pause(self) -> bool:
        return self.type == _PHONEME_EVENT and self.phoneme.startswith("_")


class _Engine:
    """One freshly loaded espeak-ng with its voice set."""

    def __init__(self, library: Any, voice: Voice) -> None:
        self._library = library
        self._chunks: list[NDArray[np.int16]] = []
        self._events: list[_RecordedEvent] = []
        # Kept as an attribute: ctypes does not hold on to callbacks.
        self._callback: Callable[..., int] = _Callback(self._receive)
        self.sample_rate = _initialise(library, _data_path())
        library.espeak_SetSynthCallback(self._callback)
        self._set_voice(voice)
        library.espeak_ng_SetRandSeed(1)
        for parameter, value in (
            (_RATE, voice.words_per_minute),
            (_VOLUME, _UNCLIPPED_VOLUME),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
        ):
            library.espeak_SetParameter(parameter, value, 0)

    def _set_voice(self, voice: Voice) -> None:
        if voice.variant and voice.variant not in variants():
            raise ConfigError(
                f"unknown espeak-ng voice variant {voice.variant!r}: choose one of {', '.join(variants())}"
            )
        file_name = _VOICE_FILES.get(voice.accent, voice.accent)
        name = f"{file_name}+{voice.variant}" if voice.variant else file_name
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ConfigError(f"espeak-ng does not have the voice {name!r}: reinstall espeakng-loader")

    def letter_name(self, letter: str) -> str:
        """``[[mnemonics]]`` of a letter's name and a short pause, as people spell: 18 ms at normal rate."""
        return f"[[{self._mnemonics(letter)}_]]"

    def phonemes_of(self, word: str) -> str:
        """``[[mnemonics]]`` of one word, so that it cannot run together with its neighbours."""
        return f"[[{self._mnemonics(word)}]]"

    def _mnemonics(self, word: str) -> str:
        # On its own a letter, even "a", is read by its name.
        text = ctypes.c_char_p(word.lower().encode())
        position = ctypes.c_void_p(ctypes.cast(text, ctypes.c_void_p).value)
        return self._library.espeak_TextToPhonemes(ctypes.byref(position), _UTF8, 0).decode()

    def synthesise(self, words: list[str]) -> _Spoken:
        self._chunks.clear()
        self._events.clear()
        text = " ".join(words).encode()
        flags = _UTF8 | _PHONEMES
        self._library.espeak_Synth(text, len(text) + 1, 0, _POSITION_CHARACTER, 0, flags, None, None)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        pauses = [event.sample for event in self._events if event.is_pause]
        return _Spoken(samples, self._word_starts(words), pauses)

    def _receive(self, wave: Any, num_samples: int, events: Any) -> int:
        if wave and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (num_samples,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            event = events[index]
            # The field is a union: only phoneme events hold a name in it.
            phoneme = event.phoneme.decode(errors="replace") if event.type == _PHONEME_EVENT else ""
            self._events.append(_RecordedEvent(event.type, event.text_position, event.sample, phoneme))
            index += 1
        return 0  # go on

    def _word_starts(self, words: list[str]) -> list[int | None]:
        lengths = [len(word) for word in words]
        # Text positions count from 1; word i begins after the words and single blanks before it.
        begins = np.cumsum([1, *(length + 1 for length in lengths)])
        starts: list[int | None] = [None] * len(words)
        for place, event in enumerate(self._events):
            if event.type != _WORD_EVENT:
                continue
            index = int(np.searchsorted(begins, event.text_position, side="right")) - 1
            if 0 <= index < len(words) and starts[index] is None:
                starts[index] = self._first_sample(place)
        return starts

    def _first_sample(self, place: int) -> int:
        """First sample of the word whose event is at ``place``.

        espeak-ng queues a word's event before the last sound of the previous word when that sound (a
        liquid, a glide) is produced together with what follows. Such an event shares its sample with
        that sound's event, and the word starts at the next sound instead.
        """
        event = self._events[place]
        is_early = any(
            earlier.is_sound and earlier.sample == event.sample for earlier in self._events[:place]
        )
        if is_early:
            return next((later.sample for later in self._events[place + 1 :] if later.is_sound), event.sample)
        return event.sample


@contextmanager
def _engine(voice: Voice) -> Iterator[_Engine]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = (
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    )
    library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    try:
        yield _Engine(library, voice)
    finally:
        library.espeak_Terminate()
        _unload(library)


def _unload(library: Any) -> None:
    if os.name == "nt":
        _ctypes.FreeLibrary(library._handle)  # type: ignore[attr-defined]
    else:
        _ctypes.dlclose(library._handle)  # type: ignore[attr-defined]


def _initialise(library: Any, data_path: str) -> int:
    sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path.encode(), _PHONEME_EVENTS | _DONT_EXIT)
    if sample_rate <= 0:
        raise ConfigError(f"espeak-ng cannot read its data in {data_path}: reinstall espeakng-loader")
    return int(sample_rate)


@cache
def variants() -> tuple[str, ...]:
    """Names of the installed voice variants, sorted."""
    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return tuple(sorted(path.name for path in folder.iterdir()))


# Keeps the short link of _data_path alive until the process ends.
_links: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _data_path() -> str:
    """Where espeak-ng finds its data: through a short link when the installed path is too long for it."""
    path = espeakng_loader.get_data_path()
    if len(os.fsencode(path)) <= _MAX_DATA_PATH_BYTES:
        return path
    _links.append(tempfile.TemporaryDirectory(prefix="espeak-"))
    link = Path(_links[-1].name) / "espeak-ng-data"
    link.symlink_to(path, target_is_directory=True)
    return str(link)
