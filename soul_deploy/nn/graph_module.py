"""A PyTorch module built from a SpikingGraph, with the original parameter names.

It is what pruning trains, what removal produces and what a reloaded model file becomes: no class
of the original network is needed. Node by node it runs the same operations as the original.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from soul_deploy import ir
from soul_deploy.base import brief, dispatch, errors, reduction
from soul_deploy.nn import layers, operations
from soul_deploy.nn.given_input import require_events, require_floats, shows_image
from soul_deploy.nn.neuron import SpikingNeuron

StepObserver = Callable[[str, int, Tensor, Tensor], None]
"""Called with (population, t, spikes (B, ...), membrane potential after reset (B, ...))."""


@brief
@dataclass(frozen=True)
class Signal:
    """A node's output: (T, B, ...), or (B, ...) if it is the same at every step (`static`)."""

    tensor: Tensor
    static: bool


@brief
@dataclass(frozen=True)
class ForwardRecord:
    """One forward pass: spikes of each population (T, B, ...) as bool, and logits (B, classes)."""

    spikes: Mapping[str, Tensor]
    logits: Tensor


@brief
@dataclass(eq=False)
class ChannelMask:
    """Which channels of a population receive current: (C,) of 0/1.

    `gain` is the effective scale of the last training forward (gamma × mask); its gradient ranks
    masked channels for regrowth.
    """

    keep: Tensor
    gain: Tensor | None = None

    def __getstate__(self) -> dict[str, Tensor | None]:
        """A copy keeps the mask; the gain belongs to a forward pass of the original."""
        return {"keep": self.keep, "gain": None}


MaskMultiplier = Callable[[], Tensor]
"""What a mask multiplies with: 0/1 when it is hard, between 0 and 1 while it is searched for."""


@brief
@dataclass(eq=False)
class HardGate:
    """A fixed mask of 0/1."""

    keep: Tensor

    def __call__(self) -> Tensor:
        return self.keep


class GraphModule(nn.Module):
    """The network of `graph` as a module; weights are loaded with `load_state_dict`.

    Input: a static image batch (B, C, H, W), shown T times, or a sequence (T, B, C, H, W), of
    floating-point numbers; pixels are normalised by the caller.
    Output: class scores (B, classes). State is reset at every call.

    `channel_masks` (population or projection -> mask) act on the current, behind batch norm;
    `weight_gates` (projection -> mask multiplier of the weight's shape) on the weights;
    `neuron_gates` (population -> mask multiplier of the population's shape) on the spikes, after
    firing and reset.
    """

    def __init__(self, graph: ir.SpikingGraph) -> None:
        super().__init__()
        self.graph = graph
        self.channel_masks: dict[str, ChannelMask] = {}
        self.weight_gates: dict[str, MaskMultiplier] = {}
        self.neuron_gates: dict[str, MaskMultiplier] = {}
        for node in graph.nodes:
            for path, module in operations.modules_of(node, graph):
                self._place(path, module)
        if graph.integers:
            self.double().requires_grad_(False)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **named: Any) -> Any:
        """As PyTorch's; a checkpoint of SpikingJelly's LinearRecurrentContainer, whose one weight
        is over input and last output, is taken apart (frontend/recurrent.py).
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        return super().load_state_dict(taken_apart(state_dict, shapes), *args, **named)

    def _place(self, path: str, module: nn.Module) -> None:
        parent: nn.Module = self
        *parts, last = path.split(".")
        for part in parts:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, module)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes)."""
        return self.forward_observed(x, None)

    def forward_observed(
        self, x: Tensor, observe: StepObserver | None, *, per_step: bool = False
    ) -> Tensor:
        """As `forward`, and `observe` sees every population after every step.

        per_step: the class scores of each step, (T, B, classes), instead of the readout's mean,
        sum, last or maximum of them.
        """
        readout = self.graph.readout
        if not per_step:
            return self._values(x, [readout.name], observe)[readout.name].tensor
        (source,) = readout.inputs
        spikes = self._values(x, [source], observe)[source].tensor
        return self._read(readout, spikes, per_step=True)

    def _values(
        self, x: Tensor, wanted: Iterable[str], observe: StepObserver | None = None
    ) -> dict[str, Signal]:
        return self.evaluate({self.graph.input.name: self.as_signal(x)}, wanted, observe)

    def per_step(self, x: Tensor) -> Tensor:
        """Class scores of each step, (T, B, classes), of which the readout makes `forward`."""
        return self.forward_observed(x, None, per_step=True)

    @torch.no_grad()
    def record(self, x: Tensor) -> ForwardRecord:
        """Spikes of every population and the logits."""
        names = [node.name for node in self.graph.populations]
        values = self._values(x, [*names, self.graph.readout.name])
        spikes = {name: values[name].tensor.bool() for name in names}
        return ForwardRecord(spikes, values[self.graph.readout.name].tensor)

    def as_signal(self, x: Tensor) -> Signal:
        """Check the input, as `shows_image` does, and in evaluation that events are what they can
        be; integers of a fixed-point network in float64. Events (B, ...) arrive at each step.
        """
        if self.graph.integers:
            x = x.double()
        require_floats(x)
        if not self.training:
            require_events(self.graph.input, x)
        static = shows_image(self.graph, x)
        if static and self.graph.input.events is not None:
            return Signal(x.expand(self.graph.time_steps, *x.shape), False)
        return Signal(x, static)

    def batch_axis(self, x: Tensor) -> int:
        """Of an input: 0 of images, 1 of a sequence. Raises ValidityError."""
        return 0 if shows_image(self.graph, x) else 1

    def evaluate(
        self,
        known: Mapping[str, Signal],
        wanted: Iterable[str],
        observe: StepObserver | None = None,
    ) -> dict[str, Signal]:
        """Outputs of the `wanted` nodes, given some outputs; only what they need runs."""
        wanted, values = list(wanted), dict(known)
        if self.graph.integers:
            values = {name: Signal(s.tensor.double(), s.static) for name, s in values.items()}
        needed = self.graph.needed(wanted, known)
        for node in self.graph.nodes:
            if node.name in needed:
                inputs = [values[name] for name in node.inputs]
                values[node.name] = compute(node, self, inputs, observe)
        return {name: values[name] for name in wanted}

    def _fire(self, node: ir.Population, source: Signal, observe: StepObserver | None) -> Signal:
        neuron = self.get_submodule(node.name)
        assert isinstance(neuron, SpikingNeuron)
        see = None if observe is None else partial(observe, node.name)
        back = None if node.feedback is None else partial(self.fed_back, node.name)
        spikes = neuron.simulate(source.tensor, static=source.static, observe=see, feedback=back)
        if node.generated:  # (T, B, C, ...) and the pattern (T, G) to (T, B, C + G, ...)
            steps, batch, _, *space = spikes.shape
            pattern = neuron.get_buffer("pattern").to(spikes)
            pattern = pattern.reshape(steps, 1, -1, *([1] * len(space)))
            spikes = torch.cat([spikes, pattern.expand(steps, batch, -1, *space)], dim=2)
        multiplier = self.neuron_gates.get(node.name)
        return Signal(spikes if multiplier is None else spikes * multiplier(), False)

    def fed_back(self, population: str, spikes: Tensor) -> Tensor:
        """What a population's spikes (N, ...) of a step add to its current of the next one.

        Masks act on both: masked neurons send nothing, masked channels take nothing.
        """
        feedback = self.graph.feedbacks[population]
        multiplier = self.neuron_gates.get(population)
        x = spikes if multiplier is None else spikes * multiplier()
        if isinstance(feedback, ir.Projection):
            y = self._weigh(feedback, x)
        else:
            y = operations.unweighed(feedback, x)
        source = self.graph.masked_projection(population)
        for name in (source, *self.graph.charged_by(source)):
            if name in self.channel_masks:
                return y * operations.by_channel(self.channel_masks[name].keep, y)
        return y

    def fire_taught(self, population: str, current: Signal, sent: Tensor) -> Tensor:
        """What a population sends, (T, B, ...), when its feedback is given `sent`, (T, B, ...)."""
        node, (steps, _) = self.graph[population], sent.shape[:2]
        assert isinstance(node, ir.Population)
        x = current.tensor
        x = x.expand(steps, *x.shape) if current.static else x
        before = torch.cat([torch.zeros_like(sent[:1]), sent[:-1]]).to(x.dtype)
        back = layers.split_time(self.fed_back(population, before.flatten(0, 1)), sent)
        return self._fire(replace(node, feedback=None), Signal(x + back, False), None).tensor

    def _project(self, node: ir.Projection, x: Tensor) -> Tensor:
        """The current; masks act on batch norm's gamma and beta: what is masked is exactly 0.

        Where a batch norm of its own follows, they act on that in training, and on both otherwise,
        as the deployed weights have it: a pooling in between compares zeros.
        """
        y, mask = self._weigh(node, x), self._mask_of(node)
        norm = None if node.norm is None else self.get_submodule(node.norm.name)
        if mask is not None and node.name in self.graph.masked_norms.values():
            y = y if norm is None else self._norm(norm, y, None)
            return y if self.training else y * operations.by_channel(mask.keep, y)
        if norm is not None:
            return self._norm(norm, y, mask)
        if mask is None:
            return y
        gain = mask.gain = mask.keep.clone().requires_grad_(y.requires_grad)
        return y * gain.reshape(-1, *([1] * (y.dim() - 2)))

    def _norm_alone(self, node: ir.ChannelNorm, x: Tensor) -> Tensor:
        masked = self.graph.masked_norms.get(node.name)
        mask = None if masked is None else self._mask_of(self.graph.projection(masked))
        return self._norm(self.get_submodule(node.name), x, mask)

    def _norm(self, norm: nn.Module, y: Tensor, mask: ChannelMask | None) -> Tensor:
        if mask is None:
            plain: Tensor = norm(y)
            return plain
        gain = mask.gain = norm.get_parameter("weight") * mask.keep
        if gain.requires_grad:
            gain.retain_grad()
        masked = {"weight": gain, "bias": norm.get_parameter("bias") * mask.keep}
        result: Tensor = functional_call(norm, masked, (y,))
        return result

    def _weigh(self, node: ir.Projection, x: Tensor) -> Tensor:
        layer = self.get_submodule(node.name)
        multiplier = self.weight_gates.get(node.name)
        if multiplier is None:
            plain: Tensor = layer(x)
            return plain
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight * multiplier()
        gated: Tensor = functional_call(layer, {"weight": weight}, (x,))
        return gated

    def _mask_of(self, node: ir.Projection) -> ChannelMask | None:
        for name in (node.name, *self.graph.charged_by(node.name)):
            if name in self.channel_masks:
                return self.channel_masks[name]
        return None

    def _read(self, node: ir.Readout, spikes: Tensor, *, per_step: bool = False) -> Tensor:
        """Class scores (B, classes); or (T, B, classes), those of each step."""
        weigh = partial(self._weigh_counts, node)
        if node.neuron is not None:
            neuron = self.get_submodule(node.neurons_name)
            assert isinstance(neuron, SpikingNeuron)
            membranes = neuron.membranes(self.head_scores(spikes))
            return membranes if per_step else layers.membrane_scores(membranes, node.over_time)
        if per_step:
            scores = self.head_scores(spikes)
        else:
            scores = layers.class_scores(spikes, node.over_time, weigh)
        if node.unit is None:
            return scores
        shape = self.graph.shapes[node.inputs[0]]
        return scores.float() * node.multiplier(shape, 1 if per_step else len(spikes))

    def head_scores(self, spikes: Tensor) -> Tensor:
        """What the readout's head gives at each step, (T, B, classes), for what it reads, (T, B, C,
        ...): the scores of the steps, or the currents of the neurons behind it.
        """
        return self._weigh_counts(self.graph.readout, layers.spike_counts(spikes, per_step=True), 1)

    def _weigh_counts(self, node: ir.Readout, counts: Tensor, steps: int) -> Tensor:
        """Scores (..., classes) of sums (..., C) over space and over `steps`."""
        scale = 1.0 / node.divisor(self.graph.shapes[node.inputs[0]], steps)
        if node.unit is not None:
            return self._weigh_integers(node, counts, steps)
        if not node.linear:
            return layers.vote_counts(counts, node.votes) * scale
        head = self.get_submodule(node.name)
        assert isinstance(head, nn.Linear)
        scores = counts @ head.weight.t() * scale
        times = reduction.biases(node.over_time, steps)
        return scores if head.bias is None else scores + times * head.bias

    def _weigh_integers(self, node: ir.Readout, counts: Tensor, steps: int) -> Tensor:
        """Integer scores (..., classes); their multiplication comes last (`_read`)."""
        if not node.linear:
            return layers.vote_counts(counts, node.votes)
        head = self.get_submodule(node.name)
        assert isinstance(head, nn.Linear)
        scores = counts @ head.weight.t()
        times = reduction.together(node.weighing, steps)
        return scores if head.bias is None else scores + times * head.bias


def taken_apart(state: Mapping[str, Any], shapes: Mapping[str, ir.Shape]) -> dict[str, Any]:
    """A state dict in which `x.weight` is taken apart into `x.weight` and `x.feedback.weight`,
    where a graph has both; shapes: of its tensors, by name.
    """
    found = dict(state)
    for name in shapes:
        owner, _, part = name.rpartition(".feedback.")
        whole = f"{owner}.{part}"
        if not owner or name in found or whole not in found or whole not in shapes:
            continue
        columns = shapes[whole][-1]
        if tuple(found[whole].shape) == (shapes[whole][0], columns + shapes[name][-1]):
            both = found[whole]
            found[whole], found[name] = both[:, :columns], both[:, columns:]
    return found


@dispatch.operation_table(ir.Node)
def compute(
    node: ir.Node, module: GraphModule, inputs: list[Signal], observe: StepObserver | None
) -> Signal:
    """The output of a node of `module`'s graph, from its inputs."""
    raise ir.no_entry(node, "GraphModule")


compute.refuse(
    ir.Input,
    error=lambda node: errors.UsageError("the network's input is needed for what was asked"),
)


@compute.on(ir.Pool, ir.AdaptiveAvgPool, ir.Flatten, ir.Scatter)
def _plain(node: ir.Node, module: GraphModule, inputs: list[Signal], observe: object) -> Signal:
    return image_by_image(partial(operations.unweighed, node), *inputs)


@compute.on(ir.Scale)
def _scaled(node: ir.Scale, module: GraphModule, inputs: list[Signal], observe: object) -> Signal:
    if node.factor is not None:
        return image_by_image(partial(operations.unweighed, node), *inputs)
    scale = module.get_submodule(node.name).get_buffer("scale")
    return image_by_image(lambda x: x * operations.by_channel(scale, x), *inputs)


@compute.on(ir.ChannelNorm)
def _normed(
    node: ir.ChannelNorm, module: GraphModule, inputs: list[Signal], observe: object
) -> Signal:
    return image_by_image(partial(module._norm_alone, node), *inputs)


@compute.on(ir.Merge)
def _merged(node: ir.Merge, module: GraphModule, inputs: list[Signal], observe: object) -> Signal:
    result = layers.merged(node.function, [signal.tensor for signal in inputs])
    return Signal(result, all(signal.static for signal in inputs))


compute.on(ir.Population)(lambda node, module, inputs, see: module._fire(node, *inputs, see))
compute.on(ir.Projection)(
    lambda node, module, inputs, see: image_by_image(partial(module._project, node), *inputs)
)
compute.on(ir.Readout)(
    lambda node, module, inputs, see: Signal(module._read(node, inputs[0].tensor), True)
)


def image_by_image(function: Callable[[Tensor], Tensor], source: Signal) -> Signal:
    """`function` of the images (N, ...) of all steps."""
    if source.static:
        return Signal(function(source.tensor), True)
    return Signal(layers.split_time(function(source.tensor.flatten(0, 1)), source.tensor), False)
