"""From traced operations to graph nodes.

Every value is followed with what its leading axes are, because the same call means different
things with them: `flatten(1)` of (B, C, H, W) flattens an image, of (T, B, C, H, W) a batch.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from torch import Tensor, fx, nn

from soul_deploy import ir
from soul_deploy.base import reduction
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, UsageError
from soul_deploy.frontend import (
    class_scores,
    membranes,
    module_kinds,
    parallel,
    pooled_scales,
    recurrent,
    reduced,
    scaled_by,
    stepped,
    summed,
    tracer,
    unrolled,
)
from soul_deploy.frontend.outputs import Key
from soul_deploy.frontend.sizes import BatchSize, Side
from soul_deploy.frontend.spiking_nodes import check_place
from soul_deploy.frontend.traced_value import ShowsImageError, TracedValue, told


class GraphBuilder:
    """Makes graph nodes of traced operations, each once, in the order in which they run.

    functions(builder, node) handles whatever is no module and no input. output: which of several
    values that forward returns holds the class scores. looped: forward may call neurons of one
    step in a loop over time.
    """

    def __init__(
        self, network: nn.Module, input_shape: ir.Shape, time_steps: int, input_lead: int,
        functions: Callable[["GraphBuilder", fx.Node], None], output: Key | None = None,
        looped: bool = False,
    ) -> None:  # fmt: skip
        self.modules = dict(network.named_modules())
        self.input_shape = input_shape
        self.time_steps = time_steps
        self.input_lead = input_lead
        self.nodes: dict[str, ir.Node] = {}
        self.shapes: dict[str, ir.Shape] = {}
        self.values: dict[fx.Node, TracedValue] = {}
        self.used: set[str] = set()
        self.memory = tracer.TensorMemory()
        self.asked = False  # for a shape
        self.repeated = False  # an image, over time
        by_steps = looped or any(map(stepped.is_stepped, self.modules.values()))
        self.unrolled = unrolled.Unrolled() if by_steps else None
        self.constants: dict[str, Tensor] = {}  # of the graph, not the network's own tensors
        self.reduced: reduction.OverTime | None = None  # what forward makes of the steps
        self.output = output  # which of the values that forward returns
        self.returns = stepped.NOTHING_MORE
        self._functions = functions
        self._followed: set[fx.Node] = set()
        self._last: fx.Node | None = None
        self._normed: list[fx.Node] = []

    def build(self, traced: fx.Graph) -> ir.SpikingGraph:
        """The graph of all operations."""
        *_, output = traced.nodes  # which PyTorch 2.4 cannot reverse
        self._follow_to(output.prev)
        self._follow_memory(output)
        return self._finish(output)

    @property
    def reached(self) -> int:
        """How many operations were followed so far."""
        return len(self._followed)

    def sides_of(self, node: fx.Node) -> tuple[Side, ...]:
        """The shape of an operation's result, while the operations behind it are still to come."""
        self.asked = True
        self._follow_to(node)
        if node not in self.values:
            raise self.unsupported(node, f"the shape of {told(node)}")
        value = self.values[node]
        return self.sides(value, self.shapes[value.name])

    def sides(self, value: TracedValue, shape: ir.Shape) -> tuple[Side, ...]:
        """The sides of a value whose own axes are `shape`."""
        steps = 1 if value.once else self.time_steps
        folded = (BatchSize(steps if value.folded else 1),)
        sides: tuple[Side, ...] = (*((steps, BatchSize()) if value.lead == 2 else folded), *shape)
        return tuple(sides[axis] for axis in value.order) or sides

    def _follow_to(self, last: fx.Node) -> None:
        """Make what comes before an operation and is not made yet, and the operation."""
        while last not in self._followed:
            node = self._last.next if self._last else next(iter(last.graph.nodes))
            if node.op == "placeholder":
                self._take_input(node)
            elif self.unrolled is not None:
                self.unrolled.follow(self, node)
            else:
                self.operate(node)
            self._follow_memory(node)
            self._followed.add(node)
            self._last = node

    def operate(self, node: fx.Node) -> None:
        """Make what one operation does."""
        if node.op == "call_module":
            self.call(node, str(node.target), node.args)
        else:
            self._functions(self, node)

    def _follow_memory(self, node: fx.Node) -> None:
        """Refuse reads of what was changed in place under another name; changes of the input."""
        changed = self.memory.stale(node)
        if changed is not None:
            raise self.unsupported(
                changed,
                f"an operation in place ({told(changed)}) on a value that {told(node)} "
                f"reads afterwards under another name ({tracer.place_of(node)}; y = y + x would "
                "make a new value)",
            )
        self.memory.made(node, self._within(node))
        if tracer.changes_in_place(node) and self.memory.owner(node).op == "placeholder":
            raise self.unsupported(
                node, f"an operation in place ({told(node)}) on the network's own input, which"
            )

    def _within(self, node: fx.Node) -> fx.Node | None:
        """The value in whose memory a value lies, or may lie; None if it surely has its own."""
        sources = node.all_input_nodes
        if not sources or tracer.changes_in_place(node):
            return sources[0] if sources else None
        if node.target in summed.ADDITIONS:  # 0 + x is as x, and not x
            return None
        made, source = self.values.get(node), self.values.get(sources[0])
        if made is None or source is None:
            return None
        viewed = self.nodes[made.name].reshapes and made.name != source.name
        viewed |= made.lead < source.lead and (made.reduced == "last" or made.step is not None)
        unchanged = made == replace(source, lead=made.lead, folded=made.folded, order=made.order)
        return sources[0] if viewed or (unchanged and node.target != "repeat") else None

    def _take_input(self, node: fx.Node) -> None:
        if "input" not in self.nodes:
            made = ir.Input("input", (), self.input_shape)
            self.add(node, made, TracedValue("input", self.input_lead))

    def call(self, node: fx.Node, path: str, args: Sequence[Any]) -> None:
        """One call of a module."""
        module = self.modules[path]
        kind = module_kinds.module_kind(module)
        if kind is None:
            module_kinds.refuse_by_name(path, module)
            raise self.unsupported(node, f"module {path!r} ({type(module).__name__})")
        path = self._again(node, path, kind, module) if path in self.used else path
        self.used.add(path)
        if len(args) != (2 if kind == "Merge" else 1) or node.kwargs:
            raise self.unsupported(node, f"module {path!r} with {len(args)} inputs")
        values = [self.value(node, argument) for argument in args]
        self._convert(node, path, kind, module, values)

    def _again(self, node: fx.Node, path: str, kind: str, module: nn.Module) -> str:
        """A name for another call of a module, and copies of its tensors under that name.

        Neurons are refused: a second call goes on from the state that the first one left.
        """
        if kind in module_kinds.ONCE:
            raise self.unsupported(
                node,
                f"module {path!r} is called twice (a loop over time belongs outside the network; "
                "elsewhere make a module for each place), which",
            )
        calls = (f"{path}_call_{n}" for n in count(2))
        again = next(name for name in calls if name not in self.modules)
        self.modules[again] = module
        tensors = module.state_dict()
        self.constants |= {f"{again}.{name}": tensor for name, tensor in tensors.items()}
        if tensors:
            text = (
                f"module {path!r} is called at several places ({tracer.place_of(node)}); the graph "
                f"has its weights again as {again!r}, and training or removal changes each alone"
            )
            warnings.warn(NetworkWarning(text), stacklevel=2)
        return again

    def _convert(
        self, node: fx.Node, path: str, kind: str, module: Any, values: list[TracedValue]
    ) -> None:
        source = values[0]
        if kind == "Merge":
            self.merge(node, path, module.function, values)
        elif kind in ("Identity", "Dropout", "Dropout2d"):  # in evaluation they change nothing
            self.values[node] = source
        elif kind in ("BatchNorm1d", "BatchNorm2d"):
            self._attach_norm(node, source, path, module)
        elif kind in module_kinds.NON_SPIKING:
            membranes.integrate(self, node, path, module, source)
        elif kind in module_kinds.RECURRENT:
            recurrent.convert(self, node, path, kind, module, source)
        elif kind == "VotingLayer":
            self._vote(node, path, module, source)
        elif kind == "LastThree":
            self.flatten(node, source, path, source.lead, -1)
        elif kind == "Flatten":
            lead = 1 if module_kinds.step_mode(module) == "m" else source.lead
            inner = replace(source, lead=lead)
            self.flatten(node, inner, path, module.start_dim, module.end_dim, after=source)
        else:
            self._add_converted(node, path, kind, module, source)

    def _add_converted(
        self, node: fx.Node, path: str, kind: str, module: Any, source: TracedValue
    ) -> None:
        reduced.check_module(self, node, path, module, source)
        check_place(path, module, kind, self.shapes[source.name], self.time_steps)
        if kind in parallel.KINDS:
            self.constants |= parallel.tensors_of(path, module, kind, self.time_steps)
        scaled_by.check_channels(self, node, path, module, source)
        converted = module_kinds.CONVERTERS[kind](path, (source.name,), module)
        after = replace(source, name=path)
        if converted.fires:
            after = self.fire(node, path, module, source)
        elif kind in ("RateReadout", "VoteReadout"):
            after = TracedValue(path, 1, reduced=module.over_time)
        self.add(node, converted, after)
        if isinstance(converted, ir.Population) and converted.neuron.unit != 1:
            unit = ir.Scale(f"{path}.unit", (path,), converted.neuron.unit)
            self.add(node, unit, replace(after, name=unit.name))
        if getattr(module, "ceil_mode", False):
            module_kinds.check_ceil_mode(converted, self.shapes[source.name])

    def fire(self, node: fx.Node, path: str, module: Any, source: TracedValue) -> TracedValue:
        """The value that neurons, or a module with neurons inside, give for a current."""
        reduced.check_neuron(self, node, path, source)
        if source.once and self.time_steps != 1:
            raise self.unsupported(
                node, f"neuron {path!r} on one step with time_steps = {self.time_steps}"
            )
        mode = module_kinds.step_mode(module)
        if mode is not None and (mode == "m") != (source.lead == 2):
            given = "a sequence (T, B, ...)" if source.lead == 2 else "one step (B, ...)"
            raise self.unsupported(
                node,
                f"neuron {path!r} in step mode {mode!r} with {given} as its input "
                "(spikingjelly.activation_based.functional.set_step_mode sets all modules)",
            )
        return TracedValue(path, 1 if mode == "s" else 2)

    def _attach_norm(self, node: fx.Node, source: TracedValue, path: str, module: Any) -> None:
        norm = ir.BatchNorm(path, module.eps, module.momentum)
        if not module.affine or module.running_mean is None:
            raise self.unsupported(
                node, f"batch norm {path!r} without affine parameters or running statistics"
            )
        reduced.check_not(self, node, f"batch norm {path!r}", source)
        normed = self.nodes[source.name].with_norm(norm)
        if normed is None:  # of its own: before a projection, or behind a pooling
            made = ir.ChannelNorm(path, (source.name,), norm)
            self.add(node, made, replace(source, name=path))
            return
        self._normed.append(node)
        self.nodes[source.name] = normed
        self.values[node] = source

    def _misplaced_norm(self, node: fx.Node) -> UnsupportedGraphError:
        what = f"batch norm {node.target!r} behind a layer whose output something else reads too"
        return self.unsupported(node, what)

    def _vote(self, node: fx.Node, path: str, module: Any, source: TracedValue) -> None:
        reduced.require_largest_last(self, node, f"module {path!r} (VotingLayer)", source)
        (neurons, *rest) = self.shapes[source.name]
        if rest or neurons % module.voting_size:
            raise self.unsupported(
                node, f"{path!r}: a vote of {module.voting_size} on {self.shapes[source.name]}"
            )
        classes = neurons // module.voting_size
        readout = ir.Readout(path, (source.name,), classes, False, False, module.voting_size)
        self.add(node, readout, replace(source, name=path))

    def merge(self, node: fx.Node, name: str, function: Any, values: list[TracedValue]) -> None:
        """Element by element; a branch without time is the same at every step."""
        if any(value.reduced or value.inverse for value in values):
            text = f"{name!r} of values averaged, summed or picked over time, or inverted"
            raise self.unsupported(node, text)
        if len({value.folded for value in values}) > 1:
            raise self.unsupported(node, f"{name!r} of a sequence and a folded one")
        lead = max(value.lead for value in values)
        once = all(value.once for value in values if value.lead == lead)
        made = ir.Merge(name, tuple(value.name for value in values), function)
        self.add(node, made, TracedValue(name, lead, values[0].folded, once))

    def flatten(
        self, node: fx.Node, source: TracedValue, name: str, start: int, end: int, *,
        after: TracedValue | None = None,
    ) -> None:  # fmt: skip
        """`flatten(start, end)` of a value: all its own axes, or time into the batch."""
        shape = self.shapes[source.name]
        rank = source.lead + len(shape)
        start, end = start % rank, end % rank
        if (start, end) == (0, 1) and source.lead == 2:
            self.values[node] = replace(source, lead=1, folded=True)
        elif (start, end) != (source.lead, rank - 1):
            axes = "(T, B" if source.lead == 2 else "(B"
            raise self.unsupported(
                node, f"flattening axes {start} to {end} of {axes}, {str(shape)[1:]}"
            )
        elif len(shape) == 1:
            self.values[node] = after or source
        else:
            self.add(node, ir.Flatten(name, (source.name,)), replace(after or source, name=name))

    def constant_of(self, name: str) -> Tensor:
        """A tensor of the graph, by its name there."""
        owner, _, part = name.rpartition(".")
        found = self.constants.get(name)
        return self.modules[owner].get_buffer(part) if found is None else found

    def add(self, node: fx.Node, made: ir.Node, value: TracedValue) -> None:
        """Put a graph node in and remember it as the result of `node`."""
        try:
            shape = made.output_shape([self.shapes[name] for name in made.inputs])
        except UsageError as error:
            raise UnsupportedGraphError(f"{error} ({tracer.place_of(node)})") from error
        self.nodes[made.name] = made
        self.shapes[made.name] = shape
        self.values[node] = value

    def value(self, node: fx.Node, argument: Any, *, membranes: bool = False) -> TracedValue:
        """What an argument holds; constants, sizes and inverted spikes are refused.

        membranes: whether those of all steps are taken too.
        """
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if value is not None and value.membrane and not (membranes and value.of_all_steps):
            what = f"the membrane of {value.name!r} outside its neuron, which only spikes leave,"
            raise self.unsupported(node, what)
        if value is not None and value.partial:
            what = f"the sum of {value.partial} of {self.time_steps} steps of {value.name!r}"
            raise self.unsupported(
                node, f"{what} (sum all of them in order, and go on then), which"
            )
        if value is not None and value.pair:
            raise self.unsupported(argument, "max without .values, and the places of the maximum,")
        if value is None or value.inverse or value.order:
            what = "1 - x outside x * (1 - y)" if value else "a constant or a second input"
            if value is not None and value.order:
                what = "axes in another order; permute them back first"
            name = node.target if isinstance(node.target, str) else node.name
            raise self.unsupported(node, f"{name!r} with {what}")
        return value

    def unsupported(self, node: fx.Node, what: str) -> UnsupportedGraphError:
        """The refusal, with the module, the line and what is supported."""
        return UnsupportedGraphError(
            f"{what} is not supported ({tracer.place_of(node)}); supported: {tracer.SUPPORTED}"
        )

    def shows_image(self, node: fx.Node, what: str) -> ShowsImageError:
        """As `unsupported`, where the network shows that it takes no sequences."""
        return ShowsImageError(str(self.unsupported(node, what)))

    def _finish(self, node: fx.Node) -> ir.SpikingGraph:
        for norm in self._normed:
            if len(norm.all_input_nodes[0].users) != 1:
                raise self._misplaced_norm(norm)
        value = class_scores.returned(self, node)
        self.reduced = value.reduced
        readout = replace(
            class_scores.readout(self, node, value), over_time=value.reduced or "mean"
        )
        needed, earlier = {*readout.inputs}, self.nodes.items()
        for name, made in reversed(earlier):
            if name in needed:
                needed.update(made.inputs)
        kept = [made for name, made in earlier if name in needed or not made.inputs]
        found = pooled_scales.behind_pools([*kept, readout], self.constant_of)
        self.constants |= found.constants
        graph = ir.SpikingGraph(tuple(found.nodes), self.time_steps)
        (source,) = graph.readout.inputs
        if graph.edges[source].kind == "analog" and (not readout.linear or readout.neuron):
            raise self.unsupported(node, f"class scores from {source!r}, which holds no spikes,")
        return graph
