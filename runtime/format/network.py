"""An event network as data: what runs without PyTorch, layer by layer, and every rule it obeys.

An object that exists is valid: each class checks what the kernels rely on (shapes, dtypes, index
ranges, finite values) when it is made, and raises FileFormatError otherwise. Kernels index without
checks, so nothing reaches them another way.

Maps are channel-last: neuron (c, y, x) of a (C, H, W) population has index (y·W + x)·C + c. The
layers stand in layers.py and map_layers.py, their rows of synapses in synapses.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.errors import LimitError
from soul_deploy.base.input_rule import (
    INPUT_KINDS,
    KIND_OF_OLD_FILES,
    InputKind,
    InputRule,
    is_input_kind,
)
from soul_deploy.runtime.format.layers import (
    Alternative,
    CurrentLayer,
    Firing,
    Layer,
    Neurons,
    PopulationLayer,
    SpikingLayer,
    Synaptic,
)
from soul_deploy.runtime.format.map_layers import MergeLayer, PoolLayer, ReadoutLayer, ScatterLayer
from soul_deploy.runtime.format.synapses import (
    Convolution,
    DenseRows,
    Matrix,
    Pair,
    Rows,
    Shape,
    SparseRows,
    Synapses,
)
from soul_deploy.runtime.format.validate import (
    MAX_STEPS,
    MAX_VALUES,
    Edge,
    EdgeKind,
    require,
    require_edge,
    require_shape,
)

__all__ = [
    "Alternative",
    "Convolution",
    "CurrentLayer",
    "DenseRows",
    "Edge",
    "EdgeKind",
    "EventNetwork",
    "Firing",
    "Layer",
    "Matrix",
    "MergeLayer",
    "Neurons",
    "Normalization",
    "Pair",
    "PoolLayer",
    "PopulationLayer",
    "ReadoutLayer",
    "Rows",
    "ScatterLayer",
    "Shape",
    "SparseRows",
    "SpikingLayer",
    "Synapses",
    "Synaptic",
]


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1].

    The runtime applies them to uint8; whoever gives floating-point numbers has done so.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.array([*self.mean, *self.std], np.float64)
        require(
            len(self.mean) == len(self.std) and np.isfinite(values).all() and min(self.std) > 0,
            f"normalisation mean {self.mean}, std {self.std}: finite, as many, std above 0",
        )


@brief
@dataclass(frozen=True)
class EventNetwork:
    """Layers in execution order and what they are valid for.

    input_name, input_shape   the input: (C, H, W) or (N,), analog
    time_steps                T
    fixed_steps               valid for this T only (something was removed that is silent within T)
    reset_per_sample          valid only when every sample starts at rest
    classes                   class names, or ()
    input_kind                what the input is: "images", "counts", "spikes" or "values"
    source_sha256             sha256 of the model file it was made from, or None
    edges                     what the input and every layer give; derived
    """

    input_name: str
    input_shape: Shape
    time_steps: int
    layers: tuple[Layer, ...]
    readout: ReadoutLayer
    fixed_steps: bool = False
    reset_per_sample: bool = False
    normalization: Normalization | None = None
    classes: tuple[str, ...] = ()
    source_sha256: str | None = None
    input_kind: InputKind = KIND_OF_OLD_FILES
    digest: str | None = field(default=None, compare=False)
    edges: Mapping[str, Edge] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_shape("input shape", self.input_shape)
        require(self.time_steps >= 1, f"time_steps {self.time_steps} is not at least 1")
        if self.time_steps > MAX_STEPS:
            raise LimitError(f"T = {self.time_steps}; the limit is {MAX_STEPS} steps")
        require(
            len(self.classes) in (0, self.readout.classes),
            f"{len(self.classes)} class names for {self.readout.classes} classes",
        )
        self._check_input()
        shapes: dict[str, Shape] = {self.input_name: self.input_shape}
        edges: dict[str, Edge] = {self.input_name: ("analog", None)}
        for layer in self.layers:
            self._check_place(layer, shapes)
            edges[layer.name] = self._edge_of(layer, edges)
            shapes[layer.name] = layer.out_shape
        self._check_place(self.readout, shapes)
        source = self.readout.source
        require(
            edges[source][0] != "analog",
            f"{self.readout.name}: takes spikes, but {source} is "
            + ("the input" if source == self.input_name else "analog"),
        )
        for name, shape in shapes.items():
            if self.time_steps * math.prod(shape) > MAX_VALUES:
                raise LimitError(
                    f"{name}: {self.time_steps} steps of {shape} given; the limit is {MAX_VALUES} "
                    "values"
                )
        object.__setattr__(self, "edges", edges)

    def _check_input(self) -> None:
        """The kind is known, and only pixels are normalised, channel by channel."""
        kinds, norm = ", ".join(INPUT_KINDS), self.normalization
        require(is_input_kind(self.input_kind), f"input kind {self.input_kind!r}; known: {kinds}")
        if norm is not None:
            require(
                self.input_kind == "images",
                f"a normalisation of pixels for an input of {self.input_kind}",
            )
            require(
                len(norm.mean) in (1, self.input_shape[0]),
                f"normalisation of {len(norm.mean)} channels for {self.input_shape}",
            )

    def _check_place(self, layer: "Layer | ReadoutLayer", shapes: Mapping[str, Shape]) -> None:
        """What comes before must feed it, with the right shape."""
        name = layer.name
        require(name not in shapes, f"two layers are called {name!r}")
        for source in layer.sources:
            require(source in shapes, f"{name}: its source {source!r} is not there")
            require(
                shapes[source] == layer.in_shape,
                f"{name}: takes {layer.in_shape}, but {source} is {shapes[source]}",
            )
        if isinstance(layer, Firing):
            self._check_generated(layer)
        if isinstance(layer, SpikingLayer | CurrentLayer):
            self._check_dead_rows(layer)

    def _edge_of(self, layer: Layer, edges: Mapping[str, Edge]) -> Edge:
        """What leaves a layer; what arrives must be what it takes."""
        arriving = [edges[source] for source in layer.sources]
        if isinstance(layer, SpikingLayer | CurrentLayer):
            require(
                (layer.edge, layer.bound) == arriving[0],
                f"{layer.name}: a {layer.edge} edge from {layer.source} with bound {layer.bound}; "
                f"what leaves there is {arriving[0][0]} with bound {arriving[0][1]}",
            )
            return ("spike", 1) if isinstance(layer, SpikingLayer) else ("analog", None)
        if isinstance(layer, PopulationLayer):
            require(
                arriving[0][0] == "analog",
                f"{layer.name}: neurons take a current, but {layer.source} is {arriving[0][0]}",
            )
            return "spike", 1
        if isinstance(layer, MergeLayer):
            edge = layer.edge_of(arriving)
            require_edge(layer.name, *edge)
            return edge
        if isinstance(layer, PoolLayer) and arriving[0][0] == "analog":
            require(
                all(2 * layer.padding[i] <= layer.kernel[i] for i in (0, 1)),
                f"{layer.name}: padding {layer.padding} beyond half the kernel {layer.kernel} "
                "leaves a window without values",
            )
        return arriving[0]

    def _check_generated(self, layer: Firing) -> None:
        """A pattern has T steps, and nothing is known beyond them."""
        if layer.pattern is not None:
            steps = len(layer.pattern)
            require(
                steps == self.time_steps and self.fixed_steps,
                f"{layer.name}: a pattern of {steps} steps needs a network that is valid for "
                f"T = {steps} only",
            )

    def _check_dead_rows(self, layer: Synaptic) -> None:
        """Rows of dead presynaptic neurons are left out when rows are packed: they are empty."""
        source, rows = self.by_name.get(layer.source), layer.synapses.rows
        explicit = isinstance(layer.synapses, Matrix) and isinstance(rows, SparseRows)
        if explicit and isinstance(source, Firing) and source.live is not None:
            assert isinstance(rows, SparseRows)
            filled = rows.starts[1:] > rows.starts[:-1]
            require(
                not filled[~source.live].any(),
                f"{layer.name}: a synapse comes from a neuron of {source.name} that is not live",
            )

    @cached_property
    def rule(self) -> InputRule:
        """What the numbers given to it mean."""
        norm = self.normalization
        mean, std = ((), ()) if norm is None else (norm.mean, norm.std)
        return InputRule(self.input_shape, self.time_steps, mean, std, kind=self.input_kind)

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def static(self) -> frozenset[str]:
        """The input, and layers with the same value at every step of a static input."""
        found = {self.input_name}
        for layer in self.layers:
            if not isinstance(layer, Firing) and found.issuperset(layer.sources):
                found.add(layer.name)
        return frozenset(found)

    @property
    def spiking_layers(self) -> tuple[SpikingLayer, ...]:
        """Projections with a population behind, in execution order."""
        return tuple(layer for layer in self.layers if isinstance(layer, SpikingLayer))

    @property
    def populations(self) -> tuple[Neurons, ...]:
        """Layers with neurons, in execution order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Neurons))

    @property
    def projected(self) -> tuple[Synaptic, ...]:
        """Layers with synapses, in execution order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Synaptic))
