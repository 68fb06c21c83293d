"""Which maps of spikes a run keeps as words, and which as maps."""

from collections.abc import Mapping

from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.plan.layer_plan import LayerPlan
from soul_deploy.runtime.plan.planes import fits_pooling


def read_as_maps(network: net.EventNetwork, plans: Mapping[str, LayerPlan]) -> set[str]:
    """Layers whose map some layer reads; a matrix may read the compacted spikes instead."""
    readers, pools = [network.readout.source], pools_on_words(network, plans)
    for layer in network.layers:
        plan = plans.get(layer.name)
        if plan is not None and plan.planes is not None:
            (source,) = layer.sources
            given = source in pools or gives_words(network.by_name.get(source), plans)
            readers += [] if given else [source]
        elif layer.name not in pools and (plan is None or plan.source_layout is None):
            readers += layer.sources
    return set(readers)


def pools_on_words(network: net.EventNetwork, plans: Mapping[str, LayerPlan]) -> tuple[str, ...]:
    """Poolings of spikes that leave as words; none where no layer runs on bit planes."""
    if not any(plan.planes is not None for plan in plans.values()):
        return ()
    found: list[str] = []
    for layer in network.maps:
        source = layer.sources[0]
        given = source in found or gives_words(network.by_name.get(source), plans)
        if fits_pooling(layer) and given:
            found.append(layer.name)
    return tuple(found)


def gives_words(layer: net.Layer | None, plans: Mapping[str, LayerPlan]) -> bool:
    """Whether a layer's spikes can leave as words: on bit planes, or behind step by step currents,
    of neurons that are not compacted.
    """
    plan = None if layer is None else plans.get(layer.name)
    if plan is None or not isinstance(layer, net.SpikingLayer):
        return False
    if not layer.neuron.fuses or layer.sends != ("spike", 1):
        return False
    stepwise = layer.edge == "analog" or plan.form != "sparse"
    return plan.planes is not None or (stepwise and plan.layout is None)
