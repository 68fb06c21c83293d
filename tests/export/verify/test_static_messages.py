"""Every message of two static checks: that of NIR files, and that of explicit rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soul_deploy import ir
from soul_deploy.base import Array
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.verify.event import event_problems
from soul_deploy.export.verify.verify import verify
from soul_deploy.model.file import expected_shapes
from soul_deploy.model.model import Model, ModelInfo, Normalization, Validity
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format import network as eventnet

LIF = ir.NeuronSpec()


def model_of(
    *between: ir.Node, steps: int = 3, channels: int = 2, classes: int = 3, bias: bool = True,
    neuron: ir.NeuronSpec = LIF, side: int = 5, name: str = "fires", stride: int = 1,
) -> Model:  # fmt: skip
    """A convolution "conv" of 2 channels, neurons, `between`, a linear head."""
    last = between[-1].name if between else name
    nodes = (
        ir.Input("input", (), (channels, side, side)),
        ir.Convolution(
            "conv", ("input",), bias, None, channels, 2, (3, 3), (stride, stride), (1, 1)
        ),
        ir.Population(name, ("conv",), neuron),
        *between,
        ir.Readout("head", (last,), classes, linear=True, bias=True),
    )
    graph = ir.SpikingGraph(nodes, steps)
    shapes = expected_shapes(graph).items()
    state = {key: numbers(shape) for key, shape in shapes}
    return Model(graph, state, info=ModelInfo(input_kind="values"))


def numbers(shape: ir.Shape) -> Array:
    """No 0 among them; the same for the same shape."""
    return (np.arange(np.prod(shape)) % 7 + 1).astype(np.float32).reshape(shape) / 8


def another(model: Model, name: str, by: float = 1.0) -> Model:
    return replace(model, state={**model.state, name: model.state[name] + np.float32(by)})


def informed(**info: Any) -> Model:
    return replace(model_of(), info=ModelInfo(**info))


MORE = (
    ir.Convolution("again", ("fires",), False, None, 2, 2, (1, 1)),
    ir.Population("more", ("again",), LIF),
)
NIR: dict[str, tuple[Model, Model, list[str]]] = {
    "steps": (model_of(), model_of(steps=4), ["time_steps: 4 in the file, the model says 3"]),
    "classes": (
        model_of(),
        model_of(classes=4),
        ["classes: 4 in the file, the model says 3", "head.weight: not", "head.bias: not"],
    ),
    "input": (
        model_of(),
        model_of(channels=1),
        ["input: (1, 5, 5) in the file, the model says (2, 5, 5)", "conv.weight: not"],
    ),
    "kind": (
        model_of(),
        replace(model_of(), info=ModelInfo(input_kind="counts")),
        ["input_kind: counts in the file, the model says values"],
    ),
    "class names": (
        informed(classes=("a", "b", "c")),
        informed(classes=("a", "c", "b")),
        ["class names: ('a', 'c', 'b') in the file, the model says ('a', 'b', 'c')"],
    ),
    "normalization": (
        informed(),
        informed(normalization=Normalization((0.5,), (0.25,))),
        ["normalization: Normalization(mean=(0.5,), std=(0.25,)) in the file, the model says None"],
    ),
    "validity": (
        informed(validity=Validity(3)),
        informed(validity=Validity(3, reset_per_sample=True)),
        ["validity: Validity(time_steps=3, reset_per_sample=True) in the file"],
    ),
    "missing": (model_of(*MORE), model_of(), ["more: missing", "again: missing"]),
    "surplus": (model_of(), model_of(*MORE), ["more: not in the model", "again: not in the model"]),
    "shape": (model_of(), model_of(stride=2), ["fires: shape (2, 3, 3), the model says (2, 5, 5)"]),
    "neuron": (
        model_of(),
        model_of(neuron=replace(LIF, v_threshold=1.5)),
        ["fires: NeuronEquation("],
    ),
    "weight": (
        model_of(),
        another(model_of(), "conv.weight"),
        ["conv.weight: not the folded numbers of the model"],
    ),
    "bias": (
        model_of(),
        another(model_of(), "conv.bias"),
        ["conv.bias: not the folded numbers of the model"],
    ),
    "no bias": (model_of(), model_of(bias=False), ["conv.bias: not"]),
}


@pytest.mark.parametrize("case", NIR)
def test_what_a_nir_file_has_otherwise_is_named(case: str, tmp_path: Path) -> None:
    model, other, expected = NIR[case]
    path = tmp_path / "other.nir"
    export_nir(other, path)
    x = torch.zeros(1, *model.graph.input.shape)
    report = verify(model, path, x, allow_silent=True)
    assert not report.passed and report.forced is None
    assert len(report.problems) == len(expected), report.problems
    for found, start in zip(report.problems, expected, strict=True):
        assert found.startswith(start), found
    assert verify(other, path, torch.zeros(1, *other.graph.input.shape), allow_silent=True).passed


def test_a_bias_of_zeros_is_no_bias_in_a_nir_file(tmp_path: Path) -> None:
    model = model_of()
    model = replace(model, state={**model.state, "conv.bias": np.zeros(2, np.float32)})
    export_nir(model, tmp_path / "net.nir")
    assert verify(model, tmp_path / "net.nir", torch.ones(1, 2, 5, 5)).problems == ()


# Explicit rows of a convolution: "again" behind "fires".


def explicit_model(**how: int) -> Model:
    """Behind the neurons a convolution that has a bias, and other neurons."""
    behind = ir.Convolution("again", ("fires",), True, None, 2, 2, (3, 3), **how)  # type: ignore[arg-type]
    return model_of(behind, ir.Population("more", ("again",), LIF))


Change = Callable[[eventnet.Synapses], eventnet.Synapses]


def changed(model: Model, change: Change) -> tuple[str, ...]:
    """Problems of the event network whose second layer has other synapses."""
    events = build_event_network(model, representation="explicit")
    assert event_problems(model, Network(events)) == ()
    layer = events.by_name["more"]
    assert isinstance(layer, eventnet.SpikingLayer)
    other = replace(layer, synapses=change(layer.synapses))
    layers = tuple(other if known is layer else known for known in events.layers)
    return event_problems(model, Network(replace(events, layers=layers)))


def rows_of(synapses: eventnet.Synapses) -> eventnet.SparseRows:
    assert isinstance(synapses.rows, eventnet.SparseRows)
    return synapses.rows


def as_dense(synapses: eventnet.Synapses) -> eventnet.Synapses:
    rows = rows_of(synapses)
    dense = np.zeros((synapses.row_count, int(np.prod(synapses.out_shape))), np.float32)
    dense[np.repeat(np.arange(len(dense)), rows.lengths), rows.targets] = rows.weight
    return replace(synapses, rows=eventnet.DenseRows(dense))


def one_heavier(synapses: eventnet.Synapses) -> eventnet.Synapses:
    rows = rows_of(synapses)
    weight = rows.weight.copy()
    weight[[0, -1]] += 1
    return replace(synapses, rows=replace(rows, weight=weight))


def one_fewer(synapses: eventnet.Synapses) -> eventnet.Synapses:
    rows = rows_of(synapses)
    starts = rows.starts.copy()
    starts[-1] -= 1
    return replace(synapses, rows=eventnet.SparseRows(starts, rows.targets[:-1], rows.weight[:-1]))


def other_bias(synapses: eventnet.Synapses) -> eventnet.Synapses:
    assert synapses.bias is not None
    return replace(synapses, bias=synapses.bias + 1)


EXPLICIT: dict[str, tuple[Change, str]] = {
    "dense": (as_dense, "more: stored as a dense matrix, the graph says convolution"),
    "weights": (one_heavier, "more: 2 of 324 synapses differ from the graph's"),
    "fewer": (one_fewer, "more: 1 rows have another number of synapses than the graph says"),
    "bias": (other_bias, "more: bias differs from the graph's"),
    "no bias": (lambda s: replace(s, bias=None), "more: bias differs from the graph's"),
}


@pytest.mark.parametrize("case", EXPLICIT)
def test_what_explicit_rows_have_otherwise_is_named(case: str) -> None:
    change, expected = EXPLICIT[case]
    assert changed(explicit_model(), change) == (expected,)


def test_explicit_rows_between_other_shapes_are_named() -> None:
    """Of the same network with one row and column more."""
    events = build_event_network(explicit_model(), representation="explicit")
    found = event_problems(replace_side(explicit_model(), 6), Network(events))
    assert (
        "more: rows lead from (2, 5, 5) to (2, 3, 3), the graph says (2, 6, 6) to (2, 4, 4)"
        in found
    )


def replace_side(model: Model, side: int) -> Model:
    graph = model.graph.with_nodes({"input": ir.Input("input", (), (2, side, side))})
    return replace(model, graph=graph)
