"""Memory that running an event network takes besides its file's arrays, computed beforehand.

A few bytes can describe maps, tables and buffers of gigabytes. Each number here is an upper bound
that follows from the description alone: tap and gather tables, buffers of one sample on one
thread, and what building them needs meanwhile.
"""

import math
from collections.abc import Mapping

from soul_deploy.base import dispatch, memory
from soul_deploy.runtime.equations import FixedEquation
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.tap_tables import tap_count
from soul_deploy.runtime.kernels import gather
from soul_deploy.runtime.kernels.listed import AHEAD, UNROLLED
from soul_deploy.runtime.kernels.simd import VECTOR
from soul_deploy.runtime.kernels.time_vectorised import MOST_LANES
from soul_deploy.runtime.plan.forms import Form, event_forms, forms_of, possible_forms
from soul_deploy.runtime.plan.planes import fits_pooling, gap_of, moves_of, plane_bytes, pool_bytes

TAP_BYTES = 24 + 64  # of an entry in a tap table, and what computing it takes meanwhile
LIVE_NEURON_BYTES = 8 + 40  # of a neuron in a compacted population, kept and meanwhile
EVENT_BYTES = 8 + 5 + 4 * MOST_LANES  # scratch for an event that a kernel collects


def require_running(
    network: net.EventNetwork,
    max_memory: int | None = None,
    forms: Mapping[str, Form] | None = None,
) -> None:
    """Raise LimitError if running takes more than allowed; None: WORK_BYTES of memory.py.

    forms: as in `running_bytes`.
    """
    _require("running this network", running_bytes(network, forms), max_memory)


def affordable_forms(
    network: net.EventNetwork, wanted: Mapping[str, str], max_memory: int | None = None
) -> dict[str, Form]:
    """As `forms_of`; if running then takes more than allowed, the layers that neither `wanted` nor
    the file names go from event to event, which takes least.
    """
    forms = forms_of(network, wanted)
    allowed = memory.WORK_BYTES if max_memory is None else max_memory
    if sum(running_bytes(network, forms).values()) <= allowed:
        return forms
    asked = wanted.keys() | network.forms.keys()
    chosen = {layer.name for layer in network.projected if not asked.isdisjoint(layer.names)}
    return {
        name: forms[name] if name in chosen else form for name, form in event_forms(network).items()
    }


def require_counting(network: net.EventNetwork, max_memory: int | None = None) -> None:
    """As `require_running`, of the tables that counting its operations walks."""
    _require("counting its operations", counting_bytes(network), max_memory)


def require_products(network: net.EventNetwork, max_memory: int | None = None) -> None:
    """As `require_running`, with the table of every convolution gathered, in 64 bits."""
    by_layer = running_bytes(network, event_forms(network))
    for layer in network.projected:
        by_layer[layer.name] += 2 * gather_bytes(layer.synapses)
    for back in network.feedbacks:
        by_layer[back.source] += 2 * gather_bytes(back.synapses)
    _require("running this network on CSR products", by_layer, max_memory)


def _require(what: str, by_layer: Mapping[str, int], max_memory: int | None) -> None:
    most = max(by_layer, key=by_layer.__getitem__)
    what_runs = f"{what} (most of all {most}: {by_layer[most]:,} bytes besides the file's arrays)"
    allowed = memory.WORK_BYTES if max_memory is None else max_memory
    memory.require_memory(what_runs, sum(by_layer.values()), allowed, memory.RAISE_IT)


def running_bytes(
    network: net.EventNetwork, forms: Mapping[str, Form] | None = None
) -> dict[str, int]:
    """Bytes by layer: tables, and buffers for all steps of one sample.

    forms: how each layer's synapses run; None: as they do unless somebody says otherwise.
    """
    steps = network.time_steps
    forms = forms_of(network, {}) if forms is None else forms
    on_planes = {
        layer.name: (layer, convolution)
        for layer in network.projected
        if forms[layer.name] == "planes" and (convolution := layer.synapses.convolution) is not None
    }
    gap = max((gap_of(moves_of(each)) for _, each in on_planes.values()), default=0)
    by_layer = {network.input_name: 4 * steps * math.prod(network.input_shape)}
    for layer in network.layers:
        analog = network.edges[layer.name][0] == "analog"
        by_layer[layer.name] = steps * math.prod(layer.out_shape) * (4 if analog else 1)
        by_layer[layer.name] += layer_bytes(layer, steps, forms.get(layer.name))
    for name, (layer, convolution) in on_planes.items():
        by_layer[name] += plane_bytes(layer, convolution, steps, gap)
    for layer in network.maps if on_planes else ():
        by_layer[layer.name] += pool_bytes(layer, steps, gap) if fits_pooling(layer) else 0
    readout = network.readout
    scores = 2 if readout.over_time == "max" else 1  # of one step, and the largest
    by_layer[readout.name] = 8 * readout.sums + 4 * readout.classes * scores
    if readout.neuron is not None:  # current, what is sent, state; membranes of all steps
        by_layer[readout.name] += 4 * readout.classes * (2 + len(readout.neuron.state) + steps)
    return by_layer


@dispatch.operation_table(net.Layer)
def layer_bytes(layer: net.Layer, steps: int, form: Form | None) -> int:
    """Bytes that running a layer takes besides its map; form: of its synapses, if it has some."""
    raise layer_bytes.unknown(layer)


layer_bytes.on(net.MapLayer)(lambda layer, steps, form: 0)


@layer_bytes.on(net.PopulationLayer)
def _population_bytes(layer: net.Firing, steps: int, form: Form | None) -> int:
    """Membranes, of fixed-point neurons their numbers; if compacted, also indices, currents and
    spikes of the live neurons.
    """
    neurons = math.prod(layer.current_shape)
    kept = (4 + 32 * isinstance(layer.neuron, FixedEquation)) * neurons  # and meanwhile
    if layer.live is None and layer.pattern is None:
        return kept
    live = neurons if layer.updated is None else layer.neurons
    compacted = (steps + 4 * _columns_of(steps)) * live
    generated = 2 * steps * math.prod(layer.out_shape) if layer.generated else 0
    return kept + LIVE_NEURON_BYTES * math.prod(layer.out_shape) + compacted + generated


@layer_bytes.on(net.RecurrentLayer)
def _recurrent_bytes(layer: net.RecurrentLayer, steps: int, form: Form | None) -> int:
    """Membranes, what is fed back and the sum of it and the current; tables of the feedback."""
    own = possible_forms(layer.feedback)[0]
    neurons = math.prod(layer.current_shape)
    indices = 0 if layer.live is None else LIVE_NEURON_BYTES * neurons
    return 12 * neurons + indices + synapse_bytes(layer.feedback.synapses, own, 1)


@layer_bytes.on(net.CurrentLayer)
def _projection_bytes(layer: net.Synaptic, steps: int, form: Form | None) -> int:
    """Currents, scratch and tables."""
    convolution = layer.synapses.convolution
    if form == "planes" and convolution is not None:
        return 0  # `running_bytes` counts them
    columns = math.prod(layer.current_shape)
    return 4 * columns * _columns_of(steps) + synapse_bytes(layer.synapses, form, steps)


layer_bytes.on(net.SpikingLayer)(
    lambda layer, steps, form: (
        _projection_bytes(layer, steps, form) + _population_bytes(layer, steps, form)
    )
)


@dispatch.operation_table(net.Synapses)
def synapse_bytes(synapses: net.Synapses, form: Form | None, steps: int) -> int:
    """Scratch for the events of one position, or lists of all events, and tables."""
    raise synapse_bytes.unknown(synapses)


@synapse_bytes.on(net.MatrixSynapses)
def _(matrix: net.MatrixSynapses, form: Form | None, steps: int) -> int:
    """The bias of a compacted matrix is repeated over its columns."""
    return 8 * math.prod(matrix.out_shape) + EVENT_BYTES * math.prod(matrix.in_shape)


@synapse_bytes.on(net.ConvSynapses)
def _(convolution: net.ConvSynapses, form: Form | None, steps: int) -> int:
    scratch = EVENT_BYTES * convolution.row_count
    sparse = not convolution.rows.dense
    if form == "analog":
        return scratch + gather_bytes(convolution)
    if form == "gather":
        return _listed_bytes(convolution, steps)
    stride, dilation = convolution.stride, convolution.dilation
    merged = sparse and stride == (1, 1)
    contiguous = stride[1] == 1 and dilation[1] == 1 and convolution.groups == 1
    rows = tap_count(convolution, 0, merge=merged)
    across = tap_count(convolution, 1, merge=merged or (contiguous and not sparse))
    return scratch + TAP_BYTES * (rows + across)


def _listed_bytes(convolution: net.ConvSynapses, steps: int) -> int:
    """What gathers dense rows: lists of events, unsorted and sorted, sums that wait, rows padded to
    vectors and a copy meanwhile, what lies under each kernel index."""
    (channels, height, width), groups = convolution.in_shape, convolution.groups
    outputs, taps = convolution.out_shape[0] // groups, math.prod(convolution.kernel)
    inner, (rows, columns) = channels // groups, convolution.out_shape[1:]
    lanes = 2 * VECTOR if convolution.fixed else VECTOR
    wide = lanes * gather.vectors_for(outputs, inner, lanes)
    size = steps * columns * wide * (2 if convolution.fixed else 4)
    tile = steps * columns * gather.rows_of_tile(rows, size)
    events, starts = 6 * channels * height * width, 4 * (height * width + 1) * groups
    lists = taps * (4 * (inner + 2) + 8 * (tile + AHEAD + 1)) + 2 * UNROLLED
    sums = 4 * tile * wide + 5 * gather.TOGETHER * wide
    padded = max(2 * outputs, lanes)  # to whole vectors, at most
    weights = 8 * (convolution.row_count + groups) * padded
    under = 32 * sum(
        n * k for n, k in zip(convolution.out_shape[1:], convolution.kernel, strict=True)
    )
    return steps * (events + starts) + lists + sums + weights + under


def _columns_of(steps: int) -> int:
    """Values of a current per target: one per step, or more lanes than steps."""
    return max(steps, min(steps + 3, MOST_LANES))


@dispatch.operation_table(net.Synapses)
def gather_bytes(synapses: net.Synapses) -> int:
    """The table of `gather_table`: one number per output position and input under it, and two
    copies meanwhile.
    """
    raise gather_bytes.unknown(synapses)


gather_bytes.on(net.MatrixSynapses)(lambda matrix: 0)


@gather_bytes.on(net.ConvSynapses)
def _(convolution: net.ConvSynapses) -> int:
    positions = math.prod(convolution.out_shape[1:]) * math.prod(convolution.kernel)
    return (12 * convolution.in_shape[0] + 32) * positions


def counting_bytes(network: net.EventNetwork) -> dict[str, int]:
    """Bytes by layer: unmerged tap tables, and maps of fan-outs."""
    by_layer = {network.readout.name: 8 * network.readout.sums}
    for layer in (*network.projected, *network.feedbacks):
        inputs, outputs = math.prod(layer.in_shape), math.prod(layer.current_shape)
        maps = 3 * 8 * inputs + (3 * 8 + 3) * outputs
        masked = layer.updated is not None
        by_layer[layer.name] = maps + walk_bytes(layer.synapses, masked=masked)
    return by_layer


@dispatch.operation_table(net.Synapses)
def walk_bytes(synapses: net.Synapses, *, masked: bool) -> int:
    """The tables that counting walks. masked: whether some targets are not live."""
    raise walk_bytes.unknown(synapses)


walk_bytes.on(net.MatrixSynapses)(lambda matrix, *, masked: 0)


@walk_bytes.on(net.ConvSynapses)
def _(convolution: net.ConvSynapses, *, masked: bool) -> int:
    (channels, height, width), (kh, kw) = convolution.in_shape, convolution.kernel
    entries = sum(tap_count(convolution, axis, merge=False) for axis in (0, 1))
    tables = 8 * (height * kh + width * kw) + 8 * channels * max(height * kw, kh * width)
    onto_live = 8 * channels * convolution.out_shape[0] if masked else 0
    return TAP_BYTES * entries + tables + onto_live
