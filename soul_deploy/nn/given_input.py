"""What an input of a graph has to be, as PyTorch modules take it."""

from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import errors
from soul_deploy.runtime.engine.inputs import is_static


def require_floats(x: Tensor) -> None:
    """Raise ValidityError for integers and bool.

    A module takes floating-point numbers only: what uint8 pixels become stands in the description
    of a model, which a module does not have.
    """
    if not x.is_floating_point():
        raise errors.ValidityError(
            f"an input of {x.dtype} given; PyTorch modules take floating-point numbers: normalise "
            "pixels first, and convert other integers with .float()"
        )


def require_events(given: ir.Input, x: Tensor) -> None:
    """Raise ValidityError for numbers that are no events, of an input that takes these."""
    most = given.events
    if most is None or not x.numel():
        return
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= most and bool((x == x.round()).all())):
        raise errors.ValidityError(
            f"{given.name}: numbers from {low:g} to {high:g} given; it takes {given.describe()}, "
            "whole numbers"
        )


def shows_image(graph: ir.SpikingGraph, x: Tensor) -> bool:
    """As `inputs.is_static`, of an input of the graph."""
    return is_static(tuple(x.shape), graph.input.shape, graph.time_steps)
