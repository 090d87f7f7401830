"""Does a model read every utterance alike in validation, evaluation and transcription?

Whatever the batch, the padding beside it, and the windows that a long recording is cut into. The ways
are run as the commands run them; the text of each is held against that of evaluation.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor

from asr.audio import audio_info, load_audio, seconds_to_samples
from asr.build import make_augmenters, make_loss, make_training_loss
from asr.config import AugmentConfig, LossConfig, TextConfig
from asr.dataset import Example, SpeechDataset, load_segment, load_utterance
from asr.errors import AudioError
from asr.longform import recognise_long
from asr.module import CtcModule
from asr.pipeline import recognise_batches
from asr.recogniser import Recogniser
from asr.records import Hypothesis, Utterance
from asr.report.parity import Difference, ParityReport, Way, describe_difference
from asr.sampler import Pick, batches_by_length
from asr.score import count_words, total

PAUSE_SECONDS = 0.5
"""Between utterances that are joined into a long recording."""

WINDOWS_PER_RECORDING = 3


class Reading(NamedTuple):
    """What was read in a recording; ``log_probs`` ``(frames, vocab)`` on the CPU, where they were kept."""

    hypothesis: Hypothesis
    log_probs: Tensor | None = None


Readings = Mapping[str, Reading]


class LongReadings(NamedTuple):
    """Of joined recordings, by name, with what is said in them."""

    readings: dict[str, Reading]
    references: dict[str, str]


def check_parity(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    *,
    max_batch_utterances: int,
    max_batch_seconds: float,
    window_seconds: float,
    overlap_seconds: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ParityReport:
    """Read all utterances in every way and compare the texts.

    For the windows, utterances are joined (with pauses) to recordings of several windows' length, which
    are then read whole and in windows.
    """
    readable, failed = _select_readable(utterances, recogniser.sample_rate)
    durations = [utterance.duration_seconds for utterance in readable]
    alike = batches_by_length(durations, max_utterances=max_batch_utterances, max_seconds=max_batch_seconds)
    mixed = mixed_batches(durations, max_batch_utterances, max_batch_seconds)
    single = [[index] for index in range(len(readable))]

    def evaluation(batches: Sequence[Sequence[int]]) -> Readings:
        return _read(recogniser, readable, batches, lambda one: load_utterance(one, recogniser.sample_rate))

    def transcription(batches: Sequence[Sequence[int]]) -> Readings:
        with _as_files(readable, recogniser.sample_rate) as files:
            return _read(
                recogniser, readable, batches, lambda one: load_audio(files[one.id], recogniser.sample_rate)
            )

    expected = evaluation(alike)
    steps: list[tuple[str, Callable[[], Readings]]] = [
        ("evaluation, one by one", lambda: evaluation(single)),
        ("evaluation, lengths mixed", lambda: evaluation(mixed)),
        ("validation", lambda: _validate(recogniser, readable, alike)),
        ("validation, lengths mixed", lambda: _validate(recogniser, readable, mixed)),
        ("transcription", lambda: transcription(alike)),
        ("transcription, one by one", lambda: transcription(single)),
    ]
    ways: list[Way] = []
    differences: list[Difference] = []
    for number, (name, read) in enumerate(steps, start=1):
        on_progress(number, len(steps) + 2)
        _compare(name, "evaluation", expected, read(), ways, differences)
    on_progress(len(steps) + 1, len(steps) + 2)
    whole, windows = _read_long(recogniser, readable, window_seconds, overlap_seconds, max_batch_seconds)
    cut: list[Difference] = []
    _compare("transcription in windows", "the recording whole", whole.readings, windows, ways, cut)
    num_words = sum(len(reading.hypothesis.text.split()) for reading in whole.readings.values())
    errors = [
        total(
            count_words(
                list(whole.references.values()), [reading.hypothesis.text for reading in way.values()]
            )
        )
        for way in (whole.readings, windows)
    ]
    return ParityReport(
        ways=tuple(ways),
        differences=tuple(differences),
        window_differences=tuple(cut),
        window_difference=sum(one.num_words for one in cut) / max(num_words, 1),
        errors_whole=errors[0].num_errors,
        errors_in_windows=errors[1].num_errors,
        num_reference=errors[0].num_reference,
        failed=tuple(failed),
    )


def _compare(
    name: str,
    against: str,
    expected: Readings,
    found: Readings,
    ways: list[Way],
    differences: list[Difference],
) -> None:
    """Add a way, and where it differs from what is expected."""
    different, sizes = [], []
    for key, reading in found.items():
        size = _log_prob_difference(expected[key].log_probs, reading.log_probs)
        sizes += [] if size is None else [size]
        if reading.hypothesis.text != expected[key].hypothesis.text:
            pair = expected[key].hypothesis, reading.hypothesis
            different.append(describe_difference(key, name, against, *pair, size))
    differences += different
    ways.append(Way(name, against, len(found), len(different), max(sizes, default=None)))


def _log_prob_difference(expected: Tensor | None, found: Tensor | None) -> float | None:
    if expected is None or found is None or len(expected) == 0:
        return None
    if expected.shape != found.shape:
        return float("inf")
    return float((expected - found).abs().max())


def mixed_batches(durations: Sequence[float], max_utterances: int, max_seconds: float) -> list[list[int]]:
    """Batches of short and long utterances together: the most padding that there can be.

    As in :func:`asr.sampler.batches_by_length` no batch exceeds ``max_seconds``, padding included.
    """
    order = sorted(range(len(durations)), key=durations.__getitem__)
    outside_in = list(chain.from_iterable(zip(reversed(order), order, strict=True)))[: len(order)]
    batches: list[list[int]] = [[]]
    for index in outside_in:
        longest = max(durations[one] for one in [*batches[-1], index])
        if len(batches[-1]) == max_utterances or longest * (len(batches[-1]) + 1) > max_seconds:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]


# --- the ways ----------------------------------------------------------------------------------


def _read(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    batches: Sequence[Sequence[int]],
    load: Callable[[Utterance], Tensor],
) -> dict[str, Reading]:
    """What evaluation and transcription do with recordings that fit a window."""
    found: dict[str, Reading] = {}
    for batch in recognise_batches(
        recogniser,
        [[utterances[index] for index in batch] for batch in batches],
        load=load,
        name=lambda utterance: utterance.id,
    ):
        for recognised in batch:
            assert isinstance(recognised.result, Hypothesis)  # all were read before
            log_probs = None if recognised.log_probs is None else recognised.log_probs.cpu()
            found[recognised.item.id] = Reading(recognised.result, log_probs)
    return found


def _validate(
    recogniser: Recogniser, utterances: Sequence[Utterance], batches: Sequence[Sequence[int]]
) -> dict[str, Reading]:
    """What training does after an epoch; the loss, which is not compared, has nothing to align."""
    tokenizer, model = recogniser.tokenizer, recogniser.acoustic_model
    module = CtcModule(
        acoustic_model=model,
        loss=make_loss(LossConfig(), tokenizer.blank_id),
        training_loss=make_training_loss(LossConfig(), TextConfig(), tokenizer),
        decoder=recogniser.decoder,
        blank_id=tokenizer.blank_id,
        augment_features=make_augmenters(AugmentConfig(), model.features)[1],
        make_optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.0),
        make_schedule=torch.optim.lr_scheduler.ConstantLR,
        normalise=recogniser.normalise,
        recipe={},
        skip_non_finite=False,
        log_every_steps=1,
    ).eval()
    module.to(recogniser.device)
    dataset = SpeechDataset(
        [Example(utterance, "", is_learnable=False) for utterance in utterances],
        sample_rate=recogniser.sample_rate,
        tokenizer=tokenizer,
    )
    module.on_validation_epoch_start()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            loaded = dataset[[Pick(index, 0) for index in batch]]
            module.validation_step(module.transfer_batch_to_device(loaded, recogniser.device, 0), number)
    return {
        sample.utterance_id: Reading(Hypothesis((), sample.hypothesis, 0.0)) for sample in module.dev_samples
    }


def _read_long(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    window_seconds: float,
    overlap_seconds: float,
    max_batch_seconds: float,
) -> tuple[LongReadings, dict[str, Reading]]:
    """Recordings of several windows, read whole and in windows."""
    whole = LongReadings({}, {})
    windows: dict[str, Reading] = {}
    sample_rate = recogniser.sample_rate
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "joined.wav"
        for parts in _joined(utterances, WINDOWS_PER_RECORDING * window_seconds):
            name = f"{parts[0].id} to {parts[-1].id}"
            pause = torch.zeros(seconds_to_samples(PAUSE_SECONDS, sample_rate))
            waveforms = [torch.cat([load_utterance(part, sample_rate), pause]) for part in parts]
            soundfile.write(path, torch.cat(waveforms).numpy(), sample_rate, subtype="FLOAT")
            whole.readings[name] = Reading(recogniser.recognise([load_audio(path, sample_rate)])[0])
            whole.references[name] = recogniser.normalise(" ".join(part.text for part in parts))
            windows[name] = Reading(
                recognise_long(
                    recogniser,
                    path,
                    window_seconds=window_seconds,
                    overlap_seconds=overlap_seconds,
                    max_batch_seconds=max_batch_seconds,
                )
            )
    return whole, windows


def _joined(utterances: Sequence[Utterance], min_seconds: float) -> Iterator[list[Utterance]]:
    """Consecutive utterances that make a recording of at least this length; the last ones may be fewer."""
    parts: list[Utterance] = []
    for number, utterance in enumerate(utterances, start=1):
        parts.append(utterance)
        if number == len(utterances) or sum(part.duration_seconds for part in parts) >= min_seconds:
            yield parts
            parts = []


@contextmanager
def _as_files(utterances: Sequence[Utterance], sample_rate: int) -> Iterator[dict[str, Path]]:
    """A file for each utterance, as transcription wants it: its own, or a cut of the one that it lies in."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for number, utterance in enumerate(utterances):
            info = audio_info(utterance.audio_path)
            waveform = load_segment(utterance, info, sample_rate)
            if len(waveform) == len(load_audio(utterance.audio_path, sample_rate)):
                files[utterance.id] = utterance.audio_path
            else:
                files[utterance.id] = Path(folder) / f"{number}.wav"
                soundfile.write(files[utterance.id], waveform.numpy(), sample_rate, subtype="FLOAT")
        yield files


def _select_readable(utterances: Sequence[Utterance], sample_rate: int) -> tuple[list[Utterance], list[str]]:
    """Utterances whose audio can be read, and what is wrong with the others."""
    readable: list[Utterance] = []
    failed: list[str] = []
    for utterance in utterances:
        try:
            load_utterance(utterance, sample_rate)
            readable.append(utterance)
        except AudioError as error:
            failed.append(f"{utterance.id}: {error}")
    return readable, failed
