"""SpikingJelly's containers that feed what they gave at the step before back to themselves.

`LinearRecurrentContainer` weighs its input and its last output by one linear layer, `rc`, over both
side by side. Here it is two projections: what comes in keeps the name, `rc`, with its columns and
the bias; the columns of the last output are `rc.feedback` (`GraphModule` takes a checkpoint apart).
`ElementWiseRecurrentContainer` joins both by a function, of which a · x + c · y is known.

Inside stands a neuron, or a convolution or linear layer and a neuron. What such a layer makes of
the feedback follows from its weights: both become one projection.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from soul_deploy import ir
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import module_kinds
from soul_deploy.frontend.spiking_nodes import NEURONS
from soul_deploy.frontend.traced_value import TracedValue
from soul_deploy.ir.feedback import OneToOne

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder

LINEAR, ELEMENT_WISE = module_kinds.RECURRENT
FEEDBACK = "feedback"
PROBES = 512


@dataclass(frozen=True)
class _Inside:
    """What a container holds: a neuron, and a layer before it or None, with their paths."""

    neuron: Any
    place: str
    layer: Any = None
    layer_place: str = ""


def convert(
    builder: "GraphBuilder", node: fx.Node, path: str, kind: str, module: Any, source: TracedValue
) -> None:
    """A container's call as graph nodes. Raises UnsupportedGraphError for what is not known."""
    inside = _inside(path, module.sub_module)
    converted = module_kinds.CONVERTERS[module_kinds.module_kind(inside.neuron) or ""]
    after = replace(builder.fire(node, path, module, source), name=inside.place)
    entering = source
    if kind == LINEAR:
        weights = _split(builder, path, module)
        rc, columns = module.rc, module.rc.in_features - module.sub_module_out_features
        entering = replace(entering, name=f"{path}.rc")
        sides = columns, rc.out_features
        made = ir.Linear(entering.name, (source.name,), rc.bias is not None, None, *sides)
        builder.add(node, made, entering)
    else:
        own, last = _factors(path, module.element_wise_function)
        weights = torch.tensor(last)
        if own != 1:
            entering = replace(entering, name=f"{path}.scale")
            builder.add(node, ir.Scale(entering.name, (source.name,), own), entering)
    if inside.layer is not None:
        layer = module_kinds.CONVERTERS[module_kinds.module_kind(inside.layer) or ""]
        before, entering = entering, replace(entering, name=inside.layer_place)
        builder.add(node, layer(entering.name, (before.name,), inside.layer), entering)
    back = _feedback(builder, path, kind, inside, weights)
    population = converted(inside.place, (entering.name,), inside.neuron)
    assert isinstance(population, ir.Population)
    if population.neuron.unit != 1:
        raise UnsupportedGraphError(f"{path}: a feedback of neurons that send fractions")
    builder.add(node, replace(population, feedback=back), after)


def _inside(path: str, sub_module: Any) -> _Inside:
    place = f"{path}.sub_module"
    if _is_neuron(sub_module):
        return _checked(_Inside(sub_module, place))
    parts = list(sub_module.named_children()) if type(sub_module) is nn.Sequential else []
    if len(parts) == 2 and _is_neuron(parts[1][1]):
        (first, layer), (second, neuron) = parts
        if module_kinds.module_kind(layer) in ("Linear", "Conv2d"):
            if module_kinds.step_mode(layer) == "m":
                raise UnsupportedGraphError(f"{place}.{first}: a layer of whole sequences")
            return _checked(_Inside(neuron, f"{place}.{second}", layer, f"{place}.{first}"))
    raise UnsupportedGraphError(
        f"module {place!r} ({type(sub_module).__name__}) in a recurrent container is not "
        "supported; supported are a spiking neuron of SpikingJelly, and nn.Sequential of Linear or "
        "Conv2d and such a neuron"
    )


def _is_neuron(module: Any) -> bool:
    return module_kinds.module_kind(module) in NEURONS


def _checked(inside: _Inside) -> _Inside:
    if module_kinds.step_mode(inside.neuron) != "s":
        raise UnsupportedGraphError(
            f"{inside.place}: a neuron of whole sequences (step mode 'm') in a recurrent "
            "container, which calls it step by step; give it step_mode='s'"
        )
    return inside


def _split(builder: "GraphBuilder", path: str, module: Any) -> Tensor:
    """Put the columns of the input into the graph; returns those of the last output."""
    columns = module.rc.in_features - module.sub_module_out_features
    weight: Tensor = module.rc.weight.detach()
    builder.constants[f"{path}.rc.weight"] = weight[:, :columns].clone()
    return weight[:, columns:].clone()


def _feedback(
    builder: "GraphBuilder", path: str, kind: str, inside: _Inside, weights: Tensor
) -> ir.Node:
    """What the last output becomes on its way to the neuron; weights: before the layer inside."""
    layer, population = inside.layer, inside.place
    if layer is None and kind == ELEMENT_WISE:
        return OneToOne(f"{path}.{FEEDBACK}", (population,), float(weights))
    name = f"{path}.rc.{FEEDBACK}" if kind == LINEAR else f"{path}.{FEEDBACK}"
    if layer is not None and kind == LINEAR and module_kinds.module_kind(layer) != "Linear":
        raise UnsupportedGraphError(
            f"module {inside.layer_place!r}: a convolution behind a linear recurrent connection; "
            "supported behind it are a neuron, and a linear layer and a neuron"
        )
    if layer is not None:
        own = layer.weight.detach().double()
        weights = (own @ weights.double() if kind == LINEAR else own * weights.double()).float()
    builder.constants[f"{name}.weight"] = weights
    if weights.dim() == 4:
        made = module_kinds.CONVERTERS["Conv2d"](name, (population,), layer)
        assert isinstance(made, ir.Convolution)
        return replace(made, bias=False)
    return ir.Linear(name, (population,), False, None, weights.shape[1], weights.shape[0])


def _factors(path: str, function: Any) -> tuple[float, float]:
    """a and c of a · x + c · y. Raises UnsupportedGraphError for another function of y and x.

    y is 0 or 1, so the function is two functions of x, and both are looked at on many numbers of
    many sizes, to the last bit.
    """
    made = torch.Generator().manual_seed(2025)
    sizes = torch.logspace(-6, 6, PROBES)
    x = torch.cat([torch.zeros(1), torch.ones(1), torch.randn(PROBES, generator=made) * sizes])
    try:
        with torch.no_grad():
            silent, fired = (function(torch.full_like(x, y), x.clone()) for y in (0.0, 1.0))
            own, last = float(silent[1]), float(fired[0])
            same = torch.equal(silent, own * x) and torch.equal(fired, own * x + last)
    except Exception as error:
        raise UnsupportedGraphError(f"{path}: its element_wise_function fails: {error}") from error
    if same and own and last:
        return own, last
    said = "it is no such sum"
    said = "it does not depend on the last spikes" if torch.equal(silent, fired) else said
    said = "without a last spike it is 0, and so for ever" if not silent.any() else said
    raise UnsupportedGraphError(
        f"module {path!r} (ElementWiseRecurrentContainer): element_wise_function(y, x) is not "
        f"a · x + c · y ({said}); supported is that, such as lambda y, x: x + y"
    )
