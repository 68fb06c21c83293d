"""Running an ONNX file: whole, and layer by layer, with the operations that its spikes make."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.utils import Extractor
from onnxruntime.capi import onnxruntime_pybind11_state as failures
from torch import Tensor

from soul_deploy.analysis.synops import count_steps
from soul_deploy.base import Array, errors
from soul_deploy.equivalence.engines import ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import sent_of, sources
from soul_deploy.export.onnx import integers as onnx_integers
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx.feedback import sent_name
from soul_deploy.export.verify import onnx_static, onnx_values
from soul_deploy.lowering import deploy, fan_out, fold_batch_norm
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import LayerCounts

# What ONNX Runtime raises for a file that it cannot open, and for one that stops while it runs.
REFUSALS = (failures.InvalidArgument, failures.InvalidGraph, failures.Fail, failures.NotImplemented)
FAILURES = (*REFUSALS, failures.RuntimeException)


class OnnxCounter:
    """Counts operations from a file's spikes; `reference` gives the graph and runs other nodes.

    ONNX Runtime multiplies everything; what an event-driven execution of the file would do follows
    from its spikes and from which of its stored weights are not 0.
    """

    def __init__(self, file: ModelProto, reference: Model) -> None:
        self.file, self.graph, self.module = file, reference.graph, reference.module()

    @cached_property
    def entries(self) -> tuple[fan_out.Counted, ...]:
        """The layers to count, from the file's own weights, biases and masks."""
        stored = {t.name: t for t in self.file.graph.initializer}
        read = {name: numpy_helper.to_array(tensor) for name, tensor in stored.items()}
        folded = {
            node.name: fold_batch_norm.DeployedWeights(
                read[onnx_nodes.weight_name(node.name)], read.get(onnx_nodes.bias_name(node.name))
            )
            for node in (
                *(*self.graph.projections, *self.graph.feedbacks.values()),
                self.graph.readout,
            )
            if onnx_nodes.weight_name(node.name) in read
        }
        masks = {
            node.name: read[onnx_nodes.mask_name(node.name)].reshape(self.graph.shapes[node.name])
            != 0
            for node in self.graph.populations
            if onnx_nodes.mask_name(node.name) in read
        }
        return deploy.lower_synapses(self.graph, folded, masks).counted

    @torch.no_grad()
    def count(self, images: Tensor, spikes: dict[str, Tensor]) -> dict[str, LayerCounts]:
        """Sums by entry; spikes (T, B, ...) of 0/1 of every population."""
        known = {name: Signal(values.float(), False) for name, values in spikes.items()}
        known[self.graph.input.name] = self.module.as_signal(images)
        counts = {}
        for entry in self.entries:
            known |= self.module.evaluate(known, fan_out.needed_values(entry))
            values = {name: known[name].tensor for name in fan_out.needed_values(entry)}
            counts[entry.name] = count_steps(entry, values).total()
        return counts


class OnnxFile(ABC):
    """An ONNX file in ONNX Runtime: its whole graph, and what stands between populations.

    What it takes and yields has the exporter's names, whatever the file calls it.
    """

    def __init__(self, file: ModelProto, reference: Model) -> None:
        self.graph = reference.graph
        self.form = onnx_static.interface_of(file, reference)
        self.mode = self.form.mode
        self.file = self._renamed(file, reference)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._extractor = Extractor(self.file)

    def _renamed(self, file: ModelProto, reference: Model) -> ModelProto:
        """Declared are all populations' values that the file has."""
        ours = onnx_static.entries_of(reference, self.form)
        names = [name for entries in ours for name, _ in entries]
        made = {output for node in file.graph.node for output in node.output}
        known = {value.name for value in file.graph.value_info}
        wanted = {self.value(node.name): node for node in self.graph.populations}
        missing = (wanted.keys() & made) - known
        if names == [*self.form.inputs, *self.form.outputs] and not missing:
            return file
        whole = ModelProto()
        whole.CopyFrom(file)
        for value, (name, _) in zip(_taken(whole, self.form), ours[0], strict=True):
            _rename(whole, value, name, given=True)
        for value, (name, _) in zip(whole.graph.output, ours[1], strict=True):
            _rename(whole, value, name, given=False)
        for name in sorted(missing):
            shape = (None, *self.graph.shapes[wanted[name].name])
            whole.graph.value_info.append(helper.make_tensor_value_info(name, self.kind, shape))
        return whole

    @property
    def kind(self) -> int:
        """The type of populations' values."""
        integers = self.graph.integers
        return int(onnx_integers.VALUE_TYPE if integers else TensorProto.FLOAT)

    def spikes(self, values: Tensor) -> Array:
        """What populations sent, as the file takes it."""
        array: Array = values.contiguous().numpy()
        return array.astype(np.int32 if self.graph.integers else np.float32)

    def value(self, node: str) -> str:
        """The tensor that holds a node's value."""
        return onnx_nodes.value_name(self.graph, node, self.mode)

    @cached_property
    def shows_spikes(self) -> bool:
        """Whether the file has the values of all populations under the exporter's names."""
        values = self.file.graph.value_info
        declared = {v.name for v in values if v.type.tensor_type.elem_type == self.kind}
        made = declared & {output for node in self.file.graph.node for output in node.output}
        return made.issuperset(self.value(node.name) for node in self.graph.populations)

    def whole(self, names: Iterable[str]) -> onnxruntime.InferenceSession:
        """The file, with these declared values as additional outputs."""
        if "" not in self._sessions:
            whole = ModelProto()
            whole.CopyFrom(self.file)
            known = {value.name: value for value in self.file.graph.value_info}
            whole.graph.output.extend(known[name] for name in names)
            self._sessions[""] = open_session(whole)
        return self._sessions[""]

    def layer(self, layer: str) -> onnxruntime.InferenceSession:
        """What stands between the populations (or the input) that feed `layer`, and `layer`."""
        if layer not in self._sessions:
            self._sessions[layer] = open_session(self._extractor.extract_model(*self.ends(layer)))
        return self._sessions[layer]

    @abstractmethod
    def ends(self, layer: str) -> tuple[list[str], list[str]]:
        """What that part of the file takes and yields."""

    @abstractmethod
    def run(self, images: Tensor) -> ExecutionRun:
        """As `Execution`."""

    @abstractmethod
    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """As `Execution`."""

    def uncut(self) -> str:
        """Why layers of a file of another tool cannot be run alone; empty if they can."""
        names = [*(node.name for node in self.graph.populations), self.graph.readout.name]
        for name in names:
            try:
                self.layer(name)
            except (ValueError, *REFUSALS) as error:
                return f"{name} cannot be cut out of the file ({first_line(error)})"
        return ""


def _taken(file: ModelProto, form: onnx_static.Interface) -> list[ValueInfoProto]:
    return [value for value in file.graph.input if value.name in form.inputs]


def _rename(file: ModelProto, value: ValueInfoProto, name: str, *, given: bool) -> None:
    """Call an input (given) or an output by `name`; its old name stays inside."""
    old = value.name
    if old == name:
        return
    ends = (name, old) if given else (old, name)
    node = helper.make_node("Identity", [ends[0]], [ends[1]], name=f"{name}.renamed")
    file.graph.node.insert(0 if given else len(file.graph.node), node)
    value.name = name


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [repr(error)])[0]


class OnnxExecution(OnnxFile):
    """An ONNX file of all steps; counted: whether operations are, where the file yields spikes."""

    def __init__(self, file: ModelProto, reference: Model, *, counted: bool = True) -> None:
        super().__init__(file, reference)
        self.yields_spikes = self.form.yields == "spikes"
        counts = self.yields_spikes and counted
        self.counter = OnnxCounter(self.file, reference) if counts else None

    def run(self, images: Tensor) -> ExecutionRun:
        """The whole file, with every population as an additional output if it is none yet.

        Operations are counted from the spikes of a file that yields them.
        """
        names, yields = [node.name for node in self.graph.populations], self.yields_spikes
        inside = list(map(self.value, names)) if self.shows_spikes and not yields else []
        session = self.whole(inside)
        wanted = list(map(onnx_nodes.spikes_name, names)) if yields else inside
        feed = {self.graph.input.name: self._external(images)}
        logits, *found = session.run([onnx_nodes.OUTPUT, *wanted], feed)
        of_run = torch.from_numpy if yields else self._steps
        spikes = {n: of_run(array) for n, array in zip(names if wanted else (), found, strict=True)}
        counts = None if self.counter is None else self.counter.count(images, spikes)
        fired = {name: sent_of(self.graph, name, values) for name, values in spikes.items()}
        return ExecutionRun(fired, self._scores(logits), counts)

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """What stands between the populations (or the input) that feed `layer`, and `layer`."""
        feeding = sources(self.graph, layer)
        feed = {self._cut_name(name): self._given(name, values[name]) for name in feeding}
        if layer in self.graph.feedbacks:
            before = fan_out.step_before(values[layer].tensor.float()).numpy()
            feed |= dict(zip(self._sent_names(layer), before, strict=True))
        (result,) = self.layer(layer).run(None, feed)
        readout = layer == self.graph.readout.name
        if readout:
            return LayerRun(self._scores(result))
        return LayerRun(sent_of(self.graph, layer, self._steps(result)))

    def _scores(self, logits: Array) -> Tensor:
        """Class scores (batch, classes), also of a file that yields those of each step."""
        if self.form.yields != "steps":
            return torch.from_numpy(logits)
        return onnx_values.combined(torch.from_numpy(logits), self.graph)

    def ends(self, layer: str) -> tuple[list[str], list[str]]:
        output = onnx_nodes.OUTPUT if layer == self.graph.readout.name else self.value(layer)
        given = [self._cut_name(name) for name in sources(self.graph, layer)]
        return given + self._sent_names(layer), [output]

    def _sent_names(self, layer: str) -> list[str]:
        """The tensors that hold the spikes that a population feeds back to each step."""
        back, steps = self.graph[layer].feedback, self.graph.time_steps
        return [] if back is None else [sent_name(back.name, t) for t in range(steps)]

    def _cut_name(self, name: str) -> str:
        return name if name == self.graph.input.name else self.value(name)

    def _given(self, name: str, signal: Signal) -> Array:
        if name == self.graph.input.name:
            return self._external(signal.tensor)
        return self.spikes(signal.tensor.flatten(0, 1))

    def _external(self, images: Tensor) -> Array:
        """Images as the file's input takes them; a static image is repeated for a sequence."""
        static = images.dim() == len(self.graph.input.shape) + 1
        if self.mode == "static" and not static:
            raise errors.ValidityError(
                f"a sequence {tuple(images.shape)} given; this file takes static images. Export "
                "it for sequences to run them"
            )
        if self.mode == "sequence" and static:
            images = images.expand(self.graph.time_steps, *images.shape)
        return onnx_values.input_array(self.graph, images)

    def _steps(self, merged: Array) -> Tensor:
        return torch.from_numpy(merged.reshape(self.graph.time_steps, -1, *merged.shape[1:]))


def open_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """ONNX Runtime with PyTorch's number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data, cpu = model.SerializeToString(), ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(data, options, providers=cpu)
