"""Exported ONNX files in the engines that others use, compared with PyTorch."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnx import ModelProto
from torch import Tensor

from soul_deploy.base import Array
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import ReferenceModel, sent_of
from soul_deploy.export.onnx.model import build_onnx, write_onnx
from soul_deploy.export.onnx.nodes import spikes_name, value_name
from soul_deploy.export.onnx.step import COUNTER_IN, COUNTER_OUT, build_step, states_of
from soul_deploy.model.model import Model
from soul_deploy.nn.layers import over_steps
from soul_deploy.runtime.bench.signal_stack import kept_signal_stack

CLOSE = 1e-4
Feed = Mapping[str, Array]
Loaded = Callable[[Feed], dict[str, Array]]
Given = Callable[[Array], Feed]


def in_onnx_runtime(path: Path) -> Loaded:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


CORE = openvino.Core()
F32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}


def in_openvino(path: Path) -> Loaded:
    with kept_signal_stack():
        compiled = CORE.compile_model(CORE.read_model(str(path)), "CPU", F32)

    def run(feed: Feed) -> dict[str, Array]:
        found = compiled(dict(feed))
        return {name: np.array(found[out]) for out in compiled.outputs for name in out.names}

    return run


def in_opencv(path: Path) -> Loaded:
    """By its new engine; the classic one lacks parts of every other network."""
    names = [output.name for output in onnx.load(path).graph.output]
    network = cv2.dnn.readNetFromONNX(str(path), cv2.dnn.ENGINE_NEW)

    def run(feed: Feed) -> dict[str, Array]:
        for name, array in feed.items():
            network.setInput(np.ascontiguousarray(array), name)
        return dict(zip(names, map(np.array, network.forward(names)), strict=True))

    return run


ENGINES = {"ONNX Runtime": in_onnx_runtime, "OpenVINO": in_openvino, "OpenCV": in_opencv}


class AllSteps:
    """A file of all steps in an engine, as an execution."""

    def __init__(self, loaded: Loaded, model: Model) -> None:
        self.loaded, self.graph = loaded, model.graph

    def run(self, images: Tensor) -> ExecutionRun:
        found = self.loaded({self.graph.input.name: images.contiguous().numpy()})
        names = [node.name for node in self.graph.populations if spikes_name(node.name) in found]
        spikes = {name: self._sent(name, found[spikes_name(name)]) for name in names}
        return ExecutionRun(spikes, torch.from_numpy(found["logits"]))

    def _sent(self, name: str, values: Array) -> Tensor:
        """As executions give it: bool of spikes, else numbers."""
        return sent_of(self.graph, name, torch.from_numpy(np.array(values)))

    def run_layer(self, layer: str, values: Any) -> LayerRun:
        raise NotImplementedError


class StepByStep(AllSteps):
    """A step file in an engine, called T times; given: what it takes beside the states."""

    def __init__(self, loaded: Loaded, model: Model, given: Given | None = None) -> None:
        super().__init__(loaded, model)
        self.model, self.given = model, given

    def run(self, images: Tensor) -> ExecutionRun:
        steps = self._steps(images)
        scores = torch.from_numpy(np.stack([found["logits"] for found in steps])).double()
        values = {p.name: value_name(self.graph, p.name, "step") for p in self.graph.populations}
        spikes = {
            name: self._sent(name, np.stack([found[value] for found in steps]))
            for name, value in values.items()
            if set(values.values()) <= set(steps[0])  # those with feedbacks are states too
        }
        return ExecutionRun(spikes, over_steps(scores, self.graph.readout.over_time).float())

    def _steps(self, images: Tensor) -> list[dict[str, Array]]:
        static = images.dim() == len(self.graph.input.shape) + 1
        frames = [images] * self.graph.time_steps if static else list(images)
        states = states_of(self.model)
        batch = len(frames[0])
        held = {s.input: np.full((batch, *s.shape), s.initial, np.float32) for s in states}
        held |= {COUNTER_IN: np.zeros(1, np.int64)} if self.model.for_one_t else {}
        returned = {s.output: s.input for s in states} | {COUNTER_OUT: COUNTER_IN}
        steps = []
        for frame in frames:
            array = frame.contiguous().numpy()
            given = self.given(array) if self.given else {self.graph.input.name: array}
            steps.append(self.loaded({**given, **held}))
            held |= {returned[name]: a for name, a in steps[-1].items() if name in returned}
        return steps


def files(model: Model, **form: Any) -> Iterator[tuple[str, ModelProto, ModelProto, Any]]:
    """What is exported: its mode, the file, the file with its spikes, and what runs either."""
    whole = build_onnx(model, **form)
    yield "sequence", whole, build_onnx(model, outputs="spikes", **form), AllSteps
    step, shown = build_step(model, **form), build_step(model, **form)
    values = {value_name(model.graph, p.name, "step") for p in model.graph.populations}
    shown.graph.output.extend(v for v in step.graph.value_info if v.name in values)
    yield "step", step, shown, StepByStep


def disagreement(
    load: Callable[[Path], Loaded], model: Model, images: Tensor, folder: Path, **form: Any
) -> str | None:
    """What an engine does otherwise than PyTorch with either file; flips near the threshold may be.

    form: of `build_onnx` and `build_step`.
    """
    comparer = Comparer(ReferenceModel(model))
    for mode, file, shown, runs in files(model, **form):
        path = folder / f"{mode}.onnx"
        write_onnx(path, file)
        found = comparer.end_to_end(runs(load(path), model), images, len(images))
        if found.logit_difference <= CLOSE:
            continue
        write_onnx(path, shown)
        told = comparer.end_to_end(runs(load(path), model), images, len(images))
        if not told.flipped or told.unexplained or told.logit_difference > CLOSE:
            return (
                f"{mode}: scores differ by {found.logit_difference:.3g}; of {told.flipped} flips "
                f"{told.unexplained} are unexplained, without flips {told.logit_difference:.3g}"
            )
    return None
