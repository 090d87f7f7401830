"""Vector arithmetic for the CPU kernels, written as instructions that numba compiles into its functions.

A CTC state is a mantissa and an integer exponent, value = mantissa * 2**exponent, in two arrays of one
width. The loops over states are built here with an instruction builder rather than left to the
auto-vectoriser, which gives up on that many arrays and runs short vocabularies one by one.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

LANES = 8
# Whole rows of scores are visited in wider steps: several chains of arithmetic at once.
ROW_LANES = 16
# Exponent of an empty state: far below any other, and twice it still fits into 32 bits.
NEVER = -(2**29)
# Emissions below 2**-(2**21), 1.4 million nats under the row's maximum, count as that.
_LOWEST_LOG2 = float(-(2**21))
_ROUNDING = 1.5
_LOG2_E = math.log2(math.e)


def _exp2_polynomial(degree: int) -> list[float]:
    """Coefficients, lowest first, of 2**r on [-1/2, 1/2], interpolated at Chebyshev nodes."""
    nodes = np.cos(np.pi * (np.arange(200) + 0.5) / 200) / 2
    chebyshev = np.polynomial.Chebyshev.fit(nodes, np.exp2(nodes), degree, domain=[-0.5, 0.5])
    return [float(c) for c in chebyshev.convert(kind=np.polynomial.Polynomial).coef]


LARGEST = {32: float(np.finfo(np.float32).max), 64: float(np.finfo(np.float64).max)}
_EXP2 = {32: _exp2_polynomial(6), 64: _exp2_polynomial(11)}


class Lanes:
    """Builds vector instructions for one floating type and the integer type of the same width."""

    def __init__(self, context: Any, builder: Any, float_type: Any, width: int = LANES) -> None:
        self.builder = builder
        self.width = width
        self.bits = float_type.bitwidth
        self.float = context.get_value_type(float_type)
        self.int = ir.IntType(self.bits)
        self.floats = ir.VectorType(self.float, self.width)
        self.ints = ir.VectorType(self.int, self.width)
        self.mantissa_bits, self.bias = (23, 127) if self.bits == 32 else (52, 1023)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.floats, [float(value)] * self.width)

    def integer(self, value: int) -> Any:
        return ir.Constant(self.ints, [value] * self.width)

    def splat(self, scalar: Any) -> Any:
        vector = ir.VectorType(scalar.type, self.width)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    def _address(self, data: Any, position: Any, vector: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [position]), vector.as_pointer())

    def load(self, data: Any, position: Any) -> Any:
        vector = ir.VectorType(data.type.pointee, self.width)
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
        name = f"llvm.masked.{verb}.v{self.width}f{self.bits}.p0"
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def prefetch(self, data: Any, position: Any, for_writing: bool = False) -> None:
        """Begin to fetch what lies there; that may be outside of any array."""
        integer = ir.IntType(32)
        address = self.builder.bitcast(self.builder.gep(data, [position]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, integer, integer, integer])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        # Last but one level of the cache, data.
        self.builder.call(function, [address, integer(int(for_writing)), integer(2), integer(1)])

    def mask(self, count: Any) -> Any:
        """Lanes below ``count``, which is at most ``width``."""
        numbers = ir.Constant(self.ints, list(range(self.width)))
        count = count if count.type == self.int else self.builder.trunc(count, self.int)
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
            builder.select(is_possible, builder.sub(bits, magic), self.integer(NEVER)),
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
        return self.multiply(state[0], emission[0]), self.maximum(exponent, self.integer(NEVER))

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
        exponent = builder.select(is_empty, self.integer(NEVER), exponent)
        return mantissa, self.maximum(exponent, self.integer(NEVER))

    def reduce(self, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """One number out of all lanes, pairwise."""
        width = self.width
        while width > 1:
            width //= 2
            upper = [(lane + width) % self.width for lane in range(self.width)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), self.width), upper)
            vector = combine(vector, self.builder.shuffle_vector(vector, vector, order))
        return self.builder.extract_element(vector, ir.IntType(32)(0))


def array_data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


class Row:
    """States of one frame inside a workspace: a block of padding, blanks, padding, again for labels."""

    def __init__(self, lanes: Lanes, mantissas: Any, exponents: Any, start: Any, half: Any) -> None:
        self.lanes, self.mantissas, self.exponents = lanes, mantissas, exponents
        self.starts = {"blank": start, "label": lanes.builder.add(start, half)}

    def _position(self, kind: str, block: Any, shift: int) -> Any:
        builder = self.lanes.builder
        return builder.add(builder.add(self.starts[kind], block.type(shift)), inside(builder, block))

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
        nothing = self.lanes.constant(0), self.lanes.integer(NEVER)
        for kind in ("blank", "label"):
            self.store(nothing, kind, builder.sub(first, first.type(1)))
            self.store(nothing, kind, builder.add(last, last.type(1)))


def over_blocks(builder: Any, first: Any, last: Any) -> Any:
    return cgutils.for_range(builder, builder.add(last, last.type(1)), start=first)


def over_row(builder: Any, lanes: Lanes, start: Any, count: Any, visit: Callable[[Any, Any], None]) -> None:
    """Visit a row block by block; the last block comes with a mask so that nothing outside is touched."""
    width = count.type(lanes.width)
    full = builder.mul(builder.sdiv(count, width), width)
    with cgutils.for_range_slice(builder, count.type(0), full, width, intp=count.type) as (offset, _):
        visit(builder.add(start, offset), None)
    rest = builder.sub(count, full)
    with builder.if_then(builder.icmp_signed(">", rest, rest.type(0))):
        visit(builder.add(start, full), lanes.mask(rest))


def inside(builder: Any, block: Any) -> Any:
    """Position of a block behind the leading padding."""
    return builder.add(builder.mul(block, block.type(LANES)), block.type(LANES))
