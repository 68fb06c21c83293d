"""A spiking network as data: populations, projections and the plain operations between them.

The graph is frozen, printable and free of PyTorch. It holds structure only; weights are a state
dict under the original parameter names (a projection called `features.0.conv.0` owns
`features.0.conv.0.weight`). Shapes leave out time and batch: (C, H, W) for maps, (N,) for vectors.

Nodes stand in execution order. What a node's output can hold, its *edge kind*, follows from the
graph alone: spike (0 or 1), graded (integers with a known bound) or analog.
"""

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from soul_deploy.base import brief
from soul_deploy.base.errors import FileFormatError, UnsupportedGraphError, UsageError
from soul_deploy.ir import nodes
from soul_deploy.ir.inputs import require_one_dtype
from soul_deploy.ir.neurons import Edge, NeuronSpec
from soul_deploy.ir.node import BatchNorm, Node, Shape
from soul_deploy.ir.nodes import Input, Population, Projection, Readout
from soul_deploy.runtime.format.validate import MAX_NEURONS

NodeT = TypeVar("NodeT", bound=Node)
SUBTRACT, OVER_TIME, NEURON, UNIT = "v_subtract", "over_time", "neuron", "unit"
FEEDBACK = "feedback"
SETTINGS, TENSORS = "settings", "tensors"
MAX_SIDE = 1 << 31
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading data of another form raises."""


@brief
@dataclass(frozen=True)
class SpikingGraph:
    """The network: nodes in execution order (first the Input, last the Readout) and T.

    Raises UsageError or UnsupportedGraphError when the nodes don't fit together.
    """

    nodes: tuple[Node, ...]
    time_steps: int
    shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    edges: Mapping[str, Edge] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.time_steps < 1:
            raise UsageError(f"time_steps {self.time_steps} must be at least 1")
        shapes: dict[str, Shape] = {}
        edges: dict[str, Edge] = {}
        for node in self.nodes:
            if node.name in shapes:
                raise UnsupportedGraphError(f"two nodes are called {node.name!r}")
            missing = [name for name in node.inputs if name not in shapes]
            if missing:
                raise UnsupportedGraphError(f"{node.name}: its input {missing[0]!r} comes later")
            shapes[node.name] = node.output_shape([shapes[name] for name in node.inputs])
            edges[node.name] = node.output_edge([edges[name] for name in node.inputs])
            if math.prod(shapes[node.name]) > MAX_NEURONS:
                raise UnsupportedGraphError(
                    f"{node.name}: {shapes[node.name]} is more than {MAX_NEURONS} values"
                )
            back = node.feedback
            if back is not None:
                if back.name in shapes:
                    raise UnsupportedGraphError(f"two nodes are called {back.name!r}")
                shapes[back.name] = back.output_shape([shapes[node.name]])
                edges[back.name] = back.output_edge([edges[node.name]])
        object.__setattr__(self, "shapes", MappingProxyType(shapes))
        object.__setattr__(self, "edges", MappingProxyType(edges))
        if not self.nodes or not isinstance(self.nodes[0], Input):
            raise UnsupportedGraphError("the first node must be the input")
        if not isinstance(self.nodes[-1], Readout):
            raise UnsupportedGraphError("the last node must be the readout")
        if sum(isinstance(node, Input | Readout) for node in self.nodes) != 2:
            raise UnsupportedGraphError("a second input or readout")
        require_one_dtype(self.nodes, integers=self.integers)

    def __reduce__(self) -> tuple[type["SpikingGraph"], tuple[tuple[Node, ...], int]]:
        """A copy is built from the nodes, as any graph: the views of it cannot be copied."""
        return SpikingGraph, (self.nodes, self.time_steps)

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """All nodes, feedbacks among them."""
        found = {node.name: node for node in self.nodes}
        return MappingProxyType(found | {back.name: back for back in self.feedbacks.values()})

    def neurons_shape(self, name: str) -> Shape:
        """The shape of a population's neurons, without generated ones; or of the readout's own."""
        own = name == self.readout.neurons_name
        return self.shapes[self.readout.name if own else self[name].inputs[0]]

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """For each node, the names of the nodes that read it at the same step."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node.name)
        found |= {back.name: [name] for name, back in self.feedbacks.items()}
        return MappingProxyType({name: tuple(users) for name, users in found.items()})

    @cached_property
    def feedbacks(self) -> Mapping[str, Node]:
        """Population -> what its own spikes of the step before go through; those that have it."""
        found = {node.name: node.feedback for node in self.nodes}
        return MappingProxyType({name: back for name, back in found.items() if back is not None})

    def of_type(self, kind: type[NodeT]) -> Iterator[NodeT]:
        """Nodes of one type, in execution order."""
        return (node for node in self.nodes if isinstance(node, kind))

    @property
    def input(self) -> Input:
        node = self.nodes[0]
        assert isinstance(node, Input)
        return node

    @property
    def readout(self) -> Readout:
        node = self.nodes[-1]
        assert isinstance(node, Readout)
        return node

    @property
    def integers(self) -> bool:
        """Whether it is a fixed-point network (docs/fixed-point.md)."""
        return isinstance(self.input, nodes.IntegerInput)

    @property
    def populations(self) -> tuple[Population, ...]:
        """Spiking layers in execution order; an index on the command line counts these."""
        return tuple(self.of_type(Population))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Convolutions and linear layers in execution order (the readout's head not among them)."""
        return tuple(self.of_type(Projection))

    def projection(self, name: str) -> Projection:
        node = self[name]
        assert isinstance(node, Projection), node
        return node

    @cached_property
    def static(self) -> tuple[str, ...]:
        """Nodes that a static image alone determines, in execution order, the input among them."""
        found: list[str] = []
        for node in self.nodes[:-1]:
            if not node.fires and all(name in found for name in node.inputs):
                found.append(node.name)
        return tuple(found)

    def needed(self, wanted: Iterable[str], known: Container[str] = ()) -> set[str]:
        """The `wanted` nodes, and what they are made from; nothing that is `known`."""
        found = {name for name in wanted if name not in known}
        for node in reversed(self.nodes):
            if node.name in found:
                found.update(name for name in node.inputs if name not in known)
        return found

    def masked_projection(self, name: str) -> str:
        """The projection that a channel mask called `name` acts on: itself, or a population's.

        A population's current may be averaged or multiplied by constants on the way to it, and, if
        nothing else reads it, normed by a batch norm of its own.
        """
        node = self[name]
        if not node.projects:
            node = self[node.inputs[0]]
        while node.keeps_zero:
            node = self[node.inputs[0]]
        if not node.rescales:
            return node.name
        before = node
        while before.keeps_zero or before.rescales:
            before = self[before.inputs[0]]
        alone = before.projects and self.population_fed_by(before.name) == name
        return before.name if alone else node.name

    def charged_by(self, projection: str) -> tuple[str, ...]:
        """The populations that a channel mask of `projection` may be called after."""
        found: list[str] = []
        for name in self.consumers[projection]:
            if self[name].fires:
                found.append(name)
            elif self[name].keeps_zero:
                found += self.charged_by(name)
        alone = self.population_fed_by(projection)
        return tuple(found) if found or alone is None else (alone,)

    @cached_property
    def masked_norms(self) -> Mapping[str, str]:
        """Batch norm of its own -> the projection whose channel mask acts on its output too.

        It is the last one between the projection and the population that this alone feeds.
        """
        found: dict[str, str] = {}
        for projection in self.projections:
            fed = self.population_fed_by(projection.name)
            way = [] if fed is None else list(self.way_between(projection.name, fed))
            norms = [node for node in way if node.rescales and not node.keeps_zero]
            found |= {node.name: projection.name for node in norms[-1:]}
        return MappingProxyType(found)

    def way_between(self, first: str, last: str) -> Iterator[Node]:
        """The nodes between two of which each reads the one before it, in execution order."""
        way: list[Node] = []
        node = self[self[last].inputs[0]]
        while node.name != first:
            way.append(node)
            node = self[node.inputs[0]]
        return reversed(way)

    def takes_composed(self, name: str) -> bool:
        """Whether composable nodes in front of a node become part of it, or of one behind it."""
        node = self[name]
        return node.projects or node.composable or node.rescales or node is self.readout

    def population_fed_by(self, projection: str) -> str | None:
        """The population that a projection's current reaches, if it reaches nothing else."""
        (name, *others) = self.consumers[projection] or ("",)
        while name and not others and (self[name].keeps_zero or self[name].rescales):
            (name, *others) = self.consumers[name] or ("",)
        return name if name and not others and self[name].fires else None

    def with_nodes(self, changed: Mapping[str, Node]) -> "SpikingGraph":
        """A graph with the named nodes replaced."""
        return SpikingGraph(
            tuple(changed.get(node.name, node) for node in self.nodes), self.time_steps
        )

    def with_time_steps(self, time_steps: int) -> "SpikingGraph":
        """The same network run for another number of steps."""
        return replace(self, time_steps=time_steps)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` reads it back."""
        return {"time_steps": self.time_steps, "nodes": [node_to_json(node) for node in self.nodes]}

    @staticmethod
    def from_json(data: Any) -> "SpikingGraph":
        """The graph of a file. Raises FileFormatError if the data is not a graph."""
        try:
            found = tuple(node_from_json(entry, Node) for entry in data["nodes"])
            return SpikingGraph(found, bounded_integer(data["time_steps"]))
        except UNREADABLE as error:
            raise FileFormatError(f"its graph cannot be read ({str(error)[:200]})") from error
        except (UsageError, UnsupportedGraphError) as error:
            raise FileFormatError(f"its graph does not fit together: {error}") from error


def node_to_json(node: Node) -> dict[str, Any]:
    """The node's operation and fields as plain JSON data."""
    values: dict[str, Any] = {"op": node.op}
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, Node):
            value = node_to_json(value)
        elif isinstance(value, (NeuronSpec, BatchNorm)):
            value = {inner.name: getattr(value, inner.name) for inner in fields(value)}
            if value.get(SUBTRACT, 0.0) is None:
                del value[SUBTRACT]  # few have it, and earlier versions do not know it
            for name in (SETTINGS, TENSORS):
                if name in value and not value[name]:
                    del value[name]
                elif name in value:
                    value[name] = dict(value[name])
        values[item.name] = list(value) if isinstance(value, tuple) else value
    if values.get(OVER_TIME) == "mean":
        del values[OVER_TIME]  # earlier versions know no other
    for name in (NEURON, UNIT, FEEDBACK):  # they know none
        if name in values and values[name] is None:
            del values[name]
    return values


def bounded_integer(value: Any) -> int:
    """`value` if it is an integer from 0 to 2^31 - 1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_SIDE:
        raise ValueError(f"{value!r} is not an integer from 0 to {MAX_SIDE - 1}")
    return value


def node_from_json(
    entry: Any, kind: type[NodeT], ops: Mapping[str, type[Node]] = nodes.OPS
) -> NodeT:
    """The node of `node_to_json`. Raises ValueError, KeyError or TypeError for no such `kind`.

    ops: what it can be, by operation.
    """
    values = dict(entry)
    cls = ops[values.pop("op")]
    if not issubclass(cls, kind):
        raise ValueError(f"{kind.op} {cls.op!r}")
    known = {item.name for item in fields(cls)}
    if set(values) | (known & OPTIONAL.get(cls, set())) != known:
        raise ValueError(f"{cls.op}: fields {sorted(values)}, expected {sorted(known)}")
    for name, value in values.items():
        values[name] = _field_from_json(name, value)
    if cls.arity not in (None, len(values["inputs"])):
        raise ValueError(f"{values['name']}: {cls.op} of {len(values['inputs'])} inputs")
    return cls(**values)


OPTIONAL: Mapping[type[Node], set[str]] = {
    Readout: {OVER_TIME, NEURON, UNIT},
    Population: {FEEDBACK},
}
"""Fields that a file leaves out where they are as in files before there were others."""
TEXTS, TRUTHS = ("name", "function", OVER_TIME), ("bias", "linear")
PAIRS = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1, "size": 1}  # and the least side


def _field_from_json(name: str, value: Any) -> Any:
    if name == "inputs":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"inputs {value!r} are not names")
        return tuple(value)
    if name == NEURON:
        return _spec_from_json(value)
    if name == "norm":
        return None if value is None else _norm_from_json(value)
    if name == FEEDBACK:
        return node_from_json(value, Node, nodes.FEEDBACKS)
    if name in ("low", "high") or name == "zero":
        return _zeros(value) if name == "zero" else _signed(value)
    if name == UNIT:
        return _number(name, value)
    if name == "factor":
        return None if value is None else _number(name, value)
    if name in TEXTS or name in TRUTHS:
        if not isinstance(value, str if name in TEXTS else bool):
            raise ValueError(f"{name} {value!r} is not {'text' if name in TEXTS else 'a truth'}")
        return value
    if name in PAIRS or name in ("shape", "index"):
        return _sides(name, value)
    return bounded_integer(value)


def _signed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= MAX_SIDE:
        raise ValueError(f"{value!r} is not an integer within 2^31")
    return value


def _zeros(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"zero {value!r} is not a list")
    return tuple(map(bounded_integer, value))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} {value!r} is not a number")
    return float(value)


def _sides(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} {value!r} is not a list")
    sides = tuple(bounded_integer(side) for side in value)
    if name in PAIRS and (len(sides) != 2 or min(sides) < PAIRS[name]):
        raise ValueError(f"{name} {sides} must be two numbers from {PAIRS[name]}")
    if name == "shape" and (len(sides) not in (1, 3) or 0 in sides):
        raise ValueError(f"shape {sides} is neither (C, H, W) nor (N,)")
    return sides


def _spec_from_json(data: Any) -> NeuronSpec:
    for name in ("tau", "v_threshold", "surrogate_alpha"):
        data[name] = float(data[name])
    data["v_reset"] = None if data["v_reset"] is None else float(data["v_reset"])
    if SUBTRACT in data:
        data[SUBTRACT] = float(data[SUBTRACT])
    if TENSORS in data:
        data[TENSORS] = tuple((str(k), str(v)) for k, v in data[TENSORS].items())
    if SETTINGS in data:
        data[SETTINGS] = tuple((str(k), float(v)) for k, v in data[SETTINGS].items())
    for name in ("decay_input", "detach_reset"):
        if not isinstance(data[name], bool):
            raise ValueError(f"{name} {data[name]!r} is not true or false")
    return NeuronSpec(**data)


def _norm_from_json(data: Any) -> BatchNorm:
    name, eps, momentum = data["name"], float(data["eps"]), data["momentum"]
    momentum = None if momentum is None else float(momentum)
    if set(data) != {"name", "eps", "momentum"} or not isinstance(name, str):
        raise ValueError(f"batch norm {data!r}")
    if not (0 <= eps <= 1 and math.isfinite(momentum or 0.0)):
        raise ValueError(f"batch norm with eps {eps} and momentum {momentum}")
    return BatchNorm(name, eps, momentum)
