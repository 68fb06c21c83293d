"""The reference: the PyTorch original that every execution is compared with, and its margins.

A spike may differ only where the reference's membrane, recomputed in float64, is closer to the
threshold than the rounding of a float32 sum can move it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import dispatch
from soul_deploy.equivalence.rounding import teacher_forced
from soul_deploy.ir import SPIKE, Node, SpikingGraph
from soul_deploy.lowering import deploy, fan_out
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, Signal
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.equations import CHARGE, Equation, NeuronEquation, reset_hard, reset_soft

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
        plain: dict[str, Node] = {}
        for p in self.graph.projections:
            alone = fan_out.population_behind(self.graph, p.name) is not None
            biased = not alone and folded[p.name].bias is not None
            plain[p.name] = replace(p, bias=biased, norm=None)
        module = GraphModule(self.graph.with_nodes(plain)).double()
        with torch.no_grad():
            for name in plain:
                for key, parameter in module.get_submodule(name).named_parameters():
                    parameter.copy_(torch.from_numpy(np.abs(getattr(folded[name], key))))
        return module.eval()

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
        distance, allowance = margins_of(
            deploy.lower(self.model).equations[name], x, sizes_of, charged
        )
        constant_patterns = torch.full_like(spikes[:, :, charged.shape[2] :], torch.inf)
        return (
            torch.cat([distance, constant_patterns], dim=2),
            torch.cat([allowance, torch.zeros_like(constant_patterns)], dim=2),
        )


def _select(signal: Signal, samples: Tensor) -> Signal:
    axis = 0 if signal.static else 1
    return Signal(signal.tensor.index_select(axis, samples).double(), signal.static)


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
    v = torch.full_like(current[0], equation.rest)
    distances = []
    for t, spike in enumerate(sent):
        v = CHARGE[equation.charge](v, current[t], equation.constant, equation.rest)
        distances.append(v - equation.v_threshold)
        if equation.v_reset is None:
            v = reset_soft(v, spike, equation.target)
        else:
            v = reset_hard(v, spike, equation.target)
    allowance = ROUNDING * summed.cummax(dim=0).values
    return torch.stack(distances), allowance.clamp(min=LEAST_ALLOWANCE * equation.v_threshold)


@margins_of.on(DynamicsEquation)
def _dynamics(
    equation: DynamicsEquation, current: Tensor, summed: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """By the error analysis of the family's own equations; thresholds are around 1."""
    distance, error = teacher_forced(equation, current, ROUNDING * summed, sent)
    return distance, error.clamp(min=LEAST_ALLOWANCE)
