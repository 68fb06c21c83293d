"""Layers on bit planes (kernels/bit_planes.py): which can run so, and the arrays that they read.

A map of spikes that such layers give or read is kept as words: of each chunk of steps (channels,
front + blocks + back, steps) uint16. The blocks of zeros around are what a shift reads beyond the
map.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.tap_tables import positions_under
from soul_deploy.runtime.kernels.bit_planes import BLOCK, chunks_of, group_of
from soul_deploy.runtime.plan.layout import channel_last, layout_of

ROW_BYTES = 8 + 48
"""Of a synapse, and what sorting it takes meanwhile."""

MOST_TAPS = 49
"""Kernel positions for which words are copied: 7 × 7."""


def blocks_of(shape: net.Shape) -> int:
    """Words of a channel and step for so large a map."""
    return -(-channel_last(shape)[0] // BLOCK)


def fits_planes(layer: net.Synaptic) -> bool:
    """Whether a layer can run on bit planes: neurons behind a convolution with shared sparse rows
    and stride 1, whose map has rows as long as its input's, on spikes; a kernel that is not large,
    and no neurons that are compacted.
    """
    synapses = layer.synapses
    return (
        isinstance(layer, net.SpikingLayer)
        and isinstance(synapses, net.ConvSynapses)
        and layer.edge == "spike"
        and isinstance(synapses.rows, net.SparseRows)
        and synapses.stride == (1, 1)
        and synapses.in_shape[2] == synapses.out_shape[2]
        and math.prod(synapses.kernel) <= MOST_TAPS
        and synapses.row_count < 1 << 31  # places are counted in 32 bits
        and layout_of(layer) is None
    )


def plane_bytes(layer: net.Synaptic, convolution: net.ConvSynapses, steps: int) -> int:
    """Bytes that a layer on bit planes takes: words of its source and its own, moved words,
    membranes, rows and what sorting them takes meanwhile.
    """
    blocks, arriving = blocks_of(layer.out_shape), blocks_of(layer.in_shape)
    group, moves = group_of(steps), _moves(convolution)
    width, longest = -(-blocks // group) * group, max(chunks_of(steps))
    taps, channels, out = len(moves), layer.in_shape[0], layer.out_shape[0]
    source = channels * (arriving + sum(_margins(moves, width, arriving)))
    words = (source + out * width) * steps + (channels + 4) * taps * width * longest
    return 2 * words + (64 + 6) * out * width + ROW_BYTES * convolution.rows.synapses


def _margins(moves: Array, width: int, source_blocks: int) -> tuple[int, int]:
    """Blocks of zeros before and behind a source, for outputs of `width` blocks."""
    end = width + int(moves[:, 0].max()) + 1
    return max(0, -int(moves[:, 0].min())), max(0, end - source_blocks)


@brief
@dataclass(frozen=True)
class PlaneRows:
    """The rows of a convolution by output channel, and where its words come from.

    starts  int64 (C_out + 1,): output channel c has the weights starts[c] to starts[c + 1]
    places  int32 (synapses,): input channel · kernel positions + kernel position, rising
    weight, bias  float32
    moves   int64 (kernel positions, 2): blocks and bits from an output's word to its input's
    inside  uint16 (kernel positions, blocks): bits of outputs that have an input there
    live    uint16 (C_out, blocks): neurons that exist
    """

    starts: Array
    places: Array
    weight: Array
    bias: Array
    moves: Array
    inside: Array
    live: Array

    @property
    def blocks(self) -> int:
        return int(self.live.shape[1])

    def tiles(self, group: int) -> int:
        """How many tiles of `group` blocks an output channel has."""
        return -(-self.blocks // group)

    def inside_of(self, steps: int, group: int) -> Array:
        """`inside` as a shift of `steps` steps reads it: (kernel positions, blocks · steps).

        The blocks are those of all tiles of `group`.
        """
        words: Array = np.repeat(self._padded(self.inside, group), steps, axis=1)
        return words

    def live_of(self, group: int) -> Array:
        """`live` of all blocks of the tiles."""
        return self._padded(self.live, group)

    def _padded(self, words: Array, group: int) -> Array:
        beyond = self.tiles(group) * group - self.blocks
        return np.ascontiguousarray(np.pad(words, ((0, 0), (0, beyond))))

    def moved_size(self, channels: int, steps: int) -> int:
        """Words of the copies that a layer reads: one for each of its kernel positions."""
        group = group_of(steps)
        blocks = self.tiles(group) * group
        return blocks * channels * len(self.moves) * max(chunks_of(steps))

    def margins(self, group: int, source_blocks: int) -> tuple[int, int]:
        """Blocks of zeros that the source's words need before and behind."""
        return _margins(self.moves, self.tiles(group) * group, source_blocks)


def plane_rows(layer: net.SpikingLayer, convolution: net.ConvSynapses) -> PlaneRows:
    """Rows of a layer that `fits_planes`."""
    rows, (height, width) = convolution.rows, convolution.kernel
    assert isinstance(rows, net.SparseRows)
    each = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    channel, mirrored = np.divmod(each, height * width)
    places = channel * height * width + (height * width - 1 - mirrored)
    order = np.lexsort((places, rows.targets))
    counts = np.bincount(rows.targets, minlength=convolution.out_shape[0])
    bias = convolution.bias
    return PlaneRows(
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        places=places[order].astype(np.int32),
        weight=rows.weight[order],
        bias=np.zeros(convolution.out_shape[0], np.float32) if bias is None else bias.copy(),
        moves=_moves(convolution),
        inside=_inside(convolution),
        live=live_words(layer),
    )


def _moves(convolution: net.ConvSynapses) -> Array:
    """As PlaneRows.moves."""
    (kh, kw), (dy, dx) = convolution.kernel, convolution.dilation
    down = np.arange(kh)[:, None] * dy - convolution.padding[0]
    right = np.arange(kw) * dx - convolution.padding[1]
    distance = (down * convolution.in_shape[2] + right).reshape(-1)
    return np.stack(np.divmod(distance, BLOCK), axis=1).astype(np.int64)


def _inside(convolution: net.ConvSynapses) -> Array:
    """As PlaneRows.inside."""
    y, x = (positions_under(convolution, axis)[:, ::-1] >= 0 for axis in (0, 1))
    met = y.T[:, None, :, None] & x.T[None, :, None, :]
    return words_of(met.reshape(math.prod(convolution.kernel), -1))


def live_words(layer: net.SpikingLayer) -> Array:
    """uint16 (C, blocks): neurons that exist, of a layer whose neurons are not compacted."""
    positions, channels = channel_last(layer.out_shape)
    live = np.ones((positions, channels), np.bool_)
    if layer.live is not None:
        live = layer.live.reshape(positions, channels)
    return words_of(live.T)


def words_of(bits: Array) -> Array:
    """uint16 (rows, blocks) of bool (rows, positions); beyond the last position, 0."""
    padding = -bits.shape[1] % BLOCK
    padded = np.pad(bits, ((0, 0), (0, padding))).reshape(len(bits), -1, BLOCK)
    return np.asarray(padded @ (1 << np.arange(BLOCK))).astype(np.uint16)


@brief
@dataclass(frozen=True)
class Words:
    """The words of a map, (C, front + blocks + back, steps) uint16 of each chunk of steps, zeros
    around the blocks.
    """

    chunks: tuple[Array, ...]
    front: int

    @property
    def steps(self) -> int:
        """T."""
        return sum(chunk.shape[2] for chunk in self.chunks)

    def of_steps(self, values: Array) -> list[tuple[Array, Array]]:
        """Each chunk with its steps of a map (T, positions, C)."""
        ends = np.cumsum([chunk.shape[2] for chunk in self.chunks])
        steps = [values[end - c.shape[2] : end] for c, end in zip(self.chunks, ends, strict=True)]
        return list(zip(self.chunks, steps, strict=True))


def empty_words(shape: net.Shape, steps: int, margins: tuple[int, int]) -> Words:
    """Of a map in which nothing fires."""
    blocks = margins[0] + blocks_of(shape) + margins[1]
    sizes = ((shape[0], blocks, chunk) for chunk in chunks_of(steps))
    return Words(tuple(np.zeros(size, np.uint16) for size in sizes), margins[0])


def map_of(words: Words, shape: net.Shape) -> Array:
    """The map (T, positions, C), uint8, of its words."""
    positions, channels = channel_last(shape)
    whole = np.concatenate(words.chunks, axis=2)
    kept, steps = whole[:, words.front : words.front + blocks_of(shape)], whole.shape[2]
    bits = kept[..., None] >> np.arange(BLOCK, dtype=np.uint16) & np.uint16(1)
    full = bits.astype(np.uint8).transpose(2, 1, 3, 0).reshape(steps, -1, channels)
    return np.ascontiguousarray(full[:, :positions])


def margins_of(
    network: net.EventNetwork, rows: Mapping[str, PlaneRows], steps: int
) -> dict[str, tuple[int, int]]:
    """Blocks of zeros around the words of each map that a layer on bit planes reads or gives."""
    found: dict[str, tuple[int, int]] = {}
    group = group_of(steps)
    for layer in network.projected:
        if (plan := rows.get(layer.name)) is not None:
            needed = plan.margins(group, blocks_of(layer.in_shape))
            before = found.get(layer.source, (0, 0))
            found[layer.source] = max(before[0], needed[0]), max(before[1], needed[1])
            beyond = plan.tiles(group) * group - plan.blocks  # a tile writes all of it
            found[layer.name] = (0, beyond)
    return found
