"""A network and its graph run side by side: every neuron's current, membrane and spikes.

Spikes alone say little: a wrong current below the threshold changes none.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from soul_deploy.base import brief
from soul_deploy.frontend import module_kinds, parallel, soul, stepped, tracer
from soul_deploy.ir import SpikingGraph
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.layers import over_steps, split_time
from soul_deploy.nn.neuron import SpikingNeuron

SMALLEST_SCALE = 1e-3  # of the threshold: what smaller currents and membranes are measured against


@brief
@dataclass(frozen=True)
class Trace:
    """Values of one population, each (T, B, ...): current, membrane after reset, what it sends.

    Of a neuron that does not keep its membranes there is that of the last step only, or none.
    """

    current: Tensor
    membrane: Tensor
    spikes: Tensor


@brief
@dataclass(frozen=True)
class TracedRun:
    """One run: what each population did, by name, and the class scores (B, classes)."""

    populations: Mapping[str, Trace]
    logits: Tensor


def run_graph(module: GraphModule, example: Tensor) -> TracedRun:
    """The graph on (B, C, H, W) or (T, B, C, H, W)."""
    graph = module.graph
    membranes: dict[str, list[Tensor]] = {node.name: [] for node in graph.populations}
    wanted = {node.name: node.inputs[0] for node in graph.populations}
    readout = graph.readout.name
    with torch.no_grad():
        values = module.evaluate(
            {graph.input.name: module.as_signal(example)},
            [*wanted, *wanted.values(), readout],
            lambda name, t, spikes, v: membranes[name].append(v),
        )
    steps = graph.time_steps
    traces = {}
    for name, source in wanted.items():
        signal = values[source]
        current = signal.tensor
        current = current.expand(steps, *current.shape) if signal.static else current
        spikes = values[name].tensor
        if name in graph.feedbacks:
            current = current + _fed_back(module, name, spikes)
        traces[name] = Trace(current, torch.stack(membranes[name]), spikes)
    return TracedRun(traces, values[readout].tensor)


def _fed_back(module: GraphModule, population: str, spikes: Tensor) -> Tensor:
    """What a population feeds back to its currents (T, B, ...), of what it sends."""
    before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
    with torch.no_grad():
        return split_time(module.fed_back(population, before.flatten(0, 1)), spikes)


def run_own(
    network: nn.Module, graph: SpikingGraph, takes: tracer.Takes, example: Tensor,
    returns: stepped.Returns = stepped.NOTHING_MORE,
) -> TracedRun:  # fmt: skip
    """The network itself, from rest; its state is as before afterwards.

    A population that it does not run is missing.
    """
    image = example.dim() == len(graph.input.shape) + 1
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = example.to(device)
    steps = graph.time_steps
    with (
        torch.no_grad(),
        tracer.evaluating(network),
        from_rest(network),
        _listening(network, graph) as heard,
    ):
        scores_of = stepped.Calls(network, returns)
        if takes == "step":
            scores = torch.stack([scores_of(x if image else x[t]) for t in range(steps)])
        elif takes == "sequence" and image:
            scores = scores_of(x.unsqueeze(0).expand(steps, *x.shape))
        else:
            scores = scores_of(x)
    scores = over_steps(scores, graph.readout.over_time) if scores.dim() == 3 else scores
    traces = {name: ear.trace() for name, ear in heard.items() if ear.spikes}
    return TracedRun(traces, scores.cpu())


@dataclass
class _Ear:
    """What one neuron module took and gave, call by call, each (steps of the call, B, ...)."""

    currents: list[Tensor] = field(default_factory=list)
    membranes: list[Tensor] = field(default_factory=list)
    spikes: list[Tensor] = field(default_factory=list)

    def trace(self) -> Trace:
        parts = (self.currents, self.membranes, self.spikes)
        return Trace(*(torch.cat(calls).cpu() for calls in parts))


@contextmanager
def _listening(network: nn.Module, graph: SpikingGraph) -> Iterator[dict[str, _Ear]]:
    """Hear what each population's module takes and returns, and where its membrane is."""
    heard = {node.name: _Ear() for node in graph.populations}
    units = {node.name: node.neuron.unit for node in graph.populations}
    with ExitStack() as stack:
        for name, ear in heard.items():
            module = network.get_submodule(name)
            before, after = _hooks(ear, units[name])
            stack.enter_context(module.register_forward_pre_hook(before))
            stack.enter_context(module.register_forward_hook(after))
        stack.enter_context(_membranes_kept([network.get_submodule(name) for name in heard]))
        yield heard


@contextmanager
def _membranes_kept(neurons: Iterable[Any]) -> Iterator[None]:
    """SpikingJelly's neurons keep the membrane of every step of a sequence, for as long as this.

    Most do as `store_v_seq` says, ComplementaryLIFNode as `store_state_seqs`, GatedLIFNode never.
    """
    kept: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    for neuron in neurons:
        if module_kinds.step_mode(neuron) == "m" and module_kinds.is_stateful(neuron):
            attributes = vars(neuron)
            kept.append((attributes, dict(attributes), dict(attributes["_memories_rv"])))
            neuron.store_v_seq = neuron.store_state_seqs = True
    try:
        yield
    finally:
        for attributes, before, resets in kept:
            attributes["_memories_rv"].clear()  # earlier versions add to it
            attributes["_memories_rv"].update(resets)
            attributes.clear()
            attributes.update(before)


def _hooks(ear: _Ear, unit: float) -> tuple[Callable[..., None], Callable[..., None]]:
    """unit: what 1 that is sent stands for in a module that gives fractions."""

    def before(module: nn.Module, inputs: Any) -> None:
        taken.append(inputs[0].detach().clone())

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        one = module_kinds.step_mode(module) == "s" or stepped.is_stepped(module)
        fired: Tensor = output[0] if isinstance(output, tuple) else output
        given, current = fired.detach().clone(), taken.pop()
        spikes = given if unit == 1 else (given / unit).round()
        layer = stepped.recurrent_layer(module) if stepped.is_stepped(module) else None
        if layer is not None:  # it adds what it feeds back itself
            last = ear.spikes[-1][0] if ear.spikes else torch.zeros_like(current)
            current = current + layer(last.to(current)).detach()
        spikes = spikes.unsqueeze(0) if one else spikes
        ear.spikes.append(spikes)
        ear.membranes.append(_membrane(module, current))
        ear.currents.append(current if current.dim() == spikes.dim() else current.expand_as(spikes))

    taken: list[Tensor] = []
    return before, after


def _membrane(module: Any, current: Tensor) -> Tensor:
    """The membrane after every step of the call that just ended."""
    if isinstance(module, SpikingNeuron):
        seen: list[Tensor] = []
        static = current.dim() in (2, 4)
        module.simulate(current, static=static, observe=lambda t, spikes, v: seen.append(v))
        return torch.stack(seen)
    if stepped.is_stepped(module):
        return stepped.membrane_after(module).unsqueeze(0)
    if module_kinds.module_kind(module) in parallel.KINDS:
        return current[:0]
    if soul.name_of(module) is not None:
        return soul.membrane_after(module, current)
    sequence = None
    if module_kinds.step_mode(module) == "m":
        (sequence, *_) = getattr(module, "state_seqs", None) or (getattr(module, "v_seq", None),)
    last: Tensor = module.v.unsqueeze(0) if sequence is None else sequence
    return last.detach().clone()


@contextmanager
def from_rest(network: nn.Module) -> Iterator[None]:
    """Neurons keep membranes between calls: start at rest, and put back what was there."""
    with ExitStack() as after:
        for module in network.modules():
            if stepped.is_stepped(module):
                after.enter_context(stepped.from_rest(module))
            if module_kinds.module_kind(module) in module_kinds.NON_SPIKING:
                after.callback(_put_back, vars(module), dict(vars(module)))
            if module_kinds.is_stateful(module):
                own = vars(module)
                after.callback(own.__setitem__, "_memories", own["_memories"])
                own["_memories"] = copy.copy(own["_memories_rv"])
                module.reset()  # type: ignore[operator]
        yield


def _put_back(own: dict[str, Any], before: dict[str, Any]) -> None:
    own.clear()
    own.update(before)


@dataclass(frozen=True)
class Difference:
    """How a graph's run differs from the network's.

    spikes: by population, how many differ. unheard: populations that the network did not run.
    currents, membranes: by population, the largest difference, if it is above the tolerance.
    logits: the largest difference of the class scores, as a share of the largest (at least 1).
    """

    spikes: Mapping[str, int]
    unheard: tuple[str, ...]
    currents: Mapping[str, float]
    membranes: Mapping[str, float]
    logits: float
    tolerance: float

    @property
    def of_outputs(self) -> bool:
        """Whether spikes or class scores differ."""
        return bool(self.spikes) or not self.logits <= self.tolerance

    @property
    def any(self) -> bool:
        return self.of_outputs or bool(self.unheard or self.currents or self.membranes)

    def __str__(self) -> str:
        found = [f"it never runs {name!r}" for name in self.unheard[:1]]
        for what, largest in (("current", self.currents), ("membrane", self.membranes)):
            if largest and not found:
                name, by = next(iter(largest.items()))
                found.append(f"the {what} of {name!r} differs by up to {by:.2g}")
        found += [f"{n} spikes of {name!r} differ" for name, n in [*self.spikes.items()][:1]]
        found.append(f"the largest difference of the class scores is {self.logits:.2g}")
        return ", ".join(found)


def difference(
    own: TracedRun, ours: TracedRun, thresholds: Mapping[str, float], tolerance: float
) -> Difference:
    """Compare two runs; currents and membranes by `tolerance` times a population's largest."""
    spikes, currents, membranes = {}, {}, {}
    for name, mine in ours.populations.items():
        theirs = own.populations.get(name)
        if theirs is None:
            continue
        least = SMALLEST_SCALE * thresholds[name]
        spikes[name] = _count(theirs.spikes, mine.spikes)
        currents[name] = _beyond(theirs.current, mine.current, least, tolerance)
        seen = mine.membrane[len(mine.membrane) - len(theirs.membrane) :]
        membranes[name] = _beyond(theirs.membrane, seen, least, tolerance)
    return Difference(
        {name: n for name, n in spikes.items() if n},
        tuple(name for name in ours.populations if name not in own.populations),
        {name: by for name, by in currents.items() if by},
        {name: by for name, by in membranes.items() if by},
        _of_scores(own.logits, ours.logits),
        tolerance,
    )


def _count(theirs: Tensor, mine: Tensor) -> int:
    return mine.numel() if theirs.shape != mine.shape else int((theirs != mine).sum())


def _beyond(theirs: Tensor, mine: Tensor, least: float, tolerance: float) -> float:
    """The largest difference, if it is more than rounding; else 0.

    A membrane may run away to infinity, and a reset by 0 · infinity make it none, in both.
    """
    if theirs.shape != mine.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    same = (theirs == mine) | (theirs.isnan() & mine.isnan())
    scale = max(least, float(torch.where(theirs.isfinite(), theirs, 0).abs().max()))
    largest = float(torch.where(same, 0, (theirs - mine).abs()).max())
    return 0.0 if largest <= tolerance * scale else largest


def _of_scores(theirs: Tensor, mine: Tensor) -> float:
    if theirs.shape != mine.shape:
        return float("inf")
    return float((theirs - mine).abs().max()) / max(1.0, float(theirs.abs().max()))
