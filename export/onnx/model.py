"""A trained network as one self-contained ONNX file, built from its graph.

Sequence mode: all T steps are inside, so the file has no state to lose. Batch norm is folded, the
batch axis is dynamic, stateless layers run on T·batch images at once and what a static image
determines is computed once. `metadata_props` say what the caller needs to know.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from soul_deploy import ir
from soul_deploy.base import dispatch, errors, files, reduction
from soul_deploy.export.onnx import integers, populations
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx.opsets import ir_version_for, require_opset
from soul_deploy.export.onnx.readout import append_readout
from soul_deploy.ir import SpikingGraph
from soul_deploy.lowering.deploy import Deployed, lower
from soul_deploy.model.model import Model
from soul_deploy.runtime.dynamics.equation import DynamicsEquation
from soul_deploy.runtime.dynamics.form import BINARY
from soul_deploy.runtime.dynamics.parallel import ParallelEquation
from soul_deploy.runtime.equations import Equation, FixedEquation, NeuronEquation
from soul_deploy.runtime.format.layer_codec import neuron_facts

FORMAT = "soul-deploy/onnx/2"
FORMATS = ("soul-deploy/onnx/1", FORMAT)  # those before 2 call functions, of any batch
MAX_BYTES = (1 << 31) - 1  # what protobuf can hold in one message
# Of files with all steps inside.
INPUT_MODES: tuple[onnx_nodes.InputMode, ...] = ("static", "sequence")
OUTPUTS: tuple[onnx_nodes.Outputs, ...] = ("logits", "spikes", "steps")
ENCODINGS: dict[onnx_nodes.InputMode, str] = {
    "static": "one image shown at every step",
    "sequence": "sequence",
    "step": "one frame, or the same image again, per call",
}


onnx_nodes.append_onnx.on(ir.Population)(populations.append_population)


@onnx_nodes.append_onnx.on(ir.Readout)
def _readout(node: ir.Readout, b: onnx_nodes.OnnxBuilder) -> None:
    synapses = partial(onnx_nodes.synapses, b, node.name)
    charge = partial(populations.append_membranes, node, b)
    append_readout(node, b, synapses, charge, onnx_nodes.OUTPUT)


def build_onnx(
    model: Model,
    *,
    opset: int = 18,
    input_mode: onnx_nodes.InputMode | None = None,
    outputs: onnx_nodes.Outputs = "logits",
    source_sha256: str | None = None,
    functions: bool = False,
    fixed_batch: int | None = None,
) -> onnx.ModelProto:
    """The ONNX model of `model`; the same input gives the same bytes.

    Input `input`: (batch, C, H, W), one image shown T times (`static`), or (T, batch, C, H, W)
    (`sequence`, the default of a network of events, or one that was trained on frames of them),
    normalised by the caller. Output `logits`: (batch, classes); with outputs
    `spikes` also `<population>.spikes`: (T, batch, ...) of 0/1, so that operations can be counted;
    with outputs `steps` the scores of each step: (T, batch, classes).
    `source_sha256` is the digest of the model file, for the metadata.
    functions: neurons are calls of model-local functions, which few engines know, instead of
    operators in the graph. fixed_batch: the samples of each call; None: any number.
    Raises UsageError for an opset, input mode or batch that is not supported (an opset also where
    the installed onnx is too old for it), UnsupportedGraphError, and
    LimitError for a network larger than one ONNX file can hold.
    """
    graph = model.graph
    input_mode = mode_of(model, input_mode)
    _require_known(input_mode, outputs)
    lowered = fitting(model, opset, fixed_batch, functions=functions)
    form: Any = {"functions": functions, "batch": fixed_batch, "by_step": outputs == "steps"}
    builder = onnx_nodes.OnnxBuilder(graph, lowered, opset, input_mode=input_mode, **form)
    for node in graph.nodes:
        onnx_nodes.emit(builder, node)
    for node in graph.populations if outputs == "spikes" else ():  # the time axis apart
        name = onnx_nodes.spikes_name(node.name)
        sides = (graph.time_steps, -1, *graph.shapes[node.name])
        builder.reshape(builder.value(node.name), f"{name}.shape", name, *sides)
    properties = onnx_metadata(model, lowered.equations, input_mode, source_sha256)
    return assemble(
        builder,
        [declared(builder, graph.input.name, input_shape(graph, input_mode))],
        [declared(builder, *entry) for entry in output_entries(graph, outputs)],
        f"Spiking network, {graph.time_steps} time steps inside; no state is kept.",
        properties | {"outputs": outputs} | _combined(graph, outputs),
    )


def declared(b: onnx_nodes.OnnxBuilder, name: str, shape: onnx_nodes.Sides) -> onnx.ValueInfoProto:
    """An input or output that is no state: scores are float32, what else a fixed-point network has
    are integers.
    """
    kind = TensorProto.FLOAT
    if b.graph.integers and name != onnx_nodes.OUTPUT:
        given = name == b.graph.input.name
        kind = integers.INPUT_TYPE if given else integers.VALUE_TYPE
    return b.declared(name, shape, kind)


def _combined(graph: SpikingGraph, outputs: onnx_nodes.Outputs) -> dict[str, str]:
    """What a caller makes of the scores of all steps, where the file yields these."""
    text = reduction.LOOPS[graph.readout.over_time].format(scores=onnx_nodes.OUTPUT)
    return {"combine": text} if outputs == "steps" else {}


def mode_of(model: Model, asked: onnx_nodes.InputMode | None) -> onnx_nodes.InputMode:
    """The input mode that was asked for, or the usual one. Raises UsageError for events that are to
    be static.
    """
    given = model.graph.input
    if asked == "static" and given.events is not None:
        raise errors.UsageError(
            f"input mode static; {given.name} takes events, which arrive step by step: give "
            "sequence, or a file of one step"
        )
    framed = given.events is not None or model.info.provenance.get("frames")
    return asked or ("sequence" if framed else "static")


def _require_known(input_mode: str, outputs: str) -> None:
    asked = (("input mode", input_mode, INPUT_MODES), ("outputs", outputs, OUTPUTS))
    for what, given, valid in asked:
        if given not in valid:
            raise errors.UsageError(f"{what} {given!r}; valid: {', '.join(valid)}")


def fitting(
    model: Model, opset: int, fixed_batch: int | None, *, functions: bool = False
) -> Deployed:
    """The lowered form, if the installed onnx knows the opset and one file holds them.

    Raises UsageError or LimitError.
    """
    require_opset(opset)
    if fixed_batch is not None and fixed_batch < 1:
        raise errors.UsageError(f"a fixed batch of {fixed_batch} given; it is 1 or more samples")
    lowered = lower(model)
    integers.require_form(model.graph, functions=functions)
    size = sum(s.weight.nbytes for s in lowered.synapses.values())
    if size > MAX_BYTES:
        raise errors.LimitError(
            f"{size} bytes of weights; one ONNX file holds at most {MAX_BYTES}. Remove channels "
            "first"
        )
    return lowered


def input_shape(graph: SpikingGraph, input_mode: onnx_nodes.InputMode) -> onnx_nodes.Sides:
    """The file's input shape with its named axes."""
    steps = (graph.time_steps,) if input_mode == "sequence" else ()
    return (*steps, onnx_nodes.BATCH, *graph.input.shape)


def output_entries(graph: SpikingGraph, outputs: onnx_nodes.Outputs) -> list[onnx_nodes.Entry]:
    """Names and shapes of a sequence file's outputs."""
    lead = (graph.time_steps,) if outputs == "steps" else ()
    sides: onnx_nodes.Sides = (*lead, onnx_nodes.BATCH, graph.readout.classes)
    entries: list[onnx_nodes.Entry] = [(onnx_nodes.OUTPUT, sides)]
    for node in graph.populations if outputs == "spikes" else ():
        shape: onnx_nodes.Sides = (graph.time_steps, onnx_nodes.BATCH, *graph.shapes[node.name])
        entries.append((onnx_nodes.spikes_name(node.name), shape))
    return entries


def assemble(
    b: onnx_nodes.OnnxBuilder,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    doc: str,
    properties: Mapping[str, str],
) -> onnx.ModelProto:
    """The model of what was built, between these inputs and outputs, checked.

    properties: its metadata_props.
    """
    drawn = helper.make_graph(
        b.nodes, "spiking_network", inputs, outputs, b.initializers, value_info=b.values
    )
    versions = {"": b.opset}
    versions |= {onnx_neuron.DOMAIN: onnx_neuron.DOMAIN_VERSION} if b.functions else {}
    opsets = [helper.make_opsetid(*item) for item in versions.items()]
    built = helper.make_model(
        drawn,
        functions=onnx_nodes.functions(b),
        opset_imports=opsets,
        ir_version=ir_version_for(opsets),
        producer_name="soul-deploy",
        producer_version=version("soul-deploy"),
        doc_string=doc,
    )
    form = {"opset": str(b.opset), "neurons_as": "functions" if b.functions else "operators"}
    form |= {} if b.batch is None else {"fixed_batch": str(b.batch)}
    helper.set_model_props(built, dict(sorted((form | dict(properties)).items())))
    onnx.checker.check_model(built, full_check=True)
    return built


def onnx_metadata(
    model: Model,
    equations: Mapping[str, Equation],
    input_mode: onnx_nodes.InputMode,
    source_sha256: str | None,
) -> dict[str, str]:
    """The file's metadata_props: strings, nested values as JSON."""
    graph, info = model.graph, model.info
    nested: dict[str, Any] = {
        "neurons": {name: neuron_facts(equation) for name, equation in equations.items()},
        "classes": list(info.classes),
        "normalization": None if info.normalization is None else asdict(info.normalization),
        "validity": asdict(model.validity),
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
        "input_events": "" if graph.input.events is None else graph.input.describe(),
        "stage": info.stage,
        "source_sha256": source_sha256 or "",
    }
    return text | {key: json.dumps(value, sort_keys=True) for key, value in nested.items()}


@dispatch.operation_table(Equation)
def _rule(equation: Equation) -> str:
    """How neurons fire, in words."""
    raise _rule.unknown(equation)


_rule.on(NeuronEquation)(
    lambda equation: "v > v_threshold" if equation.fire == "gt" else "v >= v_threshold"
)


_rule.on(FixedEquation)(
    lambda equation: f"fixed point: {'>' if equation.fire == 'gt' else '>='} threshold"
)


@_rule.on(ParallelEquation)
def _parallel_rule(equation: ParallelEquation) -> str:
    return f"psn: {'>' if equation.fire == 'gt' else '>='} 0"


@_rule.on(DynamicsEquation)
def _dynamics_rule(equation: DynamicsEquation) -> str:
    if equation.send in BINARY:
        return f"{equation.family}: {'>' if equation.send == 'gt' else '>='} threshold"
    ties = "even" if equation.send == "round" else "up"
    return f"{equation.family}: rounds to {equation.low}..{equation.high}, ties {ties}"


def export_onnx(
    model: Model,
    path: Path | str,
    *,
    opset: int = 18,
    input_mode: onnx_nodes.InputMode | None = None,
    outputs: onnx_nodes.Outputs = "logits",
    source_sha256: str | None = None,
    functions: bool = False,
    fixed_batch: int | None = None,
) -> onnx.ModelProto:
    """Write `build_onnx`'s model to `path` atomically and return it.

    Raises what `build_onnx` raises, and OSError if the file cannot be written.
    """
    built = build_onnx(
        model,
        opset=opset,
        input_mode=input_mode,
        outputs=outputs,
        source_sha256=source_sha256,
        functions=functions,
        fixed_batch=fixed_batch,
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
