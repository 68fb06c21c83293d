"""Fine-tuning with fake quantisation: forward on integers, gradients straight through.

What is trained are weights and biases in shares of the largest integer, so that all layers move at
one learning rate. Before each forward pass they become what the rounded integers stand for; the
gradients of that go to the shares (Bengio et al., 2013, arXiv:1308.3432; Jacob et al., CVPR 2018).
Weights that are 0, pruned ones, stay 0. Leaks, thresholds and units stay as they were calibrated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array, brief, pixel_rule
from soul_deploy.data.given import taken
from soul_deploy.data.samples import Data, Split
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, HardGate
from soul_deploy.quantization.network import Plan, head_divisor
from soul_deploy.quantization.structure import RealForm, RealWeights
from soul_deploy.quantization.units import LARGEST_WEIGHT
from soul_deploy.training.trainer import BatchHooks, EpochResult, TrainConfig, Training

Scored = Callable[[Plan], float]
"""The accuracy of a plan's network."""


@brief
@dataclass(frozen=True)
class Latent:
    """How a parameter's share becomes a weight: times `worth`; `kept`: which are trained.

    worth: of a share of 1, the largest integer; broadcasts.
    """

    worth: Tensor
    kept: Tensor
    clipped: bool


def finetuned(
    plan: Plan, data: Data, integers: Model, config: TrainConfig, scored: Scored
) -> tuple[Plan, tuple[EpochResult, ...]]:
    """The plan with the weights of the best epoch, by the accuracy of its integers; it may be the
    plan itself. integers: the plan's network, whose input the data become.
    """
    module, latents = _module(plan)
    hooks = _Straight(module, latents)
    training = Training(module, _whole_data(integers, data), config, hooks=hooks)
    best, most = plan, scored(plan)
    history: list[EpochResult] = []
    for result in training.run():
        moved = _with_shares(plan, module, latents)
        accuracy = scored(moved)
        history.append(replace(result, validation_accuracy=accuracy))
        if accuracy > most:
            best, most = moved, accuracy
    return best, tuple(history)


def _whole_data(integers: Model, data: Data) -> Data:
    """The samples as the integers that the network takes, which nobody normalises.

    Counts and spikes in bytes are these integers as they are, and stay where they are, mapped.
    """
    if data.input_kind != "images" and data.train.images.dtype == torch.uint8:
        for split in (data.train, data.validation, data.test):
            most = split.images.max().reshape(1).numpy()
            pixel_rule.integers_of(most, integers.input_rule, data.name)
        return replace(data, normalization=None)

    def whole(split: Split) -> Split:
        images = taken(integers, replace(data, frames=False), split.images)
        return Split(images.float(), split.labels)

    train, validation, test = map(whole, (data.train, data.validation, data.test))
    parts = {"train": train, "validation": validation, "test": test}
    plain = replace(data, normalization=None, input_kind="counts")
    return replace(plain, **parts)  # type: ignore[arg-type]


class _Straight(BatchHooks):
    """Parameters are shares, but for the time between forward and backward pass."""

    def __init__(self, module: GraphModule, latents: Mapping[str, Latent]) -> None:
        self.latents = {p: latents[n] for n, p in module.named_parameters() if n in latents}
        self.shares: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def forward(
        self, module: GraphModule, images: Tensor, weight: float = 1.0, *, per_step: bool = False
    ) -> Tensor:
        for parameter, latent in self.latents.items():
            self.shares[parameter] = parameter.detach().clone()
            whole = (parameter * LARGEST_WEIGHT).round()
            if latent.clipped:
                whole = whole.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
            parameter.copy_(whole / LARGEST_WEIGHT * latent.worth)
        with torch.enable_grad():
            return super().forward(module, images, weight, per_step=per_step)

    @torch.no_grad()
    def after_backward(self, module: GraphModule) -> None:
        for parameter, latent in self.latents.items():
            share = self.shares[parameter]
            parameter.copy_(share)
            if parameter.grad is not None:
                inside = share.abs() <= 1 if latent.clipped else torch.ones_like(share)
                parameter.grad.mul_(latent.worth * latent.kept * inside)


def _module(plan: Plan) -> tuple[GraphModule, dict[str, Latent]]:
    """The network of real numbers on integers, its parameters shares of the largest integer."""
    graph = _real_graph(plan)
    module = GraphModule(graph)
    latents: dict[str, Latent] = {}
    state: dict[str, Array] = {}
    for name, (real, unit, area) in _units(plan).items():
        weight_unit, bias_unit = unit
        parts = {"weight": (real.weight, weight_unit * area)}
        parts |= {} if real.bias is None else {"bias": (real.bias, bias_unit)}
        for part, (values, worth) in parts.items():
            sides = (-1, *[1] * (values.ndim - 1))
            scale = np.asarray(worth, np.float64).reshape(sides if np.ndim(worth) else ())
            step = scale / (area if part == "weight" else 1) * LARGEST_WEIGHT
            key = f"{name}.{part}"
            state[key] = (values / step).astype(np.float32)
            kept = values != 0 if part == "weight" else np.ones(values.shape, bool)
            worths = torch.from_numpy(np.asarray(scale * LARGEST_WEIGHT, np.float32))
            latents[key] = Latent(worths, torch.from_numpy(kept), part == "weight")
    given = module.state_dict()
    for node in graph.populations:
        tensors = {k: v for k, v in plan.model.state.items() if k.startswith(f"{node.name}.")}
        state |= {k: np.array(v) for k, v in tensors.items()}
    module.load_state_dict({k: torch.from_numpy(state.get(k, v.numpy())) for k, v in given.items()})
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key in latents)
    for name, keep in plan.model.neuron_masks.items():
        module.neuron_gates[name] = HardGate(torch.from_numpy(keep.astype(np.float32)))
    return module, latents


def _real_graph(plan: Plan) -> ir.SpikingGraph:
    """The form's nodes with means in place of sums."""
    given = plan.model.graph.input
    nodes: list[ir.Node] = [ir.Input(given.name, (), given.shape)]
    for node in plan.form.nodes:
        if isinstance(node, ir.SumPool):
            node = ir.AvgPool(node.name, node.inputs, node.kernel, node.stride)
        elif isinstance(node, ir.Readout):
            node = replace(node, unit=None)
        nodes.append(node)
    return ir.SpikingGraph(tuple(nodes), plan.model.graph.time_steps)


_UnitPair = tuple[Array | float, Array | float]


def _units(plan: Plan) -> dict[str, tuple[RealWeights, _UnitPair, float]]:
    """Of each weighing node: its real numbers, the real value of 1 of its weight and of its bias,
    and what its weight is multiplied by behind a mean: how many inputs that is of."""
    found: dict[str, tuple[RealWeights, _UnitPair, float]] = {}
    for name, real in plan.form.weights.items():
        unit = plan.units[name].values / plan.units[name].gain
        found[name] = (real, (unit, unit), _area(plan.form, name))
    if plan.form.head is not None:
        node = plan.form.nodes[-1]
        assert isinstance(node, ir.Readout)
        both = (plan.head, plan.head * plan.form.scale)
        found[node.name] = (plan.form.head, both, plan.form.scale * head_divisor(plan))
    return found


def _area(form: RealForm, name: str) -> int:
    by_name = {node.name: node for node in form.nodes}
    area, source = 1, by_name.get(by_name[name].inputs[0])
    while source is not None and source.composable:
        area *= math.prod(source.kernel) if isinstance(source, ir.SumPool) else 1
        source = by_name.get(source.inputs[0])
    return area


def _with_shares(plan: Plan, module: GraphModule, latents: Mapping[str, Latent]) -> Plan:
    """The plan with the module's shares as its real numbers."""
    state = {
        name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()
    }
    weights: dict[str, RealWeights] = {}
    for name, (real, unit, _) in _units(plan).items():
        values: list[Array] = []
        for part, one in zip(("weight", "bias"), unit, strict=True):
            if getattr(real, part) is not None:
                share = state[f"{name}.{part}"]
                sides = (-1, *[1] * (share.ndim - 1))
                scale = np.asarray(one, np.float64).reshape(sides if np.ndim(one) else ())
                values.append(share * scale * LARGEST_WEIGHT)
        weights[name] = RealWeights(values[0], values[1] if len(values) > 1 else None)
    head = weights.pop(plan.form.nodes[-1].name, None)
    return replace(plan, form=replace(plan.form, weights=weights, head=head))
