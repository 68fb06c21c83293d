"""Layers on bit planes (kernels/bit_planes.py): which can run so, and the arrays that they read.

A map of spikes that such layers give or read is kept as words: of each chunk of steps (channels,
length), in the same frame for all of them. The zeros of the frame are what a kernel finds beyond
the map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.kernels.bit_planes import (
    BLOCK,
    CHANNELS,
    MOST_SUMS,
    chunks_of,
    tile_of,
    word_of,
)
from soul_deploy.runtime.kernels.fours import STEP_BITS, TOGETHER
from soul_deploy.runtime.kernels.simd import VECTOR
from soul_deploy.runtime.plan.layout import layout_of

ROW_BYTES = 8 + 48
"""Of a synapse, and what sorting it takes meanwhile."""

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


def tiles_of(shape: net.Shape, pitch: int, steps: int) -> int:
    """How many tiles a channel of a map has."""
    return -(-((shape[1] - 1) * pitch + shape[2]) // tile_of(steps))


def _needed(moves: Array, shape: net.Shape, pitch: int, steps: int) -> tuple[int, int]:
    """Words that a source needs before its first position and behind it, for outputs `shape`."""
    distances = moves @ np.array([pitch, 1])
    size = tiles_of(shape, pitch, steps) * tile_of(steps)
    return max(0, -int(distances.min())), size + max(0, int(distances.max()))


def plane_bytes(layer: net.Synaptic, convolution: net.ConvSynapses, steps: int, gap: int) -> int:
    """Bytes that a layer on bit planes takes: words of its source and its own, bits of live
    neurons, membranes, rows and what sorting them takes meanwhile, scratch.
    """
    pitch, moves = layer.in_shape[2] + gap, moves_of(convolution)
    before, behind = _needed(moves, layer.out_shape, pitch, steps)
    frame = frame_of(layer.in_shape[2], pitch, before, behind, steps)
    size = tiles_of(layer.out_shape, pitch, steps) * tile_of(steps) + 2 * LINE
    word, out = int(word_of(steps).itemsize), layer.out_shape[0]
    words = len(chunks_of(steps)) * (layer.in_shape[0] * frame.length + out * size)
    synapses = convolution.rows.synapses + (TOGETHER - 1) * out
    packing = BLOCK * (layer.in_shape[0] + out)
    neurons = CHANNELS * (MOST_SUMS * VECTOR + 2 * tile_of(steps))
    scratch = 4 * (packing + neurons)
    return word * words + (word + 2 + 4) * out * size + ROW_BYTES * synapses + scratch


@brief
@dataclass(frozen=True)
class PlaneRows:
    """The rows of a convolution by output channel, and where its words come from.

    starts  int64 (C_out + 1,): output channel c has the weights starts[c] to starts[c + 1], filled
            up with zeros to a multiple of TOGETHER
    places  int32 (synapses,): input channel · kernel positions + kernel position, rising
    weight, bias  float32
    moves   as `moves_of`
    shape   of the outputs
    """

    starts: Array
    places: Array
    weight: Array
    bias: Array
    moves: Array
    shape: net.Shape

    def tiles(self, pitch: int, steps: int) -> int:
        """How many tiles an output channel has."""
        return tiles_of(self.shape, pitch, steps)

    def needed(self, pitch: int, steps: int) -> tuple[int, int]:
        """Words that the source needs before its first position and behind it."""
        return _needed(self.moves, self.shape, pitch, steps)

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
    bias = convolution.bias
    return PlaneRows(
        starts=starts.astype(np.int64),
        places=_filled(places[order], at, int(starts[-1]), np.dtype(np.int32)),
        weight=_filled(rows.weight[order], at, int(starts[-1]), np.dtype(np.float32)),
        bias=np.zeros(convolution.out_shape[0], np.float32) if bias is None else bias.copy(),
        moves=moves_of(convolution),
        shape=layer.out_shape,
    )


def _filled(values: Array, at: Array, size: int, dtype: np.dtype[Any]) -> Array:
    """Values at their places among zeros."""
    filled = np.zeros(size, dtype)
    filled[at] = values
    return filled


def live_words(layer: net.SpikingLayer, pitch: int, steps: int) -> Array:
    """(C, tiles · tile), or (1, ...) if all neurons live: all bits of the words of neurons that
    exist, position 0 first; of a layer whose neurons are not compacted.
    """
    (channels, height, width), size = layer.out_shape, tiles_of(layer.out_shape, pitch, steps)
    size *= tile_of(steps)
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
    network: net.EventNetwork, rows: Mapping[str, PlaneRows], steps: int
) -> dict[str, Frame]:
    """The frames of all maps that a layer on bit planes reads or gives. Rows are equally far apart
    from their ends in all of them, since a layer's source and its map have the same pitch.
    """
    needed: dict[str, tuple[int, int, int]] = {}
    gap = max((gap_of(plan.moves) for plan in rows.values()), default=0)
    for layer in network.projected:
        if (plan := rows.get(layer.name)) is not None:
            columns = layer.in_shape[2]
            pitch = columns + gap
            own = 0, plan.tiles(pitch, steps) * tile_of(steps)
            read = plan.needed(pitch, steps)
            shown = 0, layer.in_shape[1] * pitch  # what its source writes
            for name, more in ((layer.source, read), (layer.source, shown), (layer.name, own)):
                _, before, behind = needed.get(name, (0, 0, 0))
                needed[name] = columns, max(before, more[0]), max(behind, more[1])
    return {
        name: frame_of(columns, columns + gap, before, behind, steps)
        for name, (columns, before, behind) in needed.items()
    }
