"""How a convolution is spelled, so that the engines that others use compute the same."""

from typing import TYPE_CHECKING

import numpy as np

from soul_deploy import ir

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder


def pads(padding: ir.Pair) -> list[int]:
    return [*padding, *padding]


def append_convolution(
    node: ir.Convolution, b: "OnnxBuilder", synapses: list[str], ends: tuple[str, str], name: str
) -> None:
    """Append a `Conv` with the initializers `synapses`, and what some engines need around it.

    ends: the tensors that it takes and gives. name: in front of those between.

    OpenVINO 2026.4 and OpenCV 5 misread padding around a kernel of one point: its points are picked
    from the padded map before. OpenVINO adds membranes wrongly to one row that comes from one
    channel: a second row is computed and left out. Files that call functions are as 0.1.0 wrote
    them.
    """
    (source, output), shapes = ends, b.graph.shapes
    stride, sides = node.stride, pads(node.padding)
    one_row = shapes[node.inputs[0]][0] == shapes[node.name][1] == 1 and not b.functions
    if node.kernel == (1, 1) and any(sides) and not b.functions:
        source, stride, sides = _picked(node, b, source, name), (1, 1), [0] * 4
    sides[2] += stride[0] * one_row
    window = {"kernel_shape": node.kernel, "strides": stride, "dilations": node.dilation}
    rows = f"{name}.rows" if one_row else output
    b.op("Conv", [source, *synapses], rows, **window, pads=sides, group=node.groups)
    if one_row:
        first = [b.integers(f"{name}.{part}", at) for part, at in FIRST_ROW.items()]
        b.op("Slice", [rows, *first], output)


FIRST_ROW = {"first_row": 0, "end_row": 1, "row_axis": 2}


def _picked(node: ir.Convolution, b: "OnnxBuilder", source: str, name: str) -> str:
    """Every stride-th point of the padded map."""
    far = np.iinfo(np.int64).max
    around = b.integers(f"{name}.pads", *(0, 0, *node.padding) * 2)
    padded = b.op("Pad", [source, around], f"{name}.padded")
    ranges = {"begin": (0, 0), "end": (far, far), "axes": (2, 3), "step": node.stride}
    parts = [b.integers(f"{name}.{part}", *values) for part, values in ranges.items()]
    return b.op("Slice", [padded, *parts], f"{name}.picked")
