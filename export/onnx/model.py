"""A trained network as one self-contained ONNX file, built from its graph.

Sequence mode: all T steps are inside, so the file has no state to lose. Batch norm is folded, the
batch axis is dynamic, stateless layers run on T·batch images at once and what a static image
determines is computed once. `metadata_props` say what the caller needs to know.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from soul_deploy.base import errors, files
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx.opsets import ir_version_for, require_opset
from soul_deploy.ir import SpikingGraph
from soul_deploy.lowering.deploy import Deployed, lower
from soul_deploy.model.model import Model
from soul_deploy.runtime.equations import NeuronEquation

FORMAT = "soul-deploy/onnx/1"
Sides = tuple[int | str, ...]
MAX_BYTES = (1 << 31) - 1  # what protobuf can hold in one message
INPUT_MODES: tuple[onnx_nodes.InputMode, ...] = (
    "static",
    "sequence",
)  # of files with all steps inside
OUTPUTS: tuple[onnx_nodes.Outputs, ...] = ("logits", "spikes")
ENCODINGS: dict[onnx_nodes.InputMode, str] = {
    "static": "one image shown at every step",
    "sequence": "sequence",
    "step": "one frame, or the same image again, per call",
}


def build_onnx(
    model: Model,
    *,
    opset: int = 18,
    input_mode: onnx_nodes.InputMode = "static",
    outputs: onnx_nodes.Outputs = "logits",
    source_sha256: str | None = None,
) -> onnx.ModelProto:
    """The ONNX model of `model`; the same input gives the same bytes.

    Input `input`: (batch, C, H, W), one image shown T times (`static`), or (T, batch, C, H, W)
    (`sequence`), normalised by the caller. Output `logits`: (batch, classes); with outputs
    `spikes` also `<population>.spikes`: (T, batch, ...) of 0/1, so that operations can be counted.
    `source_sha256` is the digest of the model file, for the metadata.
    Raises UsageError for an opset or input mode that is not supported (an opset also where the
    installed onnx is too old for it), UnsupportedGraphError, and
    LimitError for a network larger than one ONNX file can hold.
    """
    for what, inputs, valid in (
        ("input mode", input_mode, INPUT_MODES),
        ("outputs", outputs, OUTPUTS),
    ):
        if inputs not in valid:
            raise errors.UsageError(f"{what} {inputs!r}; valid: {', '.join(valid)}")
    builder = onnx_nodes.OnnxBuilder(
        model.graph, fitting(model, opset), opset, input_mode=input_mode
    )
    for node in model.graph.nodes:
        onnx_nodes.emit(builder, node)
    yielded = _spike_outputs(builder) if outputs == "spikes" else []
    built = _assemble(builder, input_mode, yielded)
    properties = onnx_metadata(model, builder.lowered.equations, input_mode, source_sha256)
    properties["outputs"] = outputs
    helper.set_model_props(built, dict(sorted(properties.items())))
    onnx.checker.check_model(built, full_check=True)
    return built


def fitting(model: Model, opset: int) -> Deployed:
    """The lowered form, if the installed onnx knows the opset and one file holds them.

    Raises UsageError or LimitError.
    """
    require_opset(opset)
    lowered = lower(model)
    size = sum(s.weight.nbytes for s in lowered.synapses.values())
    if size > MAX_BYTES:
        raise errors.LimitError(
            f"{size} bytes of weights; one ONNX file holds at most {MAX_BYTES}. Remove channels "
            "first"
        )
    return lowered


def input_shape(graph: SpikingGraph, input_mode: onnx_nodes.InputMode) -> tuple[int | str, ...]:
    """The file's input shape with its named axes."""
    leading = (
        (graph.time_steps, onnx_nodes.BATCH) if input_mode == "sequence" else (onnx_nodes.BATCH,)
    )
    return (*leading, *graph.input.shape)


def output_entries(graph: SpikingGraph, outputs: onnx_nodes.Outputs) -> list[tuple[str, Sides]]:
    """Names and shapes of a sequence file's outputs."""
    entries: list[tuple[str, Sides]] = [
        (onnx_nodes.OUTPUT, (onnx_nodes.BATCH, graph.readout.classes))
    ]
    if outputs == "spikes":
        for node in graph.populations:
            shape: Sides = (graph.time_steps, onnx_nodes.BATCH, *graph.shapes[node.name])
            entries.append((onnx_nodes.spikes_name(node.name), shape))
    return entries


def _spike_outputs(b: onnx_nodes.OnnxBuilder) -> list[onnx.ValueInfoProto]:
    """Every population's spikes with the time axis apart."""
    for node in b.graph.populations:
        name = onnx_nodes.spikes_name(node.name)
        sides = (b.graph.time_steps, -1, *b.graph.shapes[node.name])
        b.op("Reshape", [b.value(node.name), b.integers(f"{name}.shape", *sides)], name)
    entries = output_entries(b.graph, "spikes")[1:]
    return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in entries]


def _assemble(
    b: onnx_nodes.OnnxBuilder, input_mode: onnx_nodes.InputMode, yielded: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph, given = b.graph, b.graph.input.name
    shape = input_shape(graph, input_mode)
    return assemble(
        b,
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(
                onnx_nodes.OUTPUT, TensorProto.FLOAT, (onnx_nodes.BATCH, graph.readout.classes)
            ),
            *yielded,
        ],
        f"Spiking network, {graph.time_steps} time steps inside; no state is kept.",
    )


def assemble(
    b: onnx_nodes.OnnxBuilder,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    doc: str,
) -> onnx.ModelProto:
    """The model of what was built, between these inputs and outputs."""
    drawn = helper.make_graph(
        b.nodes, "spiking_network", inputs, outputs, b.initializers, value_info=b.values
    )
    opsets = [
        helper.make_opsetid("", b.opset),
        helper.make_opsetid(onnx_neuron.DOMAIN, onnx_neuron.DOMAIN_VERSION),
    ]
    return helper.make_model(
        drawn,
        functions=onnx_nodes.functions(b),
        opset_imports=opsets,
        ir_version=ir_version_for(opsets),
        producer_name="soul-deploy",
        producer_version=version("soul-deploy"),
        doc_string=doc,
    )


def onnx_metadata(
    model: Model,
    equations: Mapping[str, NeuronEquation],
    input_mode: onnx_nodes.InputMode,
    source_sha256: str | None,
) -> dict[str, str]:
    """The file's metadata_props: strings, nested values as JSON."""
    graph, info = model.graph, model.info
    nested: dict[str, Any] = {
        "neurons": {name: asdict(equation) for name, equation in equations.items()},
        "classes": list(info.classes),
        "normalization": None if info.normalization is None else asdict(info.normalization),
        "validity": asdict(info.validity),
        "provenance": dict(info.provenance),
        "input_shape": list(graph.input.shape),
        "versions": {"soul-deploy": version("soul-deploy"), "onnx": onnx.__version__},
    }
    text = {
        "format": FORMAT,
        "time_steps": str(graph.time_steps),
        "encoding": ENCODINGS[input_mode],
        "input_mode": input_mode,
        "fire": ", ".join(sorted({_rule(equation) for equation in equations.values()})),
        "decode": graph.readout.describe(),
        "normalization_applied_by": "caller",
        "input_kind": info.input_kind,
        "stage": info.stage,
        "source_sha256": source_sha256 or "",
    }
    return text | {key: json.dumps(value, sort_keys=True) for key, value in nested.items()}


def _rule(equation: NeuronEquation) -> str:
    return "v > v_threshold" if equation.fire == "gt" else "v >= v_threshold"


def export_onnx(
    model: Model,
    path: Path | str,
    *,
    opset: int = 18,
    input_mode: onnx_nodes.InputMode = "static",
    outputs: onnx_nodes.Outputs = "logits",
    source_sha256: str | None = None,
) -> onnx.ModelProto:
    """Write `build_onnx`'s model to `path` atomically and return it.

    Raises what `build_onnx` raises, and OSError if the file cannot be written.
    """
    built = build_onnx(
        model, opset=opset, input_mode=input_mode, outputs=outputs, source_sha256=source_sha256
    )
    write_onnx(path, built)
    return built


def write_onnx(path: Path | str, built: onnx.ModelProto) -> None:
    """Write atomically. Raises LimitError for a file too large, and OSError."""
    data = built.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise errors.LimitError(f"{len(data)} bytes; one ONNX file holds at most {MAX_BYTES}")
    files.write_atomically(path, lambda temporary: _write(temporary, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
