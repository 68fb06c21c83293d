"""The innermost step over bit planes, written as vector instructions.

As simd.py: it stands next to the same thing in plain Python, which runs when compilation is off.
The sums of the weights of any of four inputs are sixteen floats: a vector. Where the processor has
registers for masks, it also picks from such a vector by sixteen indices at once, so that four
weights take one addition.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.simd import (
    VECTOR,
    WIDE,
    Emitter,
    compiled,
    floats,
    has_mask_registers,
)

WORD = ir.IntType(32)

TOGETHER = 4
"""Weights that are summed before their sum is added."""

STEP_BITS = 4
"""Bits from a step of a word to the next: as many as weights summed together, so that the bits of
their inputs interleave."""


def _plain_sums_of_fours(
    words: Array, base: int, places: Array, weight: Array, begin: int, end: int, bias: float,
    sums: Array, at: int, apart: int, lines: int, steps: int,
) -> None:  # fmt: skip
    """Sums of the weights k from `begin` to `end` whose inputs fired, at so many steps.

    Input k of position i is words[base + places[k] + i], with step t at bit STEP_BITS · t; the
    positions are those of `lines` vectors of 32-bit integers. Each TOGETHER weights are added to 0,
    one after the other, and their sum to the sum before, which starts with the bias.

    Position i = (l · VECTOR + j) · P + h, P of which one such integer holds, leaves in
    sums[at + (t · P + h) · apart + l · VECTOR + j].
    """
    held = 4 // words.itemsize
    for i in range(lines * VECTOR * held):
        place, h = divmod(i, held)
        for t in range(steps):
            total = np.float32(bias)
            for k in range(begin, end, TOGETHER):
                few = np.float32(0)
                for m in range(k, k + TOGETHER):
                    if int(words[base + int(places[m]) + i]) >> STEP_BITS * t & 1:
                        few += weight[m]
                total += few
            sums[at + (t * held + h) * apart + place] = total


@intrinsic(prefer_literal=True)
def _vector_sums_of_fours(
    typing: Any, words: Any, base: Any, places: Any, weight: Any, begin: Any, end: Any, bias: Any,
    sums: Any, at: Any, apart: Any, lines: Any, steps: Any,
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(context, builder, signature, args)
        _Fours(e, lines.literal_value, steps.literal_value).emit()
        return context.get_dummy_value()

    given = words, base, places, weight, begin, end, bias, sums, at, apart, lines, steps
    return types.void(*given), generate


class _Fours:
    """Emits the sums of one call."""

    def __init__(self, e: Emitter, lines: int, steps: int) -> None:
        self.e, self.lines, self.steps = e, lines, steps
        self.bits = e.signature.args[0].dtype.bitwidth
        self.held = 32 // self.bits
        self.vector, self.index = floats(VECTOR), ir.VectorType(WORD, VECTOR)

    def emit(self) -> None:
        e, b = self.e, self.e.builder
        first = b.gep(e.array(0).data, [e.index(1)])
        places, weight = e.array(2).data, e.array(3).data
        count = self.steps * self.held * self.lines
        totals = [cgutils.alloca_once(b, self.vector) for _ in range(count)]  # type: ignore[no-untyped-call]
        start = e.splat(e.args[6], self.vector)
        for total in totals:
            b.store(start, total)
        with cgutils.for_range_slice(b, e.index(4), e.index(5), WIDE(TOGETHER), WIDE) as (k, _):
            each = [b.add(k, WIDE(m)) for m in range(TOGETHER)]
            weights = [e.splat(b.load(b.gep(weight, [m])), self.vector) for m in each]
            words = [b.gep(first, [b.sext(b.load(b.gep(places, [m])), WIDE)]) for m in each]
            self._add(weights, words, totals)
        to = b.gep(e.array(7).data, [e.index(8)])
        for j, total in enumerate(totals):
            row, line = divmod(j, self.lines)
            place = b.add(e.times(e.index(9), row), WIDE(VECTOR * line))
            b.store(b.load(total), e.vector_at(to, place, self.vector), align=4)

    def _add(self, weights: list[Any], words: list[Any], totals: list[Any]) -> None:
        """Add four weights to all totals."""
        b = self.e.builder
        table = self._sums(weights, range(1 << TOGETHER)) if has_mask_registers() else None
        for line in range(self.lines):
            indices = self._indices(words, line)
            for h in range(self.held):
                for t in range(self.steps):
                    down = h * self.bits + STEP_BITS * t
                    index = b.lshr(indices, self._all(down)) if down else indices
                    few = (
                        self._picked(weights, index) if table is None else self._pick(table, index)
                    )
                    total = totals[(t * self.held + h) * self.lines + line]
                    b.store(b.fadd(b.load(total), few), total)

    def _all(self, number: int) -> Any:
        return ir.Constant(self.index, [number] * VECTOR)

    def _indices(self, words: list[Any], line: int) -> Any:
        """The bits of four inputs side by side, of the positions of a line."""
        b, indices = self.e.builder, None
        for m, pointer in enumerate(words):
            place = WIDE(line * VECTOR * self.held)
            found = b.load(self.e.vector_at(pointer, place, self.index), align=self.bits // 8)
            moved = b.shl(found, self._all(m)) if m else found
            indices = moved if indices is None else b.or_(indices, moved)
        return indices

    def _sums(self, weights: list[Any], numbers: range) -> Any:
        """A vector of the sums of all choices of the weights."""
        chosen = [[number >> m & 1 for number in numbers] for m in range(len(weights))]
        mask = ir.VectorType(ir.IntType(1), VECTOR)
        return self._chain(weights, [ir.Constant(mask, each) for each in chosen])

    def _picked(self, weights: list[Any], index: Any) -> Any:
        """The sum that each index chooses, without a table."""
        b, masks = self.e.builder, []
        for m in range(len(weights)):
            bit = b.and_(index, self._all(1 << m))
            masks.append(b.icmp_unsigned("!=", bit, self._all(0)))
        return self._chain(weights, masks)

    def _chain(self, weights: list[Any], masks: list[Any]) -> Any:
        """0, plus each weight where its mask is set, in turn."""
        b, total = self.e.builder, ir.Constant(self.vector, [0.0] * VECTOR)
        for weight, mask in zip(weights, masks, strict=True):
            total = b.select(mask, b.fadd(total, weight), total)
        return total

    def _pick(self, table: Any, index: Any) -> Any:
        """The table's entries at the lowest bits of the indices."""
        b = self.e.builder
        kind = ir.FunctionType(self.vector, (self.vector, self.index))
        name = "llvm.x86.avx512.permvar.sf.512"
        pick = cgutils.get_or_insert_function(b.module, kind, name)  # type: ignore[no-untyped-call]
        return b.call(pick, (table, index))


sums_of_fours: Any = _vector_sums_of_fours if compiled() else _plain_sums_of_fours
"""sums_of_fours(words, base, places, weight, begin, end, bias, sums, at, apart, lines,
steps): as
`_plain_sums_of_fours`."""
