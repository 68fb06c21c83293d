"""Random chain networks for property tests: drawn as plain data, built as plain modules.

A chain is convolution blocks, linear blocks and a readout, with awkward strides, paddings, sizes,
neurons and steps. `build` scales the weights so that neurons really fire. Dyadic chains have
weights, biases and inputs on binary grids, so that every sum is exact in any order.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec, Pair, Projection, Shape
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron

WEIGHT_GRID, INPUT_GRID = 2.0**-8, 2.0**-6
TARGET_RATE = 0.2


@dataclass(frozen=True)
class PoolSpec:
    """kind "max", "avg" or "adaptive" (then `kernel` is the output size)."""

    kind: str
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)


@dataclass(frozen=True)
class ConvSpec:
    channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: bool
    norm: bool
    neuron: NeuronSpec
    pool: PoolSpec | None


@dataclass(frozen=True)
class LinearSpec:
    features: int
    bias: bool
    norm: bool
    neuron: NeuronSpec


@dataclass(frozen=True)
class ChainSpec:
    """votes 0: a linear head; otherwise neurons per class."""

    input_shape: Shape
    time_steps: int
    batch: int
    convolutions: tuple[ConvSpec, ...]
    flatten: bool
    linears: tuple[LinearSpec, ...]
    classes: int
    votes: int
    head_bias: bool
    dyadic: bool
    seed: int


@st.composite
def neurons(draw: st.DrawFn) -> NeuronSpec:
    """IF, LIF and PLIF, hard reset to 0 or elsewhere, soft reset, both comparisons; or snnTorch's
    Leaky.
    """
    if draw(st.sampled_from((False, False, False, True))):
        return leaky(draw)
    return NeuronSpec(
        family=draw(st.sampled_from(("lif", "if", "plif"))),
        tau=draw(st.sampled_from((2.0, 4 / 3, 1.7, 3.0))),
        decay_input=draw(st.booleans()),
        v_threshold=draw(st.sampled_from((1.0, 0.5, 0.7))),
        v_reset=draw(st.sampled_from((0.0, None, -0.25, 0.2))),
        fire=draw(st.sampled_from(("gt", "ge"))),
    )


def leaky(draw: st.DrawFn) -> NeuronSpec:
    """Soft reset a step later, hard reset to 0, no reset."""
    reset = draw(st.sampled_from(("subtract", "subtract", "zero", "none")))
    return NeuronSpec(
        family=draw(st.sampled_from(("lif", "lif", "if"))),
        tau=draw(st.sampled_from((10.0, 2.0, 1.7))),
        decay_input=False,
        v_threshold=draw(st.sampled_from((1.0, 0.5, 0.7))),
        v_reset=0.0 if reset == "zero" else None,
        v_subtract=0.0 if reset == "none" else None,
        form="snntorch",
    )


def _pair(draw: st.DrawFn, low: int, high: int) -> Pair:
    side = st.integers(low, high)
    return draw(st.tuples(side, side))


def _window(draw: st.DrawFn, size: int, *, dyadic_average: bool) -> tuple[int, int, int]:
    """Kernel, stride and padding along one axis of a pooling that leaves a position."""
    if dyadic_average:
        return 2, draw(st.integers(1, 2)), 0
    kernel = draw(st.integers(1, min(3, size)))
    return kernel, draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))


def _pool(draw: st.DrawFn, size: Pair, dyadic: bool) -> tuple[PoolSpec | None, Pair]:
    kind = draw(st.sampled_from(("none", "max", "avg") + (() if dyadic else ("adaptive",))))
    exact = dyadic and kind == "avg"
    if kind == "none" or (exact and min(size) < 2):
        return None, size
    if kind == "adaptive":
        target = _pair(draw, 1, 5)
        return PoolSpec(kind, target), target
    axes = [_window(draw, side, dyadic_average=exact) for side in size]
    (kh, sh, ph), (kw, sw, pw) = axes
    out = [(side + 2 * p - k) // s + 1 for side, (k, s, p) in zip(size, axes, strict=True)]
    return PoolSpec(kind, (kh, kw), (sh, sw), (ph, pw)), (out[0], out[1])


def _axis(draw: st.DrawFn, size: int) -> tuple[int, int, int, int]:
    """Kernel, stride, padding and dilation along one axis, such that a position is left."""
    padding = draw(st.integers(0, 2))
    kernel = draw(st.integers(1, min(4, size + 2 * padding)))
    fits = 2 * (kernel - 1) + 1 <= size + 2 * padding
    dilation = draw(st.integers(1, 2)) if fits else 1
    return kernel, draw(st.integers(1, 3)), padding, dilation


def _convolution(
    draw: st.DrawFn, channels: int, size: Pair, dyadic: bool, max_groups: int
) -> tuple[ConvSpec, Pair]:
    axes = [_axis(draw, side) for side in size]
    (kh, sh, ph, dh), (kw, sw, pw, dw) = axes
    out = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, (k, s, p, d) in zip(size, axes, strict=True)
    ]
    groups = draw(st.integers(1, max_groups)) if channels % 2 == 0 else 1
    made = draw(st.integers(1, 6))
    made += made % groups
    norm = not dyadic and draw(st.booleans())
    pool, size = _pool(draw, (out[0], out[1]), dyadic)
    spec = ConvSpec(
        made,
        (kh, kw),
        (sh, sw),
        (ph, pw),
        (dh, dw),
        groups,
        draw(st.booleans()),
        norm,
        draw(neurons()),
        pool,
    )
    return spec, size


@st.composite
def chains(draw: st.DrawFn, *, dyadic: bool = False, max_groups: int = 2) -> ChainSpec:
    """Any small chain; dyadic ones have no batch norm, and 2×2 average poolings only."""
    shape = (draw(st.integers(1, 3)), *_pair(draw, 3, 11))
    channels, size = shape[0], (shape[1], shape[2])
    convolutions: list[ConvSpec] = []
    for _ in range(draw(st.integers(1, 3))):
        spec, size = _convolution(draw, channels, size, dyadic, max_groups)
        convolutions.append(spec)
        channels = spec.channels
    features = [
        LinearSpec(
            draw(st.integers(2, 10)),
            draw(st.booleans()),
            not dyadic and draw(st.booleans()),
            draw(neurons()),
        )
        for _ in range(draw(st.integers(0, 2)))
    ]
    classes = draw(st.integers(2, 4))
    votes = draw(st.sampled_from((0, 0, 1, 3))) if features else 0
    if votes:
        last = features[-1]
        features[-1] = LinearSpec(classes * votes, last.bias, last.norm, last.neuron)
    return ChainSpec(
        shape,
        draw(st.integers(1, 8)),
        draw(st.integers(1, 5)),
        tuple(convolutions),
        bool(features) or draw(st.booleans()),
        tuple(features),
        classes,
        votes,
        draw(st.booleans()),
        dyadic,
        draw(st.integers(0, 2**20)),
    )


def network(spec: ChainSpec) -> nn.Sequential:
    """The chain as a plain PyTorch module, freshly initialised."""
    modules: list[nn.Module] = []
    channels, size = spec.input_shape[0], spec.input_shape[1:]
    for conv in spec.convolutions:
        modules += _conv_modules(conv, channels, spec.time_steps)
        channels = conv.channels
    probe = nn.Sequential(*modules)
    with torch.no_grad():
        size = tuple(probe.eval()(torch.zeros(1, *spec.input_shape)).shape[-2:])
    if spec.flatten:
        modules.append(layers.Flatten())
        channels *= size[0] * size[1]
    for linear in spec.linears:
        modules.append(nn.Linear(channels, linear.features, linear.bias))
        modules += [layers.BatchNorm1d(linear.features)] if linear.norm else []
        modules.append(SpikingNeuron(linear.neuron, spec.time_steps))
        channels = linear.features
    modules.append(
        layers.VoteReadout(spec.classes, spec.votes)
        if spec.votes
        else layers.RateReadout(channels, spec.classes, spec.head_bias)
    )
    return nn.Sequential(*modules)


def _conv_modules(conv: ConvSpec, channels: int, time_steps: int) -> list[nn.Module]:
    sides = (conv.kernel, conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias)
    modules: list[nn.Module] = [layers.Conv2d(channels, conv.channels, *sides)]
    modules += [layers.BatchNorm2d(conv.channels)] if conv.norm else []
    modules.append(SpikingNeuron(conv.neuron, time_steps))
    pool = conv.pool
    if pool is not None and pool.kind == "adaptive":
        modules.append(layers.AdaptiveAvgPool2d(pool.kernel))
    elif pool is not None:
        kind = layers.MaxPool2d if pool.kind == "max" else layers.AvgPool2d
        modules.append(kind(pool.kernel, pool.stride, pool.padding))
    return modules


def images(spec: ChainSpec) -> Tensor:
    """(batch, C, H, W) float32 in [-1, 1], a fifth of them exactly 0; on a grid if dyadic."""
    rng = np.random.default_rng(spec.seed + 1)
    shape = (spec.batch, *spec.input_shape)
    x = rng.uniform(-1, 1, shape) * (rng.random(shape) > 0.2)
    return torch.from_numpy((_round(x, INPUT_GRID) if spec.dyadic else x).astype(np.float32))


def build(spec: ChainSpec) -> Model:
    """The chain as a Model, random batch norm statistics included, scaled so that it fires."""
    rng = np.random.default_rng(spec.seed)
    graph = trace(network(spec), spec.input_shape, spec.time_steps)
    module = GraphModule(graph).eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(_random(name, tuple(tensor.shape), rng)))
        if spec.dyadic:
            _snap(module)
        _make_it_fire(module, images(spec), spec.dyadic)
    return from_module(module, ModelInfo(provenance={"data": "random"}))


def _random(name: str, shape: Shape, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    if name.endswith("running_var"):
        return rng.uniform(0.3, 2.0, shape)
    if name.endswith(".w"):
        return rng.uniform(-1.5, 1.5, shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
    return rng.normal(0.1, 1.0, shape).clip(-1, 1) / (1 if len(shape) < 2 else fan_in**0.5)


def _round(values: npt.NDArray[np.float64], grid: float) -> npt.NDArray[np.float64]:
    return np.round(values / grid) * grid


def _snap(module: GraphModule) -> None:
    """Weights and biases to the grid; learned decays stay as they are."""
    for name, tensor in module.state_dict().items():
        if not name.endswith(".w"):
            tensor.copy_((tensor / WEIGHT_GRID).round() * WEIGHT_GRID)


def _make_it_fire(module: GraphModule, x: Tensor, dyadic: bool) -> None:
    """Scale each layer's current so that about TARGET_RATE of (step, neuron) pairs fire."""
    scales = [2.0**k for k in range(-3, 4)] if dyadic else [1.35**k for k in range(-12, 18)]
    scales += [-scale for scale in scales]  # a layer of only negative sums would stay silent
    known = {module.graph.input.name: module.as_signal(x)}
    for node in module.graph.populations:
        source = node.inputs[0]
        current = module.evaluate(known, [source])[source]
        neuron = module.get_submodule(node.name)
        assert isinstance(neuron, SpikingNeuron)

        def miss(
            scale: float, neuron: SpikingNeuron = neuron, x: Tensor = current.tensor,
            static: bool = current.static,
        ) -> float:  # fmt: skip
            rate = neuron.simulate(x * scale, static=static).mean().item()
            return abs(rate - TARGET_RATE) + (rate == 0)

        projection = module.graph[source]
        assert isinstance(projection, Projection)
        _scale(module, projection, min(scales, key=miss))
        if dyadic:
            _snap(module)
        known |= module.evaluate(known, [node.name])


def _scale(module: GraphModule, projection: Projection, scale: float) -> None:
    name = projection.name if projection.norm is None else projection.norm.name
    for parameter in module.get_submodule(name).parameters():
        parameter.mul_(scale)


def random_masks(model: Model, seed: int) -> dict[str, npt.NDArray[np.bool_]]:
    """For each population, which channels stay: each with probability 0.6, never none."""
    rng = np.random.default_rng(seed)
    masks = {}
    for node in model.graph.populations:
        keep = rng.random(model.graph.shapes[node.name][0]) < 0.6
        keep[rng.integers(len(keep))] = True
        masks[node.name] = keep
    return masks


def pruned(model: Model, seed: int, *, constants: bool = True) -> Model:
    """Masked channels, and if `constants` also channels whose incoming weights are all zero.

    What such a channel still gets, its bias or batch norm, may keep it silent or make it spike in
    a fixed pattern.
    """
    rng = np.random.default_rng(seed)
    state = {name: array.copy() for name, array in model.state.items()}
    for node in model.graph.populations:
        weight = state[f"{node.inputs[0]}.weight"]
        if constants:
            weight[rng.random(len(weight)) < 0.2] = 0
    return replace(model, state=state, channel_masks=random_masks(model, seed))


def random_neuron_masks(model: Model, seed: int) -> dict[str, npt.NDArray[np.bool_]]:
    """For each population, which neurons' spikes stay: most, or (every third seed) few."""
    rng, rate = np.random.default_rng(seed), 0.7 if seed % 3 else 0.2
    shapes = {node.name: model.graph.shapes[node.name] for node in model.graph.populations}
    return {name: rng.random(shape) < rate for name, shape in shapes.items()}
