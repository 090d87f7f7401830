"""CTC on the CPU in one pass: scores in, losses and the gradient of the scores out, compiled by numba.

How it is fast. Only the states of the target are visited. Blank and label states lie in separate
arrays, so that all moves of the recursion are plain vector loads. The normaliser of each row, the
recursion and the gradient (probability minus occupancy) never become tensors of their own: besides
the gradient, a thread holds the forward variables of one utterance.

How it is exact. A state is a mantissa and an integer exponent, value = mantissa * 2**exponent. Adding
states costs shifts instead of logarithms, nothing underflows however peaky, collapsed or long
the input is, and rounding stays relative: there is no large log-probability to lose digits in.
Emissions are taken relative to the row's maximum and occupancies are normalised per frame, so an error
in a row's normaliser cannot spread to other frames.

The vector loops are written with an instruction builder (:class:`_Lanes`) rather than left to the
auto-vectoriser, which gives up on this many arrays and runs short vocabularies one by one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
# Exponent of an empty state: far below any other, and twice it still fits into 32 bits.
_NEVER = -(2**29)
# Emissions below 2**-(2**21), 1.4 million nats under the row's maximum, count as that.
_LOWEST_LOG2 = float(-(2**21))
_RENORMALISE_EVERY = 8
_ROUNDING = 1.5
_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2)

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")


def _exp2_polynomial(degree: int) -> list[float]:
    """Coefficients, lowest first, of 2**r on [-1/2, 1/2], interpolated at Chebyshev nodes."""
    nodes = np.cos(np.pi * (np.arange(200) + 0.5) / 200) / 2
    chebyshev = np.polynomial.Chebyshev.fit(nodes, np.exp2(nodes), degree, domain=[-0.5, 0.5])
    return [float(c) for c in chebyshev.convert(kind=np.polynomial.Polynomial).coef]


_LARGEST = {32: float(np.finfo(np.float32).max), 64: float(np.finfo(np.float64).max)}
_EXP2 = {32: _exp2_polynomial(6), 64: _exp2_polynomial(11)}


class _Lanes:
    """Builds vector instructions for one floating type and the integer type of the same width."""

    def __init__(self, context: Any, builder: Any, float_type: Any) -> None:
        self.builder = builder
        self.bits = float_type.bitwidth
        self.float = context.get_value_type(float_type)
        self.int = ir.IntType(self.bits)
        self.floats = ir.VectorType(self.float, LANES)
        self.ints = ir.VectorType(self.int, LANES)
        self.mantissa_bits, self.bias = (23, 127) if self.bits == 32 else (52, 1023)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.floats, [float(value)] * LANES)

    def integer(self, value: int) -> Any:
        return ir.Constant(self.ints, [value] * LANES)

    def splat(self, scalar: Any) -> Any:
        vector = ir.VectorType(scalar.type, LANES)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    def _address(self, data: Any, position: Any, vector: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [position]), vector.as_pointer())

    def load(self, data: Any, position: Any) -> Any:
        vector = ir.VectorType(data.type.pointee, LANES)
        return self.builder.load(self._address(data, position, vector), align=self.bits // 8)

    def store(self, value: Any, data: Any, position: Any) -> None:
        self.builder.store(value, self._address(data, position, value.type), align=self.bits // 8)

    def load_some(self, data: Any, position: Any, mask: Any, otherwise: Any) -> Any:
        """Load the lanes that ``mask`` allows (None: all); reading the others could leave the array."""
        if mask is None:
            return self.load(data, position)
        address = self._address(data, position, self.floats)
        arguments = [address, ir.IntType(32)(self.bits // 8), mask, otherwise]
        return self._call_masked("load", self.floats, arguments)

    def store_some(self, value: Any, data: Any, position: Any, mask: Any) -> None:
        if mask is None:
            self.store(value, data, position)
            return
        address = self._address(data, position, self.floats)
        self._call_masked("store", ir.VoidType(), [value, address, ir.IntType(32)(self.bits // 8), mask])

    def _call_masked(self, verb: str, result: Any, arguments: list[Any]) -> Any:
        name = f"llvm.masked.{verb}.v{LANES}f{self.bits}.p0"
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def mask(self, count: Any) -> Any:
        """Lanes below ``count``."""
        numbers = ir.Constant(ir.VectorType(ir.IntType(64), LANES), list(range(LANES)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=("contract",))

    def maximum(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        """``a`` where it is larger; not a number in ``b`` stays."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        """``a`` where it is smaller; not a number in ``b`` stays."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def power_of_two(self, exponent: Any) -> Any:
        """``2.0**exponent``, zero below the normal range; exponents above it must not occur."""
        biased = self.builder.add(self.maximum(exponent, self.integer(-self.bias)), self.integer(self.bias))
        return self.builder.bitcast(self.builder.shl(biased, self.integer(self.mantissa_bits)), self.floats)

    def _exp2_parts(self, x: Any) -> tuple[Any, Any]:
        """``2.0**x`` as a mantissa near one, and bits whose lowest ones are the exponent."""
        # Adding 1.5 * 2**mantissa_bits rounds to an integer and leaves it in the low bits.
        magic = self.constant(_ROUNDING * 2.0**self.mantissa_bits)
        shifted = self.builder.fadd(x, magic)
        rest = self.builder.fsub(x, self.builder.fsub(shifted, magic))
        *lower, mantissa = (self.constant(c) for c in _EXP2[self.bits])
        for coefficient in reversed(lower):
            mantissa = self.add(self.multiply(mantissa, rest), coefficient)
        return mantissa, self.builder.bitcast(shifted, self.ints)

    def exp2(self, x: Any) -> Any:
        """``2.0**x``, zero where it would not be a normal number, nan for nan; x below its largest power."""
        builder = self.builder
        mantissa, bits = self._exp2_parts(x)
        bits = builder.add(
            builder.bitcast(mantissa, self.ints), builder.shl(bits, self.integer(self.mantissa_bits))
        )
        is_normal = builder.fcmp_unordered(">", x, self.constant(1 - self.bias))
        return builder.select(is_normal, builder.bitcast(bits, self.floats), self.constant(0))

    def exp2_state(self, x: Any) -> tuple[Any, Any]:
        """``2.0**x`` of any size as mantissa (zero for -inf, nan for nan) and exponent."""
        builder = self.builder
        is_possible = builder.fcmp_unordered("!=", x, self.constant(-math.inf))
        mantissa, bits = self._exp2_parts(self.larger(self.constant(_LOWEST_LOG2), x))
        magic = builder.bitcast(self.constant(_ROUNDING * 2.0**self.mantissa_bits), self.ints)
        return (
            builder.select(is_possible, mantissa, self.constant(0)),
            builder.select(is_possible, builder.sub(bits, magic), self.integer(_NEVER)),
        )

    def log2_ratio(self, x: Any, maximum: Any) -> Any:
        """``log2(exp(x - maximum))``; subtracting first keeps the digits of large scores."""
        return self.multiply(self.builder.fsub(x, maximum), self.constant(_LOG2_E))

    def total(self, *states: tuple[Any, Any]) -> tuple[Any, Any]:
        """Sum of (mantissa, exponent) pairs, not renormalised."""
        top = states[0][1]
        for _, exponent in states[1:]:
            top = self.maximum(top, exponent)
        total = None
        for mantissa, exponent in states:
            term = self.multiply(mantissa, self.power_of_two(self.builder.sub(exponent, top)))
            total = term if total is None else self.add(total, term)
        return total, top

    def emit(self, state: tuple[Any, Any], emission: tuple[Any, Any]) -> tuple[Any, Any]:
        exponent = self.builder.add(state[1], emission[1])
        return self.multiply(state[0], emission[0]), self.maximum(exponent, self.integer(_NEVER))

    def renormalise(self, mantissa: Any, exponent: Any, shift: Any) -> tuple[Any, Any]:
        """Mantissa in [1, 2), the exponent to match and lowered by ``shift``; empty states stay empty."""
        builder = self.builder
        pattern = builder.bitcast(mantissa, self.ints)
        own = builder.lshr(pattern, self.integer(self.mantissa_bits))
        is_empty = builder.icmp_signed("==", own, self.integer(0))
        scaled = builder.and_(pattern, self.integer((1 << self.mantissa_bits) - 1))
        scaled = builder.or_(scaled, self.integer(self.bias << self.mantissa_bits))
        scaled = builder.select(is_empty, self.integer(0), scaled)
        is_nan = builder.fcmp_unordered("uno", mantissa, mantissa)
        mantissa = builder.select(is_nan, mantissa, builder.bitcast(scaled, self.floats))
        exponent = builder.sub(builder.add(exponent, builder.sub(own, self.integer(self.bias))), shift)
        exponent = builder.select(is_empty, self.integer(_NEVER), exponent)
        return mantissa, self.maximum(exponent, self.integer(_NEVER))

    def reduce(self, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """One number out of all lanes, pairwise."""
        width = LANES
        while width > 1:
            width //= 2
            upper = [(lane + width) % LANES for lane in range(LANES)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), upper)
            vector = combine(vector, self.builder.shuffle_vector(vector, vector, order))
        return self.builder.extract_element(vector, ir.IntType(32)(0))


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


class _Row:
    """States of one frame inside a workspace: a block of padding, blanks, padding, again for labels."""

    def __init__(self, lanes: _Lanes, mantissas: Any, exponents: Any, start: Any, half: Any) -> None:
        self.lanes, self.mantissas, self.exponents = lanes, mantissas, exponents
        self.starts = {"blank": start, "label": lanes.builder.add(start, half)}

    def _position(self, kind: str, block: Any, shift: int) -> Any:
        builder = self.lanes.builder
        return builder.add(builder.add(self.starts[kind], block.type(shift)), _inside(builder, block))

    def load(self, kind: str, block: Any, shift: int = 0) -> tuple[Any, Any]:
        position = self._position(kind, block, shift)
        return self.lanes.load(self.mantissas, position), self.lanes.load(self.exponents, position)

    def store(self, state: tuple[Any, Any], kind: str, block: Any) -> None:
        position = self._position(kind, block, 0)
        self.lanes.store(state[0], self.mantissas, position)
        self.lanes.store(state[1], self.exponents, position)

    def fence(self, first: Any, last: Any) -> None:
        """Empty the blocks beside the visited ones: the next frame looks one state further."""
        builder = self.lanes.builder
        nothing = self.lanes.constant(0), self.lanes.integer(_NEVER)
        for kind in ("blank", "label"):
            self.store(nothing, kind, builder.sub(first, first.type(1)))
            self.store(nothing, kind, builder.add(last, last.type(1)))


def _blocks(builder: Any, first: Any, last: Any) -> Any:
    return cgutils.for_range(builder, builder.add(last, last.type(1)), start=first)


@intrinsic
def _forward(  # type: ignore[no-untyped-def]
    typing, m, e, before, now, half, skips, scores, blank, maximum, first, last
):
    """One frame of the forward recursion for the blocks ``first..last``.

    blank i <- blank i, label i-1;  label i <- label i, blank i, and label i-1 unless equal.
    """
    scalar, index = m.dtype, types.int64
    arguments = (m, e, index, index, index, skips, scores, scalar, scalar, index, index)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = _Lanes(context, builder, scalar)
        m, e, skips, scores = (_data(context, builder, signature.args[k], values[k]) for k in (0, 1, 5, 6))
        before, now, half, blank, maximum, first, last = (values[k] for k in (2, 3, 4, 7, 8, 9, 10))
        old, new = _Row(lanes, m, e, before, half), _Row(lanes, m, e, now, half)
        maximum = lanes.splat(maximum)
        blank_emission = lanes.exp2_state(lanes.log2_ratio(lanes.splat(blank), maximum))
        with _blocks(builder, first, last) as loop:
            block, position = loop.index, _inside(builder, loop.index)
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
def _backward(  # type: ignore[no-untyped-def]
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
        lanes = _Lanes(context, builder, scalar)
        m, e, qm, qe, skips, scores, occupancy = (
            _data(context, builder, signature.args[k], values[k]) for k in (0, 1, 3, 4, 8, 9, 10)
        )
        row, later, now, half, blank, maximum, scale, first, last = (
            values[k] for k in (2, 5, 6, 7, 11, 12, 13, 14, 15)
        )
        alpha = _Row(lanes, m, e, row, half)
        old, new = _Row(lanes, qm, qe, later, half), _Row(lanes, qm, qe, now, half)
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

        with _blocks(builder, first, last) as loop:
            block, position = loop.index, _inside(builder, loop.index)
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
        blank_sum, label_sum = (lanes.reduce(builder.load(sums[kind]), lanes.add) for kind in ("blank", "label"))
        return context.make_tuple(builder, signature.return_type, (blank_sum, label_sum))

    return types.UniTuple(scalar, 2)(*arguments), generate


@intrinsic
def _renormalise(typing, m, e, row, half, shift, first, last):  # type: ignore[no-untyped-def]
    """Bring mantissas into [1, 2) and lower all exponents by ``shift``; returns the largest exponent."""
    scalar, index = m.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = _Lanes(context, builder, scalar)
        m, e = (_data(context, builder, signature.args[k], values[k]) for k in (0, 1))
        states = _Row(lanes, m, e, values[2], values[3])
        shift = lanes.splat(values[4])
        top = cgutils.alloca_once_value(builder, lanes.integer(_NEVER))
        with _blocks(builder, values[5], values[6]) as loop:
            for kind in ("blank", "label"):
                mantissa, exponent = lanes.renormalise(*states.load(kind, loop.index), shift)
                states.store((mantissa, exponent), kind, loop.index)
                builder.store(lanes.maximum(builder.load(top), exponent), top)
        return lanes.reduce(builder.load(top), lanes.maximum)

    return e.dtype(m, e, index, index, e.dtype, index, index), generate


@intrinsic
def _row_maximum(typing, scores, start, count):  # type: ignore[no-untyped-def]
    """Largest of ``count`` scores; what it returns for nan shows in the sum that follows."""
    scalar, index = scores.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = _Lanes(context, builder, scalar)
        data = _data(context, builder, signature.args[0], values[0])
        lowest = lanes.constant(-_LARGEST[lanes.bits])
        largest = cgutils.alloca_once_value(builder, lowest)

        def visit(position: Any, mask: Any) -> None:
            row = lanes.load_some(data, position, mask, lowest)
            builder.store(lanes.larger(row, builder.load(largest)), largest)

        _over_row(builder, lanes, values[1], values[2], visit)
        return lanes.reduce(builder.load(largest), lanes.larger)

    return scalar(scores, index, index), generate


@intrinsic
def _row_sum(typing, scores, start, count, maximum):  # type: ignore[no-untyped-def]
    """Sum of ``exp(scores - maximum)`` over a row."""
    scalar, index = scores.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = _data(context, builder, signature.args[0], values[0])
        return _sum_exp(_Lanes(context, builder, scalar), data, *values[1:])

    return scalar(scores, index, index, scalar), generate


@intrinsic
def _row_softmax(typing, scores, start, count, maximum, gradient, factor):  # type: ignore[no-untyped-def]
    """Sum of ``exp(scores - maximum)`` over a row; ``gradient`` receives each term times ``factor``."""
    scalar, index = scores.dtype, types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = _Lanes(context, builder, scalar)
        data, out = (_data(context, builder, signature.args[k], values[k]) for k in (0, 4))
        factor = lanes.splat(values[5])

        def keep(term: Any, position: Any, mask: Any) -> None:
            lanes.store_some(lanes.multiply(term, factor), out, position, mask)

        return _sum_exp(lanes, data, *values[1:4], keep)

    return scalar(scores, index, index, scalar, gradient, scalar), generate


def _sum_exp(
    lanes: _Lanes, data: Any, start: Any, count: Any, maximum: Any, keep: Callable[[Any, Any, Any], None] | None = None
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

    _over_row(builder, lanes, start, count, visit)
    return lanes.reduce(builder.load(total), lanes.add)


def _over_row(builder: Any, lanes: _Lanes, start: Any, count: Any, visit: Callable[[Any, Any], None]) -> None:
    """Visit a row block by block; the last block comes with a mask so that nothing outside is touched."""
    width = count.type(LANES)
    full = builder.mul(builder.sdiv(count, width), width)
    with cgutils.for_range_slice(builder, count.type(0), full, width, intp=count.type) as (offset, _):
        visit(builder.add(start, offset), None)
    rest = builder.sub(count, full)
    with builder.if_then(builder.icmp_signed(">", rest, rest.type(0))):
        visit(builder.add(start, full), lanes.mask(rest))


def _inside(builder: Any, block: Any) -> Any:
    """Position of a block behind the leading padding."""
    return builder.add(builder.mul(block, block.type(LANES)), block.type(LANES))


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
    """What one thread needs, reused from utterance to utterance; see :class:`_Row` for the order of states.

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
def _half(num_labels):  # type: ignore[no-untyped-def]
    """Length of one kind of states in a row, padding included."""
    return (num_labels // LANES + 3) * LANES


@_compile
def _band(frame, num_frames, num_labels):  # type: ignore[no-untyped-def]
    """First and last block with states that are reachable and can still reach the end."""
    lowest = max(0, num_labels - (num_frames - frame))
    return lowest // LANES, min(num_labels, frame) // LANES


@_compile
def _gather(emissions, scores, base, labels, first, last):  # type: ignore[no-untyped-def]
    for i in range(first * LANES, min(len(labels), (last + 1) * LANES)):
        emissions[LANES + i] = scores[base + labels[i]]


@_compile
def _prepare_states(work, labels):  # type: ignore[no-untyped-def]
    """Empty the first row but for its leading blank, forbid skips between equal labels; frames needed."""
    half = _half(len(labels))
    work.m[: 2 * half] = 0
    work.e[: 2 * half] = _NEVER
    work.m[LANES] = 1
    work.e[LANES] = 0
    work.qm[: 4 * half] = 0
    work.qe[: 4 * half] = _NEVER
    work.skips[: half + 1] = _NEVER
    work.emissions[:half] = -np.inf
    needed = len(labels)
    for i in range(1, len(labels)):
        if labels[i] == labels[i - 1]:
            needed += 1
        else:
            work.skips[LANES + i] = 0
    return needed


@_compile
def _run_forward(work, scores, start, labels, num_frames, keeps_rows, geometry, options):  # type: ignore[no-untyped-def]
    zero = scores.dtype.type(0)
    half, vocab = _half(len(labels)), geometry.vocab
    offset, shift = np.int64(0), np.int64(0)
    log_normalisers, product = 0.0, 1.0
    for t in range(num_frames):
        base = start + t * geometry.frame_step
        maximum = zero
        if not options.is_normalised:
            maximum = _row_maximum(scores, base, vocab)
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
            shift = np.int64(top) if top > _NEVER else np.int64(0)
        work.offsets[t] = offset
    end = (num_frames if keeps_rows else num_frames % 2) * 2 * half + LANES + len(labels)
    log_normalisers += math.log(product)
    return _total(work.m, work.e, end, end + half - 1, offset, log_normalisers)


@_compile
def _total(m, e, in_blank, in_label, offset, log_normalisers):  # type: ignore[no-untyped-def]
    """Combine the two states in which a path may end."""
    top = np.int64(max(e[in_blank], e[in_label]))
    total = m[in_blank] * 2.0 ** max(e[in_blank] - top, -1000.0)
    total += m[in_label] * 2.0 ** max(e[in_label] - top, -1000.0)
    if total == 0:
        return _Likelihood(np.inf, np.int64(0))
    exponent = top + offset
    return _Likelihood(log_normalisers - (math.log(total) + exponent * _LN_2), exponent)


@_compile
def _run_backward(  # type: ignore[no-untyped-def]
    work, scores, start, labels, num_frames, exponent, weight, gradient, geometry, options
):
    """Write ``weight`` times the gradient of every frame; returns the first row that fails its check."""
    half, vocab, blank = _half(len(labels)), geometry.vocab, options.blank
    maximum, normaliser = scores.dtype.type(0), scores.dtype.type(1)
    weight = scores.dtype.type(weight)
    bad_frame, bad_total = -1, 0.0
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
            shift = np.int64(top) if top > _NEVER else np.int64(0)
        total = _row_softmax(scores, base, vocab, maximum, gradient, weight / normaliser)
        if options.checks_rows and not abs(total - 1) <= options.row_tolerance:
            bad_frame, bad_total = t, float(total)
        share = weight / (blank_sum + label_sum)
        gradient[base + blank] -= blank_sum * share
        for i in range(first * LANES, min(len(labels), (last + 1) * LANES)):
            gradient[base + labels[i]] -= work.occupancy[LANES + i] * share
    return bad_frame, bad_total


@_compile
def _check_rows(scores, start, num_frames, geometry, options):  # type: ignore[no-untyped-def]
    """First row whose probabilities do not sum to one, and their sum."""
    for t in range(num_frames):
        base = start + t * geometry.frame_step
        total = _row_sum(scores, base, geometry.vocab, scores.dtype.type(0))
        if not abs(total - 1) <= options.row_tolerance:
            return t, float(total)
    return -1, 0.0


@_compile
def _allocate(scores, exponents, utterances, input_lengths, target_lengths, keeps_rows):  # type: ignore[no-untyped-def]
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


@_compile
def solve(  # type: ignore[no-untyped-def]
    utterances, scores, targets, input_lengths, target_lengths, weights, losses, bad_rows, gradient, exponents,
    geometry, options,
):  # fmt: skip
    """Losses of ``utterances``, and ``weights`` times their gradients unless ``gradient`` is empty.

    - ``scores``, ``gradient``: all elements, flat, laid out as ``geometry`` says
    - ``targets``: ``(batch, max_target_length)``; lengths and labels have been checked
    - ``losses``: ``(batch,)`` float64 in nats; +inf where there is no alignment, with a zero gradient
    - ``bad_rows``: ``(batch, 2)`` float64, first row whose probabilities do not sum to one (-1: none) and
      its sum; only written if ``options.checks_rows``
    - ``exponents``: an empty array of the integer type as wide as the scores
    """
    has_gradient = gradient.size > 0
    work = _allocate(scores, exponents, utterances, input_lengths, target_lengths, has_gradient)
    for n in utterances:
        start = n * geometry.utterance_step
        num_frames, labels = input_lengths[n], targets[n, : target_lengths[n]]
        needed = _prepare_states(work, labels)
        likelihood = _Likelihood(np.inf, np.int64(0))
        if num_frames == 0 and needed == 0:
            likelihood = _Likelihood(0.0, np.int64(0))
        elif num_frames > 0 and needed <= num_frames:
            likelihood = _run_forward(
                work, scores, start, labels, num_frames, has_gradient, geometry, options
            )
        losses[n] = likelihood.loss
        bad_frame, bad_total = -1, 0.0
        num_done = 0
        if has_gradient and likelihood.loss != np.inf:
            bad_frame, bad_total = _run_backward(
                work, scores, start, labels, num_frames, likelihood.exponent, weights[n], gradient, geometry, options
            )  # fmt: skip
            num_done = num_frames
        elif options.checks_rows:
            bad_frame, bad_total = _check_rows(scores, start, num_frames, geometry, options)
        if options.checks_rows:
            bad_rows[n, 0], bad_rows[n, 1] = bad_frame, bad_total
        if has_gradient:
            for t in range(num_done, geometry.num_frames):
                base = start + t * geometry.frame_step
                gradient[base : base + geometry.vocab] = 0
