"""Our nodes and weights as a NIR graph is read: values, factors on them, names."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from soul_deploy import ir
from soul_deploy.base import Array, brief, errors
from soul_deploy.export.nir import membranes
from soul_deploy.export.nir import package as nir_library
from soul_deploy.export.nir.neuron import Conventions
from soul_deploy.export.nir.recurrence import Graph
from soul_deploy.nn.graph_module import GraphModule

# Names that a module of ours already uses for something else.
OWN = {"graph", "channel_masks", "weight_gates", "neuron_gates"}
RESERVED = {*dir(GraphModule), *vars(nn.Module()), *OWN}


@dataclass(frozen=True)
class NirValue:
    """A NIR node's value: our node's value times a factor."""

    name: str
    factor: float = 1.0


def safe_name(key: str, node: Any) -> str:
    """Our name of a NIR node, which can be a module's: the one in its metadata, or its key."""
    name = str(node.metadata.get(nir_library.NAME, key)).strip(".") or "node"
    return f"node_{name}" if name.split(".")[0] in RESERVED else name


@brief
@dataclass
class Reader:
    """Our nodes and weights as they are made, in execution order.

    graph: the NIR graph, opened. last: our name of what the output reads. read: what a last
    population puts out. charged: neurons that `last` charges, and whose membrane is put out.
    """

    graph: Graph
    conventions: Conventions
    made: dict[str, ir.Node] = field(default_factory=dict)
    state: dict[str, Array] = field(default_factory=dict)
    last: str | None = None
    values: dict[str, NirValue] = field(default_factory=dict)
    shapes: dict[str, ir.Shape] = field(default_factory=dict)
    sums: dict[tuple[str, ...], NirValue] = field(default_factory=dict)
    read: membranes.ReadRule = "spikes"
    charged: membranes.Integrator | None = None

    def name(self, key: str) -> str:
        """Our name of a NIR node: the one in its metadata, made safe as a module's name."""
        name = safe_name(key, self.graph.nodes[key])
        if name in self.shapes:
            raise errors.FileFormatError(f"two NIR nodes are called {name!r}")
        return name

    def put(self, node: ir.Node, **arrays: Array | None) -> NirValue:
        """Append a node of ours with its weights. Raises FileFormatError if it does not fit."""
        try:
            shape = node.output_shape([self.shapes[name] for name in node.inputs])
        except (errors.UsageError, ValueError, IndexError) as error:
            raise errors.FileFormatError(f"the NIR graph does not fit together: {error}") from error
        self.made[node.name] = node
        self.shapes[node.name] = shape
        for part, array in arrays.items():
            if array is not None:
                self.state[f"{node.name}.{part}"] = array
        return NirValue(node.name)

    def arriving(self, key: str) -> NirValue:
        """The value that arrives at a NIR node: one source's, or the merge of several."""
        sources = tuple(a for a, b in self.graph.edges if b == key)
        if not sources:
            raise errors.UnsupportedGraphError(f"{key}: nothing feeds it")
        if len(sources) == 1:
            return self.values[sources[0]]
        if sources not in self.sums:
            values = [self.values[source] for source in sources]
            factor = values[0].factor
            if any(value.factor != factor for value in values):
                values = [NirValue(self.settled(key, value)) for value in values]
                factor = 1.0
            names = tuple(value.name for value in values)
            node = self.put(ir.Merge(f"{self.name(key)}.sum", names, "add"))
            self.sums[sources] = NirValue(node.name, factor)
        return self.sums[sources]

    def settled(self, key: str, value: NirValue, gain: float = 1.0) -> str:
        """Put a value's factor and `gain` into the synapses before it; its name.

        Raises UnsupportedGraphError if there are none, or something beside `key` reads them.
        """
        if value.factor * gain != 1.0:
            self._scale(key, value.name, value.factor * gain)
        return value.name

    def _scale(self, key: str, name: str, factor: float) -> None:
        node = self.made[name]
        if node.composable or node.arity is None:  # linear
            for source in node.inputs:
                self._scale(key, source, factor)
            return
        if not (node.projects and self.readers(name) == 1):
            raise errors.UnsupportedGraphError(
                f"{key}: what arrives is scaled by {factor:g}, and there are no synapses before it "
                f"that only it reads ({name}), so the factor has no place"
            )
        for part in (f"{name}.weight", f"{name}.bias"):
            if part in self.state:
                scaled = self.state[part].astype(np.float64) * factor
                self.state[part] = scaled.astype(np.float32)

    def weighted(self, key: str, value: NirValue, gain: Array) -> str:
        """As `settled`, where the gain may be one number for each neuron; those of a channel must
        be the same."""
        if gain.size == 1:
            return self.settled(key, value, float(gain))
        name, rows = self.settled(key, value), gain.reshape(len(gain), -1)
        if not (self.made[name].projects and self.readers(name) == 1):
            raise errors.UnsupportedGraphError(
                f"{key}: a resistance for each neuron, and there are no synapses before it that "
                f"only it reads ({name}), so they have no place"
            )
        if (rows != rows[:, :1]).any():
            raise errors.UnsupportedGraphError(
                f"{key}: resistances that differ within a channel; supported is one a channel"
            )
        self.weigh_rows(name, rows[:, 0], np.zeros(1))
        return name

    def read_of(self, key: str) -> membranes.ReadRule:
        """What a population puts out: what was said of the last one, or spikes."""
        last = any(
            type(self.graph.nodes[b]).__name__ == "Output" for a, b in self.graph.edges if a == key
        )
        return self.read if last else "spikes"

    def weigh_rows(self, name: str, gain: Array, shift: Array) -> None:
        """Multiply what a linear node gives, neuron by neuron, and add to it."""
        node = self.made[name]
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        if (gain != 1).any():
            rows = np.broadcast_to(gain, len(weight))
            sides = (-1, *[1] * (weight.ndim - 1))
            self.state[f"{name}.weight"] = (weight * rows.reshape(sides)).astype(np.float32)
            bias = None if bias is None else (bias * rows).astype(np.float32)
        if shift.any():
            bias = ((0.0 if bias is None else bias) + np.broadcast_to(shift, len(weight))).astype(
                np.float32
            )
        if bias is not None:
            self.state[f"{name}.bias"] = bias
            self.made[name] = replace(node, bias=True)  # type: ignore[call-arg]

    def readers(self, name: str) -> int:
        """How many NIR nodes read a value of ours; a Scale only hands it on."""
        return sum(
            self.values[a].name == name and type(self.graph.nodes[b]).__name__ != "Scale"
            for a, b in self.graph.edges
            if a in self.values
        )
