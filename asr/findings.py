"""Everything that is wrong or odd about a corpus, found by comparing its utterances with each other.

What a single utterance cannot be learned from is decided by :mod:`asr.dataset` and
:mod:`asr.inspection`; here their verdicts are collected, and joined by what only the whole shows:
recordings, sentences and speakers that two splits share, and rates of speech unlike all others.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asr.dataset import DURATION_TOLERANCE_SECONDS, Example, Exclusion, Selection
from asr.inspection import AudioFacts
from asr.records import Utterance

Severity = Literal["error", "warning", "info"]

# Of the spread of log(characters per second): a robust z-score as high as this is no accident.
_OUTLIER_DEVIATIONS = 6.0
# No outlier within this factor of the median: people do speak half or twice as fast.
_OUTLIER_FACTOR = 2.5
_MIN_UTTERANCES_FOR_OUTLIERS = 30
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked for: what it means, and what to do about it."""

    name: str
    severity: Severity
    meaning: str
    remedy: str


_ALL_CHECKS = (
    Check("unreadable", "error", "no audio file, or not audio", "restore or convert the file"),
    Check("outside_file", "error", "described as longer than its file", "correct offset or duration"),
    Check("damaged", "error", "cannot be decoded to its end", "copy or record it again"),
    Check("not_finite", "error", "NaN or infinite samples", "write the file anew"),
    Check("silent", "error", "no sound at all", "find the recording, or leave the line out"),
    Check("empty_text", "error", "nothing is said in it", "transcribe it, or leave the line out"),
    Check(
        "too_few_frames",
        "error",
        "more labels than the model's frames can carry",
        "smaller model.conv_strides in time, larger tokens; or the transcript belongs elsewhere",
    ),
    Check(
        "unknown_characters",
        "error",
        "characters that the tokenizer does not know",
        "spell them out, or train the tokenizer on text that has them",
    ),
    Check("too_short", "error", "shorter than data.min_seconds", "lower data.min_seconds"),
    Check("too_long", "error", "longer than data.max_seconds", "cut it up, or raise data.max_seconds"),
    Check(
        "audio_in_several_splits",
        "warning",
        "the same recording in two splits: the WER is too good",
        "keep it in one split: drop=[audio_in_several_splits]",
    ),
    Check("duplicate_audio", "warning", "the same recording twice", "keep one: drop=[duplicate_audio]"),
    Check(
        "speaker_in_several_splits",
        "warning",
        "the voice is known from another split",
        "split by speaker, or call it the WER of known voices",
    ),
    Check(
        "speaking_rate",
        "warning",
        "far more or fewer characters per second than the others",
        "listen: the transcript may belong to other audio",
    ),
    Check(
        "shorter_than_file",
        "warning",
        "the file goes on after the described end",
        "correct the duration if the whole file is meant",
    ),
    Check("clipped", "warning", "overdriven: samples at full scale", "record lower; a few do no harm"),
    Check("dc_offset", "warning", "the zero line is shifted", "remove the offset, e.g. with sox highpass 10"),
    Check(
        "lower_rate",
        "warning",
        "recorded below features.sample_rate: the upper band is empty",
        "set features.sample_rate to the corpus's rate",
    ),
    Check(
        "several_channels",
        "warning",
        "more than one channel: they are averaged",
        "split the channels first if each is a speaker of its own",
    ),
    Check(
        "text_in_several_splits",
        "info",
        "the sentence is also in another split",
        "nothing in a small domain; elsewhere split by text",
    ),
)
CHECKS: Mapping[str, Check] = {check.name: check for check in _ALL_CHECKS}
"""By name, the gravest first."""

_NEEDED_FOR_LEARNING_ONLY = frozenset(
    {"silent", "empty_text", "too_few_frames", "unknown_characters", "too_short", "too_long"}
)
_PROTECTED_FIRST = ("test", "dev", "train")  # what two splits share is held against the later of them


@dataclass(frozen=True, slots=True)
class ExaminedSplit:
    """A split with what is known of its audio, and which of its utterances are used for what.

    ``facts`` is None where no audio was looked at.
    """

    name: str
    utterances: Sequence[Utterance]
    facts: AudioFacts | None
    selection: Selection


@dataclass(frozen=True, slots=True)
class Finding:
    """One check that one utterance did not pass."""

    check: str
    severity: Severity
    split: str
    id: str
    detail: str
    duration_seconds: float


def find_problems(splits: Sequence[ExaminedSplit], sample_rate: int) -> list[Finding]:
    """All findings, ordered by check (see ``CHECKS``), then by split and place in the manifest.

    Args:
        sample_rate: the front-end's, in Hz.
    """
    findings = [finding for split in splits for finding in _verdicts(split)]
    findings += [finding for split in splits for finding in _audio_oddities(split, sample_rate)]
    findings += _ends_before_file(splits)
    findings += _shared_audio(splits)
    findings += _shared_texts_and_speakers(splits)
    findings += _odd_rates(splits)
    order = {name: rank for rank, name in enumerate(CHECKS)}
    return sorted(findings, key=lambda finding: order[finding.check])  # stable


def severity(check: str, split: str) -> Severity:
    """An utterance of dev or test that cannot be learned from still counts in the WER."""
    if check in _NEEDED_FOR_LEARNING_ONLY and split != "train":
        return "warning"
    return CHECKS[check].severity


def characters_per_second(examples: Sequence[Example]) -> NDArray[np.float64]:
    """``(examples,)``: the rate of speech, by normalised text."""
    rates = (len(example.text) / example.utterance.duration_seconds for example in examples)
    return np.fromiter(rates, np.float64, len(examples))


def _finding(check: str, split: str, utterance: Utterance, detail: str) -> Finding:
    return Finding(check, severity(check, split), split, utterance.id, detail, utterance.duration_seconds)


def _verdicts(split: ExaminedSplit) -> Iterator[Finding]:
    """What was left out, and what is scored but not learned from."""
    exclusions: list[Exclusion] = [*split.selection.exclusions, *split.selection.without_target]
    for item in exclusions:
        level = severity(item.problem, split.name)
        yield Finding(item.problem, level, split.name, item.id, item.reason, item.duration_seconds)


def _audio_oddities(split: ExaminedSplit, sample_rate: int) -> Iterator[Finding]:
    if split.facts is None:
        return
    facts = split.facts
    excluded = {(item.id, item.problem) for item in split.selection.exclusions}
    for position, problems in sorted(facts.problems.items()):
        utterance = split.utterances[position]
        for problem in problems:
            if (utterance.id, problem.name) not in excluded:
                yield _finding(problem.name, split.name, utterance, problem.detail)
    lower = (facts.sample_rates > 0) & (facts.sample_rates < sample_rate)
    for position in np.flatnonzero(lower).tolist():
        detail = f"{facts.sample_rates[position]} Hz, features.sample_rate={sample_rate}"
        yield _finding("lower_rate", split.name, split.utterances[position], detail)
    for position in np.flatnonzero(facts.num_channels > 1).tolist():
        detail = f"{facts.num_channels[position]} channels"
        yield _finding("several_channels", split.name, split.utterances[position], detail)


def _ends_before_file(splits: Sequence[ExaminedSplit]) -> Iterator[Finding]:
    """Utterances that are the only one of their file, from its beginning, but not to its end."""
    suspects: list[tuple[str, Utterance, float]] = []
    for split in splits:
        if split.facts is None:
            continue
        described = np.array([(u.duration_seconds, u.offset_seconds) for u in split.utterances])
        longer = split.facts.file_seconds > described[:, 0] + DURATION_TOLERANCE_SECONDS
        for position in np.flatnonzero(longer & (described[:, 1] == 0)).tolist():
            seconds = float(split.facts.file_seconds[position])
            suspects.append((split.name, split.utterances[position], seconds))
    if not suspects:
        return
    uses = Counter(utterance.audio_file for split in splits for utterance in split.utterances)
    for name, utterance, seconds in suspects:
        if uses[utterance.audio_file] == 1:
            detail = f"described as {utterance.duration_seconds:.2f} s, the file has {seconds:.2f} s"
            yield _finding("shorter_than_file", name, utterance, detail)


def _used(split: ExaminedSplit) -> Iterator[tuple[int, Example]]:
    """The utterances in use with their positions in the manifest."""
    position = 0
    for example in split.selection.examples:
        while split.utterances[position] is not example.utterance:
            position += 1
        yield position, example


def _in_protected_order(splits: Sequence[ExaminedSplit]) -> list[ExaminedSplit]:
    return sorted(splits, key=lambda split: _PROTECTED_FIRST.index(split.name))


def _shared_audio(splits: Sequence[ExaminedSplit]) -> Iterator[Finding]:
    """By a hash of the samples where all were decoded, else by file and place in it."""
    is_decoded = all(split.facts is not None and split.facts.is_decoded for split in splits)
    ordered = _in_protected_order(splits)
    # Of millions of recordings few are alike: only those of equal numbers are compared by their keys.
    numbers = np.concatenate([_audio_numbers(split, is_decoded) for split in ordered])
    repeated = _repeated(numbers)
    first: dict[bytes | tuple[str, float, float], tuple[str, Example]] = {}
    place = 0
    for split in ordered:
        for position, example in _used(split):
            place += 1
            if not repeated[place - 1]:
                continue
            utterance = example.utterance
            key: bytes | tuple[str, float, float]
            if is_decoded and split.facts is not None:
                if any(problem.name == "silent" for problem in split.facts.problems.get(position, ())):
                    continue  # all silence is alike
                key = split.facts.digests[position].tobytes()
            else:
                key = (utterance.audio_file, utterance.offset_seconds, utterance.duration_seconds)
            other_split, other = first.setdefault(key, (split.name, example))
            if other is example:
                continue
            check = "duplicate_audio" if other_split == split.name else "audio_in_several_splits"
            detail = f"same audio as {other_split} {other.utterance.id}"
            if other.text != example.text:
                detail += f", with another text: {_shortened(example.text)!r} / {_shortened(other.text)!r}"
            yield _finding(check, split.name, utterance, detail)


def _audio_numbers(split: ExaminedSplit, is_decoded: bool) -> NDArray[np.int64]:
    """``(examples,)``: equal for equal recordings, and rarely for others."""
    examples = split.selection.examples
    if is_decoded and split.facts is not None:
        positions = np.fromiter((position for position, _ in _used(split)), np.int64, len(examples))
        return split.facts.digests[positions].view(np.int64)[:, 0]
    keys = (
        (e.utterance.audio_file, e.utterance.offset_seconds, e.utterance.duration_seconds) for e in examples
    )
    return np.fromiter(map(hash, keys), np.int64, len(examples))


def _repeated(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of them occur more than once."""
    order = np.argsort(numbers, kind="stable")
    same = np.diff(numbers[order]) == 0
    repeated = np.zeros(len(numbers), np.bool_)
    repeated[order[1:][same]] = repeated[order[:-1][same]] = True
    return repeated


def _shared_texts_and_speakers(splits: Sequence[ExaminedSplit]) -> Iterator[Finding]:
    """What dev has in common with train, and test with either: held against dev and test, which measure."""
    ordered = [split for name in reversed(_PROTECTED_FIRST) for split in splits if split.name == name]
    measured = {
        example.text for split in ordered if split.name != "train" for example in split.selection.examples
    }
    texts: dict[str, str] = {}
    speakers: dict[str, str] = {}
    for split in ordered:
        for example in split.selection.examples:
            utterance = example.utterance
            if example.text in texts:
                detail = f"also in {texts[example.text]}: {_shortened(example.text)}"
                yield _finding("text_in_several_splits", split.name, utterance, detail)
            if utterance.speaker in speakers:
                detail = f"speaker {utterance.speaker} is also in {speakers[utterance.speaker]}"
                yield _finding("speaker_in_several_splits", split.name, utterance, detail)
        for example in split.selection.examples:
            if example.text and example.text in measured:  # the others are not asked for
                texts.setdefault(example.text, split.name)
            if example.utterance.speaker:
                speakers.setdefault(example.utterance.speaker, split.name)


def _odd_rates(splits: Sequence[ExaminedSplit]) -> Iterator[Finding]:
    """Rates far from the median of the training set, in the logarithm, against its median deviation."""
    train = next((split for split in splits if split.name == "train"), None)
    if train is None or len(train.selection.examples) < _MIN_UTTERANCES_FOR_OUTLIERS:
        return
    logs = np.log(characters_per_second(train.selection.examples))
    median = float(np.median(logs))
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(logs - median)))
    limit = max(_OUTLIER_DEVIATIONS * sigma, math.log(_OUTLIER_FACTOR))
    for split in splits:
        spoken = [example for example in split.selection.examples if example.text]
        rates = characters_per_second(spoken)
        for position in np.flatnonzero(np.abs(np.log(rates) - median) > limit).tolist():
            detail = (
                f"{rates[position]:.1f} characters per second, where the median of train is "
                f"{math.exp(median):.1f}: {_shortened(spoken[position].text)}"
            )
            yield _finding("speaking_rate", split.name, spoken[position].utterance, detail)


def _shortened(text: str, num_characters: int = 50) -> str:
    return text if len(text) <= num_characters else text[: num_characters - 1] + "…"
