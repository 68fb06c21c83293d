"""Somebody's PyTorch module as a graph, or as a Model that is proved to be the same network.

`trace` runs `forward` by torch.fx, neurons as leaves. Nothing is guessed from module order: who
feeds whom is what `forward` does. What the graph cannot represent is refused with the module's
dotted name and the place in the code.

A trace can be wrong in ways that no rule foresees (a branch taken for a constant, a shape read
wrongly), so the module itself and its graph are run side by side before anything is returned.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor, fx, nn

from soul_deploy.base import brief, errors, pixel_rule, reduction
from soul_deploy.frontend import (
    foreign,
    function_rules,
    graph_builder,
    module_kinds,
    side_by_side,
    stepped,
    traced_value,
    tracer,
)
from soul_deploy.frontend.outputs import Key
from soul_deploy.ir import Shape, SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, arrays_of, taking, with_input_kind
from soul_deploy.nn.given_input import require_floats
from soul_deploy.nn.graph_module import GraphModule

TOLERANCE = 1e-5
SCALES = (4.0, 32.0, 256.0)  # of the example, where populations did not fire on it
LARGEST_PIECE = 1 << 25  # neurons × steps × samples that are compared at once


@brief
@dataclass(frozen=True)
class Traced:
    """A network's graph, and what its own forward takes.

    image     (B, C, H, W), shown T times
    sequence  (T, B, C, H, W)
    step      (B, C, H, W), called once a step, state kept between calls

    returns: what forward is given and returns besides.
    constants: tensors of the graph that are not in the network's state dict, by name.
    reduced: what its forward makes of the steps; None: it returns them all, or one at a time.
    """

    graph: SpikingGraph
    takes: tracer.Takes
    returns: stepped.Returns = stepped.NOTHING_MORE
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    reduced: reduction.OverTime | None = None

    def scored(self, over_time: reduction.OverTime | None) -> "Traced":
        """With class scores made by `over_time` of the steps that forward returns; None: as forward
        makes them, or their mean. Raises UsageError for another way than forward's own.
        """
        if over_time is None or over_time == self.graph.readout.over_time:
            return self
        if not reduction.is_over_time(over_time):
            valid = ", ".join(reduction.OVER_TIME)
            raise errors.UsageError(f"over_time {over_time!r} given; valid: {valid}")
        if self.reduced is not None:
            raise errors.UsageError(
                f"over_time {over_time} given, but the network's forward gives the "
                f"{reduction.NAMES[self.reduced]}; leave over_time out, or return all steps"
            )
        readout = replace(self.graph.readout, over_time=over_time)
        return replace(self, graph=self.graph.with_nodes({readout.name: readout}))


def trace(network: nn.Module, input_shape: Shape, time_steps: int) -> SpikingGraph:
    """The graph of `network` for inputs of `input_shape` (C, H, W) shown for `time_steps`.

    Raises UnsupportedGraphError naming the module, the code line and what is supported.
    """
    return trace_with_input(network, input_shape, time_steps).graph


def trace_with_input(
    network: nn.Module, input_shape: Shape, time_steps: int, example: Tensor | None = None,
    output: Key | None = None,
) -> Traced:  # fmt: skip
    """As `trace`, with what the network's own forward takes."""
    for path, module in network.named_modules():
        foreign.check_known(path, module)
        module_kinds.check_unchanged(path, module)
    module_kinds.check_at_rest(network)
    sequence = example is not None and example.dim() == len(input_shape) + 2
    given: tracer.Takes = "sequence" if sequence else "image"
    builders: dict[tracer.Takes, graph_builder.GraphBuilder] = {}
    found: dict[tracer.Takes, _Attempt] = {}
    failed: dict[tracer.Takes, errors.UnsupportedGraphError] = {}
    orders = [(takes, False) for takes in tracer.can_take(network, sequence)]
    if tracer.may_loop(network):  # where it is not called once a step
        loops = tracer.LOOPS if sequence else tracer.LOOPS[::-1]
        orders += [(takes, True) for takes in loops]
    for takes, looped in orders:
        if looped and "step" in found:
            break
        builders[takes] = graph_builder.GraphBuilder(
            network, input_shape, time_steps, 2 if takes == "sequence" else 1,
            function_rules.handle, output, looped,
        )  # fmt: skip
        try:
            found[takes] = _trace_as(takes, network, builders[takes])
        except errors.UnsupportedGraphError as error:
            failed[takes] = error
        else:
            if takes == given or not found[takes].asked:
                break
    if not found:
        raise _likelier(failed, builders)
    chosen = found.get(given) or next(iter(found.values()))
    for warning in chosen.noted:
        warnings.warn(warning, stacklevel=3)
    return chosen.traced


@dataclass(frozen=True)
class _Attempt:
    """A trace, what it warns about, and whether forward asked for shapes and may go other ways."""

    traced: Traced
    noted: tuple[errors.NetworkWarning, ...]
    asked: bool


def _traced(
    builder: graph_builder.GraphBuilder, operations: fx.Graph, takes: tracer.Takes
) -> Traced:
    graph, steps = builder.build(operations), builder.unrolled
    if steps is None:
        return Traced(graph, takes, builder.returns, builder.constants, builder.reduced)
    old = steps.warn_of_kept(builder.modules)
    if old is not None:
        warnings.warn(old, stacklevel=2)
    by_step: tracer.Takes = "step" if steps.one_step else takes
    return Traced(graph, by_step, steps.returns, builder.constants, builder.reduced)


def _likelier(
    failed: dict[tracer.Takes, errors.UnsupportedGraphError],
    builders: Mapping[tracer.Takes, graph_builder.GraphBuilder],
) -> errors.UnsupportedGraphError:
    """Of several errors that of a sequence, unless the network shows that it takes images; with
    neurons that are called once a step, that of the trace that got further.
    """
    furthest = max(failed, key=lambda takes: builders[takes].reached)
    steps = builders[furthest].unrolled
    if "step" in failed and (steps is None or max(steps.calls.values(), default=0) < 2):
        return failed["step"]
    if steps is not None:
        return failed[furthest]
    image, sequence = failed.get("image"), failed.get("sequence")
    if image is None or sequence is None:
        return next(iter(failed.values()))
    takes_images = (tracer.ForwardError, traced_value.ShowsImageError)
    own = isinstance(image, tracer.ForwardError)
    return image if isinstance(sequence, takes_images) and not own else sequence


def _trace_as(
    takes: tracer.Takes, network: nn.Module, builder: graph_builder.GraphBuilder
) -> _Attempt:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        operations = tracer.run_symbolically(network, builder.sides_of)
        traced = _traced(builder, operations, takes)
    if takes == "image" and tracer.is_multi_step(network) and not builder.repeated:
        raise errors.UnsupportedGraphError(
            f"{type(network).__name__}: its modules are in step mode 'm', but its forward does not "
            "repeat an image over time; give it sequences, or repeat with x.unsqueeze(0).repeat"
        )
    messages = [warning.message for warning in caught]
    noted = tuple(m for m in messages if isinstance(m, errors.NetworkWarning))
    return _Attempt(traced, noted, builder.asked)


def from_torch(
    network: nn.Module,
    input_shape: Shape,
    time_steps: int,
    *,
    example: Tensor | None = None,
    input_kind: pixel_rule.InputKind = "images",
    over_time: reduction.OverTime | None = None,
    output: Key | None = None,
) -> Model:
    """The network with its weights, under the names that it has in `network`'s state dict.

    input_shape  (C, H, W) of one image
    time_steps   T that it runs for
    example      (B, C, H, W) or (T, B, C, H, W), float32, on which the graph is compared with the
                 module itself: every neuron's current, membrane and spikes; random numbers if left
                 out. Where populations do not fire on it, it is scaled up. Those that never fire
                 are warned about, and named in `info.provenance["untested"]`, for what follows
                 them is compared on zeros: give real data.
    input_kind   what the network is given: "images", whose uint8 pixels the runtime normalises as
                 the model's `info.normalization` says; "counts" or "spikes", events: whole numbers
                 from 0 to 255, or to 1, of any dtype; "values", any numbers
    over_time    what the class scores are of the steps that the network returns, all at once or
                 one at each call: their "mean", "sum", "last" or "max". None: the mean; where its
                 own forward makes scores of the steps, those
    output       of a forward that returns several values, a tuple or a dict: the place or name of
                 the one that holds the class scores. None: the spikes, if the others are membranes

    The network is read, not changed.
    Raises UnsupportedGraphError for what a graph cannot represent, UsageError for weights that are
    not float32, an unknown kind, another `over_time` than forward's own or an unknown `output`,
    ValidityError for an example of integers, VerificationError if the graph's numbers differ from
    the module's.
    """
    info = with_input_kind(ModelInfo(), input_kind)
    if example is not None:
        require_floats(example)
    examined = examine(
        network, input_shape, time_steps, example, over_time=over_time, output=output
    )
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    return examined.model(info, {"model": name})


@dataclass(frozen=True)
class Examined:
    """A compared graph, its module with those weights that the graph owns, and what was not tested.

    untested: populations that never fired while graph and network were compared.
    """

    traced: Traced
    module: GraphModule
    untested: tuple[str, ...]

    @property
    def told(self) -> dict[str, list[str]]:
        """What a provenance says of that; {} if all was tested."""
        return {"untested": list(self.untested)} if self.untested else {}

    def model(self, info: ModelInfo, made: Mapping[str, object]) -> Model:
        """The network at rest, whose provenance says `made`, and what was not tested."""
        told = {**made, **self.told}
        state = arrays_of(self.module.state_dict())
        graph = taking(self.module.graph, info.input_kind)
        return Model(graph, state, info=replace(info, provenance=told))


def examine(
    network: nn.Module,
    input_shape: Shape,
    time_steps: int,
    example: Tensor | None = None,
    *,
    over_time: reduction.OverTime | None = None,
    output: Key | None = None,
) -> Examined:
    """Trace a network and compare it with its graph; raises as `from_torch`."""
    _check_weights(network)
    traced = trace_with_input(network, input_shape, time_steps, example, output)
    traced = traced.scored(over_time)
    if example is not None and traced.takes == "image" and example.dim() > len(input_shape) + 1:
        raise errors.UsageError(
            f"{type(network).__name__}: its forward takes images (B, ...), and the example of "
            f"shape {tuple(example.shape)} is a sequence; give images"
        )
    module = GraphModule(traced.graph)
    state = {**network.state_dict(), **traced.constants}
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    _warn_of_tied(network, module)
    pair = _Pair(network, module.eval(), traced)
    if example is None:
        made = torch.Generator().manual_seed(2025)
        example = torch.randn(2, *traced.graph.input.shape, generator=made)
    with side_by_side.from_rest(network):
        silent = _compare(pair, example.detach().cpu())
    return Examined(traced, module, silent)


def _check_weights(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            if tensor.dtype != torch.float32:
                raise errors.UsageError(
                    f"weight {name} is {tensor.dtype}; give the network in float32, as "
                    "network.float() makes it"
                )
            if not torch.isfinite(tensor).all():
                raise errors.UsageError(f"weight {name} holds values that are not finite")


def _warn_of_tied(network: nn.Module, module: GraphModule) -> None:
    """One parameter under several names of the graph is several parameters there."""
    first: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name not in module.state_dict():
            continue
        same = first.setdefault(id(parameter), name)
        if same != name:
            text = (
                f"{name!r} and {same!r} are one parameter; the graph has it twice, and training or "
                "removal changes each alone"
            )
            warnings.warn(errors.NetworkWarning(text), stacklevel=3)


@dataclass(frozen=True)
class _Pair:
    network: nn.Module
    module: GraphModule
    traced: Traced

    def run(self, x: Tensor) -> tuple[side_by_side.TracedRun, side_by_side.TracedRun]:
        """The network's own run and the graph's."""
        own = side_by_side.run_own(
            self.network, self.module.graph, self.traced.takes, x, self.traced.returns
        )
        return own, side_by_side.run_graph(self.module, x)

    def doubled(self) -> "_Pair":
        """Both in float64."""
        double = GraphModule(self.module.graph)
        double.load_state_dict(self.module.state_dict())
        network = copy.deepcopy(self.network).double()
        stepped.cast_spikes(network)
        return _Pair(network, double.double().eval(), self.traced)

    def difference(
        self, own: side_by_side.TracedRun, ours: side_by_side.TracedRun
    ) -> side_by_side.Difference:
        populations = self.module.graph.populations
        thresholds = {node.name: node.neuron.v_threshold for node in populations}
        return side_by_side.difference(own, ours, thresholds, TOLERANCE)


def _compare(pair: _Pair, example: Tensor) -> tuple[str, ...]:
    """The populations that never fired. Raises VerificationError unless both are the same."""
    silent = [node.name for node in pair.module.graph.populations]
    for scale in (1.0, *SCALES):
        fired = _compare_on(pair, example * scale, scale)
        silent = [name for name in silent if name not in fired]
        if not silent:
            break
    if silent:  # on the example at any scale
        text = (
            f"{', '.join(silent[:3])}{' and more' if silent[3:] else ''} did not fire on the "
            "example, so what follows was compared on zeros"
        )
        warnings.warn(errors.NetworkWarning(text, "give images as example="), stacklevel=4)
    return tuple(silent)


def _compare_on(pair: _Pair, x: Tensor, scale: float) -> set[str]:
    """The populations that fired. Raises VerificationError where network and graph differ."""
    fired: set[str] = set()
    for piece in _pieces(pair.module.graph, x):
        own, ours = pair.run(piece)
        difference = pair.difference(own, ours)
        if difference.any:
            _require_rounding(pair, piece, scale, difference)
        fired |= {name for name, trace in ours.populations.items() if trace.spikes.any()}
    return fired


def _pieces(graph: SpikingGraph, x: Tensor) -> Iterator[Tensor]:
    """The example, few samples at a time where the network is large."""
    neurons = sum(prod(graph.shapes[node.name]) for node in graph.populations)
    samples = max(1, LARGEST_PIECE // max(1, neurons * graph.time_steps))
    yield from torch.split(x, samples, dim=0 if x.dim() == len(graph.input.shape) + 1 else 1)


def _require_rounding(
    pair: _Pair, x: Tensor, scale: float, difference: side_by_side.Difference
) -> None:
    """Raise VerificationError unless a difference is rounding.

    Another order of summation moves a sum across a threshold; in float64 that is as good as
    impossible, so a difference there is a wrong graph.
    """
    double = pair.doubled()
    exact = double.difference(*double.run(x.double()))
    if exact.any:
        on = "" if scale == 1 else f", on the example times {scale:g}"
        raise errors.VerificationError(
            f"{type(pair.network).__name__}: its graph does not compute what it computes ({exact}"
            f"{on}). Its forward does something that cannot be traced; give it without that"
        )
    if difference.of_outputs:
        text = f"the graph is the same in float64; in float32 {difference}"
        warnings.warn(errors.NetworkWarning(text), stacklevel=6)
