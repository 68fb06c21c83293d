"""Operations counted from the spikes that an ONNX file yields, and differences that flips make."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from chains import ChainSpec, build, chains, images, pruned, random_neuron_masks
from deployed import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor

from soul_deploy.analysis.synops import count_model, count_steps
from soul_deploy.base.errors import UsageError
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.onnx.model import build_onnx, export_onnx
from soul_deploy.export.verify.event_run import EventExecution
from soul_deploy.export.verify.onnx import OnnxExecution
from soul_deploy.export.verify.onnx_static import check_static
from soul_deploy.export.verify.verify import verify
from soul_deploy.lowering.deploy import lower
from soul_deploy.lowering.fan_out import CountedLayer, needed_values
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops.counters import LayerCounts

MODEL = small_model()
X = torch.randn(3, *MODEL.input_shape, generator=torch.Generator().manual_seed(2))


@given(chains(dyadic=True), st.integers(0, 2**16))
@settings(max_examples=15)
def test_counts_from_the_file_are_the_goldens(spec: ChainSpec, seed: int) -> None:
    model = pruned(build(spec), seed, constants=False)
    model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    file, x = build_onnx(model, outputs="spikes"), images(spec)
    assert not check_static(model, file).problems
    run = OnnxExecution(file, model).run(x)
    assert run.counts == count_model(model, x)


def test_the_file_yields_spikes_with_time_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(MODEL, path, outputs="spikes")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", "2.spikes", "6.spikes"]
    found = dict(zip(names, session.run(None, {"input": X.numpy()}), strict=True))
    for name, spikes in MODEL.module().record(X).spikes.items():
        np.testing.assert_array_equal(found[f"{name}.spikes"], spikes.numpy())
    report = verify(MODEL, path, X)
    assert report.passed
    assert report.end_to_end is not None
    assert report.end_to_end.counted
    assert "no counts differ" in report.text()


def test_a_file_with_another_weight_pattern_counts_otherwise() -> None:
    """The counter reads the file's weights: one synapse fewer, and the gate sees it."""
    file = build_onnx(MODEL, outputs="spikes")
    (tensor,) = [t for t in file.graph.initializer if t.name == "5.weight"]
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, weight.any(axis=0)] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    whole = Comparer(ReferenceModel(MODEL)).end_to_end(OnnxExecution(file, MODEL), X)
    assert "synops" in {m.count for m in whole.mismatches}
    assert not whole.passed


def test_unknown_outputs() -> None:
    with pytest.raises(UsageError, match="outputs 'all'; valid: logits, spikes"):
        build_onnx(MODEL, outputs="all")  # type: ignore[arg-type]
    file = build_onnx(MODEL)
    assert OnnxExecution(file, MODEL).run(X).counts is None
    for entry in file.metadata_props:
        if entry.key == "outputs":
            entry.value = "all"
    problems = ("metadata outputs is 'all', the file's is 'logits'",)
    assert check_static(MODEL, file).problems == problems


# Flipped spikes change counts by their fan-out.


def lone_spike() -> tuple[int, ...]:
    """(step, sample, channel, row, column) of a spike of "2" alone in its pooling window."""
    spikes = MODEL.module().record(X).spikes["2"].float()
    windows = torch.nn.functional.avg_pool2d(spikes.flatten(0, 1), 2, divisor_override=1)
    alone = windows.repeat_interleave(2, 2).repeat_interleave(2, 3).reshape(spikes.shape) == 1
    place: list[int] = (alone & spikes.bool()).nonzero()[3].tolist()
    return tuple(place)


PLACE = lone_spike()


class Flipping(EventExecution):
    """Rightly run, then one spike of the first population is turned over and counted."""

    counted = True

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        spikes = dict(run.spikes)
        spikes["2"] = spikes["2"].clone()
        spikes["2"][PLACE] ^= True
        if not self.counted:
            return replace(run, spikes=spikes)
        return replace(run, spikes=spikes, counts=counts_of(self.reference.model, images, spikes))

    def run_layer(self, layer: str, values: object) -> LayerRun:
        return super().run_layer(layer, values)  # type: ignore[arg-type]


def counts_of(model: Model, x: Tensor, spikes: dict[str, Tensor]) -> dict[str, LayerCounts]:
    module = model.module()
    known = {name: Signal(s.float(), False) for name, s in spikes.items()}
    known["input"] = module.as_signal(x)
    found = {}
    with torch.no_grad():
        for entry in lower(model).counted:
            values = module.evaluate(known, needed_values(entry))
            tensors = {name: signal.tensor for name, signal in values.items()}
            found[entry.name] = count_steps(entry, tensors).total()
    return found


def test_differences_are_the_fan_out_of_what_flipped() -> None:
    reference = ReferenceModel(MODEL)
    execution = Flipping(Network(build_event_network(MODEL)), reference)
    whole = Comparer(reference).end_to_end(execution, X)
    assert not whole.mismatches
    assert whole.counts_agree
    changed = {(d.layer, d.count): d for d in whole.differences}
    assert set(changed) == {("5", "synops"), ("5", "synops_events")}
    entry = next(e for e in lower(MODEL).counted if e.name == "5")
    assert isinstance(entry, CountedLayer)
    _, _, channel, row, column = PLACE
    reach = entry.fanout[channel, row // 2, column // 2]
    for difference in changed.values():
        assert difference.difference == difference.explained == -reach
        assert "the fan-out of the spikes that differ is" in str(difference)


def test_counts_that_flips_do_not_explain_fail() -> None:
    """Another spike was reported than was counted."""
    reference = ReferenceModel(MODEL)
    execution = Flipping(Network(build_event_network(MODEL)), reference)
    execution.counted = False
    whole = Comparer(reference).end_to_end(execution, X)
    assert whole.mismatches
    assert not whole.counts_agree
