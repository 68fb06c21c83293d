"""SpikingJelly's neurons that mix all steps by a matrix: PSN, MaskedPSN, SlidingPSN.

All compute surrogate(bias + weight · x) over the steps, with the whole matrix (PSN), with parts of
it (MaskedPSN) or with one row slid along (SlidingPSN): Fang et al., "Parallel spiking neurons",
NeurIPS 2023; spikingjelly 2.0.0, activation_based/neuron/psn.py. The graph holds the whole matrix.
"""

import warnings
from typing import Any

from torch import Tensor

from soul_deploy.base.errors import NetworkWarning, UnsupportedGraphError

KINDS = ("PSN", "MaskedPSN", "SlidingPSN")


def read(path: str, module: Any) -> dict[str, Any]:
    """Arguments of NeuronSpec. Raises UnsupportedGraphError for one that takes single steps."""
    if getattr(module, "step_mode", "m") != "m":  # PSN has none
        raise UnsupportedGraphError(
            f"{path}: {type(module).__name__} in step mode 's', which keeps the last inputs; set "
            "step_mode='m', in which it takes whole sequences"
        )
    return {}


def check_place(path: str, module: Any, kind: str, time_steps: int) -> None:
    """Raise UnsupportedGraphError for one that is made for another T."""
    made = getattr(module, "T", time_steps)
    if made != time_steps:
        raise UnsupportedGraphError(
            f"{path}: {kind}(T={made}) in a network of {time_steps} time steps; give "
            f"time_steps={made}, or make it anew"
        )


def tensors_of(path: str, module: Any, kind: str, time_steps: int) -> dict[str, Tensor]:
    """The matrix (T, T) and the bias (T, 1), by their names in the graph; {} where they are the
    module's own parameters.
    """
    if kind == "PSN":
        return {}
    masked = kind == "MaskedPSN"
    weight: Tensor = module.masked_weight() if masked else module.gen_gemm_weight(time_steps)
    what = "its mask is" if masked else "what slides is"
    text = (
        f"{path}: {what} in the {time_steps} × {time_steps} weights of the graph; if this network "
        "is trained further, all of them change, each alone"
    )
    warnings.warn(NetworkWarning(text), stacklevel=2)
    bias = module.bias.detach().expand(time_steps, 1) if not masked else module.bias.detach()
    return {f"{path}.weight": weight.detach().clone(), f"{path}.bias": bias.clone()}
