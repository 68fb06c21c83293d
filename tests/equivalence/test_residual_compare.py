"""Explaining differences in networks whose branches meet."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from soul_deploy import ir
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, ModelExecution, compare
from soul_deploy.equivalence.reference import ROUNDING, ReferenceModel, entries, sources
from soul_deploy.model.model import Model

IF, ONE = ir.NeuronSpec("if"), torch.ones(1, 1)


def linear(name: str, source: str, inputs: int, outputs: int) -> ir.Linear:
    return ir.Linear(name, (source,), False, None, inputs, outputs)


def model_of(steps: int, nodes: list[ir.Node], **weights: Any) -> Model:
    state = {f"{name}.weight": np.array(w, np.float32) for name, w in weights.items()}
    state["head.bias"] = np.zeros(2, np.float32)
    return Model(ir.SpikingGraph(tuple(nodes), steps), state)


def currents_meet(steps: int, stem: float, synapse: float) -> Model:
    """Population "c" receives the stem and, through one synapse, the spikes of "a"."""
    return model_of(
        steps,
        [
            ir.Input("input", (), (1,)),
            linear("stem", "input", 1, 1),
            linear("ca", "input", 1, 1),
            ir.Population("a", ("ca",), IF),
            linear("cb", "a", 1, 1),
            ir.Merge("m", ("cb", "stem"), "add"),
            ir.Population("c", ("m",), IF),
            ir.Readout("head", ("c",), 2),
        ],
        stem=[[stem]],
        ca=[[2]],
        cb=[[synapse]],
        head=[[1], [0]],
    )


def test_what_feeds_a_merge_of_currents() -> None:
    graph = currents_meet(1, 1, 1).graph
    assert sources(graph, "c") == ("a", "input")
    assert entries(graph, "c") == ("a", "input")


def test_the_membrane_is_that_of_all_branches_together() -> None:
    reference = ReferenceModel(currents_meet(1, -1000.0, 1000.5))
    values, _ = reference.record(ONE)
    distance, allowance = reference.margins("c", values, torch.tensor([0]))
    assert distance.item() == -0.5
    assert allowance.item() == ROUNDING * 2000.5


def test_the_bias_of_a_weighed_current_is_part_of_the_allowance() -> None:
    nodes: list[ir.Node] = [
        ir.Input("input", (), (1,)),
        replace(linear("stem", "input", 1, 1), bias=True),
        linear("again", "stem", 1, 1),
        ir.Population("c", ("again",), IF),
        ir.Readout("head", ("c",), 2),
    ]
    model = model_of(1, nodes, stem=[[-500]], again=[[2]], head=[[1], [0]])
    model.state["stem.bias"] = np.array([500], np.float32)  # type: ignore[index]
    reference = ReferenceModel(model)
    values, _ = reference.record(ONE)
    distance, allowance = reference.margins("c", values, torch.tensor([0]))
    assert distance.item() == -1
    assert allowance.item() == ROUNDING * 2000


class Tampered(ModelExecution):
    """The golden itself, one spike of each named population changed on the way out."""

    def __init__(self, model: Model, steps: dict[str, int]) -> None:
        super().__init__(model)
        self.steps = steps

    def run(self, images: torch.Tensor) -> ExecutionRun:
        run = super().run(images)
        spikes = {name: array.clone() for name, array in run.spikes.items()}
        for name, step in self.steps.items():
            spikes[name][step] = ~spikes[name][step]
        return replace(run, spikes=spikes)


@pytest.mark.parametrize(("step", "unexplained"), [(1, 1), (2, 0)])
def test_a_static_image_explains_nothing(step: int, unexplained: int) -> None:
    """Population "a" differs from step 2 on; an earlier difference of "c" has no cause."""
    model = currents_meet(3, 0.2, 0.2)
    reference = ReferenceModel(model)
    spikes = {"a": 2, "c": step}
    found = Comparer(reference).end_to_end(Tampered(model, spikes), ONE)
    by_name = {layer.layer: layer for layer in found.layers}
    assert by_name["c"].flipped == 1
    assert by_name["c"].unexplained == unexplained


def spikes_meet(spec: ir.NeuronSpec, *, narrow: bool) -> Model:
    """Neuron 0 of "q" is silent; narrow: "q" without it, scattered to where its spikes were."""
    wide: list[ir.Node] = [ir.Scatter("wide", ("q",), 3, (1, 2))] if narrow else []
    return model_of(
        2,
        [
            ir.Input("input", (), (1,)),
            linear("cp", "input", 1, 3),
            ir.Population("p", ("cp",), spec),
            linear("cq", "input", 1, 2 if narrow else 3),
            ir.Population("q", ("cq",), spec),
            *wide,
            ir.Merge("m", ("p", "wide" if narrow else "q"), "add"),
            linear("cr", "m", 3, 1),
            ir.Population("r", ("cr",), IF),
            ir.Readout("head", ("r",), 2),
        ],
        cp=[[1], [2], [0]],
        cq=[[1], [0]] if narrow else [[0], [1], [0]],
        cr=[[0.8, 0.125, 0]],
        head=[[1], [0]],
    )


def test_differences_are_traced_through_a_merge_with_removed_channels() -> None:
    """At the threshold "p" and "q" fire by >= only; that is near, and what follows is traced."""
    reference = spikes_meet(IF, narrow=False)
    x, kept = ONE, {"q": np.array([1, 2])}
    assert compare(reference, spikes_meet(IF, narrow=True), x, kept).passed
    found = compare(reference, spikes_meet(replace(IF, fire="ge"), narrow=True), x, kept)
    layers = {layer.layer: layer for layer in found.end_to_end.layers}
    assert layers["p"].flipped == layers["q"].flipped == 1
    assert layers["r"].flipped == 1
    assert layers["r"].unexplained == 0
    assert layers["r"].flips[0].cause is not None
    assert layers["r"].flips[0].cause.layer == "p"
