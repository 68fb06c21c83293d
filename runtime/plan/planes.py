"""Layers on bit planes (kernels/bit_planes.py): which can run so, and the arrays that they read.

A map of spikes that such layers give or read is kept as words: of each chunk of steps (channels,
length), in the same frame for all of them. The zeros of the frame are what a kernel finds beyond
the map.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.bounds import Accumulator
from soul_deploy.runtime.kernels.bit_planes import (
    BLOCK,
    CHANNELS,
    MOST_SUMS,
    chunks_of,
    lines_of,
    tile_of,
    word_of,
)
from soul_deploy.runtime.kernels.fours import STEP_BITS, TOGETHER
from soul_deploy.runtime.kernels.integer_fours import positions_of, sums_of_line, weights_for
from soul_deploy.runtime.kernels.simd import VECTOR
from soul_deploy.runtime.plan.layout import layout_of

ROW_BYTES = 8 + 48
"""Of a synapse, and what sorting it takes meanwhile."""

LINES, LINE_OVERHEAD = (6, 4, 3, 2, 1), 0.5
"""Lines that a tile of integers can have, and what begins one costs, in lines."""

LINE = 64
"""Bytes of a cache line, and of the words that are read at once."""


def fits_planes(layer: net.Synaptic) -> bool:
    """Whether a layer can run on bit planes: neurons behind a convolution with shared sparse rows
    and stride 1 that reads all of its input, whose map has rows as long as its input's, on spikes,
    and no neurons that are compacted.
    """
    synapses = layer.synapses
    return (
        isinstance(layer, net.SpikingLayer)
        and isinstance(synapses, net.ConvSynapses)
        and layer.neuron.fuses
        and layer.edge == "spike"
        and isinstance(synapses.rows, net.SparseRows)
        and synapses.stride == (1, 1)
        and synapses.in_shape[2] == synapses.out_shape[2]
        and synapses.reach == synapses.in_shape[1:]
        and synapses.row_count < 1 << 31  # places are counted in 32 bits
        and layout_of(layer) is None
    )


def fits_pooling(layer: net.Layer) -> bool:
    """Whether a layer is a pooling that can run on words: windows of two by two, side by side."""
    return (
        isinstance(layer, net.PoolLayer)
        and layer.kernel == layer.stride == (2, 2)
        and layer.padding == (0, 0)
    )


@brief
@dataclass(frozen=True)
class Frame:
    """Where the positions of a map stand among the words of a channel.

    columns  positions of a row
    pitch    words from a row to the next: those of the row, then zeros
    front    words before the first position: zeros
    length   words of a channel
    """

    columns: int
    pitch: int
    front: int
    length: int


def frame_of(columns: int, pitch: int, before: int, behind: int, steps: int) -> Frame:
    """A frame with that many words before the first position, and behind it. Its first position
    begins a cache line, and channels are an odd number of lines apart, so that they do not meet in
    the same places of a cache.
    """
    held = LINE // int(word_of(steps).itemsize)
    front = -(-before // held) * held
    lines = -(-(front + behind) // held) | 1
    return Frame(columns, pitch, front, lines * held)


def moves_of(convolution: net.ConvSynapses) -> Array:
    """int64 (kernel positions, 2): rows and columns from an output to its input."""
    (kh, kw), (dy, dx) = convolution.kernel, convolution.dilation
    rows, columns = np.divmod(np.arange(kh * kw), kw)
    moves = rows * dy - convolution.padding[0], columns * dx - convolution.padding[1]
    return np.stack(moves, axis=1).astype(np.int64)


def gap_of(moves: Array) -> int:
    """Zeros between rows that such moves need: to the left of a row and to the right."""
    return int(np.abs(moves[:, 1]).max())


@dataclass(frozen=True)
class Tiling:
    """How the positions of a channel are divided.

    lines  vectors of words in a tile
    tile   its positions
    count  tiles of a channel
    """

    lines: int
    tile: int
    count: int

    @property
    def size(self) -> int:
        """Positions of all tiles."""
        return self.tile * self.count

    def vectors(self, steps: int, accumulator: Accumulator | None) -> float:
        """Vectors of a tile's sums at all steps."""
        if accumulator is None:
            return self.tile * steps / VECTOR
        chunks = chunks_of(steps)
        return len(chunks) * self.lines * sums_of_line(max(chunks), word_of(steps), accumulator)


def tiling_of(shape: net.Shape, pitch: int, steps: int, accumulator: Accumulator | None) -> Tiling:
    """Of outputs `shape`; accumulator: of integer weights, None: of float32, whose tiles always
    have the same size.
    """
    positions = (shape[1] - 1) * pitch + shape[2]
    if accumulator is None:
        return Tiling(lines_of(steps), tile_of(steps), -(-positions // tile_of(steps)))
    word = word_of(steps)
    sums = sums_of_line(max(chunks_of(steps)), word, accumulator)
    able = [n for n in LINES if n * sums <= MOST_SUMS]
    found = [_tiled(positions, n, positions_of(n, word)) for n in able]
    return min(found, key=lambda tiling: tiling.count * (tiling.lines + LINE_OVERHEAD))


def _tiled(positions: int, lines: int, tile: int) -> Tiling:
    return Tiling(lines, tile, -(-positions // tile))


def _needed(moves: Array, pitch: int, size: int) -> tuple[int, int]:
    """Words that a source needs before its first position and behind it, for `size` outputs."""
    distances = moves @ np.array([pitch, 1])
    return max(0, -int(distances.min())), size + max(0, int(distances.max()))


def plane_bytes(layer: net.Synaptic, convolution: net.ConvSynapses, steps: int, gap: int) -> int:
    """Bytes that a layer on bit planes takes: words of its source and its own, bits of live
    neurons, membranes, rows and what sorting them takes meanwhile, scratch.
    """
    pitch, moves = layer.in_shape[2] + gap, moves_of(convolution)
    tiling = tiling_of(layer.out_shape, pitch, steps, layer.accumulator)
    before, behind = _needed(moves, pitch, tiling.size)
    frame = frame_of(layer.in_shape[2], pitch, before, behind, steps)
    size = tiling.size + 2 * LINE
    word, out = int(word_of(steps).itemsize), layer.out_shape[0]
    words = len(chunks_of(steps)) * (layer.in_shape[0] * frame.length + out * size)
    synapses = convolution.rows.synapses + (TOGETHER - 1) * out
    packing = BLOCK * (layer.in_shape[0] + out)
    neurons = CHANNELS * (2 * MOST_SUMS * VECTOR + 2 * tiling.tile)
    scratch = 4 * (packing + neurons)
    return word * words + (word + 2 + 4) * out * size + ROW_BYTES * synapses + scratch


def pool_bytes(layer: net.Layer, steps: int, gap: int) -> int:
    """Bytes of the words that a pooling which `fits_pooling` reads and gives."""
    words = 0
    for channels, height, width in (layer.in_shape, layer.out_shape):
        words += channels * (height * (width + gap) + 3 * LINE)
    return words * len(chunks_of(steps)) * int(word_of(steps).itemsize)


@brief
@dataclass(frozen=True)
class PlaneRows:
    """The rows of a convolution by output channel, and where its words come from.

    starts  int64 (C_out + 1,): output channel c has the weights starts[c] to starts[c + 1], filled
            up with zeros to a multiple of TOGETHER
    places  int32 (synapses,): input channel · kernel positions + kernel position, rising
    weight, bias  float32; of integers as `weights_for`, and int32
    moves   as `moves_of`
    shape   of the outputs
    accumulator  in which integers are summed; None: float32
    """

    starts: Array
    places: Array
    weight: Array
    bias: Array
    moves: Array
    shape: net.Shape
    accumulator: Accumulator | None = None

    def tiling(self, pitch: int, steps: int) -> Tiling:
        """How an output channel is divided."""
        return tiling_of(self.shape, pitch, steps, self.accumulator)

    def needed(self, pitch: int, steps: int) -> tuple[int, int]:
        """Words that the source needs before its first position and behind it."""
        return _needed(self.moves, pitch, self.tiling(pitch, steps).size)

    def places_in(self, frame: Frame, channels: int) -> Array:
        """int32 (synapses,): where the inputs of output 0 stand among a source's words.

        Raises LimitError for more words than 32 bits count.
        """
        if channels * frame.length >= 1 << 31:
            raise errors.LimitError(
                f"{channels} channels of {frame.length} words on bit planes; the limit is 2³¹ "
                "words. Give another form with --rows"
            )
        channel, tap = np.divmod(self.places.astype(np.int64), len(self.moves))
        distances = self.moves @ np.array([frame.pitch, 1])
        places: Array = channel * frame.length + frame.front + distances[tap]
        return places.astype(np.int32)


def plane_rows(layer: net.SpikingLayer, convolution: net.ConvSynapses) -> PlaneRows:
    """Rows of a layer that `fits_planes`."""
    rows, (height, width) = convolution.rows, convolution.kernel
    assert isinstance(rows, net.SparseRows)
    each = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    channel, mirrored = np.divmod(each, height * width)
    places = channel * height * width + (height * width - 1 - mirrored)
    order = np.lexsort((places, rows.targets))
    counts = np.bincount(rows.targets, minlength=convolution.out_shape[0])
    starts = np.concatenate([[0], np.cumsum(-(-counts // TOGETHER) * TOGETHER)])
    before = np.cumsum(counts) - counts
    at = starts[rows.targets[order]] + np.arange(len(order)) - before[rows.targets[order]]
    bias, kind = convolution.bias, np.float32 if layer.accumulator is None else np.int32
    weight = _filled(rows.weight[order], at, int(starts[-1]), rows.weight.dtype)
    return PlaneRows(
        starts=starts.astype(np.int64),
        places=_filled(places[order], at, int(starts[-1]), np.dtype(np.int32)),
        weight=weight if layer.accumulator is None else weights_for(weight, layer.accumulator),
        bias=np.zeros(convolution.out_shape[0], kind) if bias is None else bias.copy(),
        moves=moves_of(convolution),
        shape=layer.out_shape,
        accumulator=layer.accumulator,
    )


def _filled(values: Array, at: Array, size: int, dtype: np.dtype[Any]) -> Array:
    """Values at their places among zeros."""
    filled = np.zeros(size, dtype)
    filled[at] = values
    return filled


def live_words(layer: net.SpikingLayer, pitch: int, steps: int, size: int) -> Array:
    """(C, size), or (1, size) if all neurons live: all bits of the words of neurons that
    exist, position 0 first; of a layer whose neurons are not compacted.
    """
    channels, height, width = layer.out_shape
    live = np.ones((1, height, width), np.bool_)
    if layer.live is not None:
        live = layer.live.reshape(height, width, channels).transpose(2, 0, 1)
    bits = np.zeros((len(live), max(size, height * pitch)), word_of(steps))
    grid = bits[:, : height * pitch].reshape(len(live), height, pitch)
    grid[:, :, :width] = np.where(live, np.iinfo(bits.dtype).max, 0)
    return np.ascontiguousarray(bits[:, :size])


@brief
@dataclass(frozen=True)
class Words:
    """The words of a map, (C, length) of each chunk of steps; zeros where the frame has no
    position.

    sizes  steps of each chunk
    """

    chunks: tuple[Array, ...]
    sizes: tuple[int, ...]
    frame: Frame

    @property
    def steps(self) -> int:
        """T."""
        return sum(self.sizes)

    def of_steps(self, values: Array) -> list[tuple[Array, Array]]:
        """Each chunk with its steps of a map (T, positions, C)."""
        ends = np.cumsum(self.sizes)
        steps = [values[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]
        return list(zip(self.chunks, steps, strict=True))


def empty_words(channels: int, steps: int, frame: Frame) -> Words:
    """Of a map in which nothing fires."""
    sizes = chunks_of(steps)
    shape, word = (channels, frame.length), word_of(steps)
    return Words(tuple(np.zeros(shape, word) for _ in sizes), sizes, frame)


def map_of(words: Words, shape: net.Shape) -> Array:
    """The map (T, positions, C), uint8, of its words."""
    (height, width), frame = shape[1:], words.frame
    rows = frame.front + np.arange(height)[:, None] * frame.pitch
    places = (rows + np.arange(width)).reshape(-1)
    steps = []
    for chunk, size in zip(words.chunks, words.sizes, strict=True):
        found = chunk[:, places].T
        steps += [found >> np.array(STEP_BITS * t, found.dtype) & 1 for t in range(size)]
    return np.ascontiguousarray(np.stack(steps).astype(np.uint8))


def frames_of(
    network: net.EventNetwork, rows: Mapping[str, PlaneRows], pools: Collection[str], steps: int
) -> dict[str, Frame]:
    """The frames of all maps that a layer on bit planes, or one of the `pools`, reads or gives.
    Rows are equally far apart from their ends in all of them, since a layer's source and its map
    have the same pitch.
    """
    needed: dict[str, tuple[int, int, int]] = {}

    def need(name: str, columns: int, more: tuple[int, int]) -> None:
        _, before, behind = needed.get(name, (0, 0, 0))
        needed[name] = columns, max(before, more[0]), max(behind, more[1])

    gap = max((gap_of(plan.moves) for plan in rows.values()), default=0)
    for layer in network.projected:
        if (plan := rows.get(layer.name)) is not None:
            columns = layer.in_shape[2]
            pitch = columns + gap
            own = 0, plan.tiling(pitch, steps).size
            read = plan.needed(pitch, steps)
            shown = 0, layer.in_shape[1] * pitch  # what its source writes
            for name, more in ((layer.source, read), (layer.source, shown), (layer.name, own)):
                need(name, columns, more)
    for name in pools:
        pool = network.by_name[name]
        for each, (_, height, width) in ((pool.sources[0], pool.in_shape), (name, pool.out_shape)):
            need(each, width, (0, height * (width + gap)))
    return {
        name: frame_of(columns, columns + gap, before, behind, steps)
        for name, (columns, before, behind) in needed.items()
    }
