"""Small runs that one process or several can do, and the job that torchrun starts for the tests.

    torchrun --nproc-per-node=2 tests/support/sharing.py FOLDER

leaves what each process ended with as FOLDER/rankN.safetensors, and what it was told as
FOLDER/rankN.txt.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from searching import LIF, few, search_of
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.base.errors import DistributedError
from soul_deploy.data.datasets import Data
from soul_deploy.distributed import assert_ranks_start_alike
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.sca import ChannelPruning
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.prune.unstructured.masks import MaskStart, make_masks, maskable_neurons
from soul_deploy.prune.unstructured.pruning import Pruning
from soul_deploy.prune.unstructured.search import SearchLoop
from soul_deploy.training import trainer as training
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.trainer import TrainConfig, Training, accuracy, copied_state
from soul_deploy.zoo.registry import NetworkOptions, create

FROZEN = TrainConfig(
    optimizer="sgd",
    learning_rate=0.05,
    schedule=Schedule("constant"),
    batch_size=16,
    augment="shift",
    l1=1e-5,
)
FROZEN = replace(FROZEN, freeze_batch_norm=True)
SAMPLES = 50
"""Three batches of 16, and one of 2, which is too small for two processes."""


def warm_network(data: Data) -> GraphModule:
    """A network whose running statistics are those of the data; the same in every process."""
    torch.manual_seed(7)
    options = NetworkOptions(data.input_shape, len(data.classes), LIF, 2, hidden=16, width=8)
    built, graph = create("cifar10net", options)
    module = GraphModule(graph)
    module.load_state_dict(built.state_dict())
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(data.normalise(data.train.images))
    return module.eval()


def trained(data: Data, recipe: TrainConfig) -> dict[str, Tensor]:
    """Two epochs of training, and the last epoch's numbers."""
    module = warm_network(data)
    *_, last = Training(module, data, replace(recipe, epochs=2)).run()
    numbers = last.loss, last.train_accuracy, last.validation_accuracy
    tested = accuracy(module, data, data.test)
    return copied_state(module) | {"numbers": torch.tensor([*numbers, tested]).double()}


def channels(data: Data) -> dict[str, Tensor]:
    """SCA with two updates and an epoch of fine-tuning: weights, masks and what decided them."""
    module = warm_network(data)
    names = [node.name for node in module.graph.populations]
    sca = ScaConfig(PruneSchedule(0.4, 0.1, epochs=3, finetune_epochs=1, ramp="linear"))
    plans = [
        step.plan for step in ChannelPruning(module, data, FROZEN, sca, names).run() if step.plan
    ]
    masks = {f"mask of {name}": mask.keep for name, mask in module.channel_masks.items()}
    scores = {
        f"score {number} of {layer.name}": torch.from_numpy(layer.score)
        for number, plan in enumerate(plans)
        for layer in plan.layers
    }
    return copied_state(module) | masks | scores


def connections(data: Data) -> dict[str, Tensor]:
    """A search with a target: weights, hard masks, lambda and connectivity."""
    module = warm_network(data)
    names = [node.name for node in module.graph.projections]
    neurons = maskable_neurons(module.graph)[1:]
    costs = coefficients(module.graph, "exact")
    masks = make_masks(module, names, neurons, costs, MaskStart(0.3, 0.3, 0.2, 0.2))
    search = search_of(2, penalty_lmbda=None, target=Target("connectivity", 0.4), accumulate_step=2)
    config = replace(search.config, prune_optimizer="sgd")
    pruning = Pruning(module, data, replace(FROZEN, epochs=search.epochs), config, masks)
    *_, last = SearchLoop(pruning).run()
    both = {**masks.weights, **masks.neurons}
    found = {f"mask of {name}": mask.keep() for name, mask in both.items()}
    numbers = torch.tensor([last.lmbda, last.connectivity.share, last.hard_accuracy]).double()
    return copied_state(module) | found | {"numbers": numbers}


def everything() -> dict[str, Tensor]:
    """All runs; `live` is the one in which each process has its own batch statistics."""
    data = few(SAMPLES)
    training.EVALUATION_BATCH = 16
    runs = {
        "train": trained(data, FROZEN),
        "live": trained(data, replace(FROZEN, freeze_batch_norm=False)),
        "channels": channels(data),
        "connections": connections(data),
    }
    return {
        f"{run}/{name}": value.contiguous()
        for run, found in runs.items()
        for name, value in found.items()
    }


def disagreement() -> str:
    """What a process is told when the last one holds other masks than the first."""
    group = distributed.current()
    odd = torch.tensor([1.0, float(group.rank == group.world_size - 1)])
    group.agree("epoch 3", {"masks": [torch.ones(3)]})
    try:
        group.agree("epoch 3", {"weights": [torch.zeros(2)], "masks": [odd]})
    except DistributedError as error:
        return str(error)
    return "nothing"


def other_start(data: str, checkpoint: str) -> str:
    """What a process is told that begins with these."""
    try:
        assert_ranks_start_alike({"data": data}, checkpoint)
    except DistributedError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.join("cpu", 60)
    rank = distributed.current().rank
    order = distributed.main_first(lambda main: f"{main}")
    save_file(everything(), folder / f"rank{rank}.safetensors")
    told, own = disagreement(), str(rank)
    starts = other_start("ab", ""), other_start(own, "12"), other_start("ab", own)
    alone = f"{distributed.hand_over()} {distributed.current().world_size}"
    (folder / f"rank{rank}.txt").write_text("\n".join([order, alone, told, *starts]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
