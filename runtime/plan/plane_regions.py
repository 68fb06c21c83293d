"""Layers on bit planes bound to words: regions of kernel launches, as regions.py."""

from collections.abc import Callable
from typing import Any

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.equations import Equation
from soul_deploy.runtime.format import network
from soul_deploy.runtime.kernels import bit_planes, fixed_planes
from soul_deploy.runtime.kernels import steps as step_forms
from soul_deploy.runtime.kernels.simd import VECTOR
from soul_deploy.runtime.plan.layer_plan import aligned, partitions_of
from soul_deploy.runtime.plan.planes import PlaneRows, Tiling, Words
from soul_deploy.runtime.plan.regions import Call, Region


def pack_region(source: Array, words: Words, *, partitions: int) -> Region:
    """A map of spikes (T, positions, C) into its words."""
    frame, region = words.frame, []
    rows = source.shape[1] // frame.columns
    for partition in partitions_of(partitions):
        scratch = np.empty((bit_planes.BLOCK, source.shape[2]), np.uint32)
        share = frame.columns, frame.pitch, *partition.of(rows), frame.front, scratch
        pairs = words.of_steps(source)
        pack = bit_planes.pack_words
        region.append(tuple(Call(pack, (v, *share, to), "words") for to, v in pairs))
    return tuple(region)


def pool_words_region(
    source: Words, words: Words, shape: network.Shape, *, partitions: int
) -> Region:
    """Words of a pooling that `fits_pooling` from those of its source; shape: of its map."""
    read, made, region = source.frame, words.frame, []
    for partition in partitions_of(partitions):
        share = *partition.of(shape[1]), shape[2], made.pitch, made.front
        pairs = zip(source.chunks, words.chunks, strict=True)
        pool = bit_planes.pool_words
        region.append(tuple(Call(pool, (s, read.pitch, read.front, *share, to)) for s, to in pairs))
    return tuple(region)


def unpack_region(words: Words, out: Array, *, partitions: int) -> Region:
    """Words into their map of spikes (T, positions, C)."""
    frame, region = words.frame, []
    rows = out.shape[1] // frame.columns
    for partition in partitions_of(partitions):
        scratch = np.empty((bit_planes.BLOCK, out.shape[2]), np.uint32)
        share = frame.columns, frame.pitch, *partition.of(rows), frame.front, scratch
        pairs = words.of_steps(out)
        unpack = bit_planes.unpack_words
        region.append(tuple(Call(unpack, (w, *share, to), "words") for w, to in pairs))
    return tuple(region)


def words_region(
    neuron: Equation, current: Array, live: Array, v: Array, spikes: Words, *, carry: bool,
    partitions: int,
) -> Region:  # fmt: skip
    """Neurons on currents (T or 1, n), channel-last, whose spikes leave as words, chunk by chunk.

    live: as `live_words`; v (n,).
    """
    form, frame = step_forms.form_of(neuron), spikes.frame
    channels, region = len(spikes.chunks[0]), []
    numbers = step_forms.numbers_of(neuron, channels)
    rows = len(v) // (frame.columns * channels)
    for partition in partitions_of(partitions):
        share, calls, begun = partition.of(rows), [], 0
        bits = np.zeros((bit_planes.BLOCK, channels), np.uint32)
        for chunk, steps in zip(spikes.chunks, spikes.sizes, strict=True):
            arriving = current if len(current) == 1 else current[begun : begun + steps]
            state, update = (carry or begun > 0, v, live), bit_planes.update_kernel(form, steps)
            given = arriving, frame.columns, frame.pitch, numbers, *state, *share, frame.front
            calls.append(Call(update, (*given, bits, chunk), "neurons"))
            begun += steps
        region.append(tuple(calls))
    return tuple(region)


def plane_region(
    neuron: Equation, rows: PlaneRows, live: Array, source: Words, v: Array, spikes: Words,
    *, carry: bool, partitions: int,
) -> Region:  # fmt: skip
    """A layer on bit planes, chunk after chunk of steps: currents, then neurons.

    live: as `live_words`; v (C_out, tiles · positions of a tile).
    """
    tiling, region = rows.tiling(source.frame.pitch, source.steps), []
    places = rows.places_in(source.frame, len(source.chunks[0]))
    numbers, chunks = step_forms.numbers_of(neuron, len(rows.bias)), len(source.chunks)
    bind = _float_planes if rows.accumulator is None else _fixed_planes
    for partition in partitions_of(partitions):
        share = partition.of(tiling.count * bit_planes.parts_of(len(rows.bias)))
        bound, calls = bind(neuron, rows, live, source, tiling), []
        for i, (arriving, leaving) in enumerate(zip(source.chunks, spikes.chunks, strict=True)):
            kernel, kept, scratch, view = bound(source.sizes[i])
            table = rows.starts, places, rows.weight, rows.bias, kept
            state = numbers, carry or i > 0, carry or i + 1 < chunks, v
            front = spikes.frame.front * leaving.dtype.itemsize // view(leaving).dtype.itemsize
            given = arriving, *table, *state, *share, front, *scratch, view(leaving)
            calls.append(Call(kernel, given, "fused"))
        region.append(tuple(calls))
    return tuple(region)


BoundPlanes = Callable[[int], tuple[Callable[..., None], Array, tuple[Array, ...], Any]]
"""Of a chunk's steps: the kernel, the live words as it reads them, scratch, how it sees words."""


def _float_planes(
    neuron: Equation, rows: PlaneRows, live: Array, source: Words, tiling: Tiling
) -> BoundPlanes:
    lines, held = tiling.lines, bit_planes.held_of(source.steps)
    lanes, together = lines * VECTOR * held, bit_planes.CHANNELS
    scratch = (
        aligned((together * max(source.sizes) * lanes,), np.float32),
        aligned((held, together * lines * VECTOR), np.float32),
        aligned((together * lines * VECTOR,), np.uint32),
    )
    form = step_forms.form_of(neuron)
    return lambda steps: (
        bit_planes.convolve_kernel(form, steps, lines, held), live.view(np.uint32), scratch,
        lambda words: words.view(np.uint32),
    )  # fmt: skip


def _fixed_planes(
    neuron: Equation, rows: PlaneRows, live: Array, source: Words, tiling: Tiling
) -> BoundPlanes:
    size = bit_planes.CHANNELS * max(source.sizes) * tiling.tile
    scratch = (
        aligned((size,), np.dtype(rows.accumulator)),
        aligned((tiling.tile,), step_forms.membrane_type(neuron)),
    )
    form = step_forms.form_of(neuron)
    return lambda steps: (
        fixed_planes.convolve_fixed(form, steps, tiling.lines, tiling.tile), live, scratch,
        lambda words: words,
    )  # fmt: skip
