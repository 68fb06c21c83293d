"""Steps that update the neurons that an event reaches, and no others.

A neuron that nothing reaches has the current of its bias alone. As long as it would not fire by
that, its steps are made up for when something reaches it next: the same step, as often as it was
left out, until the membrane stands still. So every membrane has the bits that it has where each
step updates all neurons. Lists are in rising order, so that sums run in the order of the kernels
that go from event to event (synapses.py): by position, then by channel.

counts of a layer: its events of the step (ARRIVED: those that arrive), neurons that are due at the
next step, because they fired (DUE), neurons that were touched (TOUCHED).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba.extending import register_jitable

from soul_deploy.base import Array
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.steps import Form, Numbers, step_of

SENT, DUE, TOUCHED = 0, 1, 2
COUNTS = 3


@register_jitable
def _sort(values: Array, count: int) -> None:
    """The first `count`, in place (Shell 1959; gaps of Ciura)."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(gap, count):
            held, j = values[i], i
            while j >= gap and values[j - gap] > held:
                values[j] = values[j - gap]
                j -= gap
            values[j] = held


@cached_njit
def add_events(
    x: Array, y: Array, p: Array, width: int, height: int, most: int, spikes: bool, values: Array,
    listed: Array, counts: Array,
) -> int:  # fmt: skip
    """Count events (N,) in values (H·W·2,), list the places where there are some.

    Returns 0, or 1 + the index of the first event that lies outside, or whose pixel holds `most`
    already; then none is added.
    """
    bad = 0
    for e in range(len(x)):
        place = (np.int64(y[e]) * width + x[e]) * 2 + p[e]
        outside = x[e] >= width or y[e] >= height or p[e] > 1
        if outside or (values[place] >= most and not spikes):
            bad = e + 1
            break
        if values[place] == 0:
            listed[counts[SENT]] = place
            counts[SENT] += 1
        values[place] = 1 if spikes else values[place] + 1
    for e in range(bad - 1):
        place = (np.int64(y[e]) * width + x[e]) * 2 + p[e]
        values[place] -= 0 if spikes else 1
    return bad


@cached_njit
def sort_events(listed: Array, counts: Array) -> None:
    """Before a step."""
    _sort(listed, counts[SENT])


@cached_njit
def forget_events(values: Array, listed: Array, counts: Array) -> None:
    """Behind a step."""
    for e in range(counts[SENT]):
        values[listed[e]] = 0
    counts[SENT] = 0


@cache
def alone_kernel(form: Form) -> Callable[..., None]:
    """fires[i]: whether neuron i, at `level`, fires by its bias alone; after[i]: its membrane."""
    _, after, own = step_of(form)

    @cached_njit
    def alone(level: Array, bias: Array, numbers: Numbers, fires: Array, membrane: Array) -> None:
        for i in range(len(bias)):
            fires[i], membrane[i] = after(level[i], bias[i], own(numbers, np.uint64(i)))

    return alone


Reached = tuple[Array, Array, Array]
"""Currents, marks, and the list of neurons that are touched."""


@register_jitable
def _touch(i: int, n: int, bias: Array, reached: Reached) -> int:
    """List neuron i, if it is not; how many are listed then."""
    current, marked, touched = reached
    if marked[i] == 0:
        marked[i], touched[n], current[i] = 1, i, bias[i]
        return n + 1
    return n


@register_jitable
def _reach(
    sources: Array, values: Array, arriving: Array, rows: tuple[Array, Array, Array], bias: Array,
    reached: Reached,
) -> int:  # fmt: skip
    """Add what arrives to the currents of its targets; how many these are."""
    (starts, targets, weight), current, n = rows, reached[0], 0
    for e in range(arriving[SENT]):
        j = sources[e]
        amount = current.dtype.type(values[j])
        for k in range(starts[j], starts[j + 1]):
            i = targets[k]
            n = _touch(i, n, bias, reached)
            current[i] += amount * weight[k]
    return n


@register_jitable
def _add_due(
    n: int, due: Array, always: Array, counts: Array, bias: Array, reached: Reached
) -> int:
    """Neurons that fired at the step before, or that may fire by themselves."""
    for e in range(counts[DUE]):
        n = _touch(due[e], n, bias, reached)
    for e in range(len(always)):
        n = _touch(always[e], n, bias, reached)
    return n


@cache
def touched_kernel(form: Form) -> Callable[..., None]:
    """One step of a layer, for the neurons that events reach, that are due, or that always are."""
    _, after, own = step_of(form)

    @cached_njit
    def advance(
        sources: Array, values: Array, arriving: Array, starts: Array, targets: Array,
        weight: Array, bias: Array, numbers: Numbers, always: Array, step: Array, v: Array,
        last: Array, current: Array, marked: Array, touched: Array, old_v: Array, old_last: Array,
        due: Array, fired: Array, counts: Array,
    ) -> None:  # fmt: skip
        """sources[e], of arriving[SENT], and values[sources[e]]: what arrives. starts, targets,
        weight: the synapses of each source. bias (n,), always: neurons. last (n,): the step that a
        neuron was updated at. fired: those that do, in rising order; counts of this layer.
        """
        rows = starts, targets, weight
        n = _reach(sources, values, arriving, rows, bias, (current, marked, touched))
        n = _add_due(n, due, always, counts, bias, (current, marked, touched))
        now = step[0]
        f = 0
        for e in range(n):
            i = np.int64(touched[e])
            marked[i] = 0
            mine, membrane = own(numbers, np.uint64(i)), v[i]
            old_v[e], old_last[e] = membrane, last[i]
            for _ in range(now - 1 - last[i]):
                _, left = after(membrane, bias[i], mine)
                if left == membrane:
                    break
                membrane = v.dtype.type(left)
            spike, left = after(membrane, current[i], mine)
            v[i], last[i] = left, now
            if spike:
                fired[f] = i
                f += 1
        _sort(fired, f)
        counts[SENT], counts[TOUCHED] = f, n

    return advance


@cached_njit
def commit(due: Array, fired: Array, counts: Array) -> None:
    """The step is done: those that fired are due at the next one, whatever arrives."""
    for e in range(counts[SENT]):
        due[e] = fired[e]
    counts[DUE] = counts[SENT]


@cached_njit
def undo(
    v: Array, last: Array, touched: Array, old_v: Array, old_last: Array, counts: Array
) -> None:
    """The step was tried only."""
    for e in range(counts[TOUCHED]):
        v[touched[e]], last[touched[e]] = old_v[e], old_last[e]


@cached_njit
def pool(
    sources: Array, values: Array, arriving: Array, width: int, kernel: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], channels: int, out_sides: tuple[int, int],
    out: Array, fired: Array, counts: Array,
) -> None:  # fmt: skip
    """Maxima over windows, of the events that arrive; out holds zeros, and the maxima behind it."""
    f = 0
    for e in range(arriving[SENT]):
        j = np.int64(sources[e])
        position, c = j // channels, j % channels
        y, x = position // width + padding[0], position % width + padding[1]
        top = max(0, int((y - kernel[0]) // stride[0] + 1))
        left = max(0, int((x - kernel[1]) // stride[1] + 1))
        below = min(out_sides[0], int(y // stride[0] + 1))
        right = min(out_sides[1], int(x // stride[1] + 1))
        for oy in range(top, below):
            for ox in range(left, right):
                i = (oy * out_sides[1] + ox) * channels + c
                if out[i] == 0:
                    fired[f] = i
                    f += 1
                out[i] = max(out[i], values[j])
    _sort(fired, f)
    counts[SENT] = f


@cached_njit
def place(fired: Array, counts: Array, values: Array) -> None:
    """Spikes of a list into a map of zeros."""
    for e in range(counts[SENT]):
        values[fired[e]] = 1


@cached_njit
def clear(fired: Array, counts: Array, values: Array) -> None:
    """A map that held the events of a list, zeros again."""
    for e in range(counts[SENT]):
        values[fired[e]] = 0
