"""Neurons behind a convolution and a max pooling of its current: pruned by channel, exactly."""

from pathlib import Path

import numpy as np
import torch

from soul_deploy import (
    PruneSchedule,
    ScaConfig,
    TrainConfig,
    as_data,
    export_event,
    export_onnx,
    ir,
    load_network,
    prune_structured,
    verify,
)
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule

STEPS = 4


def tutorial() -> Model:
    """As snnTorch's convolutional tutorial: convolution, max pooling, neurons; with an overlap and
    padding, and a batch norm of its own behind the second pooling."""
    drawn = np.random.default_rng(5)
    spec = ir.NeuronSpec(tau=2.0, decay_input=False, v_reset=None, form="snntorch")
    norm = ir.BatchNorm("norm2")
    nodes = (
        ir.Input("input", (), (1, 12, 12)),
        ir.Convolution("conv1", ("input",), True, None, 1, 6, (3, 3), (1, 1), (1, 1), (1, 1)),
        ir.MaxPool("pool1", ("conv1",), (3, 3), (2, 2), (1, 1)),
        ir.Population("lif1", ("pool1",), spec),
        ir.Convolution("conv2", ("lif1",), True, None, 6, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
        ir.MaxPool("pool2", ("conv2",), (2, 2), (2, 2), (0, 0)),
        ir.ChannelNorm("norm2", ("pool2",), norm),
        ir.Population("lif2", ("norm2",), spec),
        ir.Flatten("flatten", ("lif2",)),
        ir.Linear("fc", ("flatten",), True, None, 72, 10),
        ir.Population("lif3", ("fc",), spec),
        ir.Readout("readout", ("lif3",), 10, linear=False, bias=False),
    )
    graph = ir.SpikingGraph(nodes, STEPS)
    state = {}
    for name, array in GraphModule(graph).state_dict().items():
        made = drawn.normal(0.2, 0.5, tuple(array.shape))
        made = np.abs(made) + 0.1 if name.endswith("var") else made
        state[name] = array.numpy() if array.dtype == torch.int64 else made.astype(np.float32)
    return Model(graph, state)


def test_half_of_the_channels_goes_and_nothing_else_changes(tmp_path: Path) -> None:
    model, drawn = tutorial(), torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 1, 12, 12), generator=drawn, dtype=torch.uint8)
    parts = (images, torch.arange(40) % 10)
    data = as_data({"train": parts, "validation": parts, "test": parts})
    config = ScaConfig(PruneSchedule(ratio=0.5, epochs=2, finetune_epochs=1))
    result = prune_structured(model, data, config, TrainConfig(learning_rate=1e-4, batch_size=20))
    assert result.compact is not None
    kept = [node.out_channels for node in result.compact.graph.projections]
    assert sum(kept[:2]) == 7 and kept[2] == 10
    x = images.float() / 255
    masked, compact = (m.module().record(x) for m in (result.masked, result.compact))
    for node in result.compact.graph.populations:
        assert 0 < compact.spikes[node.name].sum() == masked.spikes[node.name].sum()
    assert torch.equal(masked.logits, compact.logits)
    for form, export in (("event.safetensors", export_event), ("onnx", export_onnx)):
        for name, part in (("masked", result.masked), ("compact", result.compact)):
            path = tmp_path / f"{name}.{form}"
            export(part, path)
            report = verify(part, path, x)
            assert report.passed, report.text()
    network = load_network(tmp_path / "compact.event.safetensors")
    np.testing.assert_array_equal(network.run(x.numpy()), compact.logits.numpy())
