"""Flags of a neuron's constants. None has a default of its own: what is not given is Soul's, by
neuron (`neuronspec.SOUL_NEURONS`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import click

from soul_deploy.base.errors import UsageError
from soul_deploy.ir.neurons import SOUL_NEURONS

CONSTANTS = ("tau", "v_threshold", "v_reset", "decay_input", "fire", "surrogate")
"""The flags; NeuronSpec's fields have the same names."""


def constant_options() -> tuple[Callable[..., Any], ...]:
    """--tau, --v_threshold, --v_reset, --decay_input, --fire, --surrogate; None if not given."""

    def constant(flags: str, kind: type | None, text: str) -> Callable[..., Any]:
        name = flags.split("/")[0].removeprefix("--")
        help_text = f"{text}  [default: {_souls(name)}]"
        return click.option(flags, type=kind, default=None, help=help_text)

    return (
        constant("--tau", float, "Time constant in steps; where PLIF begins to learn its own."),
        constant("--v_threshold", float, "Firing threshold."),
        constant(
            "--v_reset",
            str,
            "Potential after a spike; none: the threshold is subtracted (soft reset).",
        ),
        constant(
            "--decay_input/--no_decay_input", None, "The input current is divided by tau too."
        ),
        constant("--fire", str, "gt: fires above the threshold; ge: also at it (SpikingJelly)."),
        constant("--surrogate", str, "atan, sigmoid or rectangle."),
    )


def given_constants(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given (not None), v_reset as a number or None for soft reset.

    Raises UsageError for a v_reset that is neither a number nor none.
    """
    found = {name: value for name, value in values.items() if value is not None}
    if "v_reset" in found:
        found["v_reset"] = _reset(found["v_reset"])
    return found


def _reset(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"v_reset {text!r} is neither a number nor none (soft reset)") from None


def _souls(name: str) -> str:
    """Soul's values of one constant, as help says them."""
    values = {
        family.upper(): constant_text(getattr(spec, name)) for family, spec in SOUL_NEURONS.items()
    }
    if len(set(values.values())) == 1:
        return f"Soul's, by neuron: all {next(iter(values.values()))}"
    return "Soul's, by neuron: " + ", ".join(f"{key} {value}" for key, value in values.items())


def constant_text(value: object) -> str:
    """A neuron's constant as people write it: 2, yes, none (soft reset), gt."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
