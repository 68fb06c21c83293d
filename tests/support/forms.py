"""Networks of everything that stands around synapses: constants, poolings, batch norm, branches.

A spec is a few numbers; what stands where follows from its seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.base.errors import UsageError
from soul_deploy.model.file import expected_shapes
from soul_deploy.model.model import Model

NEURONS = (
    ir.NeuronSpec("if", v_threshold=1.0, v_reset=None, fire="ge"),
    ir.NeuronSpec("lif", tau=2.0, v_threshold=0.5),
    ir.NeuronSpec("if", v_threshold=0.75, v_reset=0.0),
)
CLASSES = 3


@dataclass(frozen=True)
class FormSpec:
    """blocks: of a projection and its neurons. dyadic: all constants are, and sums are exact."""

    blocks: int
    side: int
    channels: int
    time_steps: int
    batch: int
    dyadic: bool
    seed: int


@st.composite
def forms(draw: st.DrawFn, *, dyadic: bool) -> FormSpec:
    """Specs, smallest first."""
    return FormSpec(
        draw(st.integers(1, 3)),
        draw(st.integers(4, 7)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        dyadic,
        draw(st.integers(0, 2**16)),
    )


class _Draft:
    """A graph being drawn; `shapes` of its nodes."""

    def __init__(self, spec: FormSpec) -> None:
        self.spec, self.rng = spec, np.random.default_rng(spec.seed)
        self.nodes: list[ir.Node] = []
        self.shapes: dict[str, ir.Shape] = {}
        self.shape = (2, spec.side, spec.side + 1)
        self.put(ir.Input, (), shape=self.shape)

    def put(self, kind: Any, inputs: tuple[str, ...], **values: Any) -> str:
        """Append a node; the name of its first input where it does not fit."""
        name = f"{kind.op}{len(self.nodes)}" if inputs else "input"
        node = kind(name=name, inputs=inputs, **values)
        try:
            self.shapes[name] = node.output_shape([self.shapes[i] for i in inputs])
        except UsageError:
            return inputs[0]
        self.nodes.append(node)
        return name

    def flip(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def rescaled(self, x: str) -> str:
        """x behind up to two operations without synapses."""
        for kind in self.rng.choice(("scale", "channels", "norm", "pool", "even", "max"), 2):
            if self.flip(0.6):
                continue
            if kind in ("scale", "channels"):
                factor = float(self.rng.choice((0.5, 2.0, -1.0, 0.25)))
                factor *= 1 if self.spec.dyadic else 0.7
                x = self.put(ir.Scale, (x,), factor=factor if kind == "scale" else None)
            elif kind == "norm":
                name = f"batch_norm{len(self.nodes)}"
                x = self.put(ir.ChannelNorm, (x,), norm=ir.BatchNorm(name, self._eps()))
            else:
                x = self._pooled(x, kind)
        return x

    def _eps(self) -> float:
        return 0.0 if self.spec.dyadic else 1e-5

    def _pooled(self, x: str, kind: str) -> str:
        sides = (1, 2) if self.spec.dyadic or kind == "max" else (1, 2, 3)
        kernel, stride = self._pair(sides), self._pair((1, 2))
        padding = self._pair((0, 0, 1)) if min(kernel) > 1 else (0, 0)
        if kind == "even":
            shape = self.shapes[x]
            half = (max(1, shape[-2] // 2), max(1, shape[-1] // 2)) if len(shape) == 3 else (1, 1)
            even = len(shape) == 3 and shape[1:] == (2 * half[0], 2 * half[1])
            return self.put(ir.AdaptiveAvgPool, (x,), size=half) if even else x
        pool = ir.MaxPool if kind == "max" else ir.AvgPool
        return self.put(pool, (x,), kernel=kernel, stride=stride, padding=padding)

    def _pair(self, sides: tuple[int, ...]) -> ir.Pair:
        first, second = self.rng.choice(sides, 2)
        return int(first), int(second)

    def projected(self, x: str) -> str:
        shape = self.shapes[x]
        name = f"convolution{len(self.nodes)}"
        channels = self.spec.channels
        grouped = channels == shape[0] and self.flip(0.2)
        norm = ir.BatchNorm(f"{name}_norm", self._eps()) if self.flip(0.3) else None
        return self.put(
            ir.Convolution,
            (x,),
            bias=self.flip(0.6),
            norm=norm,
            in_channels=shape[0],
            channels=channels,
            kernel=self._pair((1, 2, 3)),
            stride=self._pair((1, 1, 2)),
            padding=self._pair((0, 1)),
            dilation=self._pair((1, 1, 2)),
            groups=channels if grouped else 1,
        )

    def block(self, x: str) -> str:
        current = self.projected(self.rescaled(x))
        current = self.rescaled(current)
        beside = self.rescaled(x) if self.flip(0.5) else self.rescaled(current)
        if self.flip(0.5) and self.shapes[beside] == self.shapes[current]:
            both = self.put(ir.Merge, (current, beside), function="add")
            current = self.rescaled(both)
        neuron = NEURONS[int(self.rng.integers(len(NEURONS)))]
        return self.put(ir.Population, (current,), neuron=neuron)


def form_graph(spec: FormSpec) -> ir.SpikingGraph:
    """The graph of a spec: blocks, then a linear readout of the spikes."""
    draft = _Draft(spec)
    x = "input"
    for _ in range(spec.blocks):
        x = draft.block(x)
    x = draft.rescaled(x)
    if draft.flip(0.3):
        x = draft.put(ir.Flatten, (x,))
    head = ir.Readout("head", (x,), CLASSES, True, draft.flip(0.5))
    read = {"head"}
    for node in reversed((*draft.nodes, head)):
        read |= set(node.inputs) if node.name in read else set()
    kept = tuple(node for node in draft.nodes if node.name in read)
    return ir.SpikingGraph((*kept, head), spec.time_steps)


def form_model(spec: FormSpec) -> Model:
    """The network of a spec with weights, some of which are 0."""
    graph = form_graph(spec)
    rng = np.random.default_rng(spec.seed + 1)
    shapes = expected_shapes(graph)
    return Model(graph, {name: _values(name, shapes[name], spec, rng) for name in shapes})


def _values(name: str, shape: ir.Shape, spec: FormSpec, rng: np.random.Generator) -> Array:
    part = name.rsplit(".", 1)[-1]
    if part == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if part == "running_var":
        values = rng.choice((0.25, 1.0, 4.0), shape)
    elif part == "scale":
        values = rng.choice((0.5, 2.0, -1.0), shape)
    else:
        values = rng.integers(-2, 4, shape) / 4
    if not spec.dyadic and part != "running_mean":
        values = values * rng.uniform(0.8, 1.2, shape)
    return np.asarray(values, np.float32)


def form_images(spec: FormSpec) -> Tensor:
    """Images of quarters."""
    rng = np.random.default_rng(spec.seed + 2)
    shape = (spec.batch, 2, spec.side, spec.side + 1)
    return torch.from_numpy((rng.integers(0, 6, shape) / 4).astype(np.float32))
