"""Which form a layer's synapses get: dense rows, compressed rows, or explicit rows.

A convolution's rows are shared by all positions (implicit), contiguous or compressed; they stay in
the cache, but also lead to neurons that are not live. Explicit rows, one per live neuron, hold
nothing but synapses between live neurons, and are read from memory. A matrix has one row per neuron
anyway: dense or explicit.

The rule: the form with the least estimated time per event, which is additions / rate. Additions are
summed over all live presynaptic neurons, as if each spiked once. Explicit rows are only considered
up to `EXPLICIT_BYTES`, and only where bit planes cannot run or few synapses join live neurons.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from soul_deploy.base import Array, dispatch, errors, memory
from soul_deploy.lowering.linear_operators import ConvOperator, MatrixOperator, Operator
from soul_deploy.runtime.format import network as eventnet
from soul_deploy.runtime.format import tap_tables
from soul_deploy.runtime.format.validate import MAX_SYNAPSES
from soul_deploy.runtime.kernels.rows import count_row_synapses, fill_rows
from soul_deploy.runtime.ops.fan_out import additions_map, fanout_map
from soul_deploy.runtime.plan.costs import (
    USUAL_RATE,
    WITH_MASKS,
    WITHOUT_MASKS,
    Costs,
    Expected,
    work_of,
)

Choice = Literal["auto", "implicit", "explicit"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

EXPLICIT_RATE = 0.55
"""Additions per time of explicit rows, relative to shared compressed rows: each event's row comes
from memory, a shared one from the cache. Measured on 6Conv2FC at 0.63 % connectivity and at 2 % of
its weights, half and all of its neurons live: 0.3 to 0.9."""

PLANES_FROM = 0.12
"""Share of a convolution's synapses that join live neurons from which on shared rows on bit planes
(runtime/kernels/bit_planes.py), which add all of them, are faster than explicit ones. 6Conv2FC at
0.63 % connectivity, T = 8, Zen 5: 2.1 → 1.5 ms where half of the sources and targets live, so a
quarter of the synapses; what explicit rows take falls with that share. Without AVX-512 shared rows
mostly go event by event, which takes about as long as explicit ones here, in a file of a tenth."""

Form = Literal["dense", "sparse", "explicit"]

INSTEAD = "Give more with --max_memory, or use --representation implicit"
EXPLICIT_BYTES = 1 << 29
"""Largest explicit form that is chosen unasked: 512 MiB."""


OnPlanes = Callable[[eventnet.ConvSynapses], bool]


def _crossing(processor: Costs, rate: float) -> float:
    """Share of nonzero weights at which a layer takes the same time on whole and on compressed
    rows, in the faster form of each: 3×3, 256→256 at 32×32, T = 4, between layers on bit planes.
    """
    channels, side, taps = 256, 32, 9
    shape, expected = (channels, side, side), Expected(4, 4, rate, packs=False, unpacks=False)
    geometry: Any = ((3, 3), (1, 1), (1, 1), (1, 1), 1, (side, side))

    def times(each: int, *forms: str) -> list[float]:
        """Of rows that hold so many weights each."""
        starts = np.arange(channels * taps + 1, dtype=np.uint32) * np.uint32(each)
        targets = np.zeros(starts[-1], np.uint32)
        rows = eventnet.SparseRows(starts, targets, np.ones(len(targets), np.float32))
        layer = eventnet.ConvSynapses(shape, shape, rows, None, *geometry)
        return [processor.nanoseconds(work_of(layer, form, expected)) for form in forms]

    whole = min(times(0, "dense", "gather"))
    compressed = zip(times(0, "sparse", "planes"), times(1, "sparse", "planes"), strict=True)
    return max((whole - none) / (one - none) for none, one in compressed) / channels


@cache
def dense_from(rate: float) -> float:
    """Share of nonzero weights from which on whole rows are stored, of a layer whose source has
    this expected rate.

    Nobody knows at export what processor will run the file; one that has registers for masks
    (AVX-512) runs compressed rows faster up to a larger share of weights than one that has none.
    The share lies between the two, as many times above the one as below the other: so neither
    loses more.
    """
    with_masks, without = (min(_crossing(each, rate), 1) for each in (WITH_MASKS, WITHOUT_MASKS))
    return round(math.sqrt(with_masks * without), 3)


DENSE_FROM = dense_from(USUAL_RATE)
"""The share at the usual rate; also of matrices, and of convolutions of analog values."""


@dispatch.operation_table(Operator)
def possible_forms(operator: Operator) -> tuple[str, tuple[Form, ...]]:
    """What a projection's operator is, and the forms that it can be stored in."""
    raise possible_forms.unknown(operator)


possible_forms.on(ConvOperator)(lambda _: ("a convolution", get_args(Form)))
possible_forms.on(MatrixOperator)(lambda _: ("a matrix", ("dense", "explicit")))


@dispatch.operation_table(Operator)
def represent(
    operator: Operator,
    source_live: Array | None,
    live: Array | None,
    choice: Choice | Form,
    max_memory: int | None = None,
    on_planes: OnPlanes = lambda shared: False,
    rate: float = USUAL_RATE,
) -> tuple[eventnet.Synapses, tuple[eventnet.Alternative, ...]]:
    """A projection's synapses, and what was weighed.

    source_live, live: bool in the shapes of the source and the output; None: all. on_planes:
    whether shared rows can run on bit planes.
    max_memory: bytes that explicit rows may take; None: what the machine has. Raises LimitError,
    before they are made, for more; "auto" keeps the shared rows instead.
    rate: expected of the source (runtime/plan/costs.py).
    """
    raise represent.unknown(operator)


@represent.on(ConvOperator)
def _represent_convolution(
    operator: ConvOperator,
    source_live: Array | None,
    live: Array | None,
    choice: Choice | Form,
    max_memory: int | None = None,
    on_planes: OnPlanes = lambda shared: False,
    rate: float = USUAL_RATE,
) -> tuple[eventnet.Synapses, tuple[eventnet.Alternative, ...]]:
    shared, sparse = _convolution(operator, choice, rate)
    sources, targets = (_flat(source_live, operator.in_shape), _flat(live, operator.out_shape))
    executed = int((additions_map(shared, 0) * _or_one(source_live)).sum())
    if source_live is None and live is None:
        explicit = int(fanout_map(shared).sum())
    else:
        explicit = int(row_lengths(shared, sparse, sources, targets).sum())
    size = _row_bytes(len(sources), explicit) + _bias_bytes(shared.bias)
    slow = executed * dense_from(rate) if shared.rows.dense else float(executed)
    allowed = EXPLICIT_BYTES if max_memory is None else min(EXPLICIT_BYTES, max_memory)
    better = size <= allowed and explicit / EXPLICIT_RATE < slow
    if better and on_planes(shared):
        better = explicit < PLANES_FROM * int(fanout_map(shared).sum())
    chosen = choice == "explicit" or (choice == "auto" and better)
    if chosen:
        memory.require_memory("the explicit form", size, max_memory, INSTEAD)
    weighed = (
        eventnet.Alternative(shared.rows.kind, _bytes(shared), executed, not chosen),
        eventnet.Alternative("explicit", size, explicit, chosen),
    )
    return explicit_form(shared, sparse, sources, targets) if chosen else shared, weighed


@represent.on(MatrixOperator)
def _represent_matrix(
    operator: MatrixOperator,
    source_live: Array | None,
    live: Array | None,
    choice: Choice | Form,
    max_memory: int | None = None,
    on_planes: OnPlanes = lambda shared: False,
    rate: float = USUAL_RATE,
) -> tuple[eventnet.Synapses, tuple[eventnet.Alternative, ...]]:
    """Rows of a matrix are one per neuron in any form.

    Dense rows hold everything (those of dead neurons are left out when they are loaded), explicit
    rows only synapses between live neurons.
    """
    weight = operator.weight
    kept = weight if source_live is None else weight[:, source_live.reshape(-1)]
    kept = kept if live is None else kept[live.reshape(-1)]
    synapses, bias = int(np.count_nonzero(kept)), _bias_bytes(operator.bias)
    stored = _row_bytes(weight.shape[1], synapses)
    full = synapses >= DENSE_FROM * kept.size
    dense = choice == "dense" or (choice != "explicit" and full)
    rows: eventnet.Rows
    if dense:
        columns = channel_last_order(operator.in_shape)
        order = channel_last_order(operator.out_shape)
        rows = eventnet.DenseRows(np.ascontiguousarray(weight[order][:, columns].T))
    else:
        # Row, target and order of each entry are sorted as 64-bit numbers.
        needed = stored + 40 * synapses
        memory.require_memory("the explicit form", needed, max_memory, INSTEAD)
        sources = _flat(source_live, operator.in_shape)
        rows = _matrix_rows(operator, sources, _flat(live, operator.out_shape))
    weighed = (
        eventnet.Alternative("dense", weight.nbytes + bias, kept.size, dense),
        eventnet.Alternative("explicit", stored + bias, synapses, not dense),
    )
    shapes = operator.in_shape, operator.out_shape
    return eventnet.MatrixSynapses(*shapes, rows, _own(operator.bias)), weighed


def _matrix_rows(operator: MatrixOperator, sources: Array, targets: Array) -> eventnet.SparseRows:
    """Nonzero weights between live neurons, by presynaptic neuron; no dense copy is made."""
    out, inner = np.nonzero(operator.weight)
    weight = operator.weight[out, inner]
    row = _places(operator.in_shape)[inner]
    target = _places(operator.out_shape)[out]
    kept = np.flatnonzero(sources[row] & targets[target])
    kept = kept[np.lexsort((target[kept], row[kept]))]
    return _compressed(row[kept], target[kept], weight[kept], math.prod(operator.in_shape))


def _convolution(
    operator: ConvOperator, choice: Choice | Form, rate: float
) -> tuple[eventnet.ConvSynapses, eventnet.SparseRows]:
    """Rows (channel, kernel row, kernel column), the kernel mirrored; also as compressed rows."""
    weight = operator.weight[:, :, ::-1, ::-1]
    by_source = _by_source(weight, operator.groups)
    sparse = _sparse(_spread_groups(by_source, operator.groups))
    dense = choice == "dense" or (choice != "sparse" and density(weight) >= dense_from(rate))
    reach = tuple(min(operator.reach[i], operator.in_shape[1 + i]) for i in (0, 1))
    kernel = (weight.shape[2], weight.shape[3])
    rows = eventnet.DenseRows(np.array(by_source, order="C")) if dense else sparse
    convolution = eventnet.ConvSynapses(
        *(operator.in_shape, operator.out_shape, rows, _own(operator.bias), kernel),
        *(operator.stride, operator.padding, operator.dilation, operator.groups),
        reach=(reach[0], reach[1]),
    )
    return convolution, sparse


def _by_source(weight: Array, groups: int) -> Array:
    """(C_out, C_in / g, kh, kw) to (C_in, kh, kw, C_out / g)."""
    out, inner, height, width = weight.shape
    split = weight.reshape(groups, out // groups, inner, height, width)
    return split.transpose(0, 2, 3, 4, 1).reshape(groups * inner, height, width, out // groups)


def _spread_groups(by_source: Array, groups: int) -> Array:
    """(C_in, kh, kw, C_out / g) to (C_in·kh·kw, C_out) with zeros across groups."""
    channels, height, width, share = by_source.shape
    spread = np.zeros((channels, height, width, groups, share), by_source.dtype)
    for g in range(groups):
        inside = slice(g * channels // groups, (g + 1) * channels // groups)
        spread[inside, :, :, g] = by_source[inside]
    return spread.reshape(channels * height * width, -1)


def _sparse(dense: Array) -> eventnet.SparseRows:
    """The nonzero entries of (rows, targets), row by row."""
    row, target = np.nonzero(dense)
    return _compressed(row, target, dense[row, target], len(dense))


def _compressed(row: Array, target: Array, weight: Array, count: int) -> eventnet.SparseRows:
    """Compressed rows of entries sorted by row and target."""
    starts = np.zeros(count + 1, np.uint32)
    starts[1:] = np.cumsum(np.bincount(row, minlength=count))
    return eventnet.SparseRows(starts, target.astype(np.uint32), np.ascontiguousarray(weight))


def channel_last_order(shape: eventnet.Shape) -> Array:
    """order[k]: channel-major index of the neuron with channel-last index k."""
    order = np.arange(math.prod(shape)).reshape(shape)
    return (order if len(shape) == 1 else order.transpose(1, 2, 0)).reshape(-1)


def _places(shape: eventnet.Shape) -> Array:
    """The inverse of `channel_last_order`."""
    places = np.empty(math.prod(shape), np.int64)
    places[channel_last_order(shape)] = np.arange(len(places))
    return places


def channel_last_mask(live: Array) -> Array:
    """A mask in a population's shape, flattened channel-last."""
    return np.ascontiguousarray(live.reshape(-1)[channel_last_order(live.shape)])


def _flat(live: Array | None, shape: eventnet.Shape) -> Array:
    return np.ones(math.prod(shape), np.bool_) if live is None else channel_last_mask(live)


def density(weight: Array) -> float:
    """Share of weights that are not 0."""
    return np.count_nonzero(weight) / weight.size


def _or_one(live: Array | None) -> Array | int:
    return 1 if live is None else live


def _row_bytes(rows: int, synapses: int) -> int:
    """Of compressed rows: 4 for each start, 8 for each synapse."""
    return 4 * (rows + 1) + 8 * synapses


def _bytes(convolution: eventnet.ConvSynapses) -> int:
    return sum(array.nbytes for array in convolution.rows.arrays) + _bias_bytes(convolution.bias)


def _own(bias: Array | None) -> Array | None:
    return None if bias is None else bias.copy()


def _bias_bytes(bias: Array | None) -> int:
    return 0 if bias is None else bias.nbytes


def row_lengths(
    convolution: eventnet.ConvSynapses, rows: eventnet.SparseRows, source_live: Array, live: Array
) -> Array:
    """int64 (n_in,): synapses of each explicit row, channel-last.

    rows: the convolution's weights as compressed rows. source_live, live: bool, channel-last.
    """
    lengths = np.empty(math.prod(convolution.in_shape), np.int64)
    nothing = np.empty(0, np.uint32), np.empty(0, rows.weight.dtype)
    count_row_synapses(*_tables(convolution, rows), source_live, live, lengths, *nothing)
    return lengths


def explicit_form(
    convolution: eventnet.ConvSynapses, rows: eventnet.SparseRows, source_live: Array, live: Array
) -> eventnet.MatrixSynapses:
    """The convolution as a matrix of compressed rows; as `row_lengths`.

    Shared rows are written out position by position, without a dense matrix in between: counted
    first, so that the arrays have their final size, then filled.

    Raises LimitError for more synapses than row starts can count.
    """
    lengths = row_lengths(convolution, rows, source_live, live)
    total = int(lengths.sum())
    if total > MAX_SYNAPSES:
        raise errors.LimitError(
            f"{total} explicit synapses; the limit is {MAX_SYNAPSES}. Use implicit rows"
        )
    starts = np.zeros(len(lengths) + 1, np.uint32)
    starts[1:] = np.cumsum(lengths)
    targets, weight = np.empty(total, np.uint32), np.empty(total, rows.weight.dtype)
    fill_rows(*_tables(convolution, rows), source_live, live, lengths, targets, weight)
    shapes = convolution.in_shape, convolution.out_shape
    explicit = eventnet.SparseRows(starts, targets, weight)
    return eventnet.MatrixSynapses(*shapes, explicit, convolution.bias)


def _tables(convolution: eventnet.ConvSynapses, rows: eventnet.SparseRows) -> tuple[Any, ...]:
    """What the kernels read."""
    y, x = (tap_tables.tap_table(convolution, axis, merge=False) for axis in (0, 1))
    channels, _, width = convolution.out_shape
    starts, targets, y_first, x_first = (
        array.astype(np.int64) for array in (rows.starts, rows.targets, y.first, x.first)
    )
    shared = starts, targets, rows.weight, convolution.kernel, width, channels
    return *shared, y_first, y.tap, y.out, x_first, x.tap, x.out
