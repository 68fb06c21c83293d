"""How wide membranes have to be: proven from the bounds of currents, or seen on data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from soul_deploy.base import errors
from soul_deploy.ir.fixed import MEMBRANE_BITS, RESETS
from soul_deploy.lowering import bounds, deploy
from soul_deploy.model.model import Model
from soul_deploy.quantization.network import Membrane, Plan, integer_network
from soul_deploy.runtime.equations import FixedEquation

INT16_BITS = 15
CHUNK = 64


@dataclass(frozen=True)
class MembraneRange:
    """Of a population.

    current   the bound of its current
    reach     how far its membrane can get; seen: how far it got on calibration data
    bits      p of its range, -2^p to 2^p - 1
    """

    current: int
    reach: int
    seen: int
    bits: int

    @property
    def proven(self) -> bool:
        """Whether it cannot saturate."""
        return self.reach < 1 << self.bits

    @property
    def kind(self) -> str:
        return "int16" if self.bits == INT16_BITS else "int32"


def ranges_for(
    plan: Plan, images: Tensor | None, choice: Membrane
) -> tuple[Model, dict[str, MembraneRange]]:
    """The network, and the ranges of its membranes.

    images: as the network takes them; a membrane that saturates on them becomes int32 where the
    choice is left open. Raises UsageError where int16 is asked for and saturates.
    """
    wide = set[str]()
    names = [node.name for node in plan.model.graph.populations]
    if choice == "int32":
        wide = set(names)
    found = _network(plan, wide)
    seen = {} if images is None else furthest(found, images)
    full = {name for name, most in seen.items() if name not in wide and most >= 1 << INT16_BITS}
    if full and choice == "int16":
        raise errors.UsageError(
            f"the membranes of {', '.join(sorted(full))} saturate as int16; leave the choice open, "
            "or take int32"
        )
    if full:
        found = _network(plan, full | wide)
        seen = {} if images is None else furthest(found, images)
    reach = {name: _reach(found, name) for name in names}
    settings = {node.name: dict(node.neuron.settings) for node in found.graph.populations}
    return found, {
        name: MembraneRange(*reach[name], seen.get(name, 0), _bits(settings[name]["high"]))
        for name in names
    }


def _bits(high: float) -> int:
    return int(high + 1).bit_length() - 1


def _network(plan: Plan, wide: set[str]) -> Model:
    """With int32 membranes where `wide`, as narrow as their proven reach allows."""
    if not wide:
        return integer_network(plan)
    narrow = integer_network(plan)
    needed = {name: _reach(narrow, name)[1] for name in wide}
    bits = {
        name: min(max(reach.bit_length(), INT16_BITS + 1), MEMBRANE_BITS[-1])
        for name, reach in needed.items()
    }
    return integer_network(plan, bits)


def _reach(model: Model, name: str) -> tuple[int, int]:
    """The bound of a population's current, and how far from 0 its membrane can get by it.

    A floor adds less than 1 a step. With a leak λ below 1, all that came before adds up to less
    than 1 / (1 - λ) of the largest step; without one, to T steps.
    """
    lowered = deploy.lower(model)
    equation = lowered.equations[name]
    assert isinstance(equation, FixedEquation)
    current = bounds.largest(bounds.current_bounds(lowered)[model.graph[name].inputs[0]])
    step = current + 1 + (int(equation.subtract.max()) if equation.reset == "late" else 0)
    leak = equation.multiplier / (1 << equation.shift)
    steps = model.graph.time_steps if leak == 1 else 1 / (1 - leak)
    taken = int(equation.subtract.max()) if equation.reset == "soft" else 0
    return current, math.ceil(step * steps) + taken


@torch.no_grad()
def furthest(model: Model, images: Tensor) -> Mapping[str, int]:
    """How far from 0 each population's membrane got on images; 2^p where it saturated."""
    module = model.module()
    most: dict[str, int] = {node.name: 0 for node in model.graph.populations}
    ends = {node.name: _ends(model, node.name) for node in model.graph.populations}

    def observe(name: str, t: int, spikes: Tensor, membrane: Tensor) -> None:
        low, high = ends[name]
        least, largest = int(membrane.min()), int(membrane.max())
        found = max(-least, largest)
        if least <= low or largest >= high:
            found = max(found, -low)
        most[name] = max(most[name], found)

    axis = module.batch_axis(images)
    for part in torch.split(images, CHUNK, dim=axis):
        module.forward_observed(part, observe)
    return most


def _ends(model: Model, name: str) -> tuple[int, int]:
    """What a membrane holds after a step in which it saturated, below and above. A hard reset
    leaves nothing of what was above."""
    node = next(node for node in model.graph.populations if node.name == name)
    settings = dict(node.neuron.settings)
    low, high = int(settings["low"]), int(settings["high"])
    reset = RESETS[int(settings["reset"])]
    if reset == "hard":
        return low, high
    if reset == "soft":
        return low, high - int(model.state[f"{name}.subtract"].max())
    return low, high
