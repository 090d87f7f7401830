"""The diagnosis finds what is wrong, and says nothing is wrong when nothing is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc.align import TokenSpan
from asr.ctc.diagnosis import Diagnosis, diagnose, format_count, losses_by_label, uniform_loss

BLANK = 0


def peaked(path: list[int], vocab_size: int = 4, confidence: float = 0.9) -> np.ndarray:
    log_probs = np.full((len(path), vocab_size), math.log((1 - confidence) / (vocab_size - 1)))
    log_probs[np.arange(len(path)), path] = math.log(confidence)
    return log_probs


def finding(diagnosis: Diagnosis, topic: str) -> tuple[str, str]:
    [found] = [one for one in diagnosis.findings if one.topic == topic]
    return found.severity, found.message


def torch_loss(log_probs: np.ndarray, labels: list[int]) -> float:
    return float(
        torch.nn.functional.ctc_loss(
            torch.tensor(log_probs)[:, None],
            torch.tensor([labels]),
            (len(log_probs),),
            (len(labels),),
            blank=BLANK,
            reduction="sum",
        )
    )


def test_a_good_utterance_is_called_good() -> None:
    log_probs = peaked([0, 1, 0, 2, 2, 0, 3])
    diagnosis = diagnose(log_probs, [1, 2, 3], blank=BLANK, symbols="-abc", spell=lambda ids: "x" * len(ids))
    severities = {one.topic: one.severity for one in diagnosis.findings}
    assert severities.pop("sources of loss") == severities.pop("timing") == "note"
    assert set(severities.values()) == {"ok"}
    assert diagnosis.loss == pytest.approx(torch_loss(log_probs, [1, 2, 3]))
    assert diagnosis.blank_share == pytest.approx(3 / 7)
    assert finding(diagnosis, "reading")[1] == "the best path reads the reference, 'xxx'"


@pytest.mark.parametrize("shift", [-16.4, 0.5])
def test_missing_log_softmax_is_found_and_undone(shift: float) -> None:
    log_probs = peaked([0, 1, 0, 2, 2, 0, 3])
    diagnosis = diagnose(log_probs + shift, [1, 2, 3], blank=BLANK)
    severity, message = finding(diagnosis, "normalisation")
    assert severity == "problem"
    proper = torch_loss(log_probs, [1, 2, 3])
    assert f"after a log_softmax it is {proper:.4f} instead of {proper - 7 * shift:.4f}" in message


def test_negative_losses_are_impossible() -> None:
    diagnosis = diagnose(peaked([1, 2]) + 3.0, [1, 2], blank=BLANK)
    assert finding(diagnosis, "loss")[0] == "problem"
    assert "never negative" in finding(diagnosis, "loss")[1]


def test_labels_that_do_not_fit() -> None:
    diagnosis = diagnose(peaked([1, 0, 1]), [1, 1, 1], blank=BLANK)
    assert diagnosis.loss == math.inf
    assert diagnosis.occupancy is None
    assert finding(diagnosis, "lengths") == (
        "problem",
        "the loss is infinite: 3 labels with 2 adjacent repeats need at least 5 frames, but there are 3; "
        "give longer audio, less subsampling or larger tokens",
    )
    assert not [one for one in diagnosis.findings if one.topic == "loss"]


def test_tight_labels_are_warned_about() -> None:
    severity, message = finding(diagnose(peaked([1, 0, 1]), [1, 1], blank=BLANK), "lengths")
    assert severity == "warning"
    assert "2 labels and 1 adjacent repeat need 3 frames; there are 3, which leaves 1 path: tight" in message


def test_all_blank_is_a_problem_and_a_confident_mistake_a_warning() -> None:
    diagnosis = diagnose(peaked([0] * 9, confidence=0.999), [1, 2], blank=BLANK)
    assert finding(diagnosis, "blanks")[0] == "problem"
    assert "100% of the frames" in finding(diagnosis, "blanks")[1]
    wrong = diagnose(peaked([3] * 9, confidence=0.9999), [1, 2], blank=BLANK)
    assert finding(wrong, "loss")[0] == "warning"
    assert finding(wrong, "blanks") == (
        "ok",
        "the blank is the most probable token in 0% of the frames (mean probability 0.000)",
    )
    silence = diagnose(peaked([0] * 9), [], blank=BLANK)
    assert finding(silence, "blanks")[0] == "ok"


def test_blanks_inside_a_label_are_explained() -> None:
    diagnosis = diagnose(peaked([1, 0, 1, 2, 0, 2, 2]), [1, 2], blank=BLANK)
    severity, message = finding(diagnosis, "reading")
    assert severity == "note"
    assert "split 2 labels into 4" in message
    other = diagnose(peaked([1, 0, 3]), [1, 2], blank=BLANK)
    assert finding(other, "reading")[1] == "the best path reads '1 3', the reference is '1 2'"


def test_the_costly_frame_and_label_are_named() -> None:
    log_probs = peaked([0, 1, 0, 3, 0, 3, 0], confidence=0.999)
    diagnosis = diagnose(log_probs, [1, 2, 3], blank=BLANK, symbols=["-", "a", "b", "c"])
    assert finding(diagnosis, "sources of loss")[1].startswith(
        "half of it from 1 of 7 frames (the costliest: 3)"
    )
    assert "by label: 'b' (label 1)" in finding(diagnosis, "sources of loss")[1]
    assert diagnosis.label_losses.argmax() == 1
    assert diagnosis.label_losses.sum() == pytest.approx(diagnosis.loss)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=5), st.integers(0, 4))
@settings(deadline=None, max_examples=80)
def test_frames_count_for_the_label_nearest_in_time(gaps: list[tuple[int, int]], tail: int) -> None:
    spans: list[TokenSpan] = []
    frame = 0
    for position, (gap, length) in enumerate(gaps):
        spans.append(TokenSpan(1, position, frame + gap, frame + gap + length, 1.0))
        frame += gap + length
    losses = np.arange(1.0, frame + tail + 1)
    expected = np.zeros(len(spans))
    for index, loss in enumerate(losses):
        distances = [min(abs(index - f) for f in range(s.start_frame, s.end_frame)) for s in spans]
        nearest = max(i for i, distance in enumerate(distances) if distance == min(distances))
        expected[nearest] += loss
    assert losses_by_label(losses, spans) == pytest.approx(expected)


def test_uniform_loss_is_the_loss_of_a_uniform_model() -> None:
    log_probs = np.full((6, 5), -math.log(5))
    assert uniform_loss([1, 1, 2], 6, 5) == pytest.approx(torch_loss(log_probs, [1, 1, 2]))
    assert uniform_loss([1, 1], 2, 5) == math.inf
    assert uniform_loss([], 6, 5) == pytest.approx(6 * math.log(5))


def test_counts_read_well_at_any_size() -> None:
    assert format_count(1, "path") == "1 path"
    assert format_count(28, "path") == "28 paths"
    assert format_count(10**400, "path") == "about 10^400.0 paths"


def test_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        diagnose(np.zeros((0, 3)), [1], blank=BLANK)
