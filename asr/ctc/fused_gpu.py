# Triton infers the types of its kernels:
# mypy: disable-error-code="no-untyped-def"
"""The fused GPU backend: CTC forward and backward in Triton, without a log-softmax tensor.

The arithmetic is that of the CPU kernels: only the target's states, blanks and labels apart, each state a
mantissa and an integer exponent, emissions relative to the row's maximum, occupancies normalised per frame.
One program follows one utterance through time with all states in registers; what needs no order in time
(normalisers, the gradient) runs one program per row. No atomics: the same input gives the same bits.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.ctc.contract import CTCProblem

_NEVER = tl.constexpr(-(2**29))
_LOWEST_LOG2 = tl.constexpr(-(2.0**21))
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_RENORMALISE_EVERY = tl.constexpr(8)
_VOCAB_BLOCK = 1024
# Sizes that differ from batch to batch. Triton would compile a kernel anew for each that is 1 or a multiple of 16.
_SIZES = ("utterance_step", "frame_step", "g_utterance_step", "g_frame_step", "num_frames", "width")
_MIN_STATES = 32  # a warp: fewer are no faster, and each power of two is compiled anew


class Solution(NamedTuple):
    """What the kernels found.

    - ``losses``: ``(batch,)``, +inf (with a zero gradient) where there is no alignment
    - ``row_log_totals``: ``(batch, frames)``, logarithm of the sum of exponentials of each row's scores;
      zero in padding, and everywhere if log-probabilities were not to be checked
    """

    losses: Tensor
    row_log_totals: Tensor


def per_utterance(problem: CTCProblem, is_normalised: bool, checks_rows: bool) -> Solution:
    """Losses with their gradient; nothing waits for the device.

    ``is_normalised`` says that the scores are log-probabilities (the gradient then follows PyTorch's
    convention); otherwise they are logits. Labels and lengths that break the contract are clamped into
    range, so that memory stays safe until the deferred check reports them.
    """
    return Solution(*_Fused.apply(problem.scores, problem, is_normalised, checks_rows))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, problem: CTCProblem, is_normalised: bool, checks_rows: bool
    ) -> tuple[Tensor, Tensor]:
        batch, num_frames, vocab = scores.shape
        dense = scores if scores.stride(2) == 1 else scores.contiguous()
        width = problem.targets.shape[1] + 1
        labels, skips = _extended_labels(problem, vocab)
        frames = problem.input_lengths.clamp(0, num_frames)
        counts = problem.target_lengths.clamp(0, width - 1)
        maxima, log_sums = scores.new_zeros(batch, num_frames), scores.new_zeros(batch, num_frames)
        if checks_rows or not is_normalised:
            _normalise[batch, num_frames](
                dense, *dense.stride()[:2], frames, maxima, log_sums, num_frames, vocab, _vocab_block(vocab)
            )
        row_log_totals = maxima + log_sums * _LN_2.value
        if is_normalised:
            maxima, log_sums = torch.zeros_like(maxima), torch.zeros_like(log_sums)
        has_gradient = ctx.needs_input_grad[0]
        kept = (batch, num_frames if has_gradient else 0, 2, width)
        mantissas = scores.new_empty(kept)
        exponents = torch.empty(kept, dtype=torch.int32, device=scores.device)
        offsets = torch.zeros(batch, num_frames, dtype=torch.int64, device=scores.device)
        losses = torch.empty(batch, dtype=torch.float64, device=scores.device)
        totals = torch.zeros(batch, dtype=torch.int64, device=scores.device)
        _follow_forward[batch,](
            dense, *dense.stride()[:2], labels, skips, frames, counts, maxima, log_sums,
            mantissas, exponents, offsets, totals, losses,
            num_frames, width, problem.blank, has_gradient, _states_block(width),
        )  # fmt: skip
        if has_gradient:
            ctx.save_for_backward(
                scores,
                labels,
                skips,
                frames,
                counts,
                maxima,
                log_sums,
                mantissas,
                exponents,
                offsets,
                totals,
                losses,
            )
            ctx.blank = problem.blank
        ctx.mark_non_differentiable(row_log_totals)
        return losses.to(scores.dtype), row_log_totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (
            scores,
            labels,
            skips,
            frames,
            counts,
            maxima,
            log_sums,
            mantissas,
            exponents,
            offsets,
            totals,
            losses,
        ) = ctx.saved_tensors
        batch, num_frames, vocab = scores.shape
        width = labels.shape[1]
        dense = scores if scores.stride(2) == 1 else scores.contiguous()
        occupancies = torch.empty_like(mantissas)
        states = _states_block(width)
        _follow_backward[batch,](
            dense, *dense.stride()[:2], labels, skips, frames, counts, maxima, mantissas, exponents, offsets,
            totals, losses, occupancies, num_frames, width, ctx.blank, states,
        )  # fmt: skip
        gradient = torch.empty_like(dense)
        weights = torch.where(losses.isinf(), 0.0, gradients[0].to(losses)).to(scores.dtype)
        _write_softmax[batch, num_frames](
            dense, *dense.stride()[:2], frames, maxima, log_sums, weights, gradient, *gradient.stride()[:2],
            num_frames, vocab, _vocab_block(vocab),
        )  # fmt: skip
        first, following, rounds = _equal_labels(labels, counts)
        _subtract_occupancies[batch, num_frames](
            labels, frames, counts, first, following, rounds, weights, occupancies,
            gradient, *gradient.stride()[:2], num_frames, width, ctx.blank, states,
        )  # fmt: skip
        return gradient, None, None, None


def _vocab_block(vocab: int) -> int:
    return min(triton.next_power_of_2(vocab), _VOCAB_BLOCK)


def _states_block(width: int) -> int:
    return max(triton.next_power_of_2(width), _MIN_STATES)


def _extended_labels(problem: CTCProblem, vocab: int) -> tuple[Tensor, Tensor]:
    """Labels and whether each may follow the one before without a blank; one column of padding at the end."""
    labels = torch.nn.functional.pad(problem.targets, (0, 1)).clamp(0, vocab - 1).int()
    skips = torch.zeros_like(labels)
    skips[:, 1:] = labels[:, 1:] != labels[:, :-1]
    return labels.contiguous(), skips


def _equal_labels(labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chains of equal labels: whether a position begins one, the next position in it (-1), the longest's length.

    A gradient entry is then summed by one lane in a fixed order, instead of by atomics in any order.
    """
    width = labels.shape[1]
    positions = torch.arange(width, device=labels.device)
    # Positions beyond the target become distinct labels that equal nothing.
    keys = torch.where(positions < counts[:, None], labels.long(), -1 - positions)
    ordered, order = keys.sort(dim=1, stable=True)
    is_same = ordered[:, 1:] == ordered[:, :-1]
    following = torch.full_like(order, -1)
    following.scatter_(1, order[:, :-1], torch.where(is_same, order[:, 1:], -1))
    first = torch.ones_like(order)
    first.scatter_(1, order[:, 1:], (~is_same).long())
    starts = torch.nn.functional.pad(~is_same, (1, 0), value=True)
    last_start = torch.where(starts, positions, 0).cummax(1).values
    rounds = (positions - last_start).amax(1) + 1
    return first.int(), following.int(), rounds.int()


@triton.jit
def _power_of_two(exponent):
    """``2.0**exponent``, zero below the normal range."""
    biased = tl.maximum(exponent, -127) + 127
    return (biased << 23).to(tl.float32, bitcast=True)


@triton.jit
def _emission(score, maximum):
    """``exp(score - maximum)`` as mantissa (zero for -inf, nan for nan) and exponent."""
    power = (score - maximum) * _LOG2_E
    is_possible = power != float("-inf")
    power = tl.where(power < _LOWEST_LOG2, _LOWEST_LOG2, power)
    rounded = tl.floor(power + 0.5)
    mantissa = tl.where(is_possible, tl.exp2(power - rounded), 0.0)
    return mantissa, tl.where(is_possible, rounded.to(tl.int32), _NEVER)


@triton.jit
def _add(m1, e1, m2, e2):
    top = tl.maximum(e1, e2)
    return m1 * _power_of_two(e1 - top) + m2 * _power_of_two(e2 - top), top


@triton.jit
def _multiply(m1, e1, m2, e2):
    return m1 * m2, tl.maximum(e1 + e2, _NEVER)


@triton.jit
def _renormalise(mantissa, exponent):
    """Mantissa in [1, 2); an empty state becomes exactly empty."""
    pattern = mantissa.to(tl.int32, bitcast=True)
    own = (pattern >> 23) & 0xFF
    scaled = ((pattern & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    is_empty = own == 0
    is_nan = mantissa != mantissa  # noqa: PLR0124
    scaled = tl.where(is_empty, 0.0, tl.where(is_nan, mantissa, scaled))
    return scaled, tl.where(is_empty, _NEVER, tl.maximum(exponent + own - 127, _NEVER))


@triton.jit
def _lower(exponent, shift):
    return tl.where(exponent == _NEVER, _NEVER, tl.maximum(exponent - shift, _NEVER))


@triton.jit
def _top(blank_exponents, label_exponents):
    """Largest exponent of all states, or zero when all are empty."""
    top = tl.maximum(tl.max(blank_exponents, 0), tl.max(label_exponents, 0))
    return tl.where(top == _NEVER, 0, top)


@triton.jit(do_not_specialize=_SIZES)
def _normalise(
    scores, utterance_step, frame_step, frames, maxima, log_sums, num_frames,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Maximum of a row, and the binary logarithm of the sum of exponentials relative to it."""
    n, t = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if t < tl.load(frames + n):
        row = scores + n * utterance_step + t * frame_step
        lane = tl.arange(0, BLOCK)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            x = tl.load(row + start + lane, mask=start + lane < VOCAB, other=float("-inf"))
            higher = tl.maximum(largest, x)
            # Lanes that have seen nothing but -inf keep a sum of zero instead of nan.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2((largest - base) * _LOG2_E) + tl.exp2((x - base) * _LOG2_E)
            largest = higher
        top = tl.max(largest, 0)
        total = tl.sum(total * tl.exp2((largest - top) * _LOG2_E), 0)
        tl.store(maxima + n * num_frames + t, top)
        tl.store(log_sums + n * num_frames + t, tl.log2(total))


@triton.jit(do_not_specialize=_SIZES)
def _follow_forward(
    scores, utterance_step, frame_step, labels, skips, frames, counts, maxima, log_sums,
    mantissas, exponents, offsets, totals, losses,
    num_frames, width, blank, KEEP: tl.constexpr, STATES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Forward variables of one utterance, its loss, and the exponent of its likelihood in ``totals``."""
    n = tl.program_id(0).to(tl.int64)
    num_valid, count = tl.load(frames + n), tl.load(counts + n)
    state = tl.arange(0, STATES)
    is_label, is_stored = state < count, state < width
    label = tl.load(labels + n * width + state, mask=is_label, other=0)
    may_skip = tl.load(skips + n * width + state, mask=is_label, other=0) != 0
    before = tl.maximum(state - 1, 0)
    bm, be = tl.where(state == 0, 1.0, 0.0), tl.where(state == 0, 0, _NEVER)
    lm, le = tl.zeros((STATES,), tl.float32), tl.full((STATES,), _NEVER, tl.int32)
    offset, log_sum = tl.zeros((), tl.int64), tl.zeros((), tl.float64)
    t = tl.zeros((), tl.int64)
    while t < num_valid:
        row = scores + n * utterance_step + t * frame_step
        maximum = tl.load(maxima + n * num_frames + t)
        log_sum += tl.load(log_sums + n * num_frames + t).to(tl.float64)
        ym, ye = _emission(tl.load(row + label, mask=is_label, other=float("-inf")), maximum)
        ybm, ybe = _emission(tl.load(row + blank), maximum)
        pm = tl.where(state == 0, 0.0, tl.gather(lm, before, 0))
        pe = tl.where(state == 0, _NEVER, tl.gather(le, before, 0))
        entered_m, entered_e = _add(lm, le, bm, be)
        skipped_m, skipped_e = _add(
            entered_m, entered_e, tl.where(may_skip, pm, 0.0), tl.where(may_skip, pe, _NEVER)
        )
        bm, be = _add(bm, be, pm, pe)
        bm, be = _multiply(bm, be, ybm, ybe)
        lm, le = _multiply(skipped_m, skipped_e, ym, ye)
        if t % _RENORMALISE_EVERY == _RENORMALISE_EVERY - 1:
            bm, be = _renormalise(bm, be)
            lm, le = _renormalise(lm, le)
            shift = _top(be, le)
            be, le = _lower(be, shift), _lower(le, shift)
            offset += shift
        if KEEP:
            kept = (n * num_frames + t) * 2 * width + state
            tl.store(mantissas + kept, bm, mask=is_stored)
            tl.store(mantissas + kept + width, lm, mask=is_stored)
            tl.store(exponents + kept, be, mask=is_stored)
            tl.store(exponents + kept + width, le, mask=is_stored)
            tl.store(offsets + n * num_frames + t, offset)
        t += 1
    # A path ends in the last label or in the blank after it.
    final_m, final_e = tl.where(state == count, bm, 0.0), tl.where(state == count, be, _NEVER)
    is_last = state == count - 1
    final_m, final_e = _add(final_m, final_e, tl.where(is_last, lm, 0.0), tl.where(is_last, le, _NEVER))
    final_m, final_e = _renormalise(final_m, final_e)
    top = tl.max(final_e, 0)
    total = tl.sum(final_m * _power_of_two(final_e - top), 0)
    exponent = top.to(tl.int64) + offset
    loss = (log_sum - tl.log2(total).to(tl.float64) - exponent.to(tl.float64)) * _LN_2
    tl.store(losses + n, tl.where(total == 0, float("inf"), loss))
    tl.store(totals + n, exponent)


@triton.jit(do_not_specialize=_SIZES)
def _follow_backward(
    scores, utterance_step, frame_step, labels, skips, frames, counts, maxima, mantissas, exponents, offsets,
    totals, losses, occupancies, num_frames, width, blank, STATES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Backward variables of one utterance, times the forward ones, over the likelihood: about occupancy."""
    n = tl.program_id(0).to(tl.int64)
    num_valid, count, total = tl.load(frames + n), tl.load(counts + n), tl.load(totals + n)
    state = tl.arange(0, STATES)
    is_label, is_stored = state < count, state < width
    label = tl.load(labels + n * width + state, mask=is_label, other=0)
    is_next_label = state + 1 < count
    may_skip = tl.load(skips + n * width + state + 1, mask=is_next_label, other=0) != 0
    after = tl.minimum(state + 1, STATES - 1)
    has_next = state < STATES - 1
    # What follows the last frame: an imagined blank after the last label.
    qbm, qbe = tl.where(state == count, 1.0, 0.0), tl.where(state == count, 0, _NEVER)
    qlm, qle = tl.zeros((STATES,), tl.float32), tl.full((STATES,), _NEVER, tl.int32)
    offset = tl.zeros((), tl.int64)
    step = tl.zeros((), tl.int64)
    while step < num_valid:
        t = num_valid - 1 - step
        row = scores + n * utterance_step + t * frame_step
        maximum = tl.load(maxima + n * num_frames + t)
        ym, ye = _emission(tl.load(row + label, mask=is_label, other=float("-inf")), maximum)
        ybm, ybe = _emission(tl.load(row + blank), maximum)
        next_bm, next_be = tl.gather(qbm, after, 0), tl.gather(qbe, after, 0)
        next_lm, next_le = tl.gather(qlm, after, 0), tl.gather(qle, after, 0)
        bm, be = _add(qbm, qbe, qlm, qle)
        lm, le = _add(qlm, qle, tl.where(has_next, next_bm, 0.0), tl.where(has_next, next_be, _NEVER))
        lm, le = _add(lm, le, tl.where(may_skip, next_lm, 0.0), tl.where(may_skip, next_le, _NEVER))
        scale = (total - tl.load(offsets + n * num_frames + t) - offset).to(tl.int32)
        kept = (n * num_frames + t) * 2 * width + state
        am = tl.load(mantissas + kept, mask=is_stored, other=0.0)
        ae = tl.load(exponents + kept, mask=is_stored, other=_NEVER)
        tl.store(
            occupancies + kept, am * bm * _power_of_two(tl.minimum(ae + be - scale, 127)), mask=is_stored
        )
        am = tl.load(mantissas + kept + width, mask=is_stored, other=0.0)
        ae = tl.load(exponents + kept + width, mask=is_stored, other=_NEVER)
        tl.store(
            occupancies + kept + width,
            am * lm * _power_of_two(tl.minimum(ae + le - scale, 127)),
            mask=is_stored,
        )
        qbm, qbe = _multiply(bm, be, ybm, ybe)
        qlm, qle = _multiply(lm, le, ym, ye)
        if step % _RENORMALISE_EVERY == _RENORMALISE_EVERY - 1:
            qbm, qbe = _renormalise(qbm, qbe)
            qlm, qle = _renormalise(qlm, qle)
            shift = _top(qbe, qle)
            qbe, qle = _lower(qbe, shift), _lower(qle, shift)
            offset += shift
        step += 1


@triton.jit(do_not_specialize=_SIZES)
def _write_softmax(
    scores, utterance_step, frame_step, frames, maxima, log_sums, weights, gradient, g_utterance_step, g_frame_step,
    num_frames, VOCAB: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Weight times probability for valid frames, zero for padding."""
    n, t = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    weight = tl.load(weights + n)
    # A weight of zero stays zero whatever the scores are.
    is_used = (t < tl.load(frames + n)) & (weight != 0.0)
    row = scores + n * utterance_step + t * frame_step
    out = gradient + n * g_utterance_step + t * g_frame_step
    maximum, log_sum = tl.load(maxima + n * num_frames + t), tl.load(log_sums + n * num_frames + t)
    lane = tl.arange(0, BLOCK)
    for start in range(0, VOCAB, BLOCK):
        x = tl.load(row + start + lane, mask=(start + lane < VOCAB) & is_used, other=float("-inf"))
        p = weight * tl.exp2((x - maximum) * _LOG2_E - log_sum)
        tl.store(out + start + lane, tl.where(is_used, p, 0.0), mask=start + lane < VOCAB)


@triton.jit(do_not_specialize=_SIZES)
def _subtract_occupancies(
    labels, frames, counts, first, following, rounds, weights, occupancies, gradient, utterance_step, frame_step,
    num_frames, width, blank, STATES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Subtract weight times occupancy at the blank and, once per distinct label, at the labels."""
    n, t = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    weight = tl.load(weights + n)
    if (t < tl.load(frames + n)) & (weight != 0.0):
        state = tl.arange(0, STATES)
        count = tl.load(counts + n)
        kept = (n * num_frames + t) * 2 * width
        in_blank = tl.sum(tl.load(occupancies + kept + state, mask=state <= count, other=0.0), 0)
        in_label = tl.sum(tl.load(occupancies + kept + width + state, mask=state < count, other=0.0), 0)
        share = weight / (in_blank + in_label)
        is_first = (state < count) & (tl.load(first + n * width + state, mask=state < count, other=0) != 0)
        position = tl.where(is_first, state, -1)
        total = tl.zeros((STATES,), tl.float32)
        remaining = tl.load(rounds + n)
        while remaining > 0:
            is_there = position >= 0
            total += tl.load(occupancies + kept + width + position, mask=is_there, other=0.0)
            position = tl.load(following + n * width + position, mask=is_there, other=-1)
            remaining -= 1
        out = gradient + n * utterance_step + t * frame_step
        label = tl.load(labels + n * width + state, mask=is_first, other=0)
        tl.store(out + label, tl.load(out + label, mask=is_first) - share * total, mask=is_first)
        tl.store(out + blank, tl.load(out + blank) - share * in_blank)
