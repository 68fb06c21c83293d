"""SpikingJelly's ann2snn, whose import asks for a progress bar and a downloader that we lack."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def ann2snn() -> Any:
    """The package; what its import asks for stands there only meanwhile."""
    bar = ModuleType("tqdm")
    bar.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    absent = {"tqdm": bar, "requests": ModuleType("requests")}
    added = [name for name in absent if name not in sys.modules and not _there(name)]
    sys.modules.update({name: absent[name] for name in added})
    try:
        return importlib.import_module("spikingjelly.activation_based.ann2snn")
    finally:
        for name in added:
            del sys.modules[name]


def _there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def converted(network: nn.Module, images: Tensor, **settings: Any) -> nn.Module:
    """A network of ReLUs with integrate-and-fire neurons instead, calibrated on `images`."""
    package: Any = ann2snn()
    data = [(images, torch.zeros(len(images)))]
    recipe = package.RateCodingRecipe(data, **settings)
    snn: nn.Module = package.Converter(recipe).convert(network.eval())
    return snn.eval()
