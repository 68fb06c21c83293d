"""The package `nir`, imported when it is first needed, and what both directions agree on.

NIR (Pedersen et al., Nature Communications 2024) describes networks in continuous time; steps of
`DEFAULT_DT` seconds of forward Euler are what readers assume.
"""

import math
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from soul_deploy.runtime.errors import FileFormatError, UsageError
from soul_deploy.runtime.files import Array

FORMAT = "soul-deploy/nir/1"
DEFAULT_DT = 1e-4  # seconds per step; fixed in snnTorch's reader, the default of SpikingJelly's
FREE_BYTES, LARGEST_RATIO = 1 << 20, 64  # what arrays of a file may take, by its size
NAME, POPULATION, DECAY_PARAMETER = "name", "population", "w"  # keys of a node's metadata


def nir_package() -> ModuleType:
    """The module `nir`. Raises UsageError if it is not installed."""
    try:
        return import_module("nir")
    except ImportError as error:
        raise UsageError(
            f"NIR files need the package nir, which cannot be imported ({error}); install it with "
            "pip install 'soul-deploy[nir]'"
        ) from error


def check_sizes(path: Path) -> None:
    """Raise FileFormatError for an HDF5 file whose arrays claim far more than it can hold.

    HDF5 reads a packed array, or one that was never written, at its announced size.
    """
    h5py, announced = import_module("h5py"), 0
    allowed = FREE_BYTES + LARGEST_RATIO * path.stat().st_size

    def add(name: str, item: Any) -> None:
        nonlocal announced
        if isinstance(item, h5py.Dataset):
            announced += math.prod(item.shape or ()) * item.dtype.itemsize

    try:
        with h5py.File(path, "r") as opened:
            opened.visititems(add)
    except Exception as error:  # h5py fails in a dozen ways on foreign bytes
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise FileFormatError(f"{path} is not an intact NIR file ({first})") from error
    if announced > allowed:
        raise FileFormatError(
            f"{path} announces {announced:,} bytes of arrays in {path.stat().st_size:,} bytes; "
            f"at most {allowed:,} are read"
        )


def vote_weight(classes: int, votes: int) -> Array:
    """(classes, classes · votes) float32: the mean of each class's neurons as a matrix."""
    means = np.kron(np.eye(classes), np.ones(votes)) / votes
    return means.astype(np.float32)
