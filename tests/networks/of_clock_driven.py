"""Rows of SpikingJelly 0.0.0.0.12, whose package is called `clock_driven`."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import spikingjelly_rows
from places import FIXTURES
from row import Row
from torch import nn

sj = spikingjelly_rows.Tool("spikingjelly.clock_driven")
T = 4


def nets() -> Any:
    """The networks of tests/fixtures/clock_driven, as people wrote them."""
    folder = str(FIXTURES / "clock_driven")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module("nets")


def written(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        voting = sj.part("model.parametric_lif_net").VotingLayer
        names = ("neuron", "layer", "surrogate", "functional")
        tool = SimpleNamespace(**{name: sj.part(name) for name in names}, VotingLayer=voting)
        made: nn.Module = nets().NETWORKS[name](tool)
        return made

    return build


def of_package(module: str, name: str, *given: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made: nn.Module = getattr(sj.part(f"model.{module}"), name)(*given)
        return made

    return build


def residual(module: str, name: str, **more: Any) -> Callable[[], nn.Module]:
    """One block a stage."""
    steps = name.startswith("MultiStep")
    block = "MultiStepBasicBlock" if steps else "BasicBlock"
    which = "multi_step_neuron" if steps else "single_step_neuron"
    neuron = sj.neuron.MultiStepLIFNode if steps else sj.neuron.LIFNode

    def build() -> nn.Module:
        models = sj.part(f"model.{module}")
        given = {"num_classes": 4, which: neuron, **more}
        made: nn.Module = getattr(models, name)(getattr(models, block), [1, 1, 1, 1], **given)
        return made

    return build


def row(network: str, neuron: str, build: Callable[[], nn.Module], *shape: int, **how: Any) -> Row:
    return Row(network=network, neuron=neuron, make=lambda: sj.made(build, shape, steps=T, **how))


def small(neuron: str, **given: Any) -> Callable[[], nn.Module]:
    """Called once a step."""

    def build() -> nn.Module:
        kind = getattr(sj.neuron, neuron)
        return nn.Sequential(
            *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), kind(**given)),
            *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 12), kind(**given), nn.Linear(12, 4)),
        )

    return build


def rows() -> list[Row]:
    frames, image = (2, 8, 8), (3, 24, 24)
    mnist = of_package("parametric_lif_net", "MNISTNet", 4, sj.neuron.ParametricLIFNode)
    nmnist = of_package(
        "parametric_lif_net", "MultiStepNMNISTNet", 4, sj.neuron.MultiStepParametricLIFNode
    )
    return [
        row(
            "Fashion-MNIST tutorial",
            "MultiStep IF, LIF, PLIF",
            written("static"),
            *frames,
            static=True,
        ),
        row("residual, seq_to_ann_forward", "MultiStep LIF, EIF", written("residual"), *frames),
        row("MultiStepContainer", "LIF, MultiStep IF", written("contained"), *frames),
        row("MNISTNet, once a step", "PLIF", mnist, 1, 28, 28, mode="s"),
        row("MultiStepNMNISTNet", "MultiStep PLIF", nmnist, 2, 34, 34),
        row(
            "SEWResNet, once a step",
            "LIF",
            residual("sew_resnet", "SEWResNet", cnf="ADD"),
            *image,
            mode="s",
        ),
        row(
            "MultiStepSEWResNet",
            "MultiStep LIF",
            residual("sew_resnet", "MultiStepSEWResNet", cnf="ADD", T=T),
            *image,
        ),
        row(
            "MultiStepSpikingResNet",
            "MultiStep LIF",
            residual("spiking_resnet", "MultiStepSpikingResNet", T=T),
            *image,
        ),
        *(
            row("convolutional, small, once a step", name, small(kind, **given), *frames, mode="s")
            for name, kind, given in (
                ("IF", "IFNode", {}),
                ("LIF", "LIFNode", {}),
                ("QIF", "QIFNode", {}),
                ("LIF, soft reset", "LIFNode", {"v_reset": None}),
            )
        ),
        row(
            "LinearRecurrentContainer",
            "LIF",
            lambda: nn.Sequential(
                nn.Linear(20, 12),
                sj.layer.LinearRecurrentContainer(sj.neuron.LIFNode(), 12, 12),
                nn.Linear(12, 4),
            ),
            20,
            mode="s",
        ),
    ]
