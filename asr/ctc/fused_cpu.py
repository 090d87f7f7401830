"""The fused CPU backend: hands tensors to the compiled kernels, utterances spread over threads."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr.ctc.contract import CTCProblem, row_tolerance
from asr.ctc.cpu_kernels import Geometry, Options, solve


class Solution(NamedTuple):
    """``losses``: ``(batch,)`` as the scores' type; ``bad_rows``: ``(batch, 2)`` float64, see ``solve``.

    ``gradient`` has the shape and strides of the scores, or is None.
    """

    losses: Tensor
    bad_rows: Tensor
    gradient: Tensor | None


def solve_problem(
    problem: CTCProblem, is_normalised: bool, checks_rows: bool, weights: Tensor | None
) -> Solution:
    """Run the kernels. ``weights`` ``(batch,)`` scales each utterance's gradient; None computes losses only."""
    scores = _dense(problem.scores.detach())
    batch, num_frames, vocab = scores.shape
    memory = scores.transpose(0, 1) if scores.stride(0) < scores.stride(1) else scores
    geometry = Geometry(scores.stride(0), scores.stride(1), num_frames, vocab)
    options = Options(problem.blank, is_normalised, checks_rows, row_tolerance(scores.dtype))
    flat = memory.reshape(-1).numpy()
    gradient = _borrow(flat.size if weights is not None else 0, scores.dtype)
    losses, bad_rows = np.empty(batch), np.full((batch, 2), -1.0)
    input_lengths, target_lengths = problem.input_lengths.numpy(), problem.target_lengths.numpy()
    exponents = np.empty(0, np.int32 if flat.dtype == np.float32 else np.int64)
    scale = np.ones(batch) if weights is None else weights.double().numpy()
    targets = problem.targets.contiguous().numpy()

    def work(utterances: Any) -> None:
        solve(
            utterances, flat, targets, input_lengths, target_lengths, scale, losses, bad_rows, gradient, exponents,
            geometry, options,
        )  # fmt: skip

    _spread(work, input_lengths * (target_lengths + vocab))
    result = None
    if weights is not None:
        result = torch.from_numpy(gradient).view(memory.shape)
        result = result.transpose(0, 1) if memory is not scores else result
    return Solution(torch.from_numpy(losses).to(scores.dtype), torch.from_numpy(bad_rows), result)


_spare: dict[torch.dtype, np.ndarray] = {}
_SPARE_MIN_BYTES = 2**20


def _borrow(size: int, dtype: torch.dtype) -> np.ndarray:
    """Memory for a gradient, the previous one's if nobody holds it any more.

    Large blocks go back to the operating system when freed, and getting them anew, page by page, takes
    longer than filling them with a gradient. One block per type is kept.
    """
    spare = _spare.pop(dtype, None)
    # Referenced here and by getrefcount's argument only: no tensor lives on it.
    if spare is None or spare.size < size or sys.getrefcount(spare) > 2:
        spare = torch.empty(size, dtype=dtype).numpy()
    if spare.nbytes >= _SPARE_MIN_BYTES:
        _spare[dtype] = spare
    return spare[:size]


def _dense(scores: Tensor) -> Tensor:
    """As given if its memory is one block in either axis order, otherwise a copy."""
    is_dense = scores.is_contiguous() or scores.transpose(0, 1).is_contiguous()
    return scores if is_dense else scores.contiguous()


def _spread(work: Any, costs: np.ndarray) -> None:
    """Divide utterances among as many threads as torch uses, the longest first, and wait for all."""
    order = np.argsort(-costs, kind="stable")
    num_threads = min(torch.get_num_threads(), len(order))
    if num_threads == 1:
        work(order)
        return
    shares: list[list[int]] = [[] for _ in range(num_threads)]
    loads = [0] * num_threads
    for utterance in order.tolist():
        lightest = loads.index(min(loads))
        shares[lightest].append(utterance)
        loads[lightest] += int(costs[utterance])
    own, *others = (np.array(share) for share in shares)
    pending = [_threads().submit(work, share) for share in others]
    work(own)
    for future in pending:
        future.result()


_pools: dict[int, ThreadPoolExecutor] = {}


def _threads() -> ThreadPoolExecutor:
    """This process's pool: threads do not survive a fork."""
    process = os.getpid()
    if process not in _pools:
        _pools.clear()
        _pools[process] = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ctc")
    return _pools[process]
