"""Take a trained spiking neural network to where it runs.

Names are loaded on first use, so that `import soul_deploy.runtime` needs no PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "GraphModule": "soul_deploy.module",
    "Model": "soul_deploy.modelfile",
    "NeuronSpec": "soul_deploy.graph",
    "SpikingGraph": "soul_deploy.graph",
    "create": "soul_deploy.zoo",
    "from_torch": "soul_deploy.fromtorch",
    "load_model": "soul_deploy.modelfile",
    "save_model": "soul_deploy.modelfile",
    "trace": "soul_deploy.tracing",
}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'soul_deploy' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
