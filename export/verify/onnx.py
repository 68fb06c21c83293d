"""An ONNX file against the graph it should come from: structure, and running it layer by layer."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.utils import Extractor
from torch import Tensor

from soul_deploy.analysis.synops import count_steps
from soul_deploy.base import Array, errors, input_rule
from soul_deploy.equivalence.engines import ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import sources
from soul_deploy.export.onnx import model as onnx_model
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx import opsets
from soul_deploy.export.onnx import step as onnx_step
from soul_deploy.lowering import deploy, fan_out, fold_batch_norm
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import LayerCounts


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
    modes: tuple[onnx_nodes.InputMode, ...] = (*onnx_model.INPUT_MODES, "step")
    for mode in modes:
        if found.get("input_mode") == mode:
            return mode
    raise errors.FileFormatError(f"input_mode {found.get('input_mode')!r} in the file's metadata")


def static_input_of(model: ModelProto) -> onnx_step.StaticInput:
    """The kind of input that a step file takes. Raises FileFormatError."""
    given = properties(model).get("static_input")
    for known in onnx_step.STATIC_INPUTS:
        if given == known:
            return known
    raise errors.FileFormatError(f"static_input {given!r} in the file's metadata")


def outputs_of(model: ModelProto) -> onnx_nodes.Outputs:
    """What a file yields; files from before there was a choice yield logits. Raises
    FileFormatError."""
    given = properties(model).get("outputs", "logits")
    for known in onnx_model.OUTPUTS:
        if given == known:
            return known
    raise errors.FileFormatError(f"outputs {given!r} in the file's metadata")


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
    stored = found.get("source_sha256", "")
    if source_sha256 and stored and stored != source_sha256:
        yield (
            f"made from a file with sha256 {stored[:16]}…, the model given is {source_sha256[:16]}…"
        )
    expected = {
        "time_steps": str(graph.time_steps),
        "input_shape": json.dumps(list(graph.input.shape)),
    }
    for key, value in expected.items():
        if found.get(key) != value:
            yield f"metadata {key} is {found.get(key)!r}, the graph says {value!r}"
    kind = found.get("input_kind", input_rule.KIND_OF_OLD_FILES)
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
    absent: tuple[str, ...] = ()
    if properties(file).get("static_input") == "current":
        absent = reference.graph.static
    for name, expected in _expected_arrays(reference, absent):
        if expected is None:
            if name in stored:
                yield f"{name}: stored, but the graph has none"
        elif name not in stored:
            yield f"{name}: missing"
        else:
            yield from _array_problem(name, numpy_helper.to_array(stored[name]), expected)


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


def _array_problem(name: str, stored: Array, expected: Array) -> Iterator[str]:
    if stored.shape != expected.shape or stored.dtype != expected.dtype:
        yield (
            f"{name}: {stored.dtype}{stored.shape}, the graph says {expected.dtype}{expected.shape}"
        )
    elif not np.array_equal(stored, expected):
        count = int((stored != expected).sum())
        yield f"{name}: {count} of {expected.size} values differ from the folded weights"


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
    if mode == "step":
        given = static_input_of(file)
        expected = onnx_step.build_step(reference, opset=opsets.opset_of(file), static_input=given)
    else:
        outputs = outputs_of(file)
        expected = onnx_model.build_onnx(
            reference, opset=opsets.opset_of(file), input_mode=mode, outputs=outputs
        )
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
            node.name: fold_batch_norm.Synapses(
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
        """The whole file, with every population as an additional output if it is none yet."""
        names = [node.name for node in self.graph.populations]
        if self.counter is not None:
            return self._run_yielding(self.counter, names, images)
        if "" not in self._sessions:
            whole = ModelProto()
            whole.CopyFrom(self.file)
            known = {value.name: value for value in self.file.graph.value_info}
            whole.graph.output.extend(known[self.value(name)] for name in names)
            self._sessions[""] = open_session(whole)
        session = self._sessions[""]
        feed = {self.graph.input.name: self._external(images)}
        logits, *merged = session.run(
            [onnx_nodes.OUTPUT, *(self.value(name) for name in names)], feed
        )
        pairs = zip(names, merged, strict=True)
        spikes = {name: self._steps(array).bool() for name, array in pairs}
        return ExecutionRun(spikes, torch.from_numpy(logits))

    def _run_yielding(self, counter: OnnxCounter, names: list[str], images: Tensor) -> ExecutionRun:
        """The file as it is; operations are counted from the spikes that it yields."""
        if "" not in self._sessions:
            self._sessions[""] = open_session(self.file)
        wanted = [onnx_nodes.OUTPUT, *map(onnx_nodes.spikes_name, names)]
        feed = {self.graph.input.name: self._external(images)}
        logits, *yielded = map(torch.from_numpy, self._sessions[""].run(wanted, feed))
        spikes = dict(zip(names, yielded, strict=True))
        counts = counter.count(images, spikes)
        return ExecutionRun({n: s.bool() for n, s in spikes.items()}, logits, counts)

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
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
