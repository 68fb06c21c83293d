"""Take a trained spiking neural network to where it runs.

Names are loaded on first use, so that `import soul_deploy.runtime` needs no PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> "module:attribute", or the module itself
_NAMES = {
    "Checkpoints": "training.checkpoint_manager:Checkpoints",
    "DensePhase": "prune.structured.pipeline:DensePhase",
    "FinetuneConfig": "prune.unstructured.config:FinetuneConfig",
    "GraphModule": "nn.graph_module:GraphModule",
    "Model": "model.model:Model",
    "NeuronSpec": "ir.neurons:NeuronSpec",
    "PruneResult": "prune.result:PruneResult",
    "PruneSchedule": "prune.structured.schedule:PruneSchedule",
    "ScaConfig": "prune.structured.sca:ScaConfig",
    "SearchConfig": "prune.unstructured.config:SearchConfig",
    "SpikingGraph": "ir.graph:SpikingGraph",
    "SpikingNeuron": "nn.neuron:SpikingNeuron",
    "TrainConfig": "training.trainer:TrainConfig",
    "TrainResult": "training.train:TrainResult",
    "create": "zoo.registry:create",
    "errors": "base.errors",
    "export_event": "export.event.build:export_event",
    "export_nir": "export.nir.write:export_nir",
    "export_onnx": "export.onnx.model:export_onnx",
    "from_torch": "frontend.from_torch:from_torch",
    "import_nir": "export.nir.read:import_nir",
    "layers": "nn.layers",
    "load_model": "model.model:load_model",
    "load_network": "runtime.engine.network:load",
    "plan_removal": "prune.removal.planner:plan_removal",
    "plan_structured": "prune.structured.pipeline:plan_structured",
    "plan_unstructured": "prune.unstructured.pipeline:plan_unstructured",
    "prune_structured": "prune.structured.pipeline:prune_structured",
    "prune_unstructured": "prune.unstructured.pipeline:prune_unstructured",
    "remove": "prune.removal.apply:remove",
    "save_model": "model.model:save_model",
    "trace": "frontend.trace:trace",
    "train": "training.train:train",
    "verify": "export.verify.verify:verify",
}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'soul_deploy' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    found = import_module(f"soul_deploy.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted(__all__)
