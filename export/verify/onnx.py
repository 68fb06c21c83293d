"""An ONNX file against the graph it should come from: structure, and running it layer by layer."""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.utils import Extractor
from torch import Tensor

from soul_deploy.base.errors import FileFormatError, ValidityError
from soul_deploy.base.files import Array
from soul_deploy.base.input_rule import KIND_OF_OLD_FILES
from soul_deploy.equivalence.engines import LayerRun, Run
from soul_deploy.equivalence.golden import sources
from soul_deploy.export.onnx import model as onnx_model
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx import step as onnx_step
from soul_deploy.export.onnx.opsets import OPSETS, opset_of
from soul_deploy.export.verify.onnx_counts import OnnxCounter
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal


def properties(model: ModelProto) -> dict[str, str]:
    """The file's metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}


def input_mode_of(model: ModelProto) -> onnx_nodes.InputMode:
    """Raises FileFormatError for a file without our metadata."""
    found = properties(model)
    if found.get("format") != onnx_model.FORMAT:
        raise FileFormatError(
            f"an ONNX file of format {found.get('format')!r}; verified are files that "
            f"`soul-deploy export onnx` wrote ({onnx_model.FORMAT})"
        )
    modes: tuple[onnx_nodes.InputMode, ...] = (*onnx_model.INPUT_MODES, "step")
    for mode in modes:
        if found.get("input_mode") == mode:
            return mode
    raise FileFormatError(f"input_mode {found.get('input_mode')!r} in the file's metadata")


def static_input_of(model: ModelProto) -> onnx_step.StaticInput:
    """What a step file takes as input. Raises FileFormatError."""
    given = properties(model).get("static_input")
    for known in onnx_step.STATIC_INPUTS:
        if given == known:
            return known
    raise FileFormatError(f"static_input {given!r} in the file's metadata")


def outputs_of(model: ModelProto) -> onnx_nodes.Outputs:
    """What a file yields; files from before there was a choice yield logits. Raises
    FileFormatError."""
    given = properties(model).get("outputs", "logits")
    for known in onnx_model.OUTPUTS:
        if given == known:
            return known
    raise FileFormatError(f"outputs {given!r} in the file's metadata")


def static_problems(
    golden: Model, file: ModelProto, source_sha256: str | None = None
) -> tuple[str, ...]:
    """Gate 1: what in the file is not exactly what the graph says; empty if all of it is.

    source_sha256: digest of the golden's file, if known.
    """
    mode = input_mode_of(file)
    problems = [
        *_header_problems(golden, file, mode, source_sha256),
        *_weight_problems(golden, file),
        *_neuron_problems(golden, file, 1 if mode == "step" else golden.graph.time_steps),
    ]
    return tuple(problems or _structure_problems(golden, file, mode))


def _header_problems(
    golden: Model, file: ModelProto, mode: onnx_nodes.InputMode, source_sha256: str | None
) -> Iterator[str]:
    graph, found = golden.graph, properties(file)
    if opset_of(file) not in OPSETS:
        yield f"opset {opset_of(file)}; supported: {OPSETS[0]} to {OPSETS[-1]}"
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
    kind = found.get("input_kind", KIND_OF_OLD_FILES)
    if kind != golden.info.input_kind:
        yield f"metadata input_kind is {kind!r}, the model says {golden.info.input_kind!r}"
    inputs = [(graph.input.name, onnx_model.input_shape(graph, mode))]
    outputs = onnx_model.output_entries(graph, outputs_of(file))
    if mode == "step":
        inputs = onnx_step.step_inputs(golden, static_input_of(file))
        outputs = onnx_step.step_outputs(golden)
    for values, entries in ((file.graph.input, inputs), (file.graph.output, outputs)):
        declared = [(v.name, _declared_shape(v)) for v in values]
        if declared != entries:
            yield f"the file's {declared} should be {entries}"


def _declared_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_param or side.dim_value for side in sides)


def _weight_problems(golden: Model, file: ModelProto) -> Iterator[str]:
    """Weights, biases, masks and patterns against what the model holds, number by number."""
    stored = {tensor.name: tensor for tensor in file.graph.initializer}
    absent: tuple[str, ...] = ()
    if properties(file).get("static_input") == "current":
        absent = golden.graph.static
    for name, expected in _expected_arrays(golden, absent):
        if expected is None:
            if name in stored:
                yield f"{name}: stored, but the graph has none"
        elif name not in stored:
            yield f"{name}: missing"
        else:
            yield from _array_problem(name, numpy_helper.to_array(stored[name]), expected)


def _expected_arrays(golden: Model, absent: tuple[str, ...]) -> Iterator[tuple[str, Array | None]]:
    for node, synapses in lower(golden).synapses.items():
        yield onnx_nodes.weight_name(node), None if node in absent else synapses.weight
        yield onnx_nodes.bias_name(node), None if node in absent else synapses.bias
    patterns = lower(golden).patterns
    for population in golden.graph.populations:
        name, pattern = population.name, patterns.get(population.name)
        mask = golden.neuron_masks.get(name)
        yield onnx_nodes.mask_name(name), None if mask is None else mask.astype(np.float32)
        if pattern is not None:
            sides = [1] * (len(golden.graph.shapes[name]) - 1)
            pattern = pattern.astype(np.float32).reshape(len(pattern), 1, -1, *sides)
        yield onnx_nodes.pattern_name(name), pattern


def _array_problem(name: str, found: Array, expected: Array) -> Iterator[str]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        yield (
            f"{name}: {found.dtype}{found.shape}, the graph says {expected.dtype}{expected.shape}"
        )
    elif not np.array_equal(found, expected):
        count = int((found != expected).sum())
        yield f"{name}: {count} of {expected.size} values differ from the folded weights"


def _neuron_problems(golden: Model, file: ModelProto, steps: int) -> Iterator[str]:
    """Every population is T calls of its equation's function, with its numbers, in a chain."""
    graph = golden.graph
    calls: dict[str, list[NodeProto]] = {node.name: [] for node in graph.populations}
    for node in file.graph.node:
        owner = node.output[0].rsplit(".spike.", 1)[0]
        if node.domain == onnx_neuron.DOMAIN and owner in calls:
            calls[owner].append(node)
    for name, equation in lower(golden).equations.items():
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
    golden: Model, file: ModelProto, mode: onnx_nodes.InputMode
) -> Iterator[str]:
    """Every node, constant and function against the graph spelled anew."""
    if mode == "step":
        given = static_input_of(file)
        expected = onnx_step.build_step(golden, opset=opset_of(file), static_input=given)
    else:
        outputs = outputs_of(file)
        expected = onnx_model.build_onnx(
            golden, opset=opset_of(file), input_mode=mode, outputs=outputs
        )
    for kind, ours, theirs in (
        ("node", expected.graph.node, file.graph.node),
        ("initializer", expected.graph.initializer, file.graph.initializer),
        ("function", expected.functions, file.functions),
    ):
        wanted = {item.name: item for item in ours}
        found = {item.name: item for item in theirs}
        for name in sorted(set(wanted) ^ set(found)):
            yield f"{kind} {name!r}: {'missing' if name in wanted else 'not in the graph'}"
        for name in wanted.keys() & found.keys():
            if wanted[name] != found[name]:
                yield f"{kind} {name!r} is not what the graph says"


class OnnxExecution:
    """An ONNX file in ONNX Runtime, whole or cut at populations."""

    def __init__(self, file: ModelProto, golden: Model) -> None:
        self.file, self.graph = file, golden.graph
        self.mode = input_mode_of(file)
        self.counter = OnnxCounter(file, golden) if outputs_of(file) == "spikes" else None
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._extractor = Extractor(file)

    def value(self, node: str) -> str:
        """The tensor that holds a node's value."""
        return onnx_nodes.value_name(self.graph, node, self.mode)

    def run(self, images: Tensor) -> Run:
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
        given = {self.graph.input.name: self._external(images)}
        logits, *merged = session.run(
            [onnx_nodes.OUTPUT, *(self.value(name) for name in names)], given
        )
        pairs = zip(names, merged, strict=True)
        spikes = {name: self._steps(array).bool() for name, array in pairs}
        return Run(spikes, torch.from_numpy(logits))

    def _run_yielding(self, counter: OnnxCounter, names: list[str], images: Tensor) -> Run:
        """The file as it is; operations are counted from the spikes that it yields."""
        if "" not in self._sessions:
            self._sessions[""] = open_session(self.file)
        wanted = [onnx_nodes.OUTPUT, *map(onnx_nodes.spikes_name, names)]
        given = {self.graph.input.name: self._external(images)}
        logits, *yielded = map(torch.from_numpy, self._sessions[""].run(wanted, given))
        spikes = dict(zip(names, yielded, strict=True))
        counts = counter.count(images, spikes)
        return Run({n: s.bool() for n, s in spikes.items()}, logits, counts)

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """What stands between the populations (or the input) that feed `layer`, and `layer`."""
        feeding = sources(self.graph, layer)
        readout = layer == self.graph.readout.name
        output = onnx_nodes.OUTPUT if readout else self.value(layer)
        if layer not in self._sessions:
            names = [self._cut_name(name) for name in feeding]
            self._sessions[layer] = open_session(self._extractor.extract_model(names, [output]))
        given = {self._cut_name(name): self._given(name, values[name]) for name in feeding}
        (result,) = self._sessions[layer].run([output], given)
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
            raise ValidityError(
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
