"""How each layer's synapses run: which forms a layer can have, and which one pays.

sparse  rows of events are added to their targets, compressed rows
dense   the same, whole rows
analog  each output adds its inputs: values that are nonzero for the most part
gather  each output adds the rows of the events in its window: whole rows
planes  each output adds the weights whose input fired: shared compressed rows, spikes as bits

All forms of a layer compute the same sums, some in another order (the kernels say which).
"""

from collections.abc import Mapping
from typing import Literal, get_args

from soul_deploy.base import errors
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.kernels.bit_planes import tile_of
from soul_deploy.runtime.kernels.gather import MOST_CHANNELS
from soul_deploy.runtime.kernels.simd import VECTOR, has_mask_registers
from soul_deploy.runtime.plan.layout import channel_last
from soul_deploy.runtime.plan.planes import fits_planes, gap_of, moves_of, tiles_of

Form = Literal["sparse", "dense", "analog", "gather", "planes"]
FORMS: tuple[Form, ...] = get_args(Form)

USUAL_RATE = 0.08
"""Spikes per neuron and step that are expected of a network."""

PLANE_ADDITION, EVENT_ADDITION = 0.11, 0.37
"""Nanoseconds: the addition of a weight to a vector of sums, and all steps of a synapse that an
event reaches. Both on a Zen 5 at 4.2 GHz (the reference network at 2 and 10 %, T = 4 and 8)."""


def possible_forms(layer: net.Synaptic) -> tuple[Form, ...]:
    """The forms that a layer can have; event by event first."""
    if not layer.synapses.rows.dense:
        return ("sparse", "planes") if fits_planes(layer) else ("sparse",)
    convolution = layer.synapses.convolution
    if convolution is None:
        return ("dense",)
    if layer.edge == "analog":
        return ("analog",)
    fits = convolution.in_shape[0] // convolution.groups <= MOST_CHANNELS
    return ("dense", "gather") if fits else ("dense",)


def event_forms(network: net.EventNetwork) -> dict[str, Form]:
    """Of every layer the form that goes from event to event, or from value to value."""
    return {layer.name: possible_forms(layer)[0] for layer in network.projected}


def form_of(layer: net.Synaptic, steps: int) -> Form:
    """The form that is faster in a network of so many steps, by what each does at a usual rate."""
    possible = possible_forms(layer)
    if "planes" in possible and has_mask_registers() and _planes_pay(layer, steps):
        return "planes"
    if "gather" in possible and layer.synapses.out_shape[0] // layer.synapses.blocks >= VECTOR:
        return "gather"
    return possible[0]


def _planes_pay(layer: net.Synaptic, steps: int) -> bool:
    """Vectors that are added for each weight, against events that reach it."""
    fires = 1 - (1 - USUAL_RATE) ** steps
    convolution = layer.synapses.convolution
    assert convolution is not None
    pitch = layer.in_shape[2] + gap_of(moves_of(convolution))
    words = tiles_of(layer.out_shape, pitch, steps) * tile_of(steps) // VECTOR * steps
    events = channel_last(layer.out_shape)[0] * fires
    return words * PLANE_ADDITION < events * EVENT_ADDITION


def forms_of(network: net.EventNetwork, wanted: Mapping[str, str]) -> dict[str, Form]:
    """The form of every layer with synapses: the `wanted` one, or the one that pays.

    Raises UnknownNameError for a layer that has no synapses, UsageError for a form that it cannot
    have.
    """
    layers = {name: layer for layer in network.projected for name in layer.names}
    asked: dict[str, Form] = {}
    for name, form in wanted.items():
        errors.require_known("layer with synapses", name, layers)
        possible = possible_forms(layers[name])
        found = [each for each in possible if each == form]
        if not found:
            raise errors.UsageError(
                f"{name}: its synapses cannot run as {form!r}; give {' or '.join(possible)}"
            )
        asked[layers[name].name] = found[0]
    steps = network.time_steps
    return {
        layer.name: asked.get(layer.name) or form_of(layer, steps) for layer in network.projected
    }
