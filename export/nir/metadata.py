"""Metadata of a NIR graph: T, dt, and how its output becomes class scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array, brief, errors, files, input_rule
from soul_deploy.export.nir.package import FORMAT, vote_weight
from soul_deploy.model import file, model

State = Mapping[str, Array]


@brief
@dataclass(frozen=True)
class Description:
    """T, seconds per step, and who made it.

    dt: None where neither the caller nor the graph says it. readout: ours, if the graph came from
    us.
    """

    time_steps: int
    dt: float | None
    info: model.ModelInfo
    readout: ir.Readout | None


def described_graph(
    metadata: Mapping[str, Any], time_steps: int | None, dt: float | None
) -> Description:
    """From the metadata of a graph; what is given comes first.

    Raises UsageError if T is neither given nor stored, or a value is out of range, and
    FileFormatError for metadata of ours that cannot be read.
    """
    stored = _stored(metadata) if metadata.get("format") == FORMAT else None
    if time_steps is None and stored is None:
        raise errors.UsageError(
            "the NIR graph does not say how many steps it runs; give --time_step"
        )
    dt = stored.dt if dt is None and stored is not None else dt
    if dt is not None and not (dt > 0 and math.isfinite(dt)):
        raise errors.UsageError(f"dt {dt} must be above 0 seconds")
    if stored is not None:
        return replace(stored, dt=dt, time_steps=time_steps or stored.time_steps)
    assert time_steps is not None
    return Description(time_steps, dt, model.ModelInfo(), None)


def _stored(metadata: Mapping[str, Any]) -> Description:
    try:
        names = ("normalization", "classes", "provenance", "validity")
        info = file.info_from_json(
            {"stage": metadata["stage"]}
            | {name: _data(metadata, name) for name in names}
            | {"input_kind": metadata.get("input_kind", input_rule.KIND_OF_OLD_FILES)}
        )
        readout = ir.node_from_json(_data(metadata, "readout"))
        if not isinstance(readout, ir.Readout):
            raise ValueError(f"readout {readout.op!r}")
        return Description(int(metadata["time_steps"]), float(metadata["dt"]), info, readout)
    except (KeyError, TypeError, ValueError, errors.UsageError) as error:
        raise errors.FileFormatError(
            f"the NIR graph's metadata cannot be read ({error!r})"
        ) from error


def _data(metadata: Mapping[str, Any], name: str) -> Any:
    text = metadata[name]
    if not isinstance(text, str | bytes):
        raise TypeError(f"{name} is no text")
    return files.parse_json(text, f"the NIR graph's {name}")


def with_readout(
    nodes: tuple[ir.Node, ...],
    shapes: Mapping[str, ir.Shape],
    state: State,
    last: str,
    described: Description,
) -> tuple[tuple[ir.Node, ...], dict[str, Array]]:
    """The nodes with a readout at the end, and the state it leaves.

    The last node, whose output NIR puts out at every step, is a population, whose rates are the
    scores, or affine, which is the head; a mean over the whole map before that is the readout's.
    """
    node = next(node for node in nodes if node.name == last)
    if any(last in other.inputs for other in nodes):
        raise errors.UnsupportedGraphError(f"{last}: both the output and inside the network")
    if node.fires:
        return (*nodes, _rates(node, shapes[last])), dict(state)
    source, dropped = _before_mean(nodes, shapes, node.inputs[0]) if node.inputs else ("", ())
    head, own = node.as_head(source), described.readout
    if head is None:
        raise errors.UnsupportedGraphError(
            f"{last}: an output of {node.op!r}; supported are outputs of spiking neurons, or of a "
            "linear or affine node that weighs their spikes"
        )
    kept = tuple(n for n in nodes if n.name not in {last, *dropped})
    if own is not None and not _is_head(own, head, state):
        raise errors.FileFormatError(
            f"{last} is not the readout that the metadata describes ({own.describe()})"
        )
    if own is not None and not own.linear:
        rest = {name: array for name, array in state.items() if name != f"{last}.weight"}
        return (*kept, replace(own, name=last, inputs=(source,))), rest
    return (*kept, head), dict(state)


def _is_head(own: ir.Readout, head: ir.Readout, state: State) -> bool:
    if own.linear or own.classes != head.classes:
        return own.classes == head.classes
    weight = state[f"{head.name}.weight"]
    if head.bias or weight.shape != (own.classes, own.classes * own.votes):
        return False  # looked at first: nothing larger than the file's own array is made
    return np.array_equal(weight, vote_weight(own.classes, own.votes))


def _rates(node: ir.Node, shape: ir.Shape) -> ir.Readout:
    if len(shape) != 1:
        raise errors.UnsupportedGraphError(
            f"{node.name}: an output of {shape}; class scores need a vector"
        )
    return ir.Readout("readout", (node.name,), shape[0], linear=False, bias=False)


def _before_mean(
    nodes: tuple[ir.Node, ...], shapes: Mapping[str, ir.Shape], name: str
) -> tuple[str, tuple[str, ...]]:
    """What a mean over the whole map and a flattening read, and their names; else `name`."""
    by_name = {node.name: node for node in nodes}
    flatten = by_name[name]
    if not flatten.reshapes or _readers(nodes, name) != 1:
        return name, ()
    pool = by_name[flatten.inputs[0]]
    if _readers(nodes, pool.name) != 1 or not pool.averages_all(shapes[pool.inputs[0]]):
        return name, ()
    return pool.inputs[0], (pool.name, flatten.name)


def _readers(nodes: tuple[ir.Node, ...], name: str) -> int:
    return sum(name in node.inputs for node in nodes)
