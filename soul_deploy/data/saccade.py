"""Events of digits that move before an event camera, as N-MNIST was recorded: events5k.

Orchard, Jayawant, Cohen, Thakor, "Converting Static Image Datasets to Spiking Neuromorphic Datasets
Using Saccades", Frontiers in Neuroscience 9:437 (2015): a sensor looks at a still image and is
turned three times, 100 ms each, along an isosceles triangle. Here the image is moved over a sensor
of 34×34 pixels, and everything is whole numbers, so that every machine makes the same events:

path        the image's place goes from (-2, -2) by (0, 2) and (2, -2) back to (-2, -2), in pixels
            (x, y) from the middle of the sensor, in 16 equal steps of 6,250 µs each
intensity   of a pixel: the image's four pixels around it, weighed by eighths of a pixel's distance
            (bilinear), in 255ths
level       how many thresholds the logarithm of (intensity + 0.1) lies above that of black: the
            threshold is 0.45, so that white against black makes 5 events
event       a pixel keeps the level of its last event, at first that of the image at rest. Where the
            level has risen by n, there are n events of polarity 1; where it lies n + 1 below, n of
            polarity 0 (a pixel darkens by a whole threshold before it says so). The k-th of n
            events of a step is at (2k - 1) / 2n of its time
order       by time, then row, then column
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from soul_deploy.base import Array
from soul_deploy.base.events import EVENT, Recording

SIDE = 34
CORNERS = ((-2, -2), (0, 2), (2, -2), (-2, -2))
STEPS, STEP_TIME = 16, 6_250  # of one movement; µs
PATH_TIME = (len(CORNERS) - 1) * STEPS * STEP_TIME
PART = 8  # of a pixel
THRESHOLD, DARK = 0.45, 0.1
CHUNK = 250  # images at a time, so that what is held stays in the processor's cache


def places() -> list[tuple[int, int]]:
    """(x, y) of the image after each step, in eighths of a pixel; first where it rests."""
    found = [(PART * CORNERS[0][0], PART * CORNERS[0][1])]
    for (x0, y0), (x1, y1) in itertools.pairwise(CORNERS):
        for step in range(1, STEPS + 1):
            found.append(
                (
                    PART * x0 + PART * (x1 - x0) * step // STEPS,
                    PART * y0 + PART * (y1 - y0) * step // STEPS,
                )
            )
    return found


def levels() -> Array:
    """Level of each intensity, uint8 (255 · 64 + 1,)."""
    full = 255 * PART * PART
    steps = int(math.log((1 + DARK) / DARK) / THRESHOLD)
    rises = [math.ceil(full * DARK * (math.exp(THRESHOLD * k) - 1)) for k in range(1, steps + 1)]
    found = np.zeros(full + 1, np.uint8)
    for rise in rises:
        found[rise:] += 1
    return found


def recordings(images: Array) -> Iterator[Recording]:
    """A recording of each image; images: uint8 (N, h, w), at most 28×28."""
    table, path = levels(), places()
    for start in range(0, len(images), CHUNK):
        yield from _chunk(images[start : start + CHUNK], table, path)


def _chunk(images: Array, table: Array, path: list[tuple[int, int]]) -> Iterator[Recording]:
    count, height, width = images.shape
    margin = SIDE  # wide enough for every place
    canvas = np.zeros((count, height + 2 * margin, width + 2 * margin), np.uint16)
    canvas[:, margin:-margin, margin:-margin] = images
    corner = (margin - (SIDE - height) // 2, margin - (SIDE - width) // 2)
    kept = _seen(canvas, corner, path[0], table).astype(np.int8)
    found: list[tuple[Array, ...]] = []
    for step, after in enumerate(path[1:]):
        change = _seen(canvas, corner, after, table).astype(np.int8) - kept
        up, down = np.maximum(change, 0), np.maximum(-change - 1, 0)
        kept += up
        kept -= down
        for sign, many in ((1, up), (0, down)):
            found += _events(many, step * STEP_TIME, sign)
    where, time, polarity = map(np.concatenate, zip(*found, strict=True))
    sample, pixel = np.divmod(where, SIDE * SIDE)
    order = np.argsort((sample * PATH_TIME + time) * SIDE**2 + pixel)
    events = np.zeros(len(order), EVENT)
    row, column = np.divmod(pixel, SIDE)
    for name, values in (("t", time), ("y", row), ("x", column), ("p", polarity)):
        events[name] = values[order]
    bounds = np.searchsorted(sample[order], np.arange(count + 1))
    for first, behind in itertools.pairwise(bounds.tolist()):
        yield Recording(events[first:behind], SIDE, SIDE)


def _seen(canvas: Array, corner: tuple[int, int], place: tuple[int, int], table: Array) -> Array:
    """Levels (count, SIDE, SIDE) of the sensor with the image at `place`."""
    (x, fx), (y, fy) = divmod(-place[0], PART), divmod(-place[1], PART)
    top, left = corner[0] + y, corner[1] + x
    part = canvas[:, top : top + SIDE + 1, left : left + SIDE + 1]
    rows = part[:, :-1] * np.uint16(PART - fy) + part[:, 1:] * np.uint16(fy)
    seen = rows[:, :, :-1] * np.uint16(PART - fx) + rows[:, :, 1:] * np.uint16(fx)
    levels: Array = table[seen]
    return levels


def _events(many: Array, begin: int, polarity: int) -> list[tuple[Array, ...]]:
    """Place (of sample and pixel), time and polarity of events, `many` of each pixel in a step."""
    there = np.flatnonzero(many.reshape(-1) != 0)
    found: list[tuple[Array, ...]] = []
    each = many.reshape(-1)[there]
    for total in range(1, int(each.max(initial=0)) + 1):
        place = there[each == total]
        for k in range(1, total + 1):
            time = begin + STEP_TIME * (2 * k - 1) // (2 * total)
            said = np.full(len(place), polarity, np.uint8)
            found.append((place, np.full(len(place), time, np.int64), said))
    return found
