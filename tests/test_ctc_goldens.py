"""The CTC loss against what torch, JAX/optax, TensorFlow, Keras and Paddle answer (see scripts/make_ctc_goldens.py)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.ctc import CTCLoss

GOLDENS = Path(__file__).parent / "goldens"
INPUTS = np.load(GOLDENS / "ctc_cases.npz")
CASES = sorted({name.split(".")[0] for name in INPUTS.files})
# What a library answers for an utterance without any alignment; here it is always inf.
IMPOSSIBLE = {"torch": np.inf, "jax": 1e30, "tensorflow": 712.1742, "keras": np.inf, "paddle": 0.0}
# Paddle's recursion underflows where torch, JAX and TensorFlow agree on 2551.285.
WRONG = {("paddle", "extreme_logits")}


def load_case(name):
    fields = {
        field: INPUTS[f"{name}.{field}"] for field in ("logits", "targets", "input_lengths", "target_lengths")
    }
    return {key: torch.from_numpy(value) for key, value in fields.items()}, int(INPUTS[f"{name}.blank"])


def answers_of(library):
    answers = np.load(GOLDENS / f"ctc_{library}.npz")
    return [
        (library, case)
        for case in CASES
        if f"{case}.losses" in answers.files and (library, case) not in WRONG
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["reference", "native", "fused"])
@pytest.mark.parametrize("library", ["torch", "jax", "tensorflow", "paddle"])
def test_logits_give_the_losses_and_gradients_of_other_libraries(library, backend, dtype):
    expected = np.load(GOLDENS / f"ctc_{library}.npz")
    loss = CTCLoss(reduction="none", inputs="logits", layout="NTC", backend=backend, check=False)
    cases = answers_of(library)
    assert len(cases) >= 15
    for _, name in cases:
        case, loss.blank = load_case(name)
        logits = case["logits"].to(dtype).requires_grad_()
        losses = loss(logits, case["targets"], case["input_lengths"], case["target_lengths"])
        losses[losses.isfinite()].sum().backward()

        possible = np.ones(len(losses), bool)
        if name == "infeasible":
            possible[0] = False
            assert losses[0].item() == np.inf
            assert expected[f"{name}.losses"][0] == pytest.approx(IMPOSSIBLE[library], rel=1e-4)
            assert not logits.grad[0].any()
        is_rounded = dtype == torch.float32 or library == "tensorflow"
        loss_tolerance = {"rtol": 1e-5, "atol": 2e-5} if is_rounded else {"rtol": 1e-12, "atol": 1e-12}
        np.testing.assert_allclose(
            losses.detach().numpy()[possible],
            expected[f"{name}.losses"][possible],
            err_msg=name,
            **loss_tolerance,
        )
        # Gradients are stored in float32. Native float32 loses digits where blanks dominate.
        tolerance = 2e-4 if is_rounded and (backend != "fused" or library == "tensorflow") else 2e-6
        np.testing.assert_allclose(
            logits.grad.numpy()[possible],
            expected[f"{name}.gradient"][possible],
            rtol=0,
            atol=tolerance,
            err_msg=name,
        )


@pytest.mark.parametrize("backend", ["reference", "native", "fused"])
def test_probabilities_give_the_losses_of_keras(backend):
    """Keras adds 1e-7 to probabilities, takes the logarithm, and has TensorFlow apply softmax once more."""
    expected = np.load(GOLDENS / "ctc_keras.npz")
    loss = CTCLoss(reduction="none", inputs="probs", layout="NTC", backend=backend, check=False)
    cases = answers_of("keras")
    assert len(cases) == 14
    for _, name in cases:
        case, loss.blank = load_case(name)
        smoothed = case["logits"].softmax(-1) + 1e-7
        probs = smoothed / smoothed.sum(-1, keepdim=True)
        lengths = case["input_lengths"][:, None], case["target_lengths"][:, None]
        losses = loss(probs, case["targets"], *lengths)
        np.testing.assert_allclose(losses, expected[f"{name}.losses"], rtol=2e-4, atol=1e-5, err_msg=name)


def test_the_script_writes_the_same_cases_and_answers_again(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "make_ctc_goldens.py"
    subprocess.run([sys.executable, str(script), "torch", str(tmp_path)], check=True, capture_output=True)
    for name in ("ctc_cases.npz", "ctc_torch.npz"):
        stored, made = np.load(GOLDENS / name), np.load(tmp_path / name)
        assert stored.files == made.files
        for key in stored.files:
            np.testing.assert_allclose(made[key], stored[key], rtol=1e-6, atol=1e-7, err_msg=key)
