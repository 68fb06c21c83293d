"""What a reader of a page has in the folder, and names that its Python blocks take for granted."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from soul_deploy import (
    Model,
    NeuronSpec,
    SpikingNeuron,
    create,
    export_event,
    export_nir,
    from_torch,
    layers,
    save,
)
from soul_deploy.base.pixel_rule import InputKind
from soul_deploy.model.model import ModelInfo, Normalization

QUICK = {"event-format", "from-nir", "from-snntorch", "install", "nir", "streams"}
"""Pages whose unmarked blocks run in every test; those of the others in the soak."""


def lively(hidden: int = 16, side: int = 8) -> Model:
    """A SpikingVGG5 on digits of which every layer fires."""
    torch.manual_seed(0)
    shape = (1, side, side)
    model = create("spikingvgg5", input_shape=shape, classes=10, time_steps=2, hidden=hidden)
    state = {name: 3 * value for name, value in model.state.items() if name.endswith("weight")}
    told = {"data": "digits" if side == 8 else "mnist5k"}
    info = ModelInfo(normalization=Normalization((0.3,), (0.35,)), provenance=told)
    return replace(model, state={**model.state, **state}, info=info)


def with_average_pooling(input_kind: InputKind = "images") -> Model:
    """What NIR can say: convolution, average pooling, linear layers, T = 10."""
    torch.manual_seed(0)
    head = nn.Linear(4 * 4 * 4, 10)
    with torch.no_grad():
        head.weight.mul_(4)  # so that all neurons fire
    network = nn.Sequential(
        layers.Conv2d(1, 4, 3, padding=1, bias=False),
        SpikingNeuron(NeuronSpec(), 10),
        layers.AvgPool2d(2, 2),
        layers.Flatten(),
        head,
        SpikingNeuron(NeuronSpec(), 10),
    )
    example = 8 * torch.rand(4, 1, 8, 8)
    model = from_torch(network, (1, 8, 8), 10, example=example, input_kind=input_kind)
    told = {**model.info.provenance, "data": "digits"}
    return replace(model, info=replace(model.info, provenance=told))


def _nir(folder: Path, input_kind: InputKind = "images") -> None:
    save(with_average_pooling(), folder / "net.safetensors")
    export_nir(with_average_pooling(input_kind), folder / "theirs.nir")


def _model(folder: Path, name: str = "net.safetensors", side: int = 8) -> None:
    save(lively(side=side), folder / name)


def _images(folder: Path, name: str = "images.npy") -> None:
    random = np.random.default_rng(0)
    np.save(folder / name, random.integers(0, 256, (4, 1, 8, 8)).astype(np.uint8))


def _event(folder: Path) -> None:
    export_event(lively(), folder / "net.event.safetensors")


def _soul(folder: Path) -> None:
    """A weight file as Soul names and writes it."""
    state = lively().module().state_dict()
    torch.save(state, folder / "best_spikingvgg5_lif_digits_T4_2025.pt")
    _images(folder, "digits.npy")


SETUP: dict[str, tuple[Callable[[Path], None], ...]] = {
    "device": (_model, _images),
    "event-format": (_event,),
    "export-verify": (_model,),
    "from-nir": (partial(_nir, input_kind="spikes"),),
    "from-soul": (_soul,),
    "nir": (_nir,),
    "onnx": (_model,),
    "streams": (_model, _event),
    "fixed-point": (partial(_model, name="model.safetensors", side=28),),
}


def prepare(page: str, folder: Path) -> None:
    """Write what the page takes for granted."""
    for write in SETUP.get(page, ()):
        write(folder)


def names(page: str) -> dict[str, object]:
    """What its Python blocks take for granted."""
    frames = np.random.default_rng(0).random((2, 3, 1, 8, 8), np.float32)
    return {"frames": frames} if page == "streams" else {}
