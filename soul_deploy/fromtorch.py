"""Somebody's PyTorch module as a Model, and the proof that it is the same network.

A trace can be wrong in ways that no rule foresees (a branch taken for a constant, a shape read
wrongly), so the module itself and its graph are run side by side before anything is returned.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from soul_deploy.fxtracer import evaluating
from soul_deploy.graph import Shape, SpikingGraph
from soul_deploy.modelfile import Model, ModelInfo, arrays_of, with_input_kind
from soul_deploy.module import GraphModule, Recording, require_floats
from soul_deploy.modulekinds import is_stateful
from soul_deploy.runtime.errors import NetworkWarning, UsageError, VerificationError
from soul_deploy.runtime.inputrule import InputKind
from soul_deploy.tracing import Takes, Traced, trace_with_input

TOLERANCE = 1e-5


def from_torch(
    network: nn.Module,
    input_shape: Shape,
    time_steps: int,
    *,
    example: Tensor | None = None,
    input_kind: InputKind = "images",
) -> Model:
    """The network with its weights, under the names that it has in `network`'s state dict.

    input_shape  (C, H, W) of one image
    time_steps   T that it runs for
    example      (B, C, H, W) or (T, B, C, H, W), float32, on which the graph is compared with the
                 module itself; random numbers if left out. Give real data: a layer that doesn't
                 fire on the example is warned about, for what follows it is compared on zeros.
    input_kind   what the network is given: "images", whose uint8 pixels the runtime normalises as
                 the model's `info.normalization` says, or "counts", "spikes", "values", of which
                 numbers of any dtype are taken as they are

    The network is read, not changed. Its class scores are the mean over T of what it returns.
    Raises UnsupportedGraphError for what a graph cannot represent, UsageError for weights that are
    not float32 or an unknown kind, ValidityError for an example of integers, VerificationError if
    the graph's spikes or scores differ from the module's.
    """
    info = with_input_kind(ModelInfo(), input_kind)
    if example is not None:
        require_floats(example)
    _, module = examine(network, input_shape, time_steps, example)
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    made = replace(info, provenance={"model": name})
    return Model(module.graph, arrays_of(module.state_dict()), info=made)


def examine(
    network: nn.Module, input_shape: Shape, time_steps: int, example: Tensor | None = None
) -> tuple[Traced, GraphModule]:
    """The compared graph of a network, and its module with those weights that the graph owns."""
    _check_weights(network)
    traced = trace_with_input(network, input_shape, time_steps)
    module = GraphModule(traced.graph)
    state = network.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    _compare(network, module.eval(), traced.takes, _example(traced.graph, example))
    return traced, module


def _check_weights(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            if tensor.dtype != torch.float32:
                raise UsageError(
                    f"weight {name} is {tensor.dtype}; give the network in float32, as "
                    "network.float() makes it"
                )
            if not torch.isfinite(tensor).all():
                raise UsageError(f"weight {name} holds values that are not finite")


def _example(graph: SpikingGraph, given: Tensor | None) -> Tensor:
    if given is not None:
        return given.detach().cpu()
    made = torch.Generator().manual_seed(2025)
    return torch.randn(2, *graph.input.shape, generator=made)


@dataclass(frozen=True)
class _Difference:
    """Spikes that differ, by population, and the largest difference of the scores."""

    spikes: Mapping[str, int]
    logits: float

    @property
    def any(self) -> bool:
        return bool(self.spikes) or not self.logits <= TOLERANCE

    def __str__(self) -> str:
        first = next(iter(self.spikes.items()), None)
        found = f"{first[1]} spikes of {first[0]!r} differ, " if first else ""
        return f"{found}the largest difference of the class scores is {self.logits:.2g}"


def _compare(network: nn.Module, module: GraphModule, takes: Takes, example: Tensor) -> None:
    """Raise VerificationError unless network and graph are the same on the example."""
    own = run_own(network, module.graph, takes, example)
    ours = module.record(example)
    difference = _difference(own, ours)
    if difference.any:
        # Another order of summation moves a sum across a threshold; in float64 that is as good as
        # impossible, so a difference there is a wrong graph.
        exact = _difference_in_double(network, module, takes, example)
        if exact.any:
            raise VerificationError(
                f"{type(network).__name__}: its graph does not compute what it computes ({exact}). "
                "Its forward does something that cannot be traced; give it without that"
            )
        text = f"the graph is the same in float64; in float32 {difference}"
        warnings.warn(NetworkWarning(text), stacklevel=4)
    silent = [name for name, spikes in ours.spikes.items() if not spikes.any()]
    if silent:
        text = (
            f"{', '.join(silent[:3])}{' and more' if silent[3:] else ''} did not fire on the "
            "example, so what follows was compared on zeros"
        )
        warnings.warn(NetworkWarning(text, "give images as example="), stacklevel=4)


def _difference_in_double(
    network: nn.Module, module: GraphModule, takes: Takes, example: Tensor
) -> _Difference:
    double = GraphModule(module.graph)
    double.load_state_dict(module.state_dict())
    x = example.double()
    own = run_own(copy.deepcopy(network).double(), module.graph, takes, x)
    return _difference(own, double.double().eval().record(x))


def _difference(own: Recording, ours: Recording) -> _Difference:
    differing = {
        name: int((own.spikes[name] != spikes).sum())
        for name, spikes in ours.spikes.items()
        if name in own.spikes
    }
    if own.logits.shape != ours.logits.shape:
        return _Difference({}, float("inf"))
    scale = max(1.0, float(own.logits.abs().max()))
    largest = float((own.logits - ours.logits).abs().max()) / scale
    return _Difference({name: n for name, n in differing.items() if n}, largest)


def run_own(network: nn.Module, graph: SpikingGraph, takes: Takes, example: Tensor) -> Recording:
    """Spikes and class scores of the module itself; its state is as before afterwards."""
    image = example.dim() == len(graph.input.shape) + 1
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = example.to(device)
    steps = graph.time_steps
    with (
        torch.no_grad(),
        evaluating(network),
        _fresh_state(network),
        _listening(network, graph) as heard,
    ):
        if takes == "step":
            scores = torch.stack([network(x if image else x[t]) for t in range(steps)])
        elif takes == "sequence" and image:
            scores = network(x.unsqueeze(0).expand(steps, *x.shape))
        else:
            scores = network(x)
    if scores.dim() == 3:
        scores = scores.mean(0)
    spikes = {name: _joined(parts, steps) for name, parts in heard.items() if parts}
    return Recording(spikes, scores.cpu())


def _joined(parts: list[Tensor], steps: int) -> Tensor:
    """(T, B, ...), from one call or from one call a step."""
    return (parts[0] if len(parts) == 1 and len(parts[0]) == steps else torch.stack(parts)).cpu()


@contextmanager
def _listening(network: nn.Module, graph: SpikingGraph) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what each population's module returns."""
    heard: dict[str, list[Tensor]] = {node.name: [] for node in graph.populations}

    def listen(name: str) -> Callable[..., None]:
        def hear(module: nn.Module, inputs: Any, output: Tensor) -> None:
            heard[name].append(output.detach().bool())

        return hear

    hooks = [network.get_submodule(name).register_forward_hook(listen(name)) for name in heard]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _fresh_state(network: nn.Module) -> Iterator[None]:
    """SpikingJelly keeps membranes between calls: start at rest, and leave them at rest."""
    stateful: list[Any] = [module for module in network.modules() if is_stateful(module)]
    for module in stateful:
        module.reset()
    try:
        yield
    finally:
        for module in stateful:
            module.reset()
