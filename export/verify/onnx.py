"""An ONNX file against the graph it should come from: structure, and running it layer by layer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.utils import Extractor
from torch import Tensor

from soul_deploy.analysis.synops import count_steps
from soul_deploy.base import Array, errors, pixel_rule
from soul_deploy.equivalence.engines import ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import sources
from soul_deploy.export.onnx import model as onnx_model
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx import opsets
from soul_deploy.export.onnx import step as onnx_step
from soul_deploy.export.verify import event
from soul_deploy.lowering import deploy, fan_out, fold_batch_norm
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import LayerCounts

Word = TypeVar("Word", bound=str)


def properties(model: ModelProto) -> dict[str, str]:
    """The file's metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}


def input_mode_of(model: ModelProto) -> onnx_nodes.InputMode:
    """Raises FileFormatError for a file without our metadata."""
    found = properties(model)
    if found.get("format") != onnx_model.FORMAT:
        raise errors.FileFormatError(
            f"an ONNX file of format {found.get('format')!r}; verified are files that "
            f"`soul-deploy export onnx` wrote ({onnx_model.FORMAT})"
        )
    return _one_of("input_mode", found.get("input_mode"), (*onnx_model.INPUT_MODES, "step"))


def _one_of(key: str, given: str | None, known: tuple[Word, ...]) -> Word:
    for word in known:
        if given == word:
            return word
    raise errors.FileFormatError(f"{key} {given!r} in the file's metadata")


def static_input_of(model: ModelProto) -> onnx_step.StaticInput:
    """The kind of input that a step file takes. Raises FileFormatError."""
    given = properties(model).get("static_input")
    return _one_of("static_input", given, onnx_step.STATIC_INPUTS)


def outputs_of(model: ModelProto) -> onnx_nodes.Outputs:
    """What a file yields; files from before there was a choice yield logits. Raises
    FileFormatError."""
    return _one_of("outputs", properties(model).get("outputs", "logits"), onnx_model.OUTPUTS)


def onnx_problems(
    reference: Model, file: ModelProto, source_sha256: str | None = None
) -> tuple[str, ...]:
    """The static check: every difference between the file and the graph, in words.

    source_sha256: digest of the reference's file, if known.
    """
    mode = input_mode_of(file)
    problems = [
        *_header_problems(reference, file, mode, source_sha256),
        *_weight_problems(reference, file),
        *_neuron_problems(reference, file, 1 if mode == "step" else reference.graph.time_steps),
    ]
    return tuple(problems or _structure_problems(reference, file, mode))


def _header_problems(
    reference: Model, file: ModelProto, mode: onnx_nodes.InputMode, source_sha256: str | None
) -> Iterator[str]:
    graph, found = reference.graph, properties(file)
    if opsets.opset_of(file) not in opsets.OPSETS:
        yield f"opset {opsets.opset_of(file)}; supported: {opsets.OPSETS[0]} to {opsets.OPSETS[-1]}"
    yield from event.source_problems(found.get("source_sha256"), source_sha256)
    shape = json.dumps(list(graph.input.shape))
    expected = {"time_steps": str(graph.time_steps), "input_shape": shape}
    for key, value in expected.items():
        if found.get(key) != value:
            yield f"metadata {key} is {found.get(key)!r}, the graph says {value!r}"
    kind = found.get("input_kind", pixel_rule.KIND_OF_OLD_FILES)
    if kind != reference.info.input_kind:
        yield f"metadata input_kind is {kind!r}, the model says {reference.info.input_kind!r}"
    inputs = [(graph.input.name, onnx_model.input_shape(graph, mode))]
    outputs = onnx_model.output_entries(graph, outputs_of(file))
    if mode == "step":
        inputs = onnx_step.step_inputs(reference, static_input_of(file))
        outputs = onnx_step.step_outputs(reference)
    for values, entries in ((file.graph.input, inputs), (file.graph.output, outputs)):
        declared = [(v.name, _declared_shape(v)) for v in values]
        if declared != entries:
            yield f"the file's {declared} should be {entries}"


def _declared_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_param or side.dim_value for side in sides)


def _weight_problems(reference: Model, file: ModelProto) -> Iterator[str]:
    """Weights, biases, masks and patterns against what the model holds, number by number."""
    stored = {tensor.name: tensor for tensor in file.graph.initializer}
    currents = properties(file).get("static_input") == "current"
    differ = "values differ from the folded weights"
    for name, expected in _expected_arrays(reference, reference.graph.static if currents else ()):
        array = numpy_helper.to_array(stored[name]) if name in stored else None
        yield from event.array_problems(name, array, expected, differ)


def _expected_arrays(
    reference: Model, absent: tuple[str, ...]
) -> Iterator[tuple[str, Array | None]]:
    for node, synapses in deploy.lower(reference).synapses.items():
        yield onnx_nodes.weight_name(node), None if node in absent else synapses.weight
        yield onnx_nodes.bias_name(node), None if node in absent else synapses.bias
    patterns = deploy.lower(reference).patterns
    for population in reference.graph.populations:
        name, pattern = population.name, patterns.get(population.name)
        mask = reference.neuron_masks.get(name)
        yield onnx_nodes.mask_name(name), None if mask is None else mask.astype(np.float32)
        if pattern is not None:
            sides = [1] * (len(reference.graph.shapes[name]) - 1)
            pattern = pattern.astype(np.float32).reshape(len(pattern), 1, -1, *sides)
        yield onnx_nodes.pattern_name(name), pattern


def _neuron_problems(reference: Model, file: ModelProto, steps: int) -> Iterator[str]:
    """Every population is T calls of its equation's function, with its numbers, in a chain."""
    graph = reference.graph
    calls: dict[str, list[NodeProto]] = {node.name: [] for node in graph.populations}
    for node in file.graph.node:
        owner = node.output[0].rsplit(".spike.", 1)[0]
        if node.domain == onnx_neuron.DOMAIN and owner in calls:
            calls[owner].append(node)
    for name, equation in deploy.lower(reference).equations.items():
        found = calls[name]
        if len(found) != steps:
            yield f"{name}: {len(found)} steps, the graph says T = {steps}"
        expected = (onnx_neuron.function_name(equation), _rounded(onnx_neuron.attributes(equation)))
        for node in found:
            constants = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if (node.op_type, _rounded(constants)) != expected:
                yield f"{node.name}: {node.op_type} {constants}, the graph says {expected}"


def _rounded(constants: Mapping[str, float]) -> dict[str, float]:
    return {name: float(np.float32(constants[name])) for name in sorted(constants)}


def _structure_problems(
    reference: Model, file: ModelProto, mode: onnx_nodes.InputMode
) -> Iterator[str]:
    """Every node, constant and function against the graph emitted anew."""
    opset = opsets.opset_of(file)
    if mode == "step":
        given = static_input_of(file)
        expected = onnx_step.build_step(reference, opset=opset, static_input=given)
    else:
        how: Any = {"input_mode": mode, "outputs": outputs_of(file)}
        expected = onnx_model.build_onnx(reference, opset=opset, **how)
    for kind, ours, theirs in (
        ("node", expected.graph.node, file.graph.node),
        ("initializer", expected.graph.initializer, file.graph.initializer),
        ("function", expected.functions, file.functions),
    ):
        wanted = {item.name: item for item in ours}
        by_name = {item.name: item for item in theirs}
        for name in sorted(set(wanted) ^ set(by_name)):
            yield f"{kind} {name!r}: {'missing' if name in wanted else 'not in the graph'}"
        for name in wanted.keys() & by_name.keys():
            if wanted[name] != by_name[name]:
                yield f"{kind} {name!r} is not what the graph says"


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
            for node in (*self.graph.projections, self.graph.readout)
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


def yielding(file: ModelProto, names: Iterable[str]) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, with these declared values as additional outputs."""
    whole = ModelProto()
    whole.CopyFrom(file)
    known = {value.name: value for value in file.graph.value_info}
    whole.graph.output.extend(known[name] for name in names)
    return open_session(whole)


class OnnxExecution:
    """An ONNX file in ONNX Runtime, whole or cut at populations."""

    def __init__(self, file: ModelProto, reference: Model) -> None:
        self.file, self.graph = file, reference.graph
        self.mode = input_mode_of(file)
        self.counter = OnnxCounter(file, reference) if outputs_of(file) == "spikes" else None
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._extractor = Extractor(file)

    def value(self, node: str) -> str:
        """The tensor that holds a node's value."""
        return onnx_nodes.value_name(self.graph, node, self.mode)

    def run(self, images: Tensor) -> ExecutionRun:
        """The whole file, with every population as an additional output if it is none yet.

        Operations are counted from the spikes of a file that yields them.
        """
        names, counter = [node.name for node in self.graph.populations], self.counter
        inside = [self.value(name) for name in names]
        if "" not in self._sessions:
            self._sessions[""] = yielding(self.file, [] if counter else inside)
        wanted = list(map(onnx_nodes.spikes_name, names)) if counter else inside
        feed = {self.graph.input.name: self._external(images)}
        logits, *found = self._sessions[""].run([onnx_nodes.OUTPUT, *wanted], feed)
        of_run = torch.from_numpy if counter else self._steps
        spikes = {name: of_run(array) for name, array in zip(names, found, strict=True)}
        counts = None if counter is None else counter.count(images, spikes)
        fired = {name: values.bool() for name, values in spikes.items()}
        return ExecutionRun(fired, torch.from_numpy(logits), counts)

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """What stands between the populations (or the input) that feed `layer`, and `layer`."""
        feeding = sources(self.graph, layer)
        readout = layer == self.graph.readout.name
        output = onnx_nodes.OUTPUT if readout else self.value(layer)
        if layer not in self._sessions:
            names = [self._cut_name(name) for name in feeding]
            self._sessions[layer] = open_session(self._extractor.extract_model(names, [output]))
        feed = {self._cut_name(name): self._given(name, values[name]) for name in feeding}
        (result,) = self._sessions[layer].run([output], feed)
        return LayerRun(torch.from_numpy(result) if readout else self._steps(result).bool())

    def _cut_name(self, name: str) -> str:
        return name if name == self.graph.input.name else self.value(name)

    def _given(self, name: str, signal: Signal) -> Array:
        if name == self.graph.input.name:
            return self._external(signal.tensor)
        merged: Array = signal.tensor.flatten(0, 1).float().numpy()
        return merged

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
        array: Array = images.contiguous().numpy()
        return array

    def _steps(self, merged: Array) -> Tensor:
        return torch.from_numpy(merged.reshape(self.graph.time_steps, -1, *merged.shape[1:]))


def open_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """ONNX Runtime with PyTorch's number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data, cpu = model.SerializeToString(), ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(data, options, providers=cpu)
