"""Stand-ins for Soul's neurons and networks: its names, places and attributes.

What a neuron computes is our own neuron's (tests/equivalence/test_golden_spikes.py holds that to
Soul's numbers); what a network computes, tests/fixtures/soul/networks.safetensors says, which Soul
made. Nothing of Soul is in here.
"""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import clock_driven
import torch
from golden import metadata
from golden_specs import spec_of
from places import FIXTURES
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from soul_deploy.nn.neuron import SpikingNeuron

FILE = FIXTURES / "soul" / "networks.safetensors"
STEPS, CLASSES, HIDDEN = 4, 5, 16
CLASSES_OF = {
    "clif": ("CLIFNode", "CLIF"),
    "glif": ("GatedLIFNode", "GLIF"),
    "ielif": ("IELIFNode", "IELIF"),
    "ilif": ("ILIFNeuron", "ILIF"),
    "intlif": ("INTLIFNode", "INTLIF"),
    "lif": ("LIFNode", "LIF"),
    "ltmd": ("LTMD", "LTMD"),
    "plif": ("ParametricLIFNode", "PLIF"),
    "psn": ("ParallelSpikingNode", "PSN"),
    "rplif": ("RPLIFNode", "RPLIF"),
    "stbif": ("STBIF", "STBIF"),
    "tlif": ("TLIFNode", "TLIF"),
}
"""Soul's name of a neuron: its class, and the module that it stands in."""
SURROGATES = {
    "atan": ("ATan", 2.0),
    "sigmoid": ("Sigmoid", 4.0),
    "rectangle": ("Rectangle", 1.0),
    "quant": ("Quant", 4.0),
    "quant4": ("Quant4", 4.0),
    "ternary": ("Ternary", 4.0),
}
DROPPED = {"glif": ("v_threshold",)}
"""Values of the yaml file that a class does not keep: GLIF has a parameter of that name."""
STATELESS = ("ielif", "ltmd", "psn")
SEQUENCES = ("clif", "ilif", "lif", "plif", "rplif")
"""Those that keep the membrane of every step, if they are asked to or at each call."""

_Memory = type("MemoryModule", (clock_driven.MemoryModule,), {"__module__": "soul.neuron.base"})


class _Neuron:
    """What the stand-ins have in common; the other base says whether there is state."""

    def __init__(self, neuron: str, fields: Mapping[str, Any], name: str = "") -> None:
        super().__init__()
        self._name, self._fields = neuron, dict(fields)
        self._spec = spec_of(_case(neuron, fields, name))  # type: ignore[arg-type]
        self._made = fields.get("time_step", STEPS)
        for key, value in fields.items():
            if key not in DROPPED.get(neuron, ()) and key[:5] != "init_":
                setattr(self, key, value)
        if neuron != "ielif":
            self.surrogate_function = surrogate(fields.get("surrogate", "atan"))
        own = SpikingNeuron(self._spec, self._made)
        for key, tensor in own.named_parameters():
            self.register_parameter(key, nn.Parameter(tensor.detach().clone()))  # type: ignore[attr-defined]
        if neuron in ("glif", "psn"):
            self.T = self._made
        if neuron == "stbif":
            self.v_threshold, self.v_reset, self.detach_reset = 1.0, 0.0, True
            self.q_threshold = torch.tensor(fields["q_threshold"])
        if neuron not in STATELESS:
            rest = self._spec.v_reset or 0.0
            for key in ("v", *(("q",) if neuron == "stbif" else ())):
                self.register_memory(key, None if key == "q" else rest)  # type: ignore[attr-defined]
            self.step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        ours = SpikingNeuron(self._spec, self._made)
        ours.load_state_dict(dict(self.named_parameters()))  # type: ignore[attr-defined]
        seen: list[Tensor] = []
        sent = ours.simulate(x, static=False, observe=lambda t, s, v: seen.append(v.detach()))
        assert len(sent) == steps
        if self._name == "stbif":
            self.q = seen[-1]
        elif self._name not in STATELESS:
            self.v = seen[-1] if self._name not in ("intlif", "tlif") else torch.stack(seen)
        if self._name in SEQUENCES:
            self.v_seq = torch.stack(seen)
        return sent * self._spec.unit


def surrogate(name: str) -> nn.Module:
    kind, alpha = SURROGATES[name]
    made: nn.Module = type(kind, (nn.Module,), {"__module__": "soul.utils.surrogate"})()
    vars(made).update(alpha=alpha, spiking=True)
    return made


def _case(neuron: str, fields: Mapping[str, Any], name: str) -> SimpleNamespace:
    """As a golden case is asked for; as shipped, where the name says nothing."""
    return SimpleNamespace(tool="soul", name=name or f"{neuron}_asshipped", fields=fields)


def neuron(name: str, fields: Mapping[str, Any], case: str = "") -> Any:
    """A stand-in of Soul's neuron `name`, with these values of its yaml file."""
    kind, place = CLASSES_OF[name]
    base = nn.Module if name in STATELESS else _Memory
    cls = type(kind, (_Neuron, base), {"__module__": f"soul.neuron.{place}"})
    return cls(name, fields, case)


def default(name: str) -> Any:
    """With Soul's own values, which the first golden case of a neuron has."""
    fields = metadata("soul")[f"{name}_asshipped" if name in ("intlif", "tlif") else name]
    return neuron(name, {**fields, "time_step": STEPS, "steps": STEPS})


def reset_net(network: nn.Module) -> None:
    """Soul's networks do it first of all."""
    for module in network.modules():
        if hasattr(module, "reset"):
            module.reset()  # type: ignore[operator]


class Mlp(nn.Module):
    """Wired as Soul's SpikingMLP, whose weights it takes."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.ln1, self.lif1 = nn.Linear(int(torch.tensor(shape).prod()), HIDDEN), default(name)
        self.ln2, self.lif2 = nn.Linear(HIDDEN, HIDDEN), default(name)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Any:
        reset_net(self)
        x = self.lif1(clock_driven.seq_to_ann_forward(x.flatten(2), self.ln1))
        x = self.lif2(clock_driven.seq_to_ann_forward(x, self.ln2))
        return self.head(x.mean(0))


class LeNet(nn.Module):
    """Wired as Soul's SpikingLeNet for images of one channel, whose weights it takes."""

    def __init__(self, name: str, side: int, channels: int = 1) -> None:
        super().__init__()
        widths = (channels, 32, 64, 96)
        for n in (1, 2, 3):
            self.add_module(f"conv{n}", nn.Conv2d(widths[n - 1], widths[n], 5))
            self.add_module(f"bn{n}", nn.BatchNorm2d(widths[n]))
            self.add_module(f"lif{n}", default(name))
            self.add_module(f"pool{n}", MaxPool2d(2, 2) if n < 3 else nn.Identity())
        left = ((side - 4) // 2 - 4) // 2 - 4
        self.ln1, self.lif4 = nn.Linear(96 * left * left, HIDDEN), default(name)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Any:
        reset_net(self)
        for n in (1, 2, 3):
            conv, norm = self.get_submodule(f"conv{n}"), self.get_submodule(f"bn{n}")
            x = clock_driven.seq_to_ann_forward(x, [conv, norm])
            x = self.get_submodule(f"lif{n}")(x)
            x = self.get_submodule(f"pool{n}")(x)
        x = self.lif4(clock_driven.seq_to_ann_forward(x.flatten(2), self.ln1))
        return self.head(x.mean(0))


class MaxPool2d(nn.MaxPool2d):
    """Of sequences, by a forward of its own."""

    def forward(self, x: Tensor) -> Any:
        return clock_driven.seq_to_ann_forward(x, super().forward)


def kept(name: str) -> dict[str, Tensor]:
    """What Soul recorded of a network: input, output, what is sent; weights at `state.…`."""
    with safe_open(FILE, framework="pt") as opened:
        parts = json.loads(opened.metadata()["source"])["parts"]
    found = {k.partition(".")[::2]: v for k, v in load_file(FILE).items()}
    of = {what: tensor for (at, what), tensor in found.items() if at == name}
    scales = {"input": 4.0, "sent": 8.0, "state": float(parts)}
    return {
        what: t.float() / scales[what.partition(".")[0]] if t.dtype == torch.int8 else t
        for what, t in of.items()
    }


def state_of(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("state."): v for k, v in found.items() if k.startswith("state.")}
