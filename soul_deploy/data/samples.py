"""A data set in memory: its splits, and how those that are missing are taken from the training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from soul_deploy.base import brief, errors, pixel_rule
from soul_deploy.ir import Shape
from soul_deploy.model.model import Normalization

SPLIT_SEED = 20250
SPLITS = ("train", "validation", "test")
LEAST = 10
"""One in so many training samples goes to each split that is missing."""


@brief
@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), or sequences of them (N, T, C, H, W), and labels (N,) of int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> "Split":
        """The samples at `index`."""
        return Split(self.images[index], self.labels[index])


@brief
@dataclass(frozen=True)
class Data:
    """A data set: three splits, class names, how its pixels are normalised, and what it holds.

    stored_side: side in pixels of the square images in the files, if they were scaled to another.
    frames: each sample is a sequence of T frames. notes: sentences on how the data were read.
    frame_rule: how events became frames, JSON data that a model file records; empty: no events.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    normalization: Normalization | None
    stored_side: int | None = None
    input_kind: pixel_rule.InputKind = "images"
    frames: bool = False
    notes: tuple[str, ...] = ()
    frame_rule: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What a model's provenance says of how events became frames; empty: there were none."""
        return {"frames": dict(self.frame_rule)} if self.frame_rule else {}

    @property
    def remark(self) -> str:
        """The processing of the images as one sentence; empty without processing."""
        if self.stored_side is None:
            return ""
        given, made = self.stored_side, self.input_shape[-1]
        return (
            f"data set {self.name}: its {given}×{given} images are scaled to {made}×{made} "
            "(nearest pixel)"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything that was done to the data, as sentences."""
        return (*((self.remark,) if self.remark else ()), *self.notes)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names; () where they are called by their numbers."""
        numbers = tuple(map(str, range(len(self.classes))))
        return () if self.classes == numbers else self.classes

    @property
    def input_shape(self) -> Shape:
        """(C, H, W) of one image or frame, or (features,)."""
        return tuple(self.train.images.shape[2 if self.frames else 1 :])

    @property
    def steps(self) -> int | None:
        """T of the sequences; None for samples that are shown at every step."""
        return self.train.images.shape[1] if self.frames else None

    def normalise(self, images: Tensor) -> Tensor:
        """What a network is given for samples of this data set: float32 of the same shape, and
        (T, N, C, H, W) for frames (N, T, C, H, W).

        uint8 images become (pixel / 255 - mean) / std per channel, the same as the runtime's
        `normalise` to the bit, on any device. Floating-point numbers and what is no image are taken
        as they are.
        """
        return self.arranged(self._numbers(images))

    def arranged(self, images: Tensor) -> Tensor:
        """Frames (N, T, ...) as (T, N, ...), as networks take them; images as they are."""
        return images.transpose(0, 1).contiguous() if self.frames else images

    def _numbers(self, images: Tensor) -> Tensor:
        if images.is_floating_point() or self.input_kind != "images":
            return images.float()
        if self.normalization is None:
            return images.float() / 255
        mean = torch.tensor(self.normalization.mean, device=images.device).reshape(-1, 1, 1)
        std = torch.tensor(self.normalization.std, device=images.device).reshape(-1, 1, 1)
        return (images.float() / 255 - mean) / std


def stratified_parts(
    labels: Tensor, sizes: tuple[int, ...], seed: int = SPLIT_SEED
) -> list[Tensor]:
    """Disjoint index lists of `sizes`, each with the classes' shares, in permuted order.

    Samples are permuted, then dealt so that any run of them holds every class in proportion:
    the k-th of n samples of a class stands at position (k + 1/2) / n.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]
        ranks = torch.arange(len(members), dtype=torch.float64)
        position[members] = (ranks + 0.5) / len(members)
    dealt = order[torch.argsort(position[order], stable=True)]
    return list(torch.split(dealt[: sum(sizes)], list(sizes)))


def filled(splits: Mapping[str, Split]) -> dict[str, Split]:
    """All three splits, of one form. What is missing is a tenth of the training samples each.

    Raises DataError for splits of different forms, UsageError for too few training samples.
    """
    forms = {(split.images.dtype, split.images.shape[1:]) for split in splits.values()}
    if len(forms) > 1:
        told = "; ".join(f"{dtype} {tuple(shape)}" for dtype, shape in forms)
        raise errors.DataError(f"the splits hold images of different forms: {told}")
    missing = [name for name in SPLITS if name not in splits]
    train = splits["train"]
    held = len(train) // LEAST
    if missing and not held:
        names = " and ".join(missing)
        raise errors.UsageError(
            f"{len(train)} training samples are given, and no {names} samples; a tenth of the "
            f"training samples is taken for a split that is missing, which needs {LEAST} of them: "
            f"give {LEAST} training samples at least, or {names} samples too"
        )
    sizes = (len(train) - held * len(missing), *(held for _ in missing))
    parts = map(train.select, stratified_parts(train.labels, sizes))
    taken = dict(zip(("train", *missing), parts, strict=True)) if missing else {}
    return {name: taken[name] if name in taken else splits[name] for name in SPLITS}
