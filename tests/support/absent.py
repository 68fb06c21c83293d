"""Importing a package of others that asks for packages that it does not need here."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def progress_bar() -> ModuleType:
    """In place of tqdm."""
    bar = ModuleType("tqdm")
    bar.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    return bar


def imported(name: str, absent: Mapping[str, ModuleType]) -> Any:
    """The module; what its import asks for and nobody has installed stands there only meanwhile."""
    added = [name for name in absent if name not in sys.modules and not _there(name)]
    sys.modules.update({name: absent[name] for name in added})
    try:
        return importlib.import_module(name)
    finally:
        for name in added:
            del sys.modules[name]


def _there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def spikingjelly_data(name: str) -> Any:
    """A module of spikingjelly.datasets."""
    importlib.import_module("torchvision.datasets")  # which looks for modules by their specs
    absent = {"tqdm": progress_bar(), "torchaudio": ModuleType("torchaudio")}
    return imported(f"spikingjelly.datasets.{name}", absent)
