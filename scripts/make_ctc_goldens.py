"""Ask other libraries what the CTC loss of a set of cases is, and store their answers for the tests.

Each library lives in an environment of its own, because their requirements exclude each other:

    for library in torch jax tensorflow paddle; do python -m venv envs/$library; done
    envs/torch/bin/pip install torch numpy
    envs/jax/bin/pip install jax optax
    envs/tensorflow/bin/pip install tensorflow-cpu
    envs/paddle/bin/pip install paddlepaddle setuptools
    for library in torch jax tensorflow paddle; do
        envs/$library/bin/python scripts/make_ctc_goldens.py $library tests/goldens
    done

This writes ``ctc_cases.npz``, the inputs, identical whoever writes them, and ``ctc_<library>.npz`` with
losses, in float64 where the library can, and gradients with respect to logits ``(batch, frames, vocab)``.
The files in the repository were made with torch 2.11, jax 0.10.2 with optax 0.2.8, tensorflow 2.21 with
keras 3.15, and paddlepaddle 3.3. The script needs nothing but the library and numpy.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One batch; ``targets`` are padded with a label that is not the blank."""

    logits: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int


class Answer(NamedTuple):
    """``losses`` ``(batch,)``; ``gradient`` of their sum by the logits, or None."""

    losses: np.ndarray
    gradient: np.ndarray | None


def make_cases() -> dict[str, Case]:
    """Every kind of batch that implementations are known to disagree about."""
    rng = np.random.default_rng(20260101)

    def case(targets: list[list[int]], frames: list[int], vocab: int, **options: float) -> Case:
        blank, scale = int(options.get("blank", 0)), options.get("scale", 1.0)
        width = max(1, *(len(target) for target in targets))
        padded = np.full((len(targets), width), 1 if blank == 0 else 0, np.int64)
        for row, target in zip(padded, targets, strict=True):
            row[: len(target)] = target
        shape = (len(targets), int(options.get("num_frames", max(frames))), vocab)
        # Rounded, so that every environment reads the same numbers in any precision.
        logits = np.round(rng.standard_normal(shape) * scale, 3)
        lengths = np.array([len(target) for target in targets], np.int64)
        return Case(logits, padded, np.array(frames, np.int64), lengths, blank)

    def random_target(length: int, vocab: int, blank: int) -> list[int]:
        labels = rng.integers(0, vocab - 1, length)
        return [int(label) for label in labels + (labels >= blank)]

    cases = {
        "plain": case([[1, 2, 3], [4, 2]], [8, 6], 6),
        "blank_last": case([[0, 1, 2], [3, 0, 3]], [8, 9], 5, blank=4),
        "blank_middle": case([[0, 1, 3, 4], [4, 4]], [9, 7], 5, blank=2),
        "repeats": case([[1, 1, 2, 2], [3, 3, 3]], [9, 9], 5),
        "tight": case([[1, 1, 2], [1, 2, 3]], [4, 3], 5),
        "empty_target": case([[], [1, 2]], [5, 6], 4),
        "all_empty": case([[], []], [3, 5], 4),
        "one_frame": case([[2], []], [1, 1], 4, num_frames=2),
        "infeasible": case([[1, 1, 1], [1, 2]], [4, 5], 4),
        "padding": case([[1, 2], [2, 1, 3]], [4, 7], 5, num_frames=12),
        "large_logits": case([[1, 2, 3], [3, 3]], [9, 8], 6, scale=30.0),
        "extreme_logits": case([[1, 2], [3, 2, 1]], [6, 8], 5, scale=1000.0),
        "two_labels": case([[1, 1, 1, 1, 1]], [20], 2),
        "long": case([random_target(20, 29, 0), random_target(14, 29, 0)], [60, 51], 29, scale=2.0),
        "wide": case([random_target(5, 99, 98), random_target(4, 99, 98)], [12, 10], 99, blank=98),
    }
    # A model that has only learned to say blank, and one that is sure of its path.
    collapsed = np.round(cases["long"].logits + 20.0 * (np.arange(29) == 0), 3)
    cases["collapsed"] = cases["long"]._replace(logits=collapsed)
    peaky = cases["plain"].logits.copy()
    for utterance, path in enumerate(([0, 1, 1, 0, 2, 0, 3, 3], [4, 0, 0, 2, 2, 0, 0, 0])):
        peaky[utterance, np.arange(8), path] += 12.0
    cases["peaky"] = cases["plain"]._replace(logits=peaky)
    return cases


def ask_torch(case: Case) -> Answer:
    import torch
    import torch.nn.functional as F

    logits = torch.tensor(case.logits, requires_grad=True)
    losses = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor(case.targets),
        torch.tensor(case.input_lengths),
        torch.tensor(case.target_lengths),
        case.blank,
        reduction="none",
    )
    losses.sum().backward()
    return Answer(losses.detach().numpy(), logits.grad.numpy())


def ask_jax(case: Case) -> Answer:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import optax

    def padding(lengths: np.ndarray, width: int) -> jax.Array:
        return jnp.asarray(np.arange(width) >= lengths[:, None], dtype=jnp.float64)

    def losses(logits: jax.Array) -> jax.Array:
        return optax.ctc_loss(
            logits,
            padding(case.input_lengths, case.logits.shape[1]),
            jnp.asarray(case.targets),
            padding(case.target_lengths, case.targets.shape[1]),
            blank_id=case.blank,
            log_epsilon=-1e30,
        )

    logits = jnp.asarray(case.logits)
    return Answer(np.asarray(losses(logits)), np.asarray(jax.grad(lambda x: losses(x).sum())(logits)))


def ask_tensorflow(case: Case) -> Answer:
    import tensorflow as tf

    logits = tf.Variable(case.logits.astype(np.float32))
    with tf.GradientTape() as tape:
        losses = tf.nn.ctc_loss(
            tf.constant(case.targets, tf.int32),
            logits,
            tf.constant(case.target_lengths, tf.int32),
            tf.constant(case.input_lengths, tf.int32),
            logits_time_major=False,
            blank_index=case.blank,
        )
        total = tf.reduce_sum(losses)
    return Answer(losses.numpy(), tape.gradient(total, logits).numpy())


def ask_keras(case: Case) -> Answer:
    """Keras' loss takes probabilities, and its blank is the last label."""
    from keras.src.legacy.backend import ctc_batch_cost

    order = [label for label in range(case.logits.shape[-1]) if label != case.blank] + [case.blank]
    new_label = np.argsort(order)
    exponentials = np.exp(case.logits - case.logits.max(-1, keepdims=True))[..., order]
    probs = (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)
    labels, frames, counts = new_label[case.targets], case.input_lengths, case.target_lengths
    return Answer(np.asarray(ctc_batch_cost(labels, probs, frames[:, None], counts[:, None]))[:, 0], None)


def ask_paddle(case: Case) -> Answer:
    import paddle
    import paddle.nn.functional as F

    if not case.target_lengths.any():
        raise ValueError("a batch without any label ends the process with an arithmetic fault")
    logits = paddle.to_tensor(case.logits.transpose(1, 0, 2), stop_gradient=False)
    losses = F.ctc_loss(
        logits,
        paddle.to_tensor(case.targets.astype(np.int32)),
        paddle.to_tensor(case.input_lengths),
        paddle.to_tensor(case.target_lengths),
        blank=case.blank,
        reduction="none",
    )
    losses.sum().backward()
    return Answer(losses.numpy().reshape(-1), logits.grad.numpy().transpose(1, 0, 2))


LIBRARIES: dict[str, dict[str, Callable[[Case], Answer]]] = {
    "torch": {"torch": ask_torch},
    "jax": {"jax": ask_jax},
    "tensorflow": {"tensorflow": ask_tensorflow, "keras": ask_keras},
    "paddle": {"paddle": ask_paddle},
}


def main() -> None:
    library, folder = sys.argv[1], Path(sys.argv[2])
    cases = make_cases()
    inputs = {
        f"{name}.{field}": value for name, case in cases.items() for field, value in case._asdict().items()
    }
    np.savez_compressed(folder / "ctc_cases.npz", **inputs)
    for name, ask in LIBRARIES[library].items():
        answers: dict[str, np.ndarray] = {}
        for case_name, case in cases.items():
            try:
                answer = ask(case)
            except Exception as error:  # a library that refuses a case has no answer for it
                sys.stdout.write(f"{name} refuses {case_name}: {str(error).splitlines()[0]}\n")
                continue
            answers[f"{case_name}.losses"] = answer.losses
            if answer.gradient is not None:
                answers[f"{case_name}.gradient"] = answer.gradient.astype(np.float32)
        np.savez_compressed(folder / f"ctc_{name}.npz", **answers)
        sys.stdout.write(f"{name}: {sum(key.endswith('.losses') for key in answers)} of {len(cases)} cases\n")


if __name__ == "__main__":
    main()
