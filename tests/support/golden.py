"""What other tools' own neurons gave: tests/fixtures/neurons, by tool and case."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from places import FIXTURES
from safetensors import safe_open
from torch import Tensor

from soul_deploy.base.brief import brief

NEURONS = FIXTURES / "neurons"
TOOLS = ("soul", "spikingjelly_2", "spikingjelly_0", "clock_driven", "snntorch")


@brief
@dataclass(frozen=True, kw_only=True)
class Golden:
    """One case: the tool's module with its configuration, run on one input.

    `input`, `output` and each of `states` are (T, B, C, H, W) or (T, B, features); the states are
    those after each step. `grad` is the derivative of `sum(output * grad_weights(output.shape))`
    by the input, `parameter_grads` by the parameters; cases without gradient have none.
    `parameters` is the module's state dict. `fields` holds what the module was made with, `neuron`
    (the tool's name of it), `mended` (what the recipe had to mend, or nothing) and `rounding`:
    what is not the same on every machine to the last bit. Kinds of input (`fields["kind"]`): see
    `mixed_input`, `edge_input` and `tied_input` of the recipes' golden_cases.py.
    """

    tool: str
    name: str
    fields: Mapping[str, Any]
    input: Tensor
    output: Tensor
    states: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    grad: Tensor | None
    parameter_grads: Mapping[str, Tensor]


@cache
def metadata(tool: str) -> dict[str, dict[str, Any]]:
    """The fields of each case, and at "source" those of the file."""
    with safe_open(path_of(tool), framework="pt") as opened:
        return {name: json.loads(text) for name, text in opened.metadata().items()}


def path_of(tool: str) -> Path:
    return NEURONS / f"{tool}.safetensors"


def golden_names(tool: str, *neurons: str) -> list[str]:
    """The cases of these neurons, of all by default."""
    found = {name: fields for name, fields in metadata(tool).items() if name != "source"}
    return sorted(n for n, fields in found.items() if not neurons or fields["neuron"] in neurons)


def golden(tool: str, name: str) -> Golden:
    """One case, read anew."""
    with safe_open(path_of(tool), framework="pt") as opened:
        keys = [key for key in opened.keys() if key.startswith(f"{name}.")]  # noqa: SIM118
        found = {key.removeprefix(f"{name}."): opened.get_tensor(key) for key in keys}

    def below(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    return Golden(
        tool=tool,
        name=name,
        fields=metadata(tool)[name],
        input=found["input"],
        output=found["output"],
        states=below("state."),
        parameters=below("param."),
        grad=found.get("grad"),
        parameter_grads=below("param_grad."),
    )


def grad_weights(shape: Sequence[int]) -> Tensor:
    """The weights of the sum that the recipes differentiate."""
    return ((torch.arange(math.prod(shape)) * 37 % 101 - 50) / 32).reshape(tuple(shape))
