"""Constants and batch norms of their own in model files: what is stored, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soul_deploy import ir
from soul_deploy.base.errors import FileFormatError, UsageError
from soul_deploy.model.file import check_state, expected_shapes, load, save
from soul_deploy.model.model import Model

NODES: tuple[ir.Node, ...] = (
    ir.Input("input", (), (2, 4, 4)),
    ir.Convolution("a", ("input",), False, None, 2, 3, (3, 3)),
    ir.Scale("s", ("a",), 0.1),
    ir.Population("p", ("s",), ir.NeuronSpec()),
    ir.Scale("t", ("p",), None),
    ir.ChannelNorm("n", ("t",), ir.BatchNorm("n", 1e-3, None)),
    ir.Flatten("f", ("n",)),
    ir.Linear("b", ("f",), False, None, 12, 2),
    ir.Population("q", ("b",), ir.NeuronSpec()),
    ir.Readout("head", ("q",), 2),
)
GRAPH = ir.SpikingGraph(NODES, 2)


def model() -> Model:
    state = {name: np.ones(shape, np.float32) for name, shape in expected_shapes(GRAPH).items()}
    state["n.num_batches_tracked"] = np.zeros((), np.int64)
    state["t.scale"] = np.array((0.5, -2.0, 3.0), np.float32)
    return Model(GRAPH, state)


def test_they_survive_a_file(tmp_path: Path) -> None:
    save(model(), tmp_path / "net.safetensors")
    found = load(tmp_path / "net.safetensors")
    assert found.graph == GRAPH
    np.testing.assert_array_equal(found.state["t.scale"], model().state["t.scale"])
    assert ir.SpikingGraph.from_json(json.loads(json.dumps(GRAPH.to_json()))) == GRAPH


def test_tensors_are_those_of_the_channels() -> None:
    shapes = expected_shapes(GRAPH)
    assert shapes["t.scale"] == (3,) and "s.scale" not in shapes
    assert {name for name in shapes if name.startswith("n.")} == {
        *(f"n.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "n.num_batches_tracked",
    }


DAMAGED: dict[str, tuple[str, str, Any, str]] = {
    "no number": ("s", "factor", "0.1", "factor '0.1' is not a number"),
    "a truth": ("s", "factor", True, "factor True is not a number"),
    "0": ("s", "factor", 0.0, "s: a multiplication by 0.0; it must be finite in float32"),
    "infinite": ("s", "factor", float("inf"), "s: a multiplication by inf"),
    "beyond float32": ("s", "factor", 1e39, r"s: a multiplication by 1e\+39"),
    "no batch norm": ("n", "norm", None, "its graph cannot be read"),
    "another name": (
        "n",
        "norm",
        {"name": "m", "eps": 0.1, "momentum": 0.1},
        "n: its batch norm is called 'm'",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_graphs_are_refused(what: str) -> None:
    name, field, value, text = DAMAGED[what]
    data = GRAPH.to_json()
    (entry,) = (node for node in data["nodes"] if node["name"] == name)
    entry[field] = value
    with pytest.raises(FileFormatError, match=text):
        ir.SpikingGraph.from_json(data)


def test_a_negative_variance_is_refused() -> None:
    state = {**model().state, "n.running_var": np.array((1, -1, 1), np.float32)}
    with pytest.raises(FileFormatError, match="n holds a variance that is not above 0"):
        check_state(GRAPH, state, "file")


def test_a_factor_of_0_is_no_operation() -> None:
    with pytest.raises(UsageError, match="must be finite in float32, and not 0"):
        ir.Scale("s", ("a",), 0.0).output_shape([(3, 2, 2)])


@pytest.mark.parametrize(
    ("factor", "parts"), [(0.125, 8), (0.75, 4), (2.0, 1), (0.1, None), (None, None)]
)
def test_denominators(factor: float | None, parts: int | None) -> None:
    assert ir.Scale("s", ("a",), factor).denominator((3, 2, 2)) == parts


def test_they_describe_themselves() -> None:
    found = [GRAPH[name].describe() for name in ("s", "t", "n")]
    assert found == ["times 0.1", "channel by channel", "of its own"]
