"""Which transcripts are probably wrong? Utterances ranked by how badly a model's emissions fit their text.

Two signs beside the CTC loss itself:

- **margin**: how much more probable (nats) the model's own reading is than the transcript, each summed over
  all alignments. The loss alone is high for noisy audio too, whose reading is improbable as well.
- **worst stretch**: the largest loss within half a second. A wrong word costs much in one place, while
  noise costs a little everywhere, more of it in long utterances. Losses of frames are exact (see
  :func:`asr.ctc.align.occupancy`).

An utterance is as suspicious as the smaller of the two. With a second model, trained otherwise, it is the
mean of both models': what both find improbable is not one model's weakness. A model that learned from the
wrong transcripts still knows better about most of them, as long as they are few and it has not learned them
by heart (Northcutt et al., "Confident learning", 2021).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from asr.ctc.align import AlignmentError, occupancy
from asr.ctc.paths import collapse
from asr.dataset import Example, select_readable
from asr.errors import AudioError
from asr.pipeline import recognise_examples
from asr.recogniser import Recogniser
from asr.records import Hypothesis, Utterance
from asr.report.json_report import Exclusion
from asr.report.label_errors import Fit, LabelErrorReport, Suspect

STRETCH_SECONDS = 0.5


def find_label_errors(
    recognisers: Sequence[Recogniser],
    utterances: Sequence[Utterance],
    *,
    max_batch_utterances: int,
    max_batch_seconds: float,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> LabelErrorReport:
    """Rank utterances, the most suspicious first. Those that cannot be judged are named in ``excluded``.

    Args:
        recognisers: the model, and others whose opinion counts as much.
        on_progress: called with the number of utterances done so far, all models together.
    """
    readable = select_readable(utterances, recognisers[0].normalise)
    excluded = {one.id: one.reason for one in readable.exclusions}
    examples: list[Example] = []
    for example in readable.examples:
        reason = _unjudgeable(example, recognisers)
        if reason is None:
            examples.append(example)
        else:
            excluded[example.utterance.id] = reason
    fits: dict[int, list[Fit]] = {}  # by example
    num_done = 0
    for recogniser in recognisers:
        for batch in recognise_examples(
            recogniser,
            examples,
            max_batch_utterances=max_batch_utterances,
            max_batch_seconds=max_batch_seconds,
        ):
            for one in batch:
                if isinstance(one.result, AudioError):
                    excluded[examples[one.item].utterance.id] = str(one.result)
                else:
                    assert one.log_probs is not None
                    fit = fit_of(one.log_probs, examples[one.item].text, one.result, recogniser)
                    fits.setdefault(one.item, []).append(fit)
            num_done += len(batch)
            on_progress(num_done)
    suspects = [_suspect(examples[index], found) for index, found in fits.items()]
    suspects.sort(key=lambda one: (-one.suspicion, one.id))
    return LabelErrorReport(tuple(suspects), tuple(Exclusion(*item) for item in excluded.items()))


def _unjudgeable(example: Example, recognisers: Sequence[Recogniser]) -> str | None:
    for recogniser in recognisers:
        if recogniser.wildcard is not None and recogniser.wildcard in example.text:
            return f"words are missing from its text (wildcard {recogniser.wildcard!r})"
        unknown = recogniser.tokenizer.unknown_characters(example.text)
        if unknown:
            return f"the model does not know {' '.join(map(repr, sorted(unknown)))}"
    return None


def _suspect(example: Example, fits: Sequence[Fit]) -> Suspect:
    utterance = example.utterance
    return Suspect(
        id=utterance.id,
        audio_path=str(utterance.audio_path),
        offset_seconds=utterance.offset_seconds,
        duration_seconds=utterance.duration_seconds,
        speaker=utterance.speaker,
        text=example.text,
        suspicion=sum(fit.suspicion for fit in fits) / len(fits),
        fits=tuple(fits),
    )


def fit_of(log_probs: Tensor, text: str, hypothesis: Hypothesis, recogniser: Recogniser) -> Fit:
    """How well ``(frames, vocab)`` fit a transcript; infinitely badly where it cannot be aligned at all."""
    blank = recogniser.tokenizer.blank_id
    labels = recogniser.tokenizer.encode(text)
    scores = log_probs.double().cpu().numpy()
    if len(scores) == 0:
        return _impossible(hypothesis.text)
    reading_loss = occupancy(scores, collapse(scores.argmax(axis=1).tolist(), blank), blank=blank).loss
    try:
        found = occupancy(scores, labels, blank=blank)
    except AlignmentError:  # more labels than frames
        return _impossible(hypothesis.text)
    seconds_per_frame = recogniser.acoustic_model.seconds_per_frame
    size = min(len(scores), max(1, round(STRETCH_SECONDS / seconds_per_frame)))
    stretches = np.convolve(found.frame_losses, np.ones(size), mode="valid")
    return Fit(
        reading=hypothesis.text,
        loss=found.loss,
        loss_per_frame=found.loss / len(scores),
        loss_per_label=found.loss / max(1, len(labels)),
        margin=found.loss - reading_loss,
        worst_stretch=float(stretches.max()),
        worst_seconds=float(stretches.argmax()) * seconds_per_frame,
    )


def _impossible(reading: str) -> Fit:
    return Fit(reading, math.inf, math.inf, math.inf, math.inf, math.inf, 0.0)
