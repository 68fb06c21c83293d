"""Names of 0.1.0: they go on working, and warn with the name that took their place."""

from pathlib import Path

from torch import nn
from typing_extensions import deprecated

from soul_deploy.base.files import File
from soul_deploy.frontend import from_torch as tracing
from soul_deploy.ir import Shape, SpikingGraph
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model


@deprecated("soul_deploy.load_model is soul_deploy.load now")
def load_model(file: File, *, max_memory: int | None = None) -> Model:
    """As `soul_deploy.load`."""
    return load(file, max_memory=max_memory)


@deprecated("soul_deploy.save_model(path, model) is soul_deploy.save(model, path) now")
def save_model(path: Path | str, model: Model) -> None:
    """As `soul_deploy.save`."""
    save(model, path)


@deprecated("soul_deploy.trace(…) is soul_deploy.from_torch(…).graph now, which also compares")
def trace(network: nn.Module, input_shape: Shape, time_steps: int) -> SpikingGraph:
    """The graph alone, not compared with `network`: as `from_torch(…).graph`."""
    return tracing.trace(network, input_shape, time_steps)
