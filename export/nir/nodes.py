"""NIR nodes read one by one, sources first, into nodes and weights of ours."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base import Array, errors, files
from soul_deploy.export.nir import membranes
from soul_deploy.export.nir import package as nir_library
from soul_deploy.export.nir.neuron import NirNeuron, from_nir, to_nir
from soul_deploy.export.nir.values import NirValue, Reader
from soul_deploy.nn.neuron import learned_number

SUPPORTED = (
    "Input, Output, Affine, Linear, Conv2d, AvgPool2d, SumPool2d, Flatten, Scale by one number or "
    "one a channel, LIF, IF, CubaLIF with tau_syn = dt; last LI, I, CubaLI"
)


def read_node(reader: Reader, key: str) -> None:
    """Turn the NIR node `key`, whose sources have been read, into ours.

    Raises UnsupportedGraphError or FileFormatError with the node's name.
    """
    node = reader.graph.nodes[key]
    kind = type(node).__name__
    if kind not in READERS:
        text = f"{key}: NIR {kind} is not supported; supported: {SUPPORTED}"
        raise errors.UnsupportedGraphError(text)
    value = READERS[kind](reader, key, node)
    if value is not None:
        reader.values[key] = value


def _input(r: Reader, key: str, node: Any) -> NirValue:
    if r.made:
        raise errors.UnsupportedGraphError(f"{key}: a second input; supported is one")
    shape = _without_batch(r, key, _integers(node.input_type["input"]))
    if len(shape) not in (1, 3):
        raise errors.UnsupportedGraphError(
            f"{key}: an input of {shape}; supported: (C, H, W) and (N,), without time and batch"
        )
    return r.put(ir.Input(r.name(key), (), shape))


def _without_batch(r: Reader, key: str, shape: ir.Shape) -> ir.Shape:
    """norse and rockpool write the shape of the batch that they were given to export with."""
    if len(shape) not in (2, 4):
        return shape
    r.conventions.assumed["batch"] = (
        f"{key}: an input of {shape} is a batch of {shape[0]}, each of {shape[1:]}, as norse and "
        "rockpool write it"
    )
    return shape[1:]


def _output(r: Reader, key: str, node: Any) -> None:
    if r.last is not None:
        raise errors.UnsupportedGraphError(f"{key}: a second output; supported is one")
    r.last = r.settled(key, r.arriving(key))


def _integrator(r: Reader, key: str, node: Any) -> NirValue:
    """A last node, behind a linear or affine one: its numbers that multiply or shift go there."""
    readers = [type(r.graph.nodes[b]).__name__ for a, b in r.graph.edges if a == key]
    if readers != ["Output"]:
        raise errors.UnsupportedGraphError(
            f"{key}: a NIR {type(node).__name__} inside the network, whose membrane is no spikes; "
            "supported is one whose membrane is the output"
        )
    found = membranes.from_node(key, node, r.conventions.dt)
    r.conventions.require_integrator(key, node)
    charging = r.settled(key, r.arriving(key))
    if not isinstance(r.made[charging], ir.Linear) or r.readers(charging) != 1:
        raise errors.UnsupportedGraphError(
            f"{key}: a NIR {type(node).__name__} behind {charging!r}; supported is one that a "
            "linear or affine node alone feeds"
        )
    r.charged = membranes.stored_neuron(key, node, found, r.conventions.dt)
    r.weigh_rows(charging, found.gain, found.shift)
    return NirValue(charging)


def _linear(r: Reader, key: str, node: Any) -> NirValue:
    weight = np.asarray(node.weight, np.float64)
    if weight.ndim != 2:
        text = f"{key}: weight of shape {weight.shape}; supported: (out, in)"
        raise errors.UnsupportedGraphError(text)
    source, bias = r.arriving(key), _bias(getattr(node, "bias", None))
    features, width = weight.shape
    projection = ir.Linear(r.name(key), (source.name,), bias is not None, None, width, features)
    return r.put(projection, weight=(weight * source.factor).astype(np.float32), bias=bias)


def _bias(bias: Any) -> Array | None:
    """float32; None where all are 0, which NIR's convolution cannot leave out."""
    array = None if bias is None else np.asarray(bias, np.float32)
    return array if array is not None and array.any() else None


def _convolution(r: Reader, key: str, node: Any) -> NirValue:
    weight, groups = np.asarray(node.weight, np.float64), int(node.groups)
    kernel, dilation = _pair(weight.shape[2:]), _pair(node.dilation)
    stride = _pair(node.stride)
    padding = _padding(key, node.padding, kernel, stride, dilation)
    source, bias = r.arriving(key), _bias(node.bias)
    channels = weight.shape[1] * groups, weight.shape[0]
    geometry = (*channels, kernel, stride, padding, dilation, groups)
    biased = bias is not None
    projection = ir.Convolution(r.name(key), (source.name,), biased, None, *geometry)
    return r.put(projection, weight=(weight * source.factor).astype(np.float32), bias=bias)


def _padding(
    key: str, padding: Any, kernel: ir.Pair, stride: ir.Pair, dilation: ir.Pair
) -> ir.Pair:
    text = padding.decode() if isinstance(padding, bytes) else padding
    if not isinstance(text, str):
        return _pair(text)
    if text == "valid":
        return 0, 0
    if stride != (1, 1) or any(d * (k - 1) % 2 for k, d in zip(kernel, dilation, strict=True)):
        raise errors.UnsupportedGraphError(
            f"{key}: padding 'same' with stride {stride} and kernel {kernel} is not the same on "
            "both sides; supported is symmetric padding"
        )
    return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2


def _avg_pool(r: Reader, key: str, node: Any) -> NirValue:
    source = r.arriving(key)
    sides = _pair(node.kernel_size), _pair(node.stride), _pair(node.padding)
    return NirValue(r.put(ir.AvgPool(r.name(key), (source.name,), *sides)).name, source.factor)


def _sum_pool(r: Reader, key: str, node: Any) -> NirValue:
    """A mean times the window's size."""
    mean = _avg_pool(r, key, node)
    height, width = _pair(node.kernel_size)
    return NirValue(mean.name, mean.factor * height * width)


def _flatten(r: Reader, key: str, node: Any) -> NirValue:
    source = r.arriving(key)
    sides = len(r.shapes[source.name])
    first, last = int(node.start_dim) % sides, int(node.end_dim) % sides
    if first == last:
        return source
    if (first, last) != (0, sides - 1):
        raise errors.UnsupportedGraphError(
            f"{key}: flattens axes {first} to {last} of {r.shapes[source.name]}; supported is all"
        )
    return NirValue(r.put(ir.Flatten(r.name(key), (source.name,))).name, source.factor)


def _scale(r: Reader, key: str, node: Any) -> NirValue:
    """One number is a factor, which goes into weights; one a channel is an operation of ours."""
    source, scale = r.arriving(key), np.asarray(node.scale, np.float64)
    shape = r.shapes[source.name]
    if np.unique(scale).size <= 1 or scale.shape != shape:
        return NirValue(source.name, source.factor * _uniform(key, "scale", scale))
    by_channel = scale.reshape(shape[0], -1)
    usable = np.isfinite(by_channel).all() and (by_channel != 0).all()
    if not usable or (by_channel != by_channel[:, :1]).any():
        raise errors.UnsupportedGraphError(
            f"{key}: a scale with {np.unique(scale).size} values from {scale.min():g} to "
            f"{scale.max():g}; supported are finite numbers but 0, one for each channel"
        )
    values = (by_channel[:, 0] * source.factor).astype(np.float32)
    return r.put(ir.Scale(r.name(key), (source.name,), None), scale=values)


def _cuba_lif(r: Reader, key: str, node: Any) -> NirValue:
    """With tau_syn = dt the synaptic current is w_in times the input, and the neuron a LIF."""
    tau_syn = _uniform(key, "tau_syn", node.tau_syn)
    dt = r.conventions.dt
    if abs(tau_syn / dt - 1) > 1e-6:
        what = "outlasts" if tau_syn > dt else "is shorter than"
        raise errors.UnsupportedGraphError(
            f"{key}: a CubaLIF with tau_syn {tau_syn:g} s, whose synaptic current {what} a step "
            f"of {dt:g} s; supported is tau_syn = dt (--dt {tau_syn:g}, if the tool's step is as "
            "long), or a LIF"
        )
    return _population(r, key, node)


def _numbers(key: str, node: Any, read: membranes.ReadRule = "spikes") -> NirNeuron:
    """Of a LIF, an IF, or a CubaLIF whose synaptic current lasts one step."""
    kind, tau = type(node).__name__, None
    r = _uniform(key, "r", node.r)
    if kind == "CubaLIF":
        tau = _uniform(key, "tau_mem", node.tau_mem)
        r *= _uniform(key, "w_in", node.w_in)
    elif kind == "LIF":
        tau = _uniform(key, "tau", node.tau)
    if np.isposinf(np.asarray(node.v_threshold, np.float64)).all():
        if read == "spikes":
            raise errors.UnsupportedGraphError(
                f"{key}: v_threshold is infinite: neurons that never fire; where their membrane is "
                "the output, give --read membrane_no_reset"
            )
        threshold = 1.0
    else:
        threshold = _uniform(key, "v_threshold", node.v_threshold)
    reset = _uniform(key, "v_reset", node.v_reset)
    leak = reset if tau is None else _uniform(key, "v_leak", node.v_leak)
    return NirNeuron(tau, r, leak, threshold, reset)


def _all_numbers(graph: Any) -> list[NirNeuron]:
    """The numbers of all neurons of a graph that can be read."""
    numbers = []
    for key, node in graph.nodes.items():
        if type(node).__name__ in NEURONS:
            with suppress(errors.UnsupportedGraphError):
                numbers.append(_numbers(key, node))
    return numbers


def _population(r: Reader, key: str, node: Any) -> NirValue:
    neuron, said, gain = _numbers(key, node, r.read_of(key)), r.conventions, 1.0
    own = _own_neuron(r, key, node, neuron)
    if own is None:
        said.require_step(key, neuron, lambda: _all_numbers(r.graph))
        fire, reset = said.fire_of(key, node), said.reset_of(neuron)
        spec, gain = from_nir(key, neuron, said.dt, fire, reset)
    else:
        spec = said.accept(key, own)
    source = r.settled(key, r.arriving(key), gain)
    w = np.float32(node.metadata[nir_library.DECAY_PARAMETER]) if spec.learned else None
    return r.put(ir.Population(r.name(key), (source,), spec), w=None if w is None else np.array(w))


def _own_neuron(r: Reader, key: str, node: Any, neuron: NirNeuron) -> ir.NeuronSpec | None:
    """The neuron as it was before export, from the metadata. Raises FileFormatError unless it is
    the neuron that the node's numbers say."""
    text = node.metadata.get(nir_library.POPULATION)
    if text is None:
        return None
    try:
        stored = files.parse_json(text, f"{key}: its metadata")
        spec, number = ir.node_from_json(stored, ir.Population).neuron, None
        if spec.learned:
            w = torch.tensor(float(node.metadata[nir_library.DECAY_PARAMETER]))
            number = learned_number(spec, w)
        expected = to_nir(spec.equation(number), key, r.conventions.dt)
    except (KeyError, TypeError, ValueError, errors.UsageError) as error:
        raise errors.FileFormatError(f"{key}: its metadata cannot be read ({error!r})") from error
    if not expected.close_to(neuron):
        raise errors.FileFormatError(
            f"{key}: {neuron} are not the numbers of the neuron in its metadata at dt "
            f"{r.conventions.dt:g}, {expected}; remove the metadata if they were changed on purpose"
        )
    return spec


def _uniform(key: str, what: str, values: Any) -> float:
    """The one value of an array. Raises UnsupportedGraphError if there are several."""
    distinct = np.unique(np.asarray(values, np.float64))
    if distinct.size != 1 or not np.isfinite(distinct[0]):
        low, high = (distinct.min(), distinct.max()) if distinct.size else (0, 0)
        raise errors.UnsupportedGraphError(
            f"{key}: {what} has {distinct.size} values from {low:g} to {high:g}; supported is one "
            "finite value for the whole population"
        )
    return float(distinct[0])


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in np.ravel(values))


def _pair(value: Any) -> ir.Pair:
    sides = _integers(value)
    return (sides[0], sides[0]) if len(sides) == 1 else (sides[0], sides[1])


READERS: dict[str, Callable[[Reader, str, Any], NirValue | None]] = {
    "Input": _input,
    "Output": _output,
    "Affine": _linear,
    "Linear": _linear,
    "Conv2d": _convolution,
    "AvgPool2d": _avg_pool,
    "SumPool2d": _sum_pool,
    "Flatten": _flatten,
    "Scale": _scale,
    "LIF": _population,
    "IF": _population,
    "CubaLIF": _cuba_lif,
    **dict.fromkeys(("LI", "I", "CubaLI"), _integrator),
}
NEURONS = ("LIF", "IF", "CubaLIF")
