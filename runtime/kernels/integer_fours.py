"""The innermost step over bit planes of fixed-point networks, written as vector instructions.

As fours.py, with sums of int16 or int32. Of int16, a vector holds twice as many, and the sums of
the weights of any of four inputs are made beforehand: integers have no order that would have to be
kept, and a table of 16 is half a vector, which one load repeats.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.fours import STEP_BITS, TOGETHER
from soul_deploy.runtime.kernels.simd import (
    BYTES,
    WIDE,
    Emitter,
    compiled,
    has_mask_registers,
    kind_of,
)

CHOICES = 1 << TOGETHER
"""Of four inputs, which fired."""


def lanes_of(kind: npt.DTypeLike) -> int:
    """Sums of a vector."""
    return BYTES // np.dtype(kind).itemsize


def weights_for(weight: Array, kind: npt.DTypeLike) -> Array:
    """What `sums_of_integers` takes of int8 weights, a multiple of TOGETHER: CHOICES sums of each
    four where the processor picks from a vector, else the weights themselves.
    """
    fours = weight.astype(kind).reshape(-1, TOGETHER)
    if not has_mask_registers():
        return fours.reshape(-1)
    chosen = np.arange(CHOICES)[:, None] >> np.arange(TOGETHER) & 1
    return np.ascontiguousarray(fours @ chosen.T.astype(kind)).reshape(-1)


def _plain_sums_of_integers(
    words: Array, base: int, places: Array, weight: Array, begin: int, end: int, bias: int,
    sums: Array, at: int, apart: int, lines: int, steps: int,
) -> None:  # fmt: skip
    """sums[at + t · apart + i] = bias + the weights k from `begin` to `end` whose inputs fired.

    Input k of position i is words[base + places[k] + i], with step t at bit STEP_BITS · t; the
    positions are those that `lines` vectors of sums hold. weight: as `weights_for`.
    """
    for i in range(positions_of(lines, words.dtype)):
        for t in range(steps):
            total = int(bias)
            for k in range(begin, end):
                fired = int(words[base + int(places[k]) + i]) >> STEP_BITS * t & 1
                total += fired * int(weight[k])
            sums[at + t * apart + i] = total


def positions_of(lines: int, word: npt.DTypeLike) -> int:
    """Positions of so many vectors of words."""
    return lines * BYTES // np.dtype(word).itemsize


def sums_of_line(steps: int, word: npt.DTypeLike, kind: npt.DTypeLike) -> int:
    """Vectors of sums of one vector of words."""
    lane, bits = (8 * np.dtype(each).itemsize for each in (kind, word))
    return min(steps, lane // STEP_BITS) if bits > lane else steps * (lane // bits)


@intrinsic(prefer_literal=True)
def _vector_sums_of_integers(
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
    """Emits the sums of one call.

    A line is a vector of words, seen as `count` lanes of the sums' width. A lane holds one word or
    several positions', or half a word: then even lanes have its first steps, odd ones the others.
    """

    def __init__(self, e: Emitter, lines: int, steps: int) -> None:
        self.e, self.lines, self.steps = e, lines, steps
        self.word = e.signature.args[0].dtype.bitwidth
        self.lane = e.signature.args[7].dtype.bitwidth
        self.count = BYTES * 8 // self.lane
        self.kind = kind_of(e.signature.args[7].dtype)
        self.vector = ir.VectorType(self.kind, self.count)
        self.held = max(1, self.lane // self.word)
        self.halves = max(1, self.word // self.lane)
        together = self.lane // STEP_BITS if self.halves > 1 else steps
        self.downs = [
            h * self.word + STEP_BITS * t
            for t in range(min(steps, together))
            for h in range(self.held)
        ]

    def emit(self) -> None:
        e, b = self.e, self.e.builder
        first = b.gep(e.array(0).data, [e.index(1)])
        places = e.array(2).data
        totals = [
            [cgutils.alloca_once(b, self.vector) for _ in self.downs]  # type: ignore[no-untyped-call]
            for _ in range(self.lines)
        ]
        start = e.splat(e.as_kind(e.args[6], self.kind), self.vector)
        for line in totals:
            for total in line:
                b.store(start, total)
        with cgutils.for_range_slice(b, e.index(4), e.index(5), WIDE(TOGETHER), WIDE) as (k, _):
            each = [b.add(k, WIDE(m)) for m in range(TOGETHER)]
            words = [b.gep(first, [b.sext(b.load(b.gep(places, [m])), WIDE)]) for m in each]
            table, weights = self._table(k), self._weights(each)
            for i, line in enumerate(totals):
                index = self._index(words, i)
                for down, total in zip(self.downs, line, strict=True):
                    moved = b.lshr(index, self._all(down)) if down else index
                    few = (
                        self._picked(weights, moved) if table is None else self._pick(table, moved)
                    )
                    b.store(b.add(b.load(total), few), total)
        self._store(totals)

    def _all(self, number: int) -> Any:
        return ir.Constant(self.vector, [number] * self.count)

    def _table(self, k: Any) -> Any:
        """The sums of a four, as often as a vector holds them; None without mask registers."""
        if not has_mask_registers():
            return None
        e, b = self.e, self.e.builder
        few = ir.VectorType(self.kind, CHOICES)
        place = e.times(k, CHOICES // TOGETHER)
        table = b.load(e.vector_at(e.array(3).data, place, few), align=self.lane // 8)
        if self.count == CHOICES:
            return table
        mask = [i % CHOICES for i in range(self.count)]
        kind = ir.VectorType(ir.IntType(32), self.count)
        return b.shuffle_vector(table, ir.Constant(few, ir.Undefined), ir.Constant(kind, mask))

    def _weights(self, each: Sequence[Any]) -> list[Any]:
        """The four weights in all lanes, where there is no table."""
        if has_mask_registers():
            return []
        e, b = self.e, self.e.builder
        return [e.splat(b.load(b.gep(e.array(3).data, [m])), self.vector) for m in each]

    def _index(self, words: Sequence[Any], line: int) -> Any:
        """Which of four inputs fired, side by side; the last one first, so that each moves one bit
        with those behind it.
        """
        b, index = self.e.builder, None
        for pointer in reversed(words):
            place = WIDE(line * BYTES * 8 // self.word)
            found = b.load(self.e.vector_at(pointer, place, self.vector), align=self.word // 8)
            index = found if index is None else b.or_(b.add(index, index), found)
        return index

    def _pick(self, table: Any, index: Any) -> Any:
        """The table's entries at the lowest four bits; beyond them it repeats itself."""
        b = self.e.builder
        kind = ir.FunctionType(self.vector, (self.vector, self.vector))
        name = f"llvm.x86.avx512.permvar.{'hi' if self.lane == 16 else 'si'}.512"
        pick = cgutils.get_or_insert_function(b.module, kind, name)  # type: ignore[no-untyped-call]
        return b.call(pick, (table, index))

    def _picked(self, weights: Sequence[Any], index: Any) -> Any:
        """The sum of those that the index chooses."""
        b, total = self.e.builder, None
        for m, weight in enumerate(weights):
            bit = b.and_(index, self._all(1 << m))
            fired = b.icmp_unsigned("!=", bit, self._all(0))
            added = b.select(fired, weight, self._all(0))
            total = added if total is None else b.add(total, added)
        return total

    def _store(self, totals: Sequence[Sequence[Any]]) -> None:
        """Each step's sums in the order of positions."""
        e, b = self.e, self.e.builder
        to, per_line = b.gep(e.array(7).data, [e.index(8)]), BYTES * 8 // self.word
        for i, line in enumerate(totals):
            sums = [b.load(total) for total in line]
            for t in range(self.steps):
                place = b.add(e.times(e.index(9), t), WIDE(i * per_line))
                row = self._of_step(sums, t)
                kind = ir.VectorType(self.kind, per_line)
                b.store(row, e.vector_at(to, place, kind), align=self.lane // 8)

    def _of_step(self, sums: Sequence[Any], t: int) -> Any:
        if self.halves > 1:
            half, t = divmod(t, len(sums))
            return self._shuffled(sums[t], sums[t], range(half, self.count, 2))
        if self.held == 1:
            return sums[t]
        parts = list(sums[t * self.held : (t + 1) * self.held])
        while len(parts) > 1:  # of 2ⁿ parts, each with its place's bits turned round
            size = parts[0].type.count
            order = [side * size + i for i in range(size) for side in range(2)]
            half = len(parts) // 2
            parts = [self._shuffled(parts[j], parts[j + half], order) for j in range(half)]
        return parts[0]

    def _shuffled(self, a: Any, c: Any, order: Sequence[int]) -> Any:
        kind = ir.VectorType(ir.IntType(32), len(order))
        return self.e.builder.shuffle_vector(a, c, ir.Constant(kind, list(order)))


sums_of_integers: Any = _vector_sums_of_integers if compiled() else _plain_sums_of_integers
"""sums_of_integers(words, base, places, weight, begin, end, bias, sums, at, apart, lines, steps):
as `_plain_sums_of_integers`."""
