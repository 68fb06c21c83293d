"""An event network as data: what runs without PyTorch, layer by layer, and every rule it obeys.

An object that exists is valid: each class checks what the kernels rely on (shapes, dtypes, index
ranges, finite values) when it is made, and raises FileFormatError otherwise. Kernels index without
checks, so nothing reaches them another way.

Maps are channel-last: neuron (c, y, x) of a (C, H, W) population has index (y·W + x)·C + c. The
layers stand in layers.py and map_layers.py, their rows of synapses in synapses.py. Others import
from here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from soul_deploy.base import Array, brief, errors, pixel_rule
from soul_deploy.runtime.format import bounds, validate
from soul_deploy.runtime.format.layers import (
    Alternative,
    CurrentLayer,
    Firing,
    Layer,
    MapLayer,
    PopulationLayer,
    SpikingLayer,
    Synaptic,
)
from soul_deploy.runtime.format.map_layers import MergeLayer, PoolLayer, ReadoutLayer, ScatterLayer
from soul_deploy.runtime.format.recurrent_layer import RecurrentLayer
from soul_deploy.runtime.format.synapses import (
    ConvSynapses,
    DenseRows,
    MatrixSynapses,
    Pair,
    Rows,
    SparseRows,
    Synapses,
)
from soul_deploy.runtime.format.validate import Edge, EdgeKind, Shape, require_shape

L = TypeVar("L", bound=Layer)


@dataclass(frozen=True)
class PixelNormalization:
    """Per-channel mean and standard deviation of pixels in [0, 1].

    The runtime applies them to uint8; whoever gives floating-point numbers has done so.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.array([*self.mean, *self.std], np.float64)
        errors.require(
            len(self.mean) == len(self.std) and np.isfinite(values).all() and min(self.std) > 0,
            f"normalisation mean {self.mean}, std {self.std}: finite, as many, std above 0",
        )


@brief
@dataclass(frozen=True)
class EventNetwork:
    """Layers in execution order and what they are valid for.

    input_name, input_shape   the input: (C, H, W) or (N,), analog or events
    time_steps                T
    fixed_steps               valid for this T only (something was removed that is silent within T)
    reset_per_sample          valid only when every sample starts at rest
    classes                   class names, or ()
    input_kind                what the input is: "images", "counts", "spikes" or "values"
    source_sha256             sha256 of the model file it was made from, or None
    rates                     expected share of a layer's values that are nonzero at a step, by
                              name; measured at export, of some layers that give spikes or events
    active                    expected share of a layer's neurons that give a nonzero value at any
                              of the T steps, by name; of some of the layers that have a rate
    integers                  what a fixed-point network takes; None: a network of float32
    input_bound               of an input of events, their largest value; None: analog
    forms                     how the synapses of some layers shall run, by name (plan/forms.py)
    edges                     what the input and every layer give; derived
    """

    input_name: str
    input_shape: Shape
    time_steps: int
    layers: tuple[Layer, ...]
    readout: ReadoutLayer
    fixed_steps: bool = False
    reset_per_sample: bool = False
    normalization: PixelNormalization | None = None
    classes: tuple[str, ...] = ()
    source_sha256: str | None = None
    input_kind: pixel_rule.InputKind = pixel_rule.KIND_OF_OLD_FILES
    rates: Mapping[str, float] = field(default_factory=dict)
    active: Mapping[str, float] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    integers: pixel_rule.Integers | None = None
    input_bound: int | None = None
    digest: str | None = field(default=None, compare=False)
    edges: Mapping[str, Edge] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_shape("input shape", self.input_shape)
        errors.require(self.time_steps >= 1, f"time_steps {self.time_steps} is not at least 1")
        if self.time_steps > validate.MAX_STEPS:
            raise errors.LimitError(
                f"T = {self.time_steps}; the limit is {validate.MAX_STEPS} steps"
            )
        errors.require(
            len(self.classes) in (0, self.readout.classes),
            f"{len(self.classes)} class names for {self.readout.classes} classes",
        )
        self._check_input()
        shapes: dict[str, Shape] = {self.input_name: self.input_shape}
        edges: dict[str, Edge] = {self.input_name: self._input_edge()}
        for layer in self.layers:
            self._check_place(layer, shapes)
            layer.check_steps(self.time_steps, fixed=self.fixed_steps)
            for source in filter(self.by_name.__contains__, layer.sources):
                layer.check_source(self.by_name[source])
            edges[layer.name] = layer.edge_of([edges[source] for source in layer.sources])
            shapes[layer.name] = layer.out_shape
            if layer.feedback is not None:
                self._check_place(layer.feedback, shapes)
                edges[layer.feedback.name] = layer.feedback.leaving
                shapes[layer.feedback.name] = layer.feedback.out_shape
        self._check_place(self.readout, shapes)
        source = self.readout.source
        errors.require(
            edges[source][0] != "analog",
            f"{self.readout.name}: takes spikes, but {source} is "
            + ("the input" if source == self.input_name else "analog"),
        )
        for name, shape in shapes.items():
            if self.time_steps * math.prod(shape) > validate.MAX_VALUES:
                raise errors.LimitError(
                    f"{name}: {self.time_steps} steps of {shape} given; the limit is "
                    f"{validate.MAX_VALUES} values"
                )
        self._check_numbers(edges[source][1])
        object.__setattr__(self, "edges", edges)
        self._check_expectations()

    def _check_expectations(self) -> None:
        """Rates are shares, of layers that give events; forms are of layers with synapses."""
        known = {name for name, (kind, _) in self.edges.items() if kind != "analog"}
        for name, rate in self.rates.items():
            errors.require(
                name in known, f"a rate of {name!r}, which is no layer that gives events"
            )
            errors.require(0 <= rate <= 1, f"a rate of {name}, {rate}, that is not from 0 to 1")
        for name, share in self.active.items():
            errors.require(name in self.rates, f"active neurons of {name!r}, which has no rate")
            errors.require(
                self.rates[name] <= share <= 1,
                f"active neurons of {name}, {share}, that are not from its rate, "
                f"{self.rates[name]}, to 1",
            )
        joined = {layer.name for layer in self.projected}
        for name in self.forms:
            errors.require(name in joined, f"a form of {name!r}, which is no layer with synapses")

    def _check_input(self) -> None:
        """The kind is known, and only pixels are normalised, channel by channel."""
        kinds, norm = ", ".join(pixel_rule.INPUT_KINDS), self.normalization
        errors.require(
            pixel_rule.is_input_kind(self.input_kind),
            f"input kind {self.input_kind!r}; known: {kinds}",
        )
        if norm is not None:
            errors.require(
                self.input_kind == "images",
                f"a normalisation of pixels for an input of {self.input_kind}",
            )
            errors.require(
                len(norm.mean) in (1, self.input_shape[0]),
                f"normalisation of {len(norm.mean)} channels for {self.input_shape}",
            )

    def _input_edge(self) -> Edge:
        """What comes in: events, or analog values."""
        largest, most, name = self._largest_integer(), self.input_bound, self.input_name
        if most is None:
            return "analog", largest
        errors.require(
            self.input_kind in pixel_rule.EVENT_KINDS
            and 1 <= most <= (1 if self.input_kind == "spikes" else pixel_rule.MOST_COUNT),
            f"{name}: events up to {most} of {self.input_kind}",
        )
        given = self.integers
        errors.require(
            given is None or (given.low == 0 and given.high == most and not given.zero),
            f"{name}: events up to {most} that are the integers {given}",
        )
        return validate.edge_between(0, most)

    def _largest_integer(self) -> int | None:
        """The largest magnitude of the integers that come in; None: float32."""
        given, name = self.integers, self.input_name
        if given is None:
            return None
        errors.require(
            -bounds.MOST_INPUT <= given.low <= 0 < given.high <= bounds.MOST_INPUT,
            f"{name}: integers from {given.low} to {given.high}; 0 lies between, both in int16",
        )
        kinds = ("images", "counts", "spikes")
        errors.require(
            self.input_kind in kinds,
            f"{name}: integers of {self.input_kind}; valid: {', '.join(kinds)}",
        )
        errors.require(self.normalization is None, f"{name}: integers that are normalised")
        zero = given.zero or (0,)
        errors.require(
            len(zero) in (1, self.input_shape[0]) and all(0 <= z <= 255 for z in zero),
            f"{name}: zeros {zero} of pixels for {self.input_shape}",
        )
        if self.input_kind == "images":
            errors.require(
                given.low <= -max(zero) and 255 - min(zero) <= given.high,
                f"{name}: pixels less {zero} do not lie from {given.low} to {given.high}",
            )
        return max(-given.low, given.high)

    def _check_numbers(self, scored: int | None) -> None:
        """All weights are integers or none are; scores fit their type. scored: the largest value
        that the readout takes.
        """
        fixed, readout = self.integers is not None, self.readout
        for each in self.layers if fixed else ():
            errors.require(
                each.feedback is None,
                f"{each.name}: neurons that feed themselves have no form in fixed point",
            )
        for layer in self.projected:
            errors.require(
                layer.synapses.fixed == fixed,
                f"{layer.name}: {layer.synapses.rows.weight.dtype} weights in a network of "
                f"{'integers' if fixed else 'float32'}",
            )
        errors.require(
            readout.weight is None or readout.fixed == fixed,
            f"{readout.name}: a head of the other kind than the layers",
        )
        if fixed:
            errors.require(
                readout.neuron is None,
                f"{readout.name}: scores that are membranes have no form in fixed point",
            )
            bound = readout.score_bound(scored or 1, self.time_steps)
            if bound > bounds.MOST_SCORE:
                raise errors.LimitError(
                    f"{readout.name}: scores up to {bound:,}; the limit is {bounds.MOST_SCORE:,}"
                )

    def _check_place(self, layer: "Layer | ReadoutLayer", shapes: Mapping[str, Shape]) -> None:
        """The layer's sources must be earlier layers, with the shape that the layer takes."""
        name = layer.name
        errors.require(name not in shapes, f"two layers are called {name!r}")
        for source in layer.sources:
            errors.require(source in shapes, f"{name}: its source {source!r} is not there")
            errors.require(
                shapes[source] == layer.in_shape,
                f"{name}: takes {layer.in_shape}, but {source} is {shapes[source]}",
            )

    @cached_property
    def rule(self) -> pixel_rule.InputRule:
        """The rule that says what the numbers of an input mean."""
        norm = self.normalization
        mean, std = ((), ()) if norm is None else (norm.mean, norm.std)
        return pixel_rule.InputRule(
            self.input_shape,
            self.time_steps,
            mean,
            std,
            kind=self.input_kind,
            integers=self.integers,
            events=self.input_bound,
        )

    @property
    def takes(self) -> type[np.uint8] | type[np.int16] | type[np.float32]:
        """The dtype of what comes in."""
        if self.input_bound is not None:
            return np.uint8
        return np.float32 if self.integers is None else np.int16

    @property
    def blank(self) -> Array:
        """A sample of zeros, as the network takes it."""
        return np.zeros((1, *self.input_shape), self.takes)

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def static(self) -> frozenset[str]:
        """The input, and layers with the same value at every step of a static input. Events are
        not static: they arrive.
        """
        static = {self.input_name} if self.input_bound is None else set[str]()
        for layer in self.layers:
            if not layer.stateful and static.issuperset(layer.sources):
                static.add(layer.name)
        return frozenset(static)

    @property
    def spiking_layers(self) -> tuple[SpikingLayer, ...]:
        """Projections with a population behind, in execution order."""
        return self._of(SpikingLayer)

    @property
    def populations(self) -> tuple[Firing, ...]:
        """Layers with neurons, in execution order."""
        return self._of(Firing)

    @property
    def projected(self) -> tuple[Synaptic, ...]:
        """Layers with synapses, in execution order."""
        return self._of(Synaptic)

    @property
    def feedbacks(self) -> tuple[CurrentLayer, ...]:
        """The synapses from populations to themselves, in execution order; no layers."""
        return tuple(layer.feedback for layer in self.layers if layer.feedback is not None)

    @property
    def maps(self) -> tuple[MapLayer, ...]:
        """Layers without synapses and neurons, in execution order."""
        return self._of(MapLayer)

    def _of(self, kind: type[L]) -> tuple[L, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, kind))
