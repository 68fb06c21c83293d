"""The reference network of the benchmark: 6Conv2FC with random weights, firing at a given rate.

Anyone can repeat a timing without training: density of the weights, firing rate and T are what a
runtime's speed depends on. With `connectivity`, it is the paper's pruned network instead
(Shi et al., ICLR 2024): half of the neurons of convolutions 1 to 5 live, and as many weights as
give that share of the dense network's 1,614,720,000 synapses.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from soul_deploy.analysis.connectivity import dense_synapses, measure_connectivity
from soul_deploy.base import Array, errors, files
from soul_deploy.ir import NeuronSpec, Population, Projection, Shape, SpikingGraph
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, arrays_of
from soul_deploy.nn.graph_module import GraphModule, HardGate, Signal
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.zoo.registry import NetworkOptions, create

IMAGE: Shape = (3, 32, 32)
HALVED = range(1, 6)  # convolutions whose populations lose half of their neurons
BISECTIONS = 24


@dataclass(frozen=True)
class ReferenceNetwork:
    """The sizes, densities and rates of a reference network.

    density       share of nonzero weights, or None with `connectivity`
    connectivity  share of the dense synapses that are left, or None
    rate          share of (live) neurons that fire per step, in every layer
    width, hidden, image   256, 2048 and 3×32×32 in the paper; smaller in tests
    """

    density: float | None = 1.0
    connectivity: float | None = None
    rate: float = 0.08
    time_steps: int = 4
    seed: int = 2025
    width: int = 256
    hidden: int = 2048
    image: Shape = IMAGE

    def __post_init__(self) -> None:
        if (self.density is None) == (self.connectivity is None):
            raise errors.UsageError("give either density or connectivity, not both and not neither")
        for name in ("density", "connectivity", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise errors.UsageError(f"{name} {value:g} must be above 0 and at most 1")


def reference_model(wanted: ReferenceNetwork) -> Model:
    """The network: random weights and masks from the seed, then every layer set to its rate.

    Convolutions get batch norm statistics from their own currents and one bias for all channels;
    the linear layers, which have neither, a factor on their weights.
    """
    options = NetworkOptions(
        wanted.image, 10, NeuronSpec(), wanted.time_steps, hidden=wanted.hidden, width=wanted.width
    )
    _, graph = create("cifar10net", options)
    rng = np.random.default_rng(wanted.seed)
    masks = _neuron_masks(graph, rng) if wanted.connectivity is not None else {}
    module = GraphModule(graph).eval()
    _draw_weights(module, masks, wanted, rng)
    for name, keep in masks.items():
        module.neuron_gates[name] = HardGate(torch.from_numpy(keep.astype(np.float32)))
    image = torch.from_numpy(rng.standard_normal((1, *wanted.image)).astype(np.float32))
    with torch.no_grad():
        set_rates(module, module.as_signal(image), wanted.rate)
    provenance = {"reference": "6Conv2FC", **asdict(wanted)}
    info = ModelInfo("masked" if masks else "dense", None, (), provenance)
    return replace(Model(graph, arrays_of(module.state_dict()), {}, info), neuron_masks=masks)


def write_reference(folder: Path, images: int, wanted: ReferenceNetwork) -> tuple[Path, Path]:
    """Write the model file and `images` random images (N, C, H, W) of the kind it was set on."""
    model, inputs = folder / "reference.safetensors", folder / "reference.npy"
    save(reference_model(wanted), model)
    rng = np.random.default_rng(wanted.seed + 1)
    drawn = rng.standard_normal((images, *wanted.image)).astype(np.float32)
    files.write_atomically(inputs, lambda temporary: _save_array(temporary, drawn))
    return model, inputs


def _save_array(path: Path, array: Array) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def _neuron_masks(graph: SpikingGraph, rng: np.random.Generator) -> dict[str, Array]:
    """Half of the neurons of each chosen population, position by position."""
    masks = {}
    for index in HALVED:
        name = graph.populations[index].name
        keep = np.zeros(int(np.prod(graph.shapes[name])), bool)
        keep[rng.permutation(len(keep))[: len(keep) // 2]] = True
        masks[name] = keep.reshape(graph.shapes[name])
    return masks


def _draw_weights(
    module: GraphModule,
    masks: Mapping[str, Array],
    wanted: ReferenceNetwork,
    rng: np.random.Generator,
) -> None:
    """Normal weights, of which those with the lowest of another random number are kept."""
    ranks = {}
    for node in module.graph.projections:
        weight = module.get_submodule(node.name).get_parameter("weight")
        weight.data.copy_(torch.from_numpy(rng.standard_normal(weight.shape, np.float32)))
        ranks[node.name] = rng.random(weight.shape, np.float32)
    density = wanted.density
    if density is None:
        assert wanted.connectivity is not None
        density = _density_for(module.graph, ranks, masks, wanted.connectivity)
    for name, rank in ranks.items():
        weight = module.get_submodule(name).get_parameter("weight")
        weight.data.mul_(torch.from_numpy((rank < density).astype(np.float32)))


def _density_for(
    graph: SpikingGraph, ranks: Mapping[str, Array], masks: Mapping[str, Array], connectivity: float
) -> float:
    """The density at which the exact connectivity is as wanted, within 0.5 %."""
    dense = dense_synapses(graph)
    density = connectivity * 4  # about a quarter of the synapses join two live neurons
    for _ in range(8):
        kept = {name: (rank < density).astype(np.float32) for name, rank in ranks.items()}
        found = measure_connectivity(graph, kept, masks, dense).share
        if abs(found - connectivity) <= 0.005 * connectivity:
            return density
        density = min(1.0, density * connectivity / found)
    text = f"connectivity {connectivity:g} cannot be reached with half of the neurons"
    raise errors.UsageError(text)


def set_rates(module: GraphModule, image: Signal, rate: float) -> None:
    """Set every layer to its rate, in order, on what the layers before really fire.

    Batch norm gets the statistics of its own input. Then the current of each population gets one
    bias for all channels (behind a batch norm) or one factor on the weights (without).
    """
    graph = module.graph
    values = {graph.input.name: image}
    for node in graph.nodes:
        if isinstance(node, Projection) and node.norm is not None:
            values |= module.evaluate(values, node.inputs)
            _set_norm(module, node, values[node.inputs[0]])
        elif isinstance(node, Population):
            projection = driving_projection(graph, node)
            current = module.evaluate(values, node.inputs)[node.inputs[0]]
            _set_drive(module, projection, node, current, rate)
            values |= module.evaluate(values, [node.name])


def driving_projection(graph: SpikingGraph, population: Population) -> Projection:
    """The projection whose current, of all that the population receives, is computed last.

    Behind a sum of currents this is a block's own one: the others feed more than this population.
    """
    (name,) = population.inputs
    order = [node.name for node in graph.nodes]
    while not isinstance(node := graph[name], Projection):
        name = max(node.inputs, key=order.index)
    return node


def _set_norm(module: GraphModule, projection: Projection, source: Signal) -> None:
    """Batch norm statistics of the layer's own output, per channel."""
    assert projection.norm is not None
    layer, norm = module.get_submodule(projection.name), module.get_submodule(projection.norm.name)
    images = source.tensor if source.static else source.tensor.flatten(0, 1)
    output = layer(images).transpose(0, 1).flatten(1)
    norm.get_buffer("running_mean").copy_(output.mean(1))
    norm.get_buffer("running_var").copy_(output.var(1).clamp(min=1e-3))


def _set_drive(
    module: GraphModule,
    projection: Projection,
    population: Population,
    current: Signal,
    rate: float,
) -> None:
    """One bias (behind batch norm) or one factor (without) at which the layer fires at `rate`."""
    neuron = module.get_submodule(population.name)
    assert isinstance(neuron, SpikingNeuron)
    multiplier = module.neuron_gates.get(population.name)
    live = torch.ones(()) if multiplier is None else multiplier()
    biased = projection.norm is not None
    low, high = (-8.0, 8.0) if biased else (0.0, 1024.0 / float(current.tensor.std() + 1e-9))

    def fired(drive: float) -> float:
        x = current.tensor + drive if biased else current.tensor * drive
        spikes = neuron.simulate(x, static=current.static) * live
        return float(spikes.mean() / live.expand(spikes.shape[2:]).mean())

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if fired(middle) > rate else (middle, high)
    if projection.norm is not None:
        module.get_submodule(projection.norm.name).get_parameter("bias").add_(high)
    else:
        module.get_submodule(projection.name).get_parameter("weight").mul_(high)
