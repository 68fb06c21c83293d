"""SpikingJelly's ann2snn, whose import asks for a progress bar and a downloader that we lack."""

from types import ModuleType
from typing import Any

import absent
import torch
from torch import Tensor, nn


def ann2snn() -> Any:
    """The package."""
    lacking = {"tqdm": absent.progress_bar(), "requests": ModuleType("requests")}
    return absent.imported("spikingjelly.activation_based.ann2snn", lacking)


def converted(network: nn.Module, images: Tensor, **settings: Any) -> nn.Module:
    """A network of ReLUs with integrate-and-fire neurons instead, calibrated on `images`."""
    package: Any = ann2snn()
    data = [(images, torch.zeros(len(images)))]
    recipe = package.RateCodingRecipe(data, **settings)
    snn: nn.Module = package.Converter(recipe).convert(network.eval())
    return snn.eval()
