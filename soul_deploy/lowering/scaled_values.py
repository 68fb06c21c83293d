"""Multiplications of sums and of pooled currents by constants, put in front of these.

s · (a + b) is s · a + s · b, and the maximum of currents times s > 0 is that of s times the
currents. So the constants reach the projections that make the currents, and nothing is multiplied
neuron by neuron.
"""

from collections.abc import Iterator
from dataclasses import replace

from soul_deploy import ir
from soul_deploy.lowering.linear_operators import Rescaling


def put_before(graph: ir.SpikingGraph, rescaling: Rescaling) -> tuple[ir.SpikingGraph, Rescaling]:
    """The graph without scalings behind sums, and max poolings of a projection's current, that only
    they read, and the constants of those in front instead.

    A scaling that a projection or the readout reads stays: it is part of that one.
    """
    while (scale := next(_movable(graph, rescaling), None)) is not None:
        (name,) = scale.inputs
        before = graph[name]
        branches = tuple(f"{scale.name}.{k}" for k in range(len(before.inputs)))
        made: list[ir.Node] = []
        for node in graph.nodes:
            if node is before:
                pairs = zip(branches, before.inputs, strict=True)
                made += [replace(scale, name=own, inputs=(branch,)) for own, branch in pairs]
                made.append(replace(before, inputs=branches))
            elif node is not scale:
                inputs = tuple(name if given == scale.name else given for given in node.inputs)
                made.append(replace(node, inputs=inputs))
        graph = ir.SpikingGraph(tuple(made), graph.time_steps)
        rescaling = {**rescaling, **dict.fromkeys(branches, rescaling[scale.name])}
    return graph, rescaling


def _movable(graph: ir.SpikingGraph, rescaling: Rescaling) -> Iterator[ir.Scale]:
    for node in graph.of_type(ir.Scale):
        before, readers = graph[node.inputs[0]], graph.consumers[node.name]
        positive = bool((rescaling[node.name].scale > 0).all())
        current = graph[before.inputs[0]] if before.inputs else before
        projected = current.projects and graph.consumers[current.name] == (before.name,)
        pooled = isinstance(before, ir.MaxPool) and projected and positive
        summed = isinstance(before, ir.Merge) and before.function == "add"
        alone = graph.consumers[before.name] == (node.name,)
        if (pooled or summed) and alone and not any(map(graph.takes_composed, readers)):
            yield node
