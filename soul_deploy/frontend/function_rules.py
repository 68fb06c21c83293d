"""Plain functions and tensor methods in a network's `forward`."""

import operator
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from soul_deploy.frontend import module_kinds, reduced, scaled_by, stepped, time_rules, tracer
from soul_deploy.frontend.graph_builder import GraphBuilder
from soul_deploy.frontend.operations import (
    Handler,
    argument_of,
    fresh_name,
    sides_given,
    source_of,
    unknown,
)
from soul_deploy.frontend.sizes import fits
from soul_deploy.frontend.traced_value import TracedValue, told
from soul_deploy.ir import Flatten


def handle(builder: GraphBuilder, node: fx.Node) -> None:
    """One operation that is no module. Raises UnsupportedGraphError."""
    if node.op == "get_attr":  # a constant, for whoever takes one
        return
    handler = HANDLERS.get(node.target)
    if handler is None or node.op not in ("call_function", "call_method"):
        raise builder.unsupported(node, f"operation {told(node)}")
    handler(builder, node)


def _add(builder: GraphBuilder, node: fx.Node) -> None:
    if node.kwargs or len(node.args) != 2:
        raise unknown(builder, node)
    terms = [a for a in node.args if not (isinstance(a, int | float) and a == 0)]
    values = [builder.value(node, argument) for argument in terms]
    if len(values) == 1:  # 0 + x, as sum() and loops begin
        builder.values[node] = values[0]
        return
    builder.merge(node, fresh_name(builder, node, "add"), "add", values)


def _subtract(builder: GraphBuilder, node: fx.Node) -> None:
    """1 - y, the one subtraction there is: half of IAND."""
    one, argument = (*node.args, None, None)[:2]
    if isinstance(one, fx.Node) or one != 1:
        raise unknown(builder, node)
    builder.values[node] = replace(builder.value(node, argument), inverse=True)


def _multiply(builder: GraphBuilder, node: fx.Node) -> None:
    if _by_constant(builder, node):
        return
    found = [builder.values.get(a) if isinstance(a, fx.Node) else None for a in node.args]
    if len(found) != 2 or None in found or node.kwargs:
        raise unknown(builder, node)
    plain = [value for value in found if value is not None and not value.inverse]
    inverted = [replace(v, inverse=False) for v in found if v is not None and v.inverse]
    if not plain:
        raise unknown(builder, node)
    function = "iand" if inverted else "and"
    builder.merge(node, fresh_name(builder, node, function), function, [*plain, *inverted])


def _by_constant(builder: GraphBuilder, node: fx.Node) -> bool:
    """x * c, for a number or for the network's own tensor of one number, or one a channel."""
    if len(node.args) != 2 or node.kwargs:
        return False
    for argument, other in (node.args, node.args[::-1]):
        number = isinstance(other, int | float)
        tensor = isinstance(other, fx.Node) and other.op == "get_attr"
        if isinstance(argument, fx.Node) and argument.op != "get_attr" and (number or tensor):
            constant = scaled_by.constant_of(builder, node, other)
            scaled_by.add(builder, node, argument, constant, fresh_name(builder, node, "scale"))
            return True
    return False


def _divide(builder: GraphBuilder, node: fx.Node) -> None:
    """x / c. A sum over time divided by T is the mean."""
    argument, other = argument_of(node, 0, "input"), argument_of(node, 1, "other")
    if len(node.args) + len(node.kwargs) != 2 or not isinstance(argument, fx.Node):
        raise unknown(builder, node)
    if argument.op == "get_attr" or not (isinstance(other, int | float | fx.Node) and other):
        raise unknown(builder, node)
    if isinstance(other, fx.Node) and other.op != "get_attr":
        raise unknown(builder, node)
    summed = builder.values.get(argument)
    if summed is not None and summed.reduced == "sum" and other == builder.time_steps:
        builder.values[node] = replace(summed, reduced="mean")
        return
    builder.value(node, argument)
    constant = 1 / scaled_by.constant_of(builder, node, other)
    name = fresh_name(builder, node, "scale")
    scaled_by.add(builder, node, argument, constant, name)


def _negate(builder: GraphBuilder, node: fx.Node) -> None:
    constant = torch.tensor(-1.0, dtype=torch.float64)
    scaled_by.add(builder, node, node.args[0], constant, fresh_name(builder, node, "scale"))


def _flatten(builder: GraphBuilder, node: fx.Node) -> None:
    start, end = argument_of(node, 1, "start_dim", 0), argument_of(node, 2, "end_dim", -1)
    builder.flatten(
        node, source_of(builder, node), fresh_name(builder, node, "flatten"), start, end
    )


def _view(builder: GraphBuilder, node: fx.Node) -> None:
    """Views that merge a value's own axes, or time and batch, or split these again."""
    source, sides = source_of(builder, node), sides_given(node)
    shape = builder.shapes[source.name]
    for lead in (source.lead, 3 - source.lead):
        folded = lead == 1 and (source.folded or source.lead == 2)
        after = replace(source, lead=lead, folded=folded)
        if lead == 2 > source.lead and not source.folded:
            continue
        for target in (shape, (prod(shape),)):
            if fits(sides, builder.sides(after, target)):
                _reshape(builder, node, after, flat=len(target) < len(shape))
                return
    raise unknown(builder, node)


def _reshape(builder: GraphBuilder, node: fx.Node, after: TracedValue, *, flat: bool) -> None:
    if not flat:
        builder.values[node] = after
        return
    name = fresh_name(builder, node, "flatten")
    builder.add(node, Flatten(name, (after.name,)), replace(after, name=name))


def _unflatten(builder: GraphBuilder, node: fx.Node) -> None:
    source, axis = source_of(builder, node), argument_of(node, 1, "dim")
    after = replace(source, lead=2, folded=False)
    sides = tuple(argument_of(node, 2, "sizes") or argument_of(node, 2, "unflattened_size", ()))
    if axis != 0 or not source.folded or not fits(sides, builder.sides(after, ())):
        raise unknown(builder, node)
    builder.values[node] = after


def _permute(builder: GraphBuilder, node: fx.Node) -> None:
    """Axes in another order, which only a permutation back makes usable again."""
    source = builder.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if source is None:
        raise unknown(builder, node)
    rank = source.lead + len(builder.shapes[source.name])
    axes = list(range(rank))
    dims = sides_given(node)
    if not all(isinstance(axis, int) and -rank <= axis < rank for axis in dims):
        raise unknown(builder, node)
    if told(node) == "permute":
        axes = [axis % rank for axis in dims]
    elif len(dims) == 2:
        first, second = (axis % rank for axis in dims)
        axes[first], axes[second] = second, first
    if sorted(axes) != list(range(rank)):
        raise unknown(builder, node)
    before = source.order or tuple(range(rank))
    order = tuple(before[axis] for axis in axes)
    builder.values[node] = replace(source, order=() if order == tuple(range(rank)) else order)


def _adaptive(builder: GraphBuilder, node: fx.Node) -> None:
    source = source_of(builder, node)
    name = fresh_name(builder, node, "adaptive_avg_pool2d")
    size = argument_of(node, 1, "output_size")
    reduced.require_largest_last(builder, node, "adaptive_avg_pool2d", source)
    made = module_kinds.adaptive_pool(name, (source.name,), size)
    builder.add(node, made, replace(source, name=name))


def _dropout(builder: GraphBuilder, node: fx.Node) -> None:
    if argument_of(node, 2, "training", True) is not False:
        raise builder.unsupported(node, "dropout that is on in evaluation (training=True)")
    builder.values[node] = source_of(builder, node)


def _max_pool(builder: GraphBuilder, node: fx.Node) -> None:
    window = {name: argument_of(node, 1 + i, name, usual) for i, (name, usual) in enumerate(WINDOW)}
    settings = SimpleNamespace(**{**window, "stride": window["stride"] or window["kernel_size"]})
    source, name = source_of(builder, node), fresh_name(builder, node, "max_pool2d")
    reduced.check_not(builder, node, "max_pool2d", source)
    made = module_kinds.CONVERTERS["MaxPool2d"](name, (source.name,), settings)
    builder.add(node, made, replace(source, name=name))
    if settings.ceil_mode:
        module_kinds.check_ceil_mode(made, builder.shapes[source.name])


WINDOW = (
    *(("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1)),
    *(("ceil_mode", False), ("return_indices", False)),
)
"""The arguments of max_pool2d behind its input, in order, and what they are if left out."""


def _same(builder: GraphBuilder, node: fx.Node) -> None:
    """A copy; also of membranes, which training code detaches between steps, and of axes in another
    order.
    """
    given = argument_of(node, 0, "input")
    source = builder.values.get(given) if isinstance(given, fx.Node) else None
    kept = source is not None and (source.membrane or source.order)
    builder.values[node] = source if source is not None and kept else source_of(builder, node)


HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _divide),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), _negate),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.reshape, "view", "reshape"), _view),
    **dict.fromkeys((torch.unflatten, "unflatten"), _unflatten),
    **dict.fromkeys((torch.permute, "permute", torch.transpose, "transpose"), _permute),
    **dict.fromkeys((torch.swapaxes, "swapaxes", torch.swapdims, "swapdims"), _permute),
    **dict.fromkeys((torch.mean, "mean"), time_rules.mean),
    **dict.fromkeys((torch.sum, "sum"), time_rules.over_time("sum")),
    **dict.fromkeys((torch.amax, "amax"), time_rules.over_time("max")),
    **dict.fromkeys((torch.max, "max"), time_rules.over_time("max", pair=True)),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), time_rules.unsqueeze),
    **dict.fromkeys(("repeat", "expand"), time_rules.repeat),
    torch.stack: time_rules.stack,
    torch.cat: time_rules.concatenate,
    operator.getitem: time_rules.part,
    **dict.fromkeys(("unbind", torch.unbind), time_rules.unbind),
    **dict.fromkeys((torch.select, "select"), time_rules.select),
    **dict.fromkeys((tracer.fold_time, tracer.each_step), time_rules.fold),
    tracer.whole_sequence: time_rules.unfold,
    getattr: time_rules.attribute,
    F.adaptive_avg_pool2d: _adaptive,
    F.dropout: _dropout,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    **dict.fromkeys((stepped.rest, stepped.kept), time_rules.at_rest),
    **dict.fromkeys(("contiguous", "detach"), _same),
}
