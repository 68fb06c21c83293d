"""Everything that a run of an event network counts: projections, populations, poolings, readout.

Counting runs the network once, recorded. Layers with synapses or neurons are counted from the
recorded run, poolings from what their sources held. Every layer's counts are checked against what
the layer's structure allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from soul_deploy.base import Array, brief, errors
from soul_deploy.runtime.engine.inputs import source_values, to_channel_last
from soul_deploy.runtime.engine.network import Network, Recording
from soul_deploy.runtime.format.network import Layer, Shape, Synaptic
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
    recorded = {network.events.input_name: x, **recording.spikes}
    for layer in network.events.maps:
        counts |= counting.totals_of(layer, partial(_arriving, network, recorded, layer), {})
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
    maps = {layer.name for layer in events.maps}  # counted apart
    for layer in events.layers:
        if layer.name not in maps:
            counts |= counting.totals_of(layer, recorded.__getitem__, spikes)
    executed = {
        layer.projection: counting.count_additions(layer, recorded[layer.source])
        for layer in events.projected
    }
    for back in events.feedbacks:
        arriving = counting.fed_back(back, spikes[back.source])
        executed[back.name] = counting.count_additions(back, arriving)
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
    if layer.name in {other.name for other in events.maps}:
        return counters.LayerCounts()
    spikes, held = {}, {}
    if layer.stateful:
        spikes[layer.name] = network.run_layer(name, inputs) if spikes_out is None else spikes_out
    if projected is not None:
        held[projected.source] = source_values(events, layer, projected.source, inputs)
    counted = counting.totals_of(layer, held.__getitem__, spikes)
    return sum(counted.values(), counters.LayerCounts())


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
    joined = (*network.events.projected, *network.events.feedbacks)
    return next((layer for layer in joined if name in layer.names), None)


def by_position(values: Array, in_shape: Shape) -> Array:
    """Values (T, B, *in_shape), or (B, *in_shape) of a static source, as the runtime holds them:
    (B, T or 1, positions, channels).
    """
    by_step = values if values.ndim == len(in_shape) + 2 else values[None]
    return np.swapaxes(to_channel_last(by_step, in_shape), 0, 1)


def _arriving(network: Network, recorded: dict[str, Array], layer: Layer, source: str) -> Array:
    return by_position(_value(network, recorded, source), layer.in_shape)


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
    for back in events.feedbacks:
        limits = counting.limits_of(back, batch * network.time_steps)
        counters.require_bounds(back.name, counts[back.name], limits)
