"""What pruning is worth: accuracy and SynOps of our methods and of baselines, five paired seeds.

    python benchmarks/quality.py PART [--data_dir FOLDER] [--seeds 5] [--entries NAME,NAME] [-o OUT]

Parts: train, unstructured, scratch, structured, synops, curve; docs/quality.md has what they found.
The images are Fashion-MNIST's, 6,000 for training and 1,000 for validation, taken class by class,
and all 10,000 of the test set, padded to 32x32 and averaged to 16x16. They come from
http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/, on Debian without root:

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb files
    python benchmarks/quality.py train --data_dir files/usr/share/datasets

Every run leaves its network and its figures in a folder of its part, so a part that was stopped
goes on, and two processes can share the seeds (--first 0 --seeds 3, --first 3 --seeds 2); at last
--seeds 5 prints the tables of all.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from soul_deploy.base import errors, files
from soul_deploy.data.datasets import Data, Split, load_data, stratified_parts
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn import layers
from soul_deploy.prune.comparison import Entry, compare_pruning
from soul_deploy.prune.comparison_table import Comparison
from soul_deploy.prune.ramp import Ramp
from soul_deploy.prune.structured.budget import Rule
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.pipeline import prune_structured
from soul_deploy.prune.structured.scores import Score
from soul_deploy.prune.structured.selection import Guard
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured.config import FinetuneConfig, SearchConfig
from soul_deploy.prune.unstructured.methods import Method
from soul_deploy.prune.unstructured.pipeline import prune_unstructured
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.trainer import TrainConfig
from soul_deploy.zoo import vgg
from soul_deploy.zoo.create import create

SIDE, CLASSES, STEPS = 16, 10, 4
TRAINED, CHOSEN = 6000, 1000
"""Images for training, and for choosing the best epoch."""

# Epochs and rates; the same for all entries of a part.
BATCH, RATE = 60, 1e-3
CONSTANT = Schedule("constant")
CONV_EPOCHS = 6  # 6Conv2FC as `train` trains it: Adam 1e-3, cosine, batch 64
VGG_EPOCHS = 8  # Adam 1e-3, cosine
PRUNE_EPOCHS, FROZEN_EPOCHS = 5, 2  # structured: Adam 1e-3, cosine; three updates of the masks
SEARCH_EPOCHS, FINETUNE_EPOCHS = 5, 3  # unstructured: Adam 1e-3, weights and masks, constant
TEMPERATURE = (5, 1000)
LAMBDA, TARGET = 5e-9, Target("connectivity", 0.042)
MATCHED = Target("connectivity", 0.0385)  # what LAMBDA leaves here
LAMBDAS = (1e-9, 5e-9, 2e-8)
RATIOS = (0.5, 0.7)  # pruned shares of the channels
SHARE, SHARES = 0.4, (0.5, 0.2, 0.1, 0.05)  # of the dense network's SynOps
SCORES: tuple[Score, ...] = ("spike_membrane", "random", "l1", "bn_gamma", "synops")
BASELINES: tuple[Method, ...] = ("magnitude", "random")
RAMPS: tuple[Ramp, ...] = ("constant", "cubic")
MIN_KEEP, REGROW = 0.15, 0.1
OUR_SCORE: Score = "spike_membrane"

VGG_WIDTHS: tuple[int | str, ...] = (24, "M", 48, 48, "M", 96, 96, 96, "M")
VGG_HIDDEN = 96


class SmallVGG(nn.Sequential):
    """SpikingVGG9 with 3/8 of its channels: 600 in all, 192 of them in the head."""

    def __init__(self) -> None:
        super().__init__()
        neuron, channels, side, blocks = NeuronSpec(), 1, SIDE, list[nn.Module]()
        for width in VGG_WIDTHS:
            if isinstance(width, str):
                blocks.append(layers.MaxPool2d(2, 2))
                side //= 2
            else:
                blocks.append(vgg.ConvNeuron(neuron, STEPS, (channels, width)))
                channels = width
        self.features = nn.Sequential(*blocks)
        self.pre_logits = vgg.ConvMlp(
            neuron, STEPS, (channels, VGG_HIDDEN, VGG_HIDDEN), (side, side)
        )
        self.head = layers.RateReadout(VGG_HIDDEN, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)


def small_vgg(seed: int) -> Model:
    """With the weights of a seed."""
    torch.manual_seed(seed)
    network = SmallVGG()
    return Model(trace(network, (1, SIDE, SIDE), STEPS), arrays_of(network.state_dict()))


def six_conv(seed: int) -> Model:
    """6Conv2FC of width 16 with 128 hidden neurons, with the weights of a seed."""
    torch.manual_seed(seed)
    shape = (1, SIDE, SIDE)
    return create(
        "cifar10net", input_shape=shape, classes=CLASSES, time_steps=STEPS, hidden=128, width=16
    )


def averaged(split: Split, count: int | None = None) -> Split:
    """16x16 means of the images padded to 32x32; `count` of them, as many of each class."""
    if count is not None:
        split = split.select(stratified_parts(split.labels, (count,))[0])
    padded = F.pad(split.images.float(), (2, 2, 2, 2))
    return Split(F.avg_pool2d(padded, 2).round().to(torch.uint8), split.labels)


def images(data_dir: Path) -> Data:
    """Fashion-MNIST as this benchmark takes it. Raises SystemExit with where to get it."""
    try:
        whole = load_data("fashionmnist", data_dir, size=28)
    except errors.MissingFileError as error:
        sys.exit(f"{error}\n{__doc__}")
    return replace(
        whole,
        train=averaged(whole.train, TRAINED),
        validation=averaged(whole.validation, CHOSEN),
        test=averaged(whole.test),
    )


@dataclass(frozen=True)
class Setting:
    """What is measured on: data, where runs are kept, seeds, and which entries (none: all)."""

    data: Data
    folder: Path
    seeds: Sequence[int]
    chosen: Sequence[str]

    def compare(
        self,
        part: str,
        start: Callable[[int], Model],
        entries: Sequence[Entry] = (),
        dense: TrainConfig | None = None,
    ) -> Comparison:
        """Of the chosen entries of a part."""
        names = [entry.name for entry in entries]
        for name in self.chosen if entries else ():
            errors.require_known("entry", name, names)
        wanted = [entry for entry in entries if not self.chosen or entry.name in self.chosen]
        inputs = (start, self.data, wanted, self.seeds, self.folder / part)
        return compare_pruning(*inputs, dense=dense, device="cpu")

    def trained(self, part: str, fresh: Callable[[int], Model], dense: TrainConfig) -> Comparison:
        """Train the dense network of each seed."""
        return self.compare(part, fresh, (), dense)

    def dense_of(self, part: str) -> Callable[[int], Model]:
        """The trained networks of a part, by seed."""
        return lambda seed: load(self.folder / part / f"dense_{seed}.safetensors")


def training(epochs: int) -> TrainConfig:
    """Adam, 1e-3, cosine."""
    return TrainConfig(epochs=epochs, batch_size=BATCH, learning_rate=RATE)


def search_entry(name: str, lmbda: float | None, target: Target | None) -> Entry:
    """The search at a lambda, or for a share of the synapses."""
    config = SearchConfig(
        penalty_lmbda=lmbda,
        target=target,
        temp_scheduler=TEMPERATURE,
        finetune=FinetuneConfig(FINETUNE_EPOCHS, RATE, CONSTANT),
    )
    searched = replace(training(SEARCH_EPOCHS), schedule=CONSTANT)
    return Entry(name, prune_unstructured, config, searched)


def weight_entry(method: Method, ramp: Ramp) -> Entry:
    """A baseline to the same share of the synapses, over the same epochs."""
    entry = search_entry(f"{method}:{ramp}", None, TARGET)
    return replace(entry, config=replace(entry.config, method=method, prune_ramp=ramp))


def channel_entry(
    score: Score, budget: float | Target, ramp: Ramp, min_keep: float = 0.0, rule: Rule = "score"
) -> Entry:
    """A pruned share of the channels, or a target. Only SCA's score has a gradient beside it."""
    target = budget if isinstance(budget, Target) else None
    value = budget.value if isinstance(budget, Target) else budget
    schedule = PruneSchedule(
        *(0.0 if target else value, REGROW if score == OUR_SCORE else 0.0, PRUNE_EPOCHS),
        finetune_epochs=FROZEN_EPOCHS,
        ramp=ramp,
    )
    guard = Guard(min_keep=min_keep)
    config = ScaConfig(schedule, guard, score, target=target, budget_rule=rule)
    kept = f":{min_keep:g}" if min_keep else ""
    kept += ":per_cost" if rule == "per_cost" else ""
    name = f"{score}:{value:g}:{ramp}{kept}"
    return Entry(name, prune_structured, config, training(PRUNE_EPOCHS))


def dense_conv(setting: Setting) -> Comparison:
    """6Conv2FC by train's defaults."""
    return setting.trained("train", six_conv, TrainConfig(epochs=CONV_EPOCHS))


def dense_vgg(setting: Setting) -> Comparison:
    """The VGG that is pruned by channel."""
    return setting.trained("vgg", small_vgg, training(VGG_EPOCHS))


def unstructured(setting: Setting) -> Comparison:
    """At 4.2 % of the synapses, and at what the search at a lambda leaves, against that search."""
    dense_conv(setting)
    entries = [
        search_entry("lambda", LAMBDA, None),
        search_entry("search", None, TARGET),
        search_entry("matched", None, MATCHED),
        *(weight_entry(method, ramp) for method in BASELINES for ramp in RAMPS),
    ]
    return setting.compare("unstructured", setting.dense_of("train"), entries)


def scratch(setting: Setting) -> Comparison:
    """The search from fresh weights."""
    entries = [search_entry(f"lambda={lmbda:g}", lmbda, None) for lmbda in LAMBDAS]
    return setting.compare("scratch", six_conv, entries)


def structured(setting: Setting) -> Comparison:
    """Half of the channels pruned, and 70 %."""
    dense_vgg(setting)
    kept: tuple[Score, ...] = ("spike_membrane", "random")
    entries = [
        *(channel_entry(OUR_SCORE, p, "cubic", MIN_KEEP, "per_cost") for p in RATIOS),
        *(channel_entry(s, ratio, ramp) for ratio in RATIOS for ramp in RAMPS for s in SCORES),
        *(channel_entry(s, ratio, "cubic", MIN_KEEP) for ratio in RATIOS for s in kept),
    ]
    return setting.compare("structured", setting.dense_of("vgg"), entries)


def synops(setting: Setting) -> Comparison:
    """To 40 % of the dense network's SynOps."""
    dense_vgg(setting)
    target = Target("synops", SHARE)
    entries = [
        channel_entry(OUR_SCORE, target, "cubic", MIN_KEEP, "per_cost"),
        channel_entry(OUR_SCORE, target, "cubic", rule="per_cost"),
        channel_entry(OUR_SCORE, target, "cubic", MIN_KEEP),
        *(channel_entry(score, target, "cubic") for score in SCORES),
    ]
    return setting.compare("synops", setting.dense_of("vgg"), entries)


def curve(setting: Setting) -> Comparison:
    """Down to 5 % of the SynOps, our scores and random channels."""
    dense_vgg(setting)
    targets = [Target("synops", share) for share in SHARES]
    entries = [
        *(channel_entry(OUR_SCORE, t, "cubic", MIN_KEEP, "per_cost") for t in targets),
        *(channel_entry(score, t, "cubic") for t in targets for score in SCORES),
    ]
    return setting.compare("curve", setting.dense_of("vgg"), entries)


PARTS: Mapping[str, Callable[[Setting], Comparison]] = {
    "train": dense_conv,
    "unstructured": unstructured,
    "scratch": scratch,
    "structured": structured,
    "synops": synops,
    "curve": curve,
}


def groups(found: Comparison) -> list[Comparison]:
    """The entries of each budget by themselves: the second word of their names."""
    kinds = [name.split(":")[1:2] for name in found.entries]
    unique = [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    return [
        replace(found, entries=tuple(n for n in found.entries if n.split(":")[1:2] == kind))
        for kind in unique
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--entries", default="", help="names of rows, with commas; none: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("quality"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seeds = range(given.first, given.first + given.seeds)
    chosen = [name for name in given.entries.split(",") if name]
    setting = Setting(images(given.data_dir), given.output, seeds, chosen)
    try:
        found = PARTS[given.part](setting)
    except errors.SoulDeployError as error:
        sys.exit(f"Error: {error}")
    apart = [group.differences_table() for group in groups(found) if group.entries[1:]]
    print("\n".join([found.table().text(), *(table.text() for table in apart), *found.failures()]))
    document = {"part": given.part, **found.to_dict()}
    document["differences"] = [asdict(d) for group in groups(found) for d in group.differences()]
    files.write_text(given.output / f"{given.part}.json", json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
