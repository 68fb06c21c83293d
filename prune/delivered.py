"""What the nodes of a network deliver, and the SynOps that follow from it.

SynOps are as docs/counting.md defines them, the head included: spikes delivered times live fan-out.
Each layer's count is linear in what its source delivers, so the sums over time and samples, by
position, give the exact integer that `analysis.synops.count_model` gives.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from soul_deploy import distributed, ir
from soul_deploy.data import datasets
from soul_deploy.lowering import deploy, fan_out, linear_operators
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.training import train
from soul_deploy.training.trainer import device_of

CHUNK = 64
"""Samples that run at once, as `count_model` runs them: batches can differ in the last bit."""
Sums = Mapping[str, Tensor]
"""Node -> what it delivers by position (its shape), float64, summed over time and samples.

A head that reads the last step has an entry of its own, under its name: what its source delivers at
that step. So has a feedback: what its population delivers at all steps but the last.
"""


def sources(graph: ir.SpikingGraph) -> tuple[str, ...]:
    """The entries of Sums that SynOps are counted from; also that of a readout that votes."""
    form = deploy.composed_graph(graph)
    counted = [node.name for node in form.nodes if node.weighs or node is form.readout]
    counted += [back.name for back in graph.feedbacks.values()]
    found = dict.fromkeys(entry_of(graph, name) for name in counted)
    return tuple(entry for entry in found if graph.edges[node_of(graph, entry)].kind != "analog")


def entry_of(graph: ir.SpikingGraph, name: str) -> str:
    """The entry of Sums that arrives at a layer of the composed graph, the readout included."""
    if name == graph.readout.name and graph.readout.weighing == "last":
        return name
    if _is_feedback(graph, name):
        return name
    return _source_of(graph, name)


def node_of(graph: ir.SpikingGraph, entry: str) -> str:
    """The node whose values an entry of Sums holds."""
    own = entry == graph.readout.name or _is_feedback(graph, entry)
    return _source_of(graph, entry) if own else entry


def _is_feedback(graph: ir.SpikingGraph, name: str) -> bool:
    return any(name == back.name for back in graph.feedbacks.values())


def _steps_of(graph: ir.SpikingGraph, entry: str) -> slice:
    """The steps that an entry of Sums is over."""
    if _is_feedback(graph, entry):
        return slice(0, -1)
    return slice(-1, None) if entry == graph.readout.name else slice(None)


def _source_of(graph: ir.SpikingGraph, name: str) -> str:
    return linear_operators.walk_back(deploy.composed_graph(graph), name)[0]


@torch.no_grad()
def delivered(
    module: GraphModule, data: datasets.Data, split: datasets.Split, names: Sequence[str]
) -> dict[str, Tensor]:
    """The entries `names` of Sums on `split`, in evaluation mode, on the CPU.

    Several processes take chunks in turn; all return the same exact sums.
    """
    training, group = module.training, distributed.current()
    module.eval()
    nodes = {name: node_of(module.graph, name) for name in names}
    shapes = {name: module.graph.shapes[node] for name, node in nodes.items()}
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for index in group.mine(torch.split(torch.arange(len(split)), CHUNK)):
        images = data.normalise(split.select(index).images).to(device_of(module))
        known = {module.graph.input.name: module.as_signal(images)}
        values = module.evaluate(known, dict.fromkeys(nodes.values()))
        for name, node in nodes.items():
            steps = values[node].tensor[_steps_of(module.graph, name)]
            sums[name] += steps.sum((0, 1), dtype=torch.float64).cpu()
    module.train(training)
    on_device = [sums[name].to(group.device) for name in names]
    group.add_up(on_device)
    return {name: total.cpu() for name, total in zip(names, on_device, strict=True)}


def synops_per_sample(model: Model, data: datasets.Data, device: torch.device) -> float:
    """SynOps of a network, the mean over the validation split, the head included."""
    module, split = train.module_of(model, device), data.validation
    sums = delivered(module, data, split, sources(model.graph))
    return synops_sum(deploy.lower(model), sums) / len(split)


def counted_layers(lowered: deploy.Deployed) -> Iterator[fan_out.CountedLayer]:
    """The layers that have SynOps: all but those that an analog value feeds."""
    for layer in lowered.layers:
        if layer.edge.kind != "analog" or layer.linear.operator.readout is not None:
            yield layer


def synops_sum(lowered: deploy.Deployed, sums: Sums) -> int:
    """SynOps of all layers for what their sources delivered, the exact integer."""
    total = 0
    for layer in counted_layers(lowered):
        reach = torch.from_numpy(layer.fanout)
        values = sums[entry_of(lowered.graph, layer.name)]
        if values.dim() > reach.dim():  # the readout sums over space first
            values = values.sum((1, 2))
        total += int((values.to(torch.int64) * reach).sum())
    return total
