"""Constants that a forward multiplies by: numbers, and tensors that its modules hold."""

import warnings
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from soul_deploy.base.errors import NetworkWarning
from soul_deploy.frontend import module_kinds, reduced, tracer
from soul_deploy.frontend.traced_value import TracedValue
from soul_deploy.ir import Scale, Shape

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder


def constant_of(builder: "GraphBuilder", node: fx.Node, given: Any) -> Tensor:
    """A number, or the tensor that a traced attribute is, in float64.

    A parameter is warned about: the graph's constants are not trained.
    """
    if not isinstance(given, fx.Node):
        return torch.tensor(float(given), dtype=torch.float64)
    made = given.meta.get(tracer.CONSTANT)
    tensor: Tensor = attrgetter(str(given.target))(builder.modules[""]) if made is None else made
    if isinstance(tensor, nn.Parameter):
        text = (
            f"the parameter {given.target!r} is multiplied with a value ({tracer.place_of(node)}); "
            "it is a constant of the graph, and stays as it is if this network is trained further"
        )
        warnings.warn(NetworkWarning(text), stacklevel=2)
    return tensor.detach().cpu().double()


def add(builder: "GraphBuilder", node: fx.Node, argument: Any, constant: Tensor, name: str) -> None:
    """Put the multiplication of `argument` by a constant in.

    Raises UnsupportedGraphError unless it is one finite number but 0, or one for each channel.
    """
    source = builder.value(node, argument)
    shape = builder.shapes[source.name]
    usable = bool(torch.isfinite(constant).all()) and bool((constant != 0).all())
    channels = constant.numel() != 1
    if not usable or (channels and not _is_by_channel(constant, source.lead, shape)):
        what = f"a constant of shape {tuple(constant.shape)}" if usable else "0, or not finite,"
        raise builder.unsupported(
            node,
            f"a multiplication of {source.name!r} by {what}; constants are one number but 0, or "
            f"one for each of its {shape[0]} channels, which otherwise",
        )
    reduced.check_factor(builder, node, constant, source)
    if not channels and float(constant) == 1:
        builder.values[node] = source
        return
    made = Scale(name, (source.name,), None if channels else float(constant))
    builder.constants |= {entry: constant.reshape(-1).float() for entry in made.row_tensors}
    builder.add(node, made, replace(source, name=name))


def _is_by_channel(constant: Tensor, lead: int, shape: Shape) -> bool:
    """Whether a constant broadcasts along the channel axis alone."""
    sides = (1,) * (lead + len(shape) - constant.dim()) + tuple(constant.shape)
    return sides == (1,) * lead + shape[:1] + (1,) * (len(shape) - 1)


def check_channels(
    builder: "GraphBuilder", node: fx.Node, path: str, module: Any, source: TracedValue
) -> None:
    """Refuse an ann2snn scaler along another axis than that of channels."""
    if module_kinds.module_kind(module) != "ChannelVoltageScaler":
        return
    lead = 1 if module_kinds.step_mode(module) == "m" else source.lead
    rank = lead + len(builder.shapes[source.name])
    axis = module.channel_dim % rank
    if module.scale.dim() and axis != lead:
        raise builder.unsupported(
            node, f"module {path!r}, which scales along axis {axis}; channels are axis {lead},"
        )
