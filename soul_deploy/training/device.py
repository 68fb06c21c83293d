"""The device and the threads that a run works with, and the processes that it shares work with."""

import os

import torch

from soul_deploy import distributed
from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.training.messages import warn

DEVICES = ("auto", "cpu", "cuda")


def prepare_device(
    device: str = "auto", threads: int | None = None, process_timeout: float = 300.0
) -> torch.device:
    """Set threads and deterministic kernels, join the processes that torchrun started.

    device: "auto" (a GPU if there is one), "cpu" or "cuda". threads: of the CPU; None: PyTorch's.
    process_timeout: seconds that a process waits for the others. All of that holds for the whole
    program. Raises UsageError, or DistributedError if the others cannot be reached.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("device cuda: PyTorch finds no CUDA device here; use --device cpu or auto")
    if distributed.joined():
        return distributed.current().device
    place = distributed.join("cuda" if available and device != "cpu" else "cpu", process_timeout)
    advice = distributed.restart_advice(os.environ)
    if advice is not None:
        warn(advice)
    return place


def module_of(model: Model, device: torch.device) -> GraphModule:
    """The model as a module on `device`, masks included; no global random number is drawn."""
    with torch.random.fork_rng(devices=[]):  # weights that are replaced are drawn first
        module = model.module().to(device)
    for mask in module.channel_masks.values():
        mask.keep = mask.keep.to(device)
    return module
