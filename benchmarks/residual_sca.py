"""SCA on residual networks at 3×32×32, T = 4: prune, remove, export, and the three checks.

    python benchmarks/residual_sca.py

The images are real digits (mnist5k), enlarged to 32×32 and tinted to three channels: enough for the
layers to learn and to spike, and no download. Prints parameters and SynOps before and after.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from soul_deploy.analysis.synops import count_model
from soul_deploy.data.datasets import Data, Split, load_data
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, ModelInfo, Normalization, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import Residual
from soul_deploy.prune.removal.apply import parameters, remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.sca import ChannelPruning
from soul_deploy.prune.structured.selection import Guard, pruning_units
from soul_deploy.training.trainer import TrainConfig, Training, accuracy
from soul_deploy.zoo.registry import NetworkOptions, create

TRAINED, CHECKED, COUNTED = 640, 8, 32


def tinted(split: Split, count: int) -> Split:
    """The first `count` digits as 3×32×32, the tint from the label's parity and the index."""
    images = F.interpolate(split.images[:count].float(), size=(32, 32))
    tint = torch.tensor([[1.0, 0.6, 0.8], [0.7, 1.0, 0.5], [0.5, 0.8, 1.0]])
    colours = tint[torch.arange(len(images)) % 3][:, :, None, None]
    return Split((images * colours).to(torch.uint8), split.labels[:count])


def coloured_digits() -> Data:
    """mnist5k in colour."""
    plain = load_data("mnist5k", Path("data"))
    return replace(
        plain,
        name="tinted mnist5k",
        train=tinted(plain.train, TRAINED),
        validation=tinted(plain.validation, 200),
        test=tinted(plain.test, 400),
        normalization=Normalization((0.15,) * 3, (0.3,) * 3),
    )


def synops(model: Model, images: torch.Tensor) -> int:
    """SynOps per image."""
    return round(sum(c.synops for c in count_model(model, images).values()) / len(images))


def run(name: str, residual: Residual, data: Data) -> bool:
    """Train, prune by SCA, remove, export, verify one network; whether all checks passed."""
    torch.manual_seed(1)
    network, graph = create(name, NetworkOptions((3, 32, 32), 10, NeuronSpec(), 4))
    module = GraphModule(graph)
    module.load_state_dict(network.state_dict())
    recipe = TrainConfig(epochs=2, batch_size=32, learning_rate=2e-3, seed=1)
    for _ in Training(module, data, recipe).run():
        pass
    dense = from_module(module, ModelInfo())
    schedule = PruneSchedule(ratio=0.5, regrow_ratio=0.1, epochs=2, finetune_epochs=1)
    sca = ScaConfig(schedule, Guard(min_keep=0.25), "spike", residual=residual)
    units = pruning_units(graph, residual)
    names = [population for unit in units for population in unit.populations]
    for _ in ChannelPruning(module, data, recipe, sca, list(dict.fromkeys(names))).run():
        pass
    masked = from_module(module, ModelInfo("masked"))
    compact = remove(masked, plan_removal(masked, residual=residual))
    images = data.normalise(data.test.images)
    shown = [f"{accuracy(m.module(), data, data.test):.1%}" for m in (dense, masked, compact)]
    print(f"{name}, --residual {residual}: accuracy dense, masked, compact {', '.join(shown)}")
    before, after = parameters(dense.state), parameters(compact.state)
    print(f"  parameters {before:,} → {after:,} ({before / after:.2f}× fewer)")
    counted = images[:COUNTED]
    before, after = synops(dense, counted), synops(compact, counted)
    print(f"  SynOps per image {before:,} → {after:,} ({before / max(after, 1):.2f}× fewer)")
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        for file, write in (("net.onnx", export_onnx), ("net.event.safetensors", export_event)):
            write(compact, Path(folder) / file)
            report = verify(compact, Path(folder) / file, images[:CHECKED])
            passed &= report.passed
            silent = f", silent layers: {', '.join(report.silent)}" if report.silent else ""
            print(f"  {file}: three gates {report.verdict.value}{silent}")
    return passed


def main() -> None:
    """All four."""
    torch.set_num_threads(2)
    data = coloured_digits()
    choices: tuple[Residual, ...] = ("coupled", "scatter")
    results = [run(n, r, data) for n in ("sewresnet18", "msresnet18") for r in choices]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
