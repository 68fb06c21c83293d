"""Small searches for masks for the tests: a graph with one of everything, digits, masks."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from click.testing import CliRunner, Result

from soul_deploy import ir
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import Data, load_data
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.loss import coefficients
from soul_deploy.prune.unstructured.masks import Masks, MaskStart, make_masks, maskable_neurons
from soul_deploy.prune.unstructured.pruning import Pruning
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.trainer import TrainConfig
from soul_deploy.zoo.registry import NetworkOptions, create

LIF = ir.NeuronSpec()
SMALL = ["--model", "SpikingVGG5", "--hidden", "8", "--dataset_name", "Digits", "-T", "2"]
QUICK = [*SMALL, "--epochs", "2", "-b", "32", "--threads", "1", "--prune_lr", "0.02"]
STEERED = ["--criterion", "ce", "--target_connectivity", "0.3", "--temp_scheduler", "5", "200"]
STEM = "spikingvgg5_lif_digits_T2_2025"
CONSTANT = Schedule("constant")


def small_graph() -> ir.SpikingGraph:
    """2×6×6, two 3×3 convolutions with a max pool between them, a linear layer, a head."""
    return ir.SpikingGraph(
        (
            ir.Input("input", (), (2, 6, 6)),
            ir.Convolution("a", ("input",), False, None, 2, 4, (3, 3), padding=(1, 1)),
            ir.Population("sa", ("a",), LIF),
            ir.MaxPool("pool", ("sa",), (2, 2), (2, 2)),
            ir.Convolution("b", ("pool",), False, None, 4, 3, (3, 3), padding=(1, 1)),
            ir.Population("sb", ("b",), LIF),
            ir.Flatten("flat", ("sb",)),
            ir.Linear("c", ("flat",), True, None, 27, 5),
            ir.Population("sc", ("c",), LIF),
            ir.Readout("head", ("sc",), 3, linear=True, bias=True),
        ),
        2,
    )


def small_module(seed: int = 1) -> GraphModule:
    torch.manual_seed(seed)
    module = GraphModule(small_graph())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(6)
    return module


def masks_of(
    module: GraphModule, start: MaskStart | None = None, neurons: tuple[str, ...] = ("sb",)
) -> Masks:
    names = [node.name for node in module.graph.projections]
    costs = coefficients(module.graph, "exact")
    return make_masks(module, names, neurons, costs, start or MaskStart(0, 0, 0.5, 0.5))


def few(count: int) -> Data:
    whole = load_data("digits", Path("."))
    train, test = whole.train.select(torch.arange(count)), whole.test.select(torch.arange(50))
    checks = whole.validation.select(torch.arange(60))
    return Data("digits", train, checks, test, whole.classes, whole.normalization)


def call(*words: str) -> Result:
    return CliRunner().invoke(root, ["prune", "unstructured", *words])


def network(data: Data, hidden: int = 8) -> GraphModule:
    torch.manual_seed(7)
    options = NetworkOptions(data.input_shape, 10, ir.NeuronSpec(), 2, hidden=hidden)
    built, graph = create("spikingvgg5", options)
    module = GraphModule(graph)
    module.load_state_dict(built.state_dict())
    return module


def masks_for(module: GraphModule, mean: float = 0.1) -> Masks:
    graph = module.graph
    names = [node.name for node in graph.projections]
    neurons = maskable_neurons(graph)[1:]
    return make_masks(module, names, neurons, coefficients(graph, "exact"), MaskStart(mean, mean))


class Search(NamedTuple):
    """A search and how many epochs it has."""

    epochs: int
    config: SearchConfig


def search_of(epochs: int = 2, **changed: Any) -> Search:
    config = SearchConfig(penalty_lmbda=1e-8, temp_scheduler=(5, 200), prune_lr=0.01)
    return Search(epochs, replace(config, **changed))


def pruning_of(data: Data, search: Search, mean: float = 0.1, **changed: Any) -> Pruning:
    module = network(data)
    training = TrainConfig(epochs=search.epochs, schedule=CONSTANT, batch_size=32)
    masks = masks_for(module, mean)
    return Pruning(module, data, replace(training, **changed), search.config, masks)
