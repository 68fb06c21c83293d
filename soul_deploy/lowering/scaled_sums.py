"""Multiplications of a sum by constants, put in front of its branches.

s · (a + b) is s · a + s · b, so the constants reach the projections that make the branches, and the
sum need not be multiplied neuron by neuron.
"""

from collections.abc import Iterator
from dataclasses import replace

from soul_deploy import ir
from soul_deploy.lowering.linear_operators import Rescaling


def distribute(graph: ir.SpikingGraph, rescaling: Rescaling) -> tuple[ir.SpikingGraph, Rescaling]:
    """The graph without scalings behind sums that nothing else reads, and the constants of both.

    A scaling that a projection or the readout reads stays: it is part of that one.
    """
    while (scale := next(_of_sums(graph), None)) is not None:
        (name,) = scale.inputs
        merge = graph[name]
        branches = tuple(f"{scale.name}.{k}" for k in range(len(merge.inputs)))
        made: list[ir.Node] = []
        for node in graph.nodes:
            if node is merge:
                pairs = zip(branches, merge.inputs, strict=True)
                made += [replace(scale, name=own, inputs=(branch,)) for own, branch in pairs]
                made.append(replace(merge, inputs=branches))
            elif node is not scale:
                inputs = tuple(name if given == scale.name else given for given in node.inputs)
                made.append(replace(node, inputs=inputs))
        graph = ir.SpikingGraph(tuple(made), graph.time_steps)
        rescaling = {**rescaling, **dict.fromkeys(branches, rescaling[scale.name])}
    return graph, rescaling


def _of_sums(graph: ir.SpikingGraph) -> Iterator[ir.Scale]:
    for node in graph.of_type(ir.Scale):
        merge = graph[node.inputs[0]]
        alone = graph.consumers[merge.name] == (node.name,)
        if not (isinstance(merge, ir.Merge) and merge.function == "add" and alone):
            continue
        if not any(graph.takes_composed(name) for name in graph.consumers[node.name]):
            yield node
