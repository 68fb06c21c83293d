"""Take a trained spiking neural network to where it runs.

Names are loaded on first use, so that `import soul_deploy.runtime` needs no PyTorch.
"""

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def _warn_of_two() -> None:
    """soul-deploy and soul-deploy-runtime have the same files: one is to be installed."""
    site = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        names = {name.partition("-")[0] for name in os.listdir(site) if name.endswith(".dist-info")}
    except OSError:  # a zip archive
        return
    if {"soul_deploy", "soul_deploy_runtime"} <= names:
        warnings.warn(
            f"soul-deploy and soul-deploy-runtime are both installed in {site} and overwrite each "
            "other's files; uninstall both, then install one of them",
            stacklevel=2,
        )


_warn_of_two()

# name -> "module:attribute", or the module itself; the imports for type checkers say the same.
_NAMES = {
    "BenchConfig": "runtime.bench.runner:BenchConfig",
    "Checkpoints": "training.checkpoint_manager:Checkpoints",
    "Curve": "prune.curve_record:Curve",
    "DensePhase": "prune.structured.pipeline:DensePhase",
    "EnergyChoice": "analysis.measure:EnergyChoice",
    "FinetuneConfig": "prune.unstructured.config:FinetuneConfig",
    "GraphModule": "nn.graph_module:GraphModule",
    "Model": "model.model:Model",
    "NeuronSpec": "ir.neurons:NeuronSpec",
    "Objective": "training.objective:Objective",
    "PruneResult": "prune.result:PruneResult",
    "PruneSchedule": "prune.structured.config:PruneSchedule",
    "QuantizeConfig": "quantization.quantize:QuantizeConfig",
    "ScaConfig": "prune.structured.config:ScaConfig",
    "SearchConfig": "prune.unstructured.config:SearchConfig",
    "SpikingGraph": "ir.graph:SpikingGraph",
    "SpikingNeuron": "nn.neuron:SpikingNeuron",
    "Target": "prune.target:Target",
    "TrainConfig": "training.trainer:TrainConfig",
    "TrainResult": "training.train:TrainResult",
    "as_data": "data.given:as_data",
    "bench": "runtime.bench.runner:bench",
    "compare": "equivalence.engines:compare",
    "connectivity": "analysis.connectivity:connectivity",
    "count": "analysis.measure:count",
    "create": "zoo.create:create",
    "errors": "base.errors",
    "export_c": "export.c.write:export_c",
    "export_event": "export.event.build:export_event",
    "export_nir": "export.nir.write:export_nir",
    "export_onnx": "export.onnx.model:export_onnx",
    "from_torch": "frontend.from_torch:from_torch",
    "import_nir": "export.nir.read:import_nir",
    "import_zoo": "zoo.import_zoo:import_zoo",
    "layers": "nn.layers",
    "load": "model.file:load",
    "load_network": "runtime.engine.network:load",
    "plan_removal": "prune.removal.planner:plan_removal",
    "plan_structured": "prune.structured.pipeline:plan_structured",
    "plan_unstructured": "prune.unstructured.pipeline:plan_unstructured",
    "prune_curve": "prune.curve:prune_curve",
    "prune_structured": "prune.structured.pipeline:prune_structured",
    "prune_unstructured": "prune.unstructured.pipeline:prune_unstructured",
    "quantize": "quantization.quantize:quantize",
    "remove": "prune.removal.apply:remove",
    "report": "reporting.report:report",
    "save": "model.file:save",
    "train": "training.train:train",
    "verify": "export.verify.verify:verify",
    "warm_up": "runtime.io.warm_up:warm_up",
}
_OLD = ("load_model", "save_model", "trace")

if TYPE_CHECKING:
    from soul_deploy.analysis.connectivity import connectivity as connectivity
    from soul_deploy.analysis.measure import EnergyChoice as EnergyChoice
    from soul_deploy.analysis.measure import count as count
    from soul_deploy.base import errors as errors
    from soul_deploy.data.given import as_data as as_data
    from soul_deploy.deprecated import load_model as load_model
    from soul_deploy.deprecated import save_model as save_model
    from soul_deploy.deprecated import trace as trace
    from soul_deploy.equivalence.engines import compare as compare
    from soul_deploy.export.c.write import export_c as export_c
    from soul_deploy.export.event.build import export_event as export_event
    from soul_deploy.export.nir.read import import_nir as import_nir
    from soul_deploy.export.nir.write import export_nir as export_nir
    from soul_deploy.export.onnx.model import export_onnx as export_onnx
    from soul_deploy.export.verify.verify import verify as verify
    from soul_deploy.frontend.from_torch import from_torch as from_torch
    from soul_deploy.ir.graph import SpikingGraph as SpikingGraph
    from soul_deploy.ir.neurons import NeuronSpec as NeuronSpec
    from soul_deploy.model.file import load as load
    from soul_deploy.model.file import save as save
    from soul_deploy.model.model import Model as Model
    from soul_deploy.nn import layers as layers
    from soul_deploy.nn.graph_module import GraphModule as GraphModule
    from soul_deploy.nn.neuron import SpikingNeuron as SpikingNeuron
    from soul_deploy.prune.curve import prune_curve as prune_curve
    from soul_deploy.prune.curve_record import Curve as Curve
    from soul_deploy.prune.removal.apply import remove as remove
    from soul_deploy.prune.removal.planner import plan_removal as plan_removal
    from soul_deploy.prune.result import PruneResult as PruneResult
    from soul_deploy.prune.structured.config import PruneSchedule as PruneSchedule
    from soul_deploy.prune.structured.config import ScaConfig as ScaConfig
    from soul_deploy.prune.structured.pipeline import DensePhase as DensePhase
    from soul_deploy.prune.structured.pipeline import plan_structured as plan_structured
    from soul_deploy.prune.structured.pipeline import prune_structured as prune_structured
    from soul_deploy.prune.target import Target as Target
    from soul_deploy.prune.unstructured.config import FinetuneConfig as FinetuneConfig
    from soul_deploy.prune.unstructured.config import SearchConfig as SearchConfig
    from soul_deploy.prune.unstructured.pipeline import plan_unstructured as plan_unstructured
    from soul_deploy.prune.unstructured.pipeline import prune_unstructured as prune_unstructured
    from soul_deploy.quantization.quantize import QuantizeConfig as QuantizeConfig
    from soul_deploy.quantization.quantize import quantize as quantize
    from soul_deploy.reporting.report import report as report
    from soul_deploy.runtime.bench.runner import BenchConfig as BenchConfig
    from soul_deploy.runtime.bench.runner import bench as bench
    from soul_deploy.runtime.engine import network as _network
    from soul_deploy.runtime.io.warm_up import warm_up as warm_up
    from soul_deploy.training.checkpoint_manager import Checkpoints as Checkpoints
    from soul_deploy.training.objective import Objective as Objective
    from soul_deploy.training.train import TrainResult as TrainResult
    from soul_deploy.training.train import train as train
    from soul_deploy.training.trainer import TrainConfig as TrainConfig
    from soul_deploy.zoo.create import create as create
    from soul_deploy.zoo.import_zoo import import_zoo as import_zoo

    load_network = _network.load
else:  # what a type checker reads would make a known name of every misspelt one
    __all__ = ["__version__", *sorted(_NAMES)]

    def __getattr__(name: str) -> Any:
        if name not in _NAMES and name not in _OLD:
            raise AttributeError(f"module 'soul_deploy' has no attribute {name!r}")
        module, _, attribute = _NAMES.get(name, f"deprecated:{name}").partition(":")
        try:
            found = import_module(f"soul_deploy.{module}")
        except ModuleNotFoundError as error:
            from soul_deploy.base.lazy import left_out

            if error.name is None or not left_out(error.name):
                raise
            text = f"soul_deploy.{name} is not part of soul-deploy-runtime; install soul-deploy"
            raise ModuleNotFoundError(text, name=error.name) from error
        return getattr(found, attribute) if attribute else found

    def __dir__() -> list[str]:
        return sorted(__all__)
