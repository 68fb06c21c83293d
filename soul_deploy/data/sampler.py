"""The order of the training samples and how they are moved: functions of (seed, epoch, batch).

Nothing here remembers anything, so an epoch can be entered at any batch, and several processes see
the same order without talking to each other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.base import brief
from soul_deploy.data.datasets import Split
from soul_deploy.distributed import Group

Augment = Literal["none", "shift", "crop_flip", "dvs15", "dvs30"]
SHIFT = {"none": 0, "shift": 2, "crop_flip": 4}
DVS = {"dvs15": (15.0, 3), "dvs30": (30.0, 5)}
"""Degrees and pixels of Soul's DVSAugment (soul/utils/dataset/vision_dataset.py)."""
AUGMENTS: tuple[Augment, ...] = get_args(Augment)


def generator_of(seed: int, *place: int) -> torch.Generator:
    """A generator for a place in a run, such as (epoch, batch); places are independent.

    numpy's SeedSequence mixes them (numpy documentation, "Parallel random number generation").
    """
    (mixed,) = np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed) & (2**63 - 1))


@dataclass(frozen=True)
class DataOrder:
    """Which samples each batch of each epoch holds. Epochs and batches count from 0."""

    samples: int
    batch_size: int
    seed: int

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """Indexes (B,) of the epoch's batches, all processes' shares together."""
        order = torch.randperm(self.samples, generator=generator_of(self.seed, epoch))
        return torch.split(order, self.batch_size)

    def random(self, epoch: int, batch: int) -> torch.Generator:
        """What moves the images of one batch."""
        return generator_of(self.seed, epoch, batch)


@brief
@dataclass(frozen=True)
class Share:
    """A process's part of a batch of `samples`: its own samples, and their weight in the mean."""

    own: Split
    weight: float
    samples: int

    def whole(self, loss: Tensor, scores: Tensor, labels: Tensor) -> tuple[float, int]:
        """The batch's mean loss and correct samples, from those of all processes' parts."""
        hits = int((scores.argmax(1) == labels).sum()) / len(labels)
        sums = distributed.current().sums([loss.item() * self.weight, hits * self.weight])
        return sums[0], round(sums[1] * self.samples)


def share_of(batch: Split, group: Group) -> Share:
    """This process's part of a batch."""
    part = group.part(len(batch))
    return Share(Split(batch.images[part.index], batch.labels[part.index]), part.weight, len(batch))


@brief
@dataclass(frozen=True)
class EpochBatches:
    """One epoch's batches of a split, as a process gets them.

    Images are moved by what is drawn for the whole batch, so a sample looks the same on however
    many processes.
    """

    split: Split
    order: DataOrder
    augment: Augment
    epoch: int
    group: Group

    @cached_property
    def indexes(self) -> tuple[Tensor, ...]:
        """Of the samples of each batch."""
        return self.order.batches(self.epoch)

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, batch: int) -> Share:
        """This process's part of batch number `batch`."""
        index = self.indexes[batch]
        moves = draw_moves(len(index), self.augment, self.order.random(self.epoch, batch))
        part = self.group.part(len(index))
        own = self.split.select(index[part.index])
        if moves is not None:
            own = Split(moved(own.images, moves[part.index], self.augment), own.labels)
        return Share(own, part.weight, len(index))


def draw_moves(count: int, kind: Augment, random: torch.Generator) -> Tensor | None:
    """(count, 3) integers: rows down and columns right over a border, mirrored or not.

    Of DVS (count, 4): rolled (0), turned (1) or sheared (2), each as often; rows and columns to
    roll by; degrees.
    """
    if kind == "none":
        return None
    if kind in DVS:
        degrees, reach = DVS[kind]
        which = torch.randint(0, 3, (count, 1), generator=random)
        places = torch.randint(-reach, reach + 1, (count, 2), generator=random)
        angle = (2 * torch.rand(count, 1, generator=random) - 1) * degrees
        return torch.cat([which, places, angle], 1)
    places = torch.randint(0, 2 * SHIFT[kind] + 1, (count, 2), generator=random)
    mirrored = torch.rand(count, 1, generator=random) < (0.5 if kind == "crop_flip" else 0.0)
    return torch.cat([places, mirrored.to(places.dtype)], 1)


def moved(images: Tensor, moves: Tensor, kind: Augment) -> Tensor:
    """Images (B, C, H, W), each moved over a black border, perhaps mirrored along x; the frames of
    a sequence (B, T, C, H, W) all alike. Channels, polarities among them, stay what they are.
    """
    if images.ndim == 5:
        return moved(images.flatten(1, 2), moves, kind).reshape(images.shape)
    if kind in DVS:
        return _warped(images, moves)
    reach = SHIFT[kind]
    count, _, height, width = images.shape
    padded = F.pad(images, (reach, reach, reach, reach))
    top, left, mirrored = moves.t().unsqueeze(2)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(mirrored > 0, columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None]
    result = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return result.permute(0, 3, 1, 2)


def _warped(images: Tensor, moves: Tensor) -> Tensor:
    """Rolled, or turned or sheared along x about the middle: each pixel is the nearest one that
    comes there, 0 from outside.
    """
    count, _, height, width = images.shape
    which, down, right, degrees = moves.t()[..., None, None]
    rows = torch.arange(height)[:, None] - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    angle = torch.deg2rad(degrees)
    turned = which == 1
    from_rows = torch.where(turned, angle.cos() * rows - angle.sin() * columns, rows)
    from_columns = torch.where(
        turned, angle.sin() * rows + angle.cos() * columns, columns + angle.tan() * rows
    )
    y = (from_rows + (height - 1) / 2).round().long()
    x = (from_columns + (width - 1) / 2).round().long()
    rolled = which == 0
    y = torch.where(rolled, (torch.arange(height)[:, None] - down.long()) % height, y)
    x = torch.where(rolled, (torch.arange(width) - right.long()) % width, x)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    sample = torch.arange(count)[:, None, None]
    found = images.permute(0, 2, 3, 1)[sample, y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return (found * inside[..., None]).permute(0, 3, 1, 2)
