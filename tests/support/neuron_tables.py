"""The tables of docs/neurons.md; `python tests/support/neuron_tables.py` prints them from the code.

What an export takes is tried, not looked up.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.nir.neuron import to_nir
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.onnx.step import build_step
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir.neurons import FAMILIES, LEAKY, constant_text
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.engine.network import Network

SOURCES = {
    "if": "SpikingJelly's IFNode",
    "lif": "soul/neuron/LIF.py",
    "plif": "soul/neuron/PLIF.py (Fang et al., ICCV 2021)",
    "ltmd": "soul/neuron/LTMD.py (Wang et al., NeurIPS 2022)",
    "psn": "soul/neuron/PSN.py (Fang et al., NeurIPS 2023)",
}
PER = {"step": "one a step", "step_pair": "T × T", "step_column": "one a step", "layer": ""}
T = 3
SOFT = {"v_reset": None, "fire": "ge", "decay_input": False}
OTHERS: dict[str, dict[str, Any]] = {
    "qif": {"v_reset": -0.1, "fire": "ge"},
    "eif": {"v_reset": -0.1, "fire": "ge"},
    "klif": {"fire": "ge"},
    "cubalif": {"v_threshold": 0.5, "fire": "ge"},
    "complementary_lif": SOFT,
    "integer_lif": {"tau": 4 / 3, **SOFT},
}
"""The defaults of SpikingJelly's classes; snnTorch's are the families' own."""


def spec_of(family: str) -> ir.NeuronSpec:
    """Soul's, where Soul has the neuron; else its tool's."""
    return ir.SOUL_NEURONS.get(family) or ir.NeuronSpec(family, **OTHERS.get(family, {}))


def name_of(family: str) -> str:
    """As the tables write it: upper case for what `--neuron_type` takes."""
    return family.upper() if family in ir.SOUL_NEURONS else f"`{family}`"


def table(columns: list[str], row: Callable[[str], list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *(row(family) for family in FAMILIES)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def flags(family: str) -> str:
    """The constants that decide spikes, with Soul's values; where PLIF begins to learn its tau."""
    spec = spec_of(family)
    names = (*spec.reads, *(("tau",) if family == "plif" else ()))
    return ", ".join(f"{name} {constant_text(getattr(spec, name))}" for name in names) or "–"


def parameters(spec: ir.NeuronSpec) -> str:
    """What a state dict holds of it."""
    held: dict[str, list[str]] = {"": ["`w`"]} if spec.learned else {}
    for name, kind in spec.tensors:
        held.setdefault(PER[kind], []).append(f"`{name}`")
    return "; ".join(f"{', '.join(n)}{f' ({per})' * bool(per)}" for per, n in held.items()) or "–"


def network(family: str) -> Model:
    """Two inputs, three neurons, T = 3."""
    torch.manual_seed(0)
    neuron = SpikingNeuron(spec_of(family), T)
    modules = torch.nn.Sequential(torch.nn.Linear(2, 3), neuron, layers.RateReadout(3, 2))
    module = GraphModule(trace(modules, (2,), T))
    module.load_state_dict(modules.state_dict())
    return from_module(module, ModelInfo())


def state(family: str) -> str:
    """The state variables and what they start with."""
    (equation,) = lower(network(family)).equations.values()
    held = zip(equation.state, equation.start, strict=True)
    used = [f"{name} {start:g}" for name, start in held] if family != "ielif" else []
    return ", ".join(used) or "none"


def numbers(family: str) -> list[str]:
    spec = spec_of(family)
    own = ", ".join(f"`{name}` {value:g}" for name, value in spec.settings) or "–"
    return [name_of(family), flags(family), own, parameters(spec), state(family)]


def taken(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except SoulDeployError:
        return "no"
    return "yes"


def ways(family: str) -> list[str]:
    spec, model = spec_of(family), network(family)
    ((name, equation),) = lower(model).equations.items()
    events = Network(build_event_network(model))
    x = np.ones((1, 2), np.float32)
    low = spec.edge.low
    sends = "0, 1" if spec.edge == ir.SPIKE else f"{low} to {spec.edge.bound}"
    source = SOURCES[family] if family in LEAKY or spec.parallel else spec.dynamics.source  # type: ignore[union-attr]
    source = re.sub(r", soul/utils/\S+", "", source)
    source = re.sub(r"snntorch/_neurons/(\w+)\.py", r"snnTorch's \1", source)
    return [
        name_of(family),
        sends,
        str(Fraction(spec.unit).limit_denominator(1000)),
        "yes" if spec.stepwise else "no",
        taken(lambda: events.run(x)),
        taken(lambda: build_onnx(model)),
        taken(lambda: events.stream().step(x)),
        taken(lambda: build_step(model)),
        taken(lambda: to_nir(equation, name, 1e-4)),
        source,
    ]


NUMBERS = ["neuron", "flags", "`--neuron_settings`", "learned", "state and start"]
WAYS = ["neuron", "sends", "unit", "this T only", "event", "ONNX", "streams", "ONNX of one step"]
WAYS += ["NIR", "source"]


def tables() -> tuple[str, str]:
    return table(NUMBERS, numbers), table(WAYS, ways)


if __name__ == "__main__":
    print("\n\n".join(tables()))
