"""A second look at the utterances with errors: causes, and what a page needs to show and play them.

Recognition keeps no posteriors. Here the recordings with errors go through the model again: each gets the
cause of its errors; the worst get pictures; audio is kept, worst first, until a budget is spent.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.attribution import Attribution, attribute_errors
from asr.ctc.align import AlignmentError, forced_align, word_spans
from asr.dataset import load_utterance
from asr.errors import AudioError, TextError
from asr.recogniser import Recogniser
from asr.records import Utterance
from asr.report.json_report import EvaluationReport, UtteranceResult
from asr.sampler import batches_by_length
from asr.score import rank_worst

Bytes = NDArray[np.uint8]

MAX_PICTURE_SECONDS = 60.0
"""Longer recordings get no picture: nothing could be seen in it."""

_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_MAX_COLUMNS = 1200
_MAX_TOKEN_ROWS = 40
_NOTICEABLE = 0.05
_ENCODERS = 4
_SOUNDS_AT_A_TIME = 32


class TimedText(NamedTuple):
    text: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True)
class Picture:
    """What the model saw and what it made of it, 0 to 255.

    - ``spectrogram``: ``(bins, columns)``, low bins first, between the 2nd and the 99.5th percentile
    - ``posteriors``: ``(tokens, frames)``, the square root of the probability, which shows the small ones
    - ``tokens``: names of the rows, the blank last
    - ``reference``: the reference's words where the model has to place them; empty if it cannot
    """

    spectrogram: Bytes
    seconds_per_column: float
    posteriors: Bytes
    seconds_per_frame: float
    tokens: tuple[str, ...]
    reference: tuple[TimedText, ...]


@dataclass(frozen=True, slots=True)
class Sound:
    """An encoded recording, as the model heard it."""

    mime_type: str
    data: bytes


@dataclass(frozen=True)
class Examination:
    """What was found, by position in ``report.utterances``."""

    attributions: Mapping[int, Attribution] = field(default_factory=dict)
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    sounds: Mapping[int, Sound] = field(default_factory=dict)

    def attributed(self, report: EvaluationReport) -> EvaluationReport:
        """``report`` with the causes."""
        results = tuple(
            replace(result, attribution=self.attributions.get(position))
            for position, result in enumerate(report.utterances)
        )
        return replace(report, utterances=results)


def examine(
    recogniser: Recogniser,
    report: EvaluationReport,
    utterances: Sequence[Utterance],
    *,
    num_pictures: int,
    audio_mib: float,
    max_batch_utterances: int,
    max_batch_seconds: float,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> Examination:
    """Examine the utterances that ``report`` found errors in.

    Args:
        utterances: those of the manifest; their texts are what the model should have emitted.
        num_pictures: utterances with pictures, most errors first; none of more than a minute.
        audio_mib: encoded audio to keep, in MiB; most errors first, then those without, in their order.
        on_progress: called with the number of recordings done so far.
    """
    results = report.utterances
    worst = rank_worst([result.counts for result in results], max_utterances=len(results))
    texts = {utterance.id: recogniser.normalise(utterance.text) for utterance in utterances}
    drawable = (position for position in worst if results[position].duration_seconds <= MAX_PICTURE_SECONDS)
    drawn = frozenset(islice(drawable, num_pictures))
    attributions: dict[int, Attribution] = {}
    pictures: dict[int, Picture] = {}
    batches = batches_by_length(
        [results[position].duration_seconds for position in worst],
        max_utterances=max_batch_utterances,
        max_seconds=max_batch_seconds,
    )
    num_done = 0
    for batch in batches:
        loaded = {worst[place]: _load(results[worst[place]], recogniser.sample_rate) for place in batch}
        waveforms = {position: waveform for position, waveform in loaded.items() if waveform is not None}
        for position, log_probs in _emissions(recogniser, waveforms):
            result = results[position]
            reference = texts.get(result.id, result.reference)
            attribution = _attribute(recogniser, log_probs, reference, result)
            if attribution is not None:
                attributions[position] = attribution
            if position in drawn:
                pictures[position] = _draw(recogniser, waveforms[position], log_probs, reference)
        num_done += len(batch)
        on_progress(num_done)
    order = [*worst, *sorted(set(range(len(results))) - set(worst))] if audio_mib > 0 else []
    sounds = _record(order, results, recogniser.sample_rate, round(audio_mib * 2**20))
    return Examination(attributions, pictures, sounds)


def _load(result: UtteranceResult, sample_rate: int) -> Tensor | None:
    """``(samples,)``; None where the file has gone since it was recognised."""
    utterance = Utterance(
        id=result.id,
        audio_file=result.audio_path,
        duration_seconds=result.duration_seconds,
        text=result.reference,
        offset_seconds=result.offset_seconds,
    )
    try:
        return load_utterance(utterance, sample_rate)
    except AudioError:
        return None


def _emissions(recogniser: Recogniser, waveforms: Mapping[int, Tensor]) -> list[tuple[int, Tensor]]:
    """``(frames, vocab)`` of each, on the CPU."""
    if not waveforms:
        return []
    emissions = recogniser.emissions(list(waveforms.values()))
    log_probs = emissions.log_probs.float().cpu()
    lengths = emissions.log_prob_lengths.tolist()
    return [
        (position, frames[:length])
        for position, frames, length in zip(waveforms, log_probs, lengths, strict=True)
    ]


def _attribute(
    recogniser: Recogniser, log_probs: Tensor, reference: str, result: UtteranceResult
) -> Attribution | None:
    hypothesis = recogniser.normalise(recogniser.tokenizer.decode(result.token_ids))
    if hypothesis == reference or not len(log_probs):
        return None
    return attribute_errors(
        log_probs, reference, hypothesis, result.token_ids, recogniser.tokenizer, recogniser.decoder
    )


# --- pictures and sound ------------------------------------------------------------------------


def _draw(recogniser: Recogniser, waveform: Tensor, log_probs: Tensor, reference: str) -> Picture:
    front_end, tokenizer = recogniser.acoustic_model.features, recogniser.tokenizer
    with torch.inference_mode():
        length = torch.tensor([len(waveform)], device=recogniser.device)
        features = front_end(waveform[None].to(recogniser.device), length).features
    spectrogram = features[0].float().cpu().numpy()
    step = max(1, math.ceil(len(spectrogram) / _MAX_COLUMNS))
    spectrogram = spectrogram[: len(spectrogram) // step * step].reshape(-1, step, spectrogram.shape[1])
    seconds_per_frame = recogniser.acoustic_model.seconds_per_frame
    probs = log_probs.exp().numpy()
    rows = _token_rows(probs, tokenizer.blank_id)
    return Picture(
        spectrogram=_quantised(spectrogram.mean(axis=1).T),
        seconds_per_column=step * front_end.hop_seconds,
        posteriors=np.round(255 * np.sqrt(probs[:, rows].T.clip(0, 1))).astype(np.uint8),
        seconds_per_frame=seconds_per_frame,
        tokens=tuple(tokenizer.tokens[row] for row in rows),
        reference=_reference_times(recogniser, log_probs, reference),
    )


def _quantised(values: NDArray[np.float32]) -> Bytes:
    if not values.size:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(values, [2, 99.5])
    return np.round(255 * ((values - low) / max(high - low, 1e-9)).clip(0, 1)).astype(np.uint8)


def _token_rows(probs: NDArray[np.float32], blank: int) -> list[int]:
    """Tokens that are noticeable somewhere, in their order; of too many, the likeliest. The blank is last."""
    peaks = probs.max(axis=0, initial=0.0)
    peaks[blank] = 0.0
    likeliest = np.argsort(-peaks, kind="stable")[:_MAX_TOKEN_ROWS]
    return [*sorted(row for row in likeliest.tolist() if peaks[row] >= _NOTICEABLE), blank]


def _reference_times(recogniser: Recogniser, log_probs: Tensor, reference: str) -> tuple[TimedText, ...]:
    tokenizer, seconds = recogniser.tokenizer, recogniser.acoustic_model.seconds_per_frame
    try:
        aligned = forced_align(log_probs, tokenizer.encode(reference), blank=tokenizer.blank_id)
    except (TextError, AlignmentError):
        return ()
    words = word_spans(aligned.token_spans(), vocabulary=tokenizer.tokens)
    return tuple(TimedText(word.text, word.start_frame * seconds, word.end_frame * seconds) for word in words)


def _record(
    order: Sequence[int], results: Sequence[UtteranceResult], sample_rate: int, budget: int
) -> dict[int, Sound]:
    """Sounds of as many utterances as fit; the first that does not ends it, so that none is skipped."""

    def sound_of(position: int) -> Sound | None:
        waveform = _load(results[position], sample_rate)
        return None if waveform is None else encode_sound(waveform.numpy(), sample_rate)

    sounds: dict[int, Sound] = {}
    with ThreadPoolExecutor(_ENCODERS) as pool:
        for first in range(0, len(order), _SOUNDS_AT_A_TIME):
            some = order[first : first + _SOUNDS_AT_A_TIME]
            for position, sound in zip(some, pool.map(sound_of, some), strict=True):
                if sound is None:
                    continue
                budget -= len(sound.data)
                if budget < 0:
                    return sounds
                sounds[position] = sound
    return sounds


def encode_sound(waveform: NDArray[np.float32], sample_rate: int) -> Sound:
    """Opus in Ogg, about 3 kB a second; FLAC where Opus does not know the rate."""
    file = io.BytesIO()
    if sample_rate in _OPUS_RATES:
        soundfile.write(file, waveform, sample_rate, format="OGG", subtype="OPUS", compression_level=0.9)
        return Sound("audio/ogg", file.getvalue())
    soundfile.write(file, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return Sound("audio/flac", file.getvalue())
