"""Populations on their own spikes of the step before: a region of kernel launches for each step."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.format import network
from soul_deploy.runtime.kernels import maps, synapses
from soul_deploy.runtime.plan import layer_plan, neuron_state, regions
from soul_deploy.runtime.plan.layer_plan import LayerPlan, Partition, aligned, partitions_of

if TYPE_CHECKING:
    from soul_deploy.runtime.plan.buffers import Builder


def add_recurrent(layer: network.RecurrentLayer, builder: "Builder") -> None:
    """Buffers and calls of a layer. Its spikes of the step before are a state: in a stream they
    stay where they are.
    """
    made, back = builder.made, layer.feedback
    current = made.values[layer.source]
    v, spikes, numbers = builder.add_neurons(layer, None, math.prod(layer.current_shape))
    spikes[...] = 0
    made.membranes[back.name] = spikes
    found = recurrent_regions(
        layer, builder.plans[back.name], current.reshape(len(current), -1), v, spikes,
        carry=builder.carry, partitions=builder.partitions, numbers=numbers, sent=builder.taught,
    )  # fmt: skip
    for region in found:
        made.add(layer.name, region)


def recurrent_regions(
    layer: network.RecurrentLayer, plan: LayerPlan, current: Array, v: Array, spikes: Array, *,
    carry: bool, partitions: int, numbers: Array | None, sent: Array | None = None,
) -> tuple[regions.Region, ...]:  # fmt: skip
    """Neurons on a current and on their own spikes of the step before: a region for each step.

    plan: of the feedback. current (T or 1, n); spikes (T, positions, channels), written. In a
    stream (`carry`) T is 1, and `spikes` still holds those of the step before when the region
    begins. sent: what is fed back instead of `spikes`, of the same shape.
    What is fed back is summed by itself, bias first, and added to the current last.
    """
    back, dead = layer.feedback, np.flatnonzero(~layer.live) if layer.live is not None else None
    steps, fired = len(spikes), spikes.reshape(len(spikes), v.shape[-1])
    returned, total = (aligned((1, plan.columns), np.float32) for _ in range(2))
    shares = [(plan.bounds(p), _feedback_tables(back, plan, p)) for p in partitions_of(partitions)]
    found: list[regions.Region] = []
    for t in range(steps):
        before = spikes if carry else (spikes if sent is None else sent)[t - 1 : t]
        arriving = current if len(current) == 1 else current[t : t + 1]
        own = numbers if numbers is None or len(numbers) == 1 else numbers[t : t + 1]
        region = []
        for (first, last), (bias, tables, scratch) in shares:
            start = returned, bias, first, last
            calls = [regions.Call(synapses.start_currents, start, "currents")]
            if carry or t:
                values, _ = regions.values_of(back.synapses, before)
                given = (values, *tables, *scratch, returned)
                calls.append(regions.Call(plan.kernel, given, "currents"))
            added = arriving, returned, first, last, total
            calls.append(regions.Call(maps.add_currents, added, "currents"))
            update, running = neuron_state.update_call(
                layer.neuron, total, v, fired[t : t + 1], (first, last), carry=carry or t > 0,
                lanes=0, numbers=own,
            )  # fmt: skip
            calls.append(regions.Call(update, running, "neurons"))
            if dead is not None:
                index = dead.astype(np.uint32)
                share = regions.index_between(index, (first, last))
                calls.append(
                    regions.Call(maps.mask_out, (fired[t : t + 1], index, *share), "neurons")
                )
            region.append(tuple(calls))
        found.append(tuple(region))
    return tuple(found)


def _feedback_tables(
    back: network.CurrentLayer, plan: LayerPlan, partition: Partition
) -> tuple[Array, tuple[Any, ...], tuple[Array, ...]]:
    """A partition's bias, tables of the kernel, and scratch."""
    events = (
        math.prod(back.in_shape)
        if back.synapses.convolution is None
        else (back.in_shape[0] * math.prod(back.synapses.convolution.kernel))
    )
    scratch = np.empty(events, np.uint32), np.empty(events, np.float32)
    return (
        plan.bias_of(partition),
        layer_plan.synapse_tables(back.synapses, plan, partition),
        scratch,
    )
