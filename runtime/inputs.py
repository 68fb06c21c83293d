"""What goes into a network, and how it lies in memory: channel-last, sample by sample."""

import numpy as np

from soul_deploy.runtime.errors import ValidityError
from soul_deploy.runtime.eventnet import EventNetwork, Firing, Layer, ReadoutLayer, Shape
from soul_deploy.runtime.files import Array


def samples_of(network: EventNetwork, x: Array) -> Array:
    """(B, T or 1, positions, channels) float32. Raises ValidityError."""
    x, shape = numbers_of(x), network.input_shape
    static = x.ndim == len(shape) + 1
    if x.shape[-len(shape) :] != shape or x.ndim - len(shape) not in (1, 2):
        raise ValidityError(
            f"input {x.shape} given; this network takes (batch, {sides(shape)}), or "
            f"({network.time_steps}, batch, {sides(shape)}) for a sequence"
        )
    if not static and len(x) != network.time_steps:
        raise ValidityError(
            f"a sequence of {len(x)} steps given; this network runs T = {network.time_steps} steps"
        )
    return np.swapaxes(to_channel_last(x[None] if static else x, shape), 0, 1)


def numbers_of(x: object) -> Array:
    """float32. Raises ValidityError for what is no array of real, finite numbers."""
    try:
        given = np.asarray(x)
    except ValueError as error:
        raise ValidityError(f"the input is no array ({error}); give one of float32") from error
    if given.dtype.kind not in "biuf":
        raise ValidityError(f"an input of {given.dtype} given; give real numbers, best float32")
    with np.errstate(over="ignore"):
        values: Array = given.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ValidityError("the input holds values that are not finite; check its scaling")
    return values


def source_values(
    network: EventNetwork, target: Layer | ReadoutLayer, source: str, inputs: Array
) -> Array:
    """(B, T or 1, positions, channels) of what one of a layer's sources held."""
    kind, bound = network.edges[source]
    shape, inputs = target.in_shape, np.asarray(inputs)
    static = kind == "analog" and inputs.ndim == len(shape) + 1
    if inputs.ndim - len(shape) not in (2 - static, 2) or inputs.shape[-len(shape) :] != shape:
        raise ValidityError(
            f"{target.name}: inputs {inputs.shape} given; it takes ({network.time_steps}, batch, "
            f"{sides(shape)})"
        )
    if not static and len(inputs) != network.time_steps:
        raise ValidityError(
            f"{target.name}: {len(inputs)} steps given; this network runs T = "
            f"{network.time_steps} steps"
        )
    if kind == "analog":
        values = inputs.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValidityError(f"{target.name}: inputs that are not finite given")
        return np.swapaxes(to_channel_last(values[None] if static else values, shape), 0, 1)
    values = inputs.astype(np.uint8)
    if (values != inputs).any() or int(values.max(initial=0)) > (bound or 1):
        raise ValidityError(f"{target.name}: inputs must be whole numbers from 0 to {bound}")
    values = np.swapaxes(to_channel_last(values, shape), 0, 1)
    _check_dead(target.name, network.by_name[source], values)
    return values


def _check_dead(target: str, source: Layer, values: Array) -> None:
    if isinstance(source, Firing) and source.live is not None:
        dead = values.reshape(*values.shape[:2], -1)[..., ~source.live]
        if dead.any():
            raise ValidityError(
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
    found: Array = values.transpose(1, 0, 3, 2).reshape(steps, batch, *shape)
    return found


def sides(shape: Shape) -> str:
    """3, 32, 32."""
    return ", ".join(map(str, shape))
