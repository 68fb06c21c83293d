"""Take a trained spiking neural network to where it runs.

Names are loaded on first use, so that `import soul_deploy.runtime` needs no PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "GraphModule": "soul_deploy.nn.graph_module",
    "Model": "soul_deploy.model.model",
    "NeuronSpec": "soul_deploy.ir.graph",
    "SpikingGraph": "soul_deploy.ir.graph",
    "create": "soul_deploy.zoo.registry",
    "from_torch": "soul_deploy.frontend.from_torch",
    "load_model": "soul_deploy.model.model",
    "save_model": "soul_deploy.model.model",
    "trace": "soul_deploy.frontend.trace",
}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'soul_deploy' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
