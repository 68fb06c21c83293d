"""What is asked of a traced operation: its arguments, its source, a name for its node."""

from collections.abc import Callable
from typing import Any

from torch import fx

from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import tracer
from soul_deploy.frontend.graph_builder import GraphBuilder
from soul_deploy.frontend.traced_value import TracedValue, told

Handler = Callable[[GraphBuilder, fx.Node], None]


def unknown(builder: GraphBuilder, node: fx.Node, why: str = "") -> UnsupportedGraphError:
    """The refusal of an operation with these arguments."""
    shown = ", ".join([*map(str, node.args), *(f"{k}={v}" for k, v in node.kwargs.items())])
    return builder.unsupported(node, f"operation {told(node)}({shown})" + (why and f" ({why})"))


def argument_of(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by its position or its name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def source_of(builder: GraphBuilder, node: fx.Node) -> TracedValue:
    """The value that an operation is done to."""
    return builder.value(node, argument_of(node, 0, "input"))


def steps_of(builder: GraphBuilder, node: fx.Node) -> TracedValue:
    """As `source_of`, of an operation that puts steps together: membranes are taken too."""
    return builder.value(node, argument_of(node, 0, "input"), membranes=True)


def fresh_name(builder: GraphBuilder, node: fx.Node, stem: str) -> str:
    """A name for an operation without a module: that of the module whose forward it is in."""
    path = tracer.owner_of(node)
    name = f"{path}.{stem}" if path else stem
    taken = name in builder.nodes or name in builder.modules
    return f"{name}_{len(builder.nodes)}" if taken else name


def sides_given(node: fx.Node, start: int = 1) -> tuple[Any, ...]:
    """The sides that a call is given, one by one or as one tuple."""
    sides = node.args[start:] or tuple(node.kwargs.values())
    first = sides[0] if len(sides) == 1 else None
    return tuple(first) if isinstance(first, (tuple, list)) else sides
