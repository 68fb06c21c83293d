"""Wrappers and modules of other packages that no trace gets through: what to do with each."""

import torch
from torch import nn

from soul_deploy.base.errors import UnsupportedGraphError
from soul_deploy.frontend import clock_driven, soul, stepped

WRAPPERS = {  # where a class is defined, its name: the attribute that holds the network
    ("torch.nn.parallel", "DataParallel"): "module",
    ("torch.nn.parallel", "DistributedDataParallel"): "module",
    ("torch._dynamo", "OptimizedModule"): "_orig_mod",
}
BY_NIR = ("norse", "sinabs", "rockpool")


def check_known(path: str, module: nn.Module) -> None:
    """Raise UnsupportedGraphError for what is known to stop a trace."""
    cls = type(module)
    for (package, name), inner in WRAPPERS.items():
        if cls.__name__ == name and cls.__module__.startswith(package):
            raise UnsupportedGraphError(_wrapped(path, name, inner))
    clock_driven.check_known(path, module)
    soul.check_known(path, module)
    own = cls.__module__.split(".")[0] == stepped.SNNTORCH and cls.__name__ not in stepped.PARTS
    if own and stepped.kind_of(cls) is None:
        raise UnsupportedGraphError(
            f"module {path!r} ({cls.__name__}) of snntorch is not supported; supported of its "
            f"modules: {', '.join(stepped.STATES)}"
        )
    if cls.__module__.split(".")[0] in BY_NIR:
        raise UnsupportedGraphError(_of_other_tools(path, cls))
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedGraphError(
            f"module {path!r} is TorchScript, which has no forward to trace; give the module that "
            "it was scripted from"
        )


def _wrapped(path: str, name: str, inner: str) -> str:
    if path:
        return f"module {path!r} is wrapped in {name}; put {path}.{inner} in its place"
    return f"the network is wrapped in {name}; pass network.{inner}, the network inside"


def _of_other_tools(path: str, cls: type) -> str:
    package = cls.__module__.split(".")[0]
    return (
        f"module {path!r} ({cls.__name__}) is of {package}, whose neurons are called once a step "
        f"and return their state too; networks of {package} come in by NIR: write the file with "
        f"{package}'s own export, then `soul-deploy import nir FILE` (docs/nir.md)"
    )
