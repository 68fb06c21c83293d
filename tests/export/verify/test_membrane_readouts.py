"""Class scores that are membranes: of neurons behind the head that never fire, or are not heard.

The small network sends its input on as spikes, so that each current is one that a hand can add up:
`CURRENTS`, of which the membranes follow by the equations of docs/neurons.md.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

import soul_deploy
from soul_deploy import ir
from soul_deploy.analysis.synops import count_model
from soul_deploy.base import errors, files
from soul_deploy.base.reduction import OVER_TIME, OverTime
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, ModelExecution
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import build_onnx, export_onnx
from soul_deploy.export.onnx.step import build_step, export_step
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, ModelInfo
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.format.file import FORMAT, FORMAT_MEMBRANE, load_event_network
from soul_deploy.runtime.ops.counted_run import count_run

T = 4
SPIKES = [[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
HEAD, BIAS = [[1.0, 2.0, 4.0], [-1.0, 0.0, 8.0]], [0.5, -3.0]
CURRENTS = [[5.5, 4.0], [3.5, -4.0], [2.5, -3.0], [1.5, -4.0]]
NO_RESET: dict[str, Any] = {"v_reset": None, "v_subtract": 0.0}
NEURONS: dict[str, tuple[NeuronSpec, list[list[float]]]] = {
    "integrator": (
        NeuronSpec("if", **NO_RESET),
        [[5.5, 4.0], [9.0, 0.0], [11.5, -3.0], [13.0, -7.0]],
    ),
    "leaky integrator": (  # v + (x - v) / 2
        NeuronSpec("lif", tau=2.0, form="spikingjelly", **NO_RESET),
        [[2.75, 2.0], [3.125, -1.0], [2.8125, -2.0], [2.15625, -3.0]],
    ),
    "fires and subtracts": (  # 4 off at once, of 4 and more
        NeuronSpec("if", v_threshold=4.0, v_reset=None, fire="ge"),
        [[1.5, 0.0], [1.0, -4.0], [3.5, -7.0], [1.0, -11.0]],
    ),
    "fires, subtracts late": (  # snnTorch's, beta 1/2: 4 off in the next step, of more than 4
        NeuronSpec(
            "lif", tau=2.0, v_threshold=4.0, decay_input=False, v_reset=None, form="snntorch"
        ),
        [[5.5, 4.0], [2.25, -2.0], [3.625, -4.0], [3.3125, -6.0]],
    ),
    "a decay each": (  # 1/2 and 1/4
        NeuronSpec("snn_leaky", settings=(("reset", 2.0),), tensors=(("beta", "channel"),)),
        [[5.5, 4.0], [6.25, -3.0], [5.625, -3.75], [4.3125, -4.9375]],
    ),
    "a synapse": (  # i · 1/2 + x, v · 1/2 + i
        NeuronSpec("snn_synaptic", settings=(("alpha", 0.5), ("beta", 0.5), ("reset", 2.0))),
        [[5.5, 4.0], [9.0, 0.0], [10.125, -4.0], [9.375, -8.0]],
    ),
}
COUNTS = {  # as of a maximum over time, whose head weighs each step too: docs/counting.md
    "events_in": 6, "spikes_in": 6, "synops_events": 10, "synops": 10, "touched": 7,
    "bias_adds": 8, "neuron_updates": 8, "spikes_out": 0,
}  # fmt: skip


def small(kind: str, over_time: OverTime = "last") -> Model:
    """Spikes as given, and neurons behind a head of two classes."""
    sender = NeuronSpec("if", v_threshold=1.0, v_reset=0.0, fire="ge")
    nodes = (
        ir.Input("input", (), (3,)),
        ir.Linear("link", ("input",), False, None, 3, 3),
        ir.Population("spikes", ("link",), sender),
        ir.Readout("head", ("spikes",), 2, over_time=over_time, neuron=NEURONS[kind][0]),
    )
    state = {
        "link.weight": np.eye(3, dtype=np.float32),
        "head.weight": np.array(HEAD, np.float32),
        "head.bias": np.array(BIAS, np.float32),
    }
    if NEURONS[kind][0].tensors:
        state["head.neuron.beta"] = np.array([0.5, 0.25], np.float32)
    return Model(ir.SpikingGraph(nodes, T), state, info=ModelInfo(input_kind="spikes"))


def shown() -> Tensor:
    """(T, 1, 3)."""
    return torch.tensor(SPIKES, dtype=torch.float32)[:, None]


def by_hand(kind: str, over_time: OverTime) -> list[float]:
    steps = np.array(NEURONS[kind][1])
    made = {"mean": steps.mean(0), "sum": steps.sum(0), "last": steps[-1], "max": steps.max(0)}
    found: list[float] = made[over_time].tolist()
    return found


every = pytest.mark.parametrize(
    ("kind", "over_time"), [(kind, over_time) for kind in NEURONS for over_time in OVER_TIME]
)


@every
def test_scores_by_hand_in_pytorch_and_its_file(
    kind: str, over_time: OverTime, tmp_path: Path
) -> None:
    soul_deploy.save(small(kind, over_time), tmp_path / "m.safetensors")
    for model in (small(kind, over_time), soul_deploy.load(tmp_path / "m.safetensors")):
        assert model.module()(shown()).tolist() == [by_hand(kind, over_time)]
        assert model.module().per_step(shown())[:, 0].tolist() == NEURONS[kind][1]


@every
def test_scores_by_hand_in_the_event_runtime(
    kind: str, over_time: OverTime, tmp_path: Path
) -> None:
    path, x = tmp_path / "net.safetensors", shown().numpy()
    export_event(small(kind, over_time), path)
    network, scores = load(path, 1), [by_hand(kind, over_time)]
    assert network.run(x).tolist() == scores
    assert load(path, 2).run(np.repeat(x, 3, axis=1)).tolist() == scores * 3
    assert network.run(x).tolist() == scores, "a second run starts at rest"
    assert network.run_steps(x)[:, 0].tolist() == NEURONS[kind][1]
    stream = network.stream()
    assert [stream.step(frame)[0].tolist() for frame in x] == NEURONS[kind][1]
    engine = ScipyEngine(path, 1)
    engine.load()
    assert engine.infer(x).tolist() == scores


def test_a_copied_stream_goes_on_with_its_membranes() -> None:
    network, x = Network(build_event_network(small("integrator")), 1), shown().numpy()
    for frame in x[:2]:
        network.step(frame)
    copied = network.__class__.__new__(network.__class__)
    copied.__setstate__(network.__getstate__())
    for frame, expected in zip(x[2:], NEURONS["integrator"][1][2:], strict=True):
        assert copied.step(frame).tolist() == network.step(frame).tolist() == [expected]


@every
def test_scores_by_hand_in_onnx(kind: str, over_time: OverTime) -> None:
    model, x = small(kind, over_time), shown().numpy()
    for outputs, expected in (("logits", by_hand(kind, over_time)), ("steps", NEURONS[kind][1])):
        built: Any = build_onnx(model, input_mode="sequence", outputs=outputs)  # type: ignore[arg-type]
        session = onnxruntime.InferenceSession(built.SerializeToString())
        (found,) = session.run(None, {"input": x})
        assert np.squeeze(found).tolist() == expected
    built = build_step(model)
    session = onnxruntime.InferenceSession(built.SerializeToString())
    pairs = json.loads({p.key: p.value for p in built.metadata_props}["states"])
    assert [p["population"] for p in pairs[1:]] == ["head.neuron"] * (len(pairs) - 1)
    state = {p["input"]: np.full((1, *p["shape"]), p["initial"], np.float32) for p in pairs}
    for frame, expected in zip(x, NEURONS[kind][1], strict=True):
        scores, *after = session.run(None, {"input": frame, **state})
        assert scores.tolist() == [expected]
        state = dict(zip(state, after, strict=True))


def test_a_static_image_charges_at_every_step(tmp_path: Path) -> None:
    """Spikes 1, 0, 1 at each of four steps: 5.5 and 4 each time."""
    model, path = small("integrator", "sum"), tmp_path / "net.safetensors"
    export_event(model, path)
    image = shown()[0]
    assert model.module()(image).tolist() == load(path, 1).run(image.numpy()).tolist()
    assert model.module()(image).tolist() == [[55.0, 40.0]]


@pytest.mark.parametrize("over_time", OVER_TIME)
def test_counts_by_hand(over_time: OverTime) -> None:
    """The head weighs each step, and two neurons are updated; what they send is no spike."""
    model = small("fires and subtracts", over_time)
    ours = count_model(model, shown())["head"]
    network = Network(build_event_network(model), 1)
    theirs = count_run(network, shown().numpy()).counts["head"]
    for counts in (ours, theirs):
        assert {name: getattr(counts, name) for name in COUNTS} == COUNTS


def test_files_of_other_readouts_stay_as_they_were(tmp_path: Path) -> None:
    """Earlier versions read those, and refuse the field and the format that they do not know."""
    plain = replace(small("integrator").graph.readout, neuron=None)
    assert "neuron" not in ir.node_to_json(plain)
    assert ir.node_to_json(small("integrator").graph.readout)["neuron"]["v_subtract"] == 0
    for name, form in (("mean", FORMAT), ("integrator", FORMAT_MEMBRANE)):
        model = small("integrator", "mean")
        if name == "mean":
            model = replace(
                model, graph=model.graph.with_nodes({"head": replace(plain, over_time="mean")})
            )
        export_event(model, tmp_path / name)
        told = files.read_tensors(tmp_path / name).description()
        assert told["format"] == form
        assert ("neuron" in told["readout"]) == ("over_time" in told["readout"]) == (form != FORMAT)


def rewritten(path: Path, change: Any) -> None:
    """An event file with another description."""
    opened = files.read_tensors(path)
    document = {**opened.description()}
    change(document)
    files.write_tensors(path, opened.tensors, document)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format="soul-deploy/event/2"), "a neuron in a file of"),
        (lambda d: d.update(format="soul-deploy/event/9"), "format 'soul-deploy/event/9'"),
        (lambda d: d["readout"].pop("neuron"), "neuron"),
        (lambda d: d["readout"].update(neuron=None), "neuron None is not an object"),
        (lambda d: d["readout"]["neuron"].update(charge="lava"), "charge 'lava'; known"),
        (lambda d: d["readout"].update(over_time="median"), "over_time 'median'"),
    ],
)
def test_readers_refuse_what_is_no_membrane_readout(change: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    export_event(small("leaky integrator"), path)
    rewritten(path, change)
    with pytest.raises(errors.FileFormatError, match=text):
        load_event_network(path)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"linear": False, "bias": False, "classes": 3}, "a membrane read-out of votes"),
        ({"neuron": NeuronSpec("psn")}, "the membrane of psn, which mixes all steps"),
        (
            {"neuron": NeuronSpec("glif")},
            "the membrane of glif, which mixes all steps or has numbers of each",
        ),
    ],
)
def test_graphs_refuse_what_has_no_membrane_to_read(fields: dict[str, Any], text: str) -> None:
    graph = small("integrator").graph
    with pytest.raises(errors.UsageError, match=text):
        graph.with_nodes({"head": replace(graph.readout, **fields)})


def random_model(spec: NeuronSpec, over_time: OverTime = "mean", seed: int = 0) -> Model:
    """Hidden neurons that fire at about a third, and membranes of several units."""
    rng = np.random.default_rng(seed)
    nodes = (
        ir.Input("input", (), (6,)),
        ir.Linear("fc1", ("input",), True, None, 6, 40),
        ir.Population("lif1", ("fc1",), NeuronSpec("lif")),
        ir.Readout("fc2", ("lif1",), 5, over_time=over_time, neuron=spec),
    )
    graph = ir.SpikingGraph(nodes, 8)
    shapes = {"fc1.weight": (40, 6), "fc1.bias": (40,), "fc2.weight": (5, 40), "fc2.bias": (5,)}
    state = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    state |= {
        name: rng.uniform(0.2, 0.9, shape).astype(np.float32)
        for name, shape in spec.tensor_shapes("fc2.neuron", (5,), 8).items()
    }
    return Model(graph, state, info=ModelInfo(input_kind="values"))


def random_frames(seed: int = 1) -> Tensor:
    return 3 * torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(seed))


READ = [NEURONS[kind][0] for kind in NEURONS] + [
    NeuronSpec("lif", v_threshold=2.0),
    NeuronSpec("snn_leaky", settings=(("reset", 1.0), ("threshold", 1.5))),
    NeuronSpec("snn_lapicque"),
    NeuronSpec("cubalif", fire="ge"),
    NeuronSpec("klif"),
    NeuronSpec("eif", v_reset=-0.1),
    NeuronSpec("integer_lif", v_reset=None),
]


@pytest.mark.parametrize("place", range(len(READ)))
def test_all_files_verify_within_a_bound_that_is_small(place: int, tmp_path: Path) -> None:
    model, x = random_model(READ[place], OVER_TIME[place % 4]), random_frames()
    event, whole, step = (tmp_path / name for name in ("e.safetensors", "w.onnx", "s.onnx"))
    export_event(model, event)
    export_onnx(model, whole, input_mode="sequence", outputs="spikes")
    export_step(model, step)
    for path in (event, whole, step):
        report = verify(model, path, x)
        assert report.verdict is Verdict.PASSED, report.text()


@torch.no_grad()
@pytest.mark.parametrize("over_time", OVER_TIME)
def test_the_bound_holds_and_is_small(over_time: OverTime) -> None:
    """Twice the distance from float64."""
    for spec in READ:
        model, x = random_model(spec, over_time), random_frames()
        reference = ReferenceModel(model)
        limits = reference.score_limits(reference.record(x)[0], 1e-9)
        assert limits is not None
        exact = model.module().double()(x.double())
        assert (2 * (model.module()(x).double() - exact).abs() <= limits).all()
        assert 0.1 < exact.abs().max() < 1e3
        assert limits.median() < 1e-4 * max(1.0, float(exact.abs().max()))


class Shifted(ModelExecution):
    """An engine whose scores are off by a number."""

    def __init__(self, model: Model, by: float) -> None:
        super().__init__(model)
        self.by = by

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        return replace(run, logits=run.logits + self.by)


def test_scores_beyond_the_bound_fail() -> None:
    """An integrator of 8 steps: more than 1e-5 is explained, ten times that is not."""
    model, x = random_model(NEURONS["integrator"][0], "last"), 100 * random_frames()
    reference = ReferenceModel(model)
    limits = reference.score_limits(reference.record(x)[0], 1e-5)
    assert limits is not None and limits.min() > 2e-5
    for by, passed in ((float(limits.min()) / 2, True), (10 * float(limits.max()), False)):
        found = Comparer(reference).end_to_end(Shifted(model, by), x)
        assert found.passed == passed
        assert found.logit_limit in limits
        both = found + Comparer(reference).end_to_end(Shifted(model, 0.0), x)
        assert (both.logit_difference, both.logit_limit) == (
            found.logit_difference, found.logit_limit,
        )  # fmt: skip


def test_other_neurons_behind_the_head_are_told(tmp_path: Path) -> None:
    model, path = random_model(NEURONS["leaky integrator"][0]), tmp_path / "net.safetensors"
    slower = replace(model.graph.readout, neuron=NeuronSpec("lif", tau=4.0, **NO_RESET))
    export_event(replace(model, graph=model.graph.with_nodes({"fc2": slower})), path)
    report = verify(model, path, random_frames())
    assert report.verdict is Verdict.FAILED
    assert any(text.startswith("readout: neurons is") for text in report.problems)


def test_gradients_reach_the_head_through_the_membrane() -> None:
    """Of an integrator's last membrane, a weight's derivative is how often its neuron fired."""
    module = small("integrator").module()
    module(shown()).sum().backward()
    assert module.get_parameter("head.weight").grad.tolist() == [[3, 2, 1]] * 2  # type: ignore[union-attr]
    assert module.get_parameter("head.bias").grad.tolist() == [4, 4]  # type: ignore[union-attr]
    spiking = small("fires and subtracts", "mean").module()
    spiking(shown()).sum().backward()
    assert spiking.get_parameter("head.weight").grad.abs().min() > 0  # type: ignore[union-attr]
