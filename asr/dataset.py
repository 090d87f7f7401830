"""Utterances → tensors; and which utterances can be learned from at all."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import eq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from asr.audio import AudioInfo, audio_info, file_of, load_audio
from asr.augment import WaveformAugmenter
from asr.errors import AudioError
from asr.records import Batch, Problem, Utterance
from asr.sampler import Pick
from asr.tokenizer import Tokenizer

# Manifests round durations; files that differ by more than this are not the ones described.
DURATION_TOLERANCE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance with its normalised text; one that is not learnable is scored, but has no target."""

    utterance: Utterance
    text: str
    is_learnable: bool = True


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An utterance that was left out, and why: the name of the problem, and a sentence."""

    id: str
    problem: str
    reason: str
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Every utterance of a manifest is in exactly one of ``examples`` and ``exclusions``.

    ``without_target`` says which of the examples are scored but cannot be learned from, and why.
    """

    examples: list[Example]
    exclusions: list[Exclusion]
    without_target: list[Exclusion] = field(default_factory=list)


def exclude(utterance: Utterance, problem: Problem) -> Exclusion:
    return Exclusion(utterance.id, problem.name, problem.detail, utterance.duration_seconds)


def select_learnable(readable: Selection, reasons: Callable[[Example], Problem | None]) -> Selection:
    """For training: of the readable examples, those that CTC can learn from.

    Args:
        reasons: why an example cannot be learned from, or None (see :func:`unlearnable_reason`).
    """
    examples: list[Example] = []
    exclusions = list(readable.exclusions)
    for example in readable.examples:
        reason = reasons(example)
        if reason is None:
            examples.append(example)
        else:
            exclusions.append(exclude(example.utterance, reason))
    return Selection(examples, exclusions)


def select_scorable(readable: Selection, reasons: Callable[[Example], Problem | None]) -> Selection:
    """For validation: every readable example counts in the WER, learnable or not.

    Those without a possible target get an empty one and are left out of the dev loss alone.
    """
    examples: list[Example] = []
    without_target: list[Exclusion] = []
    for example in readable.examples:
        reason = reasons(example)
        if reason is None:
            examples.append(example)
        else:
            examples.append(replace(example, is_learnable=False))
            without_target.append(exclude(example.utterance, reason))
    return Selection(examples, readable.exclusions, without_target)


def unlearnable_reason(
    example: Example,
    tokenizer: Tokenizer,
    min_seconds: float,
    max_seconds: float,
    num_frames: Callable[[float], int],
) -> Problem | None:
    """Why CTC cannot learn from this example, or None.

    Names: ``empty_text``, ``too_short``, ``too_long``, ``unknown_characters``, ``too_few_frames``.
    """
    seconds = example.utterance.duration_seconds
    if not example.text:
        return Problem("empty_text", "empty text")
    if seconds < min_seconds:
        return Problem("too_short", f"shorter than data.min_seconds={min_seconds:g}")
    if seconds > max_seconds:
        return Problem("too_long", f"longer than data.max_seconds={max_seconds:g}")
    unknown = tokenizer.unknown_characters(example.text)
    if unknown:
        shown = " ".join(repr(character) for character in sorted(unknown))
        return Problem("unknown_characters", f"unknown characters {shown}")
    available = num_frames(seconds)
    needed = 2 * tokenizer.max_labels(example.text) - 1  # if all labels were alike
    if needed > available:
        needed = num_label_frames(tokenizer.encode(example.text))
    if needed > available:
        return Problem(
            "too_few_frames",
            f"too few frames: {needed} needed for the labels and their repeats, {available} there",
        )
    return None


def num_label_frames(target: Sequence[int]) -> int:
    """What ``asr.ctc.min_frames`` counts, for one utterance: without tensors, since there may be millions."""
    return len(target) + sum(map(eq, target, target[1:]))


def select_readable(
    utterances: Sequence[Utterance],
    normalise: Callable[[str], str],
    problems: Sequence[Problem | None] | None = None,
) -> Selection:
    """Examples of the utterances whose audio can be used.

    Args:
        problems: why each utterance cannot be, or None, where that is known already; otherwise each
            file's header is read here.
    """
    if problems is None:
        with ThreadPoolExecutor() as pool:
            problems = list(pool.map(unreadable_reason, utterances))
    examples: list[Example] = []
    exclusions: list[Exclusion] = []
    for utterance, problem in zip(utterances, problems, strict=True):
        if problem is None:
            text = normalise(utterance.text)
            # Mostly nothing changes: then one copy of the text is enough.
            examples.append(Example(utterance, utterance.text if text == utterance.text else text))
        else:
            exclusions.append(exclude(utterance, problem))
    return Selection(examples, exclusions)


def unreadable_reason(utterance: Utterance) -> Problem | None:
    """Why the audio cannot be read, judged by the file's header, or None."""
    try:
        return segment_problem(utterance, audio_info(utterance.audio_path))
    except AudioError as error:
        return Problem("unreadable", str(error))


def segment_problem(utterance: Utterance, info: AudioInfo) -> Problem | None:
    """Where the manifest's stretch of audio leaves the file, or None (see ``DURATION_TOLERANCE_SECONDS``)."""
    if utterance.offset_seconds >= info.duration_seconds:
        return Problem(
            "outside_file",
            f"the manifest says the audio begins at {utterance.offset_seconds:.2f} s but "
            f"{utterance.audio_path} is {info.duration_seconds:.2f} s long",
        )
    end_seconds = utterance.offset_seconds + utterance.duration_seconds
    if end_seconds > info.duration_seconds + DURATION_TOLERANCE_SECONDS:
        return Problem(
            "outside_file",
            f"the manifest says the audio reaches to {end_seconds:.2f} s but "
            f"{utterance.audio_path} is {info.duration_seconds:.2f} s long",
        )
    return None


class SpeechDataset(Dataset[Batch]):
    """Examples as batches: indexed with the picks of a sampler, one whole batch at a time.

    Args:
        examples: what :func:`select_learnable` or :func:`select_readable` kept.
        sample_rate: Hz of the returned waveforms.
        tokenizer: encodes the targets, whose padding is its blank.
        augment: changes the waveforms, in training only.
        cache_bytes: decoded audio kept in memory (by each loader process), up to this size.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        sample_rate: int,
        tokenizer: Tokenizer,
        augment: WaveformAugmenter | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.examples = examples
        self.sample_rate = sample_rate
        self.tokenizer = tokenizer
        self.augment = augment
        self._cache: dict[int, Tensor] = {}
        self._cache_bytes_left = cache_bytes

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def durations(self) -> NDArray[np.float64]:
        """``(examples,)``, in seconds."""
        seconds = (example.utterance.duration_seconds for example in self.examples)
        return np.fromiter(seconds, np.float64, len(self.examples))

    @property
    def shards(self) -> NDArray[np.int64] | None:
        """``(examples,)``: which tar each lies in, counted from 0; None for audio in files of its own."""
        paths = [example.utterance.audio_path for example in self.examples[:1]]
        if not paths or file_of(paths[0]) == paths[0]:
            return None
        numbers: dict[str, int] = {}
        # The folder of a member is its tar.
        folders = (os.path.dirname(example.utterance.audio_file) for example in self.examples)
        return np.fromiter(
            (numbers.setdefault(one, len(numbers)) for one in folders), np.int64, len(self.examples)
        )

    def target(self, position: int) -> list[int]:
        """The labels to learn; empty where there are none."""
        example = self.examples[position]
        return self.tokenizer.encode(example.text) if example.is_learnable else []

    def __getitem__(self, picks: Sequence[Pick]) -> Batch:
        """The batch of these picks.

        Raises:
            AudioError: a file turned out to be unreadable; names it.
        """
        waveforms = [self._waveform(pick) for pick in picks]
        targets = [[] if pick.is_filler else self.target(pick.position) for pick in picks]
        examples = [self.examples[pick.position] for pick in picks]
        return collate(examples, targets, waveforms, picks, self.tokenizer.blank_id)

    def _waveform(self, pick: Pick) -> Tensor:
        waveform = self._cache.get(pick.position)
        if waveform is None:
            waveform = self._load(self.examples[pick.position].utterance)
            num_bytes = waveform.numel() * waveform.element_size()
            if num_bytes <= self._cache_bytes_left:
                self._cache[pick.position] = waveform
                self._cache_bytes_left -= num_bytes
        return self.augment(waveform, pick.seed) if self.augment is not None else waveform

    def _load(self, utterance: Utterance) -> Tensor:
        return load_utterance(utterance, self.sample_rate)


def load_utterance(utterance: Utterance, sample_rate: int) -> Tensor:
    """``(samples,)`` of one utterance at the model's rate; see :func:`load_segment`."""
    return load_segment(utterance, audio_info(utterance.audio_path), sample_rate)


def load_segment(utterance: Utterance, info: AudioInfo, sample_rate: int) -> Tensor:
    """``(samples,)`` of one utterance, with what its file's header says.

    A manifest's duration is rounded; the file's own end counts when the two agree within the tolerance.
    """
    to_end = info.duration_seconds - utterance.offset_seconds
    reaches_end = utterance.duration_seconds >= to_end - DURATION_TOLERANCE_SECONDS
    return load_audio(
        utterance.audio_path,
        sample_rate,
        offset_seconds=utterance.offset_seconds,
        duration_seconds=None if reaches_end else utterance.duration_seconds,
    )


def collate(
    examples: Sequence[Example],
    targets: Sequence[Sequence[int]],
    waveforms: Sequence[Tensor],
    picks: Sequence[Pick],
    blank_id: int,
) -> Batch:
    """Pad to the longest of the batch: waveforms with zeros, targets with the blank."""
    return Batch(
        utterance_ids=tuple(example.utterance.id for example in examples),
        waveforms=pad_sequence(list(waveforms), batch_first=True),
        waveform_lengths=torch.tensor([len(waveform) for waveform in waveforms]),
        targets=pad_sequence(
            [torch.tensor(target, dtype=torch.int64) for target in targets],
            batch_first=True,
            padding_value=blank_id,
        ),
        target_lengths=torch.tensor([len(target) for target in targets]),
        texts=tuple(example.text for example in examples),
        seeds=torch.tensor([pick.seed for pick in picks]),
        is_filler=picks[0].is_filler,
    )
