"""The innermost steps over lists of events, written as vector instructions.

As simd.py: each stands next to the same thing in plain Python, which runs when compilation is off.
"""

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.simd import VECTOR, WIDE, Emitter, compiled, floats

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

    sums (outputs, vectors · VECTOR); each is rounded after each row, and no two lists have the same
    place. If `graded`, the row is multiplied by amounts[e] first.
    """
    width = vectors * VECTOR
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
    b, vector, length = e.builder, floats(vectors * VECTOR), e.index(8)
    weight = b.gep(e.array(0).data, [e.times(e.index(1), vector.count)])
    sums = e.array(9).data

    def number(array: int, index: Any) -> Any:
        return b.zext(b.load(b.gep(e.array(array).data, [index])), WIDE)

    def row_at(start: Any, row: Any) -> Any:
        return e.vector_at(start, e.times(row, vector.count), vector)

    def add(row: Any, event: Any, total: Any) -> None:
        added = b.load(row_at(weight, row), align=4)
        if graded:
            factor = b.load(b.gep(e.array(3).data, [event]))
            added = b.fmul(e.splat(factor, vector), added)
        b.store(b.fadd(b.load(total), added), total)

    def look_up(index: Any) -> list[Any]:
        places = [b.gep(e.array(2).data, [b.add(begin, index)]) for begin in begins]
        return [b.load(b.bitcast(place, WIDE.as_pointer()), align=2) for place in places]

    def add_all(words: Sequence[Any], index: Any, i: int) -> None:
        for word, begin, total in zip(words, begins, totals, strict=True):
            row = b.and_(b.lshr(word, WIDE(16 * i)), WIDE(0xFFFF))
            add(row, b.add(begin, b.add(index, WIDE(i))), total)

    begins, places = ([number(array, k) for k in lists] for array in (4, 5))
    totals = [cgutils.alloca_once(b, vector) for _ in lists]  # type: ignore[no-untyped-call]
    for k, place, total in zip(lists, places, totals, strict=True):
        b.store(b.load(row_at(sums, place), align=4), total)
        soon = e.times(number(5, b.add(k, WIDE(AHEAD))), vector.count)
        for line in range(vectors):
            e.prefetch(b.gep(sums, [b.add(soon, WIDE(VECTOR * line))]))
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
        b.store(b.load(total), row_at(sums, place), align=4)


sum_lists: Any = _vector_sum_lists if compiled() else _plain_sum_lists
"""sum_lists(weight, base, rows, amounts, begins, places, first, last, length, sums, vectors,
graded): as `_plain_sum_lists`."""
