"""Confidence measures against arithmetic done by hand and by scipy; temperatures and their files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from asr.calibration import (
    Calibration,
    JudgedWords,
    choose,
    fit,
    fit_temperature,
    judge,
    load,
    measure,
    normalised_cross_entropy,
    save,
    scale,
)
from asr.errors import ConfigError
from asr.manifest import manifest_sha256
from asr.records import Word
from asr.report.reliability import plot_reliability
from asr.report.word_times import compare_times


def word(text: str, start: float = 0.0, end: float = 1.0, confidence: float = 0.5) -> Word:
    return Word(text, start, end, confidence)


def overconfident(num_words: int = 4000, temperature: float = 2.5) -> JudgedWords:
    """Words that are correct with the probability that ``temperature`` makes of their confidence."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(3, 3, num_words)
    correct = rng.random(num_words) < expit(log_odds / temperature)
    return JudgedWords(expit(log_odds), correct, np.arange(num_words) // 7)


def test_words_are_judged_by_the_alignment() -> None:
    hypotheses = [[word("a"), word("x"), word("c"), word("d")], [], [word("b", confidence=0.25)]]
    judged = judge(hypotheses, ["a b c", "a", ""])
    assert judged.correct.tolist() == [True, False, True, False, False]
    assert judged.utterances.tolist() == [0, 0, 0, 0, 2]
    assert judged.confidences.tolist() == [0.5, 0.5, 0.5, 0.5, 0.25]


def test_normalised_cross_entropy_by_hand() -> None:
    """3 of 4 correct: H = -(3 log2 3/4 + log2 1/4) = 3.2451 bits; the confidences cost 2.4590 bits."""
    confidences, correct = np.array([0.9, 0.8, 0.7, 0.5]), np.array([True, True, True, False])
    most = -(3 * math.log2(0.75) + math.log2(0.25))
    cost = -(math.log2(0.9) + math.log2(0.8) + math.log2(0.7) + math.log2(0.5))
    assert normalised_cross_entropy(confidences, correct) == pytest.approx((most - cost) / most)
    assert normalised_cross_entropy(np.full(4, 0.75), correct) == pytest.approx(0)
    assert normalised_cross_entropy(np.array([1, 1, 1, 0.0]), correct) == pytest.approx(1, abs=1e-5)
    assert normalised_cross_entropy(np.ones(4), correct) < -4  # sure and wrong: bad, not infinite
    assert math.isnan(normalised_cross_entropy(confidences, np.ones(4, bool)))


def test_expected_calibration_error_by_hand() -> None:
    """Bins of 0.1: {0.95, 0.97} half correct, {0.55} correct, {1.0} belongs to the last bin."""
    found = measure(np.array([0.95, 0.97, 0.55, 1.0]), np.array([True, False, True, True]))
    last = (0.95 + 0.97 + 1.0) / 3
    assert found.ece == pytest.approx((3 * abs(last - 2 / 3) + abs(0.55 - 1)) / 4)
    assert [one.num_words for one in found.bins] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert math.isnan(found.bins[0].mean_confidence)


def test_the_temperature_is_the_likeliest() -> None:
    words = overconfident()

    def cost(temperature: float) -> float:
        confidences = expit(logit(np.clip(words.confidences, 1e-6, 1 - 1e-6)) / temperature)
        return float(-np.log(np.where(words.correct, confidences, 1 - confidences)).sum())

    expected = minimize_scalar(cost, bounds=(0.1, 10), method="bounded").x
    assert fit_temperature(words.confidences, words.correct) == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(2.5, rel=0.1)


def test_fitting_mends_overconfidence() -> None:
    found = fit(overconfident())
    assert found.calibrated is not None
    assert found.uncalibrated.ece > 0.05
    assert found.calibrated.ece < 0.02
    assert found.calibrated.nce > found.uncalibrated.nce


def test_too_few_errors_are_refused() -> None:
    words = overconfident(50)
    with pytest.raises(ConfigError, match="at least 10 correct and 10 wrong words"):
        fit(words._replace(correct=np.arange(50) > 3))


def test_calibrated_words_keep_their_order_and_all_else() -> None:
    words = [word("a", 0.1, 0.2, 0.9), word("b", 0.2, 0.3, 1.0), word("c", 0.3, 0.4, 0.0)]
    found = Calibration(2.0, "file").of_words(words)
    assert [one.confidence for one in found] == pytest.approx([0.75, 1, 0], abs=2e-3)
    assert [(one.text, one.start_seconds, one.end_seconds) for one in found] == [
        (one.text, one.start_seconds, one.end_seconds) for one in words
    ]
    assert Calibration(2.0, "file").of_words([]) == ()
    assert scale(np.array([0.9]), 1.0) == pytest.approx([0.9])


# --------------------------------------------------------------------------- files


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint and the calibration of its greedy decoder."""
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    save(tmp_path / "calibration.yaml", fit(overconfident()), provenance(tmp_path, {"kind": "greedy"}))
    return tmp_path


def provenance(run: Path, decoder: dict[str, Any]) -> dict[str, Any]:
    sha256 = manifest_sha256(run / "best.ckpt")
    return {
        "checkpoint": {"path": str(run / "best.ckpt"), "sha256": sha256},
        "manifest": {"path": "dev.jsonl", "sha256": "0"},
        "decoder": decoder,
        "command": "python -m asr.evaluate …",
    }


def test_a_file_holds_one_entry_for_each_decoder(run: Path) -> None:
    path, checkpoint = run / "calibration.yaml", run / "best.ckpt"
    beam = {"kind": "beam", "beam_width": 50}
    save(path, fit(overconfident(temperature=1.5)), provenance(run, beam))
    assert load(path, checkpoint, {"kind": "greedy"}).temperature == pytest.approx(2.5, rel=0.1)
    assert load(path, checkpoint, beam).temperature == pytest.approx(1.5, rel=0.1)
    assert choose("auto", run, checkpoint, beam) == load(path, checkpoint, beam)
    assert choose("none", run, checkpoint, beam) is None
    assert choose("auto", run / "elsewhere", checkpoint, beam) is None


def test_other_options_are_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(run / "calibration.yaml", fit(overconfident()), provenance(run, {"kind": "beam", "beam_width": 50}))
    load(run / "calibration.yaml", run / "best.ckpt", {"kind": "beam", "beam_width": 9})
    assert "beam_width=50" in caplog.text


def test_what_does_not_fit_is_an_error_when_named_and_a_warning_when_found(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, checkpoint = run / "calibration.yaml", run / "best.ckpt"
    with pytest.raises(ConfigError, match="is for decoder=greedy, not for beam"):
        choose(str(path), run, checkpoint, {"kind": "beam"})
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="was fitted on another checkpoint"):
        choose(str(path), run, checkpoint, {"kind": "greedy"})
    assert choose("auto", run, checkpoint, {"kind": "greedy"}) is None
    assert "confidences are not calibrated" in caplog.text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[", "is not YAML"),
        ("greedy", "is no calibration"),
        ("greedy: {temperature: x}", "the entry for greedy is damaged"),
        ("greedy: {temperature: 0, checkpoint: {sha256: x}, decoder: {}}", "must be above 0"),
    ],
)
def test_damaged_files(run: Path, content: str, part: str) -> None:
    path = run / "calibration.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=part):
        load(path, run / "best.ckpt", {"kind": "greedy"})


def test_the_plot_is_drawn_with_empty_bins(tmp_path: Path) -> None:
    plot_reliability(fit(overconfident()), tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes()[:4] == b"\x89PNG"


# --------------------------------------------------------------------------- times


def test_times_of_correct_words_are_compared() -> None:
    """The substituted and the deleted word have no true times."""
    truth = [["a", 0.0, 0.5], ["b", 0.5, 1.0], ["c", 1.0, 1.5], ["d", 1.5, 2.0]]
    heard = [word("a", 0.1, 0.4), word("x", 0.5, 1.0), word("d", 1.4, 2.2)]
    found = compare_times([heard, [word("z")]], [truth, None])
    assert found is not None
    assert found.num_words == 2
    assert found.start_error_seconds == pytest.approx(0.1)
    assert found.end_error_seconds == pytest.approx(0.15)
    assert found.start_bias_seconds == pytest.approx(0)
    assert found.end_bias_seconds == pytest.approx(0.05)


@pytest.mark.parametrize("truth", [None, "words", ["a"], [["a", 0]], [["a", "0", 1]], [[1, 0, 1]], []])
def test_manifests_without_true_times(truth: Any) -> None:
    assert compare_times([[word("a")]], [truth]) is None
