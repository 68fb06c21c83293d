"""How a fixed-point network compares with the network of real numbers that it was made of.

Equal accuracy can hide other firing (arXiv 2604.14487), so firing is compared by its distribution:
for each population the earth mover's distance between how the firing rates of its neurons are
distributed in both networks. A rate is spikes per step, from 0 to 1, over all samples; the distance
is how far rates have to be moved on average.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis.synops import count_batch
from soul_deploy.base import Array, brief
from soul_deploy.lowering import deploy
from soul_deploy.model.model import Model

CHUNK = 64


@brief
@dataclass(frozen=True)
class Firing:
    """What a network did on some samples.

    spikes: of each neuron, summed over steps and samples, by population. right: samples of their
    class; None without labels.
    """

    samples: int
    time_steps: int
    right: int | None
    synops: int
    spikes: Mapping[str, Array]

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None else self.right / self.samples

    def rates(self, population: str) -> Array:
        """Spikes per step and sample of each neuron, float64."""
        rates: Array = self.spikes[population] / (self.samples * self.time_steps)
        return rates

    def rate(self, population: str) -> float:
        """The mean over the population's neurons."""
        return float(self.rates(population).mean())

    @property
    def silent(self) -> tuple[str, ...]:
        """Populations that never fired."""
        return tuple(name for name, spikes in self.spikes.items() if not spikes.any())


@torch.no_grad()
def firing(model: Model, images: Tensor, labels: Tensor | None) -> Firing:
    """What `model` does on images as it takes them, (B, ...) or (T, B, ...)."""
    module, layers = model.module(), deploy.lower(model).counted
    names = [node.name for node in model.graph.populations]
    axis = module.batch_axis(images)
    spikes = {name: np.zeros(model.graph.shapes[name], np.int64) for name in names}
    right = synops = done = 0
    for part in torch.split(images, CHUNK, dim=axis):
        found = module.record(part)
        for name, sent in found.spikes.items():
            spikes[name] += sent.sum(dim=(0, 1)).numpy()
        synops += sum(counts.synops for counts in count_batch(module, layers, part).values())
        if labels is not None:
            right += int((found.logits.argmax(1) == labels[done : done + part.shape[axis]]).sum())
        done += part.shape[axis]
    told = None if labels is None else right
    return Firing(done, model.graph.time_steps, told, synops, spikes)


def earth_movers(a: Array, b: Array) -> float:
    """The earth mover's distance between the distributions of as many numbers each."""
    return float(np.abs(np.sort(a.reshape(-1)) - np.sort(b.reshape(-1))).mean())


def distances(real: Firing, whole: Firing) -> Iterator[tuple[str, float]]:
    """Of each population, between the rates of its neurons in both networks."""
    for name in real.spikes:
        yield name, earth_movers(real.rates(name), whole.rates(name))


def newly_silent(real: Firing, whole: Firing) -> tuple[str, ...]:
    """Populations that fired before, and never do now."""
    return tuple(name for name in whole.silent if name not in real.silent)
