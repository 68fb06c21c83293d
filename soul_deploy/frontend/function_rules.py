"""Plain functions and tensor methods in a network's `forward`."""

import operator
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import module_kinds, tracer
from soul_deploy.frontend.graph_builder import GraphBuilder, TracedValue, told
from soul_deploy.ir import AdaptiveAvgPool, Flatten


def handle(builder: GraphBuilder, node: fx.Node) -> None:
    """One operation that is no module. Raises UnsupportedGraphError."""
    handler = HANDLERS.get(node.target)
    if handler is None or node.op not in ("call_function", "call_method"):
        raise builder.unsupported(node, f"operation {told(node)}")
    inputs = node.all_input_nodes
    if inputs and all(source in builder.sizes for source in inputs):  # T * B and the like
        builder.sizes.add(node)
    else:
        handler(builder, node)


def _unknown(builder: GraphBuilder, node: fx.Node) -> UnsupportedGraphError:
    shown = ", ".join([*map(str, node.args), *(f"{k}={v}" for k, v in node.kwargs.items())])
    return builder.unsupported(node, f"operation {told(node)}({shown})")


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _source(builder: GraphBuilder, node: fx.Node) -> TracedValue:
    return builder.value(node, _argument(node, 0, "input"))


def _add(builder: GraphBuilder, node: fx.Node) -> None:
    if node.kwargs or len(node.args) != 2:
        raise _unknown(builder, node)
    values = [builder.value(node, argument) for argument in node.args]
    builder.merge(node, _fresh(builder, node, "add"), "add", values)


def _fresh(builder: GraphBuilder, node: fx.Node, stem: str) -> str:
    """A name for an operation without a module: that of the module whose forward it is in."""
    path = tracer.owner_of(node)
    name = f"{path}.{stem}" if path else stem
    taken = name in builder.nodes or name in builder.modules
    return f"{name}_{len(builder.nodes)}" if taken else name


def _subtract(builder: GraphBuilder, node: fx.Node) -> None:
    """1 - y, the one subtraction there is: half of IAND."""
    one, argument = (*node.args, None, None)[:2]
    if isinstance(one, fx.Node) or one != 1:
        raise _unknown(builder, node)
    builder.values[node] = replace(builder.value(node, argument), inverse=True)


def _multiply(builder: GraphBuilder, node: fx.Node) -> None:
    found = [builder.values.get(a) if isinstance(a, fx.Node) else None for a in node.args]
    if len(found) != 2 or None in found or node.kwargs:
        raise _unknown(builder, node)
    plain = [value for value in found if value is not None and not value.inverse]
    inverted = [replace(v, inverse=False) for v in found if v is not None and v.inverse]
    if not plain:
        raise _unknown(builder, node)
    function = "iand" if inverted else "and"
    builder.merge(node, _fresh(builder, node, function), function, [*plain, *inverted])


def _flatten(builder: GraphBuilder, node: fx.Node) -> None:
    start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
    builder.flatten(node, _source(builder, node), _fresh(builder, node, "flatten"), start, end)


def _view(builder: GraphBuilder, node: fx.Node) -> None:
    """Views that merge a value's own axes, or time and batch, or split these again."""
    source, sides = _source(builder, node), node.args[1:]
    if len(sides) == 1 and isinstance(sides[0], (tuple, list)):
        sides = tuple(sides[0])
    shape = builder.shapes[source.name]
    for lead in (source.lead, 3 - source.lead):
        reachable = lead == source.lead or lead == 1 or source.folded
        for target in (shape, (prod(shape),)):
            if reachable and _matches(builder, sides, lead, target):
                _reshape(builder, node, source, lead, flat=len(target) < len(shape))
                return
    raise _unknown(builder, node)


def _matches(
    builder: GraphBuilder, sides: tuple[Any, ...], lead: int, shape: tuple[int, ...]
) -> bool:
    if len(sides) != lead + len(shape):
        return False
    leading = all(s in builder.sizes or isinstance(s, int) for s in sides[:lead])
    return leading and all(
        given in builder.sizes or given in (-1, side)
        for given, side in zip(sides[lead:], shape, strict=True)
    )


def _reshape(
    builder: GraphBuilder, node: fx.Node, source: TracedValue, lead: int, *, flat: bool
) -> None:
    after = replace(source, lead=lead, folded=lead == 1 and (source.folded or source.lead == 2))
    if not flat:
        builder.values[node] = after
        return
    name = _fresh(builder, node, "flatten")
    builder.add(node, Flatten(name, (source.name,)), replace(after, name=name))


def _unflatten(builder: GraphBuilder, node: fx.Node) -> None:
    source, axis = _source(builder, node), _argument(node, 1, "dim")
    if axis != 0 or not source.folded:
        raise _unknown(builder, node)
    builder.values[node] = replace(source, lead=2, folded=False)


def _mean(builder: GraphBuilder, node: fx.Node) -> None:
    source, axes = _source(builder, node), _argument(node, 1, "dim")
    if axes is None:
        raise _unknown(builder, node)
    shape = builder.shapes[source.name]
    rank = source.lead + len(shape)
    wanted = {axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)}
    time = {0} & wanted if source.lead == 2 else set()
    space, keep = wanted - time, _argument(node, 2, "keepdim", False)
    whole = not space or (space == {rank - 2, rank - 1} and len(shape) == 3)
    if not whole or (time and keep):
        raise _unknown(builder, node)
    after = replace(source, lead=1, mean=True) if time else source
    builder.values[node] = after
    if space:
        pool, flat = _fresh(builder, node, "mean"), _fresh(builder, node, "flatten")
        made = AdaptiveAvgPool(pool, (source.name,), (1, 1))
        builder.add(node, made, replace(after, name=pool))
        if not keep:
            builder.add(node, Flatten(flat, (pool,)), replace(after, name=flat))


def _adaptive(builder: GraphBuilder, node: fx.Node) -> None:
    source = _source(builder, node)
    name = _fresh(builder, node, "adaptive_avg_pool2d")
    size = _argument(node, 1, "output_size")
    made = module_kinds.adaptive_pool(name, (source.name,), size)
    builder.add(node, made, replace(source, name=name))


def _dropout(builder: GraphBuilder, node: fx.Node) -> None:
    if _argument(node, 2, "training", True) is not False:
        raise builder.unsupported(node, "dropout that is on in evaluation (training=True)")
    builder.values[node] = _source(builder, node)


def _unsqueeze(builder: GraphBuilder, node: fx.Node) -> None:
    """An image gets a time axis of length 1, which `repeat` or `expand` makes T."""
    source, axis = _source(builder, node), _argument(node, 1, "dim")
    if axis != 0 or source.lead != 1 or source.folded or source.mean:
        raise _unknown(builder, node)
    builder.values[node] = replace(source, lead=2)


def _repeat(builder: GraphBuilder, node: fx.Node) -> None:
    source, sides = _source(builder, node), node.args[1:]
    if len(sides) == 1 and isinstance(sides[0], (tuple, list)):
        sides = tuple(sides[0])
    same = set(sides[1:]) <= {1, -1} or all(side in builder.sizes for side in sides[1:])
    rank = source.lead + len(builder.shapes[source.name])
    if source.lead != 2 or len(sides) != rank or not same:
        raise _unknown(builder, node)
    if sides[0] != builder.time_steps:
        raise builder.unsupported(
            node, f"an image repeated {sides[0]} times with time_steps = {builder.time_steps}"
        )
    builder.values[node] = source


def _size(builder: GraphBuilder, node: fx.Node) -> None:
    if node.target is getattr and node.args[1] != "shape":
        raise _unknown(builder, node)
    builder.sizes.add(node)


def _item(builder: GraphBuilder, node: fx.Node) -> None:
    """Of sizes it is handled before; of a value it is a step or a channel taken out."""
    raise _unknown(builder, node)


def _same(builder: GraphBuilder, node: fx.Node) -> None:
    builder.values[node] = _source(builder, node)


def _fold(builder: GraphBuilder, node: fx.Node) -> None:
    source = _source(builder, node)
    builder.values[node] = replace(source, lead=1, folded=node.target is tracer.fold_time)


def _unfold(builder: GraphBuilder, node: fx.Node) -> None:
    builder.values[node] = replace(_source(builder, node), lead=2, folded=False)


Handler = Callable[[GraphBuilder, fx.Node], None]
HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), _multiply),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.reshape, "view", "reshape"), _view),
    **dict.fromkeys((torch.unflatten, "unflatten"), _unflatten),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _unsqueeze),
    **dict.fromkeys(("repeat", "expand"), _repeat),
    **dict.fromkeys((getattr, "size"), _size),
    operator.getitem: _item,
    **dict.fromkeys((tracer.fold_time, tracer.each_step), _fold),
    tracer.whole_sequence: _unfold,
    F.adaptive_avg_pool2d: _adaptive,
    F.dropout: _dropout,
    "contiguous": _same,
}
