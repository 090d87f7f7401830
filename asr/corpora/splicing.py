"""New utterances out of others: recordings cut between words, and pieces of one speaker joined.

A model of little data learns which words follow which instead of how they sound, and hears rare words too
seldom. Both change when pieces of one to four words meet in new orders and rare words are drawn more often. Cutting and
joining along a forced alignment: Lam et al., "On-the-fly aligned data augmentation" (Interspeech 2021).
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.audio import load_audio
from asr.corpora.collect import Progress
from asr.errors import ManifestError
from asr.records import Utterance

MAX_PIECE_WORDS = 4
MIN_PIECES, MAX_PIECES = 2, 4
RARITY = 0.5
"""A word that is ``n`` times rarer is drawn ``n ** RARITY`` times as often as chance would."""
FADE_SECONDS = 0.005  # at both ends of a piece: no click where two meet
_SPLICED_ID = re.compile(r"spliced_\d{6,}")
_ENERGY_SECONDS = 0.020
_QUIET = 1.5  # times the lowest energy between two words is as good a place to cut

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CutUtterance:
    """Word ``i`` is heard from ``borders[i]`` to ``borders[i + 1]``, in seconds from the utterance's start."""

    utterance: Utterance
    words: tuple[str, ...]
    borders: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """The words from ``start`` to ``stop`` (exclusive) of a recording."""

    source: CutUtterance
    start: int
    stop: int

    @property
    def words(self) -> tuple[str, ...]:
        return self.source.words[self.start : self.stop]

    def load(self, sample_rate: int) -> FloatArray:
        """``(samples,)``, faded in and out."""
        begin, end = self.source.borders[self.start], self.source.borders[self.stop]
        utterance = self.source.utterance
        waveform: FloatArray = load_audio(
            utterance.audio_path,
            sample_rate,
            offset_seconds=utterance.offset_seconds + begin,
            duration_seconds=end - begin,
        ).numpy()
        num_faded = min(round(FADE_SECONDS * sample_rate), len(waveform) // 2)
        ramp = np.linspace(0, 1, num_faded, dtype=np.float32)
        waveform[:num_faded] *= ramp
        waveform[len(waveform) - num_faded :] *= ramp[::-1]
        return waveform


def quietest_sample(waveform: FloatArray, start: int, stop: int, sample_rate: int) -> int:
    """Where to cut between ``start`` and ``stop``: the middle of what is nearly as quiet as the quietest place."""
    window = max(1, round(_ENERGY_SECONDS * sample_rate))
    before = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    centres = np.arange(start, stop)
    first, last = (centres - window // 2).clip(0), (centres + window // 2 + 1).clip(max=len(waveform))
    energies = (before[last] - before[first]) / (last - first)
    quiet = np.flatnonzero(energies <= _QUIET * energies.min())
    return start + int(quiet[len(quiet) // 2])


def draw(sources: Sequence[CutUtterance], num_utterances: int, seed: int) -> list[tuple[Piece, ...]]:
    """The pieces of new utterances, each of one speaker; rare words come more often than chance would have it."""
    rng = random.Random(seed)
    counts = Counter(word for source in sources for word in source.words)
    rarity = {word: count**-RARITY for word, count in counts.items()}
    weights = [max(rarity[word] for word in source.words) for source in sources]
    of_speaker: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        of_speaker.setdefault(source.utterance.speaker, []).append(number)

    def piece_of(numbers: Sequence[int]) -> Piece:
        (number,) = rng.choices(numbers, [weights[other] for other in numbers])
        words = sources[number].words
        (word,) = rng.choices(range(len(words)), [rarity[word] for word in words])
        num_words = rng.randint(1, MAX_PIECE_WORDS)
        start = max(0, word - rng.randrange(num_words))
        return Piece(sources[number], start, min(len(words), start + num_words))

    drawn = []
    for _ in range(num_utterances):
        first = piece_of(range(len(sources)))
        same_speaker = of_speaker[first.source.utterance.speaker]
        pieces = [first, *(piece_of(same_speaker) for _ in range(rng.randint(MIN_PIECES, MAX_PIECES) - 1))]
        rng.shuffle(pieces)
        drawn.append(tuple(pieces))
    return drawn


def is_spliced(utterance: Utterance) -> bool:
    """Whether :func:`splice` made it, by what it says of itself or by its id."""
    return "spliced_from" in utterance.extra or _SPLICED_ID.fullmatch(utterance.id) is not None


def splice(
    sources: Sequence[CutUtterance],
    num_utterances: int,
    folder: Path,
    *,
    sample_rate: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Utterance]:
    """Utterances joined of pieces that :func:`draw` chooses, written as FLAC below ``folder``.

    ``extra["spliced_from"]`` names what they are made of.

    Raises:
        AudioError: a recording can no longer be read.
        ManifestError: a file cannot be written.
    """
    spliced = []
    for number, pieces in enumerate(draw(sources, num_utterances, seed), start=1):
        samples = np.concatenate([piece.load(sample_rate) for piece in pieces])
        target = folder / f"spliced_{number:06d}.flac"
        _write(target, samples, sample_rate)
        spliced.append(
            Utterance(
                id=target.stem,
                audio_file=str(target.absolute()),
                duration_seconds=len(samples) / sample_rate,
                text=" ".join(word for piece in pieces for word in piece.words),
                speaker=pieces[0].source.utterance.speaker,
                extra={"spliced_from": [piece.source.utterance.id for piece in pieces]},
            )
        )
        if progress is not None:
            progress("joining words anew", number, num_utterances)
    return spliced


def _write(target: Path, samples: FloatArray, sample_rate: int) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples, sample_rate, subtype="PCM_16")
    except (OSError, soundfile.SoundFileError) as error:
        raise ManifestError(f"cannot write {target}: {error}") from None
