"""CTCLoss as a drop-in for torch.nn.CTCLoss, and the conventions of other frameworks."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc import ContractError, CTCLoss, ctc_loss, ctc_loss_result
from asr.ctc import loss as loss_module
from asr.errors import ConfigError

BACKENDS = ["native", "fused", "reference"]
WORKED_EXAMPLE = Path(__file__).parents[2] / "shared" / "goldens" / "ctc_worked_example.json"


@pytest.fixture
def cat():
    """The worked 'CAT' example: logits (5, 1, 27), their softmax, the label, the published loss."""
    if not WORKED_EXAMPLE.exists():
        pytest.skip("the worked example's file is not there")
    return json.loads(WORKED_EXAMPLE.read_text())


@st.composite
def batches(draw):
    """A random batch in torch's convention, with everything that is optional in it."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    frames, width = draw(st.integers(1, 14)), draw(st.integers(1, 7))
    blank = draw(st.integers(0, vocab - 1))
    targets = torch.randint(0, vocab - 1, (batch, width), generator=generator)
    targets += targets >= blank
    input_lengths = torch.randint(1, frames + 1, (batch,), generator=generator)
    target_lengths = torch.randint(0, width + 1, (batch,), generator=generator)
    if draw(st.booleans()):
        targets = torch.cat([row[:length] for row, length in zip(targets, target_lengths, strict=True)])
    integer = draw(st.sampled_from([torch.int32, torch.int64]))
    lengths = [input_lengths.to(integer), target_lengths.to(integer)]
    if draw(st.booleans()):
        lengths = [tuple(counts.tolist()) for counts in lengths]
    scores = torch.randn(frames, batch, vocab, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([1, 5])
    )
    return scores.log_softmax(-1), targets.to(integer), *lengths, blank


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_values_and_gradients_are_torchs(backend, batch, reduction, dtype):
    log_probs, targets, input_lengths, target_lengths, blank = batch
    theirs, ours = (log_probs.to(dtype).requires_grad_() for _ in range(2))
    arguments = (targets, input_lengths, target_lengths)
    expected = F.ctc_loss(theirs, *map(torch.as_tensor, arguments), blank, reduction, zero_infinity=True)
    # Torch calls impossible utterances infinite; with zero_infinity they are reported in the log instead.
    actual = CTCLoss(blank, reduction, zero_infinity=True, backend=backend)(ours, *arguments)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(actual, expected, **tolerance)
    weights = torch.linspace(0.5, 2, max(actual.numel(), 1), dtype=dtype).reshape(actual.shape)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(9, 3), ((9,), (3,)), (torch.tensor(9), torch.tensor(3)), ([9], [3])])
def test_one_utterance_without_a_batch_axis(backend, lengths):
    scores = torch.randn(9, 5).log_softmax(-1)
    target = torch.tensor([1, 3, 3])
    expected = F.ctc_loss(scores, target, torch.tensor(9), torch.tensor(3), reduction="none")
    actual = ctc_loss(scores, target, *lengths, reduction="none", backend=backend)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_losses_are_infinite_unless_zeroed_and_never_poison_the_gradient(backend):
    scores = torch.randn(4, 2, 4).log_softmax(-1).requires_grad_()
    arguments = scores, torch.tensor([[1, 1, 1], [1, 2, 3]]), (4, 4), (3, 2)
    loss = CTCLoss(reduction="none", backend=backend, check=False)
    losses = loss(*arguments)
    assert losses[0] == math.inf
    assert losses[1].isfinite()
    losses[losses.isfinite()].sum().backward()
    assert not scores.grad[:, 0].any()
    assert scores.grad.isfinite().all()
    assert CTCLoss(reduction="sum", backend=backend, check=False)(*arguments) == math.inf
    loss.zero_infinity = True
    torch.testing.assert_close(loss(*arguments), torch.tensor([0.0, losses[1].item()]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_layouts_are_the_same_loss_with_the_same_gradient(backend):
    time_first = torch.randn(12, 3, 6).requires_grad_()
    batch_first = time_first.detach().transpose(0, 1).contiguous().requires_grad_()
    strided = time_first.detach().repeat_interleave(2, dim=2)[..., ::2].requires_grad_()
    arguments = torch.randint(1, 6, (3, 4)), (12, 11, 9), (4, 2, 3)
    results = [
        CTCLoss(inputs="logits", layout=layout, backend=backend)(x, *arguments)
        for x, layout in ((time_first, "TNC"), (batch_first, "NTC"), (strided, "TNC"))
    ]
    sum(results).backward()
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(time_first.grad, batch_first.grad.transpose(0, 1))
    torch.testing.assert_close(time_first.grad, strided.grad)


def test_per_utterance_losses_are_there_whatever_the_reduction():
    scores = torch.randn(10, 2, 5).requires_grad_()
    arguments = scores, torch.tensor([[1, 2, 3], [4, 4, 1]]), (10, 8), (3, 2)
    loss = CTCLoss(inputs="logits")
    mean = loss(*arguments)
    assert loss.losses.shape == (2,)
    assert not loss.losses.requires_grad
    # Torch's "mean": each loss over its number of labels, then the average.
    assert mean.item() == pytest.approx(((loss.losses[0] / 3 + loss.losses[1] / 2) / 2).item())
    result = ctc_loss_result(*arguments, inputs="logits", reduction="sum")
    torch.testing.assert_close(result.per_utterance, loss.losses)
    assert result.backend == "fused-cpu"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_gives_the_same_gradient(backend):
    scores = torch.randn(10, 2, 5).requires_grad_()
    loss = ctc_loss(scores, torch.tensor([[1, 2], [3, 3]]), (10, 8), (2, 2), inputs="logits", backend=backend)
    (first,) = torch.autograd.grad(3 * loss, scores, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(first, 3 * second)


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(20, 2, 8).bfloat16().requires_grad_()
    loss = ctc_loss(logits.log_softmax(-1), torch.tensor([[1, 2], [3, 3]]), (20, 20), (2, 2))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    exact = ctc_loss(
        logits.detach().double(), torch.tensor([[1, 2], [3, 3]]), (20, 20), (2, 2), inputs="logits"
    )
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example_in_every_convention(cat, backend):
    """'CAT' in five frames: 13.5036 from logits (Paddle), log-probabilities (torch), probabilities (Keras)."""
    logits = torch.tensor(cat["logits"], dtype=torch.float64)
    probs = torch.tensor(cat["softmax"], dtype=torch.float64)
    arguments = torch.tensor([[3, 1, 20]]), (5,), (3,)
    for x, inputs in ((logits, "logits"), (probs, "probs"), (probs.log(), "log_probs")):
        loss = CTCLoss(reduction="none", inputs=inputs, backend=backend)(x, *arguments)
        assert loss.item() == pytest.approx(13.5036, abs=5e-5)
        assert math.exp(-loss.item()) == pytest.approx(1.366e-6, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_once_twice_or_after_a_logarithm(backend):
    """Keras applies softmax, then log, then TensorFlow softmax again: softmax(log(softmax(x))) = softmax(x)."""
    logits = torch.randn(2, 9, 6, dtype=torch.float64) * 3
    # TensorFlow and Keras: batch first, blank last, lengths of shape (batch, 1).
    arguments = torch.tensor([[0, 3, 3], [4, 1, 0]]), torch.tensor([[9], [8]]), torch.tensor([[3], [2]])

    def loss_of(x, inputs):
        loss = CTCLoss(blank=-1, reduction="none", inputs=inputs, layout="NTC", backend=backend)
        return loss(x, *arguments)

    once = loss_of(logits, "logits")
    torch.testing.assert_close(loss_of(logits.softmax(-1).log(), "logits"), once)
    torch.testing.assert_close(loss_of(logits.softmax(-1), "probs"), once)
    torch.testing.assert_close(loss_of(logits.log_softmax(-1), "log_probs"), once)
    # Without the logarithm in between it is another function: the second softmax flattens the first.
    twice = loss_of(logits.softmax(-1), "logits")
    assert (twice - once).abs().min() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_of_input_sends_the_same_gradient_to_the_logits(backend):
    arguments = torch.tensor([[1, 3, 3], [4, 1, 2]]), (9, 8), (3, 2)
    start = torch.randn(9, 2, 6, dtype=torch.float64)
    gradients = []
    for prepare, inputs in (
        (lambda x: x, "logits"),
        (lambda x: x.log_softmax(-1), "log_probs"),
        (lambda x: x.softmax(-1), "probs"),
    ):
        logits = start.clone().requires_grad_()
        ctc_loss(prepare(logits), *arguments, inputs=inputs, backend=backend).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_convention_of_log_probabilities(backend):
    """Probability minus occupancy, as torch: not the true derivative, unless a log_softmax comes before."""
    log_probs = torch.randn(6, 1, 4, dtype=torch.float64).log_softmax(-1).requires_grad_()
    arguments = torch.tensor([[1, 2]]), (6,), (2,)
    ctc_loss(log_probs, *arguments, reduction="sum", backend=backend).backward()
    torch.testing.assert_close(log_probs.grad.sum(-1), torch.zeros(6, 1, dtype=torch.float64))

    step = torch.zeros_like(log_probs)
    step[2, 0, 1] = 1e-6
    with torch.no_grad():
        up, down = (
            ctc_loss(log_probs + sign * step, *arguments, reduction="sum", backend=backend, check=False)
            for sign in (1, -1)
        )
    true_derivative = (up - down).item() / 2e-6
    probability = log_probs[2, 0, 1].exp().item()
    assert log_probs.grad[2, 0, 1].item() == pytest.approx(probability + true_derivative, abs=1e-7)


def test_the_backend_that_runs_is_logged_once(caplog, monkeypatch):
    loss_module._announce.cache_clear()
    arguments = torch.randn(5, 1, 3), torch.tensor([[1]]), (5,), (1,)
    with caplog.at_level(logging.INFO, logger="asr.ctc.loss"):
        for _ in range(3):
            ctc_loss(*arguments, inputs="logits")
    assert [record.message for record in caplog.records] == [
        "CTC loss backend: fused-cpu (compiled for the CPU with numba)"
    ]


def test_without_a_compiler_auto_falls_back_with_a_reason(caplog, monkeypatch):
    reason = "its compiler cannot be loaded (No module named 'numba')"
    monkeypatch.setattr(loss_module, "_find_fused", lambda device, dtype: (None, reason))
    loss_module._announce.cache_clear()
    arguments = torch.randn(5, 1, 3), torch.tensor([[1]]), (5,), (1,)
    with caplog.at_level(logging.INFO, logger="asr.ctc.loss"):
        assert ctc_loss_result(*arguments, inputs="logits").backend == "native"
    assert f"native ({reason})" in caplog.text
    with pytest.raises(ConfigError, match=r"backend='fused' cannot run here.*numba"):
        ctc_loss(*arguments, inputs="logits", backend="fused")
    loss_module._announce.cache_clear()


@pytest.mark.parametrize(
    ("option", "value"), [("reduction", "avg"), ("inputs", "scores"), ("layout", "NCT"), ("backend", "cudnn")]
)
def test_misspelt_options_name_the_choices(option, value):
    with pytest.raises(ConfigError, match=f"{option}='{value}' is not one of"):
        CTCLoss(**{option: value})


def test_an_error_is_both_a_user_error_and_a_value_error():
    assert issubclass(ContractError, ValueError)
