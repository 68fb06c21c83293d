"""The contents of an ONNX file as JSON data; `soul-deploy inspect` imports this by dotted name."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from soul_deploy.base import errors, files, json_text, memory
from soul_deploy.base.file_kinds import reads
from soul_deploy.export.onnx import opsets

MESSAGE_BYTES = 400  # of a node, a value or the like: in Python's parser, and in the checker's
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types


@reads("onnx")
def read_onnx(file: files.File, *, max_memory: int | None = None) -> ModelProto:
    """The model in a file, checked.

    max_memory: bytes that its structure may take; None: DESCRIPTION_BYTES. Raises
    MissingFileError, FileFormatError, LimitError.
    """
    path = files.path_of(file)
    try:
        with files.opened(file) as source:
            require_structure(source, max_memory)
            source.stream.seek(0)
            model = onnx.load(source.stream, load_external_data=False)
        opsets.require_readable(model, path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise errors.FileFormatError(
            f"{path} is not an intact ONNX file ({first}); it may be truncated or of another format"
        ) from error
    return model


def describe_onnx(file: files.File, *, max_memory: int | None = None) -> dict[str, Any]:
    """Opsets, inputs and outputs, operators, weights and metadata of an ONNX file.

    max_memory: as in `read_onnx`. Raises MissingFileError, FileFormatError, LimitError.
    """
    model, path = read_onnx(file, max_memory=max_memory), files.path_of(file)
    try:
        contents = _contents(model)
        json.dumps(contents)  # names that are no text come out as bytes
        return contents
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        text = f"{path}: an ONNX file that cannot be read ({error!r})"
        raise errors.FileFormatError(text) from error


def _contents(model: ModelProto) -> dict[str, Any]:
    graph = model.graph
    operators = Counter(_operator(node.domain, node.op_type) for node in graph.node)
    arrays = [tensor for tensor in graph.initializer if tensor.data_location != 1]
    return {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value(value) for value in graph.input],
        "outputs": [_value(value) for value in graph.output],
        "nodes": len(graph.node),
        "operators": dict(sorted(operators.items())),
        "functions": [function.name for function in model.functions],
        "initializers": len(graph.initializer),
        "external_data": len(arrays) != len(graph.initializer),
        **_weights(arrays),
        "metadata": {entry.key: _parsed(entry.value) for entry in model.metadata_props},
    }


def _operator(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name


def _value(value: ValueInfoProto) -> dict[str, Any]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":  # sequence, map, ...; other tools write them
        return {"name": value.name, "dtype": str(kind).removesuffix("_type"), "shape": []}
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        "shape": [
            side.dim_param or (side.dim_value if side.HasField("dim_value") else None)
            for side in tensor.shape.dim
        ],
    }


def _weights(arrays: list[TensorProto]) -> dict[str, int]:
    """Floating-point values stored, and how many are not 0."""
    floats = [a for a in map(numpy_helper.to_array, arrays) if a.dtype.kind == "f"]
    return {
        "parameters": sum(array.size for array in floats),
        "nonzeros": sum(int((array != 0).sum()) for array in floats),
    }


def _parsed(text: str) -> Any:
    """A metadata value: a nested value or null where it is JSON, else the text."""
    if not text.startswith(("{", "[", "null")):
        return text
    try:
        return files.parse_json(text, "its metadata")
    except errors.FileFormatError:
        return text


def require_structure(source: files.OpenFile, max_memory: int | None = None) -> None:
    """Raise LimitError if nodes, attributes, values and so on take more than `max_memory` bytes.

    None: DESCRIPTION_BYTES. What is no ONNX file is left to the parser.
    """
    allowed = json_text.DESCRIPTION_BYTES if max_memory is None else max_memory
    most = allowed // MESSAGE_BYTES
    for count, _ in enumerate(_messages(source.data.data), 1):
        if count > most:
            raise errors.LimitError(
                f"{source} has more than {most:,} nodes, values and other parts, which need more "
                f"than {allowed:,} bytes of memory. {memory.RAISE_IT}"
            )


def _messages(data: memoryview) -> Iterator[None]:
    """One for every field that is a message, at any depth; ends where the bytes are none."""
    pending: list[tuple[int, int, Any]] = [(0, len(data), ModelProto.DESCRIPTOR)]
    while pending:
        at, end, kind = pending.pop()
        while at < end:
            key, at = _varint(data, at, end)
            if key & 7 == LENGTH:
                length, at = _varint(data, at, end)
                field = kind.fields_by_number.get(key >> 3)
                if field is not None and field.message_type is not None and at + length <= end:
                    pending.append((at, at + length, field.message_type))
                    yield None
                at += length
            elif key & 7 == VARINT:
                _, at = _varint(data, at, end)
            elif key & 7 in (FIXED64, FIXED32):
                at += 8 if key & 7 == FIXED64 else 4
            else:
                break


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next field does; `end` if it is none."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    return 0, end
