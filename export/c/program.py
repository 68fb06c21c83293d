"""What the C program consists of: decided here, spelled by `code`, `header` and `self_test`.

Values are kept position by position, the channels of a position side by side. A current is a dense
array of sums; spikes are lists of the neurons that fired, which drive the loops behind them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.export.c.placement import Memory, Need, place
from soul_deploy.export.c.rows import LAYOUTS, Layout, Rows, rows_of, weight_rows
from soul_deploy.export.c.source import BYTES, FLOAT, type_of, unsigned_type
from soul_deploy.lowering import bounds, deploy, linear_operators
from soul_deploy.model.model import Model
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation
from soul_deploy.runtime.format.bounds import accumulator_for

Form = Literal["input", "current", "events"]
PREFIX = re.compile(r"[a-z][a-z0-9_]{0,30}")
MOST_INDEX = 1 << 31
POOL_MAP, EVENTS, VALUES = "map", "events", "values"


@brief
@dataclass(frozen=True)
class Value:
    """What a node holds in the program.

    type: in C, of the input's numbers, of a current's sums, or of the values beside a list of
    events; empty for spikes, which are 1.
    """

    node: str
    ident: str
    shape: ir.Shape
    form: Form
    type: str

    @property
    def length(self) -> int:
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def index_type(self) -> str:
        """Of the neurons in a list of events."""
        return "uint16_t" if self.length <= 1 << 16 else "uint32_t"

    @property
    def number(self) -> str:
        """The type that its numbers are computed with."""
        return FLOAT if self.type == FLOAT else "int32_t"


@brief
@dataclass(frozen=True)
class Program:
    """The program of a network. lowered: its composed form; layout: how weights are stored."""

    model: Model
    lowered: deploy.Deployed
    layout: Layout
    prefix: str

    @property
    def graph(self) -> ir.SpikingGraph:
        return self.lowered.graph

    @property
    def floats(self) -> bool:
        """Whether weights, currents and membranes are float32, else integers."""
        return not self.graph.integers

    @property
    def input(self) -> ir.Input:
        return self.graph.input

    @property
    def takes_maps(self) -> bool:
        """Whether a step is given all inputs, else a list of events."""
        return self.model.info.input_kind in ("images", "values")

    @property
    def zero(self) -> tuple[int, ...]:
        """What is taken off the pixels of each channel; empty: nothing."""
        return self.input.zero if isinstance(self.input, ir.IntegerInput) else ()

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest integer that an input can be."""
        if isinstance(self.input, ir.IntegerInput):
            return self.input.low, self.input.high
        return 0, 1 if self.model.info.input_kind == "spikes" else (1 << 15) - 1

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Those that have a function of their own, in execution order."""
        return tuple(n for n in self.graph.nodes[1:] if not n.composable)

    @cached_property
    def static(self) -> frozenset[str]:
        """Nodes that are computed once for an image."""
        return frozenset(self.graph.static if self.takes_maps else ())

    @cached_property
    def current_bounds(self) -> Mapping[str, Array]:
        return bounds.current_bounds(self.lowered)

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """Of the input and of every node but the readout, by name."""
        kept = (self.input, *self.nodes[:-1])
        return {node.name: self._value(at, node) for at, node in enumerate(kept)}

    def _value(self, at: int, node: ir.Node) -> Value:
        shape, edge = self.graph.shapes[node.name], self.graph.edges[node.name]
        known = node.name, identifier(at, node.name), shape
        if at == 0:
            return Value(*known, "input", self._input_type)
        if edge.kind == "analog":
            return Value(*known, "current", self._sums(node))
        assert edge.bound is not None
        kind = "" if edge.kind == "spike" else unsigned_type(edge.bound)
        return Value(*known, "events", kind)

    @property
    def _input_type(self) -> str:
        if self.floats:
            return FLOAT if self.takes_maps else "int16_t"
        return type_of(np.array(self.range))

    def _sums(self, node: ir.Node) -> str:
        """The type of a current; sums of integers may wrap around on their way, so unsigned."""
        if self.floats:
            return FLOAT
        return f"u{accumulator_for(bounds.largest(self.current_bounds[node.name]))}_t"

    def ident(self, name: str) -> str:
        if name in self.values:
            return self.values[name].ident
        return identifier(len(self.nodes), name)

    def sources(self, node: ir.Node) -> tuple[str, ...]:
        """The nodes whose values a node reads."""
        weighs = node.projects or node is self.graph.readout
        return (self.lowered.operator(node.name).source,) if weighs else node.inputs

    @cached_property
    def rows(self) -> Mapping[str, Rows]:
        """Weights by projection, and the readout's if it weighs."""
        return {
            node.name: rows_of(weight_rows(operator), self.layout)
            for node in self.nodes
            if (operator := self.operator(node)) is not None and operator.weight is not None
        }

    def operator(self, node: ir.Node) -> linear_operators.LinearOperator | None:
        weighs = node.projects or node is self.graph.readout
        return self.lowered.operator(node.name).operator if weighs else None

    def equation(self, node: ir.Population) -> Equation:
        return self.lowered.equations[node.name]

    def bias(self, node: ir.Node) -> Array | None:
        """By channel, int32 or float32; None without one."""
        operator = self.operator(node)
        bias = None if operator is None else operator.bias
        return None if bias is None or not bias.any() else bias

    @cached_property
    def memory(self) -> Memory:
        """Where values and what they are made in lie while they are needed."""
        return place(self._needs())

    def _needs(self) -> Iterator[Need]:
        places = {node.name: at for at, node in enumerate(self.nodes)}
        last = dict(places)
        for node in self.nodes:
            for name in self.sources(node):
                last[name] = max(last.get(name, 0), places[node.name])
        for name, at in places.items():
            if name not in self.values:
                continue
            value, first, end = self.values[name], at, last[name]
            if name in self.static:  # an image's is kept through all steps
                first, end = 0, len(self.nodes)
            if value.form == "current":
                yield Need(value.ident, value.type, value.length, first, end)
                continue
            key = f"{value.ident}.{EVENTS}"
            yield Need(key, value.index_type, value.length, first, end)
            if value.type:
                key = f"{value.ident}.{VALUES}"
                yield Need(key, value.type, value.length, first, end)
            if gathers(self.graph[name]):
                key = f"{value.ident}.{POOL_MAP}"
                yield Need(key, value.type or "uint8_t", value.length, at, at)

    @property
    def keeps_step_scores(self) -> bool:
        """Whether scores are made of others: the largest of those of all steps, or scaled sums."""
        return self.floats or self.graph.readout.over_time == "max"

    @property
    def step_scores_bound(self) -> int:
        """The largest absolute score of one step."""
        node = self.graph.readout
        steps = self.graph.time_steps if node.over_time in ("mean", "sum") else 1
        return bounds.largest(self.current_bounds[node.name]) // steps

    @property
    def most_steps(self) -> int:
        """Steps between two resets: sums of all steps fit int32, and stored patterns end."""
        if self.model.for_one_t:
            return self.graph.time_steps
        if self.graph.readout.over_time in ("mean", "sum") and not self.floats:
            return (MOST_INDEX - 1) // max(self.step_scores_bound, 1)
        return MOST_INDEX - 1

    @property
    def ram(self) -> int:
        """Bytes of the state: membranes, input, working memory, scores."""
        membranes = sum(
            self.values[node.inputs[0]].length * BYTES[membrane_type(self.equation(node))]
            for node in self.graph.populations
        )
        given = self.values[self.input.name]
        lists = sum(value.form == "events" for value in self.values.values())
        scores = self.graph.readout.classes * (2 if self.keeps_step_scores else 1)
        counters = 4 * (1 + lists + scores)
        return membranes + given.length * BYTES[given.type] + self.memory.bytes + counters


def gathers(node: ir.Node) -> bool:
    """Whether a node makes its list of events from a map, in which it joins what comes in."""
    return isinstance(node, ir.MaxPool | ir.Merge)


@dispatch.operation_table(Equation)
def membrane_type(equation: Equation) -> str:
    raise membrane_type.unknown(equation)


membrane_type.on(FixedEquation)(lambda e: "int16_t" if e.highest < 1 << 15 else "int32_t")
membrane_type.on(NeuronEquation)(lambda _: FLOAT)


def shared(kind: str) -> str:
    """The array of the state in which all values of a type lie."""
    return f"shared{BYTES[kind] * 8}" if kind != FLOAT else "shared_float"


def identifier(place: int, name: str) -> str:
    """A part of a C identifier: names of others never reach the source as they are."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
    return f"{place}_{plain}" if plain else str(place)


def make_program(
    model: Model, *, layout: Layout = "size", prefix: str = "soul", as_float: bool = False
) -> Program:
    """The program of a fixed-point model, or of a float model if that is asked for.

    Raises UsageError for a model of the other kind or a wrong prefix, UnsupportedGraphError, naming
    the node, for what has no loop in C.
    """
    if not PREFIX.fullmatch(prefix):
        raise errors.UsageError(
            f"prefix {prefix!r}; a C name of lower-case letters, digits and _, 31 at most"
        )
    if layout not in LAYOUTS:
        raise errors.UnknownNameError("layout", layout, LAYOUTS)
    if not model.graph.integers and not as_float:
        raise errors.UsageError(
            "the model is a network of floating-point numbers; C is written from fixed-point "
            "networks: `soul-deploy quantize MODEL -o MODEL_int8` makes one; --float writes "
            "float32, for comparison"
        )
    if model.graph.integers and as_float:
        raise errors.UsageError(
            "--float writes float32, and this is a fixed-point model; give the model that it was "
            "made from, or leave --float out"
        )
    lowered = deploy.lower(model).composed
    refuse_unsupported(lowered)
    return Program(model, lowered, layout, prefix)


def refuse_unsupported(lowered: deploy.Deployed) -> None:
    """Raise UnsupportedGraphError for what has no loop in C."""
    graph = lowered.graph
    for name, back in graph.feedbacks.items():
        raise errors.UnsupportedGraphError(
            f"{name}: its own spikes come back through {back.name}, which C has no loop for yet"
        )
    for population in graph.populations:
        if not isinstance(lowered.equations[population.name], FixedEquation | NeuronEquation):
            raise errors.UnsupportedGraphError(
                f"{population.name}: neurons of family {population.neuron.family!r} have no "
                "equation in C; IF, LIF, PLIF and snnTorch's Leaky have"
            )
    for node in graph.nodes:
        takes_all = node.projects or node.composable or node is graph.readout
        for name in node.inputs:
            if graph[name].composable and not takes_all:
                raise errors.UnsupportedGraphError(
                    f"{node.name}: its input {name!r} is no projection ({graph[name].op}); "
                    "flattening and pooling are a part of the projection behind them, so a "
                    "projection must follow"
                )
            if node.fires and graph.edges[name].kind != "analog":
                raise errors.UnsupportedGraphError(
                    f"{node.name}: its input {name!r} is no current but {graph.edges[name].kind} "
                    f"values ({graph[name].op}); put a convolution or a linear layer in between"
                )
    if graph.readout.neuron is not None:
        raise errors.UnsupportedGraphError(
            f"{graph.readout.name}: its scores are membranes; in C, scores are sums of spikes"
        )
    source = lowered.operator(graph.readout.name).source
    if graph.edges[source].kind == "analog":
        raise errors.UnsupportedGraphError(
            f"{graph.readout.name}: reads analog values from {source!r}; a readout sums spikes"
        )
    _refuse_large(lowered)


def _refuse_large(lowered: deploy.Deployed) -> None:
    for name, shape in lowered.graph.shapes.items():
        if math.prod(shape) >= MOST_INDEX // 4:
            raise errors.LimitError(f"{name}: {shape} is more than a microcontroller's loops count")
