"""What a tool's recipe leaves behind: a NIR file as the tool writes it, and the tool's own run.

Nothing of soul-deploy is imported: the recipes run where only the other tool is installed.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def keep(
    folder: Path,
    graph: Any,
    x: Tensor,
    sent: Mapping[str, Tensor],
    scores: Tensor,
    *,
    network: str,
    neuron: str,
    differs: str = "",
    **said: Any,
) -> None:
    """Write a case's files.

    folder  called as the tool's package is
    x       (B, ...) shown at every step, or (T, B, ...)
    sent    (T, B, ...) by the node's name in the file
    scores  (B, classes)
    differs  why a network read from the file can't send the same; empty if it can
    said    what the file does not say and a reader needs: time_steps, dt, fire, reset, over_time
    """
    nir: Any = import_module("nir")
    stem = "".join(c if c.isalnum() else "_" for c in f"{network} {neuron}")
    # Packed numbers have to be arrays, and some tools' are not.
    options = {"compression": None} if "compression" in signature(nir.write).parameters else {}
    nir.write(folder / f"{stem}.nir", graph, **options)
    arrays: dict[str, Any] = {
        f"sent.{name}": values.float().numpy() for name, values in sent.items()
    }
    np.savez_compressed(folder / f"{stem}.npz", x=x.numpy(), scores=scores.numpy(), **arrays)
    told = {
        "version": version(folder.name),
        "network": network,
        "neuron": neuron,
        "said": said,
        "differs": differs,
        "modules": list(graph.nodes),
    }
    (folder / f"{stem}.json").write_text(json.dumps(told, indent=1) + "\n")
    rates = (f"{name} {values.float().mean():.3f}" for name, values in sent.items())
    print(f"{stem}: {', '.join(rates)}")


def settled(network: torch.nn.Module, strength: float = 2.0) -> Any:
    """Weights with which every layer fires, in evaluation mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                size = module.weight[0].numel()
                module.weight.normal_(0.0, strength / size**0.5)
                if module.bias is not None:
                    module.bias.uniform_(0.0, 0.5)
    return network.eval()
