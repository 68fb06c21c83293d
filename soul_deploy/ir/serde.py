"""Graph nodes as JSON data and back, every field checked."""

import math
from dataclasses import fields
from typing import Any

from soul_deploy.ir import neurons, nodes
from soul_deploy.ir.node import BatchNorm, Node

SUBTRACT = "v_subtract"


def node_to_json(node: Node) -> dict[str, Any]:
    """The node's operation and fields as plain JSON data."""
    values: dict[str, Any] = {"op": node.op}
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, (neurons.NeuronSpec, BatchNorm)):
            value = {inner.name: getattr(value, inner.name) for inner in fields(value)}
            if value.get(SUBTRACT, 0.0) is None:
                del value[SUBTRACT]  # few have it, and earlier versions do not know it
        values[item.name] = list(value) if isinstance(value, tuple) else value
    return values


_MAX_SIDE = 1 << 31


def bounded_integer(value: Any) -> int:
    """`value` if it is an integer from 0 to 2^31 - 1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_SIDE:
        raise ValueError(f"{value!r} is not an integer from 0 to {_MAX_SIDE - 1}")
    return value


def node_from_json(entry: Any) -> Node:
    """The node of `node_to_json`. Raises ValueError, KeyError or TypeError if it is none."""
    values = dict(entry)
    cls = nodes.OPS[values.pop("op")]
    known = {item.name for item in fields(cls)}
    if set(values) != known:
        raise ValueError(f"{cls.op}: fields {sorted(values)}, expected {sorted(known)}")
    for name, value in values.items():
        values[name] = _field_from_json(name, value)
    if cls.arity not in (None, len(values["inputs"])):
        raise ValueError(f"{values['name']}: {cls.op} of {len(values['inputs'])} inputs")
    return cls(**values)


TEXTS, TRUTHS = ("name", "function"), ("bias", "linear")
PAIRS = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1, "size": 1}  # and the least side


def _field_from_json(name: str, value: Any) -> Any:
    if name == "inputs":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"inputs {value!r} are not names")
        return tuple(value)
    if name == "neuron":
        return _spec_from_json(value)
    if name == "norm":
        return None if value is None else _norm_from_json(value)
    if name in TEXTS or name in TRUTHS:
        if not isinstance(value, str if name in TEXTS else bool):
            raise ValueError(f"{name} {value!r} is not {'text' if name in TEXTS else 'a truth'}")
        return value
    if name in PAIRS or name in ("shape", "index"):
        return _sides(name, value)
    return bounded_integer(value)


def _sides(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} {value!r} is not a list")
    sides = tuple(bounded_integer(side) for side in value)
    if name in PAIRS and (len(sides) != 2 or min(sides) < PAIRS[name]):
        raise ValueError(f"{name} {sides} must be two numbers from {PAIRS[name]}")
    if name == "shape" and (len(sides) not in (1, 3) or 0 in sides):
        raise ValueError(f"shape {sides} is neither (C, H, W) nor (N,)")
    return sides


def _spec_from_json(data: Any) -> neurons.NeuronSpec:
    for name in ("tau", "v_threshold", "surrogate_alpha"):
        data[name] = float(data[name])
    data["v_reset"] = None if data["v_reset"] is None else float(data["v_reset"])
    if SUBTRACT in data:
        data[SUBTRACT] = float(data[SUBTRACT])
    for name in ("decay_input", "detach_reset"):
        if not isinstance(data[name], bool):
            raise ValueError(f"{name} {data[name]!r} is not true or false")
    return neurons.NeuronSpec(**data)


def _norm_from_json(data: Any) -> BatchNorm:
    name, eps, momentum = data["name"], float(data["eps"]), float(data["momentum"])
    if set(data) != {"name", "eps", "momentum"} or not isinstance(name, str):
        raise ValueError(f"batch norm {data!r}")
    if not (0 <= eps <= 1 and math.isfinite(momentum)):
        raise ValueError(f"batch norm with eps {eps} and momentum {momentum}")
    return BatchNorm(name, eps, momentum)
