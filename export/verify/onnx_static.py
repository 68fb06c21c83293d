"""An ONNX file against the graph it should come from: what it takes and yields, and its structure.

Numbers and nodes are found by the names that the exporter gives them. A file in which these names
are others (simplified, inlined or converted by another tool) cannot be compared so: its structure
is *not comparable*, and running it decides.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from soul_deploy.base import Array, errors
from soul_deploy.export.onnx import channelwise, integers, opsets
from soul_deploy.export.onnx import model as onnx_model
from soul_deploy.export.onnx import neuron as onnx_neuron
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.onnx import step as onnx_step
from soul_deploy.export.verify import event, onnx_told
from soul_deploy.lowering import deploy
from soul_deploy.model.model import Model

Values = Sequence[onnx.ValueInfoProto]


@dataclass(frozen=True)
class Interface:
    """What a file takes and yields.

    inputs, outputs: the file's names of them, in the exporter's order. batch: samples of each call;
    None: any number.
    """

    mode: onnx_nodes.InputMode
    yields: onnx_nodes.Outputs
    static_input: onnx_step.StaticInput
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    batch: int | None = None

    @property
    def takes_frames(self) -> bool:
        """Whether the file can be shown another frame at every step."""
        return self.mode == "sequence" or (self.mode == "step" and self.static_input == "image")


@dataclass(frozen=True)
class StaticCheck:
    """What differs from the graph; incomparable: why the structure cannot be compared, if so."""

    problems: tuple[str, ...]
    incomparable: tuple[str, ...] = ()


def entries_of(
    model: Model, form: Interface
) -> tuple[list[onnx_nodes.Entry], list[onnx_nodes.Entry]]:
    """Names and shapes of what a file of this form takes and yields."""
    if form.mode == "step":
        return onnx_step.step_inputs(model, form.static_input), onnx_step.step_outputs(model)
    taken = (model.graph.input.name, onnx_model.input_shape(model.graph, form.mode))
    return [taken], onnx_model.output_entries(model.graph, form.yields)


def forms(model: Model) -> Iterator[Interface]:
    """All forms of files that the exporter writes of `model`."""
    for mode in onnx_model.INPUT_MODES:
        for outputs in onnx_model.OUTPUTS:
            yield Interface(mode, outputs, "image")
    yield Interface("step", "logits", "image")
    if model.graph.input.name not in onnx_step.currents_of(model.graph):
        yield Interface("step", "logits", "current")


def interface_of(file: ModelProto, model: Model) -> Interface:
    """What the file takes and yields: by names and shapes, or by order and shapes if renamed.

    Raises FileFormatError for a file that takes or yields anything else than those that the
    exporter writes of `model`.
    """
    found = _interface(file, model)
    if found is None:
        declared = [[(v.name, _sides(v)) for v in kind] for kind in _ends(file)]
        form = _written_form(file, model)
        expected = entries_of(model, form)
        raise errors.FileFormatError(
            f"the file takes {declared[0]} and yields {declared[1]}; a file of this model should "
            f"take {expected[0]} and yield {expected[1]}"
        )
    return found


def _ends(file: ModelProto) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs; old files of other tools list initializers as inputs too."""
    stored = {tensor.name for tensor in file.graph.initializer}
    return [v for v in file.graph.input if v.name not in stored], list(file.graph.output)


def _written_form(file: ModelProto, model: Model) -> Interface:
    """The form that the metadata say, as far as they do, else the exporter's default."""
    said = onnx_told.properties(file)
    possible = list(forms(model))
    likely = (
        form
        for form in possible
        if form.mode == said.get("input_mode")
        and form.yields == said.get("outputs", "logits")
        and form.static_input == said.get("static_input", "image")
    )
    return next(likely, possible[0])


def _interface(file: ModelProto, model: Model) -> Interface | None:
    for by_name in (True, False):
        for form in forms(model):
            found = _fitted(file, model, form, by_name)
            if found is not None:
                return found
    return None


def _fitted(file: ModelProto, model: Model, form: Interface, by_name: bool) -> Interface | None:
    """The form with the file's names and batch, if the file is of this form."""
    batches: set[int | str] = set()
    ours = {name for entries in entries_of(model, form) for name, _ in entries}
    for number, (values, entries) in enumerate(
        zip(_ends(file), entries_of(model, form), strict=True)
    ):
        if len(values) != len(entries):
            return None
        for value, (name, shape) in zip(values, entries, strict=True):
            sides = _sides(value)
            if value.name != name and (by_name or value.name in ours):
                return None
            if len(sides) != len(shape):
                return None
            pairs = list(zip(sides, shape, strict=True))
            if any(side != wanted for side, wanted in pairs if wanted != onnx_nodes.BATCH):
                return None
            if not number:  # tools name the batch of outputs as they like
                batches |= {side for side, wanted in pairs if wanted == onnx_nodes.BATCH}
    if len(batches) != 1:
        return None
    (batch,) = batches
    taken, yielded = (tuple(value.name for value in values) for values in _ends(file))
    fixed = batch if isinstance(batch, int) and batch > 0 else None
    return Interface(form.mode, form.yields, form.static_input, taken, yielded, fixed)


def _sides(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_param or side.dim_value for side in sides)


def check_static(
    reference: Model, file: ModelProto, source_sha256: str | None = None
) -> StaticCheck:
    """Every difference between the file and the graph, in words.

    source_sha256: digest of the reference's file, if known. Raises FileFormatError for a file of a
    format that this version does not know.
    """
    said = onnx_told.properties(file)
    if said.get("format", onnx_model.FORMAT) not in onnx_model.FORMATS:
        raise errors.FileFormatError(
            f"an ONNX file of format {said['format']!r}; this version of soul-deploy knows "
            f"{', '.join(onnx_model.FORMATS)}. Install a newer one"
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in file.graph.initializer):
        raise errors.FileFormatError(
            "the numbers of this ONNX file lie in other files; write it as one file to verify it"
        )
    problems = list(onnx_told.metadata_problems(reference, file, source_sha256))
    try:
        form = interface_of(file, reference)
    except errors.FileFormatError as error:
        return StaticCheck((*problems, str(error)))
    problems += _form_problems(file, form)
    known = opsets.opset_of(file) in opsets.OPSETS
    expected = _emitted(reference, file, form) if known else ModelProto()
    problems += onnx_told.caller_problems(reference, expected, file, form.mode)
    foreign = tuple(_foreign(file, expected, entries_of(reference, form)))
    if foreign:
        return StaticCheck(tuple(problems), (*_other_numbers(expected, file), *foreign))
    problems += _array_problems(reference, file, form)
    problems += _neuron_problems(reference, file, form)
    problems += _declared_problems(reference, expected, file, form)
    differing = () if problems else tuple(_structure_problems(expected, file))
    opset = opsets.opset_of(file)
    if differing and said.get("opset", str(opset)) != str(opset):
        return StaticCheck((), (f"converted from opset {said['opset']} to {opset}", *differing))
    return StaticCheck((*problems, *differing))


def _emitted(reference: Model, file: ModelProto, form: Interface) -> ModelProto:
    """What the exporter writes in the file's form."""
    how: Any = {"opset": opsets.opset_of(file), "fixed_batch": form.batch}
    how["functions"] = bool(file.functions)
    if form.mode == "step":
        return onnx_step.build_step(reference, static_input=form.static_input, **how)
    return onnx_model.build_onnx(reference, input_mode=form.mode, outputs=form.yields, **how)


def _form_problems(file: ModelProto, form: Interface) -> Iterator[str]:
    """Where the metadata say another form than the file has."""
    said = onnx_told.properties(file)
    has = {"input_mode": form.mode, "outputs": form.yields, "static_input": form.static_input}
    for key, value in has.items():
        if said.get(key, value) != value:
            yield f"metadata {key} is {said[key]!r}, the file's is {value!r}"


def _foreign(
    file: ModelProto, expected: ModelProto, ends: tuple[list[onnx_nodes.Entry], ...]
) -> Iterator[str]:
    """How names are not those that the exporter gives: its numbers cannot be found by them.

    ends: what the exporter's file takes, and what it yields.
    """
    for values, entries in zip(_ends(file), ends, strict=True):
        for value, (name, _) in zip(values, entries, strict=True):
            if value.name != name:
                yield f"{name!r} is called {value.name!r}"
    if "format" not in onnx_told.properties(file):
        yield "the file has no metadata of soul-deploy"
    if not expected.graph.node:
        known = f"{opsets.OPSETS[0]} to {opsets.OPSETS[-1]}"
        yield f"opset {opsets.opset_of(file)}; those that soul-deploy writes are {known}"
        return
    if file.graph.sparse_initializer:
        yield "sparse initializers"
    for kind, ours, theirs in _parts(expected, file):
        wanted, named = (Counter(item.name for item in items) for items in (ours, theirs))
        for name in sorted((wanted - named) | (named - wanted)):
            yield f"{kind} {name!r}: {'missing' if wanted[name] else 'not in the graph'}"


def _other_numbers(expected: ModelProto, file: ModelProto) -> Iterator[str]:
    """Of a foreign file: what has kept its name, but holds something else."""
    ours = {tensor.name: tensor for tensor in expected.graph.initializer}
    for tensor in file.graph.initializer:
        if tensor.name in ours and not _same(ours[tensor.name], tensor):
            yield f"initializer {tensor.name!r} holds other numbers"


def _parts(expected: ModelProto, file: ModelProto) -> Iterator[tuple[str, Any, Any]]:
    for kind in ("node", "initializer"):
        yield kind, getattr(expected.graph, kind), getattr(file.graph, kind)
    yield "function", expected.functions, file.functions


def _array_problems(reference: Model, file: ModelProto, form: Interface) -> Iterator[str]:
    """Weights, biases, masks, patterns and neurons' constants against what the model holds."""
    stored = {tensor.name: tensor for tensor in file.graph.initializer}
    absent = reference.graph.static if form.static_input == "current" else ()
    differ = "values differ from the folded weights"
    for name, expected in _expected_arrays(reference, absent):
        array = numpy_helper.to_array(stored[name]) if name in stored else None
        yield from event.array_problems(name, array, expected, differ)
    if not file.functions:
        for population, equation in deploy.lower(reference).equations.items():
            for constant, value in onnx_neuron.attributes(equation).items():
                name = onnx_neuron.constant_name(population, constant)
                number = numpy_helper.to_array(stored[name])
                if isinstance(value, np.ndarray):
                    wanted = onnx_neuron.stored(value, reference.graph.neurons_shape(population))
                    yield from event.array_problems(name, number, wanted)
                elif number.tolist() != [float(np.float32(value))]:
                    yield f"{name} is {number.tolist()}, the graph says {value}"


def _expected_arrays(
    reference: Model, absent: tuple[str, ...]
) -> Iterator[tuple[str, Array | None]]:
    for node, synapses in deploy.lower(reference).synapses.items():
        yield onnx_nodes.weight_name(node), None if node in absent else synapses.weight
        yield onnx_nodes.bias_name(node), None if node in absent else synapses.bias
    for node, constants in deploy.lower(reference).constants.items():
        there = node not in absent
        for name, values in channelwise.stored(reference.graph[node], constants, reference.graph):
            yield name, values if there else None
    for projection in reference.graph.projections if reference.graph.integers else ():
        for name, values in integers.stored(deploy.lower(reference), projection):
            yield name, None if projection.name in absent else values
    patterns = deploy.lower(reference).patterns
    for population in reference.graph.populations:
        name, pattern = population.name, patterns.get(population.name)
        mask = reference.neuron_masks.get(name)
        dtype = np.int32 if reference.graph.integers else np.float32
        yield onnx_nodes.mask_name(name), None if mask is None else mask.astype(dtype)
        if pattern is not None:
            sides = [1] * (len(reference.graph.shapes[name]) - 1)
            pattern = pattern.astype(dtype).reshape(len(pattern), 1, -1, *sides)
        yield onnx_nodes.pattern_name(name), pattern


def _neuron_problems(reference: Model, file: ModelProto, form: Interface) -> Iterator[str]:
    """Where functions are called: each with its equation's, and the model's numbers."""
    equations = deploy.lower(reference).equations
    calls: dict[str, list[NodeProto]] = {name: [] for name in equations}
    for node in file.graph.node:
        owner = node.output[0].rsplit(".spike.", 1)[0]
        if node.domain == onnx_neuron.DOMAIN and owner in calls:
            calls[owner].append(node)
    for name, equation in equations.items() if file.functions else ():
        expected = (onnx_neuron.function_name(equation), _rounded(onnx_neuron.attributes(equation)))
        for node in calls[name]:
            constants = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if (node.op_type, _rounded(constants)) != expected:
                yield f"{node.name}: {node.op_type} {constants}, the graph says {expected}"


def _declared_problems(
    reference: Model, expected: ModelProto, file: ModelProto, form: Interface
) -> Iterator[str]:
    """Types and sides that the file declares of populations' spikes, where it does.

    Sides that a tool has named otherwise are no difference.
    """
    nodes = (node.name for node in reference.graph.populations)
    names = {onnx_nodes.value_name(reference.graph, name, form.mode) for name in nodes}
    ours = {value.name: value for value in expected.graph.value_info if value.name in names}
    for value in file.graph.value_info:
        if value.name not in ours:
            continue
        (kind, sides), (wanted, shape) = map(_declaration, (value, ours[value.name]))
        pairs = zip(sides, shape, strict=False)
        fixed = all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
        if kind != wanted or not fixed or (sides and len(sides) != len(shape)):
            told = f"{wanted} {list(shape)}"
            yield f"value {value.name!r} is declared as {kind} {list(sides)}, the graph says {told}"


def _declaration(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | str, ...]]:
    kind = value.type.tensor_type.elem_type
    return onnx.TensorProto.DataType.Name(kind).lower(), _sides(value)


def _rounded(constants: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(np.float32(constants[name])) for name in sorted(constants)}


def _structure_problems(expected: ModelProto, file: ModelProto) -> Iterator[str]:
    """Every node, constant and function against the graph emitted anew."""
    for kind, ours, theirs in _parts(expected, file):
        wanted = {item.name: item for item in ours}
        for item in theirs:
            if not _same(wanted[item.name], item):
                yield f"{kind} {item.name!r} is not what the graph says"


def _same(ours: Any, theirs: Any) -> bool:
    """Comments apart, which tools drop and add, and however a tensor's numbers are written."""
    if isinstance(ours, onnx.TensorProto):
        a, b = numpy_helper.to_array(ours), numpy_helper.to_array(theirs)
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return bool(_plain(ours) == _plain(theirs))


def _plain(item: Any) -> Any:
    """A node or function without comments, attributes by name."""
    copied = type(item)()
    copied.CopyFrom(item)
    for comment in ("metadata_props", "doc_string"):
        copied.ClearField(comment)
    if isinstance(item, NodeProto):
        copied.ClearField("attribute")
        copied.attribute.extend(sorted(item.attribute, key=lambda a: a.name))
    return copied
