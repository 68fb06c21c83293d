"""What an ONNX file's metadata say, against the model and against the file itself."""

import json
from collections.abc import Iterator

from onnx import ModelProto

from soul_deploy.base import pixel_rule
from soul_deploy.export.onnx import model as onnx_model
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.verify import event
from soul_deploy.lowering import deploy
from soul_deploy.model.model import Model

RECORDED = frozenset(
    (
        *("format", "opset", "neurons_as", "fixed_batch", "versions"),
        *("stage", "provenance", "source_sha256"),
        *("time_steps", "input_shape", "input_kind", "input_mode", "outputs", "static_input"),
    )
)
"""Metadata that say how a file was made, or that are compared by themselves."""


def properties(file: ModelProto) -> dict[str, str]:
    """The file's metadata_props."""
    return {entry.key: entry.value for entry in file.metadata_props}


def metadata_problems(
    reference: Model, file: ModelProto, source_sha256: str | None
) -> Iterator[str]:
    """Of a file with the exporter's metadata."""
    found = properties(file)
    if "format" not in found:
        return
    yield from event.source_problems(found.get("source_sha256"), source_sha256)
    shape = json.dumps(list(reference.graph.input.shape))
    expected = {"time_steps": str(reference.graph.time_steps), "input_shape": shape}
    for key, value in expected.items():
        if found.get(key) != value:
            yield f"metadata {key} is {found.get(key)!r}, the graph says {value!r}"
    kind = found.get("input_kind", pixel_rule.KIND_OF_OLD_FILES)
    if kind != reference.info.input_kind:
        yield f"metadata input_kind is {kind!r}, the model says {reference.info.input_kind!r}"


def caller_problems(
    reference: Model, expected: ModelProto, file: ModelProto, mode: onnx_nodes.InputMode
) -> Iterator[str]:
    """What callers read: class names, normalisation, validity, decoding, …; expected: the file as
    the exporter writes it, empty where it cannot.
    """
    found, equations = properties(file), deploy.lower(reference).equations
    if "format" not in found:
        return
    ours = onnx_model.onnx_metadata(reference, equations, mode, None) | properties(expected)
    keys = ours.keys() - RECORDED
    if found["format"] != onnx_model.FORMAT:  # it may lack keys, and its neurons fields, of today
        keys = (keys & found.keys()) - {"neurons"}
    for key in sorted(keys):
        if found.get(key) != ours[key]:
            yield f"metadata {key} is {found.get(key)!r}, the model says {ours[key]!r}"
