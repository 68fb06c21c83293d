"""Plain functions and tensor methods in a network's `forward`."""

import operator
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from soul_deploy.base import reduction
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import module_kinds, tracer
from soul_deploy.frontend.graph_builder import GraphBuilder, ShowsImageError, TracedValue, told
from soul_deploy.frontend.sizes import fits
from soul_deploy.ir import AdaptiveAvgPool, Flatten


def handle(builder: GraphBuilder, node: fx.Node) -> None:
    """One operation that is no module. Raises UnsupportedGraphError."""
    handler = HANDLERS.get(node.target)
    if handler is None or node.op not in ("call_function", "call_method"):
        raise builder.unsupported(node, f"operation {told(node)}")
    handler(builder, node)


def _unknown(builder: GraphBuilder, node: fx.Node, why: str = "") -> UnsupportedGraphError:
    shown = ", ".join([*map(str, node.args), *(f"{k}={v}" for k, v in node.kwargs.items())])
    return builder.unsupported(node, f"operation {told(node)}({shown})" + (why and f" ({why})"))


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _source(builder: GraphBuilder, node: fx.Node) -> TracedValue:
    return builder.value(node, _argument(node, 0, "input"))


def _add(builder: GraphBuilder, node: fx.Node) -> None:
    if node.kwargs or len(node.args) != 2:
        raise _unknown(builder, node)
    terms = [a for a in node.args if not (isinstance(a, int | float) and a == 0)]
    values = [builder.value(node, argument) for argument in terms]
    if len(values) == 1:  # 0 + x, as sum() and loops begin
        builder.values[node] = values[0]
        return
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


def _sides(node: fx.Node, start: int = 1) -> tuple[Any, ...]:
    """The sides that a call is given, one by one or as one tuple."""
    sides = node.args[start:] or tuple(node.kwargs.values())
    first = sides[0] if len(sides) == 1 else None
    return tuple(first) if isinstance(first, (tuple, list)) else sides


def _view(builder: GraphBuilder, node: fx.Node) -> None:
    """Views that merge a value's own axes, or time and batch, or split these again."""
    source, sides = _source(builder, node), _sides(node)
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
    raise _unknown(builder, node)


def _reshape(builder: GraphBuilder, node: fx.Node, after: TracedValue, *, flat: bool) -> None:
    if not flat:
        builder.values[node] = after
        return
    name = _fresh(builder, node, "flatten")
    builder.add(node, Flatten(name, (after.name,)), replace(after, name=name))


def _unflatten(builder: GraphBuilder, node: fx.Node) -> None:
    source, axis = _source(builder, node), _argument(node, 1, "dim")
    after = replace(source, lead=2, folded=False)
    sides = tuple(_argument(node, 2, "sizes") or _argument(node, 2, "unflattened_size", ()))
    if axis != 0 or not source.folded or not fits(sides, builder.sides(after, ())):
        raise _unknown(builder, node)
    builder.values[node] = after


def _mean(builder: GraphBuilder, node: fx.Node) -> None:
    source, wanted = _axes(builder, node)
    shape = builder.shapes[source.name]
    rank = source.lead + len(shape)
    time = {0} & wanted if source.lead == 2 else set()
    space, keep = wanted - time, _argument(node, 2, "keepdim", False)
    whole = not space or (space == {rank - 2, rank - 1} and len(shape) == 3)
    if not whole or (time and keep):
        raise _unknown(builder, node)
    if space:
        builder.require_largest_last(node, "the mean over space", source)
    after = replace(source, lead=1, reduced="mean") if time else source
    builder.values[node] = after
    if space:
        pool, flat = _fresh(builder, node, "mean"), _fresh(builder, node, "flatten")
        made = AdaptiveAvgPool(pool, (source.name,), (1, 1))
        builder.add(node, made, replace(after, name=pool))
        if not keep:
            builder.add(node, Flatten(flat, (pool,)), replace(after, name=flat))


def _axes(builder: GraphBuilder, node: fx.Node) -> tuple[TracedValue, set[int]]:
    """What is reduced, and over which axes."""
    source, axes = _source(builder, node), _argument(node, 1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if not isinstance(axes, tuple | list) or not all(isinstance(axis, int) for axis in axes):
        raise _unknown(builder, node)
    rank = source.lead + len(builder.shapes[source.name])
    return source, {axis % rank for axis in axes}


def _over_time(how: reduction.OverTime, *, pair: bool = False) -> "Handler":
    """The sum or the maximum over time; pair: with the places of the maximum."""

    def handler(builder: GraphBuilder, node: fx.Node) -> None:
        source, axes = _axes(builder, node)
        if axes != {0} or source.lead != 2 or source.once or _argument(node, 2, "keepdim", False):
            raise _unknown(builder, node, "over other axes than time alone")
        builder.values[node] = replace(source, lead=1, reduced=how, pair=pair)

    return handler


def _divide(builder: GraphBuilder, node: fx.Node) -> None:
    """A sum over time divided by T is the mean."""
    source, by = _source(builder, node), _argument(node, 1, "other")
    if source.reduced != "sum" or by != builder.time_steps or len(node.args) + len(node.kwargs) > 2:
        raise _unknown(builder, node, "a division other than that of the sum over time by T")
    builder.values[node] = replace(source, reduced="mean")


def _adaptive(builder: GraphBuilder, node: fx.Node) -> None:
    source = _source(builder, node)
    name = _fresh(builder, node, "adaptive_avg_pool2d")
    size = _argument(node, 1, "output_size")
    builder.require_largest_last(node, "adaptive_avg_pool2d", source)
    made = module_kinds.adaptive_pool(name, (source.name,), size)
    builder.add(node, made, replace(source, name=name))


def _dropout(builder: GraphBuilder, node: fx.Node) -> None:
    if _argument(node, 2, "training", True) is not False:
        raise builder.unsupported(node, "dropout that is on in evaluation (training=True)")
    builder.values[node] = _source(builder, node)


def _unsqueeze(builder: GraphBuilder, node: fx.Node) -> None:
    """An image gets a time axis of length 1, which `repeat` or `expand` makes T."""
    source, axis = _source(builder, node), _argument(node, 1, "dim")
    if axis != 0:
        raise _unknown(builder, node)
    builder.values[node] = _with_time(builder, node, source)


def _with_time(builder: GraphBuilder, node: fx.Node, image: TracedValue) -> TracedValue:
    if image.folded or image.reduced:
        raise _unknown(builder, node)
    if image.lead != 1:
        raise ShowsImageError(str(_unknown(builder, node)))
    return replace(image, lead=2, once=True)


def _repeat(builder: GraphBuilder, node: fx.Node) -> None:
    source, sides = _source(builder, node), _sides(node)
    shape = builder.shapes[source.name]
    if len(sides) == source.lead + len(shape) + 1:
        source = _with_time(builder, node, source)  # an axis more is put in front
    whole = builder.sides(source, shape)
    rest = (1,) * (len(whole) - 1) if node.target == "repeat" else whole[1:]
    same = len(sides) == len(whole) and all(
        fits((given,), (side,)) for given, side in zip(sides[1:], rest, strict=True)
    )
    if source.lead == 2 and not source.once:
        raise ShowsImageError(str(_unknown(builder, node)))
    if not source.once or not same or (node.target == "repeat" and -1 in sides[1:]):
        raise _unknown(builder, node)
    _require_all_steps(builder, node, sides[0])
    builder.values[node] = replace(source, once=False)


def _attribute(builder: GraphBuilder, node: fx.Node) -> None:
    """`x.max(0).values`."""
    if not _take_values(builder, node, "values"):
        raise _unknown(builder, node)


def _take_values(builder: GraphBuilder, node: fx.Node, name: object) -> bool:
    """Take the values of what `max` gives, which are called `name`; False: it is no such pair."""
    given, asked = (*node.args, None)[:2]
    source = builder.values.get(given) if isinstance(given, fx.Node) else None
    if source is None or not source.pair:
        return False
    unpaired = replace(source, pair=False)
    builder.values[node] = unpaired if asked == name else builder.value(node, given)
    return True


def _part(builder: GraphBuilder, node: fx.Node) -> None:
    """The last step, or a step or a channel taken out; `x[None]` puts a time axis in front;
    `x.max(0)[0]`.
    """
    if _take_values(builder, node, 0):
        return
    if node.args[1:] == (None,):
        builder.values[node] = _with_time(builder, node, _source(builder, node))
    elif not _last_step(builder, node, node.args[1:]):
        raise _unknown(builder, node, PART)


PART = (
    "a part of a tensor; loops over time belong outside the network, and of the steps only the "
    "last can be taken"
)


def _unbind(builder: GraphBuilder, node: fx.Node) -> None:
    raise _unknown(builder, node, PART)


def _select(builder: GraphBuilder, node: fx.Node) -> None:
    axis, index = _argument(node, 1, "dim"), _argument(node, 2, "index")
    if axis != 0 or not _last_step(builder, node, (index,)):
        raise _unknown(builder, node, PART)


def _last_step(builder: GraphBuilder, node: fx.Node, index: tuple[Any, ...]) -> bool:
    """Take the last step, if `index` is its place."""
    if index not in ((-1,), (builder.time_steps - 1,)):
        return False
    source = _source(builder, node)
    if source.lead != 2 or source.once:
        return False
    builder.values[node] = replace(source, lead=1, reduced="last")
    return True


def _stack(builder: GraphBuilder, node: fx.Node) -> None:
    """An image T times."""
    images, axis = _argument(node, 0, "tensors"), _argument(node, 1, "dim", 0)
    alike = isinstance(images, list | tuple) and all(image is images[0] for image in images)
    if axis != 0 or not images or not alike:
        raise _unknown(builder, node, "loops over time belong outside the network")
    source = builder.value(node, images[0])
    _require_all_steps(builder, node, len(images))
    builder.values[node] = replace(_with_time(builder, node, source), once=False)


def _require_all_steps(builder: GraphBuilder, node: fx.Node, times: Any) -> None:
    builder.repeated = True
    if not isinstance(times, int) or times != builder.time_steps:
        raise builder.unsupported(
            node, f"an image repeated {times} times with time_steps = {builder.time_steps}"
        )


def _same(builder: GraphBuilder, node: fx.Node) -> None:
    builder.values[node] = _source(builder, node)


def _fold(builder: GraphBuilder, node: fx.Node) -> None:
    source = _source(builder, node)
    if source.lead != 2:
        raise builder.unsupported(node, "a container of whole sequences on one step (B, ...)")
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
    **dict.fromkeys((torch.sum, "sum"), _over_time("sum")),
    **dict.fromkeys((torch.amax, "amax"), _over_time("max")),
    **dict.fromkeys((torch.max, "max"), _over_time("max", pair=True)),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div"), _divide),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _unsqueeze),
    **dict.fromkeys(("repeat", "expand"), _repeat),
    torch.stack: _stack,
    operator.getitem: _part,
    **dict.fromkeys(("unbind", torch.unbind), _unbind),
    **dict.fromkeys((torch.select, "select"), _select),
    **dict.fromkeys((tracer.fold_time, tracer.each_step), _fold),
    tracer.whole_sequence: _unfold,
    getattr: _attribute,
    F.adaptive_avg_pool2d: _adaptive,
    F.dropout: _dropout,
    "contiguous": _same,
}
