"""A trained network as a NIR graph: what leaves for other toolkits and neuromorphic chips.

One NIR graph is one time step; T, dt and how the output is decoded stand in the metadata. Batch
norm is folded, every neuron parameter is an array of the population's shape. A sum is two or more
edges into one node. What NIR cannot hold is refused by name.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import dispatch, errors, files, reduction
from soul_deploy.export.nir import membranes, neuron, package
from soul_deploy.export.nir.package import DEFAULT_DT, nir_package
from soul_deploy.lowering import deploy, fold_batch_norm, pool_windows
from soul_deploy.model.model import Model
from soul_deploy.runtime.equations import Equation, NeuronEquation

INSTEAD = "export event or onnx"


@dataclass
class _Writer:
    """The NIR graph being drawn; `outlets`: the NIR nodes whose sum is one of our nodes' value."""

    nir: Any
    model: Model
    folded: Mapping[str, fold_batch_norm.DeployedWeights]
    equations: Mapping[str, Equation]
    dt: float
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    outlets: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, name: str, node: Any, sources: tuple[str, ...]) -> str:
        """Append a NIR node called after `name` and its edges; the name it got."""
        stem = name.replace(".", "_").replace("/", "_")  # readers turn dots into underscores
        taken = {*self.nodes, "input", "output"}
        numbered = chain([stem], (f"{stem}_{k}" for k in count(2)))
        key = next(name for name in numbered if name not in taken)
        node.metadata[package.NAME] = name
        self.nodes[key] = node
        self.edges += [(source, key) for source in sources]
        return key

    def put(self, node: ir.Node, nir_node: Any) -> None:
        """Append the NIR node that is our single-input node."""
        self.outlets[node.name] = (self.add(node.name, nir_node, self.outlets[node.inputs[0]]),)

    def shape(self, node: ir.Node) -> tuple[int, ...]:
        return self.model.graph.shapes[node.name]


def build_nir(model: Model, *, dt: float = DEFAULT_DT, source_sha256: str | None = None) -> Any:
    """The `nir.NIRGraph` of one time step of `model`; dt: seconds per step.

    Raises UnsupportedGraphError, by name, for what NIR or its readers cannot hold, and UsageError
    if the package nir is missing or dt is not above 0.
    """
    nir = nir_package()
    if not dt > 0:
        raise errors.UsageError(f"dt {dt} must be above 0 seconds")
    graph = model.graph
    lowered = deploy.lower(model)
    writer = _Writer(nir, model, deepcopy(dict(lowered.synapses)), lowered.equations, dt)
    for node in graph.nodes:
        append_nir(node, writer)
        if not graph.consumers[node.name] and node is not graph.readout:
            text = f"{node.name}: nothing reads it, so that NIR would make it a second output"
            raise errors.UnsupportedGraphError(text)
    sha256 = source_sha256 or ""
    return nir.NIRGraph(writer.nodes, writer.edges, metadata=nir_metadata(model, dt, sha256))


@dispatch.operation_table(ir.Node)
def append_nir(node: ir.Node, w: _Writer) -> None:
    """Append what NIR has for a node."""
    raise _no_node(node)


def _no_node(node: ir.Node) -> errors.UnsupportedGraphError:
    said = f"NIR cannot hold {node.op!r} ({node.describe()}); {INSTEAD}"
    return errors.UnsupportedGraphError(f"{node.name}: {said}")


append_nir.refuse(ir.Scatter, error=_no_node)
append_nir.refuse(
    ir.ChannelNorm,
    error=lambda node: errors.UnsupportedGraphError(
        f"{node.name}: a batch norm that does not directly follow a convolution or linear layer; "
        f"NIR has none. Put it right behind one, or {INSTEAD}"
    ),
)
append_nir.refuse(
    ir.MaxPool,
    error=lambda node: errors.UnsupportedGraphError(
        f"{node.name}: max pooling; NIR has none. Train with average pooling or strides, or "
        f"{INSTEAD}"
    ),
)


@append_nir.on(ir.Input)
def _input(node: ir.Input, w: _Writer) -> None:
    w.nodes["input"] = w.nir.Input(input_type={"input": np.array(node.shape)})
    w.nodes["input"].metadata[package.NAME] = node.name
    w.outlets[node.name] = ("input",)


@append_nir.on(ir.Convolution)
def _convolution(node: ir.Convolution, w: _Writer) -> None:
    if node.groups != 1:
        raise errors.UnsupportedGraphError(
            f"{node.name}: a convolution of {node.groups} groups; readers of NIR refuse groups. "
            f"{INSTEAD.capitalize()}"
        )
    synapses = w.folded[node.name]
    _, height, width = w.model.graph.shapes[node.inputs[0]]
    bias = np.zeros(node.channels, np.float32) if synapses.bias is None else synapses.bias
    geometry = (node.stride, node.padding, node.dilation, 1)
    nir_node = w.nir.Conv2d((height, width), synapses.weight, *geometry, bias)
    sides = tuple(int(side) for side in nir_node.output_type["output"])
    if sides != w.shape(node):
        raise errors.UnsupportedGraphError(
            f"{node.name}: a kernel of {node.kernel[0]}×{node.kernel[1]}, whose output the package "
            f"nir {w.nir.version} takes for {sides}, not {w.shape(node)}, since it only looks at "
            f"the height; readers would refuse the file. {INSTEAD.capitalize()}"
        )
    w.put(node, nir_node)


@append_nir.on(ir.Linear)
def _linear(node: ir.Linear, w: _Writer) -> None:
    w.put(node, _affine(w.nir, w.folded[node.name]))


def _affine(nir: Any, synapses: fold_batch_norm.DeployedWeights) -> Any:
    if synapses.bias is None:
        return nir.Linear(synapses.weight)
    return nir.Affine(synapses.weight, synapses.bias)


@append_nir.on(ir.Population)
def _population(node: ir.Population, w: _Writer) -> None:
    if node.generated:
        raise errors.UnsupportedGraphError(
            f"{node.name}: {node.generated} channels generated from a stored pattern; NIR has no "
            f"node that depends on the step. {INSTEAD.capitalize()}"
        )
    if node.name in w.model.neuron_masks:
        raise errors.UnsupportedGraphError(
            f"{node.name}: masked neurons; NIR has no node that silences some neurons of a "
            f"population. {INSTEAD.capitalize()}"
        )
    equation = w.equations[node.name]
    numbers = neuron.to_nir(equation, node.name, w.dt)
    assert isinstance(equation, NeuronEquation)  # others were refused
    full = {
        key: np.full(w.shape(node), value)
        for key, value in asdict(numbers).items()
        if value is not None and (numbers.tau is not None or key != "v_leak")
    }
    nir_node = w.nir.IF(**full) if numbers.tau is None else w.nir.LIF(**full)
    nir_node.metadata[package.POPULATION] = json.dumps(ir.node_to_json(node))
    nir_node.metadata["fire"] = neuron.RULES[equation.fire]
    if node.neuron.learned:
        decay = float(w.model.state[f"{node.name}.w"])
        nir_node.metadata[package.DECAY_PARAMETER] = repr(decay)
    w.put(node, nir_node)
    if node.feedback is not None:  # a circle, in which spikes are those of the step before
        append_nir(node.feedback, w)
        (back,), (population,) = w.outlets[node.feedback.name], w.outlets[node.name]
        w.edges.append((back, population))


@append_nir.on(ir.AvgPool)
def _avg_pool(node: ir.AvgPool, w: _Writer) -> None:
    w.put(node, w.nir.AvgPool2d(*map(np.array, (node.kernel, node.stride, node.padding))))


@append_nir.on(ir.AdaptiveAvgPool)
def _adaptive(node: ir.AdaptiveAvgPool, w: _Writer) -> None:
    _, height, width = w.model.graph.shapes[node.inputs[0]]
    window = pool_windows.even_window(node, (1, height, width))
    if window is None:
        raise errors.UnsupportedGraphError(
            f"{node.name}: adaptive pooling of {height}×{width} to {node.size[0]}×{node.size[1]}, "
            f"whose windows differ in size; NIR pools with one window. {INSTEAD.capitalize()}"
        )
    w.put(node, _pool_of(w.nir, window))


def _pool_of(nir: Any, window: ir.Pair) -> Any:
    return nir.AvgPool2d(np.array(window), np.array(window), np.array((0, 0)))


@append_nir.on(ir.Scale)
def _scale(node: ir.Scale, w: _Writer) -> None:
    """NIR's Scale has an array of the input's shape."""
    shape = w.shape(node)
    if node.factor is not None:
        values = np.full(shape, node.factor, np.float32)
    else:
        by_channel = w.model.state[f"{node.name}.scale"].astype(np.float32)
        values = np.broadcast_to(by_channel.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()
    w.put(node, w.nir.Scale(values))


@append_nir.on(ir.OneToOne)
def _one_to_one(node: ir.OneToOne, w: _Writer) -> None:
    w.put(node, w.nir.Scale(np.full(w.shape(node), node.factor, np.float32)))


@append_nir.on(ir.Flatten)
def _flatten(node: ir.Flatten, w: _Writer) -> None:
    w.put(node, _flat(w.nir, w.model.graph.shapes[node.inputs[0]]))


def _flat(nir: Any, shape: ir.Shape) -> Any:
    return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)


@append_nir.on(ir.Merge)
def _merge(node: ir.Merge, w: _Writer) -> None:
    """A sum is edges into whatever reads it. A branch that comes twice needs a node of its own,
    since an edge exists once: a scaling by 1."""
    if node.function != "add":
        raise errors.UnsupportedGraphError(
            f"{node.name}: {node.function} of spikes; NIR can only add. Train with "
            f"connect_function ADD, or {INSTEAD}"
        )
    branches = [w.outlets[name] for name in node.inputs]
    sources = tuple(source for branch in branches for source in branch)
    if len(set(sources)) == len(sources):
        w.outlets[node.name] = sources
        return
    single: list[str] = []
    for k, branch in enumerate(branches):
        alone = len(branch) == 1 and branch[0] not in single
        ones = np.ones(w.shape(node), np.float32)
        name = f"{node.name}.branch.{k}"
        single.append(branch[0] if alone else w.add(name, w.nir.Scale(ones), branch))
    w.outlets[node.name] = tuple(single)


@append_nir.on(ir.Readout)
def _readout(node: ir.Readout, w: _Writer) -> None:
    """The head per step. NIR has no node for what becomes of the steps: the metadata say it."""
    shape = w.model.graph.shapes[node.inputs[0]]
    sources = w.outlets[node.inputs[0]]
    if len(shape) == 3:
        pool = w.add(f"{node.name}.pool", _pool_of(w.nir, (shape[1], shape[2])), sources)
        flat = _flat(w.nir, (shape[0], 1, 1))
        sources = (w.add(f"{node.name}.flatten", flat, (pool,)),)
    votes = None if node.linear else package.vote_weight(node.classes, node.votes)
    head = w.folded[node.name] if votes is None else fold_batch_norm.DeployedWeights(votes, None)
    key = w.add(node.name, _affine(w.nir, head), sources)
    equation = w.equations.get(node.neurons_name)
    if equation is not None:
        name = node.neurons_name
        integrator = membranes.to_node(equation, w.nir, name, node.classes, w.dt)
        membranes.describe_in(integrator, node, w.model.state)
        key = w.add(name, integrator, (key,))
    w.nodes["output"] = w.nir.Output(output_type={"output": np.array((node.classes,))})
    w.edges.append((key, "output"))


def nir_metadata(model: Model, dt: float, source_sha256: str) -> dict[str, str]:
    """The graph's metadata: strings, nested values as JSON."""
    graph, info = model.graph, model.info
    by_name = deploy.lower(model).equations
    equations = [by_name[node.name] for node in graph.populations]
    rules = {neuron.RULES[e.fire] for e in equations if isinstance(e, NeuronEquation)}
    nested: dict[str, Any] = {
        "classes": list(info.classes),
        "normalization": None if info.normalization is None else asdict(info.normalization),
        "validity": asdict(info.validity),
        "provenance": dict(info.provenance),
        "readout": ir.node_to_json(graph.readout),
        "versions": {"soul-deploy": version("soul-deploy"), "nir": nir_package().version},
    }
    text = {
        "format": package.FORMAT,
        "time_steps": str(graph.time_steps),
        "dt": repr(dt),
        "fire": ", ".join(sorted(rules)),
        "decode": reduction.LOOPS[graph.readout.over_time].format(scores="the output"),
        "head": graph.readout.describe(),
        "normalization_applied_by": "caller",
        "input_kind": info.input_kind,
        "stage": info.stage,
        "source_sha256": source_sha256,
    }
    return text | {key: json.dumps(value, sort_keys=True) for key, value in nested.items()}


def export_nir(
    model: Model, path: Path | str, *, dt: float = DEFAULT_DT, source_sha256: str | None = None
) -> Any:
    """Write `build_nir`'s graph to `path` atomically and return it.

    Raises what `build_nir` raises, and OSError if the file cannot be written.
    """
    graph = build_nir(model, dt=dt, source_sha256=source_sha256)
    files.write_atomically(path, lambda temporary: nir_package().write(temporary, graph))
    return graph
