"""The kind of a PyTorch module for the tracer, by class, and the graph node that it becomes.

A subclass with methods of its own may compute something else, so it has no kind and is refused.
Classes of SpikingJelly are known by where they are defined and what they are called; it is never
imported. Those of its earlier package stand in `clock_driven`.
"""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from soul_deploy import ir
from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError, UsageError
from soul_deploy.frontend import clock_driven, soul, spiking_nodes, stepped, stepped_specs
from soul_deploy.frontend.spiking_nodes import NEURONS
from soul_deploy.nn import layers, neuron

SPIKINGJELLY = "spikingjelly.activation_based"
SHARED = (
    *("Conv2d", "Linear", "BatchNorm1d", "BatchNorm2d", "MaxPool2d", "AvgPool2d"),
    *("AdaptiveAvgPool2d", "Flatten", "Dropout", "Dropout2d"),
)
TDBN = {f"ThresholdDependentBatchNorm{n}d": f"BatchNorm{n}d" for n in (1, 2)}
"""SpikingJelly's tdBN: batch norm over all steps, whose gamma starts at alpha · v_th."""
SCALERS = ("VoltageScaler", "ChannelVoltageScaler")  # of spikingjelly...ann2snn
CONTAINERS = ("MultiStepContainer", "SeqToANNContainer", "StepModeContainer")
NON_SPIKING = ("NonSpikingIFNode", "NonSpikingLIFNode")
RECURRENT = ("LinearRecurrentContainer", "ElementWiseRecurrentContainer")
ENDS = (*RECURRENT, *NON_SPIKING, "RateReadout", "VoteReadout", "VotingLayer")
ONCE = (*NEURONS, *soul.KINDS, "SpikingNeuron", *ENDS)
"""Kinds of modules that one call ends: neurons, which remember, and class scores."""
LAYERS = (*SHARED, *CONTAINERS, *RECURRENT, "VotingLayer")  # of spikingjelly...layer
SURROGATES: dict[str, ir.SurrogateName] = {
    "ATan": "atan",
    "Sigmoid": "sigmoid",
    **dict.fromkeys(("Rect", "Rectangle", "Rectangular"), "rectangle"),
}
OF_INTEGERS = ("Quant", "Quant4", "Ternary")
"""Soul's surrogates of neurons that send integers: gradients pass where these are not cut."""

HARMLESS = ("__init__", "extra_repr", "reset_parameters")  # methods that compute nothing

KINDS: dict[type[nn.Module], str] = {
    neuron.SpikingNeuron: "SpikingNeuron",
    layers.RateReadout: "RateReadout",
    layers.VoteReadout: "VoteReadout",
    layers.Merge: "Merge",
    layers.Flatten: "LastThree",
    nn.Identity: "Identity",
    **{getattr(nn, name): name for name in SHARED},
    **{
        getattr(layers, name): name
        for name in SHARED
        if name not in ("Linear", "Flatten", "Dropout", "Dropout2d")
    },
}


def module_kind(module: nn.Module) -> str | None:
    """The module's kind, or None: it is traced into, if it has code of its own."""
    for cls in type(module).__mro__:
        if cls in KINDS:
            return KINDS[cls]
        if _is_within(cls, "layer") and cls.__name__ in LAYERS:
            return cls.__name__
        if _is_within(cls, "layer") and cls.__name__ in TDBN:
            return TDBN[cls.__name__]
        if _is_within(cls, "neuron") and cls.__name__ in (*NEURONS, *NON_SPIKING):
            return cls.__name__
        others = (stepped.kind_of(cls), clock_driven.kind_of(cls), soul.kind_of(cls))
        if (known := next(filter(None, others), None)) is not None:
            return known
        if _is_within(cls, "ann2snn") and cls.__name__ in SCALERS:
            return cls.__name__
        if any(callable(value) and name not in HARMLESS for name, value in vars(cls).items()):
            return None  # a subclass with code of its own
    return None


def refuse_by_name(path: str, module: nn.Module) -> None:
    """Raise UnsupportedGraphError for a neuron of SpikingJelly that is known not to fit."""
    name = type(module).__name__
    if _is_within(type(module), "neuron") and name in spiking_nodes.REFUSED:
        raise UnsupportedGraphError(f"module {path!r} ({name}): {spiking_nodes.REFUSED[name]}")


def is_closed(module: nn.Module) -> bool:
    """A module without a kind that is not looked into: the library's own, or one with state.

    A max pooling with a forward of its own is (Soul's, of sequences): it has no weights.
    """
    cls = type(module)
    own = ("layer", "neuron", "ann2snn")
    if any(_is_within(cls, package) for package in own) or is_stateful(module):
        return True
    if stepped.is_stepped(module) or clock_driven.is_closed(cls) or soul.is_of(cls):
        return True
    if cls.__module__.startswith("torch.nn"):
        return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return isinstance(module, tuple(KINDS)) and not isinstance(module, nn.MaxPool2d)


def is_stateful(module: nn.Module) -> bool:
    """Whether a module of SpikingJelly or Soul keeps state between calls (`MemoryModule`)."""
    return any(
        base.__name__ == "MemoryModule"
        and base.__module__.startswith((SPIKINGJELLY, clock_driven.ROOT, soul.ROOT))
        for base in type(module).__mro__
    )


def is_reset(value: Any, reset: Any) -> bool:
    """Whether a SpikingJelly memory holds what `reset` puts there: a number, or nothing."""
    return type(value) is type(reset) and bool(value is reset or _plainly_equal(value, reset))


def _plainly_equal(value: Any, reset: Any) -> bool:
    if isinstance(value, Tensor):
        return value.shape == reset.shape and bool((value == reset).all())
    if isinstance(value, list):  # the currents of earlier steps
        return not value and not reset
    return isinstance(value, int | float) and value == reset


def check_at_rest(network: nn.Module) -> None:
    """Raise UnsupportedGraphError for a SpikingJelly module whose state was set by hand: a graph's
    neurons start at rest. What an earlier run left (tensors) is warned about, for it is left out.
    """
    used = []
    for path, module in network.named_modules():
        if not is_stateful(module):
            continue
        state, resets = vars(module).get("_memories", {}), vars(module).get("_memories_rv", {})
        for name, value in state.items():
            if name not in resets or is_reset(value, resets[name]):
                continue
            if not isinstance(value, Tensor):
                raise UnsupportedGraphError(
                    f"neuron {path!r} has {name} = {value!r}, which was set by hand; a graph "
                    f"starts at rest, with {resets[name]!r}. Reset it first "
                    "(SpikingJelly's functional.reset_net)"
                )
            used += [path] if name == "v" else []
    if used:
        text = (
            f"{', '.join(used[:3])}{' and more' if used[3:] else ''} hold membranes of an earlier "
            "run; the graph starts at rest, as the network does after a reset"
        )
        warnings.warn(NetworkWarning(text), stacklevel=2)


def step_mode(module: nn.Module) -> str | None:
    """SpikingJelly's step mode: "m" (a sequence at a time), "s" (a step at a time)."""
    if (other := clock_driven.step_mode(module) or soul.step_mode(module)) is not None:
        return other
    ours = type(module).__module__.startswith(SPIKINGJELLY)
    return getattr(module, "step_mode", None) if ours else None


def takes_steps(module: nn.Module) -> bool:
    """Whether a module is a neuron of SpikingJelly or Soul that takes one step at each call."""
    return module_kind(module) in (*NEURONS, *soul.KINDS) and step_mode(module) == "s"


def _is_within(cls: type, package: str) -> bool:
    root = f"{SPIKINGJELLY}.{package}"
    return cls.__module__ == root or cls.__module__.startswith(f"{root}.")


def check_unchanged(path: str, module: nn.Module) -> None:
    """Raise UnsupportedGraphError if hooks or parametrisations may change what a module computes.

    torch.nn.utils.prune, weight_norm and spectral_norm work through these.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedGraphError(
            f"module {path!r} has forward hooks, which can change what it computes; make them "
            "permanent (torch.nn.utils.prune.remove, remove_weight_norm) or remove them"
        )
    if parametrize.is_parametrized(module):
        raise UnsupportedGraphError(
            f"module {path!r} has parametrised weights; make them permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


def module_neuron_spec(path: str, module: Any) -> ir.NeuronSpec:
    """The neuron of a SpikingNeuron or of one of SpikingJelly's or Soul's, exactly as it computes.

    SpikingJelly fires at the threshold, and has other charge forms in 0.0.0.0.12 (clock_driven) and
    0.0.0.0.14 (all neurons in one file) than in 2.x. Raises UnsupportedGraphError for what changes
    its arithmetic.
    """
    if isinstance(module, neuron.SpikingNeuron):
        return module.spec
    function = getattr(module, "surrogate_function", None)
    if not getattr(function, "spiking", True):
        raise UnsupportedGraphError(
            f"{path}: its surrogate function is in non-spiking mode; call set_spiking_mode(True)"
        )
    if getattr(module, "_neuron_precision", None) is not None:
        raise UnsupportedGraphError(f"{path}: a neuron with a precision of its own; only float32")
    _check_start(path, module)
    surrogate, alpha = ("atan", 2.0) if function is None else _surrogate(path, function)
    common = {"surrogate": surrogate, "surrogate_alpha": alpha}
    try:
        if soul.name_of(module) is not None:
            return soul.spec_of(path, module, **common)
        common["form"] = _form(module)
        return spiking_nodes.spec_of(path, module, str(module_kind(module)), **common)
    except UsageError as error:
        raise UnsupportedGraphError(f"{path}: {error}") from error


def _form(module: Any) -> ir.FormName:
    """Whose arithmetic a neuron of SpikingJelly has."""
    if clock_driven.step_mode(module) is not None:
        return "clock_driven"
    flat = any(cls.__module__ == f"{SPIKINGJELLY}.neuron" for cls in type(module).__mro__)
    return "spikingjelly_0" if flat else "spikingjelly"


def _check_start(path: str, module: Any) -> None:
    """Raise UnsupportedGraphError for a state that a reset puts elsewhere than the class does.

    Membranes start at the reset value, Izhikevich's w where it says, all others at 0.
    """
    reset = getattr(module, "v_reset", None)
    rest = 0.0 if reset is None else float(reset)
    starts = vars(module).get("_memories_rv", {})
    start = starts.get("v", rest)
    if not is_reset(start, rest) and start != reset:
        raise UnsupportedGraphError(
            f"{path}: its membrane starts at {start!r} after a reset; supported is the reset value "
            f"{rest:g}"
        )
    for name in ("m", "c"):
        if not is_reset(starts.get(name, 0.0), 0.0):
            raise UnsupportedGraphError(
                f"{path}: {name} starts at {starts[name]!r} after a reset; supported is 0"
            )


def _surrogate(path: str, function: Any) -> tuple[ir.SurrogateName, float]:
    """Name and width; they matter only if the network is trained further."""
    name = type(function).__name__
    if name == "MultiLevelSpikeCount":
        return _window_of(path, function)
    if name in OF_INTEGERS:
        return "atan", 2.0
    if name not in SURROGATES:
        text = (
            f"{path}: surrogate function {name} is not known here; if this network is trained "
            f"further, atan (alpha 2) takes its place. Known: {', '.join(SURROGATES)}"
        )
        warnings.warn(NetworkWarning(text), stacklevel=2)
        return "atan", 2.0
    alpha = float(function.alpha)
    return SURROGATES[name], 1.0 / alpha if name == "Rect" else alpha


def _window_of(path: str, function: Any) -> tuple[ir.SurrogateName, float]:
    """Neurons that send integers pass gradients where these are not cut, without a surrogate."""
    if (function.grad_min, function.grad_max) != (0, function.max_spike_count):
        text = (
            f"{path}: gradients between {function.grad_min:g} and {function.grad_max:g}; if this "
            f"network is trained further, they pass between 0 and {function.max_spike_count}"
        )
        warnings.warn(NetworkWarning(text), stacklevel=2)
    return "atan", 2.0


def both_sides(value: Any) -> tuple[int, int]:
    """A side given once or twice."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _window(module: Any) -> tuple[ir.Pair, ir.Pair, ir.Pair]:
    return both_sides(module.kernel_size), both_sides(module.stride), both_sides(module.padding)


def _convolution(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    kernel, stride, padding = both_sides(module.kernel_size), module.stride, _padding(path, module)
    return ir.Convolution(
        path, inputs, module.bias is not None, None, module.in_channels, module.out_channels,
        kernel, both_sides(stride), padding, both_sides(module.dilation), module.groups,
    )  # fmt: skip


def _padding(path: str, module: Any) -> ir.Pair:
    """The zeros on both sides. Raises UnsupportedGraphError for padding of another kind."""
    if isinstance(module.padding, str):
        extents = zip(both_sides(module.dilation), both_sides(module.kernel_size), strict=True)
        whole = [d * (k - 1) if module.padding == "same" else 0 for d, k in extents]
        if any(side % 2 for side in whole):
            raise UnsupportedGraphError(
                f"{path}: padding 'same' of a {'×'.join(map(str, module.kernel_size))} kernel pads "
                "one side more than the other; only equal padding on both sides is supported"
            )
        padding = (whole[0] // 2, whole[1] // 2)
    else:
        padding = both_sides(module.padding)
    if module.padding_mode != "zeros" and padding != (0, 0):
        raise UnsupportedGraphError(
            f"{path}: padding_mode {module.padding_mode!r} with padding {padding}; only padding "
            "with zeros is supported"
        )
    return padding


def _linear(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return ir.Linear(
        path, inputs, module.bias is not None, None, module.in_features, module.out_features
    )


def _max_pool(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    if both_sides(module.dilation) != (1, 1) or module.return_indices:
        raise UnsupportedGraphError(f"{path}: max pooling with dilation or return_indices")
    return ir.MaxPool(path, inputs, *_window(module))


def _avg_pool(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    padded = both_sides(module.padding) != (0, 0)
    if module.divisor_override or (padded and not module.count_include_pad):
        raise UnsupportedGraphError(
            f"{path}: average pooling with divisor_override or count_include_pad=False"
        )
    return ir.AvgPool(path, inputs, *_window(module))


def check_ceil_mode(pool: Any, shape: ir.Shape) -> None:
    """Raise UnsupportedGraphError if `ceil_mode` makes more windows of a (C, H, W) than there are
    without it: windows that begin before the far padding and hang over the border.
    """
    for i in (0, 1):
        span, stride = shape[1 + i] + 2 * pool.padding[i] - pool.kernel[i], pool.stride[i]
        if span % stride and (span // stride + 1) * stride < shape[1 + i] + pool.padding[i]:
            raise UnsupportedGraphError(
                f"{pool.name}: ceil_mode on an input of {shape} adds windows that hang over the "
                "border; only where it adds none it is supported"
            )


def adaptive_pool(path: str, inputs: tuple[str, ...], size: Any) -> ir.Node:
    """The pooling to `size`, a side or two. Raises UnsupportedGraphError for an open side."""
    if size is None or (not isinstance(size, int) and None in size):
        raise UnsupportedGraphError(f"{path}: adaptive pooling to {size}; both sides are needed")
    return ir.AdaptiveAvgPool(path, inputs, both_sides(size))


def _scale(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    """One number for all channels, or a tensor (C,) under the name it has in the module."""
    single = module.scale.dim() == 0
    return ir.Scale(path, inputs, float(module.scale) if single else None)


def _population(path: str, inputs: tuple[str, ...], module: Any) -> ir.Node:
    return ir.Population(path, inputs, module_neuron_spec(path, module))


def _all_to_all(path: str, module: Any) -> ir.Node | None:
    """The layer by which a neuron of snnTorch's sees the last spikes of all others."""
    layer = stepped.recurrent_layer(module)
    if layer is None:
        return None
    converter = _convolution if isinstance(layer, nn.Conv2d) else _linear
    return converter(f"{path}.recurrent", (path,), layer)


CONVERTERS: dict[str, Callable[[str, tuple[str, ...], Any], ir.Node]] = {
    "RateReadout": lambda path, inputs, module: ir.Readout(
        path, inputs, module.out_features, True, module.bias is not None, 1, module.over_time
    ),
    "VoteReadout": lambda path, inputs, module: ir.Readout(
        path, inputs, module.classes, False, False, module.votes, module.over_time
    ),
    "SpikingNeuron": _population,
    **dict.fromkeys(
        stepped.STATES,
        lambda path, inputs, module: ir.Population(
            path, inputs, stepped_specs.spec_of(path, module), feedback=_all_to_all(path, module)
        ),
    ),
    **dict.fromkeys(SCALERS, _scale),
    **dict.fromkeys((*NEURONS, *soul.KINDS), _population),
    "Conv2d": _convolution,
    "Linear": _linear,
    "MaxPool2d": _max_pool,
    "AvgPool2d": _avg_pool,
    "AdaptiveAvgPool2d": lambda path, inputs, module: adaptive_pool(
        path, inputs, module.output_size
    ),
}
