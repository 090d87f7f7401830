"""Recognise a list of utterances and score it: what training ends with and ``asr.evaluate`` does."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from asr.calibration import Calibration
from asr.dataset import Example, load_utterance, select_readable
from asr.decode.greedy import GreedyDecoder
from asr.errors import AudioError
from asr.firewall import DataUse
from asr.pipeline import recognise_batches
from asr.recogniser import Recogniser
from asr.records import Hypothesis, Utterance
from asr.report.examination import Examination, examine
from asr.report.json_report import EvaluationReport, Exclusion, build_report, write_report, write_text
from asr.report.page import write_page
from asr.report.terminal import to_markdown
from asr.sampler import batches_by_length

Alter = Callable[[Utterance, Tensor], Tensor]
"""What is done to an utterance's ``(samples,)`` before it is recognised."""


def evaluate_utterances(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    *,
    max_batch_utterances: int,
    max_batch_seconds: float,
    normaliser: str = "none",
    provenance: Mapping[str, Any] | None = None,
    data_use: DataUse | None = None,
    compare_greedy: bool = False,
    calibration: Calibration | None = None,
    calibrate: bool = False,
    alter: Alter | None = None,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> EvaluationReport:
    """Decode every utterance and score it against its text, both normalised as in training.

    Utterances whose audio cannot be read or whose text has a wildcard are named in the report's
    ``excluded``; all others count, also those with an empty text (any word there is an insertion).

    Args:
        normaliser: applied on top of the training's text normalisation (see ``asr.score``).
        data_use: what the utterances had been used for before (see ``asr.firewall``).
        compare_greedy: also decode the same emissions greedily, and say what search and language model
            are worth; nothing is compared where the decoder is the greedy one.
        calibration, calibrate: see :func:`asr.report.json_report.build_report`.
        alter: changes the audio first (noise, speed), for measuring robustness.
        on_progress: called with the number of utterances done so far.
    """

    def load(index: int) -> Tensor:
        utterance = readable.examples[index].utterance
        waveform = load_utterance(utterance, recogniser.sample_rate)
        return waveform if alter is None else alter(utterance, waveform)

    started = time.perf_counter()
    wildcard = recogniser.wildcard
    complete = [u for u in utterances if wildcard is None or wildcard not in u.text]
    incomplete = [u for u in utterances if wildcard is not None and wildcard in u.text]
    readable = select_readable(complete, recogniser.normalise)
    excluded = [Exclusion(exclusion.id, exclusion.reason) for exclusion in readable.exclusions]
    excluded += [
        Exclusion(u.id, f"words are missing from its text (wildcard {wildcard!r})") for u in incomplete
    ]
    batches = batches_by_length(
        [example.utterance.duration_seconds for example in readable.examples],
        max_utterances=max_batch_utterances,
        max_seconds=max_batch_seconds,
    )
    hypotheses: dict[int, Hypothesis] = {}
    greedy: GreedyDecoder | None = None
    if compare_greedy and not isinstance(recogniser.decoder, GreedyDecoder):
        greedy = GreedyDecoder(recogniser.tokenizer, recogniser.acoustic_model.seconds_per_frame)
    greedy_texts: dict[int, str] = {}
    num_done = len(excluded)
    for batch in recognise_batches(
        recogniser,
        batches,
        load=load,
        name=lambda index: readable.examples[index].utterance.id,
        compare=greedy,
    ):
        for recognised in batch:
            index, result = recognised.item, recognised.result
            if isinstance(result, AudioError):
                excluded.append(Exclusion(readable.examples[index].utterance.id, str(result)))
            else:
                hypotheses[index] = result
                if recognised.compared is not None:
                    greedy_texts[index] = recognised.compared.text
        num_done += len(batch)
        on_progress(num_done)
    order = sorted(hypotheses)
    return build_report(
        [_with_text(readable.examples[index]) for index in order],
        [hypotheses[index] for index in order],
        greedy_texts=None if greedy is None else [greedy_texts[index] for index in order],
        decode_seconds=time.perf_counter() - started,
        excluded=excluded,
        normaliser=normaliser,
        provenance=provenance,
        data_use=data_use,
        calibration=calibration,
        calibrate=calibrate,
    )


def write_views(
    report: EvaluationReport,
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    html: bool,
    num_worst: int,
    num_pictures: int,
    audio_mib: float,
    max_batch_utterances: int,
    max_batch_seconds: float,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> tuple[EvaluationReport, list[Path]]:
    """Write ``report`` as JSON, Markdown and, with ``html``, as a page.

    Returns the report, with ``html`` with the causes of errors, and the files.

    Args:
        utterances: those of the manifest.
        html: also examine the errors, which is what knows their causes and makes pictures; see
            :func:`asr.report.examination.examine` for ``num_pictures``, ``audio_mib`` and ``on_progress``.
        num_worst: utterances with the most errors, in Markdown.

    Raises:
        ReportError: a file cannot be written.
    """
    examination = Examination()
    if html:
        examination = examine(
            recogniser,
            report,
            utterances,
            num_pictures=num_pictures,
            audio_mib=audio_mib,
            max_batch_utterances=max_batch_utterances,
            max_batch_seconds=max_batch_seconds,
            on_progress=on_progress,
        )
        report = examination.attributed(report)
    written = [folder / "report.json", folder / "report.md"]
    write_report(report, written[0])
    write_text(to_markdown(report, num_worst=num_worst), written[1])
    if html:
        written.append(folder / "report.html")
        write_page(report, written[-1], examination)
    return report, written


def _with_text(example: Example) -> Utterance:
    utterance = example.utterance
    return Utterance(
        id=utterance.id,
        audio_file=utterance.audio_file,
        duration_seconds=utterance.duration_seconds,
        text=example.text,
        speaker=utterance.speaker,
        offset_seconds=utterance.offset_seconds,
        extra=utterance.extra,
    )
