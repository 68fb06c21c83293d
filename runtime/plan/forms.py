"""How each layer's synapses run: which forms a layer can have, and which one pays.

sparse  rows of events are added to their targets, compressed rows
dense   the same, whole rows
analog  each output adds its inputs: values that are nonzero for the most part
gather  each output adds the rows of the events in its window: whole rows
planes  each output adds the weights whose input fired: shared compressed rows, spikes as bits

All forms of a layer compute the same sums, some in another order (the kernels say which). The rule
takes the form of the least estimated time (costs.py).
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from soul_deploy.base import errors
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format import validate
from soul_deploy.runtime.kernels.gather import MOST_CHANNELS
from soul_deploy.runtime.plan import costs
from soul_deploy.runtime.plan.layout import layout_of
from soul_deploy.runtime.plan.planes import fits_planes

Form = Literal["sparse", "dense", "analog", "gather", "planes"]
FORMS: tuple[Form, ...] = get_args(Form)


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


def expected_rate(network: net.EventNetwork, layer: net.Synaptic) -> float:
    """Share of the source's values that are expected to be nonzero at a step: the file's, or what
    is usual; all values of an analog source.
    """
    return 1.0 if layer.edge == "analog" else _rate_of(network, layer.source)


def _rate_of(network: net.EventNetwork, name: str) -> float:
    """Of a layer that gives events; pooled ones are more where nobody has measured them."""
    window = 1
    while name not in network.rates:
        layer = network.by_name.get(name)
        if not isinstance(layer, net.PoolLayer):
            break
        window = min(window * math.prod(layer.kernel), validate.MAX_NEURONS)
        name = layer.source
    rate = network.rates.get(name, costs.USUAL_RATE)
    return rate if window == 1 else costs.pooled_rate(rate, window)


def expected_of(network: net.EventNetwork, layer: net.Synaptic) -> costs.Expected:
    """What a layer is expected to run on. An image is the same at every step."""
    once = network.input_kind == "images" and layer.source in network.static
    readers = [each for each in network.layers if layer.name in each.sources]
    on_words = [isinstance(each, net.Synaptic) and _can_be_planes(each) for each in readers]
    return costs.Expected(
        steps=1 if once else network.time_steps,
        run=network.time_steps,
        rate=expected_rate(network, layer),
        active=None if once else network.active.get(layer.source),
        accumulator=layer.accumulator,
        packs=not _can_give_words(network.by_name.get(layer.source)),
        unpacks=network.readout.source == layer.name or not all(on_words),
    )


def _can_be_planes(layer: net.Synaptic) -> bool:
    return "planes" in possible_forms(layer)


def _can_give_words(layer: net.Layer | None) -> bool:
    """Whether spikes leave as words (`gives_words` in buffers.py) in some form of the layer."""
    return (
        isinstance(layer, net.SpikingLayer)
        and layer.neuron.fuses
        and layout_of(layer) is None
        and (layer.edge == "analog" or possible_forms(layer) != ("sparse",))
    )


def estimated_times(network: net.EventNetwork) -> dict[str, dict[Form, float]]:
    """Of every layer with synapses, the expected nanoseconds of each form that it can have: one
    sample, one thread, on a processor as the one that kernels are compiled for.
    """
    here, found = costs.costs_here(), {}
    for layer in network.projected:
        expected = expected_of(network, layer)
        found[layer.name] = {
            form: here.nanoseconds(costs.work_of(layer.synapses, form, expected))
            for form in possible_forms(layer)
        }
    return found


def forms_of(network: net.EventNetwork, wanted: Mapping[str, str]) -> dict[str, Form]:
    """The form of every layer with synapses: the `wanted` one, or the one that the file asks for,
    or the one of the least estimated time.

    Raises UnknownNameError for a layer that has no synapses, UsageError for a form that it cannot
    have, FileFormatError for one of the file.
    """
    layers = {name: layer for layer in network.projected for name in layer.names}
    asked: dict[str, Form] = {}
    for name, form in wanted.items():
        errors.require_known("layer with synapses", name, layers)
        asked[layers[name].name] = require_form(layers[name], form, name)
    for name, form in network.forms.items():
        if name not in asked:
            asked[name] = _stored_form(layers[name], form)
    times = estimated_times(network)
    return {name: asked.get(name, fastest(each)) for name, each in times.items()}


def fastest(times: Mapping[Form, float]) -> Form:
    """The form of the least time, of several the first."""
    return min(times, key=times.__getitem__)


def require_form(layer: net.Synaptic, form: str, name: str) -> Form:
    """`form`, which the layer, called `name`, can have. Raises UsageError."""
    possible = possible_forms(layer)
    for each in possible:
        if each == form:
            return each
    raise errors.UsageError(
        f"{name}: its synapses cannot run as {form!r}; give {' or '.join(possible)}"
    )


def _stored_form(layer: net.Synaptic, form: str) -> Form:
    try:
        return require_form(layer, form, layer.name)
    except errors.UsageError as error:
        raise errors.FileFormatError(f"the file asks for a form of rows: {error}") from error
