"""The deployed neurons: every population's equation and stored patterns, from a model's state."""

from collections.abc import Mapping

import torch

from soul_deploy.base.files import Array
from soul_deploy.ir.graph import Population
from soul_deploy.model.model import Model
from soul_deploy.nn.neuron import learned_decay
from soul_deploy.runtime.equations import NeuronEquation


def equation_of(population: Population, state: Mapping[str, Array]) -> NeuronEquation:
    """The equation of one population; a learned decay is read from `state`, in float32."""
    if not population.neuron.learned:
        return population.neuron.equation()
    w = torch.from_numpy(state[f"{population.name}.w"].copy())
    return population.neuron.equation(learned_decay(w))


def equations_of(model: Model) -> dict[str, NeuronEquation]:
    """The deployed equation of every population, by name."""
    return {node.name: equation_of(node, model.state) for node in model.graph.populations}


def patterns_of(model: Model) -> dict[str, Array]:
    """The stored spikes, bool (T, generated), of populations with generated channels, by name."""
    populations = (node for node in model.graph.populations if node.generated)
    return {node.name: model.state[f"{node.name}.pattern"] for node in populations}
