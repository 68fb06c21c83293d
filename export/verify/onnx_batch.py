"""ONNX files of either mode as executions, those of a fixed batch included."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from onnx import ModelProto
from torch import Tensor

from soul_deploy.equivalence.engines import Execution, ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import sources
from soul_deploy.export.verify import onnx, onnx_static, onnx_step
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal


@dataclass(frozen=True)
class OnnxRuns:
    """A file ready to be compared with its model; uncut: why its layers cannot be run alone."""

    execution: Execution
    uncut: str = ""


def execution(file: ModelProto, reference: Model, *, foreign: bool = False) -> OnnxRuns:
    """An ONNX file of either mode.

    foreign: its names are not the exporter's, so that operations cannot be counted, and its layers
    perhaps not be told apart. Raises FileFormatError for a file that takes or yields something
    else than the exporter's.
    """
    form = onnx_static.interface_of(file, reference)
    found: onnx.OnnxFile
    counted = form.yields == "spikes" and not foreign
    if form.mode == "step":
        found = onnx_step.StepExecution(file, reference)
    else:
        found = onnx.OnnxExecution(file, reference, counted=counted and form.batch is None)
    uncut = found.uncut() if foreign else ""
    if form.batch is None:
        return OnnxRuns(found, uncut)
    counter = onnx.OnnxCounter(file, reference) if counted else None
    return OnnxRuns(FixedBatch(found, form.batch, counter), uncut)


class FixedBatch:
    """A file that takes `size` samples a call, run on any number of them.

    Where samples are too few for a call, the last one is repeated, and what comes of it left out.
    """

    def __init__(self, inner: onnx.OnnxFile, size: int, counter: onnx.OnnxCounter | None) -> None:
        self.inner, self.size, self.counter = inner, size, counter

    def run(self, images: Tensor) -> ExecutionRun:
        axis = images.dim() - len(self.inner.graph.input.shape) - 1
        count = images.shape[axis]
        runs = [self.inner.run(images.index_select(axis, at)) for at in self._calls(count)]
        logits = torch.cat([run.logits for run in runs])[:count]
        spikes = {
            name: torch.cat([run.spikes[name] for run in runs], dim=1)[:, :count]
            for name in runs[0].spikes
        }
        counts = None if self.counter is None else self.counter.count(images, spikes)
        return ExecutionRun(spikes, logits, counts)

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        graph = self.inner.graph
        own = (layer,) if layer in graph.feedbacks else ()
        given = {name: values[name] for name in (*sources(graph, layer), *own)}
        signal = next(iter(given.values()))
        count = signal.tensor.shape[_axis(signal)]
        outputs = [
            self.inner.run_layer(layer, {n: _at(s, at) for n, s in given.items()}).output
            for at in self._calls(count)
        ]
        axis = 0 if layer == graph.readout.name else 1
        return LayerRun(torch.cat(outputs, dim=axis).narrow(axis, 0, count))

    def _calls(self, count: int) -> Iterator[Tensor]:
        """The samples of each call."""
        for first in range(0, count, self.size):
            yield torch.arange(first, first + self.size).clamp(max=count - 1)


def _axis(signal: Signal) -> int:
    return 0 if signal.static else 1


def _at(signal: Signal, samples: Tensor) -> Signal:
    return Signal(signal.tensor.index_select(_axis(signal), samples), signal.static)
