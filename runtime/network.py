"""Where 0.1.0 had `load`: goes on working, and says where it is now."""

import warnings

from soul_deploy.base.files import File
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.network import load as load_network


def load(path: File, threads: int = 0) -> Network:
    """As `soul_deploy.load_network`. Deprecated."""
    warnings.warn(
        "soul_deploy.runtime.network.load is soul_deploy.load_network now",
        DeprecationWarning,
        stacklevel=2,
    )
    return load_network(path, threads)
