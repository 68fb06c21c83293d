"""Naive twins of the runtime's kernels: the definitions, as plain loops over channel-major arrays.

They are oracles: written from the definition and never changed to follow a kernel.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pair = tuple[int, int]
F = np.float32


def targets_of(
    c: int, y: int, x: int, weight: Array, stride: Pair, padding: Pair, dilation: Pair,
    groups: int, out_shape: tuple[int, ...], reach: Pair,
) -> list[tuple[int, int, int, Any]]:  # fmt: skip
    """(o, oy, ox, weight) of every synapse of input (c, y, x) that lands inside the output."""
    found = []
    out, inner, height, width = weight.shape
    if y >= reach[0] or x >= reach[1]:
        return []
    for o in range(out):
        if o // (out // groups) != c // inner:
            continue
        for i in range(height):
            for j in range(width):
                for oy in range(out_shape[1]):
                    for ox in range(out_shape[2]):
                        if (
                            oy * stride[0] - padding[0] + i * dilation[0] == y
                            and ox * stride[1] - padding[1] + j * dilation[1] == x
                        ):
                            found.append((o, oy, ox, weight[o, c % inner, i, j]))
    return found


def convolve(values: Array, weight: Array, bias: Array | None, **geometry: Any) -> Array:
    """Currents (T, C_out, OH, OW) float64 of values (T, C, H, W)."""
    out_shape = geometry["out_shape"]
    result = np.zeros((len(values), *out_shape))
    if bias is not None:
        for o in range(out_shape[0]):
            result[:, o] = bias[o]
    for c in range(values.shape[1]):
        for y in range(values.shape[2]):
            for x in range(values.shape[3]):
                for o, oy, ox, w in targets_of(c, y, x, weight, **geometry):
                    for t in range(len(values)):
                        result[t, o, oy, ox] += float(values[t, c, y, x]) * float(w)
    return result


def count_convolution(values: Array, weight: Array, **geometry: Any) -> tuple[int, int, int]:
    """(synapses, synapses times value, (step, target) pairs touched) over all steps."""
    synapses = weighted = 0
    touched = set()
    for c in range(values.shape[1]):
        for y in range(values.shape[2]):
            for x in range(values.shape[3]):
                for o, oy, ox, w in targets_of(c, y, x, weight, **geometry):
                    for t in range(len(values)):
                        if w != 0 and values[t, c, y, x] != 0:
                            synapses += 1
                            weighted += int(values[t, c, y, x])
                            touched.add((t, o, oy, ox))
    return synapses, weighted, len(touched)


def multiply(values: Array, weight: Array, bias: Array | None) -> Array:
    """Currents (T, n_out) float64 of values (T, n_in); weight (n_out, n_in)."""
    result = np.zeros((len(values), len(weight)))
    for t in range(len(values)):
        for o in range(len(weight)):
            result[t, o] = 0 if bias is None else bias[o]
            for i in range(weight.shape[1]):
                result[t, o] += float(values[t, i]) * float(weight[o, i])
    return result


def count_matrix(values: Array, weight: Array) -> tuple[int, int, int]:
    """As `count_convolution`; weight (n_out, n_in)."""
    synapses = weighted = 0
    touched = set()
    for t in range(len(values)):
        for o in range(len(weight)):
            for i in range(weight.shape[1]):
                if values[t, i] != 0 and weight[o, i] != 0:
                    synapses += 1
                    weighted += int(values[t, i])
                    touched.add((t, o))
    return synapses, weighted, len(touched)


def charged(form: str, v: Any, x: Any, a: Any, r: Any, threshold: Any) -> Any:
    """The membrane potential before firing, each operation rounded to float32."""
    if form == "integrate":
        return F(v + x)
    if form == "soul_lif_decay":
        return F(v + F(F(F(r - v) + x) / a))
    if form == "soul_lif":
        return F(F(v + F(F(r - v) / a)) + x)
    if form == "decay_divide":
        return F(v + F(F(x - F(v - r)) / a))
    if form == "decay_multiply":
        return F(v + F(F(x - F(v - r)) * a))
    if form == "leak_multiply":
        return F(F(v * a) + x)
    if form == "leak_multiply_late":
        charge = F(F(v * a) + x)
        return F(charge - threshold) if v > threshold else charge
    if form == "leak_subtract_divide":
        return F(F(v - F(F(v - r) / a)) + x)
    assert form == "leak_subtract_multiply"
    return F(F(v - F(F(v - r) * a)) + x)


def simulate(
    current: Array, steps: int, form: str, constant: float, threshold: float,
    v_reset: float | None, fire: str, v: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Spikes (T, n) and the last membranes (n,); current (T, n) or (1, n) for every step."""
    rest = F(0 if v_reset is None else v_reset)
    spikes = np.zeros((steps, current.shape[1]), np.uint8)
    last = np.full(current.shape[1], rest, F) if v is None else v.astype(F)
    for i in range(current.shape[1]):
        for t in range(steps):
            x = current[t if len(current) > 1 else 0, i]
            h = charged(form, last[i], F(x), F(constant), rest, F(threshold))
            fires = h > F(threshold) if fire == "gt" else h >= F(threshold)
            spikes[t, i] = fires
            if fires:
                h = F(h - F(threshold)) if v_reset is None else F(v_reset)
            last[i] = h
    return spikes, last


def max_pool(spikes: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """(T, C, OH, OW) of (T, C, H, W)."""
    steps, channels, height, width = spikes.shape
    sides = [
        (n + 2 * padding[k] - kernel[k]) // stride[k] + 1 for k, n in enumerate((height, width))
    ]
    out = np.zeros((steps, channels, *sides), np.uint8)
    for oy in range(sides[0]):
        for ox in range(sides[1]):
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    y, x = oy * stride[0] - padding[0] + i, ox * stride[1] - padding[1] + j
                    if 0 <= y < height and 0 <= x < width:
                        for t in range(steps):
                            for c in range(channels):
                                out[t, c, oy, ox] = max(out[t, c, oy, ox], spikes[t, c, y, x])
    return out


def sum_spikes(spikes: Array) -> Array:
    """(C,) int64: sums of (T, C, H, W) over time and space."""
    out = np.zeros(spikes.shape[1], np.int64)
    for t, c, y, x in np.ndindex(*spikes.shape):
        out[c] += spikes[t, c, y, x]
    return out


def score(sums: Array, weight: Array, bias: Array | None, scale: float) -> Array:
    """(classes,) float32: weighed exactly, scaled, bias added; weight (classes, C) dyadic."""
    out = np.zeros(len(weight), F)
    for k in range(len(weight)):
        total = sum(float(weight[k, c]) * int(sums[c]) for c in range(len(sums)))
        out[k] = F(F(total) * F(scale))
        if bias is not None:
            out[k] = F(out[k] + bias[k])
    return out


def vote(sums: Array, votes: int, scale: float) -> Array:
    """(classes,) float32: neighbouring sums added, scaled."""
    classes = len(sums) // votes
    return np.array(
        [
            F(F(sum(int(sums[k * votes + i]) for i in range(votes))) * F(scale))
            for k in range(classes)
        ]
    )


def nonzero(values: Array) -> list[tuple[int, Any]]:
    """(index, value) of every nonzero value."""
    return [(i, v) for i, v in enumerate(values) if v != 0]


def convolution_rows(weight: Array, groups: int) -> list[list[tuple[int, Any]]]:
    """Per (channel, mirrored kernel row, mirrored kernel column): (output channel, weight)."""
    out, inner, height, width = weight.shape
    rows = []
    for c in range(inner * groups):
        for i in reversed(range(height)):
            for j in reversed(range(width)):
                share = out // groups
                group = c // inner
                rows.append(
                    [
                        (o, weight[o, c % inner, i, j])
                        for o in range(group * share, (group + 1) * share)
                    ]
                )
    return rows


def matrix_rows(
    weight: Array, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> list[list[tuple[int, Any]]]:
    """Per presynaptic neuron, both sides channel-last: (target, weight); weight channel-major."""
    sources, targets = channel_last(in_shape), channel_last(out_shape)
    return [[(k, weight[o, i]) for k, o in enumerate(targets)] for i in sources]


def channel_last(shape: tuple[int, ...]) -> list[int]:
    """Channel-major indices in channel-last order."""
    if len(shape) == 1:
        return list(range(shape[0]))
    channels, height, width = shape
    return [
        (c * height + y) * width + x
        for y in range(height)
        for x in range(width)
        for c in range(channels)
    ]


def merge(function: str, branches: list[Array]) -> Array:
    """Element by element, left to right; branches (T, ...), or (1, ...) the same at every step."""
    steps = max(map(len, branches))
    dtype = np.float32 if any(b.dtype == np.float32 for b in branches) else np.uint8
    out = np.zeros((steps, *branches[0].shape[1:]), dtype)
    for t, *place in np.ndindex(*out.shape):
        values = [b[(t if len(b) > 1 else 0, *place)] for b in branches]
        result = values[0]
        for value in values[1:]:
            if function == "add":
                result = F(F(result) + F(value))
            elif function == "and":
                result = 1 if result == 1 and value == 1 else 0
            else:
                result = 1 if result == 1 and value == 0 else 0
        out[(t, *place)] = result
    return out


def scatter(values: Array, index: list[int], channels: int) -> Array:
    """(T, channels, H, W) of (T, len(index), H, W), 0 where no channel goes."""
    out = np.zeros((len(values), channels, *values.shape[2:]), values.dtype)
    for t in range(len(values)):
        for c, place in enumerate(index):
            out[t, place] = values[t, c]
    return out


def max_pool_analog(values: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """(T, C, OH, OW) of (T, C, H, W) of any sign; padding is no value."""
    steps, channels, height, width = values.shape
    sides = [
        (n + 2 * padding[k] - kernel[k]) // stride[k] + 1 for k, n in enumerate((height, width))
    ]
    out = np.zeros((steps, channels, *sides), np.float32)
    for t, c, oy, ox in np.ndindex(*out.shape):
        found = []
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                y, x = oy * stride[0] - padding[0] + i, ox * stride[1] - padding[1] + j
                if 0 <= y < height and 0 <= x < width:
                    found.append(values[t, c, y, x])
        out[t, c, oy, ox] = max(found)
    return out


def fixed_step(
    u: int, current: int, threshold: int, subtract: int, *, multiplier: int, shift: int, low: int,
    high: int, fire: str, reset: str,
) -> tuple[int, int]:  # fmt: skip
    """One step of a fixed-point neuron (docs/fixed-point.md) on Python's integers: spike, membrane.

    // is towards minus infinity.
    """

    def fires(membrane: int) -> bool:
        return membrane > threshold if fire == "gt" else membrane >= threshold

    h = u * multiplier // 2**shift + current
    if reset == "late" and fires(u):
        h -= subtract
    h = low if h < low else high if h > high else h
    if not fires(h):
        return 0, h
    return 1, {"hard": 0, "soft": h - subtract}.get(reset, h)
