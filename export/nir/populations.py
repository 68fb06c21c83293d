"""Spiking neurons of NIR as populations, with the recurrent synapses that lead back to them."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base import Array, errors, files
from soul_deploy.export.nir import membranes, package, several
from soul_deploy.export.nir.neuron import NirNeuron, from_nir, single, to_nir
from soul_deploy.export.nir.projections import PROJECTIONS
from soul_deploy.export.nir.recurrence import NEURONS
from soul_deploy.export.nir.values import NirValue, Reader, safe_name
from soul_deploy.ir.feedback import OneToOne
from soul_deploy.nn.neuron import learned_number


def population(r: Reader, key: str, node: Any) -> NirValue:
    """Neurons of one number each, else those of `several`; with their recurrent synapses."""
    said, source = r.conventions, r.arriving(key)
    back, own_weight = r.graph.feedbacks.get(key), None
    if said.reset == "subtract" and back is not None:
        own_weight = _own_weight(back[1])
    tensors: dict[str, Array] = {}
    ours = package.POPULATION in node.metadata
    if not ours and (own_weight is not None or several.needed(node, said.dt)):
        found = several.read(key, node, r.shapes[source.name], said, own_weight)
        spec, gain = found.neuron, found.gain
        tensors |= found.tensors
        back = back if own_weight is None else None
    else:
        spec, factor = _one_for_all(r, key, node)
        gain = np.array(factor)
        if spec.learned:
            tensors["w"] = np.array(np.float32(node.metadata[package.DECAY_PARAMETER]))
    feeding = r.weighted(key, source, gain)
    name = r.name(key)
    feedback = None if back is None else _feedback(r, name, gain, *back)
    return r.put(ir.Population(name, (feeding,), spec, feedback=feedback), **tensors)


def _one_for_all(r: Reader, key: str, node: Any) -> tuple[ir.NeuronSpec, float]:
    """The neuron, and the factor on its input."""
    neuron, said = _numbers(key, node, r.read_of(key)), r.conventions
    own = _own_neuron(r, key, node, neuron)
    if own is not None:
        return said.accept(key, own), 1.0
    said.require_step(key, neuron, lambda: _all_numbers(r.graph))
    fire, reset = said.fire_of(key, node), said.reset_of(leaks=neuron.tau is not None)
    return from_nir(key, neuron, said.dt, fire, reset)


def _own_weight(back: Any) -> Array | None:
    """What each neuron's last spike adds to its own current, where that is all that synapses do:
    snnTorch's neurons with a weight for each have an arithmetic of their own."""
    if type(back).__name__ != "Linear":
        return None
    weight = np.asarray(back.weight, np.float64)
    square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
    diagonal = np.diag(weight) if square else np.zeros(0)
    return diagonal if square and np.array_equal(np.diag(diagonal), weight) else None


def _feedback(r: Reader, population: str, gain: Array, place: str, node: Any) -> ir.Node:
    """A population's recurrent synapses; their weights come into the state.

    gain: what the population's current is multiplied by, of which they are a part.
    """
    name = safe_name(place, node)
    if name in r.shapes or name == population:
        raise errors.FileFormatError(f"two NIR nodes are called {name!r}")
    if gain.size > 1:
        raise errors.UnsupportedGraphError(
            f"{place}: a recurrent connection to neurons with a resistance for each; supported is "
            "r = tau/dt, or one for all"
        )
    kind = type(node).__name__
    if kind == "Scale":
        factor = single(uniform(place, "scale", node.scale) * float(gain))
        return OneToOne(name, (population,), factor)
    made, weight, bias = PROJECTIONS[kind](place, name, population, node)
    r.state[f"{name}.weight"] = (weight * gain).astype(np.float32)
    if bias is not None:
        r.state[f"{name}.bias"] = (bias * gain).astype(np.float32)
    return made


def _numbers(key: str, node: Any, read: membranes.ReadRule = "spikes") -> NirNeuron:
    """Of a LIF, an IF, or a CubaLIF whose synaptic current lasts one step."""
    kind, tau = type(node).__name__, None
    r = uniform(key, "r", node.r)
    if kind == "CubaLIF":
        tau = uniform(key, "tau_mem", node.tau_mem)
        r *= uniform(key, "w_in", node.w_in)
    elif kind == "LIF":
        tau = uniform(key, "tau", node.tau)
    if np.isposinf(np.asarray(node.v_threshold, np.float64)).all():
        if read == "spikes":
            raise errors.UnsupportedGraphError(
                f"{key}: v_threshold is infinite: neurons that never fire; where their membrane is "
                "the output, give --read membrane_no_reset"
            )
        threshold = 1.0
    else:
        threshold = uniform(key, "v_threshold", node.v_threshold)
    reset = uniform(key, "v_reset", node.v_reset)
    leak = reset if tau is None else uniform(key, "v_leak", node.v_leak)
    return NirNeuron(tau, r, leak, threshold, reset)


def _all_numbers(graph: Any) -> list[NirNeuron]:
    """The numbers of all neurons of a graph that can be read."""
    numbers = []
    for key, node in graph.nodes.items():
        if type(node).__name__ in NEURONS:
            with suppress(errors.UnsupportedGraphError):
                numbers.append(_numbers(key, node))
    return numbers


def _own_neuron(r: Reader, key: str, node: Any, neuron: NirNeuron) -> ir.NeuronSpec | None:
    """The neuron as it was before export, from the metadata. Raises FileFormatError unless it is
    the neuron that the node's numbers say."""
    text = node.metadata.get(package.POPULATION)
    if text is None:
        return None
    try:
        stored = files.parse_json(text, f"{key}: its metadata")
        spec, number = ir.node_from_json(stored, ir.Population).neuron, None
        if spec.learned:
            w = torch.tensor(float(node.metadata[package.DECAY_PARAMETER]))
            number = learned_number(spec, w)
        expected = to_nir(spec.equation(number), key, r.conventions.dt)
    except (KeyError, TypeError, ValueError, errors.UsageError) as error:
        raise errors.FileFormatError(f"{key}: its metadata cannot be read ({error!r})") from error
    if not expected.close_to(neuron):
        raise errors.FileFormatError(
            f"{key}: {neuron} are not the numbers of the neuron in its metadata at dt "
            f"{r.conventions.dt:g}, {expected}; remove the metadata if they were changed on purpose"
        )
    return spec


def uniform(key: str, what: str, values: Any) -> float:
    """The one value of an array. Raises UnsupportedGraphError if there are several."""
    distinct = np.unique(np.asarray(values, np.float64))
    if distinct.size != 1 or not np.isfinite(distinct[0]):
        low, high = (distinct.min(), distinct.max()) if distinct.size else (0, 0)
        raise errors.UnsupportedGraphError(
            f"{key}: {what} has {distinct.size} values from {low:g} to {high:g}; supported is one "
            "finite value for the whole population"
        )
    return float(distinct[0])
