"""Everything that a run of an event network counts: projections, populations, poolings, readout.

The network itself counts what has synapses or neurons. Poolings are counted here from what their
sources held, and every layer's counts are held against what its structure allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.runtime.engine.inputs import to_channel_last
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.recording import Recording
from soul_deploy.runtime.format.network import PoolLayer, Synaptic
from soul_deploy.runtime.ops.counters import LayerCounts, require_bounds
from soul_deploy.runtime.ops.counting import limits_of, pooling_steps


@brief
@dataclass(frozen=True)
class CountedRun:
    """One counted run: counts by projection, population without one, pooling, and readout.

    executed: by projection, the synaptic additions that were executed (zeros in dense rows and
    synapses onto neurons that are not live among them).
    """

    counts: Mapping[str, LayerCounts]
    executed: Mapping[str, int]
    recording: Recording


def count_run(network: Network, x: Array) -> CountedRun:
    """Run `x` as `Network.run` does and count all of it, summed over samples.

    Raises ValidityError for inputs that do not fit, VerificationError for counts that cannot be.
    """
    x = network.input_values(x)
    counts, executed, recording = network.count_recorded(x)
    readout = counts.pop(network.events.readout.name)
    counts |= _poolings(network, x, recording)
    counts[network.events.readout.name] = readout
    _require_bounds(network, x, counts)
    return CountedRun(counts, executed, recording)


def _poolings(network: Network, x: Array, recording: Recording) -> dict[str, LayerCounts]:
    held: dict[str, Array] = {network.events.input_name: x}
    held |= recording.spikes
    return {
        layer.name: pooling_steps(layer, pooled_values(layer, _value(network, layer.source, held)))
        .total()
        for layer in network.events.layers
        if isinstance(layer, PoolLayer)
    }  # fmt: skip


def pooled_values(layer: PoolLayer, held: Array) -> Array:
    """What a pooling's source held, (T, B, C, H, W) or (B, C, H, W), as (B, steps, H·W, C)."""
    by_step = held if held.ndim == 5 else held[None]
    return np.swapaxes(to_channel_last(by_step, layer.in_shape), 0, 1)


def _value(network: Network, name: str, held: dict[str, Array]) -> Array:
    """A layer's values, run from what was recorded where they were not."""
    if name not in held:
        layer = network.events.by_name[name]
        inputs = [_value(network, source, held) for source in layer.sources]
        held[name] = network.run_layer(name, *inputs)
    return held[name]


def _require_bounds(network: Network, x: Array, counts: Mapping[str, LayerCounts]) -> None:
    events = network.events
    static = x.ndim == len(events.input_shape) + 1
    batch = x.shape[0] if static else x.shape[1]
    for layer in events.layers:
        if isinstance(layer, Synaptic):
            once = static and layer.source in events.static
            slots = batch * (1 if once else network.time_steps)
            require_bounds(layer.name, counts[layer.projection], limits_of(layer, slots))
