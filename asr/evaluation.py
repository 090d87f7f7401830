"""Recognise a list of utterances and score it: what training ends with and ``asr.evaluate`` does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from asr.dataset import Example, load_utterance, select_readable
from asr.errors import AudioError
from asr.recogniser import Recogniser
from asr.records import Hypothesis, Utterance
from asr.report.json_report import EvaluationReport, Exclusion, build_report
from asr.sampler import batches_by_length

LOADER_THREADS = 2


def evaluate_utterances(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    *,
    max_batch_utterances: int,
    max_batch_seconds: float,
    normaliser: str = "none",
    provenance: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> EvaluationReport:
    """Decode every utterance and score it against its text, both normalised as in training.

    Utterances whose audio cannot be read are named in the report's ``excluded``; all others count,
    also those with an empty text (any word there is an insertion).

    Args:
        normaliser: applied on top of the training's text normalisation (see ``asr.score``).
        on_progress: called with the number of utterances done so far.
    """
    started = time.perf_counter()
    readable = select_readable(utterances, recogniser.normalise)
    excluded = [Exclusion(exclusion.id, exclusion.reason) for exclusion in readable.exclusions]
    batches = batches_by_length(
        [example.utterance.duration_seconds for example in readable.examples],
        max_utterances=max_batch_utterances,
        max_seconds=max_batch_seconds,
    )
    hypotheses: dict[int, Hypothesis] = {}
    num_done = len(excluded)
    for indices, waveforms in _loaded(batches, readable.examples, recogniser.sample_rate):
        good: dict[int, Tensor] = {}
        for index, waveform in zip(indices, waveforms, strict=True):
            if isinstance(waveform, AudioError):
                excluded.append(Exclusion(readable.examples[index].utterance.id, str(waveform)))
            else:
                good[index] = waveform
        if good:
            hypotheses |= zip(good, recogniser.recognise(list(good.values())), strict=True)
        num_done += len(indices)
        on_progress(num_done)
    order = sorted(hypotheses)
    return build_report(
        [_with_text(readable.examples[index]) for index in order],
        [hypotheses[index] for index in order],
        decode_seconds=time.perf_counter() - started,
        excluded=excluded,
        normaliser=normaliser,
        provenance=provenance,
    )


def _loaded(
    batches: Sequence[Sequence[int]], examples: Sequence[Example], sample_rate: int
) -> Iterator[tuple[Sequence[int], list[Tensor | AudioError]]]:
    """Each batch's audio (or what is wrong with it), loaded while the batch before is recognised."""

    def load(index: int) -> Tensor | AudioError:
        try:
            return load_utterance(examples[index].utterance, sample_rate)
        except AudioError as error:
            return error

    with ThreadPoolExecutor(LOADER_THREADS) as pool:
        pending = [pool.submit(load, index) for index in (batches[0] if batches else [])]
        for number, batch in enumerate(batches):
            waveforms = [future.result() for future in pending]
            following = batches[number + 1] if number + 1 < len(batches) else []
            pending = [pool.submit(load, index) for index in following]
            yield batch, waveforms


def _with_text(example: Example) -> Utterance:
    utterance = example.utterance
    return Utterance(
        id=utterance.id,
        audio_path=utterance.audio_path,
        duration_seconds=utterance.duration_seconds,
        text=example.text,
        speaker=utterance.speaker,
        offset_seconds=utterance.offset_seconds,
        extra=utterance.extra,
    )
