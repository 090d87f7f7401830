# numba infers the types of what it compiles, and calls intrinsics without their first argument:
# mypy: disable-error-code="no-untyped-def,call-arg,var-annotated,arg-type"
"""CTC in one pass over each utterance: scores in, loss and gradient of the scores out, compiled by numba.

How it is fast. Only the states of the target are visited, and of those only the ones that can be
reached and can still reach the end. Blank and label states lie in separate arrays, so that all moves of
the recursion are plain vector loads. The normaliser of each row, the recursion and the gradient
(probability minus occupancy) never become tensors of their own: besides the gradient, a thread holds
the forward variables of one utterance.

How it is exact. A state is a mantissa and an integer exponent. Adding states costs shifts instead of
logarithms, nothing underflows however peaky, collapsed or long the input is, and rounding stays relative:
there is no large log-probability to lose digits in. Emissions are taken relative to the row's maximum and
occupancies are normalised per frame, so an error in a row's normaliser cannot spread to other frames.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from asr.compiling import compiled_to_disk
from asr.ctc import lanes as vectors
from asr.ctc.lanes import LANES, NEVER, ROW_LANES, Lanes, Row, array_data, inside, over_blocks, over_row

_RENORMALISE_EVERY = 8
# Shares of a frame that are lost in the rounding of its gradient: in single and in double precision.
_LEAST_SINGLE, _LEAST_DOUBLE = 2.0**-36, 2.0**-66
_LN_2 = math.log(2)


def _compile(function: Callable[..., Any]) -> Any:
    return numba.njit(function, nogil=True, error_model="numpy")


def _compile_to_disk(function: Callable[..., Any]) -> Any:
    return compiled_to_disk(function, [Path(vectors.__file__)], nogil=True, error_model="numpy")


@intrinsic
def _forward(typing, m, e, before, now, half, skips, scores, blank, maximum, first, last):
    """One frame of the forward recursion for the blocks ``first..last``.

    blank i <- blank i, label i-1;  label i <- label i, blank i, and label i-1 unless equal.
    """
    scalar, index = m.dtype, types.int64
    arguments = (m, e, index, index, index, skips, scores, scalar, scalar, index, index)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = Lanes(context, builder, scalar)
        m, e, skips, scores = (
            array_data(context, builder, signature.args[k], values[k]) for k in (0, 1, 5, 6)
        )
        before, now, half, blank, maximum, first, last = (values[k] for k in (2, 3, 4, 7, 8, 9, 10))
        old, new = Row(lanes, m, e, before, half), Row(lanes, m, e, now, half)
        maximum = lanes.splat(maximum)
        blank_emission = lanes.exp2_state(lanes.log2_ratio(lanes.splat(blank), maximum))
        with over_blocks(builder, first, last) as loop:
            block, position = loop.index, inside(builder, loop.index)
            blanks, labels = old.load("blank", block), old.load("label", block)
            entering = old.load("label", block, shift=-1)
            skipping = entering[0], builder.add(entering[1], lanes.load(skips, position))
            new.store(lanes.emit(lanes.total(blanks, entering), blank_emission), "blank", block)
            emission = lanes.exp2_state(lanes.log2_ratio(lanes.load(scores, position), maximum))
            new.store(lanes.emit(lanes.total(labels, blanks, skipping), emission), "label", block)
        new.fence(first, last)
        return context.get_dummy_value()

    return types.void(*arguments), generate


@intrinsic
def _backward(
    typing, m, e, row, qm, qe, later, now, half, skips, scores, occupancy, blank, maximum, scale, first, last
):
    """One frame of the backward recursion, and the occupancy of each state on the way.

    ``q`` holds emission times backward variable of the later frame and receives this frame's. ``m`` and
    ``e`` hold the forward variables; ``2**scale`` is about the total probability, so that occupancies,
    forward times backward over total, stay near one. Label occupancies are stored; returned are the sums
    over blanks and over labels.
    """
    scalar, index = m.dtype, types.int64
    arrays = (m, e, index, qm, qe, index, index, index, skips, scores, occupancy)
    arguments = (*arrays, scalar, scalar, e.dtype, index, index)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = Lanes(context, builder, scalar)
        m, e, qm, qe, skips, scores, occupancy = (
            array_data(context, builder, signature.args[k], values[k]) for k in (0, 1, 3, 4, 8, 9, 10)
        )
        row, later, now, half, blank, maximum, scale, first, last = (
            values[k] for k in (2, 5, 6, 7, 11, 12, 13, 14, 15)
        )
        alpha = Row(lanes, m, e, row, half)
        old, new = Row(lanes, qm, qe, later, half), Row(lanes, qm, qe, now, half)
        maximum, scale = lanes.splat(maximum), lanes.splat(scale)
        blank_emission = lanes.exp2_state(lanes.log2_ratio(lanes.splat(blank), maximum))
        sums = {kind: cgutils.alloca_once_value(builder, lanes.constant(0)) for kind in ("blank", "label")}

        def occupy(kind: str, block: Any, beta: Any) -> Any:
            mantissa, exponent = alpha.load(kind, block)
            exponent = builder.sub(builder.add(exponent, beta[1]), scale)
            exponent = lanes.minimum(exponent, lanes.integer(lanes.bias))
            product = lanes.multiply(lanes.multiply(mantissa, beta[0]), lanes.power_of_two(exponent))
            builder.store(lanes.add(builder.load(sums[kind]), product), sums[kind])
            return product

        with over_blocks(builder, first, last) as loop:
            block, position = loop.index, inside(builder, loop.index)
            blanks, labels = old.load("blank", block), old.load("label", block)
            next_blanks, next_labels = old.load("blank", block, shift=1), old.load("label", block, shift=1)
            next_skips = lanes.load(skips, builder.add(position, position.type(1)))
            skipping = next_labels[0], builder.add(next_labels[1], next_skips)
            beta = lanes.total(blanks, labels)
            occupy("blank", block, beta)
            new.store(lanes.emit(beta, blank_emission), "blank", block)
            beta = lanes.total(labels, next_blanks, skipping)
            lanes.store(occupy("label", block, beta), occupancy, position)
            emission = lanes.exp2_state(lanes.log2_ratio(lanes.load(scores, position), maximum))
            new.store(lanes.emit(beta, emission), "label", block)
        new.fence(first, last)
        blank_sum, label_sum = (
            lanes.reduce(builder.load(sums[kind]), lanes.add) for kind in ("blank", "label")
        )
        return context.make_tuple(builder, signature.return_type, (blank_sum, label_sum))

    return types.UniTuple(scalar, 2)(*arguments), generate


@intrinsic
def _renormalise(typing, m, e, row, half, shift, first, last):
    """Bring mantissas into [1, 2) and lower all exponents by ``shift``; returns the largest exponent."""
    scalar, index = m.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = Lanes(context, builder, scalar)
        m, e = (array_data(context, builder, signature.args[k], values[k]) for k in (0, 1))
        states = Row(lanes, m, e, values[2], values[3])
        shift = lanes.splat(values[4])
        top = cgutils.alloca_once_value(builder, lanes.integer(NEVER))
        with over_blocks(builder, values[5], values[6]) as loop:
            for kind in ("blank", "label"):
                mantissa, exponent = lanes.renormalise(*states.load(kind, loop.index), shift)
                states.store((mantissa, exponent), kind, loop.index)
                builder.store(lanes.maximum(builder.load(top), exponent), top)
        return lanes.reduce(builder.load(top), lanes.maximum)

    return e.dtype(m, e, index, index, e.dtype, index, index), generate


@intrinsic
def _row_maximum(typing, scores, start, count, ahead):
    """Largest of ``count`` scores; what it returns for nan shows in the sum that follows.

    The row that lies ``ahead`` of this one is fetched into the cache meanwhile.
    """
    scalar, index = scores.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = Lanes(context, builder, scalar, ROW_LANES)
        data = array_data(context, builder, signature.args[0], values[0])
        lowest = lanes.constant(-vectors.LARGEST[lanes.bits])
        largest = cgutils.alloca_once_value(builder, lowest)

        def visit(position: Any, mask: Any) -> None:
            lanes.prefetch(data, builder.add(position, values[3]))
            row = lanes.load_some(data, position, mask, lowest)
            builder.store(lanes.larger(row, builder.load(largest)), largest)

        over_row(builder, lanes, values[1], values[2], visit)
        return lanes.reduce(builder.load(largest), lanes.larger)

    return scalar(scores, index, index, index), generate


@intrinsic
def _row_sum(typing, scores, start, count, maximum):
    """Sum of ``exp(scores - maximum)`` over a row."""
    scalar, index = scores.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = array_data(context, builder, signature.args[0], values[0])
        return _sum_exp(Lanes(context, builder, scalar, ROW_LANES), data, *values[1:])

    return scalar(scores, index, index, scalar), generate


@intrinsic
def _row_softmax(typing, scores, start, count, maximum, gradient, factor, ahead):
    """Sum of ``exp(scores - maximum)`` over a row; ``gradient`` receives each term times ``factor``.

    The rows that lie ``ahead`` of these are fetched into the cache meanwhile.
    """
    scalar, index = scores.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = Lanes(context, builder, scalar, ROW_LANES)
        data, out = (array_data(context, builder, signature.args[k], values[k]) for k in (0, 4))
        factor = lanes.splat(values[5])

        def keep(term: Any, position: Any, mask: Any) -> None:
            later = builder.add(position, values[6])
            lanes.prefetch(data, later)
            lanes.prefetch(out, later, for_writing=True)
            lanes.store_some(lanes.multiply(term, factor), out, position, mask)

        return _sum_exp(lanes, data, *values[1:4], keep)

    return scalar(scores, index, index, scalar, gradient, scalar, index), generate


def _sum_exp(
    lanes: Lanes,
    data: Any,
    start: Any,
    count: Any,
    maximum: Any,
    keep: Callable[[Any, Any, Any], None] | None = None,
) -> Any:
    builder, maximum = lanes.builder, lanes.splat(maximum)
    total = cgutils.alloca_once_value(builder, lanes.constant(0))

    def visit(position: Any, mask: Any) -> None:
        row = lanes.load_some(data, position, mask, lanes.constant(-math.inf))
        # Unnormalised "log-probabilities" may be large: then the largest power stands for inf.
        term = lanes.exp2(lanes.smaller(lanes.constant(lanes.bias), lanes.log2_ratio(row, maximum)))
        builder.store(lanes.add(builder.load(total), term), total)
        if keep is not None:
            keep(term, position, mask)

    over_row(builder, lanes, start, count, visit)
    return lanes.reduce(builder.load(total), lanes.add)


class Geometry(NamedTuple):
    """Where rows lie: frame ``t`` of utterance ``n`` begins at ``n * utterance_step + t * frame_step``."""

    utterance_step: int
    frame_step: int
    num_frames: int
    vocab: int


class Options(NamedTuple):
    """``is_normalised``: scores are log-probabilities; ``checks_rows``: verify that they are."""

    blank: int
    is_normalised: bool
    checks_rows: bool
    row_tolerance: float


class _Workspace(NamedTuple):
    """What one thread needs, reused from utterance to utterance; see :class:`Row` for the order of states.

    ``m``, ``e``: forward variables, one row per frame after a first row for "before the first frame"
    (two alternating rows when only the loss is wanted); row ``t + 1`` is to be multiplied by
    ``2**offsets[t]``. ``qm``, ``qe``: two rows of the backward recursion.
    """

    m: np.ndarray
    e: np.ndarray
    offsets: np.ndarray
    maxima: np.ndarray
    normalisers: np.ndarray
    qm: np.ndarray
    qe: np.ndarray
    skips: np.ndarray
    emissions: np.ndarray
    occupancy: np.ndarray


class _Likelihood(NamedTuple):
    """``2**exponent`` is within a few powers of two of the total of all paths, relative to the maxima."""

    loss: float
    exponent: int


@_compile
def _half(num_labels):
    """Length of one kind of states in a row, padding included."""
    return (num_labels // LANES + 3) * LANES


@_compile
def _band(frame, num_frames, num_labels):
    """First and last block with states that are reachable and can still reach the end."""
    lowest = max(0, num_labels - (num_frames - frame))
    return lowest // LANES, min(num_labels, frame) // LANES


@_compile
def _gather(emissions, scores, base, labels, first, last):
    for i in range(first * LANES, min(len(labels), (last + 1) * LANES)):
        emissions[LANES + i] = scores[base + labels[i]]


@_compile
def _prepare_states(work, labels):
    """Empty the first row but for its leading blank, forbid skips between equal labels; frames needed."""
    half = _half(len(labels))
    work.m[: 2 * half] = 0
    work.e[: 2 * half] = NEVER
    work.m[LANES] = 1
    work.e[LANES] = 0
    work.qm[: 4 * half] = 0
    work.qe[: 4 * half] = NEVER
    work.skips[: half + 1] = NEVER
    work.emissions[:half] = -np.inf
    needed = len(labels)
    for i in range(1, len(labels)):
        if labels[i] == labels[i - 1]:
            needed += 1
        else:
            work.skips[LANES + i] = 0
    return needed


@_compile
def _run_forward(work, scores, start, labels, num_frames, keeps_rows, geometry, options):
    zero = scores.dtype.type(0)
    half, vocab = _half(len(labels)), geometry.vocab
    offset, shift = np.int64(0), np.int64(0)
    log_normalisers, product = 0.0, 1.0
    for t in range(num_frames):
        base = start + t * geometry.frame_step
        maximum = zero
        if not options.is_normalised:
            maximum = _row_maximum(scores, base, vocab, geometry.frame_step)
            total = _row_sum(scores, base, vocab, maximum)
            work.maxima[t], work.normalisers[t] = maximum, total
            # A logarithm every few frames: the sums lie between 1 and vocab, so this cannot overflow.
            product *= total
            if t % _RENORMALISE_EVERY == 0:
                log_normalisers += math.log(product)
                product = 1.0
        first, last = _band(t, num_frames, len(labels))
        _gather(work.emissions, scores, base, labels, first, last)
        before, now = (t, t + 1) if keeps_rows else (t % 2, (t + 1) % 2)
        _forward(
            work.m, work.e, before * 2 * half, now * 2 * half, half, work.skips, work.emissions,
            scores[base + options.blank], maximum, first, last,
        )  # fmt: skip
        if t % _RENORMALISE_EVERY == _RENORMALISE_EVERY - 1:
            top = _renormalise(work.m, work.e, now * 2 * half, half, work.e.dtype.type(shift), first, last)
            offset += shift
            shift = np.int64(top) if top > NEVER else np.int64(0)
        work.offsets[t] = offset
    end = (num_frames if keeps_rows else num_frames % 2) * 2 * half + LANES + len(labels)
    log_normalisers += math.log(product)
    return _total(work.m, work.e, end, end + half - 1, offset, log_normalisers)


@_compile
def _total(m, e, in_blank, in_label, offset, log_normalisers):
    """Combine the two states in which a path may end."""
    top = np.int64(max(e[in_blank], e[in_label]))
    total = m[in_blank] * 2.0 ** max(e[in_blank] - top, -1000.0)
    total += m[in_label] * 2.0 ** max(e[in_label] - top, -1000.0)
    if total == 0:
        # Without a single finite score in some row there is nothing to normalise by.
        return _Likelihood(np.inf if log_normalisers > -np.inf else np.nan, np.int64(0))
    exponent = top + offset
    return _Likelihood(log_normalisers - (math.log(total) + exponent * _LN_2), exponent)


@_compile
def _run_backward(work, scores, start, labels, num_frames, exponent, weight, gradient, geometry, options):
    """Write ``weight`` times the gradient of every frame; returns the first row that is not normalised."""
    half, vocab, blank = _half(len(labels)), geometry.vocab, options.blank
    maximum, normaliser = scores.dtype.type(0), scores.dtype.type(1)
    weight = scores.dtype.type(weight)
    bad_frame = -1
    offset, shift = np.int64(0), np.int64(0)
    end = (num_frames % 2) * 2 * half + LANES + len(labels)
    work.qm[end] = 1
    work.qe[end] = 0
    for t in range(num_frames - 1, -1, -1):
        base = start + t * geometry.frame_step
        if not options.is_normalised:
            maximum, normaliser = work.maxima[t], work.normalisers[t]
        first, last = _band(t, num_frames, len(labels))
        _gather(work.emissions, scores, base, labels, first, last)
        later, now = (t + 1) % 2 * 2 * half, t % 2 * 2 * half
        scale = work.e.dtype.type(exponent - work.offsets[t] - offset)
        blank_sum, label_sum = _backward(
            work.m, work.e, (t + 1) * 2 * half, work.qm, work.qe, later, now, half, work.skips, work.emissions,
            work.occupancy, scores[base + blank], maximum, scale, first, last,
        )  # fmt: skip
        if (num_frames - t) % _RENORMALISE_EVERY == 0:
            top = _renormalise(work.qm, work.qe, now, half, work.e.dtype.type(shift), first, last)
            offset += shift
            shift = np.int64(top) if top > NEVER else np.int64(0)
        ahead = -geometry.frame_step
        total = _row_softmax(scores, base, vocab, maximum, gradient, weight / normaliser, ahead)
        if options.checks_rows and not abs(total - 1) <= options.row_tolerance:
            bad_frame = t
        share = weight / (blank_sum + label_sum)
        gradient[base + blank] -= blank_sum * share
        # Most states are hardly ever occupied, and adding to memory is slow: what rounding would swallow is left.
        least = (_LEAST_SINGLE if scores.itemsize == 4 else _LEAST_DOUBLE) * (blank_sum + label_sum)
        for i in range(first * LANES, min(len(labels), (last + 1) * LANES)):
            if not work.occupancy[LANES + i] < least:
                gradient[base + labels[i]] -= work.occupancy[LANES + i] * share
    return bad_frame


@_compile
def _check_rows(scores, start, num_frames, geometry, options):
    """First row whose probabilities do not sum to one, -1 if all do."""
    for t in range(num_frames):
        base = start + t * geometry.frame_step
        total = _row_sum(scores, base, geometry.vocab, scores.dtype.type(0))
        if not abs(total - 1) <= options.row_tolerance:
            return t
    return -1


@_compile
def _allocate(scores, exponents, utterances, input_lengths, target_lengths, keeps_rows):
    rows, half, states = 2, 0, 0
    for n in utterances:
        rows = max(rows, input_lengths[n] + 1)
        half = max(half, _half(target_lengths[n]))
        kept = input_lengths[n] + 1 if keeps_rows else 2
        states = max(states, max(kept, 2) * 2 * _half(target_lengths[n]))
    return _Workspace(
        np.empty(states, scores.dtype),
        np.empty(states, exponents.dtype),
        np.empty(rows, np.int64),
        np.empty(rows, scores.dtype),
        np.empty(rows, scores.dtype),
        np.empty(4 * half, scores.dtype),
        np.empty(4 * half, exponents.dtype),
        np.empty(half + 1, exponents.dtype),
        np.empty(half, scores.dtype),
        np.empty(half, scores.dtype),
    )


@_compile_to_disk
def keeps_contract(targets, input_lengths, target_lengths, num_frames, vocab, blank):
    """Whether all lengths and labels are in range, no label is blank and every utterance can be aligned."""
    for n in range(len(input_lengths)):
        frames, count = input_lengths[n], target_lengths[n]
        if not (0 <= frames <= num_frames and 0 <= count <= targets.shape[1]):
            return False
        needed, previous = count, blank
        for i in range(count):
            label = targets[n, i]
            if label == blank or not 0 <= label < vocab:
                return False
            needed += label == previous
            previous = label
        if needed > frames:
            return False
    return True


@intrinsic
def _take(typing, counter):
    """The first element of ``counter`` before adding one to it, whichever threads do the same."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = array_data(context, builder, signature.args[0], values[0])
        return builder.atomic_rmw("add", data, data.type.pointee(1), "seq_cst")

    return counter.dtype(counter), generate


class _Job(NamedTuple):
    """One call of :func:`solve`, which says what is what."""

    utterances: np.ndarray
    next_place: np.ndarray
    scores: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    weights: np.ndarray
    losses: np.ndarray
    bad_frames: np.ndarray
    gradient: np.ndarray
    exponents: np.ndarray
    geometry: Geometry
    options: Options


@_compile
def _work_off(job):
    """Solve utterances until none is left to take."""
    has_gradient = job.gradient.size > 0
    work = _allocate(
        job.scores, job.exponents, job.utterances, job.input_lengths, job.target_lengths, has_gradient
    )
    place = _take(job.next_place)
    while place < len(job.utterances):
        _solve_one(job.utterances[place], job, work)
        place = _take(job.next_place)


@_compile
def _solve_one(n, job, work):
    has_gradient = job.gradient.size > 0
    scores, gradient, geometry, options = job.scores, job.gradient, job.geometry, job.options
    start = n * geometry.utterance_step
    num_frames, labels = job.input_lengths[n], job.targets[n, : job.target_lengths[n]]
    needed = _prepare_states(work, labels)
    likelihood = _Likelihood(np.inf, np.int64(0))
    if num_frames == 0 and needed == 0:
        likelihood = _Likelihood(0.0, np.int64(0))
    elif num_frames > 0 and needed <= num_frames:
        likelihood = _run_forward(work, scores, start, labels, num_frames, has_gradient, geometry, options)
    bad_frame, num_done = -1, 0
    if has_gradient and likelihood.loss != np.inf:
        bad_frame = _run_backward(
            work, scores, start, labels, num_frames, likelihood.exponent, job.weights[n], gradient, geometry,
            options,
        )  # fmt: skip
        num_done = num_frames
    elif options.checks_rows:
        bad_frame = _check_rows(scores, start, num_frames, geometry, options)
    if np.isnan(likelihood.loss) and bad_frame < 0:
        bad_frame = 0
    if has_gradient:
        for t in range(num_done, geometry.num_frames):
            base = start + t * geometry.frame_step
            gradient[base : base + geometry.vocab] = 0
    job.losses[n] = likelihood.loss
    job.bad_frames[n] = bad_frame


@intrinsic
def _work_off_on_team(typing, run_team, num_threads, job):
    """Have every thread of an OpenMP team work off ``job``; ``run_team`` is the address of GOMP_parallel."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = ir.IntType(8).as_pointer()
        task_type = ir.FunctionType(ir.VoidType(), [address])
        task = ir.Function(builder.module, task_type, f"{builder.function.name}.task")
        task.linkage = "internal"
        inside_task = ir.IRBuilder(task.append_basic_block())
        job_type = context.get_value_type(job)
        shared = inside_task.load(inside_task.bitcast(task.args[0], job_type.as_pointer()))
        work_off = context.compile_subroutine(inside_task, _work_off.py_func, types.void(job))
        # There is nobody to raise an error to: whoever waits for the team sees what has not been done.
        context.call_internal_no_propagate(inside_task, work_off.fndesc, work_off.signature, [shared])
        inside_task.ret_void()
        team_type = ir.FunctionType(ir.VoidType(), [task_type.as_pointer(), address, *[ir.IntType(32)] * 2])
        run_team = builder.inttoptr(values[0], team_type.as_pointer())
        shared = builder.bitcast(cgutils.alloca_once_value(builder, values[2]), address)
        flags = ir.IntType(32)(0)
        builder.call(run_team, [task, shared, builder.trunc(values[1], ir.IntType(32)), flags])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, job), generate


@_compile_to_disk
def solve(
    run_team, num_threads, utterances, next_place, scores, targets, input_lengths, target_lengths, weights, losses,
    bad_frames, gradient, exponents, geometry, options,
):  # fmt: skip
    """Losses of ``utterances``, and ``weights`` times their gradients unless ``gradient`` is empty.

    - ``run_team``: address of the function GOMP_parallel that starts ``num_threads`` OpenMP threads, or
      zero: then only the calling thread works
    - ``next_place``: ``(1,)`` int64 zero; threads that share it share the utterances, taken in their order
    - ``scores``, ``gradient``: all elements, flat, laid out as ``geometry`` says
    - ``targets``: ``(batch, max_target_length)``; lengths and labels have been checked
    - ``losses``: ``(batch,)`` in nats; +inf where there is no alignment, with a zero gradient
    - ``bad_frames``: ``(batch,)`` int64, first frame whose probabilities do not sum to one; -1: none, or
      not checked; 0 also if the loss is not a number
    - ``exponents``: an empty array of the integer type as wide as the scores
    """
    job = _Job(
        utterances, next_place, scores, targets, input_lengths, target_lengths, weights, losses, bad_frames,
        gradient, exponents, geometry, options,
    )  # fmt: skip
    if run_team == 0:
        _work_off(job)
    else:
        _work_off_on_team(run_team, num_threads, job)
        # A thread fails, if at all, before it takes an utterance.
        if next_place[0] < len(utterances):
            raise MemoryError("no memory for the forward variables of a CTC loss")
