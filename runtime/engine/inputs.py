"""Inputs of a network: checked, normalised, and stored channel-last, sample by sample."""

import warnings

import numpy as np

from soul_deploy.base import Array, errors, input_rule
from soul_deploy.runtime.format.network import EventNetwork, Layer, ReadoutLayer, Shape


def input_of(network: EventNetwork, x: object) -> Array:
    """`x` as an array (B, ...) or (T, B, ...) that the network takes. Raises ValidityError."""
    array, shape = input_rule.input_array(x, network.rule), network.input_shape
    static = array.ndim == len(shape) + 1
    if array.shape[-len(shape) :] != shape or array.ndim - len(shape) not in (1, 2):
        raise errors.ValidityError(
            f"input {array.shape} given; this network takes (batch, {sides(shape)}), or "
            f"({network.time_steps}, batch, {sides(shape)}) for a sequence"
        )
    if not static and len(array) != network.time_steps:
        raise errors.ValidityError(
            f"a sequence of {len(array)} steps given; this network runs T = {network.time_steps} "
            "steps"
        )
    return array


def samples_of(network: EventNetwork, x: object) -> Array:
    """(B, T or 1, positions, channels) float32, pixels normalised. Raises ValidityError."""
    return by_sample(network, input_rule.numbers_of(input_of(network, x), network.rule))


def frame_of(network: EventNetwork, x: object) -> Array:
    """`x` as an array (B, ...) of one step. Raises ValidityError."""
    array, shape = input_rule.input_array(x, network.rule), network.input_shape
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        raise errors.ValidityError(
            f"a step of {array.shape} given; this network takes (batch, {sides(shape)}) per step"
        )
    return array


class InputReader:
    """Reads a network's inputs by its rule; warns once of numbers that look like pixels."""

    def __init__(self, network: EventNetwork) -> None:
        self.network = network
        self._warned = False

    def values(self, x: object) -> Array:
        """float32 (B, ...) or (T, B, ...), pixels normalised. Raises ValidityError."""
        return self._numbers(input_of(self.network, x))

    def samples(self, x: object) -> Array:
        """As `samples_of`."""
        return by_sample(self.network, self._numbers(input_of(self.network, x)))

    def frames(self, x: object) -> Array:
        """(B, positions, channels) float32 of one step. Raises ValidityError."""
        values = self._numbers(frame_of(self.network, x))
        return to_channel_last(values, self.network.input_shape)

    def _numbers(self, array: Array) -> Array:
        values = input_rule.numbers_of(array, self.network.rule)
        if array.dtype.kind == "f" and not self._warned:
            text = input_rule.looks_like_pixels(values, self.network.rule)
            if text is not None:
                self._warned = True
                warnings.warn(
                    errors.NetworkWarning(text), stacklevel=4
                )  # whoever called the network
        return values


def by_sample(network: EventNetwork, values: Array) -> Array:
    """(B, T or 1, positions, channels) of (B, ...) or (T, B, ...)."""
    shape = network.input_shape
    static = values.ndim == len(shape) + 1
    return np.swapaxes(to_channel_last(values[None] if static else values, shape), 0, 1)


def source_values(
    network: EventNetwork, target: Layer | ReadoutLayer, source: str, inputs: Array
) -> Array:
    """(B, T or 1, positions, channels) of what one of a layer's sources held.

    The network's input may be given as pixels, as to a run.
    """
    kind, bound = network.edges[source]
    shape, inputs = target.in_shape, np.asarray(inputs)
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
        array = input_rule.input_array(inputs, network.rule, f"{target.name}: the input")
        return by_sample(
            network, input_rule.numbers_of(array, network.rule, f"{target.name}: the input")
        )
    if kind == "analog":
        values = inputs.astype(np.float32)
        if not np.isfinite(values).all():
            raise errors.ValidityError(f"{target.name}: inputs that are not finite given")
        return np.swapaxes(to_channel_last(values[None] if static else values, shape), 0, 1)
    values = inputs.astype(np.uint8)
    if (values != inputs).any() or int(values.max(initial=0)) > (bound or 1):
        raise errors.ValidityError(f"{target.name}: inputs must be whole numbers from 0 to {bound}")
    values = np.swapaxes(to_channel_last(values, shape), 0, 1)
    _check_dead(target.name, network.by_name[source], values)
    return values


def _check_dead(target: str, source: Layer, values: Array) -> None:
    if source.live_neurons is not None:
        dead = values.reshape(*values.shape[:2], -1)[..., ~source.live_neurons]
        if dead.any():
            raise errors.ValidityError(
                f"{target}: spikes given of neurons of {source.name} that are not live"
            )


def to_channel_last(x: Array, shape: Shape) -> Array:
    """(..., C, H, W) to (..., H·W, C), or (..., N) to (..., 1, N)."""
    if len(shape) == 1:
        return x[..., None, :]
    lead = x.shape[: x.ndim - 3]
    return np.moveaxis(x.reshape(*lead, shape[0], shape[1] * shape[2]), -2, -1)


def to_channel_major(values: Array, shape: Shape) -> Array:
    """(T, positions, channels) to (T, C, H, W) or (T, N)."""
    return np.swapaxes(values, 1, 2).reshape(len(values), *shape)


def by_step(values: Array, shape: Shape) -> Array:
    """(B, T, positions, channels) to (T, B, C, H, W) or (T, B, N)."""
    batch, steps = values.shape[:2]
    stepwise: Array = values.transpose(1, 0, 3, 2).reshape(steps, batch, *shape)
    return stepwise


def sides(shape: Shape) -> str:
    """3, 32, 32."""
    return ", ".join(map(str, shape))
