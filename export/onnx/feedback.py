"""A population's feedback in ONNX: what its spikes of a step add to its current of the next one.

Before they are weighed, the spikes pass through a tensor of their own, `sent_name`: there the file
can be cut, and be given the spikes of the step before instead of making them.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from soul_deploy import ir
from soul_deploy.export.onnx.convolution import append_convolution

if TYPE_CHECKING:
    from soul_deploy.export.onnx.nodes import OnnxBuilder


def sent_name(feedback: str, step: int) -> str:
    """The tensor that holds a population's spikes (batch, ...) of the step before `step`."""
    return f"{feedback}.sent.{step}"


def append_feedback(
    b: "OnnxBuilder", node: ir.Population, current: str, spikes: str, stored: list[str], step: int
) -> str:
    """The current of a step, with what `spikes`, those of the step before, add to it.

    stored: the mask of the neurons, if there is one, then the weights, as initializers.
    """
    back = node.feedback
    assert back is not None, node.name
    masked = node.name in b.lowered.model.neuron_masks
    mask, weights = stored[:masked], stored[masked:]
    sent = sent_name(back.name, step)
    b.op("Mul" if mask else "Identity", [spikes, *mask], sent)
    b.values.append(b.declared(sent, ("batch", *b.graph.shapes[node.name])))
    returned = f"{back.name}.{step}"
    WEIGH[type(back)](back, b, weights, (sent, returned))
    return b.op("Add", [current, returned], f"{returned}.added")


def _convolution(
    node: ir.Convolution, b: "OnnxBuilder", weights: list[str], ends: tuple[str, str]
) -> None:
    append_convolution(node, b, weights, ends, ends[1])


def _linear(node: ir.Linear, b: "OnnxBuilder", weights: list[str], ends: tuple[str, str]) -> None:
    b.op("Gemm", [ends[0], *weights], ends[1], transB=1)


def _one_to_one(
    node: ir.OneToOne, b: "OnnxBuilder", weights: list[str], ends: tuple[str, str]
) -> None:
    b.op("Mul", [ends[0], *weights], ends[1])


WEIGH: Mapping[type[ir.Node], Callable[..., None]] = {
    ir.Convolution: _convolution,
    ir.Linear: _linear,
    ir.OneToOne: _one_to_one,
}
"""What a feedback does to the first of two tensors, giving the second."""
