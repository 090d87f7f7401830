"""Word confidences as probabilities: how far to trust them, and a temperature that makes them honest.

A word is *correct* when the alignment of :mod:`asr.score` says so. Confidences are judged by

- **NCE**, normalised cross-entropy (NIST): ``(H(p) - H(confidence)) / H(p)`` with ``p`` the share of
  correct words. 1 is perfect, 0 no better than saying ``p`` of every word, negative is worse than that;
- **ECE**, expected calibration error (Naeini et al. 2015): the mean distance, over equally wide bins of
  confidence weighted by their words, of mean confidence and share of correct words.

Temperature scaling (Guo et al. 2017, here of the log-odds of whole words) divides log-odds by one
number, fitted to development data by maximum likelihood. It changes no ranking.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from asr.errors import ConfigError
from asr.manifest import manifest_sha256
from asr.records import Word
from asr.score import align

logger = logging.getLogger(__name__)

NUM_BINS = 10
NUM_FOLDS = 5
MIN_WORDS = 10
"""So many correct and so many wrong words must there be to fit a temperature."""

MIN_DOUBT = 1e-6
"""Confidences count as at least so far from 0 and 1: a certain word that is wrong costs 20 bits, not infinity."""

FILE_NAME = "calibration.yaml"

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class JudgedWords(NamedTuple):
    """``(words,)`` each: confidence, whether the word is correct, and which utterance it is from."""

    confidences: FloatArray
    correct: BoolArray
    utterances: NDArray[np.int64]


class ReliabilityBin(NamedTuple):
    """The words whose confidence lies from ``low`` up to ``high``; without words the means are ``nan``."""

    low: float
    high: float
    num_words: int
    mean_confidence: float
    share_correct: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far confidences can be trusted; ``nce`` is ``nan`` when all words are correct, or none."""

    nce: float
    ece: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class ConfidenceReport:
    """Confidences of an evaluation; ``calibrated`` and ``temperature`` where there is a calibration.

    ``source`` is the file that the temperature is from, or says that it was fitted to these very words;
    then ``calibrated`` is cross-fitted: each utterance under the temperature of the others.
    """

    num_words: int
    num_correct: int
    uncalibrated: Reliability
    calibrated: Reliability | None = None
    temperature: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Log-odds of a word's confidence are divided by ``temperature``; ``source`` is the file it is from."""

    temperature: float
    source: str

    def of_words(self, words: Sequence[Word]) -> tuple[Word, ...]:
        """The same words with calibrated confidences."""
        scaled = scale(np.array([word.confidence for word in words]), self.temperature)
        return tuple(
            replace(word, confidence=confidence)
            for word, confidence in zip(words, scaled.tolist(), strict=True)
        )


# --------------------------------------------------------------------------- measures


def judge(hypotheses: Sequence[Sequence[Word]], references: Sequence[str]) -> JudgedWords:
    """Say of each recognised word whether it is correct; words are what white space separates."""
    correct = []
    for words, reference in zip(hypotheses, references, strict=True):
        pairs = align(reference.split(), [word.text for word in words]).pairs
        correct.append([pair.operation == "equal" for pair in pairs if pair.operation != "delete"])
    return JudgedWords(
        np.array([word.confidence for words in hypotheses for word in words], np.float64),
        np.array(list(chain.from_iterable(correct)), np.bool_),
        np.repeat(np.arange(len(hypotheses)), [len(words) for words in hypotheses]),
    )


def measure(confidences: FloatArray, correct: BoolArray) -> Reliability:
    """NCE, ECE and what both look at, of ``(words,)`` confidences."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    number = np.clip(np.digitize(confidences, edges) - 1, 0, NUM_BINS - 1)
    bins = []
    for index in range(NUM_BINS):
        inside = number == index
        means = (
            (float(confidences[inside].mean()), float(correct[inside].mean()))
            if inside.any()
            else (math.nan, math.nan)
        )
        bins.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), int(inside.sum()), *means))
    distances = [
        one.num_words * abs(one.mean_confidence - one.share_correct) for one in bins if one.num_words
    ]
    return Reliability(
        nce=normalised_cross_entropy(confidences, correct),
        ece=sum(distances) / len(correct) if len(correct) else math.nan,
        bins=tuple(bins),
    )


def normalised_cross_entropy(confidences: FloatArray, correct: BoolArray) -> float:
    """NIST's NCE of ``(words,)`` confidences; ``nan`` when all words are correct, or none."""
    if correct.all() or not correct.any():
        return math.nan
    confidences = np.clip(confidences, MIN_DOUBT, 1 - MIN_DOUBT)
    share = correct.mean()
    most = -(correct.sum() * math.log(share) + (~correct).sum() * math.log(1 - share))
    gained = np.log(confidences[correct]).sum() + np.log(1 - confidences[~correct]).sum()
    return float((most + gained) / most)


# --------------------------------------------------------------------------- temperature


def scale(confidences: FloatArray, temperature: float) -> FloatArray:
    """Divide the log-odds of ``(words,)`` confidences."""
    return 1 / (1 + np.exp(-_log_odds(confidences) / temperature))


def _log_odds(confidences: FloatArray) -> FloatArray:
    confidences = np.clip(confidences, MIN_DOUBT, 1 - MIN_DOUBT)
    return np.log(confidences) - np.log1p(-confidences)


def fit_temperature(confidences: FloatArray, correct: BoolArray) -> float:
    """The temperature under which the words are likeliest, between 0.05 and 20.

    The likelihood is concave in ``1 / temperature``, so bisection on its slope finds the maximum.
    """
    log_odds = _log_odds(confidences)
    low, high = 1 / 20, 20.0
    for _ in range(60):
        inverse = (low + high) / 2
        slope = (log_odds * (correct - 1 / (1 + np.exp(-inverse * log_odds)))).sum()
        low, high = (inverse, high) if slope > 0 else (low, inverse)
    return 2 / (low + high)


def assess(words: JudgedWords, calibration: Calibration | None) -> ConfidenceReport:
    """Measure confidences as they are and, with a calibration, as that makes them."""
    raw = _without_calibration(words)
    if calibration is None:
        return raw
    return replace(
        raw,
        calibrated=measure(scale(words.confidences, calibration.temperature), words.correct),
        temperature=calibration.temperature,
        source=calibration.source,
    )


def fit(words: JudgedWords) -> ConfidenceReport:
    """Fit a temperature to all words; ``calibrated`` judges each utterance under that of the other folds.

    Raises:
        ConfigError: too few correct or wrong words.
    """
    num_wrong = int((~words.correct).sum())
    fewest = min(num_wrong, len(words.correct) - num_wrong)
    if fewest < MIN_WORDS:
        raise ConfigError(
            f"calibrate=true needs at least {MIN_WORDS} correct and {MIN_WORDS} wrong words; here are "
            f"{len(words.correct) - num_wrong} correct and {num_wrong} wrong: use a larger dev set"
        )
    scaled = np.empty_like(words.confidences)
    folds = words.utterances % NUM_FOLDS
    for fold in range(NUM_FOLDS):
        inside = folds == fold
        temperature = fit_temperature(words.confidences[~inside], words.correct[~inside])
        scaled[inside] = scale(words.confidences[inside], temperature)
    return replace(
        _without_calibration(words),
        calibrated=measure(scaled, words.correct),
        temperature=fit_temperature(words.confidences, words.correct),
        source="fitted to these words, judged cross-fitted",
    )


def _without_calibration(words: JudgedWords) -> ConfidenceReport:
    return ConfidenceReport(
        num_words=len(words.correct),
        num_correct=int(words.correct.sum()),
        uncalibrated=measure(words.confidences, words.correct),
    )


# --------------------------------------------------------------------------- files


def save(path: Path, found: ConfidenceReport, provenance: Mapping[str, Any]) -> None:
    """Add what was fitted to the file at ``path``, in place of an earlier entry for the same kind of decoder.

    Args:
        provenance: of the evaluation; its checkpoint, manifest and decoder are kept and checked later.

    Raises:
        ConfigError: the file cannot be written, or what is there is no calibration.
    """
    assert found.calibrated is not None
    entries = _read(path) if path.exists() else {}
    entries[provenance["decoder"]["kind"]] = {
        "temperature": round(found.temperature or 1.0, 4),
        "num_words": found.num_words,
        "num_correct": found.num_correct,
        "nce": {
            "uncalibrated": _rounded(found.uncalibrated.nce),
            "cross_fitted": _rounded(found.calibrated.nce),
        },
        "ece": {
            "uncalibrated": _rounded(found.uncalibrated.ece),
            "cross_fitted": _rounded(found.calibrated.ece),
        },
        **{name: dict(provenance[name]) for name in ("checkpoint", "manifest", "decoder")},
        "command": provenance["command"],
    }
    text = "# Temperatures of word confidences, by decoder: written by asr.evaluate calibrate=true\n"
    try:
        path.write_text(text + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: Path, checkpoint: Path, decoder: Mapping[str, Any]) -> Calibration:
    """The temperature for a decoder (its options) on a checkpoint.

    Raises:
        ConfigError: the file is damaged or has none for this kind of decoder, or for another checkpoint.
    """
    entries, kind = _read(path), decoder["kind"]
    if kind not in entries:
        raise ConfigError(
            f"{path}: is for decoder={', '.join(entries)}, not for {kind}: fit one with asr.evaluate calibrate=true"
        )
    entry = entries[kind]
    try:
        temperature, sha256 = float(entry["temperature"]), entry["checkpoint"]["sha256"]
        fitted_with = dict(entry["decoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: the entry for {kind} is damaged ({error!r})") from error
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"{path}: temperature {temperature} of {kind} must be above 0")
    if sha256 != manifest_sha256(checkpoint):
        raise ConfigError(
            f"{path}: was fitted on another checkpoint than {checkpoint}: fit again with asr.evaluate calibrate=true"
        )
    others = sorted(
        name
        for name in decoder.keys() & fitted_with.keys() - {"num_threads"}
        if decoder[name] != fitted_with[name]
    )
    if others:
        logger.warning(
            "warning: %s was fitted with other decoder options (%s): confidences may be off",
            path,
            ", ".join(f"{name}={fitted_with[name]}" for name in others),
        )
    return Calibration(temperature, str(path))


def choose(setting: str, folder: Path, checkpoint: Path, decoder: Mapping[str, Any]) -> Calibration | None:
    """What ``calibration=`` means: ``none``, a file, or ``auto``: that of the run's ``folder``, if it fits.

    Raises:
        ConfigError: a file that was named is missing or does not fit (see :func:`load`).
    """
    if setting == "none":
        return None
    if setting != "auto":
        return load(Path(setting).expanduser(), checkpoint, decoder)
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return load(path, checkpoint, decoder)
    except ConfigError as error:
        logger.warning("warning: confidences are not calibrated: %s", error)
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ConfigError(f"{path}: is no calibration: it has no decoders with their temperatures")
    return entries


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
