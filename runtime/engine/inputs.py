"""Inputs of a network: checked, normalised, and stored channel-last, sample by sample."""

import warnings

import numpy as np

from soul_deploy.base import Array, errors, pixel_rule
from soul_deploy.runtime.format.network import EventNetwork, Layer, ReadoutLayer, Shape


def checked_input(network: EventNetwork, x: object) -> Array:
    """`x` as an array (B, ...) or (T, B, ...) that the network takes. Raises ValidityError."""
    array = pixel_rule.input_array(x, network.rule)
    is_static(array.shape, network.input_shape, network.time_steps)
    return array


def is_static(given: Shape, shape: Shape, steps: int) -> bool:
    """Whether `given` is (B, *shape), the same at all steps, and not a sequence (T, B, *shape).

    steps: T. Raises ValidityError for another T or shape.
    """
    if given[-len(shape) :] != shape or len(given) - len(shape) not in (1, 2):
        raise errors.ValidityError(
            f"input {given} given; this network takes (batch, {sides(shape)}), or "
            f"({steps}, batch, {sides(shape)}) for a sequence"
        )
    static = len(given) == len(shape) + 1
    if not static and given[0] != steps:
        raise errors.ValidityError(
            f"a sequence of {given[0]} steps given; this network runs T = {steps} steps"
        )
    return static


def samples_of(network: EventNetwork, x: object) -> Array:
    """(B, T or 1, positions, channels) float32, pixels normalised; int16 of a fixed-point network,
    uint8 of events. Raises ValidityError.
    """
    values = pixel_rule.taken_by(checked_input(network, x), network.rule)
    return by_sample(at_each_step(network, values), network.input_shape)


def at_each_step(network: EventNetwork, values: Array) -> Array:
    """Events (B, ...) that arrive at every step as the sequence that they are; others as given."""
    if network.input_bound is None or values.ndim != len(network.input_shape) + 1:
        return values
    return np.broadcast_to(values, (network.time_steps, *values.shape))


class InputReader:
    """Reads a network's inputs by its rule; warns once of numbers that look like pixels."""

    def __init__(self, network: EventNetwork) -> None:
        self.network = network
        self._warned = False

    def values(self, x: object) -> Array:
        """float32 (B, ...) or (T, B, ...), pixels normalised; uint8 of events, int16 of a
        fixed-point network. Raises ValidityError.
        """
        return self._numbers(checked_input(self.network, x))

    def samples(self, x: object) -> Array:
        """As `samples_of`."""
        values = self._numbers(checked_input(self.network, x))
        return by_sample(at_each_step(self.network, values), self.network.input_shape)

    def frames(self, x: object) -> Array:
        """(B, positions, channels) of one step, as `values`. Raises ValidityError."""
        array, shape = pixel_rule.input_array(x, self.network.rule), self.network.input_shape
        if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
            raise errors.ValidityError(
                f"a step of {array.shape} given; this network takes (batch, {sides(shape)}) per "
                "step"
            )
        return to_channel_last(self._numbers(array), shape)

    def _numbers(self, array: Array) -> Array:
        values = pixel_rule.taken_by(array, self.network.rule)
        if array.dtype.kind == "f" and not self._warned:
            text = pixel_rule.looks_like_pixels(values, self.network.rule)
            if text is not None:
                self._warned = True
                warning = errors.NetworkWarning(text)
                warnings.warn(warning, stacklevel=4)  # whoever called the network
        return values


def by_sample(values: Array, shape: Shape) -> Array:
    """(B, T or 1, positions, channels) of (B, *shape) or (T, B, *shape)."""
    static = values.ndim == len(shape) + 1
    return to_channel_last(values[None] if static else values, shape).swapaxes(0, 1)


def source_values(
    network: EventNetwork, target: Layer | ReadoutLayer, source: str, inputs: Array
) -> Array:
    """(B, T or 1, positions, channels) of what one of a layer's sources held.

    The network's input may be given as pixels, as to a run.
    """
    kind, bound = network.edges[source]
    shape, inputs = target.in_shape, np.asarray(inputs)
    if source == network.input_name:
        inputs = at_each_step(network, inputs)
    static = kind == "analog" and inputs.ndim == len(shape) + 1
    if inputs.ndim - len(shape) not in (2 - static, 2) or inputs.shape[-len(shape) :] != shape:
        raise errors.ValidityError(
            f"{target.name}: inputs {inputs.shape} given; it takes ({network.time_steps}, batch, "
            f"{sides(shape)})"
        )
    if not static and len(inputs) != network.time_steps:
        raise errors.ValidityError(
            f"{target.name}: {len(inputs)} steps given; this network runs T = "
            f"{network.time_steps} steps"
        )
    if source == network.input_name:
        called = f"{target.name}: the input"
        array = pixel_rule.input_array(inputs, network.rule, called)
        return by_sample(pixel_rule.taken_by(array, network.rule, called), shape)
    if kind == "analog" and bound is not None:
        return by_sample(_whole(target.name, inputs, bound), shape)
    if kind == "analog":
        values = inputs.astype(np.float32)
        if not np.isfinite(values).all():
            raise errors.ValidityError(f"{target.name}: inputs that are not finite given")
        return by_sample(values, shape)
    least = -(bound or 0) if kind == "signed" else 0
    values = inputs.astype(np.int8 if least else np.uint8)
    sizes = values.min(initial=0), values.max(initial=0)
    if (values != inputs).any() or int(sizes[0]) < least or int(sizes[1]) > (bound or 1):
        raise errors.ValidityError(
            f"{target.name}: inputs must be whole numbers from {least} to {bound}"
        )
    values, live = by_sample(values, shape), network.by_name[source].live_neurons
    if live is not None and values.reshape(*values.shape[:2], -1)[..., ~live].any():
        raise errors.ValidityError(
            f"{target.name}: spikes given of neurons of {source} that are not live"
        )
    return values


def _whole(name: str, inputs: Array, bound: int) -> Array:
    """Currents of integers, int32."""
    values = inputs.astype(np.int32)
    if (values != inputs).any() or np.abs(values).max(initial=0) > bound:
        raise errors.ValidityError(f"{name}: inputs must be whole numbers from -{bound} to {bound}")
    return values


def to_channel_last(x: Array, shape: Shape) -> Array:
    """(..., C, H, W) to (..., H·W, C), or (..., N) to (..., 1, N)."""
    if len(shape) == 1:
        return x[..., None, :]
    lead = x.shape[: x.ndim - 3]
    return x.reshape(*lead, shape[0], shape[1] * shape[2]).swapaxes(-2, -1)


def by_step(values: Array, shape: Shape) -> Array:
    """(B, T, positions, channels) to (T, B, C, H, W) or (T, B, N)."""
    batch, steps = values.shape[:2]
    return np.asarray(values.transpose(1, 0, 3, 2).reshape(steps, batch, *shape))


def sides(shape: Shape) -> str:
    """3, 32, 32."""
    return ", ".join(map(str, shape))
