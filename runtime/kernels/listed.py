"""The innermost steps over lists of events, written as vector instructions.

As simd.py: each stands next to the same thing in plain Python, which runs when compilation is off.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.simd import BYTES, WIDE, Emitter, compiled

UNROLLED = 4
"""Events whose rows are looked up with one load: a processor that loads two vectors in a cycle has
no place for a third load."""

AHEAD = 8
"""Lists between the one that is summed and the one whose sums are asked for. Both numbers also say
how far behind the last event and list the arrays can be read."""


def _plain_sum_lists(
    weight: Array, base: int, rows: Array, amounts: Array, begins: Array, places: Array,
    first: int, last: int, length: int, sums: Array, vectors: int, graded: bool,
) -> None:  # fmt: skip
    """sums[places[k]] += row base + rows[e] of `weight`, for the lists k from `first` to `last`,
    for e from begins[k] to begins[k] + length.

    sums (outputs, width), a row `vectors` of BYTES of weights; each is rounded after each row, and
    no two lists have the same place. If `graded`, the row is multiplied by amounts[e] first, of the
    weights' type. Weights int16 and sums int32: the sum of a list, which fits int16, is added.
    """
    width = vectors * BYTES // weight.itemsize
    for k in range(first, last):
        for e in range(begins[k], begins[k] + length):
            row = int(base) + int(rows[e])
            added = weight[row * width : (row + 1) * width]
            sums[places[k]] += amounts[e] * added if graded else added


@intrinsic(prefer_literal=True)
def _vector_sum_lists(
    typing: Any, weight: Any, base: Any, rows: Any, amounts: Any, begins: Any, places: Any,
    first: Any, last: Any, length: Any, sums: Any, vectors: Any, graded: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        _emit_sum_lists(e, vectors.literal_value, graded=graded.literal_value)
        return context.get_dummy_value()

    given = weight, base, rows, amounts, begins, places, first, last, length, sums, vectors, graded
    return types.void(*given), generate


def _emit_sum_lists(e: Emitter, vectors: int, *, graded: bool) -> None:
    """Two lists at a time, so that twice as many sums are under way; then the last one."""
    b, first, last = e.builder, e.index(6), e.index(7)
    even = b.add(first, b.and_(b.sub(last, first), WIDE(-2)))
    with cgutils.for_range_slice(b, first, even, WIDE(2), WIDE) as (k, _):
        _emit_lists(e, (k, b.add(k, WIDE(1))), vectors, graded=graded)
    with cgutils.for_range_slice(b, even, last, WIDE(1), WIDE) as (k, _):
        _emit_lists(e, (k,), vectors, graded=graded)


def _emit_lists(e: Emitter, lists: Sequence[Any], vectors: int, *, graded: bool) -> None:
    """Sums of some lists side by side, in registers."""
    b, length = e.builder, e.index(8)
    bits, total_bits = (e.signature.args[i].dtype.bitwidth for i in (0, 9))
    vector = e.vector_of(0, vectors * BYTES * 8 // bits)
    wide = e.vector_of(9, vector.count)
    weight = b.gep(e.array(0).data, [e.times(e.index(1), vector.count)])
    sums = e.array(9).data

    def number(array: int, index: Any) -> Any:
        return b.zext(b.load(b.gep(e.array(array).data, [index])), WIDE)

    def row_at(start: Any, row: Any, kind: Any = vector) -> Any:
        return e.vector_at(start, e.times(row, vector.count), kind)

    def look_up(index: Any) -> list[Any]:
        places = [b.gep(e.array(2).data, [b.add(begin, index)]) for begin in begins]
        return [b.load(b.bitcast(place, WIDE.as_pointer()), align=2) for place in places]

    def add_all(words: Sequence[Any], index: Any, i: int) -> None:
        for word, begin, total in zip(words, begins, totals, strict=True):
            row = b.and_(b.lshr(word, WIDE(16 * i)), WIDE(0xFFFF))
            event = b.add(begin, b.add(index, WIDE(i))) if graded else None
            _add(e, row_at(weight, row), event, total)

    begins, places = ([number(array, k) for k in lists] for array in (4, 5))
    totals = [cgutils.alloca_once(b, vector) for _ in lists]  # type: ignore[no-untyped-call]
    for k, place, total in zip(lists, places, totals, strict=True):
        _begin(e, row_at(sums, place, wide), total)
        soon = e.times(number(5, b.add(k, WIDE(AHEAD))), vector.count)
        for line in range(0, vector.count, BYTES * 8 // total_bits):
            e.prefetch(b.gep(sums, [b.add(soon, WIDE(line))]))
    whole = b.and_(length, WIDE(-UNROLLED))
    with cgutils.for_range_slice(b, WIDE(0), whole, WIDE(UNROLLED), WIDE) as (index, _):
        words = look_up(index)
        for i in range(UNROLLED):
            add_all(words, index, i)
    words, rest = look_up(whole), b.sub(length, whole)
    for i in range(UNROLLED - 1):
        with b.if_then(b.icmp_unsigned(">", rest, WIDE(i))):
            add_all(words, whole, i)
    for place, total in zip(places, totals, strict=True):
        _end(e, total, row_at(sums, place, wide))


def _add(e: Emitter, row: Any, event: Any, total: Any) -> None:
    """A row to a sum, times the amount of an event, if there is one."""
    b, size = e.builder, e.signature.args[0].dtype.bitwidth // 8
    added = b.load(row, align=size)
    if event is not None:
        factor = b.load(b.gep(e.array(3).data, [event]))
        added = e.multiply(e.splat(factor, added.type), added)
    b.store(e.add(b.load(total), added), total)


def _begin(e: Emitter, start: Any, total: Any) -> None:
    """A list's sum: from what stands there, or of a wider sum's parts from 0."""
    kind, wide = total.type.pointee, start.type.pointee
    same, size = kind == wide, e.signature.args[9].dtype.bitwidth // 8
    nothing = ir.Constant(kind, [0] * kind.count)
    e.builder.store(e.builder.load(start, align=size) if same else nothing, total)


def _end(e: Emitter, total: Any, to: Any) -> None:
    """Where it stands then, or what is added to it."""
    b, size = e.builder, e.signature.args[9].dtype.bitwidth // 8
    found, wide = b.load(total), to.type.pointee
    if found.type != wide:
        found = b.add(b.load(to, align=size), b.sext(found, wide))
    b.store(found, to, align=size)


sum_lists: Any = _vector_sum_lists if compiled() else _plain_sum_lists
"""sum_lists(weight, base, rows, amounts, begins, places, first, last, length, sums, vectors,
graded): as `_plain_sum_lists`."""
