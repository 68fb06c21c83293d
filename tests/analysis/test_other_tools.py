"""Our compat fields against the packages themselves, on the same small networks and inputs."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy import ir
from soul_deploy.analysis.measure import count, original_of
from soul_deploy.analysis.other_tools import CompatCounts, compat_layer, compat_model
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule, Signal

IF = ir.NeuronSpec("if")


def network(nodes: list[ir.Node], steps: int, seed: int = 0) -> Model:
    """Random weights, half of them 0, that make neurons fire."""
    graph = ir.SpikingGraph(tuple(nodes), steps)
    module = GraphModule(graph)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            value *= torch.rand(tensor.shape, generator=generator) < 0.5
        state[name] = value.numpy()
    return Model(graph, state)


def small() -> Model:
    """Image, two convolutions (stride 2, groups 2), a linear layer, votes; bias on all."""
    return network(
        [
            ir.Input("input", (), (2, 9, 7)),
            ir.Convolution("c1", ("input",), True, None, 2, 4, (3, 3), (1, 1), (1, 1)),
            ir.Population("s1", ("c1",), IF),
            ir.Convolution("c2", ("s1",), True, None, 4, 6, (3, 2), (2, 2), (1, 0), (1, 1), 2),
            ir.Population("s2", ("c2",), IF),
            ir.Flatten("flat", ("s2",)),
            ir.Linear("fc", ("flat",), True, None, 6 * 5 * 3, 6),
            ir.Population("s3", ("fc",), IF),
            ir.Readout("vote", ("s3",), 3, False, False, 2),
        ],
        4,
    )


def pooled() -> Model:
    """The second convolution reads averages of spikes."""
    return network(
        [
            ir.Input("input", (), (2, 8, 8)),
            ir.Convolution("c1", ("input",), True, None, 2, 4, (3, 3), (1, 1), (1, 1)),
            ir.Population("s1", ("c1",), IF),
            ir.AvgPool("pool", ("s1",), (2, 2), (2, 2)),
            ir.Convolution("c2", ("pool",), True, None, 4, 6, (3, 3), (1, 1), (1, 1)),
            ir.Population("s2", ("c2",), IF),
            ir.Flatten("flat", ("s2",)),
            ir.Linear("fc", ("flat",), True, None, 6 * 16, 6),
            ir.Population("s3", ("fc",), IF),
            ir.Readout("vote", ("s3",), 3, False, False, 2),
        ],
        3,
    )


X = torch.randn(5, 2, 9, 7, generator=torch.Generator().manual_seed(1))
IMAGES = {"small": (small, X), "pooled": (pooled, X.new_ones(5, 2, 8, 8) * 0.7)}


@pytest.mark.parametrize("name", IMAGES)
def test_neurobench(name: str) -> None:
    """The package's own metrics on the same module: to the unit, and the sparsities."""
    nb = pytest.importorskip("neurobench", reason="`make` installs NeuroBench for these tests")
    assert nb is not None
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel

    from soul_deploy.nn.neuron import SpikingNeuron

    make, x = IMAGES[name]
    model = make()
    wrapped = TorchModel(model.module())
    wrapped.add_activation_module(SpikingNeuron)
    wrapped.register_hooks()
    with torch.no_grad():
        # Neurons run through `simulate`, which no hook sees: their spikes are handed in.
        wrapped(x)
        found = SynapticOperations()(wrapped, None, (x, None))
        spikes = model.module().record(x).spikes
        for hook in wrapped.activation_hooks:
            hook.activation_outputs = []
        for hook, values in zip(wrapped.activation_hooks, spikes.values(), strict=True):
            hook.activation_outputs.append(values)
        activation = ActivationSparsity()(wrapped, None, (x, None))
    report = count(model, x, original=original_of("m", model))
    ours = report.to_dict()["compat"]["neurobench"]
    for key in ("Effective_ACs", "Effective_MACs", "Dense"):
        assert found[key] == ours[key] / len(x), key
    sparsity = ours["ConnectionSparsity"]
    assert ConnectionSparsity()(wrapped) == round(sparsity["num"] / sparsity["den"], 4)
    share = ours["ActivationSparsity"]
    assert activation == share["num"] / share["den"]
    assert Footprint()(wrapped) == ours["Footprint"]
    assert (ours["Effective_ACs"] > 0) and (ours["Effective_MACs"] > 0)


@pytest.mark.parametrize("name", IMAGES)
def test_spikingjelly(name: str) -> None:
    """SynOpCounter sees every operator that the module dispatches."""
    pytest.importorskip("spikingjelly", reason="`make` installs SpikingJelly for these tests")
    from spikingjelly.activation_based.op_counter import (
        DispatchCounterMode,
        MACCounter,
        SynOpCounter,
    )

    make, x = IMAGES[name]
    model = make()
    ours = compat_model(model, x)
    module = model.module()
    values = module.evaluate(
        {"input": module.as_signal(x)}, [node.inputs[0] for node in model.graph.projections]
    )
    synops, macs = 0, 0
    for node in model.graph.projections:
        held = values[node.inputs[0]]
        data = held.tensor if held.static else held.tensor.flatten(0, 1)
        counters = SynOpCounter(), MACCounter()
        with torch.no_grad(), DispatchCounterMode(list(counters)):
            module.get_submodule(node.name)(data)
        assert counters[0].get_total() == ours[node.name].spikingjelly_synops, node.name
        if not counters[0].get_total():
            assert counters[1].get_total() == ours[node.name].spikingjelly_macs, node.name
        synops += counters[0].get_total()
        macs += ours[node.name].spikingjelly_macs
    total = sum(ours.values(), CompatCounts())
    assert (total.spikingjelly_synops, total.spikingjelly_macs) == (synops, macs)


# The rule of a script that is not installed here, written anew from what it does.


def upr_sops(weight: Tensor, x: Tensor, mask: Tensor, stride: int, padding: int) -> Fraction:
    """SOPMonitor: (conv(x, W ≠ 0) · mask).sum(), value by value."""
    found = F.conv2d(x.double(), (weight != 0).double(), None, stride, padding) * mask
    return Fraction(float(found.sum()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("pool", [False, True])
def test_a_rule_written_anew(stride: int, padding: int, pool: bool) -> None:
    nodes: list[ir.Node] = [ir.Input("input", (), (2, 8, 8)), ir.Population("s", ("input",), IF)]
    if pool:
        nodes.append(ir.AvgPool("pool", ("s",), (2, 2), (2, 2)))
    last = nodes[-1].name
    sides = ((3, 3), (stride, stride), (padding, padding))
    nodes += [
        ir.Convolution("p", (last,), True, None, 2, 3, *sides),
        ir.Population("q", ("p",), IF),
    ]
    model = network([*nodes, ir.Readout("head", ("q",), 2)], 2)
    shape = model.graph.shapes["q"]
    mask = np.random.default_rng(3).random(shape) < 0.6
    model = Model(model.graph, model.state, neuron_masks={"q": mask})
    spikes = (torch.rand(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(5)) < 0.3).float()
    ours = compat_layer(model, "p", Signal(spikes, False))
    x = spikes.flatten(0, 1)
    x = F.avg_pool2d(x, 2) if pool else x
    weight = torch.from_numpy(model.state["p.weight"].copy())
    assert ours.upr_sops == upr_sops(weight, x, torch.from_numpy(mask.copy()), stride, padding)


# The tools' own unit cases.


def one_layer(projection: ir.Node, shape: tuple[int, ...], steps: int) -> Model:
    """Spikes, the projection with all weights 1, a population, a head."""
    nodes = [ir.Input("input", (), shape), ir.Population("s", ("input",), IF), projection]
    model = network([*nodes, ir.Population("q", ("p",), IF), ir.Readout("head", ("q",), 2)], steps)
    ones = {name: np.ones_like(array) for name, array in model.state.items()}
    return Model(model.graph, ones)


def on(projection: ir.Node, x: Tensor) -> CompatCounts:
    """x (T, B, ...)."""
    model = one_layer(projection, tuple(x.shape[2:]), len(x))
    return compat_layer(model, "p", Signal(x, False))


def convolution(kernel: tuple[int, int], outputs: int = 1, inputs: int = 1) -> ir.Convolution:
    return ir.Convolution("p", ("s",), False, None, inputs, outputs, kernel)


def test_unit_cases_of_neurobench() -> None:
    """tests/test_metrics.py of NeuroBench 2.x."""
    assert on(convolution((3, 3)), torch.ones(1, 1, 1, 3, 3)).neurobench_acs == 9
    assert on(convolution((3, 3)), torch.ones(1, 1, 1, 12, 12)).neurobench_acs == 900
    # Conv1d(5, 1, 5) on 10 positions, as a map of height 1.
    assert on(convolution((1, 5), 1, 5), torch.ones(1, 1, 5, 1, 10)).neurobench_acs == 150
    linear = ir.Linear("p", ("s",), False, None, 20, 5)
    assert on(linear, torch.ones(10, 1, 20)).neurobench_acs == 1000
    assert on(linear, torch.ones(10, 1, 20)).neurobench_dense == 1000


def test_linear_networks_agree_everywhere() -> None:
    """No border, no mask, no zero weight: all rules that count events give one number."""
    x = (torch.rand(3, 4, 7, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    found = on(ir.Linear("p", ("s",), False, None, 7, 5), x)
    numbers = {found.neurobench_acs, found.spikingjelly_synops, found.upr_sops}
    assert numbers == {int(x.sum()) * 5}
