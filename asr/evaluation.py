"""Recognise a list of utterances and score it: what training ends with and ``asr.evaluate`` does."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asr.dataset import Example, load_utterance, select_readable
from asr.errors import AudioError
from asr.pipeline import recognise_batches
from asr.recogniser import Recogniser
from asr.records import Hypothesis, Utterance
from asr.report.json_report import EvaluationReport, Exclusion, build_report
from asr.sampler import batches_by_length


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
    for batch in recognise_batches(
        recogniser,
        batches,
        load=lambda index: load_utterance(readable.examples[index].utterance, recogniser.sample_rate),
        name=lambda index: readable.examples[index].utterance.id,
    ):
        for index, result, _ in batch:
            if isinstance(result, AudioError):
                excluded.append(Exclusion(readable.examples[index].utterance.id, str(result)))
            else:
                hypotheses[index] = result
        num_done += len(batch)
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
