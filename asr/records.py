"""Named records that travel between modules, each with its shape legend."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest: a stretch of audio and what was said in it.

    ``audio_file`` is given as text or as a path and kept as text: a million paths would take 0.2 GB more.
    ``duration_seconds`` counts from ``offset_seconds`` within the file. ``extra`` holds any
    further manifest fields (accent, channel, …) untouched, for slicing reports.
    """

    id: str
    audio_file: str
    duration_seconds: float
    text: str
    speaker: str = ""
    offset_seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "audio_file", os.fspath(self.audio_file))

    @property
    def audio_path(self) -> Path:
        return Path(self.audio_file)


class Problem(NamedTuple):
    """Something wrong with an utterance: ``name`` from a fixed set, ``detail`` for the reader."""

    name: str
    detail: str


class Batch(NamedTuple):
    """What the data loader yields.

    - ``utterance_ids``, ``texts``: one string per utterance (texts already normalised)
    - ``waveforms``: ``(batch, samples)`` float32, zero-padded; ``waveform_lengths``: ``(batch,)`` int64
    - ``targets``: ``(batch, tokens)`` int64, padded with ``blank_id``; ``target_lengths``: ``(batch,)`` int64
    - ``seeds``: ``(batch,)`` int64, one augmentation seed per utterance and epoch
    - ``is_filler``: one utterance that only keeps this process in step with the others, without targets
    """

    utterance_ids: tuple[str, ...]
    waveforms: Tensor
    waveform_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    texts: tuple[str, ...]
    seeds: Tensor
    is_filler: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """From a loader process lengths, targets and seeds travel by value, and the waveforms in shared memory.

        A tensor in shared memory is handed over in a conversation of six messages, during which training waits.
        """
        return _received, tuple(
            value.numpy()
            if isinstance(value, Tensor) and value.dtype == torch.int64 and value.is_cpu
            else value
            for value in self
        )


def _received(*values: Any) -> Batch:
    return Batch._make(
        torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values
    )


class Features(NamedTuple):
    """``features``: ``(batch, frames, mels)`` float32; ``feature_lengths``: ``(batch,)`` int64."""

    features: Tensor
    feature_lengths: Tensor


class Emissions(NamedTuple):
    """What an encoder says.

    - ``log_probs``: ``(batch, frames, vocab)`` float32, normalised; ``log_prob_lengths``: ``(batch,)`` int64
    - ``intermediate``: the ``log_probs`` of earlier layers, where they were asked for
    """

    log_probs: Tensor
    log_prob_lengths: Tensor
    intermediate: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word with its place in the audio; ``confidence`` is in [0, 1]."""

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a decoder returns for one utterance.

    ``token_ids`` are the labels after collapsing; ``token_frames[i]`` is the emission frame of
    token ``i``; ``score`` is a natural-log score (greedy: log-probability of the best path;
    beam: log-probability of the labelling, plus language-model terms where there are any).
    """

    token_ids: tuple[int, ...]
    text: str
    score: float
    token_frames: tuple[int, ...] = ()
    words: tuple[Word, ...] = ()
