"""Evaluation under a series of conditions: more and more noise, slower and faster speech."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from asr.augment import streams
from asr.augment.noise import draw_noise, mix_noise
from asr.augment.sounds import SoundLibrary
from asr.augment.waveform import change_speed
from asr.evaluation import Alter
from asr.records import Utterance
from asr.report.json_report import EvaluationReport
from asr.report.sweep import SweepPoint, make_point

STANDARD_SNR_DB = (20.0, 15.0, 10.0, 5.0, 0.0)
STANDARD_SPEEDS = (0.8, 0.9, 1.1, 1.2)
CLEAN = "clean"


class Condition(NamedTuple):
    """What is done to every recording; ``name`` is also that of its folder. None: nothing."""

    name: str
    value: float | None
    alter: Alter | None


def noise_conditions(library: SoundLibrary, snr_db: Sequence[float], seed: int) -> list[Condition]:
    """Clean, then each SNR; an utterance has the same stretch of the same noise at all of them.

    Which noise is drawn from the utterance's id and ``seed`` alone: all systems, and all test sets
    that share utterances, hear the same.
    """

    def alter(snr: float, utterance: Utterance, waveform: Tensor) -> Tensor:
        digest = hashlib.sha256(f"{seed} {utterance.id}".encode()).digest()
        generator = streams.stream(int.from_bytes(digest[:7], "big"), streams.NOISE)
        drawn = draw_noise(library, (snr, snr), generator)
        return mix_noise(waveform, library.load(drawn.part), drawn)

    noisy = [Condition(f"{snr:g}dB", snr, partial(alter, snr)) for snr in dict.fromkeys(snr_db)]
    return [Condition(CLEAN, None, None), *noisy]


def speed_conditions(factors: Sequence[float]) -> list[Condition]:
    """Clean, then each speed factor (tempo and pitch together)."""

    def alter(factor: float, utterance: Utterance, waveform: Tensor) -> Tensor:
        return change_speed(waveform, factor)

    changed = [
        Condition(f"speed{factor:g}", factor, partial(alter, factor))
        for factor in dict.fromkeys(factors)
        if factor != 1.0
    ]
    return [Condition(CLEAN, None, None), *changed]


def run_sweep(
    conditions: Sequence[Condition],
    evaluate: Callable[[Condition], EvaluationReport],
    on_report: Callable[[Condition, EvaluationReport], None],
) -> tuple[SweepPoint, ...]:
    """Evaluate under each condition, the clean one first; ``on_report`` is given each full report."""
    points: list[SweepPoint] = []
    clean: EvaluationReport | None = None
    for condition in conditions:
        report = evaluate(condition)
        on_report(condition, report)
        points.append(make_point(condition.name, condition.value, report, clean))
        clean = clean or report
    return tuple(points)
