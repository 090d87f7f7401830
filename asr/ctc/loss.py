"""The CTC loss: ``torch.nn.CTCLoss`` as a drop-in, plus every calling convention that people bring along.

``loss = CTCLoss(); loss(log_probs, targets, input_lengths, target_lengths)`` behaves as PyTorch's
does, with three additions: a contract that is checked (see :mod:`asr.ctc.contract`), a choice of what
the input holds and how its axes are ordered, and a choice of backend.
"""

import functools
import logging
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from asr.ctc import native, reference
from asr.ctc.contract import (
    CTCProblem,
    DeferredChecks,
    Inputs,
    Layout,
    Lengths,
    Rules,
    inspect_integers,
    inspect_rows,
    prepare,
    raise_on_integers,
    raise_on_rows,
)
from asr.errors import ConfigError

Backend = Literal["auto", "native", "fused", "reference"]
Reduction = Literal["none", "mean", "sum"]

_log = logging.getLogger(__name__)
_deferred_checks = DeferredChecks()


class CTCResult(NamedTuple):
    """What one call found.

    - ``loss``: as ``reduction`` says: ``()`` for mean and sum, ``(batch,)`` for none (``()`` if unbatched)
    - ``per_utterance``: ``(batch,)`` negative log-likelihood in nats, detached, before ``zero_infinity``:
      +inf marks an utterance without any alignment
    - ``backend``: which kernel ran
    """

    loss: Tensor
    per_utterance: Tensor
    backend: str


class CTCLoss(nn.Module):
    """Connectionist temporal classification loss (Graves et al. 2006).

    Args:
        blank: index of the blank; negative counts from the end, so -1 is TensorFlow's "blank last".
        reduction: ``"mean"`` divides each loss by its target length (at least 1) and averages over the
            batch, ``"sum"`` adds, ``"none"`` returns ``(batch,)``, all exactly as PyTorch does.
        zero_infinity: count utterances without an alignment as zero; they are named in the log.
        inputs: what the scores are: ``"log_probs"`` (as PyTorch), ``"logits"`` (as Paddle and
            TensorFlow; the softmax happens inside) or ``"probs"`` (as Keras).
        layout: ``"TNC"`` for ``(frames, batch, vocab)`` or ``"NTC"`` for ``(batch, frames, vocab)``.
        backend: ``"auto"`` picks by device and type; ``"native"`` is PyTorch's; ``"fused"`` is compiled
            for CPU or GPU; ``"reference"`` is slow, readable and twice differentiable.
        check: verify the contract. Without it only what protects memory is verified. On a GPU nothing
            waits for the device: a breach is reported by a later call or by :meth:`check_pending`.

    Gradient convention: with ``inputs="log_probs"`` every backend returns probability minus occupancy,
    as PyTorch does, which assumes a log_softmax before it. It is not the derivative with respect to free
    log-probabilities (that is minus occupancy), but behind a log_softmax both are the same. With logits
    it is the true derivative. Utterances with an infinite loss get a zero gradient (PyTorch: nan).

    Which input is cheapest: logits, because the fused kernels then make the softmax and its derivative
    on the way. Behind a log_softmax they still save the recursion's time but not the log_softmax's own,
    which with thousands of labels is most of what is left.

    After a call, ``losses`` holds its detached per-utterance losses ``(batch,)``, whatever the reduction.
    """

    losses: Tensor | None

    def __init__(
        self,
        blank: int = 0,
        reduction: Reduction = "mean",
        zero_infinity: bool = False,
        *,
        inputs: Inputs = "log_probs",
        layout: Layout = "TNC",
        backend: Backend = "auto",
        check: bool = True,
    ) -> None:
        super().__init__()
        _check_options(reduction=reduction, inputs=inputs, layout=layout, backend=backend)
        self.blank = blank
        self.reduction: Reduction = reduction
        self.zero_infinity = zero_infinity
        self.inputs: Inputs = inputs
        self.layout: Layout = layout
        self.backend: Backend = backend
        self.check = check
        self.losses = None

    def extra_repr(self) -> str:
        return (
            f"blank={self.blank}, reduction={self.reduction!r}, zero_infinity={self.zero_infinity}, "
            f"inputs={self.inputs!r}, layout={self.layout!r}, backend={self.backend!r}, check={self.check}"
        )

    def forward(self, x: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths) -> Tensor:
        """Loss of a batch; see :func:`asr.ctc.contract.prepare` for the accepted shapes."""
        result = ctc_loss_result(
            x,
            targets,
            input_lengths,
            target_lengths,
            blank=self.blank,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
            inputs=self.inputs,
            layout=self.layout,
            backend=self.backend,
            check=self.check,
        )
        self.losses = result.per_utterance
        return result.loss

    @staticmethod
    def check_pending() -> None:
        """Wait for the checks of earlier GPU calls and raise what they found; free on CPU."""
        _deferred_checks.poll(wait=True)


def ctc_loss(
    x: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    inputs: Inputs = "log_probs",
    layout: Layout = "TNC",
    backend: Backend = "auto",
    check: bool = True,
) -> Tensor:
    """Functional form of :class:`CTCLoss`, with the argument order of ``torch.nn.functional.ctc_loss``."""
    _check_options(reduction=reduction, inputs=inputs, layout=layout, backend=backend)
    return ctc_loss_result(
        x,
        targets,
        input_lengths,
        target_lengths,
        blank=blank,
        reduction=reduction,
        zero_infinity=zero_infinity,
        inputs=inputs,
        layout=layout,
        backend=backend,
        check=check,
    ).loss


def ctc_loss_result(
    x: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    inputs: Inputs = "log_probs",
    layout: Layout = "TNC",
    backend: Backend = "auto",
    check: bool = True,
) -> CTCResult:
    """As :func:`ctc_loss`, with the per-utterance losses and the backend's name beside the loss."""
    problem = prepare(x, targets, input_lengths, target_lengths, blank=blank, layout=layout)
    rules = Rules.of(problem, inputs, x.dtype, zero_infinity)
    chosen = _choose(backend, problem)
    integers = _check_integers(chosen, problem, rules, check)
    found = _run(chosen, problem, rules, check, _expected_gradient(problem, reduction))
    losses = found.losses
    if check:
        _check_rows(problem, rules, integers, found)
    loss = _reduce(losses, problem.target_lengths, reduction, zero_infinity)
    if x.dim() == 2 and reduction == "none":
        loss = loss.squeeze(0)
    return CTCResult(loss, losses.detach(), chosen)


def _check_options(**options: str) -> None:
    allowed = {"reduction": Reduction, "inputs": Inputs, "layout": Layout, "backend": Backend}
    for name, value in options.items():
        choices = get_args(allowed[name])
        if value not in choices:
            raise ConfigError(f"CTCLoss: {name}={value!r} is not one of {', '.join(map(repr, choices))}")


class _Found(NamedTuple):
    """Losses ``(batch,)`` and what a backend learned about rows on the way; see the backends' results."""

    losses: Tensor
    bad_frames: np.ndarray | None = None
    row_log_totals: Tensor | None = None


def _check_integers(chosen: str, problem: CTCProblem, rules: Rules, check: bool) -> Tensor | None:
    """Lengths and labels. On a GPU they are only gathered, and what earlier calls gathered is judged."""
    if problem.scores.is_cuda:
        if not check:
            return None
        _deferred_checks.poll()
        return inspect_integers(problem)
    if chosen == "fused-cpu":
        from asr.ctc import fused_cpu

        if not fused_cpu.has_breach(problem):
            return None
    facts = inspect_integers(problem)
    raise_on_integers(facts, rules, only_memory=not check)
    return facts


def _check_rows(problem: CTCProblem, rules: Rules, integers: Tensor | None, found: _Found) -> None:
    """Look for a bad row where the backend saw one, a loss shows one, or nobody has looked yet."""
    if problem.scores.is_cuda:
        if integers is not None:
            _deferred_checks.submit(integers, inspect_rows(problem, rules, found.row_log_totals), rules)
        return
    if found.bad_frames is not None:
        is_suspicious = int(found.bad_frames.max()) >= 0
    else:
        is_suspicious = rules.inputs != "logits" or bool(found.losses.isnan().any())
    if is_suspicious:
        raise_on_rows(inspect_rows(problem, rules), rules)


def _choose(backend: Backend, problem: CTCProblem) -> str:
    """Name of the kernel to run; says once per outcome why."""
    if backend in ("native", "reference"):
        return backend
    name, reason = _find_fused(problem.scores.device.type, problem.scores.dtype)
    if backend == "auto":
        _announce(name or "native", reason)
        return name or "native"
    if name is None:
        raise ConfigError(
            f"CTCLoss: backend='fused' cannot run here: {reason}; use backend='auto' or 'native'"
        )
    return name


@functools.cache
def _find_fused(device: str, dtype: torch.dtype) -> tuple[str | None, str]:
    """The fused backend for a kind of tensor, or None with the reason."""
    try:
        if device == "cpu":
            import asr.ctc.fused_cpu

            return "fused-cpu", "compiled for the CPU with numba"
        if device == "cuda" and dtype == torch.float32:
            import asr.ctc.fused_gpu  # noqa: F401

            return "fused-gpu", "compiled for the GPU with Triton"
    except ImportError as error:
        return None, f"its compiler cannot be loaded ({error})"
    return None, f"there is no fused kernel for {dtype} on {device} devices"


@functools.cache
def _announce(name: str, reason: str) -> None:
    _log.info("CTC loss backend: %s (%s)", name, reason)


def _run(name: str, problem: CTCProblem, rules: Rules, check: bool, expected: Tensor | None) -> _Found:
    is_normalised = rules.inputs != "logits"
    if rules.inputs == "probs":
        problem = problem._replace(scores=_log_of_probs(problem.scores))
    if name == "fused-cpu":
        from asr.ctc import fused_cpu

        tolerance = rules.row_tolerance if check and is_normalised else None
        on_cpu = fused_cpu.per_utterance(problem, is_normalised, tolerance, expected)
        return _Found(on_cpu.losses, bad_frames=on_cpu.bad_frames)
    if name == "fused-gpu":
        from asr.ctc import fused_gpu

        on_gpu = fused_gpu.per_utterance(problem, is_normalised, check)
        return _Found(on_gpu.losses, row_log_totals=on_gpu.row_log_totals)
    if name == "native":
        return _Found(native.per_utterance(problem, is_normalised))
    if is_normalised:
        problem = problem._replace(scores=cast(Tensor, reference.AssumeLogSoftmax.apply(problem.scores)))
    return _Found(reference.per_utterance(problem, is_normalised))


def _expected_gradient(problem: CTCProblem, reduction: Reduction) -> Tensor | None:
    """What backward will hand to the per-utterance losses when nothing follows the reduction."""
    if reduction != "mean" or problem.scores.is_cuda:
        return None
    share = torch.ones((), dtype=problem.scores.dtype) / len(problem.target_lengths)
    return share / problem.target_lengths.clamp_min(1).to(problem.scores)


def _log_of_probs(probs: Tensor) -> Tensor:
    """Log with -inf, and no gradient instead of nan, where a probability is zero."""
    is_possible = probs > 0
    return torch.where(is_possible, probs, 1.0).log().masked_fill(~is_possible, -torch.inf)


def _reduce(losses: Tensor, target_lengths: Tensor, reduction: Reduction, zero_infinity: bool) -> Tensor:
    if zero_infinity:
        losses = torch.where(losses.isinf(), 0.0, losses)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses / target_lengths.clamp_min(1).to(losses)).mean()
