"""What running an event network takes besides its file's arrays, before any of it is made.

A few bytes can describe maps, tables and buffers of gigabytes. Each number here is an upper bound
that follows from the description alone: the tables that say which inputs a kernel position meets,
buffers of one sample on one thread, and what building them needs meanwhile.
"""

import math
from collections.abc import Mapping

from soul_deploy.base.memory import RAISE_IT, WORK_BYTES, require_memory
from soul_deploy.runtime.format.network import (
    Convolution,
    DenseRows,
    EventNetwork,
    Firing,
    Layer,
    Matrix,
    Synaptic,
)
from soul_deploy.runtime.format.tap_tables import run_count
from soul_deploy.runtime.kernels.time_vectorised import MOST_LANES

RUN_BYTES = 24 + 64  # of a run in a table, and what computing it takes meanwhile
PLACE_BYTES = 8 + 40  # of a neuron in a packed population, kept and meanwhile
EVENT_BYTES = 8 + 5 + 4 * MOST_LANES  # scratch for an event that a kernel collects


def require_running(network: EventNetwork, max_memory: int | None = None) -> None:
    """Raise LimitError if running takes more than allowed; None: WORK_BYTES of memory.py."""
    _require("running this network", running_bytes(network), max_memory)


def require_counting(network: EventNetwork, max_memory: int | None = None) -> None:
    """As `require_running`, of the tables that counting its operations walks."""
    _require("counting its operations", counting_bytes(network), max_memory)


def require_products(network: EventNetwork, max_memory: int | None = None) -> None:
    """As `require_running`, with the table of every convolution gathered, in 64 bits."""
    found = running_bytes(network)
    for layer in network.projected:
        if isinstance(layer.synapses, Convolution):
            found[layer.name] += 2 * gather_bytes(layer.synapses)
    _require("running this network on CSR products", found, max_memory)


def _require(what: str, by_layer: Mapping[str, int], max_memory: int | None) -> None:
    most = max(by_layer, key=by_layer.__getitem__)
    told = f"{what} (most of all {most}: {by_layer[most]:,} bytes besides the file's arrays)"
    allowed = WORK_BYTES if max_memory is None else max_memory
    require_memory(told, sum(by_layer.values()), allowed, RAISE_IT)


def running_bytes(network: EventNetwork) -> dict[str, int]:
    """Bytes by layer: tables, and buffers for all steps of one sample."""
    steps = network.time_steps
    found = {network.input_name: 4 * steps * math.prod(network.input_shape)}
    for layer in network.layers:
        analog = network.edges[layer.name][0] == "analog"
        found[layer.name] = steps * math.prod(layer.out_shape) * (4 if analog else 1)
        if isinstance(layer, Synaptic):
            found[layer.name] += _projection_bytes(layer, steps)
        if isinstance(layer, Firing):
            found[layer.name] += _population_bytes(layer, steps)
    readout = network.readout
    found[readout.name] = 8 * readout.sums + 4 * readout.classes
    return found


def _population_bytes(layer: Firing, steps: int) -> int:
    """Membranes; if packed, also places, currents and spikes of the live neurons."""
    neurons = math.prod(layer.current_shape)
    if layer.live is None and layer.pattern is None:
        return 4 * neurons
    live = neurons if layer.updated is None else layer.neurons
    packed = (steps + 4 * _columns_of(steps)) * live
    generated = 2 * steps * math.prod(layer.out_shape) if layer.generated else 0
    return 4 * neurons + PLACE_BYTES * math.prod(layer.out_shape) + packed + generated


def _projection_bytes(layer: Synaptic, steps: int) -> int:
    """Currents, scratch and tables. The bias of a packed matrix is repeated over its columns."""
    synapses, columns = layer.synapses, math.prod(layer.current_shape)
    currents = 4 * columns * _columns_of(steps)
    if isinstance(synapses, Matrix):
        return currents + 8 * columns + EVENT_BYTES * math.prod(synapses.in_shape)
    scratch = EVENT_BYTES * synapses.in_shape[0] * math.prod(synapses.kernel)
    if isinstance(synapses.rows, DenseRows) and layer.edge == "analog":
        return currents + scratch + gather_bytes(synapses)
    sparse = not isinstance(synapses.rows, DenseRows)
    merged = sparse and synapses.stride == (1, 1)
    contiguous = synapses.stride[1] == 1 and synapses.dilation[1] == 1 and synapses.groups == 1
    rows = run_count(synapses, 0, merge=merged)
    across = run_count(synapses, 1, merge=merged or (contiguous and not sparse))
    return currents + scratch + RUN_BYTES * (rows + across)


def _columns_of(steps: int) -> int:
    """Values of a current per target: one per step, or more lanes than steps."""
    return max(steps, min(steps + 3, MOST_LANES))


def gather_bytes(convolution: Convolution) -> int:
    """The table of `gather_table`: one number per output position and input under it, and two
    copies meanwhile.
    """
    positions = math.prod(convolution.out_shape[1:]) * math.prod(convolution.kernel)
    return (12 * convolution.in_shape[0] + 32) * positions


def counting_bytes(network: EventNetwork) -> dict[str, int]:
    """Bytes by layer: every meeting of a position with a kernel index, and maps of fan-outs."""
    found = {network.readout.name: 8 * network.readout.sums}
    for layer in network.projected:
        found[layer.name] = _counted_bytes(layer)
    return found


def _counted_bytes(layer: Layer) -> int:
    assert isinstance(layer, Synaptic)
    synapses = layer.synapses
    inputs, outputs = math.prod(synapses.in_shape), math.prod(synapses.out_shape)
    maps = 3 * 8 * inputs + (3 * 8 + 3) * outputs
    if isinstance(synapses, Matrix):
        return maps
    (channels, height, width), (kh, kw) = synapses.in_shape, synapses.kernel
    runs = sum(run_count(synapses, axis, merge=False) for axis in (0, 1))
    tables = 8 * (height * kh + width * kw) + 8 * channels * max(height * kw, kh * width)
    onto_live = 8 * channels * synapses.out_shape[0] if layer.updated is not None else 0
    return maps + RUN_BYTES * runs + tables + onto_live
