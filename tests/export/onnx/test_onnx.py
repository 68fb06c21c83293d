"""The exported ONNX graph: the same numbers as PyTorch, and what the file says about itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from chains import ChainSpec, build, chains, images
from hypothesis import given
from onnx import helper, numpy_helper
from torch import Tensor, nn

from soul_deploy.base.errors import (
    FileFormatError,
    LimitError,
    MissingFileError,
    UnsupportedGraphError,
    UsageError,
    ValidityError,
)
from soul_deploy.export.onnx.model import build_onnx, export_onnx
from soul_deploy.export.onnx.opsets import OPSETS
from soul_deploy.export.onnx.reader import read_onnx
from soul_deploy.export.verify.onnx import OnnxExecution
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.model.model import Model, ModelInfo, Normalization, Validity, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron


def model_of(network: nn.Module, shape: tuple[int, ...], time_steps: int, **info: object) -> Model:
    module = GraphModule(trace(network, shape, time_steps))
    module.load_state_dict(network.state_dict())
    return from_module(module, ModelInfo(**info))  # type: ignore[arg-type]


LIF = NeuronSpec()


def two_deep() -> Model:
    """Linear layers of 4 and 3 neurons, head of 2 classes: the second's currents change by step."""
    network = nn.Sequential(
        *(nn.Linear(2, 4), SpikingNeuron(LIF, 3), nn.Linear(4, 3), SpikingNeuron(LIF, 3)),
        layers.RateReadout(3, 2),
    )
    return model_of(network, (2,), 3)


def small(neuron: NeuronSpec = LIF, time_steps: int = 3) -> Model:
    """2×5×5, conv 4, neuron, max pool, flatten, head of 3 classes."""
    torch.manual_seed(1)
    network = nn.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        SpikingNeuron(neuron, time_steps),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.RateReadout(16, 3),
    )
    return model_of(network, (2, 5, 5), time_steps)


def run(built: onnx.ModelProto, x: Tensor, *outputs: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(built.SerializeToString())
    found: list[np.ndarray] = session.run(list(outputs) or None, {"input": x.numpy()})
    return found


@given(chains(dyadic=True))
def test_dyadic_chains_are_equal_to_the_bit(spec: ChainSpec) -> None:
    model, x = build(spec), images(spec)
    (logits,) = run(build_onnx(model), x)
    np.testing.assert_array_equal(logits, model.module().record(x).logits.numpy())


@given(chains(dyadic=True))
def test_dyadic_sequences_are_equal_to_the_bit(spec: ChainSpec) -> None:
    model, x = build(spec), images(spec)
    frames = torch.stack([x.roll(t, dims=3) for t in range(spec.time_steps)])
    built = build_onnx(model, input_mode="sequence")
    recorded, execution = model.module().record(frames), OnnxExecution(built, model)
    found = execution.run(frames)
    assert torch.equal(found.logits, recorded.logits)
    for name, spikes in recorded.spikes.items():
        assert torch.equal(found.spikes[name], spikes)
    assert torch.equal(execution.run(x).logits, model.module().record(x).logits)


CHARGES = [
    NeuronSpec("if"),
    NeuronSpec("if", v_reset=None, fire="ge"),
    NeuronSpec("lif", tau=1.7, v_reset=-0.3),
    NeuronSpec("lif", tau=3.0, v_reset=None),
    NeuronSpec("lif", tau=1.7, v_reset=0.1, decay_input=False),
    NeuronSpec("plif", tau=1.7, v_reset=0.2),
    NeuronSpec("plif", tau=3.0, v_reset=None, fire="ge"),
    NeuronSpec("plif", tau=1.7, v_reset=0.0, decay_input=False),
    NeuronSpec("plif", tau=1.7, v_reset=-0.3, decay_input=False),
]


@pytest.mark.parametrize("time_steps", [1, 4])
@pytest.mark.parametrize("neuron", CHARGES, ids=str)
@pytest.mark.parametrize("form", [{}, {"functions": True}, {"fixed_batch": 40}], ids=str)
def test_membranes_are_equal_to_the_bit(
    neuron: NeuronSpec, time_steps: int, form: dict[str, Any]
) -> None:
    """A 1×1 convolution of one channel is one product, so that nothing but the neuron can differ.

    T = 1 is the case in which a constant membrane would leave nothing but constants beside the
    current, which ONNX Runtime may move into the convolution's weights.
    """
    torch.manual_seed(3)
    network = nn.Sequential(
        layers.Conv2d(1, 5, 1, bias=False),
        SpikingNeuron(neuron, time_steps),
        layers.RateReadout(5, 2),
    )
    model, x = model_of(network, (1, 3, 3), time_steps), torch.randn(40, 1, 3, 3) * 4
    membranes: list[Tensor] = []
    model.module().forward_observed(x, lambda name, t, spikes, v: membranes.append(v.detach()))
    built = build_onnx(model, **form)
    names = [f"1.membrane.{t}" for t in range(time_steps)]
    for name in names:
        built.graph.output.append(helper.make_tensor_value_info(name, 1, ["batch", 5, 3, 3]))
    for expected, found in zip(membranes, run(built, x, *names), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("opset", [OPSETS[0], 18, 21, OPSETS[-1]])
def test_every_opset_and_any_batch_give_the_same_scores(opset: int) -> None:
    model = small()
    built = build_onnx(model, opset=opset)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 2, 5, 5) * 3
        recorded = model.module().record(x)
        assert recorded.spikes["2"].any()
        np.testing.assert_allclose(run(built, x)[0], recorded.logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [17, 18, 19])
def test_a_split_says_its_number_of_parts_from_opset_18_on(opset: int) -> None:
    built = build_onnx(two_deep(), opset=opset)
    (split,) = (node for node in built.graph.node if node.op_type == "Split")
    attributes = {item.name: item.i for item in split.attribute}
    assert len(split.output) == 3
    assert attributes == {"axis": 0} | ({"num_outputs": 3} if opset >= 18 else {})


@pytest.mark.parametrize(("size", "target"), [((4, 4), (7, 7)), ((5, 3), (2, 4)), ((6, 4), (3, 2))])
def test_adaptive_windows_are_those_of_pytorch(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(
        layers.AdaptiveAvgPool2d(target),
        layers.Conv2d(2, 3, 2),
        SpikingNeuron(NeuronSpec("if", v_threshold=1e9), 1),
        layers.RateReadout(3, 2),
    )
    model, x = model_of(network, (2, *size), 1), torch.randn(2, 2, *size)
    built = build_onnx(model)
    built.graph.output.append(helper.make_tensor_value_info("0", 1, ["batch", 2, *target]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, target)
    np.testing.assert_allclose(run(built, x, "0")[0], pooled, rtol=1e-6, atol=1e-7)


def test_average_pooling_counts_its_padding() -> None:
    network = nn.Sequential(
        layers.AvgPool2d(3, 2, 1),
        layers.Conv2d(1, 2, 1),
        SpikingNeuron(NeuronSpec(), 1),
        layers.RateReadout(2, 2),
    )
    built = build_onnx(model_of(network, (1, 4, 5), 1))
    built.graph.output.append(helper.make_tensor_value_info("0", 1, ["batch", 1, 2, 3]))
    found = run(built, torch.ones(1, 1, 4, 5) * 9, "0")[0][0, 0]
    np.testing.assert_array_equal(found, [[4, 6, 4], [6, 9, 6]])


def test_initializers_are_the_folded_weights() -> None:
    model = small()
    built = build_onnx(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    for name, synapses in fold(model.graph, model.state, {}).items():
        np.testing.assert_array_equal(stored[f"{name}.weight"], synapses.weight)
        assert synapses.bias is not None
        np.testing.assert_array_equal(stored[f"{name}.bias"], synapses.bias)
    assert not any("BatchNorm" in node.op_type for node in built.graph.node)


def test_a_neuron_is_operators_named_by_population_and_step() -> None:
    """What a viewer shows: names and metadata of nodes, one constant per population."""
    built = build_onnx(small(time_steps=2))
    assert not built.functions
    assert [entry.domain for entry in built.opset_import] == [""]
    by_name = {node.name: node for node in built.graph.node}
    steps = ["charge.0 Sub", "charge.1 Add", "charge.2 Div", "charge.3 Add", "fire.4 Greater"]
    steps += ["fire.5 Cast", "reset.6 Mul", "reset.7 Sub", "reset.8 Mul", "reset.9 Add"]
    spelt = [f"{name} {node.op_type}" for name, node in by_name.items() if name[:2] == "2/"]
    assert spelt == [f"2/{t}/{step}" for t in range(2) for step in steps]
    said = {entry.key: entry.value for entry in by_name["2/1/fire.4"].metadata_props}
    assert said == {"population": "2", "neuron": "soul_lif_decay_gt_hard", "role": "fire"}
    said = {entry.key: entry.value for entry in by_name["0"].metadata_props}
    assert said == {"layer": "0", "role": "convolution"}
    assert all(node.metadata_props for node in built.graph.node)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    constants = {name: stored[f"2.{name}"].tolist() for name in ("threshold", "constant", "rest")}
    assert constants == {"threshold": [1.0], "constant": [2.0], "rest": [0.0]}


@pytest.mark.parametrize("time_steps", [1, 3])
@pytest.mark.parametrize("input_mode", ["static", "sequence"])
def test_both_forms_give_the_same_numbers(input_mode: Any, time_steps: int) -> None:
    model, x = small(time_steps=time_steps), torch.randn(2, 2, 5, 5) * 3
    x = x if input_mode == "static" else torch.stack([x.roll(t) for t in range(time_steps)])
    forms: list[dict[str, Any]] = [{"functions": True}, {"fixed_batch": 2}, {}]
    forms.append({"functions": True, "fixed_batch": 2})
    first, *others = [run(build_onnx(model, input_mode=input_mode, **form), x) for form in forms]
    for found in others:
        np.testing.assert_array_equal(found, first)


def test_a_fixed_batch_stands_in_every_shape() -> None:
    built = build_onnx(small(), fixed_batch=4, outputs="spikes")
    values = [*built.graph.input, *built.graph.output, *built.graph.value_info]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    assert shapes["input"] == [4, 2, 5, 5]
    assert shapes["logits"] == [4, 3]
    assert shapes["2.spikes"] == [3, 4, 4, 5, 5]
    assert shapes["2"] == [12, 4, 5, 5]
    assert all(all(shape) for shape in shapes.values())
    with pytest.raises(UsageError, match="a fixed batch of 0 given; it is 1 or more samples"):
        build_onnx(small(), fixed_batch=0)


def test_a_static_first_layer_runs_once_and_a_neuron_may_be_one_function() -> None:
    built = build_onnx(small(time_steps=5), functions=True)
    kinds = [node.op_type for node in built.graph.node]
    assert kinds.count("Conv") == 1
    assert "Split" not in kinds
    assert kinds.count("ConstantOfShape") == 1  # the membrane's start is no constant
    assert kinds.count("soul_lif_decay_gt_hard") == 5
    (function,) = built.functions
    assert sorted(function.attribute) == ["constant", "rest", "threshold"]
    assert [node.op_type for node in function.node if node.op_type != "Constant"] == [
        *("Sub", "Add", "Div", "Add", "Greater", "Cast"),
        *("Mul", "Sub", "Mul", "Add"),
    ]


def test_the_file_describes_itself(tmp_path: Path) -> None:
    model = small(NeuronSpec("plif", fire="ge"))
    info = replace(
        model.info,
        classes=("a", "b", "c"),
        normalization=Normalization((0.5, 0.5), (0.2, 0.2)),
        validity=Validity(3, True),
    )
    path = tmp_path / "m.onnx"
    export_onnx(replace(model, info=info), path, source_sha256="ab" * 32)
    session = onnxruntime.InferenceSession(path)
    found = session.get_modelmeta().custom_metadata_map
    assert found["format"] == "soul-deploy/onnx/2"
    assert found["time_steps"] == "3"
    assert found["fire"] == "v >= v_threshold"
    assert found["normalization_applied_by"] == "caller"
    assert found["source_sha256"] == "ab" * 32
    assert json.loads(found["classes"]) == ["a", "b", "c"]
    assert json.loads(found["normalization"]) == {"mean": [0.5, 0.5], "std": [0.2, 0.2]}
    assert json.loads(found["validity"]) == {"time_steps": 3, "reset_per_sample": True}
    neuron = json.loads(found["neurons"])["2"]
    assert neuron["charge"] == "decay_multiply"
    assert neuron["constant"] == pytest.approx(0.5)
    assert session.get_inputs()[0].shape == ["batch", 2, 5, 5]
    assert session.get_outputs()[0].shape == ["batch", 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_sequence_files_have_a_time_axis() -> None:
    built = build_onnx(small(), input_mode="sequence")
    session = onnxruntime.InferenceSession(built.SerializeToString())
    assert session.get_inputs()[0].shape == [3, "batch", 2, 5, 5]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_onnx(small(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_layer_may_be_called_as_the_output_is() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = layers.Conv2d(1, 2, 2)
            self.spikes = SpikingNeuron(NeuronSpec("if"), 2)
            self.head = layers.RateReadout(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.spikes(self.logits(x)))
            return scores

    torch.manual_seed(0)
    model, x = model_of(Named(), (1, 3, 3), 2), torch.randn(2, 1, 3, 3) * 3
    (logits,) = run(build_onnx(model), x)
    np.testing.assert_allclose(logits, model.module().record(x).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [16, 99, 0])
def test_an_unknown_opset_is_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=rf"opset {opset} given; supported: 17 to 24"):
        build_onnx(small(), opset=opset)


def test_an_unknown_input_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="input mode 'stream'; valid: static, sequence"):
        build_onnx(small(), input_mode="stream")  # type: ignore[arg-type]


def test_a_network_without_neurons_is_refused() -> None:
    network = nn.Sequential(layers.Conv2d(1, 2, 1), layers.RateReadout(2, 2))
    with pytest.raises(UnsupportedGraphError, match="1: no spiking layer stands before"):
        build_onnx(model_of(network, (1, 2, 2), 1))


def test_too_many_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("soul_deploy.export.onnx.model.MAX_BYTES", 100)
    with pytest.raises(LimitError, match="one ONNX file holds at most 100"):
        export_onnx(small(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_static_file_refuses_sequences() -> None:
    model = small()
    execution = OnnxExecution(build_onnx(model), model)
    with pytest.raises(ValidityError, match="this file takes static images"):
        execution.run(torch.zeros(3, 1, 2, 5, 5))


def test_files_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file at"):
        read_onnx(tmp_path / "none.onnx")
    export_onnx(small(), tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    for content in (b"hello, I am text", whole[: len(whole) // 2], b""):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="not an intact ONNX file"):
            read_onnx(path)
