"""What a layer's synapses are expected to take in each form, from counts that its file knows.

A form's time is a sum: how often each kind of work is done, times nanoseconds. How often follows
from the weights, positions, channels and steps of the layer, and from the expected rate of its
source: the share of values that are nonzero at a step. The nanoseconds are constants that
benchmarks/calibrate.py finds, for one thread.

A vector of integer sums takes as long as one of floats; of int16 there are half as many.

The estimates are for choosing: a layer at another rate, or on another machine, takes another time,
but its forms mostly stand in the same order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from soul_deploy.base import dispatch, environment
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.bounds import Accumulator
from soul_deploy.runtime.format.tap_tables import tap_count
from soul_deploy.runtime.kernels.bit_planes import BLOCK, chunks_of
from soul_deploy.runtime.kernels.fours import TOGETHER
from soul_deploy.runtime.kernels.gather import USUAL_SECOND, vectors_for
from soul_deploy.runtime.kernels.simd import BYTES, VECTOR, has_mask_registers
from soul_deploy.runtime.kernels.time_vectorised import LANES_TOGETHER, lanes_for
from soul_deploy.runtime.plan.layout import channel_last
from soul_deploy.runtime.plan.planes import gap_of, moves_of, tiling_of

ROW_BYTES = 8
"""Of a weight in compressed rows, with its target."""

USUAL_RATE = 0.08
"""Spikes per neuron and step that are expected where a file says nothing."""


def pooled_rate(rate: float, window: int) -> float:
    """Of maxima over `window` values each, if each fires by chance."""
    return 1 - (1 - rate) ** window


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of each kind of work.

    launch              a kernel that is called
    collect             a value looked at, whether an event stands there; lane_collect: on lanes,
                        lane_list: a neuron of those
    neuron, lane_neuron a neuron at one step, on currents by step and on lanes
    lane_row            a piece of the compressed rows of a neuron that fires at any step
    lane_addition       one of its weights, on LANES_TOGETHER lanes; lane_wider: for as many more
    step_row, step_addition  the same for one spike, where steps go one by one
    dense_piece         a contiguous piece of targets that events of a position and step reach
    dense_addition      a weight of an event that is added there
    gather_output       a sum, begun with its bias and written
    gather_list         a step of a kernel position of an output; gather_window: one with events,
                        for a block of channels
    gather_row          an event in it; gather_vector: each vector of its row
    dense_far, gather_far, lane_far  a weight read from beyond the second cache
    list_value          a value looked at by vectors; list_odd: one that fills none; list_event: an
                        event listed
    plane_tile          a tile of a channel
    plane_weight        a weight of a tile; plane_vector: each of the tile's vectors
    plane_step          a step of the neurons of a channel on a tile
    pack, unpack        a value to its bit, and back; pack_odd, unpack_odd: of channels that fill no
                        vector
    give                a position at a step that the layer before gives as words instead of a map;
                        give_odd: a word where rows fill no vector
    analog_addition     a product of an analog value
    matrix_weight       a weight of a whole row of a matrix, of a neuron that fires at any step
    explicit_row, explicit_addition  a compressed row of a matrix, one of its weights
    """

    launch: float
    collect: float
    lane_collect: float
    lane_list: float
    neuron: float
    lane_neuron: float
    lane_row: float
    lane_addition: float
    lane_wider: float
    lane_far: float
    step_row: float
    step_addition: float
    dense_piece: float
    dense_addition: float
    dense_far: float
    gather_output: float
    gather_list: float
    gather_window: float
    gather_row: float
    gather_vector: float
    gather_far: float
    list_value: float
    list_odd: float
    list_event: float
    plane_tile: float
    plane_weight: float
    plane_vector: float
    plane_step: float
    pack: float
    pack_odd: float
    unpack: float
    unpack_odd: float
    give: float
    give_odd: float
    analog_addition: float
    matrix_weight: float
    explicit_row: float
    explicit_addition: float

    def nanoseconds(self, work: Mapping[str, float]) -> float:
        """Of so much work, by the names of the fields."""
        return sum(float(getattr(self, kind)) * often for kind, often in work.items())


KINDS: tuple[str, ...] = tuple(item.name for item in fields(Costs))

# By benchmarks/calibrate.py on an AMD EPYC (Zen 5, vectors of 512 bits, 48 KiB of first and 1 MiB
# of second cache), one thread, 2026-12-01; as it is, and compiled for a Haswell with AVX2.
WITH_MASKS = Costs(
    launch=123,
    collect=0.437,
    lane_collect=0.0725,
    lane_list=0.288,
    neuron=0.0961,
    lane_neuron=0.202,
    lane_row=6.47,
    lane_addition=0.307,
    lane_wider=0.0318,
    lane_far=0.0208,
    step_row=12.9,
    step_addition=0.297,
    dense_piece=26.9,
    dense_addition=0.0284,
    dense_far=0.00522,
    gather_output=0.0488,
    gather_list=2.73,
    gather_window=1.66,
    gather_row=0.057,
    gather_vector=0.147,
    gather_far=0.0353,
    list_value=0.045,
    list_odd=0.24,
    list_event=1.07,
    plane_tile=55.1,
    plane_weight=0,
    plane_vector=0.0981,
    plane_step=0,
    pack=0.0681,
    pack_odd=0.739,
    unpack=0,
    unpack_odd=0.428,
    give=6,
    give_odd=0.8,
    analog_addition=0.0381,
    matrix_weight=0.0437,
    explicit_row=2.34,
    explicit_addition=0.31,
)
WITHOUT_MASKS = Costs(
    launch=71.8,
    collect=0.419,
    lane_collect=0.0417,
    lane_list=0.385,
    neuron=0.182,
    lane_neuron=0.304,
    lane_row=6.51,
    lane_addition=0.306,
    lane_wider=0.058,
    lane_far=0.0112,
    step_row=11.3,
    step_addition=0.298,
    dense_piece=13.6,
    dense_addition=0.0331,
    dense_far=0.00664,
    gather_output=0.0686,
    gather_list=2.51,
    gather_window=1.4,
    gather_row=0.304,
    gather_vector=0.13,
    gather_far=0.0326,
    list_value=0.0305,
    list_odd=0.397,
    list_event=1.22,
    plane_tile=98.9,
    plane_weight=1.01,
    plane_vector=0.57,
    plane_step=0,
    pack=0.0983,
    pack_odd=0.645,
    unpack=0.00652,
    unpack_odd=0.425,
    give=6,
    give_odd=0.8,
    analog_addition=0.0463,
    matrix_weight=0.0521,
    explicit_row=2.18,
    explicit_addition=0.322,
)


def costs_here() -> Costs:
    """Those of the processor that kernels are compiled for."""
    return WITH_MASKS if has_mask_registers() else WITHOUT_MASKS


@dataclass(frozen=True)
class Expected:
    """What a layer is expected to run on.

    steps   different steps of its source; run: steps of the network
    rate    share of the source's values that are nonzero at a step
    packs, unpacks  whether, on bit planes, its source has to be packed and its spikes unpacked
    active  share of the source's neurons that fire at any step; None: each step is left to chance
    accumulator  in which integer weights are summed; None: float32
    """

    steps: int
    run: int
    rate: float
    packs: bool = True
    unpacks: bool = True
    active: float | None = None
    accumulator: Accumulator | None = None

    @property
    def lanes(self) -> int:
        """Weights of a vector where whole rows are gathered."""
        return VECTOR if self.accumulator is None else 2 * VECTOR

    @property
    def fires(self) -> float:
        """Share of the source's neurons that fire at any step."""
        return pooled_rate(self.rate, self.steps) if self.active is None else self.active

    @property
    def events(self) -> float:
        """Nonzero values per neuron of the source, in all steps."""
        return self.rate * self.steps


@dispatch.operation_table(net.Synapses)
def work_of(synapses: net.Synapses, form: str, expected: Expected) -> dict[str, float]:
    """How often each kind of work is done, by the names of Costs' fields."""
    raise work_of.unknown(synapses)


@work_of.on(net.MatrixSynapses)
def _(matrix: net.MatrixSynapses, form: str, expected: Expected) -> dict[str, float]:
    inputs, outputs = math.prod(matrix.in_shape), math.prod(matrix.out_shape)
    lanes = lanes_for(expected.steps)
    work = {"launch": 3.0, "neuron": outputs * expected.run}
    if lanes and form != "dense":
        work |= {"lane_collect": inputs * expected.steps, "lane_list": inputs}
    else:
        work["collect"] = inputs * expected.steps
    if form == "dense":
        work["matrix_weight"] = inputs * expected.fires * outputs
        return work
    passes = expected.fires if lanes else expected.events
    added = matrix.rows.synapses * passes
    return work | {"explicit_row": inputs * passes, "explicit_addition": added}


@work_of.on(net.ConvSynapses)
def _(convolution: net.ConvSynapses, form: str, expected: Expected) -> dict[str, float]:
    if form == "planes":
        return _planes_work(convolution, expected)
    values = math.prod(convolution.in_shape) * expected.steps
    work = {"launch": 3.0, "neuron": math.prod(convolution.out_shape) * expected.run}
    if form == "gather":
        return work | _gather_work(convolution, expected, values)
    if form == "analog":
        products = _joins(convolution) * convolution.in_shape[0] * expected.steps
        width = convolution.out_shape[0] // convolution.groups
        return work | {"analog_addition": products * width}
    if form == "dense":
        return work | {"collect": values} | _dense_work(convolution, expected)
    return work | _sparse_work(convolution, expected, values)


def _joins(convolution: net.ConvSynapses) -> int:
    """Pairs of an input and an output position that a kernel position joins."""
    return math.prod(tap_count(convolution, axis, merge=False) for axis in (0, 1))


def _is_far(size: int) -> bool:
    """Whether so many bytes exceed the second cache."""
    return size > environment.caches().get("L2", USUAL_SECOND)


def _far_weights(convolution: net.ConvSynapses, expected: Expected) -> float:
    """Weights of whole rows that an event reads, where all together exceed the second cache."""
    _, height, width = convolution.in_shape
    weights = convolution.row_count * (convolution.out_shape[0] // convolution.groups)
    if not _is_far(4 * weights):
        return 0.0
    return weights * (1 - (1 - expected.rate) ** (expected.steps * height * width))


def _sparse_work(
    convolution: net.ConvSynapses, expected: Expected, values: float
) -> dict[str, float]:
    taps, lanes = math.prod(convolution.kernel), lanes_for(expected.steps)
    merge = convolution.stride == (1, 1)
    entries = math.prod(tap_count(convolution, axis, merge=merge) for axis in (0, 1))
    rows = convolution.in_shape[0] * entries
    weights = _joins(convolution) * convolution.rows.synapses / taps
    if not lanes:
        events = expected.events
        return {"collect": values, "step_row": rows * events, "step_addition": weights * events}
    passes = expected.fires
    return {
        "neuron": 0,
        "lane_collect": values,
        "lane_list": values / expected.steps,
        "lane_neuron": math.prod(convolution.out_shape) * lanes,
        "lane_row": rows * passes,
        "lane_addition": weights * passes,
        "lane_far": weights * passes * _is_far(ROW_BYTES * convolution.rows.synapses),
        "lane_wider": weights * passes * (lanes // LANES_TOGETHER - 1),
    }


def _dense_work(convolution: net.ConvSynapses, expected: Expected) -> dict[str, float]:
    stride, dilation, groups = convolution.stride, convolution.dilation, convolution.groups
    whole = stride[1] == 1 and dilation[1] == 1 and groups == 1
    pieces = tap_count(convolution, 0, merge=False) * tap_count(convolution, 1, merge=whole)
    channels, width = convolution.in_shape[0], convolution.out_shape[0] // groups
    events = channels * expected.events
    some = 1 - (1 - expected.rate) ** (channels / groups)
    return {
        "dense_far": _far_weights(convolution, expected),
        "dense_piece": pieces * groups * expected.steps * some,
        "dense_addition": _joins(convolution) * events * width,
    }


def _gather_work(
    convolution: net.ConvSynapses, expected: Expected, values: float
) -> dict[str, float]:
    groups, channels = convolution.groups, convolution.in_shape[0]
    width = convolution.out_shape[0] // groups
    vectors = vectors_for(width, channels // groups, expected.lanes)
    blocks = -(-width // (vectors * expected.lanes))
    joins, some = _joins(convolution), 1 - (1 - expected.rate) ** (channels / groups)
    rows = joins * channels * expected.events * blocks
    return {
        "launch": 2.0,
        "list_value": values,
        "list_odd": values * _share_beyond(channels // groups, BYTES),
        "list_event": values * expected.rate,
        "gather_far": _far_weights(convolution, expected),
        "gather_output": math.prod(convolution.out_shape) * expected.steps,
        "gather_list": joins * groups * expected.steps,
        "gather_window": joins * blocks * groups * expected.steps * some,
        "gather_row": rows,
        "gather_vector": rows * vectors,
    }


def _share_beyond(channels: int, block: int) -> float:
    """Of channels that are left over where a block of them is taken at once."""
    return channels % block / channels


def _planes_work(convolution: net.ConvSynapses, expected: Expected) -> dict[str, float]:
    steps, outputs = expected.steps, convolution.out_shape[0]
    weights = convolution.rows.synapses + outputs * (TOGETHER - 1) / 2  # filled up to whole fours
    pitch = convolution.in_shape[2] + gap_of(moves_of(convolution))
    tiling = tiling_of(convolution.out_shape, pitch, steps, expected.accumulator)
    tiles, chunks = tiling.count, len(chunks_of(steps))
    shapes = convolution.in_shape, convolution.out_shape
    arriving, leaving = (math.prod(channel_last(shape)) * steps for shape in shapes)
    return {
        "launch": chunks * (1.0 + expected.packs + expected.unpacks),
        "plane_tile": outputs * tiles * chunks,
        "plane_weight": weights * tiles * chunks,
        "plane_vector": weights * tiles * tiling.vectors(steps, expected.accumulator),
        "plane_step": outputs * tiles * steps,
        "pack": arriving * expected.packs,
        "pack_odd": _share_beyond(convolution.in_shape[0], VECTOR) * arriving * expected.packs,
        "unpack": leaving * expected.unpacks,
        "unpack_odd": _share_beyond(outputs, VECTOR) * leaving * expected.unpacks,
        **_giving_work(convolution, expected),
    }


def _giving_work(convolution: net.ConvSynapses, expected: Expected) -> dict[str, float]:
    """What the layer before does more if its spikes leave as words, by itself."""
    if expected.packs:
        return {}
    channels, rows, columns = convolution.in_shape
    odd = min(rows * columns, columns + BLOCK) if columns % BLOCK else 0  # of the last rows
    return {
        "give": rows * columns * expected.steps,
        "give_odd": channels * odd * len(chunks_of(expected.steps)),
    }
