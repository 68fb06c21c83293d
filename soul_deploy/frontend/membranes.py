"""Class scores that are membranes: of neurons that never fire, or that fire and are not heard.

While operations are followed, such neurons are a population whose value is marked as its membrane;
the readout takes the population and the linear layer that charges it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx

from soul_deploy import ir
from soul_deploy.base import reduction
from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import reduced, stepped, stepped_specs
from soul_deploy.frontend.traced_value import TracedValue

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder

FAMILIES: Mapping[str, ir.NeuronFamily] = {"NonSpikingIFNode": "if", "NonSpikingLIFNode": "lif"}
"""SpikingJelly's neurons that never fire (2.0.0, activation_based/neuron)."""
DECODES: Mapping[Any, reduction.OverTime] = {
    "mean-mem": "mean",
    "last_mem": "last",
    "max-mem": "max",
}
"""What they make of the steps; whatever else `decode` says, but max-abs-mem: a list of all."""
MEMBRANE = "mem"
"""The state of a neuron that can be read."""


def integrate(
    builder: "GraphBuilder", node: fx.Node, path: str, module: Any, source: TracedValue
) -> None:
    """A call of a neuron of SpikingJelly that never fires: the membranes of all steps."""
    reduced.check_neuron(builder, node, path, source)
    if source.lead != 2 or source.once:
        raise builder.unsupported(
            node, f"neuron {path!r} on one step (B, ...): it takes whole sequences (T, B, ...), and"
        )
    if module.decode == "max-abs-mem":
        raise builder.unsupported(
            node, f"neuron {path!r} with decode 'max-abs-mem' (mean-mem, max-mem and last_mem are)"
        )
    made = ir.Population(path, (source.name,), _spec_of(module))
    how = DECODES.get(module.decode)
    value = replace(source, name=path, lead=1 if how else 2, reduced=how, membrane=MEMBRANE)
    builder.add(node, made, value)


def _spec_of(module: Any) -> ir.NeuronSpec:
    """v + x, or v + (x - v) / tau, from 0; nothing resets it."""
    family = FAMILIES[type(module).__name__]
    tau = float(module.tau) if family == "lif" else 2.0
    return ir.NeuronSpec(
        family, tau=tau, v_reset=None, v_subtract=0.0, fire="ge", form="spikingjelly"
    )


def as_read(path: str, module: Any, spec: ir.NeuronSpec) -> ir.NeuronSpec:
    """The neuron with the tool's membrane after each step, and not just its spikes."""
    if not stepped.is_stepped(module):
        return spec
    try:
        return stepped_specs.spec_as_read(path, module, spec)
    except UnsupportedGraphError as error:
        raise UnsupportedGraphError(f"{error}, where its membrane is read") from error
