"""Random residual networks for property tests: drawn as plain data, built as graphs.

A stem, then blocks of two or three branches that meet again: spikes in SEW style (add, AND, IAND),
currents in MS style, with strides, shortcut convolutions and channel counts that change. Dyadic
ones have weights, biases and inputs on binary grids, so that every sum is exact in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from chains import INPUT_GRID, TARGET_RATE, WEIGHT_GRID, neurons
from hypothesis import strategies as st
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule, Signal
from soul_deploy.nn.neuron import SpikingNeuron

SHORTCUT_GRID = 2.0**-2
"""Of convolutions behind one another without neurons between: their grids multiply."""


@dataclass(frozen=True)
class BlockSpec:
    """One residual block.

    branches  how many convolved branches meet the shortcut (1 or 2)
    stride    of the first convolution of each branch, and of the shortcut
    channels  after the block; the shortcut is a convolution where these or the size change
    kernel    of the branches
    """

    branches: int
    stride: int
    channels: int
    kernel: int
    neuron: ir.NeuronSpec


@dataclass(frozen=True)
class ResidualSpec:
    """style "sew" or "ms"; `connect` is of SEW. `pool`: max pooling behind the stem.

    scattered  the last branch of each block has a channel less, and is placed in the wide stream
    ending  "direct": readout from maps, "linear": flatten and a linear layer, "average": an average
            pooling before that linear layer
    """

    style: str
    connect: ir.MergeFunction
    input_shape: ir.Shape
    time_steps: int
    batch: int
    stem_channels: int
    pool: bool
    scattered: bool
    blocks: tuple[BlockSpec, ...]
    ending: str
    classes: int
    norm: bool
    bias: bool
    neuron: ir.NeuronSpec
    dyadic: bool
    seed: int


@st.composite
def residuals(draw: st.DrawFn, *, dyadic: bool = False) -> ResidualSpec:
    """Any small residual network; dyadic ones have no batch norm."""
    style = draw(st.sampled_from(("sew", "ms")))
    connect: ir.MergeFunction = draw(st.sampled_from(("add", "add", "and", "iand")))
    blocks = tuple(
        BlockSpec(
            1 if connect == "iand" and style == "sew" else draw(st.integers(1, 2)),
            draw(st.integers(1, 2)),
            draw(st.sampled_from((2, 3, 4))),
            draw(st.sampled_from((1, 3))),
            draw(neurons()),
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    side = st.integers(5, 9)
    return ResidualSpec(
        style,
        connect,
        (draw(st.integers(1, 3)), draw(side), draw(side)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 3)),
        draw(st.integers(2, 4)),
        draw(st.booleans()),
        draw(st.booleans()),
        blocks,
        draw(st.sampled_from(("direct", "linear", "average"))),
        draw(st.integers(2, 4)),
        not dyadic and draw(st.booleans()),
        draw(st.booleans()),
        draw(neurons()),
        dyadic,
        draw(st.integers(0, 2**20)),
    )


class _Drawing:
    """The nodes of a graph being put together; shapes follow from them."""

    def __init__(self, spec: ResidualSpec) -> None:
        self.spec = spec
        self.nodes: list[ir.Node] = [ir.Input("input", (), spec.input_shape)]
        self.shapes: dict[str, ir.Shape] = {"input": spec.input_shape}

    def add(self, node: ir.Node) -> str:
        self.nodes.append(node)
        self.shapes[node.name] = node.output_shape([self.shapes[name] for name in node.inputs])
        return node.name

    def convolve(self, name: str, source: str, channels: int, kernel: int, stride: int) -> str:
        norm = ir.BatchNorm(f"{name}_norm") if self.spec.norm else None
        sides = (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2)
        inputs = self.shapes[source][0]
        return self.add(
            ir.Convolution(name, (source,), self.spec.bias, norm, inputs, channels, *sides)
        )

    def fire(self, name: str, source: str, neuron: ir.NeuronSpec) -> str:
        return self.add(ir.Population(name, (source,), neuron))


def graph_of(spec: ResidualSpec) -> ir.SpikingGraph:
    """The graph of a drawn network."""
    d = _Drawing(spec)
    stream = d.convolve("stem", "input", spec.stem_channels, 3, 1)
    if spec.style == "sew":
        stream = d.fire("stem_sn", stream, spec.neuron)
    if spec.pool:
        stream = d.add(ir.MaxPool("pool", (stream,), (3, 3), (2, 2), (1, 1)))
    for number, block in enumerate(spec.blocks):
        make = _sew_block if spec.style == "sew" else _ms_block
        stream = make(d, f"b{number}", stream, block)
    if spec.style == "ms":
        stream = d.fire("last_sn", stream, spec.neuron)
    if spec.ending != "direct":
        if spec.ending == "average" and min(d.shapes[stream][1:]) >= 2:
            stream = d.add(ir.AvgPool("mean", (stream,), (2, 2), (2, 2)))
        stream = d.add(ir.Flatten("flat", (stream,)))
        size = d.shapes[stream][0]
        stream = d.add(ir.Linear("fc", (stream,), spec.bias, None, size, 5))
        stream = d.fire("fc_sn", stream, spec.neuron)
    d.add(ir.Readout("head", (stream,), spec.classes))
    return ir.SpikingGraph(tuple(d.nodes), spec.time_steps)


def _sew_block(d: _Drawing, name: str, stream: str, block: BlockSpec) -> str:
    """Spikes meet: every branch ends in its own neurons."""
    met = []
    for k in range(block.branches):
        branch = f"{name}.{k}"
        narrow = d.spec.scattered and k == block.branches - 1
        width = block.channels - 1 if narrow else block.channels
        out = d.convolve(f"{branch}.conv1", stream, width, block.kernel, block.stride)
        out = d.fire(f"{branch}.sn1", out, block.neuron)
        if k == 0:
            out = d.convolve(f"{branch}.conv2", out, width, 3, 1)
            out = d.fire(f"{branch}.sn2", out, block.neuron)
        met.append(_widened(d, branch, out, block.channels))
    identity = stream
    if d.shapes[stream] != d.shapes[met[0]]:
        identity = d.convolve(f"{name}.down", stream, block.channels, 1, block.stride)
        identity = d.fire(f"{name}.down_sn", identity, block.neuron)
    return d.add(ir.Merge(f"{name}.merge", (identity, *met), d.spec.connect))


def _ms_block(d: _Drawing, name: str, stream: str, block: BlockSpec) -> str:
    """Currents meet, before the next block's neurons."""
    met = []
    for k in range(block.branches):
        branch = f"{name}.{k}"
        narrow = d.spec.scattered and k == block.branches - 1
        width = block.channels - 1 if narrow else block.channels
        out = d.fire(f"{branch}.sn1", stream, block.neuron)
        out = d.convolve(f"{branch}.conv1", out, width, block.kernel, block.stride)
        met.append(_widened(d, branch, out, block.channels))
    identity = stream
    if d.shapes[stream] != d.shapes[met[0]]:
        identity = d.convolve(f"{name}.short", stream, block.channels, 1, block.stride)
    return d.add(ir.Merge(f"{name}.merge", (*met, identity), "add"))


def _widened(d: _Drawing, branch: str, out: str, channels: int) -> str:
    """A narrow branch at its places in a wide stream: one channel is left out."""
    if d.shapes[out][0] == channels:
        return out
    places = tuple(c for c in range(channels) if c != d.spec.seed % channels)
    return d.add(ir.Scatter(f"{branch}.wide", (out,), channels, places))


def residual_images(spec: ResidualSpec) -> Tensor:
    """(batch, C, H, W) float32 in [-1, 1], a fifth of them exactly 0; on a grid if dyadic."""
    rng = np.random.default_rng(spec.seed + 1)
    shape = (spec.batch, *spec.input_shape)
    x = rng.uniform(-1, 1, shape) * (rng.random(shape) > 0.2)
    x = np.round(x / INPUT_GRID) * INPUT_GRID if spec.dyadic else x
    return torch.from_numpy(x.astype(np.float32))


def residual_model(spec: ResidualSpec) -> Model:
    """The network with random weights, scaled so that its neurons fire."""
    module = GraphModule(graph_of(spec)).eval()
    randomise(module, np.random.default_rng(spec.seed), dyadic=spec.dyadic)
    make_it_fire(module, residual_images(spec), dyadic=spec.dyadic)
    return from_module(module, ModelInfo(provenance={"data": "random"}))


@torch.no_grad()
def randomise(module: GraphModule, rng: np.random.Generator, *, dyadic: bool) -> None:
    """Random weights and statistics; on the weight grid if dyadic."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        shape = tuple(tensor.shape)
        values = rng.normal(0.1, 0.6, shape) / max(1.0, float(np.prod(shape[1:])) ** 0.5)
        if name.endswith(("running_var", "norm.weight")):
            values = rng.uniform(0.5, 1.5, shape)
        elif dyadic and not name.endswith(".w"):
            grid = SHORTCUT_GRID if ".short." in name else WEIGHT_GRID
            values = np.round(values / grid) * grid
        tensor.copy_(torch.from_numpy(np.asarray(values)))


@torch.no_grad()
def make_it_fire(module: GraphModule, x: Tensor, *, dyadic: bool) -> None:
    """Scale what feeds each population by powers of two, so that about TARGET_RATE fire."""
    scales = [2.0**k for k in range(-3, 4)]
    scales += [-scale for scale in scales]
    known = {module.graph.input.name: module.as_signal(x)}
    for node in module.graph.populations:
        source = node.inputs[0]
        signal = module.evaluate(known, [source])[source]
        neuron = module.get_submodule(node.name)
        assert isinstance(neuron, SpikingNeuron)
        projection = module.graph[source]
        if isinstance(projection, ir.Projection):

            def miss(scale: float, n: SpikingNeuron = neuron, t: Tensor = signal.tensor,
                     static: bool = signal.static) -> float:  # fmt: skip
                rate = n.simulate(t * scale, static=static).mean().item()
                return abs(rate - TARGET_RATE) + (rate == 0)

            best = min(scales, key=miss)
            owner = projection.name if projection.norm is None else projection.norm.name
            for parameter in module.get_submodule(owner).parameters():
                parameter.mul_(best)
                if dyadic:
                    parameter.copy_((parameter / WEIGHT_GRID).round() * WEIGHT_GRID)
        known |= module.evaluate(known, [node.name])


def masked(model: Model, seed: int, *, neurons: bool) -> Model:
    """Random channel masks of populations and of currents that meet; neuron masks if `neurons`.

    Of currents, those of streams as wide lose the same channels.
    """
    rng = np.random.default_rng(seed)
    graph = model.graph
    channels: dict[str, Array] = {}
    for name in (*_alone(graph), *_meeting(graph)):
        count = graph.shapes[name][0]
        draw = np.random.default_rng(seed + count) if name in _meeting(graph) else rng
        keep = draw.random(count) < 0.7
        keep[draw.integers(len(keep))] = True
        channels[name] = keep
    found = replace(model, channel_masks=channels)
    if not neurons:
        return found
    shapes = {node.name: graph.shapes[node.name] for node in graph.populations}
    masks = {name: rng.random(shape) < 0.7 for name, shape in shapes.items()}
    return replace(found, neuron_masks=masks)


def _alone(graph: ir.SpikingGraph) -> Iterator[str]:
    for node in graph.populations:
        source = node.inputs[0]
        if isinstance(graph[source], ir.Projection) and len(graph.consumers[source]) == 1:
            yield node.name


def _meeting(graph: ir.SpikingGraph) -> tuple[str, ...]:
    """Projections whose currents meet others before any neuron."""
    return tuple(
        p.name
        for p in graph.projections
        if any(graph[n].op == "merge" for n in graph.consumers[p.name])
    )


@torch.no_grad()
def calibrated(graph: ir.SpikingGraph, x: Tensor, seed: int, rate: float = 0.3) -> Model:
    """Random weights; batch norm statistics from `x`, and beta such that neurons spike at `rate`.

    rate: per population, of (step, neuron) pairs. x: (B, C, H, W).
    """
    module = GraphModule(graph).eval()
    rng = np.random.default_rng(seed)
    known = {graph.input.name: module.as_signal(x)}
    for node in graph.nodes[1:]:
        if isinstance(node, ir.Projection):
            _calibrate(module, node, known, rng)
        elif isinstance(node, ir.Population) and isinstance(graph[node.inputs[0]], ir.Projection):
            _raise_rate(module, node, known, rate)
        known |= module.evaluate(known, [node.name])
    return from_module(module, ModelInfo(provenance={"data": "random"}))


def _calibrate(
    module: GraphModule, node: ir.Projection, known: dict[str, Signal], rng: np.random.Generator
) -> None:
    layer = module.get_submodule(node.name)
    assert isinstance(layer, torch.nn.Conv2d) and node.norm is not None
    fan_in = layer.weight[0].numel()
    values = rng.normal(0, fan_in**-0.5, tuple(layer.weight.shape))
    layer.weight.copy_(torch.from_numpy(values))
    norm = module.get_submodule(node.norm.name)
    assert isinstance(norm, torch.nn.BatchNorm2d)
    source = known[node.inputs[0]].tensor
    y = layer(source.flatten(0, 1) if source.dim() == 5 else source)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(y.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(y.var(dim=(0, 2, 3)) + 1e-3)
    norm.weight.copy_(torch.from_numpy(rng.uniform(0.7, 1.3, len(norm.weight))))
    norm.bias.copy_(torch.from_numpy(rng.normal(0, 0.2, len(norm.bias))))


def _raise_rate(
    module: GraphModule, node: ir.Population, known: dict[str, Signal], rate: float
) -> None:
    """Shift beta of the batch norm behind the population's projection, the same for all."""
    projection = module.graph[node.inputs[0]]
    assert isinstance(projection, ir.Projection) and projection.norm is not None
    neuron, norm = module.get_submodule(node.name), module.get_submodule(projection.norm.name)
    assert isinstance(neuron, SpikingNeuron) and isinstance(norm, torch.nn.BatchNorm2d)
    signal = known[projection.name]

    def miss(shift: float) -> float:
        spikes = neuron.simulate(signal.tensor + shift, static=signal.static)
        return abs(spikes.mean().item() - rate)

    shift = min((0.25 * k for k in range(-4, 16)), key=miss)
    norm.bias.add_(shift)
    known[projection.name] = Signal(signal.tensor + shift, signal.static)
