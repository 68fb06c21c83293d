"""The innermost steps over lanes, written as vector instructions.

The compiler finds these vectors only with an optimisation that numba keeps off, and without them
lanes are slower than going step by step. Each stands next to the same thing in plain Python, which
runs when compilation is off. Arithmetic is that of the plain form: one rounded product, one rounded
sum per lane.

They take the number of lanes as a constant of the kernel that calls them. They are no closures over
it: compiled kernels are found again on disk by what their closures hold, and an intrinsic is never
the same twice.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from soul_deploy.base import Array

UNROLLED = 4
"""Synapses per iteration of the innermost loop."""

TRANSPOSED = 8
"""Neurons whose lanes are transposed at once."""

VECTOR = 16
"""Floats that are summed as one; the compiler splits it where registers are smaller."""

BYTES = 64
"""Bytes that are looked at at once."""

WIDE = ir.IntType(64)


def compiled() -> bool:
    """Whether numba compiles; NUMBA_DISABLE_JIT=1 turns it off."""
    off: bool = config.DISABLE_JIT  # type: ignore[attr-defined]
    return not off


@cache
def has_mask_registers() -> bool:
    """Whether kernels are compiled for a processor with registers for masks, and 32 for vectors
    (AVX-512).
    """
    features: str = cpu_target.target_context.codegen()._tm_features  # "+avx2,-avx512f,…"
    return compiled() and "+avx512bw" in features.split(",")


class Emitter:
    """Emits vector loads and stores for one call of an intrinsic."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args

    def array(self, i: int) -> Any:
        """Argument i, an array."""
        return self.context.make_array(self.signature.args[i])(
            self.context, self.builder, self.args[i]
        )

    def index(self, i: int) -> Any:
        """Argument i, an integer of any width, as 64 bits."""
        kind = self.signature.args[i]
        if kind.bitwidth == 64:
            return self.args[i]
        return (self.builder.sext if kind.signed else self.builder.zext)(self.args[i], WIDE)

    def vector_at(self, pointer: Any, place: Any, vector: Any) -> Any:
        """Where the floats from index `place` on are, as a vector."""
        return self.builder.bitcast(self.builder.gep(pointer, [place]), vector.as_pointer())

    def vector_of(self, i: int, count: int) -> Any:
        """The type of so many items of argument i, an array."""
        return ir.VectorType(kind_of(self.signature.args[i].dtype), count)

    def as_kind(self, value: Any, kind: Any) -> Any:
        """An integer, with its sign, or float of a narrower or the same type, as `kind`; of a wider
        one an integer's low bits.
        """
        if value.type == kind or is_float(kind):
            return value
        wider = value.type.width < kind.width
        return (self.builder.sext if wider else self.builder.trunc)(value, kind)

    def add(self, a: Any, b: Any) -> Any:
        """a + b, rounded, or modulo the width of integers."""
        return (self.builder.fadd if is_float(a.type) else self.builder.add)(a, b)

    def multiply(self, a: Any, b: Any) -> Any:
        """a · b, as `add`."""
        return (self.builder.fmul if is_float(a.type) else self.builder.mul)(a, b)

    def times(self, value: Any, factor: int) -> Any:
        """value · factor."""
        return self.builder.mul(value, WIDE(factor))

    def splat(self, value: Any, vector: Any) -> Any:
        """A vector that holds `value` in every lane."""
        nothing = ir.Constant(vector, ir.Undefined)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        one = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(one, nothing, mask)

    def prefetch(self, pointer: Any) -> None:
        """Ask for the cache line that a pointer points into."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        name = "llvm.prefetch.p0i8"
        prefetch = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            self.builder.module, kind, name
        )
        line = self.builder.bitcast(pointer, byte)
        self.builder.call(prefetch, [line, number(0), number(3), number(1)])  # read, soon, data


def floats(count: int) -> Any:
    """The vector type."""
    return ir.VectorType(ir.FloatType(), count)


KINDS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


def kind_of(number: Any) -> Any:
    """LLVM's type of a number of numba's."""
    return KINDS.get(number) or ir.IntType(number.bitwidth)


def is_float(kind: Any) -> bool:
    """Whether LLVM's type, or that of a vector's elements, is a floating-point one."""
    return isinstance(getattr(kind, "element", kind), ir.FloatType)


def _plain_add_row(
    out: Array, base: int, targets: Array, weight: Array, begin: int, end: int, amounts: Array,
    event: int, lanes: int,
) -> None:  # fmt: skip
    """out[base + targets[k]] += weight[k] · amounts[event], all lanes, k from `begin` to `end`.

    out (n, lanes), amounts (events, lanes), both of the same type: float32, or integers, where
    weight may be of a narrower one.
    """
    for k in range(begin, end):
        out[base + targets[k]] += weight[k] * amounts[event]


@intrinsic(prefer_literal=True)
def _vector_add_row(
    typing: Any, out: Any, base: Any, targets: Any, weight: Any, begin: Any, end: Any, amounts: Any,
    event: Any, lanes: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_add_row(Emitter(context, builder, signature, args), lanes.literal_value)
        return context.get_dummy_value()

    return types.void(out, base, targets, weight, begin, end, amounts, event, lanes), generate


def _emit_add_row(e: Emitter, lanes: int) -> None:
    """The loop over a row, `UNROLLED` synapses per iteration, then the rest one by one."""
    b, vector = e.builder, e.vector_of(0, lanes)
    size = e.signature.args[0].dtype.bitwidth // 8
    targets, weight = e.array(2).data, e.array(3).data
    first = b.gep(e.array(0).data, [e.times(e.index(1), lanes)])
    begin, end = e.index(4), e.index(5)
    pointer = e.vector_at(e.array(6).data, e.times(e.index(7), lanes), vector)
    factors = b.load(pointer, align=size)

    def add(k: Any) -> None:
        target = b.zext(b.load(b.gep(targets, [k])), WIDE)
        pointer = e.vector_at(first, e.times(target, lanes), vector)
        amount = e.as_kind(b.load(b.gep(weight, [k])), vector.element)
        product = e.multiply(e.splat(amount, vector), factors)
        b.store(e.add(b.load(pointer, align=size), product), pointer, align=size)

    even = b.add(begin, b.and_(b.sub(end, begin), WIDE(-UNROLLED)))
    with cgutils.for_range_slice(b, begin, even, WIDE(UNROLLED), WIDE) as (k, _):
        for i in range(UNROLLED):
            add(b.add(k, WIDE(i)))
    with cgutils.for_range_slice(b, even, end, WIDE(1), WIDE) as (k, _):
        add(k)


def _plain_broadcast_store(out: Array, neuron: int, value: float, lanes: int) -> None:
    """out[neuron] = value in every lane; out (n, lanes)."""
    out[neuron] = value


@intrinsic(prefer_literal=True)
def _vector_broadcast_store(typing: Any, out: Any, neuron: Any, value: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        vector, size = e.vector_of(0, lanes.literal_value), signature.args[0].dtype.bitwidth // 8
        pointer = e.vector_at(e.array(0).data, e.times(e.index(1), vector.count), vector)
        value_of = e.as_kind(args[2], vector.element)
        builder.store(e.splat(value_of, vector), pointer, align=size)
        return context.get_dummy_value()

    return types.void(out, neuron, value, lanes), generate


def _plain_transpose(current: Array, neuron: int, arriving: Array, index: int, lanes: int) -> None:
    """arriving[:, index + i] = current[neuron + i] for i below TRANSPOSED; current (n, lanes)."""
    arriving[:, index : index + TRANSPOSED] = current[neuron : neuron + TRANSPOSED].T


@intrinsic(prefer_literal=True)
def _vector_transpose(
    typing: Any, current: Any, neuron: Any, arriving: Any, index: Any, lanes: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_transpose(Emitter(context, builder, signature, args), lanes.literal_value)
        return context.get_dummy_value()

    return types.void(current, neuron, arriving, index, lanes), generate


def _emit_transpose(e: Emitter, lanes: int) -> None:
    b, block, row = e.builder, e.vector_of(0, TRANSPOSED * lanes), e.vector_of(0, TRANSPOSED)
    size = e.signature.args[0].dtype.bitwidth // 8
    source = e.vector_at(e.array(0).data, e.times(e.index(1), lanes), block)
    values, nothing = b.load(source, align=size), ir.Constant(block, ir.Undefined)
    arriving = e.array(2)
    pitch = b.extract_value(arriving.shape, 1)
    for t in range(lanes):
        sources = [i * lanes + t for i in range(TRANSPOSED)]
        mask = ir.Constant(ir.VectorType(ir.IntType(32), TRANSPOSED), sources)
        to = e.vector_at(arriving.data, b.add(e.times(pitch, t), e.index(3)), row)
        b.store(b.shuffle_vector(values, nothing, mask), to, align=size)


def _plain_transpose_block(
    values: Array, row: int, column: int, out: Array, to_row: int, to_column: int
) -> None:
    """A square of VECTOR rows, transposed, as integers of out's type."""
    square = values[row : row + VECTOR, column : column + VECTOR]
    out[to_row : to_row + VECTOR, to_column : to_column + VECTOR] = square.T


@intrinsic
def _vector_transpose_block(
    typing: Any, values: Any, row: Any, column: Any, out: Any, to_row: Any, to_column: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_transpose_block(Emitter(context, builder, signature, args))
        return context.get_dummy_value()

    return types.void(values, row, column, out, to_row, to_column), generate


def _emit_transpose_block(e: Emitter) -> None:
    b, wide = e.builder, ir.VectorType(ir.IntType(32), VECTOR)

    def rows(array: int) -> tuple[Any, list[Any]]:
        found, bits = e.array(array), e.signature.args[array].dtype.bitwidth
        kind = ir.VectorType(ir.IntType(bits), VECTOR)
        pitch, column = b.extract_value(found.shape, 1), e.index(array + 2)
        each = [b.add(e.index(array + 1), WIDE(i)) for i in range(VECTOR)]
        places = [b.add(b.mul(row, pitch), column) for row in each]
        return bits, [e.vector_at(found.data, place, kind) for place in places]

    (bits, sources), (out_bits, targets) = rows(0), rows(3)
    square = [b.load(source, align=bits // 8) for source in sources]
    square = [b.zext(row, wide) if bits < 32 else row for row in square]
    for s in (1, 2, 4, 8):  # squares of s rows change places with those beside them
        low = [j if not j & s else VECTOR + j - s for j in range(VECTOR)]
        high = [j + s if not j & s else VECTOR + j for j in range(VECTOR)]
        for i in range(VECTOR):
            if not i & s:
                pair = square[i], square[i | s]
                square[i] = b.shuffle_vector(*pair, ir.Constant(wide, low))
                square[i | s] = b.shuffle_vector(*pair, ir.Constant(wide, high))
    kind = ir.VectorType(ir.IntType(out_bits), VECTOR)
    for row, target in zip(square, targets, strict=True):
        b.store(b.trunc(row, kind) if out_bits < 32 else row, target, align=out_bits // 8)


def _plain_nonzero_bits(values: Array, at: int) -> int:
    """Bit i says whether values[at + i] is nonzero, i below BYTES; values uint8, one axis."""
    return sum(1 << i for i in range(BYTES) if values[at + i])


@intrinsic
def _vector_nonzero_bits(typing: Any, values: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, vector = Emitter(context, builder, signature, args), ir.VectorType(ir.IntType(8), BYTES)
        arrived = builder.load(e.vector_at(e.array(0).data, e.index(1), vector), align=1)
        nonzero = builder.icmp_unsigned("!=", arrived, ir.Constant(vector, [0] * BYTES))
        return builder.bitcast(nonzero, WIDE)

    return types.uint64(values, at), generate


def _plain_lowest_bit(bits: int) -> int:
    """Index of the lowest set bit; at least one is set."""
    return (int(bits) & -int(bits)).bit_length() - 1


@intrinsic
def _vector_lowest_bit(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), generate


def _plain_prefetch(array: Array, index: int) -> None:
    """Prefetch the cache line of array[index]; changes no value."""


@intrinsic
def _vector_prefetch(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        e.prefetch(builder.gep(e.array(0).data, [e.index(1)]))
        return context.get_dummy_value()

    return types.void(array, index), generate


add_row: Any = _vector_add_row if compiled() else _plain_add_row
"""add_row(out, base, targets, weight, begin, end, amounts, event, lanes): `_plain_add_row`."""

broadcast_store: Any = _vector_broadcast_store if compiled() else _plain_broadcast_store
"""broadcast_store(out, neuron, value, lanes): `_plain_broadcast_store`."""

transpose_block: Any = _vector_transpose_block if compiled() else _plain_transpose_block
"""transpose_block(values, row, column, out, to_row, to_column): `_plain_transpose_block`, unsigned
integers of 32 bits or less, contiguous."""

transpose: Any = _vector_transpose if compiled() else _plain_transpose
"""transpose(current, neuron, arriving, index, lanes): `_plain_transpose`."""

nonzero_bits: Any = _vector_nonzero_bits if compiled() else _plain_nonzero_bits
"""nonzero_bits(values, at) -> uint64: `_plain_nonzero_bits`."""

lowest_bit: Any = _vector_lowest_bit if compiled() else _plain_lowest_bit
"""lowest_bit(bits) -> uint64: `_plain_lowest_bit`."""

prefetch: Any = _vector_prefetch if compiled() else _plain_prefetch
"""prefetch(array, index): `_plain_prefetch`."""
