"""The innermost steps over bit planes, written as vector instructions.

As simd.py: each stands next to the same thing in plain Python, which runs when compilation is off.
A word of BLOCK bits is the mask of a vector of as many floats; where the processor has registers
for masks, a masked addition is one instruction.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.simd import VECTOR, WIDE, Emitter, compiled, floats

HALF, WORD = ir.IntType(16), ir.IntType(32)


def _plain_masked_sums(
    shifted: Array, base: int, places: Array, weight: Array, begin: int, end: int, bias: float,
    sums: Array, size: int,
) -> None:  # fmt: skip
    """sums[16 j + i] = bias + the weights k from `begin` to `end` for which the bit i is set of
    shifted[base + places[k] · size + j], j below `size`; rounded after each.
    """
    for j in range(size):
        for i in range(VECTOR):
            total = bias
            for k in range(begin, end):
                if int(shifted[base + int(places[k]) * size + j]) >> i & 1:
                    total += weight[k]
            sums[VECTOR * j + i] = total


@intrinsic(prefer_literal=True)
def _vector_masked_sums(
    typing: Any, shifted: Any, base: Any, places: Any, weight: Any, begin: Any, end: Any, bias: Any,
    sums: Any, size: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_masked_sums(Emitter(context, builder, signature, args), size.literal_value)
        return context.get_dummy_value()

    return types.void(shifted, base, places, weight, begin, end, bias, sums, size), generate


def _emit_masked_sums(e: Emitter, size: int) -> None:
    b, vector = e.builder, floats(VECTOR)
    mask, word = ir.VectorType(ir.IntType(1), VECTOR), HALF.as_pointer()
    places, weight = e.array(2).data, e.array(3).data
    first = b.gep(e.array(0).data, [e.index(1)])
    totals = [cgutils.alloca_once(b, vector) for _ in range(size)]  # type: ignore[no-untyped-call]
    start = e.splat(e.args[6], vector)
    for total in totals:
        b.store(start, total)
    with cgutils.for_range_slice(b, e.index(4), e.index(5), WIDE(1), WIDE) as (k, _):
        place = e.times(b.sext(b.load(b.gep(places, [k])), WIDE), size)
        words = b.bitcast(b.gep(first, [place]), word)
        added = e.splat(b.load(b.gep(weight, [k])), vector)
        for j, total in enumerate(totals):
            bits = b.bitcast(b.load(b.gep(words, [WIDE(j)]), align=2), mask)
            before = b.load(total)
            b.store(b.select(bits, b.fadd(before, added), before), total)
    for j, total in enumerate(totals):
        place = e.vector_at(e.array(7).data, WIDE(VECTOR * j), vector)
        b.store(b.load(total), place, align=4)


def _plain_shift_words(
    words: Array, at: int, down: int, masks: Array, mask: int, out: Array, to: int, steps: int,
    size: int,
) -> None:  # fmt: skip
    """Move words down by `down` bits, those of the next block behind them, where the masks allow.

    Word j of the `size`, of step j % steps and block j // steps, leaves in the order of the steps.
    """
    group = size // steps
    for j in range(size):
        both = int(words[at + j]) | int(words[at + steps + j]) << VECTOR
        moved = both >> int(down) & 0xFFFF & int(masks[mask + j])
        out[to + j % steps * group + j // steps] = moved


@intrinsic(prefer_literal=True)
def _vector_shift_words(
    typing: Any, words: Any, at: Any, down: Any, masks: Any, mask: Any, out: Any, to: Any,
    steps: Any, size: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        _emit_shift_words(e, steps.literal_value, size.literal_value)
        return context.get_dummy_value()

    return types.void(words, at, down, masks, mask, out, to, steps, size), generate


def _emit_shift_words(e: Emitter, steps: int, size: int) -> None:
    b, narrow, wide = e.builder, ir.VectorType(HALF, size), ir.VectorType(WORD, size)

    def load(array: int, place: Any) -> Any:
        return b.load(e.vector_at(e.array(array).data, place, narrow), align=2)

    low, high = load(0, e.index(1)), load(0, b.add(e.index(1), WIDE(steps)))
    both = b.or_(b.zext(low, wide), b.shl(b.zext(high, wide), ir.Constant(wide, [VECTOR] * size)))
    moved = b.lshr(both, e.splat(b.trunc(e.index(2), WORD), wide))
    words = b.and_(b.trunc(moved, narrow), load(3, e.index(4)))
    order = [g * steps + t for t in range(steps) for g in range(size // steps)]
    order = ir.Constant(ir.VectorType(WORD, size), order)
    words = b.shuffle_vector(words, ir.Constant(narrow, ir.Undefined), order)
    b.store(words, e.vector_at(e.array(5).data, e.index(6), narrow), align=2)


masked_sums: Any = _vector_masked_sums if compiled() else _plain_masked_sums
"""masked_sums(shifted, base, places, weight, begin, end, bias, sums, size): as
`_plain_masked_sums`."""

shift_words: Any = _vector_shift_words if compiled() else _plain_shift_words
"""shift_words(words, at, down, masks, mask, out, to, steps, size): as `_plain_shift_words`."""
