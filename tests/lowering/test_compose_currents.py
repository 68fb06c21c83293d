"""What stands in front of neurons and merges becomes part of a projection, or one of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forms import FormSpec, form_images, form_model, forms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soul_deploy import ir
from soul_deploy.analysis.connectivity import connectivity
from soul_deploy.analysis.measure import count
from soul_deploy.analysis.synops import count_model
from soul_deploy.base import Array
from soul_deploy.base.errors import RemovalError, UnsupportedGraphError
from soul_deploy.base.reduction import OVER_TIME, OverTime
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.step import export_step
from soul_deploy.export.verify.verify import verify
from soul_deploy.lowering.deploy import Deployed, lower
from soul_deploy.lowering.linear_operators import ConvOperator
from soul_deploy.model.file import expected_shapes
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops.counted_run import count_run

IF = ir.NeuronSpec("if", v_threshold=1.0, v_reset=None, fire="ge")


def conv(
    name: str, source: str, sizes: tuple[int, int], kernel: int = 3, *, padding: int = 0,
    **more: Any,
) -> ir.Convolution:  # fmt: skip
    square = (kernel, kernel)
    sides = {"padding": (padding, padding), **more}
    return ir.Convolution(name, (source,), True, None, *sizes, square, **sides)


def norm(name: str, source: str) -> ir.ChannelNorm:
    return ir.ChannelNorm(name, (source,), ir.BatchNorm(name, 0.0))


def model_of(*nodes: ir.Node, classes: int = 2, shape: ir.Shape = (1, 4, 4)) -> Model:
    """Behind an input, in front of a linear head: weights of quarters."""
    head = ir.Readout("head", (nodes[-1].name,), classes)
    graph = ir.SpikingGraph((ir.Input("input", (), shape), *nodes, head), 3)
    rng = np.random.default_rng(3)
    state = {}
    for name, sides in expected_shapes(graph).items():
        state[name] = (rng.integers(-1, 4, sides) / 4).astype(np.float32)
        if name.endswith("running_var"):
            state[name] = rng.choice((0.25, 1.0, 4.0), sides).astype(np.float32)
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros((), np.int64)
    return Model(graph, state)


def quarters(model: Model, batch: int = 4) -> Tensor:
    shape = (batch, *model.graph.input.shape)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 6, shape) / 4).float()


def equal_everywhere(model: Model, x: Tensor, *, exact: bool = True) -> str | None:
    """What ONNX, event network, counts and removal make of a network; None: the same."""
    with TemporaryDirectory() as name:
        for file, export in (("net.onnx", export_onnx), ("net.safetensors", export_event)):
            export(model, Path(name) / file)
            report = verify(model, Path(name) / file, x)
            ends = report.end_to_end
            if report.verdict is Verdict.FAILED or ends is None:
                return f"{file}: {report.text()}"
            if exact and (ends.flipped or ends.logit_difference > 1e-6):
                return f"{file} differs: {report.text()}"
    try:
        compact = remove(model)
    except RemovalError:
        return None
    with torch.no_grad():
        same = torch.equal(compact.module()(x), model.module()(x))
    return None if same else "the compact network differs"


@settings(max_examples=40, deadline=None)
@given(st.booleans().flatmap(lambda dyadic: forms(dyadic=dyadic)), st.sampled_from(OVER_TIME))
def test_drawn_networks_are_the_same_everywhere(spec: FormSpec, over_time: OverTime) -> None:
    model, x = form_model(spec), form_images(spec)
    readout = replace(model.graph.readout, over_time=over_time)
    model = replace(model, graph=model.graph.with_nodes({readout.name: readout}))
    try:
        found = equal_everywhere(model, x, exact=spec.dyadic)
    except UnsupportedGraphError as refused:  # neurons on spikes, a readout of currents
        assert "no current but" in str(refused) or "reads analog values" in str(refused)
        return
    assert found is None, found
    trimmed = lower(model).trimmed
    assert trimmed.counted and count(model, x).layers
    network = Network(build_event_network(model), 1)
    if spec.dyadic:
        assert count_run(network, x.numpy()).counts == count_model(trimmed.model, x)


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2)),
    *(st.integers(1, 3), st.integers(1, 3), st.sampled_from((1, 2)), st.integers(0, 9)),
)
def test_a_convolution_and_a_mean_are_one_convolution(
    kernel: int, stride: int, dilation: int, padding: int, window: int, apart: int, groups: int,
    seed: int,
) -> None:  # fmt: skip
    """Against both in float64, over all geometries that leave a position."""
    sides = {"stride": (stride, stride + 1), "dilation": (dilation, 1), "groups": groups}
    first = conv("a", "input", (4, 6), kernel, padding=padding, **sides)
    pool = ir.AvgPool("pool", ("a",), (window, 1), (apart, 2))
    nodes = (first, pool, ir.Population("p", ("pool",), IF))
    model = model_of(*nodes, shape=(4, 9, 10))
    operator = lower(model).composed.operator("a").operator
    assert isinstance(operator, ConvOperator) and operator.out_shape == model.graph.shapes["pool"]
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 4, 9, 10)))
    weight, bias = (torch.tensor(model.state[f"a.{p}"]).double() for p in ("weight", "bias"))
    window_of = first.stride, first.padding, first.dilation, groups
    expected = F.avg_pool2d(F.conv2d(x, weight, bias, *window_of), pool.kernel, pool.stride)
    wide = torch.tensor(operator.weight).double()
    found = F.conv2d(x, wide, bias, operator.stride, operator.padding,
                     operator.dilation, operator.groups)  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def layers_of(model: Model) -> list[tuple[str, str, str | None]]:
    """Projections as they run: name, what arrives, the population that they feed."""
    return [(x.name, str(x.edge.kind), x.population) for x in lower(model).layers[:-1]]


def test_spikes_pooled_for_a_merge_reach_convolutions_as_spikes() -> None:
    """The pooling is a projection of its own for the merge, and part of the convolution."""
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Population("p", ("a",), IF),
        ir.AvgPool("pool", ("p",), (2, 2), (2, 2)),
        conv("b", "pool", (2, 2), padding=1), ir.Population("q", ("b",), IF),
        ir.Merge("m", ("q", "pool"), "add"),
        conv("c", "m", (2, 2), padding=1), ir.Population("r", ("c",), IF),
    )  # fmt: skip
    assert layers_of(model) == [
        ("a", "analog", "p"), ("pool", "spike", None), ("b", "spike", "q"), ("c", "analog", "r"),
    ]  # fmt: skip
    assert lower(model).operator("b").source == "p"
    assert equal_everywhere(model, quarters(model)) is None


def test_synapses_of_a_pooling_are_counted_by_hand() -> None:
    """Four spikes of one map, 2×2 windows: each reaches one position of the sum."""
    state = {
        "a.weight": np.ones((1, 1, 1, 1)), "a.bias": np.zeros(1),
        "b.weight": np.ones((1, 1, 1, 1)), "b.bias": np.zeros(1),
        "c.weight": np.ones((1, 1, 1, 1)), "c.bias": np.zeros(1),
        "head.weight": np.ones((2, 1)), "head.bias": np.zeros(2),
    }  # fmt: skip
    one = model_of(
        conv("a", "input", (1, 1), 1), ir.Population("p", ("a",), IF),
        ir.AvgPool("pool", ("p",), (2, 2), (2, 2)),
        conv("b", "p", (1, 1), 1, stride=(2, 2)), ir.Population("q", ("b",), IF),
        ir.Merge("m", ("q", "pool"), "add"),
        conv("c", "m", (1, 1), 1), ir.Population("r", ("c",), IF),
    )  # fmt: skip
    model = replace(one, state={k: v.astype(np.float32) for k, v in state.items()})
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, :] = 1  # the first row spikes at all 3 steps: 12 spikes, 6 of them at even columns
    counts = count_model(model, x)
    assert (counts["pool"].spikes_in, counts["pool"].synops) == (12, 12)
    assert (counts["b"].spikes_in, counts["b"].synops) == (12, 6)
    assert counts["c"].macs_effective == 6  # positions of the sum that are not 0: 2 at 3 steps
    assert count(model, x).layers[1].synapses_dense == 16  # each of 4×4 reaches one of 2×2
    assert [layer.projection for layer in connectivity(model).layers] == ["a", "b", "c"]


def test_batch_norm_before_padding_keeps_its_border() -> None:
    """At the border the padding is 0, not the bias of the batch norm: against it by hand."""
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Population("p", ("a",), IF), norm("n", "p"),
        conv("b", "n", (2, 3), padding=1), ir.Population("q", ("b",), IF),
    )  # fmt: skip
    assert layers_of(model) == [("a", "analog", "p"), ("n", "spike", None), ("b", "analog", "q")]
    live = {"b.weight": np.ones((3, 2, 3, 3)), "n.weight": np.array([1.25, -0.5])}
    live = {name: values.astype(np.float32) for name, values in live.items()}
    model = replace(model, state={**model.state, **live})
    network = Network(build_event_network(model))
    found = network.run_layer("n", np.ones((3, 1, 2, 4, 4), np.float32))
    gamma, beta, mean, variance = (
        model.state[f"n.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    expected = (1 - mean) / np.sqrt(variance) * gamma + beta
    np.testing.assert_allclose(found[0, 0, :, 0, 0], expected, rtol=1e-6)
    assert equal_everywhere(model, quarters(model)) is None


@pytest.mark.parametrize("between", [(), (ir.AvgPool("pool", ("n",), (2, 2), (1, 1)),)])
def test_batch_norm_before_a_projection_is_part_of_it(between: Sequence[ir.Node]) -> None:
    last = between[-1].name if between else "n"
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Population("p", ("a",), IF), norm("n", "p"),
        *between, conv("b", last, (2, 3), 2), ir.Population("q", ("b",), IF), norm("last", "q"),
    )  # fmt: skip
    assert layers_of(model) == [("a", "analog", "p"), ("b", "spike", "q")]
    operator = lower(model).composed.operator("b").operator
    scale, shift = constants_of(model, "n")
    weight = model.state["b.weight"]
    added = np.einsum("oikl,i->o", weight, shift) + model.state["b.bias"]
    assert operator.bias is not None
    np.testing.assert_allclose(operator.bias, added, rtol=1e-6)
    if not between:
        np.testing.assert_allclose(
            np.asarray(operator.weight), weight * scale[:, None, None], rtol=1e-6
        )
    assert equal_everywhere(model, quarters(model)) is None


def test_a_readout_has_the_mean_of_a_batch_norm_in_front_of_it() -> None:
    """Behind a pooling with windows that overlap: its bias counts once, not at every position."""
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Population("p", ("a",), IF), norm("n", "p"),
        ir.AvgPool("pool", ("n",), (2, 2), (1, 1)),
    )  # fmt: skip
    _, shift = constants_of(model, "n")
    added = lower(model).composed.readout.bias
    assert added is not None
    expected = model.state["head.weight"] @ shift + model.state["head.bias"]
    np.testing.assert_allclose(added, expected, rtol=1e-5)
    assert equal_everywhere(model, quarters(model)) is None


def constants_of(model: Model, name: str) -> tuple[Array, Array]:
    constants = lower(model).constants[name]
    assert constants.shift is not None
    return constants.scale, constants.shift


def test_a_sum_of_currents_is_scaled_by_its_branches() -> None:
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Population("p", ("a",), IF),
        conv("b", "p", (2, 2), padding=1), ir.Merge("m", ("b", "p"), "add"),
        ir.Scale("s", ("m",), 0.5), ir.Population("q", ("s",), IF),
    )  # fmt: skip
    assert layers_of(model) == [("a", "analog", "p"), ("b", "spike", None), ("s.1", "spike", None)]
    np.testing.assert_array_equal(
        lower(model).composed.operator("b").operator.weight, model.state["b.weight"] / 2
    )
    assert equal_everywhere(model, quarters(model)) is None


def test_a_pooled_current_is_scaled_before_its_pooling() -> None:
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.MaxPool("pool", ("a",), (2, 2), (2, 2)),
        ir.Scale("s", ("pool",), 0.5), ir.Population("p", ("s",), IF),
    )  # fmt: skip
    assert layers_of(model) == [("a", "analog", None)]
    assert equal_everywhere(model, quarters(model)) is None
    negative = replace(model, graph=model.graph.with_nodes({"s": ir.Scale("s", ("pool",), -0.5)}))
    assert [name for name, *_ in layers_of(negative)] == ["a", "s"]
    assert equal_everywhere(negative, quarters(negative)) is None


def test_a_current_that_something_else_reads_stays() -> None:
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Scale("s", ("a",), 0.5),
        ir.Population("p", ("s",), IF), ir.Population("q", ("a",), IF),
        ir.Merge("m", ("p", "q"), "add"), conv("b", "m", (2, 2)), ir.Population("r", ("b",), IF),
    )  # fmt: skip
    assert [name for name, *_ in layers_of(model)] == ["a", "s", "b"]
    assert equal_everywhere(model, quarters(model)) is None


def test_vectors_are_scaled_by_a_diagonal() -> None:
    model = model_of(
        ir.Flatten("f", ("input",)), ir.Linear("a", ("f",), True, None, 16, 6),
        ir.Population("p", ("a",), IF), norm("n", "p"),
        ir.Linear("b", ("p",), True, None, 6, 6), ir.Merge("m", ("b", "n"), "add"),
        ir.Population("q", ("m",), IF),
    )  # fmt: skip
    assert layers_of(model)[1:] == [("n", "spike", None), ("b", "spike", None)]
    operator = lower(model).composed.operator("n").operator
    scale, shift = constants_of(model, "n")
    np.testing.assert_allclose(np.asarray(operator.weight), np.diag(scale), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(operator.bias), shift, rtol=1e-6)
    assert equal_everywhere(model, quarters(model)) is None


def test_constants_behind_graded_values_leave_them_integers() -> None:
    """As behind neurons that send integers: 1/8 of a sum is part of the weights that read it."""
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.Population("p", ("a",), IF),
        conv("b", "input", (1, 2), padding=1), ir.Population("q", ("b",), IF),
        ir.Merge("m", ("p", "q"), "add"), ir.Scale("s", ("m",), 0.125),
        conv("c", "s", (2, 3), padding=1), ir.Scale("t", ("c",), None),
        ir.Population("r", ("t",), IF),
    )  # fmt: skip
    *_, (name, edge, population) = layers_of(model)
    assert (name, edge, population) == ("c", "graded", "r")
    weight = lower(model).composed.operator("c").operator.weight
    scale = model.state["t.scale"][:, None, None, None] / 8
    np.testing.assert_array_equal(np.asarray(weight), model.state["c.weight"] * scale)
    x = 8 * quarters(model)
    assert equal_everywhere(model, x) is None
    counts = count_model(model, x)["c"]
    assert counts.spikes_in > counts.events_in > 0  # values of 2 are one event


@pytest.mark.parametrize("kind", ["step", "functions", "opset 24", "sequence"])
def test_onnx_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    model = model_of(
        norm("image", "input"), conv("a", "image", (1, 2), padding=1), ir.Scale("s", ("a",), 4.0),
        ir.AvgPool("pool", ("s",), (2, 2), (2, 2)), ir.Population("p", ("pool",), IF),
        ir.Scale("t", ("p",), None), norm("n", "t"), conv("b", "n", (2, 2), padding=1),
        ir.Population("q", ("b",), IF),
    )  # fmt: skip
    path, x = tmp_path / "net.onnx", quarters(model)
    if kind == "step":
        export_step(model, path)
    elif kind == "sequence":
        export_onnx(model, path, input_mode="sequence")
        x = torch.stack([x, x * 0.5, x])
    else:
        export_onnx(model, path, functions=kind == "functions", opset=24 if "24" in kind else 18)
    report = verify(model, path, x)
    assert report.verdict is Verdict.PASSED, report.text()


def test_uneven_windows_in_front_of_neurons_are_refused_by_name() -> None:
    model = model_of(
        conv("a", "input", (1, 2), padding=1), ir.AdaptiveAvgPool("pool", ("a",), (3, 3)),
        ir.Population("p", ("pool",), IF),
    )  # fmt: skip
    with pytest.raises(UnsupportedGraphError, match=r"p: its input 'pool' is no .* differ in size"):
        build_event_network(model)


def test_a_graph_without_such_forms_is_its_own_composed_form() -> None:
    model = model_of(conv("a", "input", (1, 2)), ir.Population("p", ("a",), IF))
    lowered = lower(model)
    assert lowered.composed is lowered and isinstance(lowered, Deployed)
