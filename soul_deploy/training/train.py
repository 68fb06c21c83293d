"""`train`: a network and data in, the best epoch's network out; the device that work is done on."""

import os
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from soul_deploy import distributed
from soul_deploy.base import errors, files, progress, tables
from soul_deploy.data import datasets, given
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, Stage, for_kind, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.training import checkpoint_manager as keeping
from soul_deploy.training import state, trainer
from soul_deploy.training.checkpoint_manager import CheckpointManager, Checkpoints
from soul_deploy.training.messages import EpochLog, OnEpoch, note, warn


@dataclass(frozen=True, kw_only=True)
class TrainResult(tables.Shown):
    """A trained network: the epoch with the highest validation accuracy.

    history: one result per epoch. test_accuracy: the share of the test images that `model`
    classifies correctly, 0 to 1.
    """

    model: Model
    best: trainer.EpochResult
    history: tuple[trainer.EpochResult, ...]
    test_accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without weights."""
        return {
            "best_epoch": self.best.epoch,
            "validation_accuracy": self.best.validation_accuracy,
            "test_accuracy": self.test_accuracy,
            "epochs": [asdict(result) for result in self.history],
        }

    def parts(self) -> list[tables.Table | str]:
        """A row per epoch, and the test accuracy."""
        columns = ["epoch", "loss", "training", "validation"]
        rows = [
            (e.epoch, e.loss, f"{e.train_accuracy:.2%}", f"{e.validation_accuracy:.2%}")
            for e in self.history
        ]
        tested = f"Test accuracy of epoch {self.best.epoch}: {self.test_accuracy:.2%}"
        return [tables.Table("Training", columns, rows), tested]

    def __repr__(self) -> str:
        best = self.best
        return (
            f"TrainResult(epoch {best.epoch} of {len(self.history)}; accuracy: validation "
            f"{best.validation_accuracy:.2%}, test {self.test_accuracy:.2%})"
        )


def train(
    model: Model | SpikingGraph,
    data: given.DataLike,
    config: trainer.TrainConfig = trainer.TrainConfig(),
    *,
    device: str = "auto",
    checkpoints: Checkpoints | None = None,
    log: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_batch: trainer.Tick | None = None,
) -> TrainResult:
    """Train on from the weights of `model`, which stays as it is.

    model        a graph gets fresh weights, drawn from `config.seed`
    data         what `as_data` takes; the best epoch is chosen on the validation split, the test
                 split is used once, at the end
    device       "auto" (a GPU if there is one), "cpu" or "cuda"
    checkpoints  where the run's state is kept, so that a run that was stopped can go on; with them
                 SIGTERM and Ctrl-C end the training after the present step
    log          a file for the epochs' results, one JSON object a line
    on_epoch     called with each EpochResult
    on_batch     called with (batches done, batches of the epoch, loss)

    Started by torchrun, all processes train together, each returns the result, and the main one
    writes. Messages go to the logger "soul_deploy". Raises what `as_data` and `prepare_device`
    raise, InterruptedRunError after a signal, SoulDeployError for a loss that is not finite.
    """
    place, start = prepare_device(device), with_weights(model, config.seed)
    refuse_searched(start)
    config = decided(config, start.graph)
    loaded = data_read(start, data, config)
    work = Work(start, module_of(start, place), loaded, config)
    asked = {"recipe": config.recorded(), "epochs": config.epochs}
    manager = work.manager(("train",), checkpoints, "train", **asked)
    with (
        manager.watching(),
        EpochLog("train", config.epochs, log, on_epoch=on_epoch, on_batch=on_batch) as told,
    ):
        history, best = work.learn(manager, told)
        progress.status("train: testing")
        return work.result(history, best, command="train", best_epoch=best.epoch)


RUN = (
    *("command", "accuracy", "best_epoch", "sca", "layers", "search", "finetune"),
    *("masking", "start", "compacted_from_sha256"),
)
"""What the model that a command made says of this run alone."""


@dataclass(frozen=True)
class Work:
    """A network on its way: the model that it was, its module, data, how weights are learned."""

    start: Model
    module: GraphModule
    data: datasets.Data
    config: trainer.TrainConfig

    def manager(
        self, phases: tuple[str, ...], checkpoints: Checkpoints | None, command: str, **asked: Any
    ) -> CheckpointManager:
        """The manager of its checkpoints. asked: name -> what else decides the result.

        What the settings of `checkpoints` say under the same name goes first.
        """
        start = None if checkpoints is None else checkpoints.settings
        if start is None:
            begun = {name: v.cpu().numpy() for name, v in self.module.state_dict().items()}
            for kind in ("channel_masks", "neuron_masks", "alphas"):
                begun |= {f"{kind}:{n}": held for n, held in getattr(self.start, kind).items()}
            start = {"start": files.digest(begun)}
        network, data = keeping.network_of(self.module.graph), keeping.content_of(self.data)
        settings = {"command": command, **asked, **start, "network": network, "data": data}
        environment = keeping.environment_of(trainer.device_of(self.module))
        run = keeping.Run(phases, keeping.plain_settings(settings), environment)
        return CheckpointManager(run, checkpoints)

    def learn(
        self, manager: CheckpointManager, log: EpochLog
    ) -> tuple[tuple[trainer.EpochResult, ...], trainer.EpochResult]:
        """Train; the module ends with the best epoch's weights. Returns all epochs and it."""
        best, history = trainer.BestState(), trainer.History()
        parts = self.module, self.data, self.config
        training = trainer.Training(*parts, tick=log.tick, after_step=manager.after_step)
        whole = state.Bundle({"training": training, "best": best, "history": history, "log": log})
        with manager.loop("train", whole):
            for result in training.run():
                best.offer(self.module, result)
                history.results.append(result)
                log.epoch(result)
                manager.after_epoch()
        return tuple(history.results), best.take(self.module)

    def accuracy(self, module: GraphModule | None = None) -> float:
        """The share of the test images that the module, or another one, classifies correctly."""
        return trainer.accuracy(module or self.module, self.data, self.data.test)

    def result(
        self, history: tuple[trainer.EpochResult, ...], best: trainer.EpochResult, **made: Any
    ) -> TrainResult:
        """Test the trained module. made: what else its model says about how it was made."""
        test = self.accuracy()
        tested = {"validation": best.validation_accuracy, "test": test}
        info = self.info(self.start.info.stage, len(history), **made, accuracy=tested)
        return TrainResult(model=self.model(info), best=best, history=history, test_accuracy=test)

    def info(self, stage: Stage, epochs: int, **made: Any) -> ModelInfo:
        """What a model of it says of itself: what the start does, but for RUN, then `made`."""
        packages, data = ("soul-deploy", "torch", "numpy"), self.data
        before = self.start.info.provenance
        past = RUN if "command" in before else ()
        how = {
            **{name: told for name, told in before.items() if name not in past},
            "data": data.name,
            **data.record(),
            "recipe": self.config.recorded(),
            "epochs": epochs,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in packages},
            **made,
        }
        valid, kind = self.start.info.validity, data.input_kind
        return ModelInfo(stage, data.normalization, data.classes, how, valid, kind)

    def model(self, info: ModelInfo) -> Model:
        """A Model of the module; the start's masks of single neurons stay."""
        return replace(from_module(self.module, info), neuron_masks=self.start.neuron_masks)


def with_weights(model: Model | SpikingGraph, seed: int) -> Model:
    """The model; of a graph, one with fresh weights drawn from `seed`.

    Raises UsageError for a fixed-point network.
    """
    if isinstance(model, Model):
        if model.graph.integers:
            raise errors.UsageError(
                "a fixed-point network learns nothing more, and its weights are pruned no more: "
                "they are integers. Train or prune the network that it was made of, then quantize"
            )
        return for_kind(model, model.info.input_kind)  # a file of before has no events yet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return from_module(GraphModule(model), ModelInfo())


def decided(config: trainer.TrainConfig, graph: SpikingGraph) -> trainer.TrainConfig:
    """The training with the loss that this network needs, if it is left open; then a note."""
    reason = config.objective.reason(graph)
    if reason:
        note(reason)
    return replace(config, objective=config.objective.decided(graph))


def refuse_searched(model: Model) -> None:
    """Raise UsageError for a network whose single weights were pruned: training fills the zeros."""
    if model.alphas:
        raise errors.UsageError(
            "single weights of this network were pruned, and training would fill them again; train "
            "its compact network (remove, `soul-deploy prune compact`), or go on with "
            "prune_unstructured"
        )


def data_read(model: Model, data: given.DataLike, config: trainer.TrainConfig) -> datasets.Data:
    """The data as `as_data` reads them. Raises UsageError if `config` cannot move their images."""
    loaded = given.as_data(data, model=model)
    if config.augment != "none" and len(loaded.input_shape) != 3:
        raise errors.UsageError(
            f"augment {config.augment} moves images (C, H, W); these samples are "
            f"{loaded.input_shape}: leave it out"
        )
    return loaded


def prepare_device(
    device: str = "auto", threads: int | None = None, process_timeout: float = 300.0
) -> torch.device:
    """Set threads and deterministic kernels, join the processes that torchrun started.

    device: "auto" (a GPU if there is one), "cpu" or "cuda". threads: of the CPU; None: PyTorch's.
    process_timeout: seconds that a process waits for the others. All of that holds for the whole
    program. Raises UsageError, or DistributedError if the others cannot be reached.
    """
    errors.require_known("device", device, ("auto", "cpu", "cuda"))
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise errors.UsageError(
            "device cuda: PyTorch finds no CUDA device here; use --device cpu or auto"
        )
    if distributed.joined():
        return distributed.current().device
    place = distributed.join("cuda" if available and device != "cpu" else "cpu", process_timeout)
    advice = distributed.restart_advice(os.environ)
    if advice is not None:
        warn(advice)
    return place


def module_of(model: Model, device: torch.device) -> GraphModule:
    """The model as a module on `device`, masks included; no global random number is drawn."""
    with torch.random.fork_rng(devices=[]):  # weights that are replaced are drawn first
        module = model.module().to(device)
    for mask in module.channel_masks.values():
        mask.keep = mask.keep.to(device)
    return module
