"""What the CTC loss refuses, and that it says why."""

import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc import ContractError, CTCLoss, ctc_loss, min_frames
from asr.ctc.contract import DeferredChecks, Rules, inspect_integers, inspect_rows, prepare

BACKENDS = ["native", "fused", "reference"]
LOG_PROBS = torch.randn(10, 2, 5, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
TARGETS = torch.tensor([[1, 2, 3], [4, 4, 0]])
LENGTHS = (10, 8), (3, 2)


def error_of(x=LOG_PROBS, targets=TARGETS, lengths=LENGTHS, **options):
    with pytest.raises(ContractError) as caught:
        ctc_loss(x, targets, *lengths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=4), st.booleans())
def test_min_frames_is_the_length_of_the_shortest_path(targets, is_concatenated):
    """Independent of the formula: walk the labels and put a blank where two equal ones meet."""
    expected = []
    for target in targets:
        path = []
        for label in target:
            path += [0, label] if path and path[-1] == label else [label]
        expected.append(len(path))
    lengths = torch.tensor([len(target) for target in targets])
    if is_concatenated:
        labels = torch.tensor([label for target in targets for label in target], dtype=torch.long)
    else:
        # What lies behind a target's length must not count, equal or not.
        labels = torch.full((len(targets), 7), 2)
        for row, target in zip(labels, targets, strict=True):
            row[: len(target)] = torch.tensor(target)
    assert min_frames(labels, lengths).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_puzzled_user_with_blank_95_is_told_about_row_sums(backend):
    """167 frames, 96 classes, raw scores: confident predictions were ranked far behind saying nothing."""
    target = torch.tensor([[63, 8, 1, 38, 29, 14, 41, 71, 14, 29, 45, 41, 3]])
    arguments = target, torch.tensor([167]), torch.tensor([13])
    predicted, silent = torch.zeros(167, 1, 96), torch.zeros(167, 1, 96)
    silent[..., 95] = 4.0
    predicted[..., 95] = 12.0
    for position, label in enumerate(target[0]):
        predicted[5 + 12 * position : 9 + 12 * position, 0, label] = 24.0
    # The measured cause: whatever a row sums to, its logarithm is taken off the loss, frame by frame.
    predicted = predicted.log_softmax(-1) - 1.334
    raw = [F.ctc_loss(x, *arguments, blank=95, reduction="none").item() for x in (predicted, silent)]
    assert raw[0] == pytest.approx(222.8, abs=0.3)
    assert raw[1] < 0

    loss = CTCLoss(blank=95, reduction="none", backend=backend)
    for x, row_sum in ((predicted, math.exp(-1.334)), (silent, math.exp(4) + 95)):
        with pytest.raises(
            ContractError, match=rf"row sum of exp\(log_probs\) is {row_sum:.6g}, not 1.*apply log_softmax"
        ):
            loss(x, *arguments)
    right = [loss(x.log_softmax(-1), *arguments).item() for x in (predicted, silent)]
    assert right[0] < 1
    assert right[1] > 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_must_be_normalised_wherever_they_are(backend):
    scores = LOG_PROBS.clone()
    scores[6, 1] += 0.1
    message = error_of(scores, backend=backend)
    assert "utterance 1, frame 6" in message
    assert "1.10517" in message
    assert "log_softmax" in message
    assert "inputs='logits'" in message
    # Rounding is not a mistake, and padding is nobody's business.
    rounded = LOG_PROBS + 1e-3
    rounded[8:, 1] = math.nan
    assert ctc_loss(rounded, TARGETS, *LENGTHS, backend=backend).isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_probabilities_mistaken_for_log_probabilities_are_recognised(backend, requires_grad):
    message = error_of(LOG_PROBS.exp().requires_grad_(requires_grad), backend=backend)
    assert "utterance 0, frame 0" in message
    assert "inputs='probs'" in message
    message = error_of(LOG_PROBS.clone().requires_grad_(requires_grad), inputs="probs", backend=backend)
    assert "the smallest entry -" in message
    assert "apply softmax" in message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inputs", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_located(backend, inputs, value):
    scores = LOG_PROBS.exp() if inputs == "probs" else LOG_PROBS.clone()
    scores[7, 1, 3] = value
    message = error_of(scores, inputs=inputs, backend=backend)
    assert "utterance 1, frame 7" in message
    if inputs == "logits" or math.isnan(value):
        assert "not finite" in message


@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_infinity_is_a_legal_log_probability(backend):
    scores = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).log()[:, None].requires_grad_()
    loss = ctc_loss(scores, torch.tensor([[1]]), (2,), (1,), reduction="sum", backend=backend)
    assert loss.item() == pytest.approx(-math.log(0.75))
    loss.backward()
    if backend != "native":  # PyTorch's gradient is nan there
        assert scores.grad[..., 2].tolist() == [[0], [0]]
    assert scores.grad[..., :2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_must_be_in_the_vocabulary_and_not_the_blank(backend):
    targets = TARGETS.clone()
    targets[1, 1] = 5
    message = error_of(targets=targets, backend=backend)
    assert "utterance 1, position 1: label 5" in message
    assert "0..4" in message
    assert "label -1" in error_of(targets=torch.tensor([[1, -1, 3], [4, 4, 0]]), backend=backend)
    message = error_of(targets=torch.tensor([[1, 0, 3], [4, 4, 0]]), backend=backend)
    assert "position 1: label 0 is the blank (blank=0)" in message
    # Memory stays safe without the other checks.
    assert "label 5" in error_of(targets=targets, backend=backend, check=False)


def test_lengths_are_explained():
    message = error_of(lengths=((10, 11), (3, 2)))
    assert "input_lengths[1] is 11 but the input has 10 frames" in message
    assert "counts the valid (not padded) frames" in message
    message = error_of(lengths=((10, 8), (3, 4)))
    assert "target_lengths[1] is 4 but the targets hold 3 labels" in message
    assert "counts the labels" in message
    assert "add up to 4" in error_of(targets=torch.tensor([1, 2, 3]), lengths=((10, 8), (2, 2)))
    assert "target_lengths[1] is 4" in error_of(lengths=((10, 8), (3, 4)), check=False)
    assert "input_lengths[0] is -1" in error_of(lengths=((-1, 8), (3, 2)))


def test_the_keras_user_whose_lengths_were_wrong():
    """Lengths for 3800 utterances beside a batch of 100; 5 frames for 4 labels that may need more."""
    probs = torch.full((100, 5, 5), 0.2)
    labels = torch.tensor([[0, 1, 0, 0]] * 100)
    everything = np.full((3800, 1), 5.0)
    options = {"inputs": "probs", "layout": "NTC", "blank": -1}
    message = error_of(probs, labels, (everything, everything), **options)
    assert "input_lengths has shape (3800, 1) but the input holds 100 utterances" in message

    # Float lengths as numpy makes them are fine if they are whole numbers, and labels 0, 1, 0, 0 just fit.
    frames, counts = np.full((100, 1), 5.0), np.full((100, 1), 4.0)
    assert ctc_loss(probs, labels, frames, counts, **options).isfinite()
    message = error_of(probs, torch.tensor([[0, 0, 0, 0]] * 100), (frames, counts), **options)
    assert "100 of 100 utterances cannot be aligned" in message
    assert "utterance 0: 4 labels + 3 repeats = 7 frames needed, 5 given" in message
    assert "and 92 more" in message
    assert "never as ratios" in error_of(probs, labels, (frames / 6, counts), **options)


def test_swapped_axes_are_suspected():
    message = error_of(LOG_PROBS.transpose(0, 1))
    assert (
        "but the input holds 10 utterances (the axes look swapped: with layout='NTC' it would hold 2)"
        in message
    )
    assert "layout='TNC'" in error_of(LOG_PROBS, layout="NTC")


def test_shapes_and_types():
    assert "(2, 3, 1)" in error_of(targets=TARGETS[..., None])
    assert "dtype torch.float32" in error_of(targets=TARGETS.float())
    assert "holds 2 utterances" in error_of(targets=TARGETS[:1])
    assert "dtype torch.int64" in error_of(TARGETS)
    assert "shape (10,)" in error_of(LOG_PROBS[:, 0, 0])
    assert "blank=5 is outside the vocabulary" in error_of(blank=5)
    assert "empty" in error_of(LOG_PROBS[:0], lengths=((0, 0), (0, 0)))
    assert "dtype torch.bool" in error_of(lengths=(torch.tensor([True, True]), (3, 2)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_utterances_are_named_and_zero_infinity_does_not_hide_them(backend, caplog):
    lengths = (10, 2), (3, 2)
    message = error_of(lengths=lengths, backend=backend)
    assert "1 of 2 utterances cannot be aligned" in message
    assert "utterance 1: 2 labels + 1 repeats = 3 frames needed, 2 given" in message
    with caplog.at_level(logging.WARNING, logger="asr.ctc.contract"):
        loss = ctc_loss(LOG_PROBS, TARGETS, *lengths, reduction="none", zero_infinity=True, backend=backend)
    assert loss[1] == 0
    assert "utterance 1: 2 labels + 1 repeats" in caplog.text


def test_deferred_checks_raise_later_and_name_the_call():
    """What a GPU does: facts are collected now, read by a later call, and nothing is waited for."""
    scores = LOG_PROBS.clone()
    scores[0, 1] += 1
    targets = TARGETS.clone()
    targets[0, 0] = 9
    for x, labels, expected in (
        (scores, TARGETS, "row sum"),
        (LOG_PROBS, targets, "label 9"),
        (LOG_PROBS, TARGETS, None),
    ):
        checks = DeferredChecks()
        problem = prepare(x, labels, *LENGTHS, blank=0, layout="TNC")
        rules = Rules.of(problem, "log_probs", x.dtype, zero_infinity=False)
        checks.submit(inspect_integers(problem), inspect_rows(problem, rules), rules)
        if expected is None:
            checks.poll()
        else:
            with pytest.raises(ContractError, match=f"an earlier CTC loss call: .*{expected}"):
                checks.poll()
        checks.poll(wait=True)
    CTCLoss.check_pending()


def test_a_gpu_knows_rows_from_its_kernel():
    """Row totals that a backend has computed stand for the rows themselves."""
    problem = prepare(LOG_PROBS, TARGETS, *LENGTHS, blank=0, layout="TNC")
    rules = Rules.of(problem, "log_probs", torch.float32, zero_infinity=False)
    totals = torch.zeros(2, 10)
    totals[1, 9] = 3.0  # padding
    assert inspect_rows(problem, rules, totals)[:, 0].tolist() == [-1, -1]
    totals[1, 4] = 3.0
    assert inspect_rows(problem, rules, totals)[:, 0].tolist() == [-1, 4]
