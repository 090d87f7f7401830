"""The fused CPU backend: hands tensors to the compiled kernels, utterances spread over threads."""

import ctypes
import functools
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.ctc.contract import CTCProblem
from asr.ctc.cpu_kernels import Geometry, Options, keeps_contract, solve


class Solution(NamedTuple):
    """What the kernels found.

    - ``losses``: ``(batch,)`` in the type of the scores, +inf where there is no alignment
    - ``bad_frames``: ``(batch,)`` int64, the first frame whose probabilities do not sum to one; -1: none,
      or not checked; 0 also if the loss is not a number
    """

    losses: Tensor
    bad_frames: np.ndarray


def per_utterance(
    problem: CTCProblem,
    is_normalised: bool,
    row_tolerance: float | None,
    expected_gradient: Tensor | None = None,
) -> Solution:
    """Losses with their gradient, which is computed along with them when the scores require one.

    ``is_normalised`` says that the scores are log-probabilities (the gradient then follows PyTorch's
    convention); otherwise they are logits. With a ``row_tolerance`` log-probabilities are checked
    on the way. ``expected_gradient`` ``(batch,)``, default ones, is what
    backward will probably be called with: if so, it costs nothing there.
    """
    return Solution(*_Fused.apply(problem.scores, problem, is_normalised, row_tolerance, expected_gradient))


def has_breach(problem: CTCProblem) -> bool:
    """Whether lengths or labels break the contract; which one and where is found out elsewhere."""
    _, num_frames, vocab = problem.scores.shape
    return not keeps_contract(*_integer_arrays(problem), num_frames, vocab, problem.blank)


def _integer_arrays(problem: CTCProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and lengths; contiguous, because numba compiles once for each kind of array it meets."""
    return (
        problem.targets.contiguous().numpy(),
        problem.input_lengths.contiguous().numpy(),
        problem.target_lengths.contiguous().numpy(),
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        problem: CTCProblem,
        is_normalised: bool,
        row_tolerance: float | None,
        expected: Tensor | None,
    ) -> tuple[Tensor, np.ndarray]:
        has_gradient = ctx.needs_input_grad[0]
        weights = np.ones(len(scores), _NUMPY[scores.dtype]) if expected is None else expected.numpy()
        losses, bad_frames, gradient = _solve(
            problem._replace(scores=scores), is_normalised, row_tolerance, weights if has_gradient else None
        )
        if has_gradient:
            ctx.save_for_backward(scores)
            ctx.problem, ctx.is_normalised = problem._replace(scores=scores.detach()), is_normalised
            ctx.gradient, ctx.weights = gradient, weights
        ctx.set_materialize_grads(False)
        return losses, bad_frames

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 5
        outer = gradients[0].numpy()
        # The gradient is scaled in place and given away, so a second backward computes it anew.
        gradient, ctx.gradient = ctx.gradient, None
        _ = ctx.saved_tensors  # fails if the scores have been changed in place
        if gradient is None:
            _, _, gradient = _solve(ctx.problem, ctx.is_normalised, None, outer)
        elif not np.array_equal(outer, ctx.weights):
            gradient.mul_(torch.from_numpy(outer / ctx.weights)[:, None, None])
        return gradient, None, None, None, None


_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


def _solve(
    problem: CTCProblem, is_normalised: bool, row_tolerance: float | None, weights: np.ndarray | None
) -> tuple[Tensor, np.ndarray, Tensor | None]:
    """Losses, bad frames and, scaled by ``weights``, the gradient with the strides of the scores."""
    scores = _dense(problem.scores)
    batch, num_frames, vocab = scores.shape
    is_time_first = scores.stride(0) < scores.stride(1)
    geometry = Geometry(scores.stride(0), scores.stride(1), num_frames, vocab)
    options = Options(
        problem.blank, is_normalised, is_normalised and row_tolerance is not None, row_tolerance or 0.0
    )
    array = scores.detach().numpy()
    flat = (array.transpose(1, 0, 2) if is_time_first else array).reshape(-1)
    gradient = _borrow(flat.size if weights is not None else 0, scores.dtype)
    losses, bad_frames = np.empty(batch, flat.dtype), np.empty(batch, np.int64)
    targets, input_lengths, target_lengths = _integer_arrays(problem)
    scale = np.ones(batch, flat.dtype) if weights is None else np.ascontiguousarray(weights)
    exponents = np.empty(0, np.int32 if flat.dtype == np.float32 else np.int64)

    costs = input_lengths * (target_lengths + vocab)
    arguments = (
        np.argsort(-costs, kind="stable"), np.zeros(1, np.int64), flat, targets, input_lengths, target_lengths,
        scale, losses, bad_frames, gradient, exponents, geometry, options,
    )  # fmt: skip
    _share(lambda run_team, num_threads: solve(run_team, num_threads, *arguments), int(costs.sum()), batch)
    shaped = None
    if weights is not None:
        shape = (num_frames, batch, vocab) if is_time_first else (batch, num_frames, vocab)
        # The tensor must hold the lent array itself: numpy's views of it would hold the memory behind it.
        shaped = torch.from_numpy(gradient).view(shape)
        shaped = shaped.transpose(0, 1) if is_time_first else shaped
    return torch.from_numpy(losses), bad_frames, shaped


class _Block(NamedTuple):
    """Memory, and the part of it that was lent to a tensor, which lives as long as the tensor does."""

    memory: np.ndarray
    lent: weakref.ref[np.ndarray]


_spare_blocks: dict[torch.dtype, _Block] = {}
_SPARE_MIN_BYTES = 2**16


def _borrow(size: int, dtype: torch.dtype) -> np.ndarray:
    """Memory for a gradient, the previous one's if no tensor lives on it any more.

    Large blocks go back to the operating system when freed, and getting them anew, page by page, takes
    longer than filling them with a gradient. One block per type is kept.
    """
    block = _spare_blocks.pop(dtype, None)
    is_free = block is not None and block.lent() is None and block.memory.size >= size
    memory = block.memory if block is not None and is_free else torch.empty(size, dtype=dtype).numpy()
    lent = memory[:size]
    if memory.nbytes >= _SPARE_MIN_BYTES:
        _spare_blocks[dtype] = _Block(memory, weakref.ref(lent))
    return lent


def _dense(scores: Tensor) -> Tensor:
    """As given if its memory is one block in either axis order, otherwise a copy."""
    is_dense = scores.is_contiguous() or scores.transpose(0, 1).is_contiguous()
    return scores if is_dense else scores.contiguous()


# Frames times entries visited that are worth waking another thread for: about a tenth of a millisecond.
_COST_PER_THREAD = 2**15


def _share(work: Callable[[int, int], None], cost: int, num_utterances: int) -> None:
    """Have ``work`` done by as many threads as torch uses; see ``solve`` for its arguments.

    Torch's own threads are the ones to use: for milliseconds after each of torch's operations they keep
    the processors busy, waiting for the next, and others would get no turn.
    """
    num_threads = torch.get_num_threads()
    num_useful = min(num_threads, num_utterances, 1 + cost // _COST_PER_THREAD)
    if num_useful == 1:
        work(0, 1)
    elif run_team := _openmp():
        # A team of another size would make OpenMP end threads and start new ones.
        work(run_team, num_threads)
    else:
        pending = [_threads().submit(work, 0, 1) for _ in range(num_useful - 1)]
        work(0, 1)
        for future in pending:
            future.result()


_first_process = os.getpid()


def _openmp() -> int:
    """Address of the function that starts torch's OpenMP threads; zero where there is none.

    OpenMP's threads do not survive a fork, and it does not notice.
    """
    return _find_openmp() if os.getpid() == _first_process else 0


@functools.cache
def _find_openmp() -> int:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # What torch was linked with is found first, whatever other OpenMP the process has loaded.
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_pools: dict[int, ThreadPoolExecutor] = {}


def _threads() -> ThreadPoolExecutor:
    """This process's pool: threads do not survive a fork."""
    process = os.getpid()
    if process not in _pools:
        _pools.clear()
        _pools[process] = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ctc")
    return _pools[process]
