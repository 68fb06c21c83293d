"""A NIR graph, from any tool, as a Model: pruned, exported and verified like any other.

Sums (several edges into one node) become merges, constant factors (scalings, sum pooling, the
resistance of neurons) go into the weights beside them, a last affine node becomes the readout's
head. What cannot be said that way is refused with the node's name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, errors, files, pixel_rule, reduction
from soul_deploy.export.nir import membranes, neuron, package, recurrence
from soul_deploy.export.nir.nodes import read_node
from soul_deploy.export.nir.values import Reader
from soul_deploy.model.file import check_state, info_from_json
from soul_deploy.model.model import Model, ModelInfo, for_kind
from soul_deploy.runtime.equations import FireRule

State = Mapping[str, Array]
MAX_TURNS = 1 << 27


@brief
@dataclass(frozen=True)
class Description:
    """T, seconds per step, and who made it.

    dt: None where neither the caller nor the graph says it. readout: ours, if the graph came from
    us. over_time: what the class scores are of the output at all steps, if anybody says it.
    """

    time_steps: int
    dt: float | None
    info: ModelInfo
    readout: ir.Readout | None
    over_time: reduction.OverTime | None = None


def read_nir(file: files.File) -> Any:
    """The `nir.NIRGraph` in a file. Raises as `package.read_graph`."""
    return package.read_graph(file)


def import_nir(
    graph: Any,
    *,
    time_steps: int | None = None,
    dt: float | None = None,
    fire: FireRule | None = None,
    reset: neuron.ResetRule | None = None,
    input_kind: pixel_rule.InputKind | None = None,
    over_time: reduction.OverTime | None = None,
    read: membranes.ReadRule | None = None,
) -> Model:
    """The model of a NIR file, or of a `nir.NIRGraph`.

    time_steps: T. dt: seconds per step. fire: "gt" or "ge". reset: "zero" (a spike sets the
    membrane to v_reset), "subtract" (it takes the threshold off in the next step, after the decay,
    as snnTorch does), "subtract_at_once" (it takes it off at once). What is None comes from the
    graph's metadata; what these do not say is assumed as NIR says it, with dt 1e-4, "gt" and
    "zero", and stands as sentences in the model's `info.provenance["assumptions"]`. Graphs that
    this package wrote leave nothing to assume.
    input_kind: what the input is; None: as in the metadata, or "images". over_time: what the class
    scores are of the output at all steps, "mean", "sum", "last" or "max"; None: as in the metadata,
    or the mean, which is one more sentence. read: what a last LIF, IF or CubaLIF puts out: its
    "spikes" (None), its "membrane" after each step, or the membrane of neurons that never reset,
    "membrane_no_reset", which tools write no otherwise.

    Raises what `read_nir` raises, UsageError if T is neither given nor stored or the metadata
    contradict what is given, UnsupportedGraphError with the node's name, also where the assumed dt
    makes no sense, FileFormatError for metadata or shapes that do not fit together, ValidityError
    for a T that the stored network is not valid for, LimitError for more nodes and edges than can
    be walked.
    """
    if isinstance(graph, files.File):
        graph = read_nir(graph)
    graph = recurrence.opened(graph)
    _require_size(len(graph.nodes), len(graph.edges))
    described = _scored(described_graph(graph.metadata, time_steps, dt), over_time)
    step = package.DEFAULT_DT if described.dt is None else described.dt
    said = neuron.Conventions(step, described.dt is not None, fire, reset)
    if read not in (None, *membranes.READ_RULES):
        raise errors.UsageError(f"read {read!r}; valid: {', '.join(membranes.READ_RULES)}")
    reader = Reader(graph, said, read=read or "spikes")
    for key in _ordered(graph):
        _read(reader, key)
    model = _model(reader, described).with_time_steps(described.time_steps)
    kind = input_kind or model.info.input_kind
    return for_kind(model, kind)


def _scored(described: Description, over_time: reduction.OverTime | None) -> Description:
    """With what becomes of the steps: as stored or else as given. Raises UsageError."""
    if over_time is not None and not reduction.is_over_time(over_time):
        raise errors.UsageError(f"over_time {over_time!r}; valid: {', '.join(reduction.OVER_TIME)}")
    if described.readout is None:
        return replace(described, over_time=over_time)
    stored = described.readout.over_time
    if over_time not in (None, stored):
        raise errors.UsageError(
            f"over_time {over_time} given; the graph's metadata say that its scores are the "
            f"{reduction.NAMES[stored]}: leave over_time out"
        )
    return replace(described, over_time=stored)


def _require_size(nodes: int, edges: int) -> None:
    if nodes * edges > MAX_TURNS:
        raise errors.LimitError(
            f"{nodes} nodes and {edges} edges; their product may be at most {MAX_TURNS}, since the "
            "edges are walked for every node"
        )


def _read(reader: Reader, key: str) -> None:
    """Read a node. Raises as `read_node`; FileFormatError too for fields of another kind."""
    try:
        read_node(reader, key)
    except ir.UNREADABLE as error:
        text = f"{key}: a NIR node that cannot be read ({error!r})"
        raise errors.FileFormatError(text) from error


def _model(reader: Reader, described: Description) -> Model:
    if reader.last is None:
        raise errors.UnsupportedGraphError("the NIR graph has no output")
    nodes, state = with_readout(reader, reader.last, described)
    try:
        graph = ir.SpikingGraph(nodes, described.time_steps)
    except errors.UsageError as error:
        raise errors.FileFormatError(f"the NIR graph does not fit together: {error}") from error
    check_state(graph, state, "the NIR graph")
    if described.readout is None:  # our own files say that their last neurons spike
        _require_reachable(graph, state)
    made_so = {**described.info.provenance, "imported": "nir", **_read_how(reader, described)}
    return Model(graph, state, info=replace(described.info, provenance=made_so))


def _require_reachable(graph: ir.SpikingGraph, state: Mapping[str, Array]) -> None:
    """Raise UnsupportedGraphError for an output population that no spikes before it can make fire:
    a threshold out of reach is how a membrane readout is written as spiking neurons.
    """
    neurons = {node.name: node for node in graph.populations}
    synapses_of = {node.name: node for node in graph.projections}
    last = neurons.get(graph.readout.inputs[0])
    synapses = None if last is None else synapses_of.get(last.inputs[0])
    bound = None if synapses is None else graph.edges[synapses.inputs[0]].bound
    if last is None or synapses is None or bound is None:
        return
    if last.feedback is not None or last.neuron.dynamics is not None:
        return
    weight = state[f"{synapses.name}.weight"].clip(min=0)
    largest = bound * weight.sum(axis=tuple(range(1, weight.ndim)))
    if synapses.bias:
        largest = largest + state[f"{synapses.name}.bias"]
    reach = graph.time_steps * max(0.0, float(largest.max()))
    if reach < last.neuron.v_threshold:
        raise errors.UnsupportedGraphError(
            f"{last.name}: its membrane stays below {reach:g} in {graph.time_steps} steps, its "
            f"threshold is {last.neuron.v_threshold:g}: where its membrane is the output, give "
            "--read membrane"
        )


def _read_how(reader: Reader, described: Description) -> dict[str, Any]:
    """What was assumed, and what a graph of another tool was read with."""
    said = reader.conventions
    found: dict[str, Any] = {}
    if described.readout is None and reader.last is not None:
        said.assumed |= _scores(reader, reader.last, described.over_time)
        found["nir"] = {"dt": said.dt, "fire": said.fire or "gt", "reset": said.reset or "zero"}
        found["nir"] |= {} if reader.read == "spikes" else {"read": reader.read}
    assumed = list(said.assumed.values())
    return found | ({"assumptions": assumed} if assumed else {})


def _scores(reader: Reader, name: str, over_time: reduction.OverTime | None) -> dict[str, str]:
    """What is assumed of the class scores, as a sentence; nothing if there is nothing."""
    last = reader.made[name]
    spikes = last.fires and reader.read == "spikes"
    if over_time is not None and not spikes:
        return {}
    made = "the mean over T" if over_time is None else "made"
    text = f"the class scores are {made} of the output of {last.name!r}"
    if spikes:
        text += (
            ", its spikes; where the tool reads its membrane, which looks the same in NIR, give "
            "--read membrane, or membrane_no_reset if it never resets"
        )
    if over_time is None:
        text += "; where they are their sum, the last or the largest, give --over_time"
    return {"scores": text}


def _ordered(graph: recurrence.Graph) -> list[str]:
    """Node names, sources first. Raises UnsupportedGraphError for a cycle."""
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(graph.nodes, ()))
    for source, target in graph.edges:
        order.add(target, source)
    try:
        return list(order.static_order())
    except CycleError as error:
        raise errors.UnsupportedGraphError(
            f"a recurrent connection through {' → '.join(error.args[1])}; supported are "
            "synapses from spiking neurons to themselves"
        ) from error


def described_graph(
    metadata: Mapping[str, Any], time_steps: int | None, dt: float | None
) -> Description:
    """From the metadata of a graph; what is given comes first.

    Raises UsageError if T is neither given nor stored, or a value is out of range, and
    FileFormatError for metadata of ours that cannot be read.
    """
    stored = _stored(metadata) if metadata.get("format") == package.FORMAT else None
    if time_steps is None and stored is None:
        text = "the NIR graph does not say how many steps it runs; give --time_step"
        raise errors.UsageError(text)
    dt = stored.dt if dt is None and stored is not None else dt
    if dt is not None and not (dt > 0 and math.isfinite(dt)):
        raise errors.UsageError(f"dt {dt} must be above 0 seconds")
    if stored is not None:
        return replace(stored, dt=dt, time_steps=time_steps or stored.time_steps)
    assert time_steps is not None
    return Description(time_steps, dt, ModelInfo(), None)


def _stored(metadata: Mapping[str, Any]) -> Description:
    try:
        names = ("normalization", "classes", "provenance", "validity")
        kind = metadata.get("input_kind", pixel_rule.KIND_OF_OLD_FILES)
        told = {"stage": metadata["stage"], "input_kind": kind}
        info = info_from_json(told | {name: _data(metadata, name) for name in names})
        readout = ir.node_from_json(_data(metadata, "readout"), ir.Readout)
        return Description(int(metadata["time_steps"]), float(metadata["dt"]), info, readout)
    except (KeyError, TypeError, ValueError, errors.UsageError) as error:
        text = f"the NIR graph's metadata cannot be read ({error!r})"
        raise errors.FileFormatError(text) from error


def _data(metadata: Mapping[str, Any], name: str) -> Any:
    text = metadata[name]
    if not isinstance(text, str | bytes):
        raise TypeError(f"{name} is no text")
    return files.parse_json(text, f"the NIR graph's {name}")


def with_readout(
    reader: Reader, last: str, described: Description
) -> tuple[tuple[ir.Node, ...], dict[str, Array]]:
    """The nodes with a readout at the end, and the state it leaves.

    The last node, whose output NIR puts out at every step, is a population, whose spikes make the
    scores, or affine, which is the head; a mean over the whole map before that is the readout's.
    """
    node, nodes, state = reader.made[last], tuple(reader.made.values()), reader.state
    if _readers(reader, last):
        raise errors.UnsupportedGraphError(f"{last}: both the output and inside the network")
    over_time = described.over_time or "mean"
    if node.fires and reader.read != "spikes":
        return _membranes_of(reader, last, over_time)
    if reader.read != "spikes":
        raise errors.UnsupportedGraphError(
            f"{last}: --read {reader.read} given, but the output is {node.op!r}; it is for spiking "
            "neurons: leave it out"
        )
    if node.fires:
        return (*nodes, _spikes(node, reader.shapes[last], over_time)), state
    source, dropped = _before_mean(reader, node.inputs[0]) if node.inputs else ("", ())
    head, own = node.as_head(source), described.readout
    if head is None:
        raise errors.UnsupportedGraphError(
            f"{last}: an output of {node.op!r}; supported are outputs of spiking neurons, or of a "
            "linear or affine node that weighs their spikes"
        )
    kept = tuple(n for n in nodes if n.name not in {last, *dropped})
    charged = None if reader.charged is None else reader.charged.neuron
    if own is not None and (own.neuron != charged or not _is_head(own, head, state)):
        raise errors.FileFormatError(
            f"{last} is not the readout that the metadata describes ({own.describe()})"
        )
    if own is not None and not own.linear:
        rest = {name: array for name, array in state.items() if name != f"{last}.weight"}
        return (*kept, replace(own, name=last, inputs=(source,))), rest
    if reader.charged is not None:
        numbers = reader.charged.tensors.items()
        state |= {f"{head.neurons_name}.{name}": array for name, array in numbers}
    return (*kept, replace(head, over_time=over_time, neuron=charged)), state


def _membranes_of(
    reader: Reader, last: str, over_time: reduction.OverTime
) -> tuple[tuple[ir.Node, ...], dict[str, Array]]:
    """The membranes of the last population, which a linear node alone charges."""
    population = reader.made[last]
    assert isinstance(population, ir.Population)
    (charging,) = population.inputs
    node = reader.made[charging]
    source, dropped = _before_mean(reader, node.inputs[0]) if node.inputs else ("", ())
    head = node.as_head(source)
    if head is None or not head.linear or _readers(reader, charging) != 1:
        raise errors.UnsupportedGraphError(
            f"{last}: the membrane of neurons behind {node.op!r}; supported are those that a "
            "linear or affine node alone feeds"
        )
    if population.feedback is not None:
        raise errors.UnsupportedGraphError(
            f"{last}: the membrane of neurons with a recurrent connection; supported is one "
            "without, or their spikes"
        )
    spec, gain = membranes.read_as(last, population.neuron, reader.read)
    reader.weigh_rows(charging, np.array(gain), np.zeros(1))
    kept = tuple(n for n in reader.made.values() if n.name not in {last, charging, *dropped})
    own = f"{last}."
    state = {
        f"{head.neurons_name}.{name.removeprefix(own)}" if name.startswith(own) else name: array
        for name, array in reader.state.items()
    }
    return (*kept, replace(head, neuron=spec, over_time=over_time)), state


def _is_head(own: ir.Readout, head: ir.Readout, state: State) -> bool:
    if own.linear or own.classes != head.classes:
        return own.classes == head.classes
    weight = state[f"{head.name}.weight"]
    if head.bias or weight.shape != (own.classes, own.classes * own.votes):
        return False  # looked at first: nothing larger than the file's own array is made
    return np.array_equal(weight, package.vote_weight(own.classes, own.votes))


def _spikes(node: ir.Node, shape: ir.Shape, over_time: reduction.OverTime) -> ir.Readout:
    if len(shape) != 1:
        text = f"{node.name}: an output of {shape}; class scores need a vector"
        raise errors.UnsupportedGraphError(text)
    kind: Any = {"linear": False, "bias": False, "over_time": over_time}
    return ir.Readout("readout", (node.name,), shape[0], **kind)


def _before_mean(reader: Reader, name: str) -> tuple[str, tuple[str, ...]]:
    """What a mean over the whole map and a flattening read, and their names; else `name`."""
    flatten = reader.made[name]
    if not flatten.reshapes or _readers(reader, name) != 1:
        return name, ()
    pool = reader.made[flatten.inputs[0]]
    averaged = [above for above in pool.inputs if pool.averages_all(reader.shapes[above])]
    if _readers(reader, pool.name) != 1 or not averaged:
        return name, ()
    return averaged[0], (pool.name, flatten.name)


def _readers(reader: Reader, name: str) -> int:
    return sum(name in node.inputs for node in reader.made.values())
