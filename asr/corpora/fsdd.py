"""Free Spoken Digit Dataset: 3000 clips of single English digits by six speakers, 8 kHz.

Official layout: ``recordings/{digit}_{speaker}_{index}.wav``. ``connected=True`` joins clips of one
speaker into strings of digits, a small task with real word boundaries to find.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from asr.audio import audio_info, load_audio
from asr.corpora.collect import (
    Entry,
    Exclusion,
    PreparedCorpus,
    Progress,
    Reason,
    collect,
    index_audio,
)
from asr.corpora.download import Archive
from asr.corpora.written import remove_written
from asr.errors import ConfigError, ManifestError
from asr.records import Utterance

ARCHIVES = (
    Archive("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"),
)
"""The site makes this archive on demand and publishes no checksum."""

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CLIP_NAME = re.compile(r"^(?P<digit>[0-9])_(?P<speaker>.+)_(?P<index>[0-9]+)$")

MIN_GAP_SECONDS, MAX_GAP_SECONDS = 0.03, 0.25
# Between clips: faint noise rather than digital silence, whose log energy would stand far out.
_GAP_NOISE_DB = -50.0
NO_SPEAKER = "none"
"""``test_speaker`` for no test set at all."""


@dataclass(frozen=True, slots=True)
class Joining:
    """How single digits are joined into strings of digits; ``ConfigError`` for impossible numbers."""

    seed: int = 0
    num_passes: int = 1
    min_digits: int = 3
    max_digits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min_digits <= self.max_digits:
            raise ConfigError(
                f"min_digits={self.min_digits} and max_digits={self.max_digits} must satisfy 1 <= min <= max"
            )
        if self.num_passes < 1:
            raise ConfigError(f"connected_passes={self.num_passes} must be at least 1")


def prepare(
    source: Path,
    output: Path,
    *,
    seed: int = 0,
    dev_speaker: str | None = None,
    test_speaker: str | None = None,
    connected: bool = False,
    connected_passes: int | None = None,
    min_digits: int | None = None,
    max_digits: int | None = None,
    progress: Progress | None = None,
) -> PreparedCorpus:
    """Read FSDD from ``source`` (the folder that holds ``recordings``, or a parent).

    Args:
        output: connected utterances are written below ``output/audio``.
        dev_speaker: held out for dev; default: the last but one by name. For leave-one-speaker-out,
            run it once per speaker.
        test_speaker: held out for test; default: the last by name that is not the dev speaker;
            ``none`` keeps everybody else in train.
        connected: join clips into utterances of ``min_digits`` (3) to ``max_digits`` (8) digits.
            Every clip is used exactly once per pass.
        connected_passes: how often the training clips are shuffled and joined (1); dev and test are
            joined once, so that no clip counts twice in a word error rate.

    Raises:
        ManifestError: when there are no recordings.
        ConfigError: for unknown speakers or impossible numbers of digits.
    """
    given = {"num_passes": connected_passes, "min_digits": min_digits, "max_digits": max_digits}
    joining = Joining(seed=seed, **{name: value for name, value in given.items() if value is not None})
    if not connected and joining != Joining(seed=seed):
        raise ConfigError("connected_passes, min_digits and max_digits need connected=true")
    entries, excluded = _list_clips(_find_recordings(source))
    collected = collect(entries, progress=progress)
    excluded = collected.excluded + excluded
    clips = collected.of("")
    dev, test = _held_out({clip.speaker for clip in clips}, dev_speaker, test_speaker)
    splits = {
        "train": [clip for clip in clips if clip.speaker not in (dev, test)],
        "dev": [clip for clip in clips if clip.speaker == dev],
        "test": [clip for clip in clips if clip.speaker == test],
    }
    notes = [f"dev is speaker {dev}, test is {f'speaker {test}' if test else 'not made'}, the others train"]
    if connected:
        remove_written(output)
        used = set()
        for split, members in splits.items():
            plan = joining if split == "train" else replace(joining, num_passes=1)
            splits[split] = join_clips(
                members, plan, output / "audio", progress, stage=f"joining digits for {split}"
            )
            used |= {clip_id for utterance in splits[split] for clip_id in utterance.extra["clips"]}
        excluded += [
            Exclusion(clip.id, Reason.LEFT_OVER, str(clip.audio_path), "the clips do not divide evenly")
            for clip in clips
            if clip.id not in used
        ]
        if joining.num_passes > 1:
            notes.append(f"train holds every clip {joining.num_passes} times, dev and test once")
    return PreparedCorpus(splits, excluded, notes)


def digit_groups(num_clips: int, min_digits: int, max_digits: int, rng: random.Random) -> list[int]:
    """Random group sizes within the bounds that use up ``num_clips`` exactly.

    Where no such sizes exist (11 clips in groups of exactly 5) as many clips as possible are used.
    """
    total = num_clips
    while total and not _fits(total, min_digits, max_digits):
        total -= 1
    sizes = []
    while total:
        possible = [
            size
            for size in range(min_digits, min(max_digits, total) + 1)
            if _fits(total - size, min_digits, max_digits)
        ]
        sizes.append(rng.choice(possible))
        total -= sizes[-1]
    return sizes


def _fits(count: int, smallest: int, largest: int) -> bool:
    """Whether ``count`` is a sum of numbers between ``smallest`` and ``largest``."""
    return -(-count // largest) * smallest <= count


def _find_recordings(source: Path) -> Path:
    below = [path for depth in ("", "*/", "*/*/") for path in sorted(source.glob(f"{depth}recordings"))]
    for candidate in (*below, source):
        if candidate.is_dir() and any(_CLIP_NAME.match(path.stem) for path in candidate.iterdir()):
            return candidate
    raise ManifestError(
        f"{source} does not look like FSDD: it has no recordings folder with files like 7_jackson_32.wav"
    )


def _list_clips(recordings: Path) -> tuple[list[Entry], list[Exclusion]]:
    index = index_audio(recordings)
    entries = []
    for stem, paths in index.paths_by_stem.items():
        match = _CLIP_NAME.match(stem)
        if match:
            word = DIGIT_WORDS[int(match["digit"])]
            entries.append(Entry(stem, str(paths[0]), paths[0], word, speaker=match["speaker"]))
    listed = {entry.id for entry in entries}
    return entries, index.unlisted(listed, "the name is not {digit}_{speaker}_{index}")


def _held_out(speakers: set[str], dev: str | None, test: str | None) -> tuple[str, str]:
    """The dev and the test speaker; the latter is empty for ``none``."""
    allowed_for_test = {*speakers, NO_SPEAKER}
    for option, name, allowed in (("dev_speaker", dev, speakers), ("test_speaker", test, allowed_for_test)):
        if name is not None and name not in allowed:
            raise ConfigError(f"{option}={name} is not one of the speakers {', '.join(sorted(speakers))}")
    if dev is not None and dev == test:
        raise ConfigError(f"dev_speaker and test_speaker are both {dev}: dev and test must not share a voice")
    num_needed = 2 if test == NO_SPEAKER else 3
    if len(speakers) < num_needed:
        raise ConfigError(
            f"{len(speakers)} speakers ({', '.join(sorted(speakers))}) are too few to hold out one for dev "
            "and one for test: give test_speaker=none, or use corpus=folder"
        )
    free = sorted(speakers - {dev, test})
    if test is None:
        test = free.pop()
    if dev is None:
        dev = free.pop()
    return dev, "" if test == NO_SPEAKER else test


def join_clips(
    clips: Sequence[Utterance],
    joining: Joining,
    folder: Path,
    progress: Progress | None = None,
    *,
    stage: str = "joining digits",
) -> list[Utterance]:
    """Join single digits into strings of digits, each of one speaker, written as FLAC below ``folder``."""
    by_speaker: dict[str, list[Utterance]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip)
    joined: list[Utterance] = []
    num_used = 0
    for speaker, own in sorted(by_speaker.items()):
        for pass_number in range(1, joining.num_passes + 1):
            # Speaker and pass alone seed it: a speaker sounds the same whatever split it falls into.
            rng = random.Random(f"{joining.seed}:{speaker}:{pass_number}")
            remaining = rng.sample(own, len(own))
            sizes = digit_groups(len(own), joining.min_digits, joining.max_digits, rng)
            for number, size in enumerate(sizes, start=1):
                group, remaining = remaining[:size], remaining[size:]
                target = folder / speaker / f"{speaker}_{pass_number}_{number:04d}.flac"
                joined.append(_join(group, target, rng))
                num_used += size
                if progress is not None:
                    progress(stage, num_used, len(clips) * joining.num_passes)
    return joined


def _join(clips: Sequence[Utterance], target: Path, rng: random.Random) -> Utterance:
    """One recording of ``clips`` with a gap of random length between any two, at the first clip's rate."""
    sample_rate = audio_info(clips[0].audio_path).sample_rate
    waveforms = [load_audio(clip.audio_path, sample_rate).numpy() for clip in clips]
    speech_rms = float(np.sqrt(np.mean(np.concatenate(waveforms) ** 2)))
    noise_rms = speech_rms * 10 ** (_GAP_NOISE_DB / 20)
    noise = np.random.default_rng(rng.getrandbits(64))
    pieces = [waveforms[0]]
    for waveform in waveforms[1:]:
        num_samples = round(rng.uniform(MIN_GAP_SECONDS, MAX_GAP_SECONDS) * sample_rate)
        pieces += [noise_rms * noise.standard_normal(num_samples, dtype=np.float32), waveform]
    samples = np.concatenate(pieces)
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, samples, sample_rate, subtype="PCM_16")
    return Utterance(
        id=target.stem,
        audio_file=str(target.absolute()),
        duration_seconds=len(samples) / sample_rate,
        text=" ".join(clip.text for clip in clips),
        speaker=clips[0].speaker,
        extra={"clips": [clip.id for clip in clips]},
    )
