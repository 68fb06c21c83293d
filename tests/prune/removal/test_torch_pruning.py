"""Our removal and the Torch-Pruning package's, for the same channels: the same weights and outputs.

Torch-Pruning follows autograd's graph of one step; ours follows the spiking graph. Neither is told
which layers belong together.
"""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

from soul_deploy.ir import Convolution, Flatten, MaxPool, Merge, NeuronSpec, Population, Readout
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.layers import merged
from soul_deploy.prune.channel_groups import channel_groups
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured.selection import pruning_units
from soul_deploy.zoo import registry as zoo

OPTIONS = zoo.NetworkOptions(
    (3, 8, 8), 10, NeuronSpec(), 2, hidden=48, width=12, connect="add", stem="small"
)
NETWORKS = ["spikingvgg9", "cifar10net", "sewresnet18", "sewresnet50", "msresnet18"]


class OneStep(nn.Module):
    """The network's layers in order, a smooth function in each neuron's place."""

    def __init__(self, network: GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {self.network.graph.input.name: x}
        for node in self.network.graph.nodes[1:]:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, Merge):
                values[node.name] = merged(node.function, inputs)
            elif isinstance(node, Population):
                values[node.name] = torch.sigmoid(inputs[0])
            elif isinstance(node, MaxPool):
                values[node.name] = F.max_pool2d(inputs[0], node.kernel, node.stride, node.padding)
            elif isinstance(node, Flatten):
                values[node.name] = torch.flatten(inputs[0], 1)
            elif isinstance(node, Readout):
                values[node.name] = self._read(node, inputs[0])
            elif hasattr(node, "size"):
                values[node.name] = F.adaptive_avg_pool2d(inputs[0], node.size)
            else:
                values[node.name] = self.network.get_submodule(node.name)(inputs[0])
                if node.norm is not None:  # type: ignore[attr-defined]
                    norm = self.network.get_submodule(node.norm.name)  # type: ignore[attr-defined]
                    values[node.name] = norm(values[node.name])
        return values[self.network.graph.readout.name]

    def _read(self, node: Readout, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3)) if x.dim() == 4 else x
        scores: Tensor = self.network.get_submodule(node.name)(pooled) if node.linear else pooled
        return scores


def dense(name: str) -> Model:
    torch.manual_seed(0)
    _, graph = zoo.create(name, OPTIONS)
    module = GraphModule(graph)
    for key, tensor in module.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    return Model(graph, arrays_of(module.state_dict()))


def chosen(model: Model) -> dict[str, npt.NDArray[np.bool_]]:
    """Unit -> channels that stay, for all units whose channels can be removed."""
    rng = np.random.default_rng(1)
    whole = {name for group in channel_groups(model.graph) if group.whole for name in group.nodes}
    keeps = {}
    for unit in pruning_units(model.graph, "coupled"):
        if not whole.intersection(unit.populations):
            keeps[unit.name] = rng.random(unit.channels) < 0.6
            keeps[unit.name][0] = True
    return keeps


def ours(model: Model, keeps: dict[str, npt.NDArray[np.bool_]]) -> Model:
    units = {unit.name: unit for unit in pruning_units(model.graph, "coupled")}
    masks = {mask: keep for name, keep in keeps.items() for mask in units[name].masks}
    masked = Model(model.graph, model.state, masks)
    return remove(masked, plan_removal(masked))


def theirs(model: Model, network: GraphModule, keeps: dict[str, npt.NDArray[np.bool_]]) -> None:
    """Cut the model's module in place."""
    units = {unit.name: unit for unit in pruning_units(model.graph, "coupled")}
    single = OneStep(network).eval()
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(single, torch.rand(1, *model.input_shape))
    for name, keep in keeps.items():
        projection = model.graph.masked_projection(units[name].masks[0])
        layer = network.get_submodule(projection)
        convolution = isinstance(model.graph[projection], Convolution)
        cut = torch_pruning.prune_conv_out_channels
        cut = cut if convolution else torch_pruning.prune_linear_out_channels
        graph.get_pruning_group(layer, cut, np.flatnonzero(~keep).tolist()).prune()


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_channels_removed_by_torch_pruning_give_the_same(name: str) -> None:
    model = dense(name)
    keeps = chosen(model)
    compact, reference = ours(model, keeps), model.module()
    theirs(model, reference, keeps)
    expected = arrays_of(reference.state_dict())
    assert compact.state.keys() == expected.keys()
    for key, array in compact.state.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)
    rebuilt = GraphModule(compact.graph).eval()
    rebuilt.load_state_dict(reference.state_dict())
    x = torch.rand(2, *model.input_shape)
    assert torch.equal(compact.module()(x), rebuilt(x))
    again = model.module()
    print(
        f"{name}: plan and removal {timed(lambda: ours(model, keeps)):.3f} s, "
        f"Torch-Pruning {timed(lambda: theirs(model, again, keeps)):.3f} s"
    )
