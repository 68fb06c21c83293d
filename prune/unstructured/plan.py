"""What a search for masks is asked for, what it says of its epochs, and how it can end early."""

from dataclasses import asdict, dataclass, field
from typing import Any

from soul_deploy.analysis.connectivity import Connectivity
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.ir.graph import SpikingGraph
from soul_deploy.model.model import Model
from soul_deploy.prune.channel_groups import reaches_readout
from soul_deploy.prune.unstructured.lambda_control import Adjustment
from soul_deploy.prune.unstructured.masks import Temperature
from soul_deploy.prune.unstructured.objective import Objective
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.trainer import EpochResult, TrainConfig


@dataclass(frozen=True)
class Search:
    """What a search is, besides the recipe of its weights.

    lmbda   lambda; with a target it is where the control starts, None: balanced on the first batch
    masks   optimizer, learning rate and weight decay of the masks
    target  the connectivity to end at, or None
    """

    epochs: int
    temperature: Temperature
    masks: TrainConfig
    lmbda: float | None = 1e-11
    target: float | None = None
    accumulate: int = 1
    objective: Objective = field(default_factory=Objective)

    def recorded(self) -> dict[str, Any]:
        """What files hold of it; the masks' recipe has no epochs of its own."""
        return {**asdict(self), "masks": self.masks.recorded()}


@dataclass(frozen=True)
class Finetune:
    """Fine-tuning with fixed masks."""

    epochs: int
    learning_rate: float
    schedule: Schedule
    reset_optimizer: bool = False


@dataclass(frozen=True)
class SearchEpoch:
    """An epoch of the search or of the fine-tuning, measured at its end.

    result: its validation accuracy is with soft masks while searching. synops: per image, on a
    fixed sample, under the hard masks. adjustment: the threshold's correction after this epoch.
    """

    phase: str
    result: EpochResult
    lmbda: float
    temperature: tuple[float, float]
    connectivity: Connectivity
    synops: float
    hard_accuracy: float
    dead: str | None = None
    """What the output needs and has no synapse left: a layer, or the neurons of a class."""
    adjustment: Adjustment | None = None


class SearchStoppedError(SoulDeployError):
    """The search cannot go on; `last_good`: the hard model of the last epoch that was whole."""

    def __init__(self, message: str, last_good: Model | None) -> None:
        self.last_good = last_good
        super().__init__(message)


def dead_layer(
    graph: SpikingGraph, connectivity: Connectivity, empty_class: int | None
) -> str | None:
    """A layer without synapses, if nothing goes around it (as it does around a residual block)."""
    empty = [layer.projection for layer in connectivity.layers if layer.live == 0]
    for i, name in enumerate(empty):
        if not reaches_readout(graph, empty[: i + 1]):
            return name
    return None if empty_class is None else f"class {empty_class}"


def death_note(epoch: SearchEpoch) -> str:
    """What the user is told of a network that died."""
    return (
        f"search epoch {epoch.result.epoch}: no synapse of {epoch.dead} is left "
        f"(lambda {epoch.lmbda:.3g}), so the output no longer depends on the input; lower "
        "penalty_lmbda, or give target_connectivity (a higher one)"
    )
