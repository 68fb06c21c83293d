"""Everything that a run of an event network counts: projections, populations, poolings, readout.

Counting runs the network once, recorded. Layers with synapses or neurons are counted from the
recorded run, poolings from what their sources held. Every layer's counts are checked against what
the layer's structure allows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.runtime.engine.inputs import source_values, to_channel_last
from soul_deploy.runtime.engine.network import Network, Recording
from soul_deploy.runtime.format.layers import MapLayer, Synaptic
from soul_deploy.runtime.format.map_layers import MergeLayer, PoolLayer, ScatterLayer
from soul_deploy.runtime.ops import counters, counting
from soul_deploy.runtime.ops.fan_out import additions_map, fanout_map
from soul_deploy.runtime.plan.estimate import require_counting


@brief
@dataclass(frozen=True)
class CountedRun:
    """One counted run: counts by projection, population without one, pooling, and readout.

    executed: by projection, the synaptic additions that were executed (zeros in dense rows and
    synapses onto neurons that are not live among them).
    """

    counts: Mapping[str, counters.LayerCounts]
    executed: Mapping[str, int]
    recording: Recording


def count_run(network: Network, x: Array) -> CountedRun:
    """Run `x` as `Network.run` does and count all of it, summed over samples.

    Raises ValidityError for inputs that do not fit, VerificationError for counts that cannot be.
    """
    x = network.input_values(x)
    counts, executed, recording = count_recorded(network, x)
    readout = counts.pop(network.events.readout.name)
    held = partial(_value, network, {network.events.input_name: x, **recording.spikes})
    for layer in network.events.maps:
        counts |= map_counts(layer, held)
    counts[network.events.readout.name] = readout
    _require_bounds(network, x, counts)
    return CountedRun(counts, executed, recording)


def count(network: Network, x: Array) -> dict[str, counters.LayerCounts]:
    """Operation counts of running `x` on `network`, summed over samples.

    x: as `Network.run` takes it. By projection, population without a projection of its own, and
    last the readout. Raises ValidityError for inputs that do not fit, LimitError.
    """
    return count_recorded(network, x)[0]


def count_recorded(
    network: Network, x: Array
) -> tuple[dict[str, counters.LayerCounts], dict[str, int], Recording]:
    """As `count`; by projection the synaptic additions that were executed; the run itself.

    Additions include zeros in dense rows and synapses onto neurons that are not live; analog inputs
    are left out.
    """
    events = network.events
    require_counting(events, network.max_memory)
    needed = {events.readout.source, *(layer.source for layer in events.projected)}
    needed |= {layer.name for layer in events.populations}
    recorded, logits = network.run_recording_values(x, needed - {events.input_name})
    spikes = network.spikes_of(recorded)
    counts: dict[str, counters.LayerCounts] = {}
    for layer in events.layers:
        counts |= counting.counts_of(layer, recorded, spikes)
    executed = {
        layer.projection: counting.count_additions(layer, recorded[layer.source])
        for layer in events.projected
    }
    readout = counting.readout_steps(events.readout, recorded[events.readout.source])
    counts[events.readout.name] = readout.total()
    return counts, executed, Recording(spikes, logits)


def count_layer(
    network: Network, name: str, inputs: Array, spikes_out: Array | None = None
) -> counters.LayerCounts:
    """Counts of one projection (or the readout) for what its source held, as `Network.run_layer`.

    spikes_out: the population's spikes for these inputs, if the caller has them; otherwise the
    layer is run. A layer without synapses and neurons counts nothing.
    """
    events = network.events
    require_counting(events, network.max_memory)
    if name == events.readout.name:
        values = source_values(events, events.readout, events.readout.source, inputs)
        return counting.readout_steps(events.readout, values).total()
    layer, projected = network.layer(name), _projection(network, name)
    spikes, held = {}, {}
    if layer.stateful:
        spikes[layer.name] = network.run_layer(name, inputs) if spikes_out is None else spikes_out
    if projected is not None:
        held[projected.source] = source_values(events, layer, projected.source, inputs)
    return sum(counting.counts_of(layer, held, spikes).values(), counters.LayerCounts())


def fan_out(network: Network, name: str) -> Array:
    """int64 map in the source's shape: synapses onto live neurons of each presynaptic neuron.

    name: a projection or its population; for the readout, the nonzero columns of its weights.
    Raises UsageError for a layer without synapses.
    """
    if name == network.events.readout.name:
        return counting.readout_fanout(network.events.readout)
    layer = _synaptic(network, name)
    return fanout_map(layer.synapses, layer.updated)


def additions(network: Network, name: str) -> Array:
    """As `fan_out`, the additions that an event of each presynaptic neuron executes."""
    layer = _synaptic(network, name)
    return additions_map(layer.synapses, layer.neurons)


def _synaptic(network: Network, name: str) -> Synaptic:
    layer = _projection(network, name)
    if layer is None:
        raise errors.UsageError(f"{name} is {network.layer(name).what}; it has no synapses")
    require_counting(network.events, network.max_memory)
    return layer


def _projection(network: Network, name: str) -> Synaptic | None:
    return next((layer for layer in network.events.projected if name in layer.names), None)


@dispatch.operation_table(MapLayer)
def map_counts(layer: MapLayer, held: Callable[[str], Array]) -> dict[str, counters.LayerCounts]:
    """What a layer without synapses and neurons counts, by name; held: what a layer held."""
    raise map_counts.unknown(layer)


@map_counts.on(PoolLayer)
def _(layer: PoolLayer, held: Callable[[str], Array]) -> dict[str, counters.LayerCounts]:
    values = held(layer.source)  # (T, B, C, H, W), or (B, C, H, W) of a static source
    by_step = values if values.ndim == 5 else values[None]
    by_sample = np.swapaxes(to_channel_last(by_step, layer.in_shape), 0, 1)
    return {layer.name: counting.pooling_steps(layer, by_sample).total()}


@map_counts.on(MergeLayer, ScatterLayer)
def _(layer: MergeLayer | ScatterLayer, held: object) -> dict[str, counters.LayerCounts]:
    return {}


def _value(network: Network, recorded: dict[str, Array], name: str) -> Array:
    """A layer's values, run from what was recorded where they were not."""
    if name not in recorded:
        layer = network.events.by_name[name]
        inputs = [_value(network, recorded, source) for source in layer.sources]
        recorded[name] = network.run_layer(name, *inputs)
    return recorded[name]


def _require_bounds(network: Network, x: Array, counts: Mapping[str, counters.LayerCounts]) -> None:
    events = network.events
    static = x.ndim == len(events.input_shape) + 1
    batch = x.shape[0] if static else x.shape[1]
    for layer in events.projected:
        once = static and layer.source in events.static
        slots = batch * (1 if once else network.time_steps)
        limits = counting.limits_of(layer, slots)
        counters.require_bounds(layer.name, counts[layer.projection], limits)
