"""The package `nir`, imported when it is first needed, and what both directions agree on.

NIR (Pedersen et al., Nature Communications 2024) describes networks in continuous time; steps of
`DEFAULT_DT` seconds of forward Euler are what readers assume.
"""

from importlib import import_module
from types import ModuleType

import numpy as np

from soul_deploy.runtime.errors import UsageError
from soul_deploy.runtime.files import Array

FORMAT = "soul-deploy/nir/1"
DEFAULT_DT = 1e-4  # seconds per step; fixed in snnTorch's reader, the default of SpikingJelly's
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


def vote_weight(classes: int, votes: int) -> Array:
    """(classes, classes · votes) float32: the mean of each class's neurons as a matrix."""
    means = np.kron(np.eye(classes), np.ones(votes)) / votes
    return means.astype(np.float32)
