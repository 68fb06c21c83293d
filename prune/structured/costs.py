"""What channels cost: for each projection, each pair of an input and an output channel.

A projection's cost is a sum over pairs of its open input and output channels. What a channel's
removal saves is then its row where it is an output channel and its column where it is an input
channel, of what is open besides: its marginal cost. Costs are exact integers in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy.base import brief, dispatch
from soul_deploy.lowering import fan_out, linear_operators
from soul_deploy.prune.structured.selection import Flags, Values

Keep = Mapping[str, Flags]
"""Unit -> which of its channels are open."""


@brief
@dataclass(frozen=True)
class PairCosts:
    """The costs of one projection, or of the readout's head.

    pairs    (C_out, C_in): what a pair costs while both its channels are open
    per_row  (C_out,): what an output channel costs besides (its bias, its batch norm)
    writer   the unit whose channels the rows are; None: they are always open
    readers  unit -> (C_in,): which share of a column goes with the unit's channel
    """

    name: str
    pairs: Values
    per_row: Values
    writer: str | None
    readers: Mapping[str, Values]

    def rows(self, keep: Keep) -> Values:
        """1 for an open output channel, else 0: (C_out,)."""
        opened = np.ones(len(self.pairs))
        if self.writer is not None:
            opened[: len(keep[self.writer])] = keep[self.writer]
        return opened

    def columns(self, keep: Keep) -> Values:
        """Which share of each input channel is open: (C_in,)."""
        opened = np.ones(self.pairs.shape[1])
        for unit, share in self.readers.items():
            flags = keep[unit]
            opened[: len(flags)] -= share[: len(flags)] * ~flags
        return opened


@brief
@dataclass(frozen=True)
class Costs:
    """The costs of a network.

    widths  unit -> channels
    fixed   what no channel changes
    prices  what channels are weighed by, where that is not what is counted here; None: it is
    """

    parts: tuple[PairCosts, ...]
    widths: Mapping[str, int]
    fixed: float = 0.0
    prices: "Costs | None" = None

    def counted(self) -> "Costs":
        """A cost of 1 for each channel, which these costs are the price of."""
        parts = (
            PairCosts(name, np.zeros((width, 1)), np.ones(width), name, {})
            for name, width in self.widths.items()
        )
        return Costs(tuple(parts), self.widths, prices=self)

    def total(self, keep: Keep) -> float:
        """The cost of the network in which `keep` is open."""
        return self.fixed + sum(self.by_part(keep).values())

    def by_part(self, keep: Keep) -> dict[str, float]:
        """The cost of each projection and of the head."""
        return {
            part.name: float(part.rows(keep) @ (part.pairs @ part.columns(keep) + part.per_row))
            for part in self.parts
        }

    def all_open(self) -> dict[str, Flags]:
        """Every unit with all its channels."""
        return {unit: np.ones(width, np.bool_) for unit, width in self.widths.items()}

    def outgoing(self, keep: Keep) -> dict[str, Values]:
        """What each channel costs in the projections that read it, closed or not: (C,) by unit."""
        found = {unit: np.zeros(width) for unit, width in self.widths.items()}
        for part in self.parts:
            caused = part.rows(keep) @ part.pairs
            for unit, share in part.readers.items():
                width = self.widths[unit]
                found[unit] += (caused * share)[:width]
        return found

    def marginal(self, keep: Keep) -> dict[str, Values]:
        """What opening or closing each channel alone changes, the others as `keep` has them."""
        found = self.outgoing(keep)
        for part in self.parts:
            if part.writer is None:
                continue
            width = self.widths[part.writer]
            row = part.pairs @ part.columns(keep) + part.per_row
            found[part.writer] += row[:width]
            if part.writer in part.readers:  # a channel's pair with itself: in its row and column
                both = np.diagonal(part.pairs)[:width] * part.readers[part.writer][:width]
                found[part.writer] -= np.where(keep[part.writer], both, -both)
        return found


@dispatch.operation_table(linear_operators.LinearOperator)
def pair_sums(
    operator: linear_operators.LinearOperator, values: Tensor, live: Tensor | None = None
) -> Values:
    """What is delivered from each input channel to each output channel: (C_out, C_in).

    values: what each input delivers to each of its targets, (*in_shape) in float64, such as its
    spikes, or 1 to count synapses. live: 0/1 of the output's shape; None: all targets are.
    """
    raise pair_sums.unknown(operator)


@pair_sums.on(linear_operators.ConvOperator)
def _convolution(
    op: linear_operators.ConvOperator, values: Tensor, live: Tensor | None = None
) -> Values:
    kernel = op.weight.shape[2:]
    padded = fan_out.padded(op, values[None])
    windows = F.unfold(padded, kernel, op.dilation, 0, op.stride)
    taps = windows.reshape(op.in_shape[0], -1, windows.shape[-1])  # (C_in, kh · kw, positions)
    exists = fan_out.nonzero(op.weight).flatten(2)
    inner, outer = exists.shape[1], len(exists) // op.groups
    pairs = torch.zeros(len(exists), op.in_shape[0], dtype=torch.float64)
    for group in range(op.groups):
        o, c = slice(group * outer, (group + 1) * outer), slice(group * inner, (group + 1) * inner)
        if live is None:
            pairs[o, c] = torch.einsum("ock,ck->oc", exists[o], taps[c].sum(2))
        else:
            met = torch.einsum("ckl,ol->ock", taps[c], live[o].flatten(1))
            pairs[o, c] = (exists[o] * met).sum(2)
    return np.asarray(pairs.numpy())


@pair_sums.on(linear_operators.MatrixOperator)
def _matrix(
    op: linear_operators.MatrixOperator, values: Tensor, live: Tensor | None = None
) -> Values:
    delivered = fan_out.nonzero(op.weight) * values.reshape(1, -1)
    if live is not None:
        delivered = delivered * live.reshape(-1, 1)
    return _by_channel(delivered, op.out_shape[0], op.in_shape[0])


@pair_sums.on(linear_operators.ReadoutOperator)
def _readout(
    op: linear_operators.ReadoutOperator, values: Tensor, live: Tensor | None = None
) -> Values:
    """Scores are never masked."""
    counts = values.sum((1, 2)) if op.space else values
    if op.weight is None:
        return np.zeros((op.out_shape[0], op.in_shape[0]))
    delivered = fan_out.nonzero(op.weight) * counts.reshape(1, -1)
    return _by_channel(delivered, len(op.weight), op.in_shape[0])


def _by_channel(delivered: Tensor, outputs: int, inputs: int) -> Values:
    """Sums over the positions of a channel: (C_out · n, C_in · m) -> (C_out, C_in)."""
    blocks = delivered.reshape(outputs, len(delivered) // outputs, inputs, -1)
    return np.asarray(blocks.sum((1, 3)).numpy())
