"""Images as users give them, made into what a model takes."""

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array, errors, input_rule
from soul_deploy.data.datasets import Data, require_kind
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import is_static

Images: TypeAlias = Tensor | Array | Data


def images_for(model: Model, images: Images) -> tuple[Tensor, int]:
    """`images` in float32, as `model` takes them, and the batch axis: 0, or 1 for a sequence.

    images: an array or a tensor (B, C, H, W), or (T, B, C, H, W) for a sequence; uint8 are pixels
    and normalised as the model says, floating-point numbers are taken as they are. Of a data set
    the test images, normalised as the model says, or else as the data set does.
    Raises ValidityError for numbers that mean nothing to the model and for another shape or T,
    UsageError for data that do not fit.
    """
    if isinstance(images, Data):
        return fitted(model, images).normalise(images.test.images), 0
    given = images.detach().cpu() if isinstance(images, Tensor) else images
    rule = model.input_rule
    numbers = input_rule.numbers_of(input_rule.input_array(given, rule, "images"), rule, "images")
    found = torch.from_numpy(np.ascontiguousarray(numbers))
    return found, 0 if is_static(model.graph, found) else 1


def fitted(model: Model, data: Data) -> Data:
    """`data` with the model's normalisation, if it has one. Raises UsageError if they don't fit."""
    if data.input_shape != model.input_shape:
        raise errors.UsageError(
            f"{data.name} has images of {data.input_shape}, this model takes {model.input_shape}"
        )
    require_kind(data, model.info.input_kind, "the model")
    norm = model.info.normalization
    return data if norm is None else replace(data, normalization=norm)
