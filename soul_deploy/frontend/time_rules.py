"""The axis of time in a network's `forward`: made, repeated, looped over, reduced."""

from dataclasses import replace
from typing import Any

from torch import fx

from soul_deploy.base import reduction
from soul_deploy.frontend import reduced, tracer, unrolled
from soul_deploy.frontend.graph_builder import GraphBuilder
from soul_deploy.frontend.operations import (
    Handler,
    argument_of,
    fresh_name,
    sides_given,
    source_of,
    steps_of,
    unknown,
)
from soul_deploy.frontend.sizes import fits
from soul_deploy.frontend.traced_value import ShowsImageError, TracedValue
from soul_deploy.ir import AdaptiveAvgPool, Flatten


def mean(builder: GraphBuilder, node: fx.Node) -> None:
    """Over time, over space, or both."""
    source, wanted = _axes(builder, node)
    shape = builder.shapes[source.name]
    rank = source.lead + len(shape)
    time = {0} & wanted if source.lead == 2 else set()
    space, keep = wanted - time, argument_of(node, 2, "keepdim", False)
    whole = not space or (not source.membrane and space == {rank - 2, rank - 1} and len(shape) == 3)
    if not whole or (time and keep):
        raise unknown(builder, node)
    if space:
        reduced.require_largest_last(builder, node, "the mean over space", source)
    after = replace(source, lead=1, reduced="mean") if time else source
    builder.values[node] = after
    if space:
        pool, flat = fresh_name(builder, node, "mean"), fresh_name(builder, node, "flatten")
        made = AdaptiveAvgPool(pool, (source.name,), (1, 1))
        builder.add(node, made, replace(after, name=pool))
        if not keep:
            builder.add(node, Flatten(flat, (pool,)), replace(after, name=flat))


def _axes(builder: GraphBuilder, node: fx.Node) -> tuple[TracedValue, set[int]]:
    """What is reduced, and over which axes."""
    source, axes = steps_of(builder, node), argument_of(node, 1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if not isinstance(axes, tuple | list) or not all(isinstance(axis, int) for axis in axes):
        raise unknown(builder, node)
    rank = source.lead + len(builder.shapes[source.name])
    return source, {axis % rank for axis in axes}


def over_time(how: reduction.OverTime, *, pair: bool = False) -> Handler:
    """The sum or the maximum over time; pair: with the places of the maximum."""

    def handler(builder: GraphBuilder, node: fx.Node) -> None:
        source, axes = _axes(builder, node)
        if axes != {0} or source.lead != 2 or source.once or argument_of(node, 2, "keepdim", False):
            raise unknown(builder, node, "over other axes than time alone")
        builder.values[node] = replace(source, lead=1, reduced=how, pair=pair)

    return handler


def unsqueeze(builder: GraphBuilder, node: fx.Node) -> None:
    """An image gets a time axis of length 1, which `repeat` or `expand` makes T."""
    source, axis = source_of(builder, node), argument_of(node, 1, "dim")
    if axis != 0:
        raise unknown(builder, node)
    builder.values[node] = _with_time(builder, node, source)


def _with_time(builder: GraphBuilder, node: fx.Node, image: TracedValue) -> TracedValue:
    if image.folded or image.reduced:
        raise unknown(builder, node)
    if image.lead != 1:
        raise ShowsImageError(str(unknown(builder, node)))
    return replace(image, lead=2, once=True)


def repeat(builder: GraphBuilder, node: fx.Node) -> None:
    """`repeat` or `expand` of an image over time."""
    source, sides = source_of(builder, node), sides_given(node)
    shape = builder.shapes[source.name]
    if len(sides) == source.lead + len(shape) + 1:
        source = _with_time(builder, node, source)  # an axis more is put in front
    whole = builder.sides(source, shape)
    rest = (1,) * (len(whole) - 1) if node.target == "repeat" else whole[1:]
    same = len(sides) == len(whole) and all(
        fits((given,), (side,)) for given, side in zip(sides[1:], rest, strict=True)
    )
    if source.lead == 2 and not source.once:
        raise ShowsImageError(str(unknown(builder, node)))
    if not source.once or not same or (node.target == "repeat" and -1 in sides[1:]):
        raise unknown(builder, node)
    _require_all_steps(builder, node, sides[0])
    builder.values[node] = replace(source, once=False)


def attribute(builder: GraphBuilder, node: fx.Node) -> None:
    """`x.max(0).values`."""
    if not _take_values(builder, node, "values"):
        raise unknown(builder, node)


def _take_values(builder: GraphBuilder, node: fx.Node, name: object) -> bool:
    """Take the values of what `max` gives, which are called `name`; False: it is no such pair."""
    given, asked = (*node.args, None)[:2]
    source = builder.values.get(given) if isinstance(given, fx.Node) else None
    if source is None or not source.pair:
        return False
    unpaired = replace(source, pair=False)
    builder.values[node] = unpaired if asked == name else builder.value(node, given)
    return True


def part(builder: GraphBuilder, node: fx.Node) -> None:
    """One step taken out; `x[None]` puts a time axis in front; `x.max(0)[0]`."""
    if _take_values(builder, node, 0):
        return
    if node.args[1:] == (None,):
        builder.values[node] = _with_time(builder, node, source_of(builder, node))
    else:
        _one_step(builder, node, node.args[1:])


PART = (
    "a part of a tensor; loops over time belong outside the network, and of the steps only the "
    "last can be taken"
)


def unbind(builder: GraphBuilder, node: fx.Node) -> None:
    """Refused: it is a loop over time."""
    raise unknown(builder, node, PART)


def select(builder: GraphBuilder, node: fx.Node) -> None:
    """One step, as `x[t]`."""
    axis, index = argument_of(node, 1, "dim"), argument_of(node, 2, "index")
    if axis != 0:
        raise unknown(builder, node, PART)
    _one_step(builder, node, (index,))


def _one_step(builder: GraphBuilder, node: fx.Node, index: tuple[Any, ...]) -> None:
    """x[t] in a loop over time; elsewhere of the last step alone."""
    source, steps = steps_of(builder, node), builder.time_steps
    place = index[0] if len(index) == 1 else None
    inside = type(place) is int and -steps <= place < steps
    if source.lead != 2 or source.once or not isinstance(place, int) or not inside:
        why = "of tensors, steps x[t] of a sequence alone are taken out"
        raise unknown(builder, node, PART if builder.unrolled is None else why)
    if builder.unrolled is not None:
        builder.values[node] = replace(source, lead=1, step=place % steps)
    elif place % steps == steps - 1:
        builder.values[node] = replace(source, lead=1, reduced="last")
    else:
        raise unknown(builder, node, PART)


def stack(builder: GraphBuilder, node: fx.Node) -> None:
    """An image T times."""
    images, axis = argument_of(node, 0, "tensors"), argument_of(node, 1, "dim", 0)
    if builder.unrolled is not None and axis == 0 and isinstance(images, list | tuple):
        whole = builder.unrolled.stacked(builder, node, images)
        if whole is not None:
            builder.values[node] = whole
            return
    whole_list = builder.values.get(images) if isinstance(images, fx.Node) else None
    if axis == 0 and whole_list is not None and whole_list.membrane and whole_list.of_all_steps:
        builder.values[node] = whole_list  # SpikingJelly's list of them
        return
    alike = isinstance(images, list | tuple) and all(image is images[0] for image in images)
    if axis != 0 or not images or not alike:
        raise unknown(builder, node, "loops over time belong outside the network")
    source = builder.value(node, images[0])
    _require_all_steps(builder, node, len(images))
    builder.values[node] = replace(_with_time(builder, node, source), once=False)


def concatenate(builder: GraphBuilder, node: fx.Node) -> None:
    """The steps of a loop, each with a time axis of 1 (SpikingJelly's multi_step_forward)."""
    parts, axis = argument_of(node, 0, "tensors"), argument_of(node, 1, "dim", 0)
    if builder.unrolled is not None and axis == 0 and isinstance(parts, list | tuple):
        whole = builder.unrolled.stacked(builder, node, parts)
        if whole is not None and whole.once:
            builder.values[node] = replace(whole, once=False)
            return
    raise unknown(builder, node, "of sequences, the steps of a loop alone are put together")


def _require_all_steps(builder: GraphBuilder, node: fx.Node, times: Any) -> None:
    builder.repeated = True
    if not isinstance(times, int) or times != builder.time_steps:
        raise builder.unsupported(
            node, f"an image repeated {times} times with time_steps = {builder.time_steps}"
        )


def at_rest(builder: GraphBuilder, node: fx.Node) -> None:
    """The membrane that a neuron's first step begins with."""
    name, state = map(str, node.args or ("", ""))
    builder.values[node] = TracedValue(name, 1, step=unrolled.BEFORE, membrane=state or "any")


def fold(builder: GraphBuilder, node: fx.Node) -> None:
    """Time into the batch, where a container of SpikingJelly does it."""
    source = source_of(builder, node)
    if source.lead != 2:
        raise builder.unsupported(node, "a container of whole sequences on one step (B, ...)")
    builder.values[node] = replace(source, lead=1, folded=node.target is tracer.fold_time)


def unfold(builder: GraphBuilder, node: fx.Node) -> None:
    """The whole sequence again, behind such a container."""
    builder.values[node] = replace(source_of(builder, node), lead=2, folded=False)
