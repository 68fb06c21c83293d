"""Memory that planning a removal and lowering a network take, computed from the graph.

Maps of a few bytes in a file can be gigabytes of masks and fan-outs, and T steps of nothing are T
turns. So this is looked at before the first of them is made.
"""

import math

from soul_deploy.base import errors, memory
from soul_deploy.ir import SpikingGraph
from soul_deploy.runtime.format.validate import MAX_STEPS

VALUE_BYTES = 32  # of a map's value: masks, fan-outs in float64 and copies
STEP_BYTES = 10  # of a channel's spike at a step: its pattern as an array, and as a tuple
CURRENT_BYTES = 12  # of a value of a convolution's current on a constant input, as large as it sees


def planning_bytes(graph: SpikingGraph) -> dict[str, int]:
    """Bytes by node, besides the weights."""
    by_node = {}
    for node in graph.nodes:
        shape = graph.shapes[node.name]
        by_node[node.name] = VALUE_BYTES * math.prod(shape)
        if node.fires:
            by_node[node.name] += STEP_BYTES * graph.time_steps * shape[0]
    for projection in graph.projections:
        if projection.extent:
            values = projection.out_channels * math.prod(projection.extent)
            by_node[projection.name] += CURRENT_BYTES * values
    return by_node


def require_planning(graph: SpikingGraph, max_memory: int | None = None) -> None:
    """Raise LimitError for a network that takes more than allowed; None: WORK_BYTES."""
    if graph.time_steps > MAX_STEPS:
        raise errors.LimitError(f"T = {graph.time_steps}; the limit is {MAX_STEPS} steps")
    by_node = planning_bytes(graph)
    most = max(by_node, key=by_node.__getitem__)
    told = f"planning with this network (most of all {most}: {by_node[most]:,} bytes)"
    allowed = memory.WORK_BYTES if max_memory is None else max_memory
    memory.require_memory(told, sum(by_node.values()), allowed, memory.RAISE_IT)
