"""One recording through one model: the diagnosis of its emissions, and the picture of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from asr.ctc.align import WordSpan, word_spans
from asr.ctc.diagnosis import Diagnosis, diagnose
from asr.ctc.paths import collapse
from asr.recogniser import Recogniser
from asr.report.ctc_plots import utterance_figure
from asr.tokenizer import BLANK_DISPLAY

SCREEN_DPI = 80


class DiagnosedRecording(NamedTuple):
    """``reading`` is what the best path collapses to; ``words`` are those of the labels, where they align."""

    reading: tuple[int, ...]
    diagnosis: Diagnosis
    words: list[WordSpan]


def diagnose_recording(
    recogniser: Recogniser, log_probs: Tensor, labels: Sequence[int] | None = None
) -> DiagnosedRecording:
    """Where in ``log_probs`` ``(frames, vocab)`` the labels are, and what they cost; without labels, the reading's."""
    tokenizer = recogniser.tokenizer
    reading = tuple(collapse(log_probs.argmax(dim=1).tolist(), tokenizer.blank_id))
    diagnosis = diagnose(
        log_probs,
        reading if labels is None else labels,
        blank=tokenizer.blank_id,
        spell=tokenizer.decode,
        symbols=tokenizer.tokens,
    )
    spans = [] if diagnosis.alignment is None else diagnosis.alignment.token_spans()
    return DiagnosedRecording(reading, diagnosis, word_spans(spans, vocabulary=tokenizer.tokens))


def draw_recording(recogniser: Recogniser, waveform: Tensor, found: DiagnosedRecording, name: str) -> Figure:
    """Features, posteriors, alignment and loss of each frame, over the time of ``waveform`` ``(samples,)``."""
    front_end = recogniser.acoustic_model.features
    with torch.inference_mode():
        length = torch.tensor([len(waveform)], device=recogniser.device)
        spectrogram = front_end(waveform[None].to(recogniser.device), length).features[0]
    return utterance_figure(
        found.diagnosis,
        [_visible(token) for token in recogniser.tokenizer.tokens],
        spectrogram=spectrogram.double().cpu().numpy(),
        spectrogram_hop_seconds=front_end.hop_seconds,
        seconds_per_frame=recogniser.acoustic_model.seconds_per_frame,
        words=found.words,
        title=f"{name}: {recogniser.tokenizer.decode(found.reading)!r}",
    )


def picture_of_recording(
    recogniser: Recogniser, waveform: Tensor, reference: str, name: str
) -> NDArray[np.uint8] | None:
    """``(height, width, 3)``: the same for a screen; None where the model makes no frame of the waveform."""
    emissions = recogniser.emissions([waveform])
    log_probs = emissions.log_probs[0].float().cpu()
    if not len(log_probs):
        return None
    labels = recogniser.tokenizer.encode(reference)
    figure = draw_recording(recogniser, waveform, diagnose_recording(recogniser, log_probs, labels), name)
    figure.set_dpi(SCREEN_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _visible(token: str) -> str:
    """A token as an axis label: spaces shown, the blank as a dash."""
    return "–" if token == BLANK_DISPLAY else token.replace(" ", "␣")
