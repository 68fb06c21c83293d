"""Tables over operations: an entry for every operation; what a new one lacks is named."""

import copy
import gc
import importlib
import pickle
import pkgutil
import weakref
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployed import small_model
from scaling import ENTRIES, Share, scaling
from torch import Tensor

import soul_deploy
from soul_deploy import ir
from soul_deploy.analysis.connectivity import measure_connectivity
from soul_deploy.analysis.other_tools import compat_model
from soul_deploy.analysis.synops import count_model
from soul_deploy.base import Array
from soul_deploy.base.dispatch import OperationTable, tables_over
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.nir.read import import_nir
from soul_deploy.export.nir.write import build_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.lowering.deploy import CACHE, lower
from soul_deploy.lowering.fan_out import Counted
from soul_deploy.lowering.linear_operators import LinearOperator, Operator
from soul_deploy.model import file
from soul_deploy.model.file import expected_shapes
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.engine.network import load
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.ops.counted_run import count_run


def import_everything() -> None:
    for module in pkgutil.walk_packages(soul_deploy.__path__, "soul_deploy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def families(kind: type[ir.Node] = ir.Node) -> Iterator[type[ir.Node]]:
    yield kind
    for below in kind.__subclasses__():
        yield from families(below)


def missing() -> dict[str, list[str]]:
    """Table -> operations that nobody entered."""
    found: dict[str, list[str]] = {}
    for family in families():
        for table in tables_over(family):
            names = table.missing(kind for kind in ir.OPS.values() if issubclass(kind, family))
            found |= {table.name.removeprefix("soul_deploy."): names} if names else {}
    return found


def test_every_operation_is_entered_or_refused_in_every_table() -> None:
    import_everything()
    assert len(tables_over(ir.Node)) > 10
    assert missing() == {}


@pytest.mark.parametrize("family", [LinearOperator, Operator, Counted])
def test_operators_and_counted_entries_are_in_every_table(family: type) -> None:
    import_everything()
    below: list[type] = family.__subclasses__()
    kinds = [leaf for kind in below for leaf in (kind.__subclasses__() or [kind])]
    assert len(kinds) > 1 and tables_over(family)
    for table in tables_over(family):
        assert table.missing(kinds) == [], table.name
        assert table.missing([type("Stranger", (), {})]) == ["Stranger"], table.name


def an_operation(kind: type[ir.Node]) -> ir.Node:
    values: dict[str, Any] = {item.name: (1, 1) for item in fields(kind)}
    return kind(**values | {"name": "x", "inputs": ("y",)})


def test_what_is_refused_says_why() -> None:
    """A refused operation's message names it, and is no KeyError of a walker."""
    import_everything()
    refused = []
    for table in tables_over(ir.Node):
        for kind in ir.OPS.values():
            entry = table.of(kind)
            if entry.__name__ == "refused":
                with pytest.raises(Exception) as raised:
                    entry(an_operation(kind), None, None, None)
                refused.append((table.name.rsplit(".", 2)[1:], kind.op))
                told = str(raised.value)
                assert told.startswith("x: ") or told == INPUT_NEEDED, told
    assert len(refused) > 10


INPUT_NEEDED = "the network's input is needed for what was asked"


def test_a_new_operation_is_missing_wherever_it_has_no_entry() -> None:
    import_everything()
    everywhere = {table.name.removeprefix("soul_deploy.") for table in tables_over(ir.Node)}
    tables: list[OperationTable[Any]] = [table for table, _ in ENTRIES]
    with scaling(without=tables):
        assert missing() == {name: ["Share"] for name in everywhere}
    for table in tables:
        with scaling(without=[table]):
            assert missing() == {table.name.removeprefix("soul_deploy."): ["Share"]}
    with scaling():
        assert missing() == {}
    assert missing() == {} and Share.op not in ir.OPS


def test_what_nobody_entered_is_refused_by_name() -> None:
    model = scaled()
    x = torch.zeros(1, 2, 6, 6)
    with pytest.raises(UnsupportedGraphError, match="half: GraphModule does not know"):
        model.module()
    with scaling(), torch.no_grad():
        model.module()(x)
    for action in (build_event_network, lambda model: lower(model).layers, build_nir):
        with pytest.raises(UnsupportedGraphError, match="half: "):
            action(scaled())


def scaled() -> Model:
    """Convolution, neurons, Share, convolution, neurons; dyadic, so that every sum is exact."""
    neuron = ir.NeuronSpec(family="if", v_threshold=1.0)
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (2, 6, 6)),
            ir.Convolution("a", ("input",), False, None, 2, 4, (3, 3), padding=(1, 1)),
            ir.Population("p", ("a",), neuron),
            Share("half", ("p",), 2),
            ir.Convolution("b", ("half",), True, None, 4, 3, (3, 3)),
            ir.Population("q", ("b",), neuron),
            ir.Readout("head", ("q",), 5, linear=True, bias=True),
        ),
        4,
    )
    rng = np.random.default_rng(5)
    state = {
        name: (rng.integers(-3, 6, shape) / 4).astype(np.float32)
        for name, shape in expected_shapes(graph).items()
    }
    state["a.weight"][2] = 0  # a channel without input never fires
    return Model(graph, state)


def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 5, (6, 2, 6, 6)) / 4).float()


def test_a_new_operation_goes_the_whole_way(tmp_path: Path) -> None:
    with scaling():
        model, x = scaled(), images()
        spikes = model.module().record(x).spikes
        assert 0 < spikes["p"].float().mean() < 1 and 0 < spikes["q"].float().mean() < 1
        file.save(model, tmp_path / "net.safetensors")
        assert file.load(tmp_path / "net.safetensors").graph == model.graph
        linear = lower(model).operator("b")
        assert linear.source == "p"
        np.testing.assert_array_equal(linear.operator.weight, model.state["b.weight"] / 2)
        counts = count_model(lower(model).trimmed.model, x)
        assert counts["b"].spikes_in == int(spikes["p"][:, :, [0, 1, 3]].sum())
        assert compat_model(model, x)["b"].neurobench_macs > 0
        weights = {name: model.state[f"{name}.weight"] for name in ("a", "b")}
        assert 0 < measure_connectivity(model.graph, weights, {}).share < 1
        for name, export in (("net.onnx", export_onnx), ("net.event.safetensors", export_event)):
            export(model, tmp_path / name)
            report = verify(model, tmp_path / name, x)
            assert report.passed, report.text()
        assert count_run(load(tmp_path / "net.event.safetensors"), x.numpy()).counts == counts
        compact = remove(model, plan_removal(model))
        assert compact.graph.shapes["half"] == (3, 6, 6)
        with torch.no_grad():
            assert torch.equal(compact.module()(x), model.module()(x))
    assert Share.op not in ir.OPS


def test_a_new_operation_in_nir() -> None:
    pytest.importorskip("nir")
    with scaling(), torch.no_grad():
        model, x = scaled(), images()
        assert torch.equal(import_nir(build_nir(model)).module()(x), model.module()(x))


def test_a_new_operation_is_refused_where_no_projection_follows() -> None:
    with scaling():
        model = scaled()
        nodes = {node.name: node for node in model.graph.nodes}
        nodes["half"] = Share("half", ("a",), 2)
        nodes["p"] = ir.Population("p", ("half",), ir.NeuronSpec())
        nodes["b"] = ir.Convolution("b", ("p",), True, None, 4, 3, (3, 3))
        order = ("input", "a", "half", "p", "b", "q", "head")
        graph = ir.SpikingGraph(tuple(nodes[name] for name in order), 4)
        with pytest.raises(UnsupportedGraphError, match="p: its input 'half' is no projection"):
            build_event_network(Model(graph, model.state))


def test_a_model_is_lowered_once_and_a_copy_by_itself() -> None:
    model = small_model()
    lowered = lower(model)
    assert lower(model) is lowered and lowered.trimmed is lowered.trimmed
    name = model.graph.projections[0].name
    assert lowered.operator(name) is lowered.trimmed.operator(name)
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert CACHE not in vars(other)
    assert len(pickle.dumps(model)) == len(pickle.dumps(small_model()))


def test_arrays_of_a_lowered_model_do_not_change_unseen() -> None:
    model = small_model()
    name = f"{model.graph.projections[0].name}.weight"
    model.state[name][0] = 1  # before the model was lowered: whoever made it may change it
    lower(model)
    with pytest.raises(ValueError, match="read-only"):
        model.state[name][0] = 0


def test_a_model_that_holds_another_array_is_lowered_anew() -> None:
    model = small_model()
    name = model.graph.projections[0].name
    before = lower(model)
    assert lower(model) is before
    changed = np.zeros_like(model.state[f"{name}.weight"])
    model.state[f"{name}.weight"] = changed  # type: ignore[index]
    assert not lower(model).synapses[name].weight.any() and before.synapses[name].weight.any()


def test_a_trimmed_model_is_lowered_with_it() -> None:
    trimmed = lower(small_model()).trimmed
    assert lower(trimmed.model).synapses is trimmed.synapses


def test_a_lowered_model_goes_with_its_model() -> None:
    """No cycle: the arrays of a large model are freed when its last name goes."""
    model = small_model()
    seen = weakref.ref(lower(model).trimmed)
    gc.disable()
    try:
        del model
        assert seen() is None
    finally:
        gc.enable()


def test_what_is_handed_out_is_not_the_lowered_form() -> None:
    """Changing an exported network changes no later export of the same model."""
    model = small_model()
    first = build_event_network(model)
    weights = [array.copy() for array in arrays_in(first)]
    for array in arrays_in(first):
        array += 1
    for array, before in zip(arrays_in(build_event_network(model)), weights, strict=True):
        np.testing.assert_array_equal(array, before)
    with pytest.raises(ValueError, match="read-only"):
        lower(model).synapses[model.graph.readout.name].weight[0] = 1


def arrays_in(network: EventNetwork) -> list[Array]:
    """Every float array of weights and biases."""
    held: list[Any] = [network.readout.weight, network.readout.bias]
    for layer in network.layers:
        synapses = getattr(layer, "synapses", None)
        if synapses is not None:
            held += [synapses.bias, synapses.rows.weight]
    return [array for array in held if array is not None]


def test_merges_say_what_they_need() -> None:
    merge = ir.Merge("m", ("a", "b"), "add")
    assert merge.passes([True, False]) and merge.spares("a") and merge.spares("b")
    merge = ir.Merge("m", ("a", "b"), "iand")
    assert merge.passes([True, False]) and not merge.passes([False, True])
    assert merge.spares("b") and not merge.spares("a")
    merge = ir.Merge("m", ("a", "b"), "and")
    assert not merge.passes([True, False]) and not merge.spares("a")
    assert not ir.Merge("m", ("a", "a"), "add").spares("a")
