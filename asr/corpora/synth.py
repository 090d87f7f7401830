"""The demo corpus: synthetic speech that needs no download and is the same for the same seed.

Layout of the output folder: ``train.jsonl``, ``dev.jsonl``, ``test.jsonl``, the recordings in
``audio/<split>/<id>.flac`` and, written last, the marker ``corpus.json`` with the parameters and the
SHA-256 of every file. A folder whose marker is missing, or does not match, is built again.

Dev and test hold voices (espeak-ng variants) and sentences that training does not. Manifest lines carry
``words``, the true word times ``[[word, start_seconds, end_seconds], …]``, and what the speaker and the
recording are like: ``accent``, ``variant``, ``words_per_minute``, ``pitch``, ``snr_db``, ``level_db``.
"""

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.corpora.espeak import Speech, Voice, accents, speak
from asr.corpora.grammar import DEFAULT_GRAMMAR, GRAMMARS, split_sentences
from asr.errors import ConfigError, ManifestError
from asr.manifest import write_manifest
from asr.records import Utterance

logger = logging.getLogger(__name__)

DEFAULT_NUM_UTTERANCES = 5000
DEFAULT_NUM_SPEAKERS = 200
SAMPLE_RATE = 16_000
SPLITS = ("train", "dev", "test")
MARKER_NAME = "corpus.json"

# Raise this whenever the same seed gives other files than before: existing corpora are then rebuilt.
_GENERATOR_VERSION = 1
_HELD_OUT_UTTERANCES = 0.075  # of all, in dev and in test each
_HELD_OUT_SPEAKERS = 0.1
_MAX_HELD_OUT_VARIANTS = 4  # in dev and in test each: training needs the variety more
_NUM_WORKERS = 2
# espeak-ng's human-sounding variants. Left out are robots, whispers and Klatt synthesisers, variants that
# are muffled (1 to 4 kHz more than 18 dB below the whole) drawling or hurried, and near twins of another one: a
# twin in training would make a held-out voice a known one.
_LOW_VARIANTS = "m1 m2 m3 m4 m5 m6 m7 croak Alex Andy Denis Gene Mario Michael john max pablo rob victor"
_HIGH_VARIANTS = "f1 f2 f3 f4 f5 Alicia Annie aunty grandma linda shelby"
_PEAK_LIMIT = 0.95


class SplitSummary(NamedTuple):
    """Counts of one split."""

    num_utterances: int
    num_speakers: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """What a demo corpus holds. ``was_built`` is false where a complete corpus was already there."""

    output: Path
    num_words: int
    splits: Mapping[str, SplitSummary]
    was_built: bool

    @property
    def num_utterances(self) -> int:
        return sum(split.num_utterances for split in self.splits.values())

    @property
    def num_speakers(self) -> int:
        return sum(split.num_speakers for split in self.splits.values())

    @property
    def duration_seconds(self) -> float:
        return sum(split.duration_seconds for split in self.splits.values())


class _Parameters(NamedTuple):
    num_utterances: int
    num_speakers: int
    seed: int
    grammar: str


class _Speaker(NamedTuple):
    id: str
    voice: Voice


class _Plan(NamedTuple):
    """One utterance to be made; ``number`` counts through the whole corpus."""

    number: int
    split: str
    sentence: str
    speaker: _Speaker

    @property
    def id(self) -> str:
        return f"synth-{self.number:05d}"

    def audio_path(self, output: Path) -> Path:
        return output / "audio" / self.split / f"{self.id}.flac"


def synthesise_corpus(
    output: str | Path,
    *,
    num_utterances: int = DEFAULT_NUM_UTTERANCES,
    num_speakers: int = DEFAULT_NUM_SPEAKERS,
    seed: int = 0,
    grammar: str = DEFAULT_GRAMMAR,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusSummary:
    """Make the demo corpus in ``output``, unless the same corpus is already there and intact.

    Args:
        output: folder to write to; files of an earlier demo corpus in it are replaced, others are kept.
        num_utterances: of all splits together; dev and test get 7.5 % each.
        num_speakers: of all splits together; dev and test get 10 % each.
        seed: the same seed gives the same files, bit by bit.
        grammar: of the sentences, one of ``GRAMMARS``.
        progress: called with the number of utterances made and the total.

    Raises:
        ConfigError: too few or too many utterances or speakers, a negative seed, or an unknown grammar.
        ManifestError: the folder cannot be written to.
    """
    output = Path(output)
    parameters = _Parameters(num_utterances, num_speakers, seed, grammar)
    defect = _find_defect(output, parameters)
    if defect is None:
        return _summary_from_marker(output)
    plans = _make_plans(parameters)
    if output.exists():
        logger.info("building the demo corpus: %s", defect)
    try:
        return _build(output, parameters, plans, progress)
    except OSError as error:
        raise ManifestError(
            f"{output}: cannot write the demo corpus ({error.strerror or error}); "
            "choose another output folder"
        ) from error


def is_complete(
    output: str | Path,
    *,
    num_utterances: int = DEFAULT_NUM_UTTERANCES,
    num_speakers: int = DEFAULT_NUM_SPEAKERS,
    seed: int = 0,
    grammar: str = DEFAULT_GRAMMAR,
) -> bool:
    """Whether ``output`` holds exactly this corpus, every file of it unaltered."""
    parameters = _Parameters(num_utterances, num_speakers, seed, grammar)
    return find_defect(output, **parameters._asdict()) is None


def find_defect(
    output: str | Path,
    *,
    num_utterances: int = DEFAULT_NUM_UTTERANCES,
    num_speakers: int = DEFAULT_NUM_SPEAKERS,
    seed: int = 0,
    grammar: str = DEFAULT_GRAMMAR,
) -> str | None:
    """Why :func:`is_complete` is false, in one line that names the file; ``None`` where it is true."""
    return _find_defect(Path(output), _Parameters(num_utterances, num_speakers, seed, grammar))


# --- who says what -----------------------------------------------------------------------------------


def _make_plans(parameters: _Parameters) -> list[_Plan]:
    num_utterances, num_speakers, seed, grammar = parameters
    if num_speakers < len(SPLITS):
        raise ConfigError(f"num_speakers={num_speakers}: every split needs one, so ask for 3 or more")
    if num_utterances < num_speakers:
        raise ConfigError(
            f"num_utterances={num_utterances} is fewer than num_speakers={num_speakers}: "
            "ask for at least one utterance per speaker"
        )
    if seed < 0:
        raise ConfigError(f"seed={seed}: choose 0 or above")
    if grammar not in GRAMMARS:
        raise ConfigError(f"grammar={grammar} is none of {', '.join(GRAMMARS)}")
    rng = random.Random(seed)
    speakers = _make_speakers(num_speakers, rng)
    num_held_out = {
        split: max(len(speakers[split]), round(_HELD_OUT_UTTERANCES * num_utterances))
        for split in ("dev", "test")
    }
    num_train = num_utterances - sum(num_held_out.values())
    sentences = split_sentences(num_train, num_held_out["dev"], num_held_out["test"], rng, grammar)
    plans: list[_Plan] = []
    for split in SPLITS:
        for index, sentence in enumerate(getattr(sentences, split)):
            speaker = speakers[split][index % len(speakers[split])]
            plans.append(_Plan(len(plans), split, sentence, speaker))
    return plans


def _make_speakers(num_speakers: int, rng: random.Random) -> dict[str, list[_Speaker]]:
    """Speakers per split, about a third of them with high voices; no variant is heard in two splits."""
    num_held_out = max(1, round(_HELD_OUT_SPEAKERS * num_speakers))
    counts = {"dev": num_held_out, "test": num_held_out, "train": num_speakers - 2 * num_held_out}
    low = _shuffled(_LOW_VARIANTS.split(), rng)
    high = _shuffled(_HIGH_VARIANTS.split(), rng)
    speakers: dict[str, list[_Speaker]] = {}
    for split in ("dev", "test"):
        num_variants = min(counts[split], _MAX_HELD_OUT_VARIANTS)
        num_high = (num_variants + 1) // 3
        pool = [high.pop() for _ in range(num_high)] + [low.pop() for _ in range(num_variants - num_high)]
        speakers[split] = _combine(pool, counts[split], split, rng)
    speakers["train"] = _combine(_shuffled(low + high, rng), counts["train"], "train", rng)
    return speakers


def _combine(variants: list[str], count: int, split: str, rng: random.Random) -> list[_Speaker]:
    """``count`` distinct pairs of variant and accent, each variant used as often as the others."""
    names = _shuffled(accents(), rng)
    if count > len(variants) * len(names):
        raise ConfigError(
            f"the demo corpus has too few voices for {count} {split} speakers: lower num_speakers"
        )
    speakers = []
    for index in range(count):
        turn, place = divmod(index, len(variants))
        voice = Voice(
            accent=names[(place + turn) % len(names)],
            variant=variants[place],
            words_per_minute=rng.randint(130, 180),
            pitch=rng.randint(38, 62),
            pitch_range=rng.randint(30, 70),
        )
        speakers.append(_Speaker(f"{voice.accent}-{voice.variant}", voice))
    return speakers


def _shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(names, len(names))


# --- one recording -----------------------------------------------------------------------------------


def _make_utterance(plan: _Plan, output: Path, seed: int) -> Utterance:
    """Speak, place in a noisy recording at 16 kHz, write FLAC."""
    rng = np.random.default_rng([seed, plan.number])
    voice = plan.speaker.voice
    speech = speak(plan.sentence, voice)
    lead_seconds, tail_seconds = rng.uniform(0.1, 0.3, 2)
    level_db, snr_db = rng.uniform(-32.0, -18.0), rng.uniform(20.0, 40.0)
    waveform = _resample(speech)
    waveform *= 10 ** (level_db / 20) / _rms(waveform)
    lead_samples, tail_samples = round(lead_seconds * SAMPLE_RATE), round(tail_seconds * SAMPLE_RATE)
    recording = np.pad(waveform, (lead_samples, tail_samples))
    noise = _coloured_noise(len(recording), rng)
    recording += noise * 10 ** ((level_db - snr_db) / 20)
    recording *= min(1.0, _PEAK_LIMIT / np.abs(recording).max())
    path = plan.audio_path(output)
    soundfile.write(path, recording, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    offset_seconds = lead_samples / SAMPLE_RATE
    return Utterance(
        id=plan.id,
        audio_file=str(path),
        duration_seconds=len(recording) / SAMPLE_RATE,
        text=plan.sentence.lower(),
        speaker=plan.speaker.id,
        extra={
            "accent": voice.accent,
            "variant": voice.variant,
            "words_per_minute": voice.words_per_minute,
            "pitch": voice.pitch,
            "snr_db": round(snr_db, 1),
            "level_db": round(level_db, 1),
            "words": [
                [word, round(start + offset_seconds, 4), round(end + offset_seconds, 4)]
                for word, start, end in speech.words
            ],
        },
    )


def _resample(speech: Speech) -> NDArray[np.float64]:
    """To 16 kHz, by cutting the spectrum at 8 kHz: exact for a whole utterance, and cheap.

    The utterance is first padded with silence to a length that has a whole number of samples at both
    rates, and so that its end cannot ring into its start.
    """
    step = speech.sample_rate // np.gcd(speech.sample_rate, SAMPLE_RATE)
    num_steps = -(-len(speech.waveform) // step) + 4
    padded = np.zeros(num_steps * step)
    padded[: len(speech.waveform)] = speech.waveform
    num_samples = len(padded) * SAMPLE_RATE // speech.sample_rate
    spectrum = np.fft.rfft(padded)[: num_samples // 2 + 1]
    waveform = np.fft.irfft(spectrum, num_samples) * (num_samples / len(padded))
    return np.asarray(waveform[: round(len(speech.waveform) * SAMPLE_RATE / speech.sample_rate)])


def _coloured_noise(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Stationary noise of power 1, between white and brown: power falls as 1 / frequency ** (0 to 2)."""
    exponent = rng.uniform(0.0, 2.0)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.arange(len(spectrum), dtype=np.float64) * SAMPLE_RATE / num_samples
    # Flat below 50 Hz, where a microphone hears nothing more.
    spectrum *= np.maximum(frequency, 50.0) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, num_samples)
    return np.asarray(noise / _rms(noise))


def _rms(waveform: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


# --- the folder --------------------------------------------------------------------------------------


def _build(
    output: Path,
    parameters: _Parameters,
    plans: list[_Plan],
    progress: Callable[[int, int], None] | None,
) -> CorpusSummary:
    # From here to the last line the folder has no marker: an interrupted build cannot pass for a corpus.
    for name in (MARKER_NAME, *(f"{split}.jsonl" for split in SPLITS)):
        (output / name).unlink(missing_ok=True)
    for split in SPLITS:
        (output / "audio" / split).mkdir(parents=True, exist_ok=True)
    utterances: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        made = pool.map(lambda plan: _make_utterance(plan, output, parameters.seed), plans)
        for plan, utterance in zip(plans, made, strict=True):
            utterances[plan.split].append(utterance)
            if progress is not None:
                progress(plan.number + 1, len(plans))
    _remove_leftovers(output, plans)
    for split in SPLITS:
        write_manifest(output / f"{split}.jsonl", utterances[split])
    summary = _summarise(output, utterances)
    files = [output / f"{split}.jsonl" for split in SPLITS] + [plan.audio_path(output) for plan in plans]
    _write_marker(output, parameters, summary, files)
    return summary


def _remove_leftovers(output: Path, plans: list[_Plan]) -> None:
    """Remove recordings of an earlier demo corpus; files that are not ours stay."""
    wanted = {plan.audio_path(output) for plan in plans}
    for split in SPLITS:
        for path in (output / "audio" / split).glob("synth-*.flac"):
            if path not in wanted:
                path.unlink()


def _summarise(output: Path, utterances: Mapping[str, list[Utterance]]) -> CorpusSummary:
    return CorpusSummary(
        output=output,
        num_words=len({word for split in utterances.values() for u in split for word in u.text.split()}),
        splits={
            split: SplitSummary(
                num_utterances=len(members),
                num_speakers=len({utterance.speaker for utterance in members}),
                duration_seconds=sum(utterance.duration_seconds for utterance in members),
            )
            for split, members in utterances.items()
        },
        was_built=True,
    )


def _write_marker(
    output: Path, parameters: _Parameters, summary: CorpusSummary, files: Iterable[Path]
) -> None:
    marker = {
        "generator": "asr.corpora.synth",
        "version": _GENERATOR_VERSION,
        "parameters": parameters._asdict(),
        "num_words": summary.num_words,
        "splits": {name: split._asdict() for name, split in summary.splits.items()},
        "sha256": {path.relative_to(output).as_posix(): _sha256(path) for path in files},
    }
    temporary = output / f".{MARKER_NAME}.tmp"
    temporary.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output / MARKER_NAME)


def _find_defect(output: Path, parameters: _Parameters) -> str | None:
    path = output / MARKER_NAME
    try:
        marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # Older markers do not name the grammar, of which there was one.
        found = {"version": marker["version"], "grammar": DEFAULT_GRAMMAR, **marker["parameters"]}
        checksums = dict(marker["sha256"])
    except FileNotFoundError:
        return f"{path} is missing: the corpus was never finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read ({error})"
    wanted = {"version": _GENERATOR_VERSION, **parameters._asdict()}
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{path} says {name}={found.get(name)}, wanted is {value}"
    for relative, checksum in checksums.items():
        try:
            if _sha256(output / relative) != checksum:
                return f"{output / relative} was altered or is incomplete"
        except OSError as error:
            return f"{output / relative} cannot be read ({error.strerror})"
    return None


def _summary_from_marker(output: Path) -> CorpusSummary:
    marker = json.loads((output / MARKER_NAME).read_text(encoding="utf-8"))
    return CorpusSummary(
        output=output,
        num_words=marker["num_words"],
        splits={name: SplitSummary(**split) for name, split in marker["splits"].items()},
        was_built=False,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
