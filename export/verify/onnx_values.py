"""What an ONNX file takes and yields, as the checks hold it."""

import torch
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import Array, errors
from soul_deploy.nn.layers import over_steps


def input_array(graph: ir.SpikingGraph, images: Tensor) -> Array:
    """Images, as `images_for` gives them, as a file takes them: uint8 for a fixed-point network.

    Raises ValidityError for integers that are no pixels.
    """
    first = graph.input
    if not isinstance(first, ir.IntegerInput):
        plain: Array = images.contiguous().numpy()
        return plain
    zero = torch.tensor(first.zero or [0]).reshape(-1, *[1] * (len(first.shape) - 1))
    pixels = images.to(torch.int32) + zero
    least, most = (int(pixels.min()), int(pixels.max())) if pixels.numel() else (0, 0)
    if least < 0 or most > 255:
        raise errors.ValidityError(
            f"integers from {least} to {most} given, with the zero of their channel; this file "
            "takes uint8"
        )
    array: Array = pixels.to(torch.uint8).contiguous().numpy()
    return array


def combined(scores: Tensor, graph: ir.SpikingGraph) -> Tensor:
    """Class scores (B, classes) of the scores of all steps (T, batch, classes)."""
    readout = graph.readout
    if readout.unit is None:
        return over_steps(scores.double(), readout.over_time).float()
    shape = graph.shapes[readout.inputs[0]]
    whole = (scores.double() / readout.multiplier(shape, 1)).round()  # the steps' integers again
    reduced = whole.sum(0) if readout.over_time == "mean" else over_steps(whole, readout.over_time)
    return reduced.float() * readout.multiplier(shape, graph.time_steps)
