"""The windows of average poolings: which inputs each output is the mean of."""

import numpy as np

from soul_deploy import ir
from soul_deploy.base import Array


def even_window(node: ir.AdaptiveAvgPool, in_shape: ir.Shape) -> ir.Pair | None:
    """The one window of an adaptive pooling; None where its windows differ in size."""
    _, height, width = in_shape
    if height % node.size[0] or width % node.size[1]:
        return None
    return height // node.size[0], width // node.size[1]


def spread_kernel(kernel: ir.Shape, window: ir.Pair, dilation: ir.Pair) -> ir.Pair:
    """Height and width of a kernel that reads the inputs of a pooling instead of its outputs."""
    height, width = (d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    return height * window[0], width * window[1]


def spread(weight: Array, window: ir.Pair, dilation: ir.Pair) -> Array:
    """Weights (C_out, C_in, kh, kw) evenly over the windows that tile the map, float32, of
    `spread_kernel`'s size.
    """
    share = (weight.astype(np.float64) / (window[0] * window[1])).astype(np.float32)
    return repeat(share, window, dilation)


def repeat(weight: Array, window: ir.Pair, dilation: ir.Pair) -> Array:
    """As `spread`, each weight as it is at every place of its window."""
    (wh, ww), (dh, dw), (out, inner) = window, dilation, weight.shape[:2]
    rows, columns = spread_kernel(weight.shape[2:], window, dilation)
    found = np.zeros((out, inner, rows // wh, wh, columns // ww, ww), weight.dtype)
    found[:, :, ::dh, :, ::dw] = weight[:, :, :, None, :, None]
    return found.reshape(out, inner, rows, columns)


def window_rows(side: int, kernel: int, stride: int, padding: int) -> Array:
    """(count, side) float64: the share of each input in each window's mean along one axis."""
    count = (side + 2 * padding - kernel) // stride + 1
    rows = np.zeros((count, side))
    for o in range(count):
        begin = o * stride - padding
        rows[o, max(begin, 0) : max(begin + kernel, 0)] = 1 / kernel
    return rows


def adaptive_rows(side: int, count: int) -> Array:
    """PyTorch's windows: from floor(o · side / count) to ceil((o + 1) · side / count)."""
    rows = np.zeros((count, side))
    for o in range(count):
        begin, end = o * side // count, -(-(o + 1) * side // count)
        rows[o, begin:end] = 1 / (end - begin)
    return rows
