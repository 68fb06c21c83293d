"""Trainable masks: one real parameter alpha per weight and per neuron.

While they are searched for, a mask multiplies by sigmoid(beta · alpha) with a rising temperature
beta; afterwards it keeps what has alpha > 0 (Shi et al., ICLR 2024; published code,
models/submodules/sparse.py and temp_scheduler.py).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from soul_deploy.base import Array, brief, errors
from soul_deploy.ir import Node, Population, SpikingGraph
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, HardGate
from soul_deploy.prune.unstructured.loss import Coefficients

Layers = Sequence[str | int] | None
"""Names, or indexes from 0 in forward order; None: what is masked by default."""


@brief
@dataclass(eq=False)
class SoftMask:
    """alpha, in the shape of what it masks; `cost`: what each kept entry costs (e_w or e_n)."""

    alpha: nn.Parameter
    cost: float
    temperature: float = 1.0

    def __call__(self) -> Tensor:
        """The soft mask's multiplier, sigmoid(temperature · alpha)."""
        return torch.sigmoid(self.temperature * self.alpha)

    def keep(self) -> Tensor:
        """The hard mask: bool, alpha > 0."""
        return self.alpha.detach() > 0


@brief
@dataclass(frozen=True)
class Masks:
    """The masks of a search: projection -> mask of its weight, population -> of its neurons."""

    weights: Mapping[str, SoftMask]
    neurons: Mapping[str, SoftMask]

    def __iter__(self) -> Iterator[SoftMask]:
        yield from self.named().values()

    def named(self) -> dict[str, SoftMask]:
        """All masks, by projection and population."""
        return {**self.weights, **self.neurons}

    def parameters(self) -> list[nn.Parameter]:
        """All alphas."""
        return [mask.alpha for mask in self]

    def penalty(self) -> Tensor:
        """Σ e · sigmoid(beta · alpha) over all masks: SynOps per step at unit firing rate."""
        return torch.stack([mask.cost * mask().sum() for mask in self]).sum()

    def heat(self, weights: float, neurons: float) -> None:
        """Set the temperatures."""
        for masks, temperature in ((self.weights, weights), (self.neurons, neurons)):
            for mask in masks.values():
                mask.temperature = temperature

    def temperatures(self) -> tuple[float, float]:
        """Of weights and of neurons; 0 where there is no mask."""
        kinds = self.weights.values(), self.neurons.values()
        weights, neurons = (next((mask.temperature for mask in kind), 0.0) for kind in kinds)
        return weights, neurons

    def attach(self, module: GraphModule) -> None:
        """Let `module` multiply by the soft masks."""
        module.weight_gates.update(self.weights)
        module.neuron_gates.update(self.neurons)

    def attach_hard(self, module: GraphModule) -> None:
        """Let `module` multiply by 0 and 1, fixed as they are now."""
        pairs = (module.weight_gates, self.weights), (module.neuron_gates, self.neurons)
        for gates, masks in pairs:
            hard = {n: HardGate(mask.keep().to(mask.alpha.dtype)) for n, mask in masks.items()}
            gates.update(hard)

    def alphas(self) -> dict[str, Array]:
        """Copies of all alphas, by projection and population."""
        return {name: m.alpha.detach().cpu().numpy().copy() for name, m in self.named().items()}


@brief
@dataclass(frozen=True)
class MaskStart:
    """How alphas begin: normal with these means and standard deviations.

    known: alphas of an earlier search, which are taken as they are.
    """

    weight_mean: float = 0.0
    neuron_mean: float = 0.0
    weight_std: float = 0.0
    neuron_std: float = 0.0
    seed: int = 2025
    known: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        means = (self.weight_mean, self.neuron_mean)
        if not all(math.isfinite(mean) for mean in means):
            raise errors.UsageError(f"mask_init_factor: the means {means} must be finite")
        spreads = (self.weight_std, self.neuron_std)
        if not all(math.isfinite(spread) and spread >= 0 for spread in spreads):
            raise errors.UsageError(
                f"mask_init_factor: the standard deviations {spreads} (the last two numbers) must "
                "be finite and not negative"
            )


def make_masks(
    module: GraphModule,
    weights: Sequence[str],
    neurons: Sequence[str],
    costs: Coefficients,
    start: MaskStart,
) -> Masks:
    """Masks for the weights of the projections `weights` and the populations `neurons`.

    Raises UsageError for known alphas of another shape or of a layer that is not chosen.
    """
    require_covered(start.known, (*weights, *neurons))
    random = torch.Generator().manual_seed(start.seed)
    device = next(module.parameters()).device
    graph = module.graph

    def mask(name: str, shape: tuple[int, ...], mean: float, std: float, cost: float) -> SoftMask:
        alpha = torch.randn(shape, generator=random) * std + mean
        if name in start.known:
            alpha = torch.from_numpy(np.array(start.known[name], np.float32))
        if alpha.shape != shape:
            raise errors.UsageError(f"mask of {name}: shape {tuple(alpha.shape)}, needs {shape}")
        return SoftMask(nn.Parameter(alpha.to(device)), cost)

    weight, neuron = (start.weight_mean, start.weight_std), (start.neuron_mean, start.neuron_std)
    shapes = {node.name: node.weight_shape for node in graph.projections if node.name in weights}
    masked = [node.name for node in graph.populations if node.name in neurons]
    return Masks(
        {name: mask(name, shape, *weight, costs.weights[name]) for name, shape in shapes.items()},
        {name: mask(name, graph.shapes[name], *neuron, costs.neurons[name]) for name in masked},
    )


def require_covered(known: Iterable[str], chosen: Iterable[str]) -> None:
    """Raise UsageError if a layer that was masked before is not among those `chosen` now."""
    unused = sorted(set(known) - set(chosen))
    if unused:
        raise errors.UsageError(
            f"the model was masked before in {', '.join(unused)}, which is not among the layers "
            "chosen now; choose these layers too, or start from a dense or compact model"
        )


def chosen_neurons(graph: SpikingGraph, layers: Layers) -> tuple[str, ...]:
    """Populations by name or index, in forward order.

    None: those behind a convolution, but the first and the output. Raises UsageError.
    """
    nodes, able = graph.populations, maskable_neurons(graph)
    if layers is None:
        maps = {name for name, shape in graph.shapes.items() if len(shape) == 3}
        return tuple(node.name for node in nodes[1:] if node.name in maps.intersection(able))
    names = chosen("neuron_prune_layers", layers, nodes)
    refused = [name for name in names if name not in able]
    if refused:
        valid = [str(i) for i, node in enumerate(nodes) if node.name in able]
        raise errors.UsageError(
            f"neuron_prune_layers: {', '.join(refused)} cannot be masked, its spikes are the "
            f"network's output; valid: {', '.join(valid)}"
        )
    return names


def chosen(option: str, layers: Layers, nodes: Iterable[Node]) -> tuple[str, ...]:
    """Names of layers by name or index, in forward order; None: all. Raises UsageError."""
    names = [node.name for node in nodes]
    if layers is None:
        return tuple(names)
    by_word: dict[str | int, str] = {**dict(enumerate(names)), **{n: n for n in names}}
    for layer in layers:
        if layer not in by_word:
            valid = [f"{index} ({name})" for index, name in enumerate(names)]
            raise errors.UnknownNameError(f"layer in {option}", str(layer), valid)
    wanted = {by_word[layer] for layer in layers}
    return tuple(name for name in names if name in wanted)


def maskable_neurons(graph: SpikingGraph) -> tuple[str, ...]:
    """Populations whose neurons can be masked: fed by synapses, and not the network's output."""
    populations = graph.populations
    fed = [node for node in populations if graph[graph.masked_projection(node.name)].projects]
    return tuple(node.name for node in fed if not _is_output(graph, node))


def _is_output(graph: SpikingGraph, node: Population) -> bool:
    """Whether the readout reads it, through pooling and flattening.

    A branch that a merge takes in is not the output (Shi et al. mask the neurons of every block).
    """
    pending: list[Node] = [graph[name] for name in graph.consumers[node.name]]
    while pending:
        user = pending.pop()
        if user is graph.readout:
            return True
        if not user.projects and user.arity is not None:
            pending.extend(graph[name] for name in graph.consumers[user.name])
    return False


@brief
@dataclass(frozen=True)
class LayerSurvivors:
    """Kept and all weights of a projection, kept and all neurons of the population behind it."""

    projection: str
    weights: tuple[int, int]
    population: str | None
    neurons: tuple[int, int] | None


def survivors(model: Model) -> tuple[LayerSurvivors, ...]:
    """What is not masked of each layer."""
    rows = []
    for node in model.graph.projections:
        weight, readers = model.state[f"{node.name}.weight"], model.graph.charged_by(node.name)
        behind = next((name for name in readers if name in model.neuron_masks), None)
        keep = None if behind is None else model.neuron_masks[behind]
        neurons = None if keep is None else (int(keep.sum()), int(keep.size))
        kept = (int((weight != 0).sum()), int(weight.size))
        rows.append(LayerSurvivors(node.name, kept, behind, neurons))
    return tuple(rows)


@dataclass(frozen=True)
class Temperature:
    """Exponential temperature: (first, last) of weights and of neurons, between two epochs."""

    weights: tuple[float, float]
    neurons: tuple[float, float]
    span: tuple[float, float]

    def __post_init__(self) -> None:
        ends = (*self.weights, *self.neurons)
        if not all(math.isfinite(end) and end > 0 for end in ends):
            raise errors.UsageError(f"temp_scheduler: temperatures must be above 0, got {ends}")
        first, last = self.span
        if not 0 <= first < last < math.inf:
            told = f"T0 = {first:g} and Tmax = {last:g} epochs"
            raise errors.UsageError(f"temp_scheduler: {told}; 0 <= T0 < Tmax is needed")

    @staticmethod
    def of(numbers: Sequence[float], epochs: int) -> "Temperature":
        """From 2, 4 or 6 numbers; T0 and Tmax are 0 and `epochs` if not given.

        init final | init final T0 Tmax | w_init n_init w_final n_final T0 Tmax. Raises UsageError.
        """
        if len(numbers) == 6:
            w_first, n_first, w_last, n_last, start, end = numbers
            return Temperature((w_first, w_last), (n_first, n_last), (start, end))
        if len(numbers) not in (2, 4):
            raise errors.UsageError(
                f"temp_scheduler takes 2 numbers (init final), 4 (init final T0 Tmax) or 6 "
                f"(w_init n_init w_final n_final T0 Tmax), got {len(numbers)}"
            )
        first, last = numbers[:2]
        start, end = numbers[2:] if len(numbers) == 4 else (0.0, float(epochs))
        return Temperature((first, last), (first, last), (start, end))

    def at(self, epoch: float) -> tuple[float, float]:
        """Temperatures of weights and neurons after `epoch` epochs (fractions are steps)."""
        start, end = self.span
        share = min(1.0, max(0.0, (epoch - start) / (end - start)))
        (w_first, w_last), (n_first, n_last) = self.weights, self.neurons
        return w_first * (w_last / w_first) ** share, n_first * (n_last / n_first) ** share
