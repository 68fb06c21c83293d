"""A pruning run of a tiny network: what its checkpoints hold, restored whole and run to the end."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from chains import ChainSpec, ConvSpec, LinearSpec, build

from soul_deploy.data.datasets import Data, Split
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, Normalization
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.sca import ChannelPruning, PruneStep
from soul_deploy.training.checkpoint import Checkpoint, write_checkpoint
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.state import Bundle, random_states, restore_random_states, tree_of
from soul_deploy.training.trainer import History, TrainConfig

SHAPE, CLASSES, SAMPLES, STEPS = (1, 4, 4), 3, 8, 2
SCA = ScaConfig(PruneSchedule(0.3, 0.1, epochs=3, finetune_epochs=1))


def tiny_model() -> Model:
    """A convolution and a linear layer with batch norms."""
    neuron = NeuronSpec()
    convolution = ConvSpec(3, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, True, neuron, None)
    linear = LinearSpec(4, True, True, neuron)
    return build(
        ChainSpec(SHAPE, 2, 2, (convolution,), True, (linear,), CLASSES, 0, True, False, 7)
    )


def tiny_data() -> Data:
    """Noise."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (SAMPLES, *SHAPE)).astype(np.uint8))
    split = Split(images, torch.from_numpy(rng.integers(0, CLASSES, SAMPLES)))
    return Data("noise", split, split, split, ("a", "b", "c"), Normalization((0.5,), (0.5,)))


MODEL, DATA = tiny_model(), tiny_data()


class Job:
    """The loop of method S and the results so far, as the parts of a checkpoint."""

    def __init__(self, optimizer: str, schedule: Schedule) -> None:
        recipe = TrainConfig(optimizer=optimizer, batch_size=SAMPLES // STEPS, schedule=schedule)
        module = MODEL.module()
        names = [node.name for node in module.graph.populations]
        self.loop = ChannelPruning(
            *(module, DATA, recipe, SCA, names), after_step=lambda: self.after_step()
        )
        self.history = History()
        self.parts = Bundle({"pruning": self.loop, "history": self.history})
        self.after_step: Callable[[], None] = lambda: None

    def run(self) -> Iterator[PruneStep]:
        """Go on to the end, one value per epoch; then the random generators are used."""
        for step in self.loop.run():
            self.history.results.append(step.result)
            yield step
        json.dumps(self.history.state())
        np.random.random(700), random.random(), random.gauss(0, 1), torch.rand(700)

    def checkpoint(self) -> Checkpoint:
        state = {"run": self.parts.state(), "random": random_states()}
        return Checkpoint({"epochs": SCA.schedule.epochs}, {"threads": 1}, "prune", state)

    def restore(self, found: Checkpoint) -> None:
        """A `CheckpointManager` turns other errors than ours into ours; here they count."""
        self.parts.restore(tree_of(found.state, "run"))
        restore_random_states(tree_of(found.state, "random"))


JOBS: dict[str, Callable[[], Job]] = {
    "warm": lambda: Job("adam", Schedule("warmup")),
    "steps": lambda: Job("sgd", Schedule("step", (1, 2))),
}


def write_checkpoints(folder: Path) -> list[Path]:
    """Of each job one after the first step, between epochs, and in the last epoch."""
    return [path for name in JOBS for path in _write(folder, name, JOBS[name]())]


def _write(folder: Path, name: str, job: Job) -> list[Path]:
    paths: list[Path] = []
    steps: list[int] = []

    def write(kind: str) -> None:
        paths.append(folder / f"{name}.{kind}.checkpoint")
        write_checkpoint(paths[-1], job.checkpoint())

    def after_step() -> None:
        steps.append(1)
        if len(steps) in (1, 5):
            write(f"step{len(steps)}")

    job.after_step = after_step
    for step in job.run():
        if step.result.epoch == 2:
            write("epoch2")
    return paths
