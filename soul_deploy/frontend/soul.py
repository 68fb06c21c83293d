"""Soul's own neurons: what its classes compute, read from their attributes.

They take whole sequences (T, B, ...) and loop over the steps inside. Its networks put layers
between them by `multi_time_forward`, which is traced as it stands. Classes are known by where they
are defined and what they are called (soul/neuron of yudi-mars/Soul, 6866a0a); Soul is never
imported.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from soul_deploy import ir
from soul_deploy.base.errors import UnsupportedGraphError

ROOT = "soul.neuron"
Given = dict[str, Any]
"""Arguments of NeuronSpec."""


def _leaky(path: str, module: Any) -> Given:
    """What most neurons have."""
    return {
        "v_threshold": float(module.v_threshold),
        "v_reset": None if module.v_reset is None else float(module.v_reset),
        "tau": float(getattr(module, "tau", 2.0)),
        "decay_input": bool(getattr(module, "decay_input", True)),
        "detach_reset": bool(module.detach_reset),
    }


def _to_a_value(path: str, module: Any) -> Given:
    if module.v_reset is None:
        raise UnsupportedGraphError(
            f"{path}: {type(module).__name__} with v_reset None, with which Soul's own step raises "
            "an error; train with a reset value"
        )
    return _leaky(path, module)


def _learned(path: str, module: Any) -> Given:
    """tau is 1 / sigmoid(w), which only describes the parameter w."""
    return {**_leaky(path, module), "tau": float(1.0 / module.w.detach().double().sigmoid())}


def _complementary(path: str, module: Any) -> Given:
    return {**_leaky(path, module), "detach_reset": False}  # which they have and do not read


def _refractory(path: str, module: Any) -> Given:
    return {**_to_a_value(path, module), "settings": (("alpha", float(module.alpha)),)}


def _integer(path: str, module: Any) -> Given:
    """As shipped, all steps of a sequence are one step each of its own: `carry` 0."""
    given, norm, name = _leaky(path, module), float(module.norm), _surrogate_name(module)
    if name not in ("Quant", "Quant4"):
        raise UnsupportedGraphError(
            f"{path}: INTLIFNode with the surrogate {name}, which sends no integers; its own are "
            "quant and quant4"
        )
    top, part = (8.0, 1.0) if name == "Quant" else (4.0, 4.0)  # quant4 sends quarters
    settings = (("norm", part * norm), ("top", top), ("carry", 0.0))
    return {**given, "v_threshold": given["v_threshold"] / part, "settings": settings}


def _ternary(path: str, module: Any) -> Given:
    if _surrogate_name(module) != "Ternary":
        raise UnsupportedGraphError(
            f"{path}: TLIFNode with the surrogate {_surrogate_name(module)}, which sends no signs; "
            "its own is ternary"
        )
    return {**_leaky(path, module), "settings": (("carry", 0.0),)}


def _bipolar(path: str, module: Any) -> Given:
    """Its threshold is a tensor, in float32: the shortest number that is the same there."""
    return {"settings": (("q_threshold", float(str(np.float32(float(module.q_threshold))))),)}


NEURONS: Mapping[str, tuple[ir.NeuronFamily, Callable[[str, Any], Given]]] = {
    "LIFNode": ("lif", _to_a_value),
    "ParametricLIFNode": ("plif", _learned),
    "CLIFNode": ("clif", _complementary),
    "GatedLIFNode": ("glif", lambda path, module: {"detach_reset": False}),
    "IELIFNode": ("ielif", lambda path, module: {"settings": (("lens", float(module.lens)),)}),
    "ILIFNeuron": ("ilif", _complementary),
    "INTLIFNode": ("intlif", _integer),
    "LTMD": ("ltmd", lambda path, module: {"detach_reset": False}),
    "ParallelSpikingNode": ("psn", lambda path, module: {}),
    "RPLIFNode": ("rplif", _refractory),
    "STBIF": ("stbif", _bipolar),
    "TLIFNode": ("tlif", _ternary),
}
"""Class name: the family, and what reads its numbers."""
BY_MODE = ("LIFNode", "ParametricLIFNode", "RPLIFNode", "STBIF")
"""Those that read their step mode; the others take whole sequences in either."""
STEPS = {"GatedLIFNode": "T", "LTMD": "steps", "ParallelSpikingNode": "T"}
"""Where a neuron has how many steps it runs."""
KINDS: Mapping[str, str] = {f"soul.{name}": name for name in NEURONS}
MODELS = "soul.model"
_FLAT = (
    "its forward puts an axis of channels into sequences (T, B, H, W); a graph's inputs have one: "
    "`import zoo {name} --input_shape 1,H,W` loads its weights"
)
_ONE_AXIS = (
    "it has convolutions along one axis, and a graph holds those of two; of Soul's networks for "
    "motion, mlp and lenet come in"
)
_ROWS = (
    "it is not recurrent: its linear layers run over the rows of a map, all at once, and its head "
    "reads the last row or their mean, which a graph does not hold; a convolution of kernel (1, W) "
    "is the same layer"
)
NETWORKS: Mapping[tuple[str, str], str] = {
    **{("acoustic", name): _FLAT for name in ("SpikingLeNet", "VGG", "SEWResNet", "MSResNet")},
    ("motion", "SpikingLeNet"): _FLAT,
    **{("motion", name): _ONE_AXIS for name in ("VGG", "SEWResNet", "MSResNet", "DCNN", "DCL")},
    **{
        (application, name): _ROWS
        for application in ("vision", "acoustic", "motion", "wireless")
        for name in ("SpikingRNN", "SpikingConvRNN")
    },
}
"""Soul's networks, by application and class, that do not come in as they are: why, what to do."""
ZOO = {"SpikingLeNet": "lenet", "VGG": "spikingvgg9", "SEWResNet": "sewresnet34"}
IZHIKEVICH = (
    "Soul's constructor of it raises and its forward returns None, so what runs is none of Soul's; "
    "`import zoo -n izhikevich` loads the weights of a network of the zoo with such neurons"
)


def is_of(cls: type) -> bool:
    """Whether a class is one of Soul's neurons."""
    return cls.__module__ == ROOT or cls.__module__.startswith(f"{ROOT}.")


def kind_of(cls: type) -> str | None:
    """The kind of a class that is known here; None for all others."""
    return f"soul.{cls.__name__}" if is_of(cls) and cls.__name__ in NEURONS else None


def name_of(module: nn.Module) -> str | None:
    """Which of NEURONS a module is; a subclass without code of its own is its base."""
    kinds = (kind_of(cls) for cls in type(module).__mro__)
    return next((KINDS[kind] for kind in kinds if kind is not None), None)


def step_mode(module: nn.Module) -> str | None:
    """As SpikingJelly's: "m" of a neuron that is given whole sequences, "s" of one that is given
    steps; None of other modules.
    """
    name = name_of(module)
    if name is None:
        return None
    return str(getattr(module, "step_mode", "m")) if name in BY_MODE else "m"


def check_known(path: str, module: nn.Module) -> None:
    """Raise UnsupportedGraphError for a neuron or a network of Soul's that is known not to fit."""
    name, place = type(module).__name__, type(module).__module__
    if is_of(type(module)) and name == "IzhikevichNode":
        raise UnsupportedGraphError(f"module {path!r} (IzhikevichNode): {IZHIKEVICH}")
    application = place.removeprefix(f"{MODELS}.").partition(".")[0]
    if place.startswith(f"{MODELS}.") and (application, name) in NETWORKS:
        why = NETWORKS[application, name].format(name=ZOO.get(name, "msresnet34"))
        raise UnsupportedGraphError(f"Soul's {name} ({place}): {why}")


def spec_of(path: str, module: Any, **surrogate: Any) -> ir.NeuronSpec:
    """The neuron as it computes; `surrogate`: its name and width.

    Raises UnsupportedGraphError for what is not supported, UsageError for numbers that are not.
    """
    family, read = NEURONS[str(name_of(module))]
    fire: Any = ir.SOUL_NEURONS[family].fire
    return ir.NeuronSpec(family=family, fire=fire, **read(path, module), **surrogate)


def check_place(path: str, module: Any, time_steps: int) -> None:
    """Raise UnsupportedGraphError for a neuron that was made for another number of steps."""
    name = name_of(module)
    made = None if name not in STEPS else getattr(module, STEPS[name])
    if made not in (None, time_steps):
        raise UnsupportedGraphError(
            f"{path}: {name} made for {made} steps in a network of {time_steps} time steps; give "
            f"time_steps={made}, or make it anew"
        )


def membrane_after(module: Any, current: Tensor) -> Tensor:
    """The membrane that a call on `current` (T, B, ...) left, of all steps or of the last alone;
    of no step where the module keeps none.
    """
    name = name_of(module)
    if name == "IELIFNode":  # which forgets
        return 4 * current
    if name in ("LTMD", "ParallelSpikingNode"):
        return current[:0]
    if name == "STBIF":
        held: Tensor = module.q[None]
        return held.detach().clone()
    seen = getattr(module, "v_seq", None)
    held = seen if isinstance(seen, Tensor) else module.v
    held = held.detach().clone()
    return held if held.dim() == current.dim() else held[None]


def _surrogate_name(module: Any) -> str:
    return type(module.surrogate_function).__name__
