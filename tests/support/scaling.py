"""One operation more, from the first line to the last: values times a number.

What a new operation takes: its class, a place in OPS, and the entries that
test_operation_tables.py names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from soul_deploy.analysis.connectivity import reach
from soul_deploy.base.dispatch import OperationTable, tables_over
from soul_deploy.export.c.layers import write_layer
from soul_deploy.export.c.ordered import value_of
from soul_deploy.export.event.build import layer_maker
from soul_deploy.export.nir import write as nir_write
from soul_deploy.export.onnx import nodes as onnx_nodes
from soul_deploy.export.verify.event import stored_as
from soul_deploy.ir import OPS, Edge, Node, Shape
from soul_deploy.ir.neurons import ANALOG
from soul_deploy.lowering.bounds import bound_of
from soul_deploy.lowering.compose_currents import as_projection, compose_ahead
from soul_deploy.lowering.deploy import counted_as
from soul_deploy.lowering.fan_out import targets_of
from soul_deploy.lowering.linear_operators import compose_behind
from soul_deploy.lowering.liveness import can_hold, needed_inputs
from soul_deploy.nn.graph_module import compute
from soul_deploy.nn.operations import modules_of, unweighed
from soul_deploy.prune.removal.planner import known_of
from soul_deploy.quantization.structure import kept_as


@dataclass(frozen=True)
class Share(Node):
    """Its input times 1 / parts; composed into the projection behind it."""

    op: ClassVar[str] = "share"
    composable: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    parts: int

    def output_shape(self, inputs: Sequence[Shape]) -> Shape:
        return inputs[0]

    def output_edge(self, inputs: Sequence[Edge]) -> Edge:
        return ANALOG

    def denominator(self, in_shape: Shape) -> int:
        return self.parts


def _composed(node: Share, operator: Any, in_shape: Shape, name: str, *_: Any) -> Any:
    return replace(operator, weight=operator.weight / np.float32(node.parts))


def _onnx(node: Share, b: onnx_nodes.OnnxBuilder) -> None:
    factor = b.constant(f"{node.name}.factor", np.array(1 / node.parts, np.float32))
    b.op("Mul", [b.source(node), factor], b.value(node.name))


def _nir(node: Share, w: Any) -> None:
    w.put(node, w.nir.Scale(np.full(w.shape(node), 1 / node.parts, np.float32)))


def _image_by_image(node: Share, module: Any, inputs: list[Any], observe: object) -> Any:
    return replace(inputs[0], tensor=unweighed(node, inputs[0].tensor))


ENTRIES: tuple[tuple[OperationTable[Any], Callable[..., Any]], ...] = (
    (modules_of, lambda node, graph: ()),
    (compute, _image_by_image),
    (unweighed, lambda node, x: x / node.parts),
    (compose_behind, _composed),
    (compose_ahead, lambda *_: None),
    (as_projection, lambda *_: None),
    (needed_inputs, lambda node, walk: walk.read[node.name]),
    (can_hold, lambda node, inputs: None),
    (targets_of, lambda node, graph, neuron_masks: None),
    (reach, lambda node, walk: walk.before(node)),
    (known_of, lambda node, plan: plan.known[node.inputs[0]].averaged()),
    (counted_as, lambda node, lowered: None),
    (layer_maker, lambda node, graph: None),
    (stored_as, lambda node: (None, ())),
    (onnx_nodes.append_onnx, _onnx),
    (nir_write.append_nir, _nir),
    (bound_of, lambda node, lowered, found: None),
    (kept_as, lambda node, graph: node),
    (write_layer, lambda node, c: None),  # composed into a projection it is no node
    (value_of, lambda node, program, inputs: None),
)


@contextmanager
def scaling(without: Sequence[OperationTable[Any]] = ()) -> Iterator[None]:
    """Share is an operation like any other inside; tables in `without` do not know it."""
    OPS[Share.op] = Share
    try:
        for table, entry in ENTRIES:
            if table not in without:
                table.on(Share)(entry)
        yield
    finally:
        del OPS[Share.op]
        for table in tables_over(Node):
            table.forget(Share)
