"""A trained network as an ONNX file of one time step, for streams: state goes in and comes out.

ONNX is stateless, so the membranes are named pairs of tensors, `v_<n>_in` and `v_<n>_out` for the
n-th population (and `<name>_<n>_in`, … for each further state variable, and `spikes_<n>_in`, … for
the last spikes of a population with a feedback), which the caller feeds back; at first they are at
rest. Where something depends on which step it is, so is the counter
`t_in`, `t_out`, and a step beyond T is an error of the runtime.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto

from soul_deploy.base import reduction
from soul_deploy.base.errors import UnsupportedGraphError, UsageError
from soul_deploy.export.onnx import model as onnx_model
from soul_deploy.export.onnx import nodes
from soul_deploy.ir import Shape, SpikingGraph
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model

StaticInput = Literal["image", "current"]
STATIC_INPUTS: tuple[StaticInput, ...] = ("image", "current")
COUNTER_IN, COUNTER_OUT = "t_in", "t_out"
SPIKES = "spikes"
CURRENTS = "currents"  # the input_mode of the file that computes them
LOOP = (
    "call once per step, each state's output of one step as its input of the next; at first states "
    "hold their initial value and the counter 0; "
)


@dataclass(frozen=True)
class State:
    """One state variable of a population: tensors (batch, *shape), `initial` everywhere at first.

    The membrane is the first of a population's.
    """

    population: str
    input: str
    output: str
    shape: Shape
    initial: float


def states_of(model: Model) -> tuple[State, ...]:
    """The states in execution order: `v_<n>` is the membrane of the n-th population, `spikes_<n>`,
    the last of those that it has, the spikes that it feeds back.
    """
    equations, shapes = lower(model).equations, model.graph.shapes
    for name, equation in equations.items():
        if equation.whole:
            raise UnsupportedGraphError(
                f"{name}: its neurons mix all steps, so that there is no file of one step; export "
                "a file of all steps (--input_mode static or sequence)"
            )
    states = []
    for n, p in enumerate(model.graph.populations):
        equation = equations[p.name]
        for name, initial in zip(("v", *equation.state[1:]), equation.start, strict=True):
            ends = f"{name}_{n}_in", f"{name}_{n}_out"
            states.append(State(p.name, *ends, shapes[p.inputs[0]], initial))
        if p.feedback is not None:
            ends = f"{SPIKES}_{n}_in", f"{SPIKES}_{n}_out"
            states.append(State(p.name, *ends, shapes[p.name], 0.0))
    return (*states, *_states_of_readout(model))


def _states_of_readout(model: Model) -> Iterator[State]:
    """Of the neurons behind the head, `readout_v_in` and `readout_v_out` and so on."""
    equation, node = lower(model).membrane, model.graph.readout
    if equation is not None:
        for name, initial in zip(("v", *equation.state[1:]), equation.start, strict=True):
            ends = f"readout_{name}_in", f"readout_{name}_out"
            yield State(node.neurons_name, *ends, (node.classes,), initial)


def currents_of(graph: SpikingGraph) -> tuple[str, ...]:
    """The static currents: what a static image determines and the rest of the network reads."""
    still = graph.static
    return tuple(name for name in still if any(user not in still for user in graph.consumers[name]))


def build_step(
    model: Model,
    *,
    opset: int = 18,
    static_input: StaticInput = "image",
    source_sha256: str | None = None,
    functions: bool = False,
    fixed_batch: int | None = None,
) -> onnx.ModelProto:
    """The ONNX model of one time step; the same input gives the same bytes.

    Input `input`, (batch, C, H, W), normalised by the caller: this step's frame, or a static image
    given again. With `static_input` "current", the static currents that `build_currents` computes
    take its place and the layers before them are not in the file.
    Output `logits`, (batch, classes): the scores of this step alone. States: see `states_of`.
    Raises what `build_onnx` raises.
    """
    if static_input not in STATIC_INPUTS:
        raise UsageError(f"static input {static_input!r}; valid: {', '.join(STATIC_INPUTS)}")
    graph = model.graph
    if static_input == "current":
        _require_currents(graph)
    builder = _builder(model, opset, functions, fixed_batch)
    inputs = graph.static if static_input == "current" else (graph.input.name,)
    for node in graph.nodes:
        if node.name not in inputs:
            nodes.emit(builder, node)
    if builder.counter:
        _count(builder, graph.time_steps)
    properties = onnx_model.onnx_metadata(model, builder.lowered.equations, "step", source_sha256)
    return onnx_model.assemble(
        builder,
        [_declared(builder, *entry) for entry in step_inputs(model, static_input)],
        [_declared(builder, *entry) for entry in step_outputs(model)],
        "Spiking network, one time step; its state goes in and comes out.",
        properties | _description(model, static_input),
    )


def build_currents(
    model: Model,
    *,
    opset: int = 18,
    source_sha256: str | None = None,
    fixed_batch: int | None = None,
) -> onnx.ModelProto:
    """The ONNX model that computes the static currents once per image.

    Input `input` (batch, C, H, W); outputs are the inputs of the step file of the same names.
    Raises what `build_onnx` raises.
    """
    graph = model.graph
    _require_currents(graph)
    builder = _builder(model, opset, False, fixed_batch)
    for name in graph.static[1:]:
        nodes.emit(builder, graph[name])
    properties = onnx_model.onnx_metadata(model, {}, "step", source_sha256)
    return onnx_model.assemble(
        builder,
        [onnx_model.declared(builder, graph.input.name, onnx_model.input_shape(graph, "step"))],
        [_declared(builder, *entry) for entry in _entries(graph, currents_of(graph))],
        "What a static image determines once: the currents that every step takes.",
        properties | {"input_mode": CURRENTS},
    )


def _require_currents(graph: SpikingGraph) -> None:
    if graph.input.events is not None:
        raise UsageError(
            f"static input current; {graph.input.name} takes events, which arrive step by step: "
            "give static input image"
        )
    if graph.input.name in currents_of(graph):
        raise UsageError(
            "neurons of this network read the image itself, so that there is no current to compute "
            "once; give static input image"
        )


def _builder(
    model: Model, opset: int, functions: bool, fixed_batch: int | None
) -> nodes.OnnxBuilder:
    states = states_of(model)
    return nodes.OnnxBuilder(
        model.graph.with_time_steps(1),
        onnx_model.fitting(model, opset, fixed_batch, functions=functions),
        opset,
        input_mode="step",
        membranes={
            name: [(s.input, s.output) for s in states if s.population == name]
            for name in dict.fromkeys(state.population for state in states)
        },
        counter=COUNTER_IN if model.for_one_t else "",
        functions=functions,
        batch=fixed_batch,
    )


def _entries(graph: SpikingGraph, names: tuple[str, ...]) -> list[nodes.Entry]:
    """The values of nodes as tensors of the step file."""
    shapes: dict[str, nodes.Sides] = {name: (nodes.BATCH, *graph.shapes[name]) for name in names}
    return [(nodes.value_name(graph, name, "step"), shape) for name, shape in shapes.items()]


def step_inputs(model: Model, static_input: StaticInput) -> list[nodes.Entry]:
    """The step file's inputs, name and shape with its named axis: frame or currents, states."""
    graph = model.graph
    inputs = currents_of(graph) if static_input == "current" else (graph.input.name,)
    entries = _entries(graph, inputs)
    entries += [(state.input, (nodes.BATCH, *state.shape)) for state in states_of(model)]
    return entries + ([(COUNTER_IN, (1,))] if model.for_one_t else [])


def step_outputs(model: Model) -> list[nodes.Entry]:
    """The step file's outputs: this step's scores, then the states."""
    entries: list[nodes.Entry] = [(nodes.OUTPUT, (nodes.BATCH, model.graph.readout.classes))]
    entries += [(state.output, (nodes.BATCH, *state.shape)) for state in states_of(model)]
    return entries + ([(COUNTER_OUT, (1,))] if model.for_one_t else [])


def _declared(b: nodes.OnnxBuilder, name: str, shape: nodes.Sides) -> ValueInfoProto:
    if name in (COUNTER_IN, COUNTER_OUT):
        return b.declared(name, shape, TensorProto.INT64)
    return onnx_model.declared(b, name, shape)


def _count(b: nodes.OnnxBuilder, time_steps: int) -> None:
    """t + 1, by way of a table of T entries: a step beyond T finds none and is an error."""
    table = b.constant("t.one_per_step", np.ones(time_steps, np.int64))
    b.op("Add", [COUNTER_IN, b.op("Gather", [table, COUNTER_IN], "t.one", axis=0)], COUNTER_OUT)


def _description(model: Model, static_input: StaticInput) -> dict[str, str]:
    """Metadata for the caller's loop over steps."""
    pairs: list[dict[str, Any]] = [asdict(state) for state in states_of(model)]
    counter = {"input": COUNTER_IN, "output": COUNTER_OUT, "initial": 0}
    return {
        "mode": "step",
        "static_input": static_input,
        "states": json.dumps(pairs, sort_keys=True),
        "counter": json.dumps(counter if model.for_one_t else None, sort_keys=True),
        "loop": LOOP + reduction.LOOPS[model.graph.readout.over_time].format(scores=nodes.OUTPUT),
    }


def export_step(
    model: Model,
    path: Path,
    *,
    opset: int = 18,
    static_input: StaticInput = "image",
    source_sha256: str | None = None,
    functions: bool = False,
    fixed_batch: int | None = None,
) -> None:
    """Write `build_step`'s model to `path` atomically. Raises what it raises, and OSError."""
    form: Any = {"functions": functions, "fixed_batch": fixed_batch, "opset": opset}
    built = build_step(model, static_input=static_input, source_sha256=source_sha256, **form)
    onnx_model.write_onnx(path, built)


def export_currents(
    model: Model,
    path: Path,
    *,
    opset: int = 18,
    source_sha256: str | None = None,
    fixed_batch: int | None = None,
) -> None:
    """Write `build_currents`' model to `path` atomically. Raises what it raises, and OSError."""
    form: Any = {"source_sha256": source_sha256, "fixed_batch": fixed_batch}
    onnx_model.write_onnx(path, build_currents(model, opset=opset, **form))
