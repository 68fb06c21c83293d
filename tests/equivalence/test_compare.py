"""Comparing spikes: what is explained, what is not, and what every difference is traced to."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from chains import ChainSpec, ConvSpec, build, chains, images
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from soul_deploy import ir
from soul_deploy.base.errors import UsageError, VerificationError
from soul_deploy.equivalence.comparison import CheckResult
from soul_deploy.equivalence.engines import (
    Comparer,
    ExecutionRun,
    LayerRun,
    ModelExecution,
    compare,
)
from soul_deploy.equivalence.reference import ReferenceModel, entries, sources
from soul_deploy.equivalence.spikes import SpikeMismatch, first_differences
from soul_deploy.frontend.from_torch import trace
from soul_deploy.model.model import Model, ModelInfo, arrays_of, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule, Signal
from soul_deploy.nn.neuron import SpikingNeuron

IF = ir.NeuronSpec("if")
ONES = torch.ones(2, 1)


def two_layers(
    first: float = 1.0, neuron: ir.NeuronSpec = IF, second: float = 1.0, time_steps: int = 3
) -> Model:
    """1 input, neuron "1" (weight `first`), neuron "3" (weight `second`), head of 2 classes."""
    network = nn.Sequential(
        nn.Linear(1, 1, bias=False),
        SpikingNeuron(neuron, time_steps),
        nn.Linear(1, 1, bias=False),
        SpikingNeuron(neuron, time_steps),
        layers.RateReadout(1, 2, bias=False),
    )
    module = GraphModule(trace(network, (1,), time_steps))
    with torch.no_grad():
        for name, value in (("0.weight", [[first]]), ("2.weight", [[second]])):
            module.get_parameter(name).copy_(torch.tensor(value))
        module.get_parameter("4.weight").copy_(torch.tensor([[1.0], [-1.0]]))
    return from_module(module, ModelInfo())


class Tampered(ModelExecution):
    """The golden itself, with its spikes changed on the way out."""

    def __init__(self, model: Model, change: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(model)
        self.change = change

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        return replace(run, spikes={n: self.change(n, s) for n, s in run.spikes.items()})

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        run = super().run_layer(layer, values)
        if layer == self.reference.graph.readout.name:
            return run
        return replace(run, output=self.change(layer, run.output))


def forced(reference: Model, other: Model, x: Tensor) -> CheckResult:
    return Comparer(ReferenceModel(reference)).forced(ModelExecution(other), x)


def end_to_end(reference: Model, other: Model, x: Tensor) -> CheckResult:
    return Comparer(ReferenceModel(reference)).end_to_end(ModelExecution(other), x)


# Neuron "1" at weight 1 charges to 1.0 at step 0: exactly its threshold. "gt" stays silent there.
AT_THRESHOLD, FIRES_AT_IT = two_layers(), two_layers(neuron=ir.NeuronSpec("if", fire="ge"))


def test_a_flip_at_the_threshold_is_explained_and_listed() -> None:
    found = forced(AT_THRESHOLD, FIRES_AT_IT, ONES)
    assert found.passed
    first = found.layers[0]
    assert (first.flipped, first.unexplained, first.samples, first.neurons) == (2, 0, 2, 1)
    assert first.flips[0] == SpikeMismatch("1", 0, 0, (0,), False, 0.0, 1e-5)
    assert str(first.flips[0]) == (
        "1[0] sample 0 step 0: golden is silent, distance +0 (allowed 1e-05)"
    )


def test_a_neuron_is_compared_up_to_its_first_flip() -> None:
    layer = forced(AT_THRESHOLD, FIRES_AT_IT, ONES).layers[0]
    assert (layer.golden_spikes, layer.other_spikes, layer.differing) == (2, 6, 4)
    assert layer.flipped == 2


def test_flips_downstream_are_traced_to_the_first_one() -> None:
    found = end_to_end(AT_THRESHOLD, FIRES_AT_IT, ONES)
    assert found.passed
    first, second = found.layers
    assert first.flips[0].cause is None
    assert second.flipped == 2
    assert second.flips[1].cause == first.flips[1]
    assert second.flips[1].cause.sample == 1
    assert "traced to 1[0] step 0" in str(second.flips[1])
    assert found.flipped_samples == 2
    assert found.logit_difference == 0
    assert found.logit_difference_flipped > 0.1


def test_a_flip_before_the_inputs_differ_must_explain_itself() -> None:
    """Neuron "3" charges by 0.4: flipped by force at step 0, its inputs differ only at step 1."""
    reference = two_layers(first=1.5, second=0.4)

    def change(name: str, spikes: Tensor) -> Tensor:
        spikes = spikes.clone()
        if name == "1":
            spikes[1] = ~spikes[1]
        else:
            spikes[0] = ~spikes[0]
        return spikes

    found = Comparer(ReferenceModel(reference)).end_to_end(Tampered(reference, change), ONES)
    assert not found.passed
    assert found.layers[1].unexplained == 2
    assert found.layers[1].flips[0].cause is None


def test_a_flip_far_from_the_threshold_is_not_explained() -> None:
    reference = two_layers(first=1.5, second=0.4)
    flipped = Tampered(reference, lambda name, s: ~s if name == "3" else s)
    comparer = Comparer(ReferenceModel(reference))
    found = comparer.forced(flipped, ONES)
    assert not found.passed
    assert [layer.passed for layer in found.layers] == [True, False]
    assert found.layers[1].flips[0].explained is False
    assert "UNEXPLAINED" in str(found.layers[1].flips[0])
    assert not comparer.end_to_end(flipped, ONES).passed


@pytest.mark.parametrize(
    "other",
    [
        two_layers(first=1.01, second=0.7),
        two_layers(first=0.995, second=1.7),
        two_layers(first=0.995, second=0.7, neuron=ir.NeuronSpec("lif")),
    ],
)
def test_another_weight_or_neuron_is_not_explained(other: Model) -> None:
    reference = two_layers(first=0.995, second=0.7)
    assert not forced(reference, other, ONES).passed
    assert not compare(reference, other, ONES).passed


def test_the_allowance_grows_with_the_sum_of_magnitudes() -> None:
    """1000·1 − 999·1: the membrane reaches 1, the magnitudes 1999; 4·2⁻²⁴·1999 is allowed."""
    network = nn.Sequential(
        nn.Linear(2, 1, bias=False), SpikingNeuron(IF, 2), layers.RateReadout(1, 2, bias=False)
    )
    module = GraphModule(trace(network, (2,), 2))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([[1000.0, -999.0]]))
    reference = ReferenceModel(from_module(module, ModelInfo()))
    values, _ = reference.record(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    distance, allowance = reference.margins("1", values, torch.tensor([0, 1]))
    # At step 1 the membrane is 2 (no spike at 1.0 with "gt"); the second sample never moves.
    np.testing.assert_array_equal(distance[:, :, 0], [[0, -1], [1, -1]])
    np.testing.assert_allclose(allowance[:, 0, 0], 4 * 2.0**-24 * 1999)
    np.testing.assert_allclose(allowance[:, 1, 0], 1e-5)


def test_the_allowance_remembers_earlier_steps() -> None:
    reference = ReferenceModel(two_layers(first=1000.0))
    frames = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    values, _ = reference.record(frames)
    _, allowance = reference.margins("1", values, torch.tensor([0]))
    np.testing.assert_allclose(allowance[:, 0, 0], 4 * 2.0**-24 * 1000)


def test_a_late_reset_follows_the_recorded_spikes() -> None:
    """beta 0.5, current 1: 1 - 1 and, had it fired there, 0.5 + 1 - 1 - 1; if not, 0.5 + 1 - 1."""
    late = ir.NeuronSpec(decay_input=False, v_reset=None, form="snntorch")
    reference = ReferenceModel(two_layers(neuron=late, time_steps=2))
    values, _ = reference.record(torch.ones(1, 1))
    for fired, expected in ((0.0, 0.5), (1.0, -0.5)):
        given = {**values, "1": Signal(torch.tensor([fired, 1.0]).reshape(2, 1, 1), False)}
        distance, _ = reference.margins("1", given, torch.tensor([0]))
        assert distance.flatten().tolist() == [0.0, expected]


def clear_of(spec: ChainSpec) -> Tensor:
    """Which (step, sample, neuron) of all populations lie beyond the allowance, flat.

    There, the float64 membrane must say exactly what fired.
    """
    model, x = build(spec), images(spec)
    reference = ReferenceModel(model)
    values, _ = reference.record(x)
    found = []
    for node in model.graph.populations:
        distance, allowance = reference.margins(node.name, values, torch.arange(spec.batch))
        clear = distance.abs() > allowance
        fired = values[node.name].tensor.bool()
        assert torch.equal((distance > 0)[clear], fired[clear])
        found.append(clear.flatten())
    return torch.cat(found)


def two_convolutions(neuron: ir.NeuronSpec, side: int, steps: int, seed: int) -> ChainSpec:
    """1 channel, 3×3 and then 1×1, on a map of `side`; no biases."""
    convolutions = tuple(
        ConvSpec(1, (k, k), (1, 1), (0, 0), (1, 1), 1, False, False, neuron, None) for k in (3, 1)
    )
    return ChainSpec((1, side, side), steps, 1, convolutions, True, (), 2, 0, False, False, seed)


# One neuron behind one that fires, its weight exactly 1: at its threshold at the only step.
AT_ITS_THRESHOLD = two_convolutions(ir.NeuronSpec("if", fire="ge"), 3, 1, 0)


@given(chains())
@example(AT_ITS_THRESHOLD)
def test_margins_agree_with_the_golden_spikes(spec: ChainSpec) -> None:
    clear_of(spec)


@pytest.mark.parametrize("family", ["if", "lif", "plif"])
def test_rounding_explains_next_to_nothing(family: ir.NeuronFamily) -> None:
    """A single neuron may sit at its threshold; of many, all but a few lie far from it."""
    neuron = ir.NeuronSpec(family, v_threshold=0.7)
    clear = torch.cat([clear_of(two_convolutions(neuron, 9, 6, seed)) for seed in range(5)])
    assert len(clear) == 5 * 2 * 6 * 7 * 7
    assert clear.float().mean() > 0.99
    assert not clear_of(AT_ITS_THRESHOLD).all()


@given(chains())
def test_a_spike_flipped_by_force_is_found(spec: ChainSpec) -> None:
    model, x = build(spec), images(spec)
    reference = ReferenceModel(model)
    values, _ = reference.record(x)
    name = model.graph.populations[-1].name
    distance, allowance = reference.margins(name, values, torch.arange(spec.batch))
    far = distance.abs() > allowance
    assume(bool(far.any()))
    place = tuple(int(i) for i in far.nonzero()[-1])

    def change(layer: str, spikes: Tensor) -> Tensor:
        if layer == name:
            spikes = spikes.clone()
            spikes[place] = ~spikes[place]
        return spikes

    comparer, wrong = Comparer(reference), Tampered(model, change)
    assert Comparer(reference).forced(ModelExecution(model), x).flipped == 0
    for found in (comparer.forced(wrong, x), comparer.end_to_end(wrong, x)):
        assert found.flipped == found.unexplained == 1
        (flip,) = found.layers[-1].flips
        assert (flip.layer, flip.step, flip.sample, *flip.neuron) == (name, *place)
        assert flip.distance == distance[place].item()


@given(chains(), st.integers(0, 10))
def test_a_changed_layer_is_found_where_it_is(spec: ChainSpec, which: int) -> None:
    """Fed with the golden's inputs only the changed layer flips; end to end, what follows is
    traced to it, and nothing before it differs."""
    model, x = build(spec), images(spec)
    names = [node.name for node in model.graph.populations]
    place = which % len(names)
    changed = dict(model.state)
    weight = f"{model.graph[names[place]].inputs[0]}.weight"
    changed[weight] = model.state[weight] * np.float32(1.3)
    other = replace(model, state=changed)
    found = compare(model, other, x)
    flipped = [layer.flipped for layer in found.forced.layers]
    assert flipped[:place] == [0] * place
    assert flipped[place + 1 :] == [0] * (len(names) - place - 1)
    whole = found.end_to_end.layers
    assert [layer.flipped for layer in whole[: place + 1]] == flipped[: place + 1]
    for later in whole[place + 1 :]:
        assert later.unexplained == 0
        assert all(f.cause is not None and f.cause.layer == names[place] for f in later.flips)
    wide = any(abs(flip.distance) > flip.allowance for flip in found.forced.layers[place].flips)
    assert found.end_to_end.layers[place].passed is not wide


def with_a_pattern(*pattern: int) -> Model:
    """1 input, neuron "1" and a constant-pattern channel beside it, head of 2 classes."""
    nodes = (
        ir.Input("input", (), (1,)),
        ir.Linear("0", ("input",), False, None, 1, 1),
        ir.Population("1", ("0",), IF, generated=1),
        ir.Readout("head", ("1",), 2),
    )
    state = arrays_of(GraphModule(ir.SpikingGraph(nodes, len(pattern))).state_dict())
    state["0.weight"] = np.array([[1.5]], np.float32)
    state["1.pattern"] = np.array(pattern, np.float32)[:, None]
    return Model(ir.SpikingGraph(nodes, len(pattern)), state)


def test_a_generated_channel_has_no_membrane_that_could_explain_another_pattern() -> None:
    reference = with_a_pattern(0, 1, 1)
    assert compare(reference, reference, ONES).passed
    found = compare(reference, with_a_pattern(1, 1, 1), ONES)
    for gate in (found.forced, found.end_to_end):
        assert gate.layers[0].unexplained == 2 and not gate.passed
        (flip, _) = gate.layers[0].flips
        assert (flip.neuron, flip.step, flip.fired, flip.distance) == ((1,), 0, False, np.inf)


def test_flips_are_numbered_over_batches() -> None:
    x = torch.tensor([[2.0], [1.0], [2.0], [1.0], [1.0]])
    comparer = Comparer(ReferenceModel(AT_THRESHOLD))
    found = comparer.end_to_end(ModelExecution(FIRES_AT_IT), x, batch=2)
    assert found.samples == 5
    assert [flip.sample for flip in found.layers[0].flips] == [1, 3, 4]
    # A neuron that gets spikes of exactly its threshold flips by itself where none differ before.
    assert [flip.sample for flip in found.layers[1].flips] == [0, 1, 2, 3, 4]


def test_first_differences_are_found_per_neuron() -> None:
    reference = torch.tensor([[[0, 1, 0]], [[1, 1, 0]], [[0, 0, 0]]], dtype=torch.bool)
    other = torch.tensor([[[0, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]], dtype=torch.bool)
    found = first_differences(reference, other)
    assert found.index.tolist() == [[0, 0], [0, 1]]
    assert found.step.tolist() == [1, 0]


def test_a_difference_that_max_pooling_hides_is_no_excuse() -> None:
    """Two spikes in one window: losing one changes nothing downstream."""
    network = nn.Sequential(
        layers.Conv2d(1, 1, 1, bias=False),
        SpikingNeuron(IF, 2),
        layers.MaxPool2d((1, 2)),
        layers.Conv2d(1, 1, 1, bias=False),
        SpikingNeuron(IF, 2),
        layers.RateReadout(1, 2, bias=False),
    )
    module = GraphModule(trace(network, (1, 1, 2), 2))
    with torch.no_grad():
        module.get_parameter("0.weight").fill_(1.5)
        module.get_parameter("3.weight").fill_(0.25)
    model = from_module(module, ModelInfo())

    def change(name: str, spikes: Tensor) -> Tensor:
        spikes = spikes.clone()
        if name == "1":
            spikes[0, :, :, :, 0] = False
        else:
            spikes[1] = True
        return spikes

    comparer = Comparer(ReferenceModel(model))
    found = comparer.end_to_end(Tampered(model, change), torch.ones(1, 1, 1, 2))
    assert found.layers[1].unexplained == 1
    assert entries(model.graph, "4") == ("2",)
    assert sources(model.graph, "4") == ("1",)


def test_logits_beyond_the_limit_fail() -> None:
    class Off(ModelExecution):
        by = 0.0

        def run(self, images: Tensor) -> ExecutionRun:
            run = super().run(images)
            return replace(run, logits=run.logits + self.by)

    reference = two_layers(first=1.5)
    execution = Off(reference)
    for by, passed in ((5e-6, True), (2e-5, False), (float("nan"), False)):
        execution.by = by
        found = Comparer(ReferenceModel(reference)).end_to_end(execution, ONES)
        assert found.passed is passed


def test_silent_layers_are_named() -> None:
    found = end_to_end(two_layers(first=0.1), two_layers(first=0.1), ONES)
    assert found.passed
    assert [layer.silent for layer in found.layers] == [True, True]


def test_models_with_channels_removed_are_compared_on_those_left() -> None:
    torch.manual_seed(4)

    def network(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(3, width),
            SpikingNeuron(ir.NeuronSpec(), 4),
            nn.Linear(width, 2),
            SpikingNeuron(ir.NeuronSpec(), 4),
            layers.RateReadout(2, 2),
        )

    wide, narrow = network(5), network(3)
    kept = np.array([0, 2, 3])
    weights = {name: tensor * 4 for name, tensor in wide.state_dict().items()}
    weights["2.weight"][:, [1, 4]] = 0
    wide.load_state_dict(weights)
    cut = {"0.weight": weights["0.weight"][kept], "0.bias": weights["0.bias"][kept]}
    narrow.load_state_dict(weights | cut | {"2.weight": weights["2.weight"][:, kept]})
    reference, other = (from_module(_loaded(net), ModelInfo()) for net in (wide, narrow))
    x = torch.randn(6, 3)
    agreed = compare(reference, other, x, {"1": kept})
    assert agreed.passed
    assert agreed.end_to_end.layers[0].golden_spikes > 0
    assert not compare(reference, other, x, {"1": np.array([0, 2, 4])}).passed
    with pytest.raises(UsageError, match=r"1: the other model has \(3,\), expected \(5,\)"):
        compare(reference, other, x)


def _loaded(network: nn.Sequential) -> GraphModule:
    module = GraphModule(trace(network, (3,), 4))
    module.load_state_dict(network.state_dict())
    return module


def test_what_cannot_be_compared_is_refused() -> None:
    reference = two_layers()
    with pytest.raises(UsageError, match="T = 3 and T = 4 steps"):
        compare(reference, two_layers(time_steps=4), ONES)
    with pytest.raises(UsageError, match="no samples to compare"):
        forced(reference, reference, torch.zeros(0, 1))
    short = Tampered(reference, lambda name, spikes: spikes[:2])
    with pytest.raises(VerificationError, match="not the same network"):
        Comparer(ReferenceModel(reference)).forced(short, ONES)
