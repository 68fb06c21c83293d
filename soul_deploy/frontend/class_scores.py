"""From what a forward returns to the readout: which value holds the class scores, and its head."""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from soul_deploy import ir
from soul_deploy.frontend import membranes, outputs, stepped
from soul_deploy.frontend.traced_value import TracedValue

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder


def returned(builder: "GraphBuilder", node: fx.Node) -> TracedValue:
    """The value that holds the class scores; of several the one that was asked for."""
    if builder.unrolled is not None:
        return builder.unrolled.returned(builder, node)
    (given,) = node.args
    several = outputs.returned(given)
    if builder.output is not None:
        key = outputs.key_of(several, builder.output)
        builder.returns, given = stepped.Returns(key), several[key]
    elif several:
        raise builder.unsupported(
            node,
            f"a forward that returns several values ({outputs.listed(several)}; say with "
            "output= which one holds the class scores)",
        )
    value = builder.values.get(given) if isinstance(given, fx.Node) else None
    return value if value is not None and value.membrane else builder.value(node, given)


def readout(builder: "GraphBuilder", node: fx.Node, value: TracedValue) -> ir.Readout:
    """The readout that gives `value`: a head, or votes of one neuron."""
    if value.membrane:
        return _of_membranes(builder, node, value)
    name, last, shape = value.name, builder.nodes[value.name], builder.shapes[value.name]
    head = _head(builder, last)
    if head is not None:
        return head
    if last.projects or len(shape) != 1:
        raise builder.unsupported(node, f"an output of {name!r} with shape {shape}")
    called = "readout" if "readout" not in builder.modules else "readout_of_spikes"
    return ir.Readout(called, (_before_mean(builder, name),), shape[0], False, False, 1)


def _of_membranes(builder: "GraphBuilder", node: fx.Node, value: TracedValue) -> ir.Readout:
    """The readout whose scores are the membrane that `value` stands for."""
    path, population = value.name, builder.nodes[value.name]
    assert isinstance(population, ir.Population)
    if value.membrane != membranes.MEMBRANE:
        raise builder.unsupported(
            node, f"a forward that returns {value.membrane!r} of {path!r} as class scores,"
        )
    if population.feedback is not None:
        what = f"class scores that are the membrane of {path!r}, whose neurons feed one another,"
        raise builder.unsupported(node, what)
    charging = builder.nodes[population.inputs[0]]
    head = _head(builder, charging)
    if head is None or not head.linear:
        raise builder.unsupported(
            node,
            f"class scores that are the membrane of {path!r} behind {charging.name!r}; a linear "
            "layer without batch norm charges such neurons, and anything else",
        )
    spec = membranes.as_read(path, builder.modules[path], population.neuron)
    held = builder.modules[path].state_dict()
    for name in (*dict(spec.tensors), *(("w",) if spec.learned else ())):
        builder.constants[f"{head.neurons_name}.{name}"] = held[name]
    return replace(head, neuron=spec)


def _head(builder: "GraphBuilder", node: ir.Node) -> ir.Readout | None:
    """The operation as a readout's head, if it can be one."""
    return node.as_head(_before_mean(builder, node.inputs[0])) if node.inputs else None


def _before_mean(builder: "GraphBuilder", name: str) -> str:
    """The node whose sum over space a readout of node `name` reads, if `name` is such a mean.

    A readout sums over space itself: a global average in front of it is left out, so that it
    reads spikes.
    """
    node = builder.nodes[name]
    if not node.reshapes:
        return name
    inner = node.inputs[0]
    if builder.shapes[inner][1:] != (1, 1):
        return name
    while builder.nodes[inner].inputs:
        outer = builder.nodes[inner].inputs[0]
        if not builder.nodes[inner].averages_all(builder.shapes[outer]):
            break
        inner = outer
    return inner
