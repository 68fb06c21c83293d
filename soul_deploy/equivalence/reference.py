"""The reference: the PyTorch original that every execution is compared with, and its margins.

A spike may differ only where the reference's membrane, recomputed in float64, is closer to the
threshold than the rounding of a float32 sum can move it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from soul_deploy.base import dispatch
from soul_deploy.equivalence import rounding
from soul_deploy.ir import SPIKE, Node, Population, Projection, SpikingGraph
from soul_deploy.lowering import deploy
from soul_deploy.lowering.fan_out import step_before
from soul_deploy.lowering.fold_batch_norm import ChannelConstants
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, Signal
from soul_deploy.nn.layers import split_time
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import (
    CHARGE,
    Equation,
    FixedEquation,
    NeuronEquation,
    reset_hard,
    reset_soft,
)

ROUNDING = 4 * 2.0**-24  # of Σ|w·x|: the allowed error of a float32 sum
LEAST_ALLOWANCE = 1e-5  # of the threshold


def entries(graph: SpikingGraph, name: str) -> tuple[str, ...]:
    """The nodes whose values enter the first projections in front of `name`.

    They hold the population's input before any sum of weights: input, spikes, or those pooled.
    """
    names: list[str] = []
    for source in graph[name].inputs:
        if _has_projection(graph, source):
            names += entries(graph, source)
        else:
            names.append(source)
    return tuple(dict.fromkeys(names))


def _has_projection(graph: SpikingGraph, name: str) -> bool:
    node = graph[name]
    if node.fires:
        return False
    return node.projects or any(_has_projection(graph, source) for source in node.inputs)


def sources(graph: SpikingGraph, name: str) -> tuple[str, ...]:
    """The populations (or the input) that feed `name` through nodes without neurons."""
    names: list[str] = []
    for source in graph[name].inputs:
        own = graph[source].fires or not graph[source].inputs
        names += [source] if own else sources(graph, source)
    return tuple(dict.fromkeys(names))


def sent_of(graph: SpikingGraph, name: str, values: Tensor) -> Tensor:
    """What a population sends, as executions are compared: bool of spikes, else numbers."""
    return values.bool() if graph.edges[name] == SPIKE else values.float()


class ReferenceModel:
    """The PyTorch original that everything is compared with, in float32 and in float64."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = model.graph
        self.module = model.module()

    @cached_property
    def double(self) -> GraphModule:
        """The network in float64, batch norm unfolded."""
        return self.model.module().double()

    @cached_property
    def absolute(self) -> GraphModule:
        """The network with |deployed weights|, in float64: it sums |w·x|.

        Biases are left out where nothing but one population reads the current; in other currents
        they are part of what following projections weigh.
        """
        folded = deploy.lower(self.model).synapses
        plain: dict[str, Node] = {node.name: node.magnitude() for node in self.graph.nodes}
        for population, back in self.graph.feedbacks.items():
            if isinstance(back, Projection):
                own = plain[population]
                assert isinstance(own, Population)
                plain[population] = replace(own, feedback=replace(back, bias=False))
        for p in self.graph.projections:
            alone = self.graph.population_fed_by(p.name) is not None
            biased = not alone and folded[p.name].bias is not None
            plain[p.name] = replace(p, bias=biased, norm=None)
        module = GraphModule(self.graph.with_nodes(plain)).double()
        with torch.no_grad():
            for name, constants in deploy.lower(self.model).constants.items():
                _set_magnitude(module, self.graph[name], constants)
            for name in self._weighed:
                layer = module.get_submodule(name)
                for key, parameter in layer.named_parameters(recurse=False):
                    parameter.copy_(torch.from_numpy(np.abs(getattr(folded[name], key))))
        return module.eval()

    @property
    def _weighed(self) -> tuple[str, ...]:
        """Projections, feedbacks by weights, and a readout whose scores charge neurons."""
        readout = self.graph.readout
        own = () if readout.neuron is None else (readout.name,)
        backs = (b.name for b in self.graph.feedbacks.values() if isinstance(b, Projection))
        return (*(p.name for p in self.graph.projections), *backs, *own)

    @torch.no_grad()
    def score_limits(self, values: Mapping[str, Signal], least: float) -> Tensor | None:
        """How far class scores (B, classes) may lie apart, float64; None without neurons behind
        the head: there a single limit holds for all.

        values: as recorded. Two executions lie no further apart than both from the exact scores:
        twice the error of the neurons' own equations, for currents off by their sums' rounding. At
        least `least`.
        """
        equation, readout = deploy.lower(self.model).membrane, self.graph.readout
        if equation is None:
            return None
        (source,) = readout.inputs
        known = {name: _as_double(values[name]) for name in sources(self.graph, readout.name)}
        sizes = {name: Signal(s.tensor.abs(), s.static) for name, s in known.items()}
        current, summed = (
            module.head_scores(module.evaluate(given, [source])[source].tensor)
            for module, given in ((self.double, known), (self.absolute, sizes))
        )
        membranes = rounding.membranes_of(equation, current, ROUNDING * summed)
        error = rounding.scores_of(membranes, readout.over_time).error
        return torch.nan_to_num(2 * error, nan=least, posinf=torch.inf).clamp(min=least)

    @torch.no_grad()
    def record(self, images: Tensor) -> tuple[dict[str, Signal], Tensor]:
        """Values of the input and of every population (T, B, ...), and the logits."""
        start, readout = self.graph.input.name, self.graph.readout.name
        names = [start, *(node.name for node in self.graph.populations), readout]
        values = self.module.evaluate({start: self.module.as_signal(images)}, names)
        logits = values.pop(readout).tensor
        return values, logits

    @torch.no_grad()
    def margins(
        self, name: str, values: Mapping[str, Signal], samples: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Distance to threshold and allowance of population `name`, both (T, S, ...) float64.

        values: as recorded; samples: indices (S,) of the samples to look at. The membrane is
        recomputed from the recorded inputs, its resets teacher-forced by the recorded spikes. The
        allowance at a step is that of the largest Σ|w·x| up to it: the membrane remembers.
        Constant-pattern channels have no membrane, and an infinite distance.
        """
        known = {s: _select(values[s], samples) for s in sources(self.graph, name)}
        spikes = _select(values[name], samples).tensor
        current_of = self.graph[name].inputs[0]
        current = self.double.evaluate(known, [current_of])[current_of]
        sizes = {s: Signal(signal.tensor.abs(), signal.static) for s, signal in known.items()}
        summed = self.absolute.evaluate(sizes, [current_of])[current_of]
        charged = spikes[:, :, : self.graph.shapes[current_of][0]]
        x, sizes_of = (_over_time(signal, len(spikes)) for signal in (current, summed))
        if self.graph[name].feedback is not None:  # of the recorded spikes of the step before
            before = step_before(charged)
            x = x + _fed_back(self.double, name, before)
            sizes_of = sizes_of + _fed_back(self.absolute, name, before.abs())
        distance, allowance = margins_of(
            deploy.lower(self.model).equations[name], x, sizes_of, charged
        )
        constant_patterns = torch.full_like(spikes[:, :, charged.shape[2] :], torch.inf)
        return (
            torch.cat([distance, constant_patterns], dim=2),
            torch.cat([allowance, torch.zeros_like(constant_patterns)], dim=2),
        )


def _set_magnitude(module: GraphModule, node: Node, constants: ChannelConstants) -> None:
    """Give a node that rescales its channels the absolute values of its constants."""
    scale = torch.from_numpy(np.abs(constants.scale))
    if constants.shift is None:
        for name in node.row_tensors:
            module.get_buffer(name).copy_(scale)
        return
    norm = module.get_submodule(node.name)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.copy_(scale)
    norm.bias.copy_(torch.from_numpy(np.abs(constants.shift)))


def _fed_back(module: GraphModule, name: str, spikes: Tensor) -> Tensor:
    """What spikes (T, S, ...) of the step before add to the current of population `name`."""
    return split_time(module.fed_back(name, spikes.flatten(0, 1)), spikes)


def _select(signal: Signal, samples: Tensor) -> Signal:
    axis = 0 if signal.static else 1
    return Signal(signal.tensor.index_select(axis, samples).double(), signal.static)


def _as_double(signal: Signal) -> Signal:
    return Signal(signal.tensor.double(), signal.static)


def _over_time(signal: Signal, steps: int) -> Tensor:
    if not signal.static:
        return signal.tensor
    return signal.tensor.expand(steps, *signal.tensor.shape)


@dispatch.operation_table(Equation)
def margins_of(
    equation: Equation, current: Tensor, summed: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance from where what is sent changes, and the allowance, both (T, ...) float64.

    summed: Σ|w·x| of the current. What was sent settles the state.
    """
    raise margins_of.unknown(equation)


@margins_of.on(NeuronEquation)
def _leaky(
    equation: NeuronEquation, current: Tensor, summed: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """The charged membrane minus the threshold. A leaky membrane never amplifies a difference."""
    threshold, late = equation.v_threshold, equation.charge == "leak_multiply_late"
    charge = CHARGE["leak_multiply" if late else equation.charge]
    v = torch.full_like(current[0], equation.rest)
    distances = []
    for t, spike in enumerate(sent):
        v = charge(v, current[t], equation.constant, equation.rest, threshold)
        if late and t:  # the spike before, as given, not as v in float64 tells it
            v = reset_soft(v, sent[t - 1], threshold)
        distances.append(v - threshold)
        if equation.v_reset is None:
            v = reset_soft(v, spike, equation.target)
        else:
            v = reset_hard(v, spike, equation.target)
    allowance = ROUNDING * summed.cummax(dim=0).values
    return torch.stack(distances), allowance.clamp(min=LEAST_ALLOWANCE * equation.v_threshold)


@margins_of.on(FixedEquation)
def _fixed(
    equation: FixedEquation, current: Tensor, summed: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """From where integers decide, between the threshold and the next one: never 0, and nothing is
    allowed.
    """
    shape = (-1, *[1] * (current.dim() - 3))
    threshold, subtract = (
        torch.from_numpy(np.atleast_1d(n)).double().reshape(shape)
        for n in (equation.threshold, equation.subtract)
    )
    between = threshold + (0.5 if equation.fire == "gt" else -0.5)
    u = torch.zeros_like(current[0])
    distances = []
    for t, spike in enumerate(sent):
        h = torch.floor(u * equation.multiplier / 2.0**equation.shift) + current[t]
        if equation.reset == "late" and t:
            h = h - sent[t - 1] * subtract
        h = h.clamp(equation.lowest, equation.highest)
        distances.append(h - between)
        u = h * (1 - spike) if equation.reset == "hard" else h
        u = h - spike * subtract if equation.reset == "soft" else u
    return torch.stack(distances), torch.zeros_like(current)


@margins_of.on(ParallelEquation)
def _parallel(
    equation: ParallelEquation, current: Tensor, summed: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """The potential W x + b: a sum of inputs, each off by the rounding of its own sum."""
    weight, bias = (torch.from_numpy(a).double() for a in (equation.weight, equation.bias))
    bias = bias.reshape(-1, *[1] * (current.dim() - 1))
    distance = torch.tensordot(weight, current, dims=1) + bias
    size = torch.tensordot(weight.abs(), summed + current.abs(), dims=1) + bias.abs()
    return distance, (ROUNDING * size).clamp(min=LEAST_ALLOWANCE)


@margins_of.on(DynamicsEquation)
def _dynamics(
    equation: DynamicsEquation, current: Tensor, summed: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """By the error analysis of the family's own equations; thresholds are around 1."""
    distance, error = rounding.teacher_forced(equation, current, ROUNDING * summed, sent)
    return distance, error.clamp(min=LEAST_ALLOWANCE)
