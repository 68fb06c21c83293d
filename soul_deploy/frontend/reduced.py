"""What may follow on the mean, the sum, the last step or the maximum over time.

A readout reduces the steps after everything else, so a forward that goes on with the reduced value
is the same network only where that gives the same in front.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from soul_deploy.base import reduction
from soul_deploy.frontend import module_kinds
from soul_deploy.frontend.traced_value import TracedValue

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder


def check_module(
    builder: "GraphBuilder", node: fx.Node, path: str, module: Any, source: TracedValue
) -> None:
    """Refuse modules that do not give the same in front of the reduction as behind it."""
    if source.reduced is None:
        return
    kind = module_kinds.module_kind(module)
    what = f"module {path!r} ({kind})"
    if kind in ("RateReadout", "VoteReadout", "MaxPool2d"):
        check_not(builder, node, what, source)
    if source.reduced == "sum" and getattr(module, "bias", None) is not None:
        raise builder.unsupported(
            node,
            f"{what} after the sum over time with a bias, which would count once and not at every "
            "step (put it in front of the sum, make the sum a mean, or train it with bias=False), "
            "and",
        )
    require_largest_last(builder, node, what, source)


def check_not(builder: "GraphBuilder", node: fx.Node, what: str, source: TracedValue) -> None:
    """Refuse what goes on with a reduced value, such as a max pooling: the maximum of sums is
    another one than the sum of maxima.
    """
    if source.reduced:
        raise builder.unsupported(node, f"{what} after the {reduction.NAMES[source.reduced]}")


def check_neuron(builder: "GraphBuilder", node: fx.Node, path: str, source: TracedValue) -> None:
    """Refuse a neuron on a value that has no axis of time any more."""
    if source.folded or source.reduced:
        what = "with time folded into the batch"
        what = f"after the {reduction.NAMES[source.reduced]}" if source.reduced else what
        raise builder.unsupported(
            node, f"neuron {path!r} {what} (its state runs along time), which"
        )


def check_factor(
    builder: "GraphBuilder", node: fx.Node, factor: Tensor, source: TracedValue
) -> None:
    """Refuse a factor below 0 behind a maximum, which makes the smallest of it."""
    if source.reduced == "max" and not bool((factor > 0).all()):
        what = "a multiplication by a number below 0 after the maximum over time (put it in front)"
        raise builder.unsupported(node, f"{what}, which")


def require_largest_last(
    builder: "GraphBuilder", node: fx.Node, what: str, source: TracedValue
) -> None:
    """Refuse what weighs or averages the maximum over time: the maximum of what is weighed or
    averaged is another one.
    """
    if source.reduced == "max":
        text = f"{what} after the maximum over time (put it in front of the maximum), which"
        raise builder.unsupported(node, text)
