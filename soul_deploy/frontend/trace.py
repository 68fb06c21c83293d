"""From a PyTorch module to a SpikingGraph, by torch.fx, neurons as leaves.

Nothing is guessed from module order: who feeds whom is what `forward` does. What the graph cannot
represent is refused with the module's dotted name and the place in the code.
"""

from dataclasses import dataclass
from typing import Literal

from torch import fx, nn

from soul_deploy.frontend import function_rules, graph_builder, module_kinds, tracer
from soul_deploy.ir import Shape, SpikingGraph

Takes = Literal["image", "sequence", "step"]


@dataclass(frozen=True)
class Traced:
    """A network's graph, and what its own forward takes.

    image     (B, C, H, W), shown T times
    sequence  (T, B, C, H, W)
    step      (B, C, H, W), called once a step, state kept between calls
    """

    graph: SpikingGraph
    takes: Takes


def trace(network: nn.Module, input_shape: Shape, time_steps: int) -> SpikingGraph:
    """The graph of `network` for inputs of `input_shape` (C, H, W) shown for `time_steps`.

    Raises UnsupportedGraphError naming the module, the code line and what is supported.
    """
    return trace_with_input(network, input_shape, time_steps).graph


def trace_with_input(network: nn.Module, input_shape: Shape, time_steps: int) -> Traced:
    """As `trace`, with what the network's own forward takes."""
    for path, module in network.named_modules():
        module_kinds.check_unchanged(path, module)
    module_kinds.check_at_rest(network)
    operations = tracer.run_symbolically(network)
    takes = _input_of(network, operations)
    lead = 2 if takes == "sequence" else 1
    graph = graph_builder.GraphBuilder(network, input_shape, time_steps, lead).build(
        operations, function_rules.handle
    )
    return Traced(graph, takes)


def _input_of(network: nn.Module, operations: fx.Graph) -> Takes:
    """SpikingJelly's networks take sequences, unless they repeat the image themselves."""
    if tracer.takes_steps(network):
        return "step"
    repeats = any(
        getattr(node.target, "__name__", node.target) == "unsqueeze" for node in operations.nodes
    )
    return "sequence" if tracer.is_multi_step(network) and not repeats else "image"
