"""What numbers given to a network mean. One rule, by the kind of input that its file records.

images    uint8 are pixels, and become (pixel / 255 - mean) / std per channel as the file says
          (pixel / 255 if it says nothing); floating-point numbers are taken as they are; other
          numbers are refused, since nothing says what they are
counts, spikes, values
          numbers of any dtype are taken as they are

Counts and spikes are *events*: whole numbers from 0 to a bound that a network is made for, at most
MOST_COUNT, of spikes 1. Networks of before, whose files have no bound, take any numbers there.

A fixed-point network takes integers (docs/fixed-point.md): of images, uint8 pixels minus the zero
of their channel; counts and spikes as they are; nothing that is no whole number.

Files that do not say their kind are older, and hold networks for images.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

import numpy as np

from soul_deploy.base import Array, errors

InputKind: TypeAlias = Literal["images", "counts", "spikes", "values"]
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)
KIND_OF_OLD_FILES: InputKind = "images"
EVENT_KINDS: tuple[InputKind, ...] = ("counts", "spikes")
MOST_COUNT = 255
"""The largest value of an event, which travels in a byte."""


@dataclass(frozen=True)
class Integers:
    """The whole numbers that a fixed-point network takes.

    low, high   the least and the largest one, within int16
    zero        per channel, or one for all: what is taken off pixels; empty: nothing
    """

    low: int
    high: int
    zero: tuple[int, ...] = ()


@dataclass(frozen=True)
class InputRule:
    """What a network takes.

    shape       (C, H, W), or (N,)
    time_steps  T of a sequence
    mean, std   per channel, of pixels in [0, 1]; empty: pixels / 255 as they are
    resize      scale image files of another size (bilinear) instead of refusing them
    kind        what the numbers are
    integers    of a fixed-point network, which takes nothing else
    events      of counts and spikes, the largest value; None: any number is taken
    """

    shape: tuple[int, ...]
    time_steps: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: bool = False
    kind: InputKind = "images"
    integers: Integers | None = None
    events: int | None = None


def is_input_kind(value: object) -> TypeGuard[InputKind]:
    """Whether it is one of INPUT_KINDS."""
    return isinstance(value, str) and value in INPUT_KINDS


def normalise(pixels: Array, rule: InputRule) -> Array:
    """(pixel / 255 - mean) / std per channel in float32, for uint8 (..., C, H, W) or (..., N); the
    integers of a fixed-point network.

    Raises ValidityError for another dtype or shape, UsageError for a network of no images.
    """
    pixels = np.asarray(pixels)
    if rule.kind != "images":
        raise errors.UsageError(
            f"this network takes {rule.kind}, which are not normalised; only pixels"
        )
    if pixels.dtype != np.uint8:
        raise errors.ValidityError(f"{pixels.dtype} given to normalise; pixels are uint8, 0 to 255")
    if pixels.shape[-len(rule.shape) :] != rule.shape:
        told = f"pixels of {pixels.shape} given; this network takes {rule.shape}"
        raise errors.ValidityError(told)
    if rule.integers is not None:
        return integers_of(pixels, rule)
    scaled = pixels.astype(np.float32) / np.float32(255)
    if not rule.mean:
        return scaled
    mean, std = _by_channel(rule)
    result: Array = (scaled - mean) / std
    return result


def _by_channel(rule: InputRule) -> tuple[Array, Array]:
    channels = (2, -1, *([1] * (len(rule.shape) - 1)))
    mean, std = np.array([rule.mean, rule.std], np.float32).reshape(channels)
    return mean, std


def input_array(x: object, rule: InputRule, what: str = "the input") -> Array:
    """`x` as an array whose numbers have a meaning to the network. Raises ValidityError."""
    try:
        given = np.asarray(x)
    except ValueError as error:
        raise errors.ValidityError(f"{what} is no array ({error}); give one of float32") from error
    if given.dtype.kind not in "biuf":
        raise errors.ValidityError(
            f"{what} holds no numbers: an input of {given.dtype} given; give real numbers, best "
            "float32"
        )
    if rule.integers is not None:
        return _whole_input(given, rule, what)
    if rule.kind == "images" and given.dtype != np.uint8 and given.dtype.kind != "f":
        raise errors.ValidityError(
            f"{what} holds {given.dtype}; needed: floating-point values (normalised) or uint8 "
            "pixels, since the network takes images"
        )
    return given


def _whole_input(given: Array, rule: InputRule, what: str) -> Array:
    """`given`, where its dtype can be one of a fixed-point network."""
    if rule.kind == "images" and given.dtype.kind not in "iu":
        raise errors.ValidityError(
            f"{what} holds {given.dtype}; a fixed-point network takes uint8 pixels, whose integers "
            "normalised values have lost"
        )
    return given


def integers_of(given: Array, rule: InputRule, what: str = "the input") -> Array:
    """int16 of the same shape, (..., *rule.shape): what a fixed-point network computes with.

    given: from `input_array`. uint8 of images are pixels, of which the channel's zero is taken off;
    other integers of images are taken as what is left then. Raises ValidityError for numbers that
    are not whole, or outside of what the network takes.
    """
    found = rule.integers
    assert found is not None
    if rule.kind == "images" and given.dtype == np.uint8:
        values = given.astype(np.int16)
        if found.zero:
            values -= np.array(found.zero, np.int16).reshape(-1, *[1] * (len(rule.shape) - 1))
        return values
    low, high = (given.min(initial=0), given.max(initial=0)) if given.size else (0, 0)
    if not (found.low <= low and high <= found.high):  # false for a NaN
        raise errors.ValidityError(
            f"{what} holds numbers from {low} to {high}; this network takes {rule.kind} of "
            f"integers from {found.low} to {found.high}"
        )
    whole: Array = given.astype(np.int16)
    if given.dtype.kind == "f" and not np.array_equal(whole, given):
        raise errors.ValidityError(
            f"{what} holds numbers that are not whole; a fixed-point network takes integers"
        )
    return whole


def events_of(given: Array, rule: InputRule, what: str = "the input") -> Array:
    """uint8 of the same shape, (..., *rule.shape): the events of a network of counts or spikes.

    given: from `input_array`. Raises ValidityError for numbers that are not whole, or not from 0 to
    what the network takes.
    """
    most = rule.events
    assert most is not None
    low, high = (given.min(initial=0), given.max(initial=0)) if given.size else (0, 0)
    if not (low >= 0 and high <= most):  # false for a NaN
        more = "; what is above can be cut off by np.minimum, as in training" if low >= 0 else ""
        raise errors.ValidityError(
            f"{what} holds numbers from {low} to {high}; this network takes {rule.kind}, whole "
            f"numbers from 0 to {most}{more}"
        )
    whole: Array = given.astype(np.uint8)
    if given.dtype.kind == "f" and not np.array_equal(whole, given):
        raise errors.ValidityError(
            f"{what} holds numbers that are not whole; this network takes {rule.kind}, whole "
            f"numbers from 0 to {most}"
        )
    return whole


def taken_by(given: Array, rule: InputRule, what: str = "the input") -> Array:
    """What the event runtime computes with: uint8 of events, otherwise as `numbers_of`."""
    return numbers_of(given, rule, what) if rule.events is None else events_of(given, rule, what)


def numbers_of(given: Array, rule: InputRule, what: str = "the input") -> Array:
    """float32 of the same shape, (..., *rule.shape): what the network computes with; int16, as
    `integers_of`, of a fixed-point network.

    given: from `input_array`. Raises ValidityError for values that are not finite in float32, and
    for what are no events where the network takes these.
    """
    if rule.events is not None:
        events = events_of(given, rule, what)
        return events.astype(np.float32 if rule.integers is None else np.int16)
    if rule.integers is not None:
        return integers_of(given, rule, what)
    if rule.kind == "images" and given.dtype == np.uint8:
        return normalise(given, rule)
    if given.dtype.kind == "f" and not _finite(given):
        raise errors.ValidityError(f"{what} holds values that are not finite; give real numbers")
    if given.dtype == np.float32:
        return given
    with np.errstate(over="ignore"):
        values: Array = given.astype(np.float32)
    if not _finite(values):
        raise errors.ValidityError(
            f"{what} holds {given.dtype} values beyond float32, in which networks run (3.4e38): "
            "values that are not finite; check its scaling"
        )
    return values


def _finite(values: Array) -> bool:
    return bool(np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0)))


def looks_like_pixels(values: Array, rule: InputRule) -> str | None:
    """What is suspicious about floating-point values, as a sentence; None if nothing is.

    With a normalisation, black is (0 - mean) / std and white (1 - mean) / std. Values from 0 to 255
    that reach beyond white are pixels that nobody has normalised. (Pixels / 255 cannot be told from
    bright normalised ones.)
    """
    if rule.kind != "images" or not rule.mean or not values.size or rule.integers is not None:
        return None
    low, high = float(values.min()), float(values.max())
    mean, std = _by_channel(rule)
    black, white = float((-mean / std).min()), float(((1 - mean) / std).max())
    beyond = white + 1e-3 * max(1.0, abs(white))  # whoever normalises in float64 rounds elsewhere
    if low < 0 or high > 255 or high <= beyond:
        return None
    return (
        "floating-point values were given that look like pixels that nobody normalised: normalised "
        f"as the network's file says, pixels reach from {black:.3g} to {white:.3g}; give the "
        "pixels as uint8, which are normalised, or what normalise(pixels) makes of them"
    )


def random_inputs(rule: InputRule, count: int, seed: int) -> Array:
    """float32 (count, *rule.shape) of the rule's kind; int16 of a fixed-point network.

    images: uniform pixels, normalised; counts: Poisson with mean 1; spikes: 0 or 1, as often;
    values: normal, mean 0 and deviation 1.
    """
    random, shape = np.random.default_rng(seed), (count, *rule.shape)
    drawn: Any
    if rule.kind == "images":
        return numbers_of(random.integers(0, 256, shape).astype(np.uint8), rule)
    if rule.kind == "counts":
        drawn = random.poisson(1.0, shape)
    elif rule.kind == "spikes":
        drawn = random.integers(0, 2, shape)
    else:
        drawn = random.normal(size=shape)
    found: Array = drawn.astype(np.float32)
    if rule.events is not None:
        return numbers_of(np.minimum(found, rule.events), rule)
    if rule.integers is not None:
        return integers_of(np.minimum(found, rule.integers.high), rule)
    return found
