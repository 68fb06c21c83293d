"""Networks of counts and spikes: their first layer goes from event to event, in every engine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from event_nets import STEPS, event_model, frames

from soul_deploy.analysis.synops import count_model
from soul_deploy.base import errors
from soul_deploy.base.files import read_tensors
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.onnx.model import build_onnx, export_onnx
from soul_deploy.export.onnx.step import build_step
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import EventInput, IntegerEventInput, NeuronSpec, SpikingGraph, node_to_json
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.quantization.quantize import QuantizeConfig, quantize
from soul_deploy.runtime.bench.runner import BenchConfig, bench
from soul_deploy.runtime.bench.timing import TimingSchedule
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.runtime.format.file import FORMAT_EVENTS, save_event_network
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.runtime.plan import regions

KINDS = ("counts", "spikes")


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_layer_goes_from_event_to_event(kind: str, tmp_path: Path) -> None:
    model, x = event_model(kind), torch.from_numpy(frames(kind))
    path = tmp_path / "net.event.safetensors"
    export_event(model, path, images=x)
    network = load_network(path, 1)
    assert network.events.edges["input"] == (("graded", 255) if kind == "counts" else ("spike", 1))
    assert network.layer_forms["sn1"] != "analog"
    assert read_tensors(path).document(FORMAT_EVENTS)["input"]["bound"] in (1, 255)
    assert network.events.rates["input"] == pytest.approx(float((x != 0).float().mean()), rel=1e-3)
    assert verify(model, path, x).verdict == "passed"
    counts, by_hand = count_run(network, x.numpy()).counts["conv1"], np.zeros(2, np.int64)
    reach = np.array([[len(_near(y)) * len(_near(z)) for z in range(10)] for y in range(10)]) * 8
    for value in np.unique(x.numpy())[1:]:
        hits = (x.numpy() == value).sum(axis=(0, 1, 2))
        by_hand += int((hits * reach).sum()) * np.array([1, int(value)])
    assert (counts.synops_events, counts.synops) == tuple(by_hand.tolist())
    assert counts.macs_effective == 0 and counts == count_model(model, x)["conv1"]


def _near(y: int) -> list[int]:
    return [k for k in (y - 1, y, y + 1) if 0 <= k < 10]


@pytest.mark.parametrize("kind", KINDS)
def test_forms_threads_and_steps_agree(kind: str) -> None:
    model, x = event_model(kind, density=0.3), frames(kind)
    events = build_event_network(model, rows={"conv1": "sparse", "conv2": "sparse"})
    expected = model.module()(torch.from_numpy(x)).detach().numpy()
    assert expected.any()
    for form in ("sparse", "planes")[: 1 + (kind == "spikes")]:
        for threads in (1, 2):
            network = Network(events, threads, None, {"sn1": form})
            for given in (x, x.astype(np.int64)):
                np.testing.assert_array_equal(network.run(given), expected)
        stream = network.stream()
        steps = [stream.step(frame) for frame in x]
        np.testing.assert_array_equal(steps, network.run_steps(x))
    # A frame without steps arrives at each step, and is counted at each.
    still = np.repeat(x[:1], STEPS, axis=0)
    np.testing.assert_array_equal(network.run(x[0]), network.run(still))
    counts = [count_run(network, given).counts for given in (x[0], still)]
    assert counts[0] == counts[1]
    counts = [count_model(model, torch.from_numpy(given)) for given in (x[0], still)]
    assert counts[0] == counts[1]


def test_tiles_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Currents on lanes that are made and taken tile by tile, as those of large maps are."""
    x, spec = frames(), NeuronSpec("lif", tau=3.0, decay_input=False, v_reset=None)
    for kind in ("float", "fixed"):
        model = event_model(spec=spec, density=0.3)
        if kind == "fixed":
            drawn = frames(count=12).swapaxes(0, 1)
            data = {name: (drawn, np.arange(12) % 3) for name in ("train", "validation")}
            model = quantize(model, data, QuantizeConfig(calibration=8, epochs=0)).model
            x = np.minimum(x, model.graph.input.events or 0)
        events = build_event_network(model, rows={"conv1": "sparse", "conv2": "sparse"})
        forms = dict.fromkeys(("sn1", "sn2"), "sparse")
        expected = Network(events, 1, None, forms).run_recorded(x)
        monkeypatch.setattr(regions, "TILED_FROM", 0)
        for size in (1, 10_000):  # rows of one, and of some
            monkeypatch.setattr(regions, "TILE_BYTES", size)
            found = Network(events, 1, None, forms).run_recorded(x)
            for name, fired in expected.spikes.items():
                assert fired.any() and np.array_equal(found.spikes[name], fired)
            two = Network(events, 2, None, forms).run(x)
            np.testing.assert_array_equal(two, expected.logits)
        monkeypatch.undo()


def test_what_is_no_event_is_refused() -> None:
    for kind, most in (("counts", 255), ("spikes", 1)):
        model, x = event_model(kind), frames(kind)
        network = Network(build_event_network(model), 1)
        for wrong in (x - 1, x + 0.5, x + most, x * np.nan):
            with pytest.raises(errors.ValidityError, match=f"whole numbers|{kind}"):
                network.run(wrong)
            with pytest.raises(errors.ValidityError, match="whole numbers"):
                network.stream().step(wrong[0])
            with pytest.raises(errors.ValidityError, match="whole numbers"):
                model.module()(torch.from_numpy(wrong))
    with pytest.raises(errors.UsageError, match="events up to 256; valid: 1 to 255"):
        SpikingGraph((EventInput("input", (), (2, 4, 4), 256), *model.graph.nodes[1:]), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_point_and_onnx(kind: str, tmp_path: Path) -> None:
    model, x = event_model(kind), torch.from_numpy(frames(kind))
    drawn, labels = frames(kind, 24).swapaxes(0, 1), np.arange(12) % 3
    data = {"train": (drawn[:12], labels), "validation": (drawn[12:], labels)}
    whole = quantize(model, data, QuantizeConfig(calibration=8, epochs=0)).model
    assert isinstance(whole.graph.input, IntegerEventInput)
    for each, given in ((model, x), (whole, x.clamp(max=whole.graph.input.high).short())):
        save(each, tmp_path / "net.safetensors")
        read = load(tmp_path / "net.safetensors")
        assert read.graph == each.graph
        export_onnx(each, tmp_path / "net.onnx")  # a sequence: events are never static
        assert verify(read, tmp_path / "net.onnx", given).verdict == "passed"
    export_event(whole, tmp_path / "net.event.safetensors")
    assert verify(whole, tmp_path / "net.event.safetensors", given).verdict == "passed"
    runs = load_network(tmp_path / "net.event.safetensors", 1)
    assert runs.events.input_bound == whole.graph.input.high and runs.layer_forms["sn1"] == "dense"
    with pytest.raises(errors.UsageError, match="arrive step by step"):
        build_onnx(model, input_mode="static")
    with pytest.raises(errors.UsageError, match="arrive step by step"):
        build_step(model, static_input="current")


def test_files_of_before_keep_their_numbers(tmp_path: Path) -> None:
    """A model of counts without events is analog, as it was; one made anew has events."""
    model = event_model("values")
    old = Model(model.graph, model.state, info=event_model("counts").info)
    save(old, tmp_path / "old.safetensors")
    assert read_tensors(tmp_path / "old.safetensors").document("soul-deploy/model/1")
    read = load(tmp_path / "old.safetensors")
    assert read.graph == model.graph and read.info.input_kind == "counts"
    network = build_event_network(read)
    assert network.edges["input"] == ("analog", None)
    save_event_network(tmp_path / "old.event.safetensors", network)
    assert read_tensors(tmp_path / "old.event.safetensors").document("soul-deploy/event/1")
    assert load_network(tmp_path / "old.event.safetensors").run(frames() * 1.5).any()
    again = from_module(read.module(), read.info)
    assert again.graph.input == EventInput("input", (), (2, 10, 10), 255)
    assert isinstance(again.module(), GraphModule)
    save(again, tmp_path / "new.safetensors")
    with pytest.raises(errors.FileFormatError, match="soul-deploy/model/3"):
        read_tensors(tmp_path / "new.safetensors").document("soul-deploy/model/1")


def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    model = event_model("spikes")
    graph = SpikingGraph((EventInput("input", (), (2, 10, 10), 2), *model.graph.nodes[1:]), STEPS)
    save(Model(graph, model.state, info=model.info), tmp_path / "net.safetensors")
    with pytest.raises(errors.FileFormatError, match="events up to 2 for an input of spikes"):
        load(tmp_path / "net.safetensors")
    assert json.dumps(node_to_json(graph.input)).count("bound") == 1


def test_bench_gives_events_by_step(tmp_path: Path) -> None:
    save(event_model(), tmp_path / "net.safetensors")
    config = BenchConfig(schedule=TimingSchedule(0, 1, rounds=1), fresh=False)
    report = bench([tmp_path / "net.safetensors"], "random", config)
    assert "sequence" in report.text() and "8/8" in report.text()
