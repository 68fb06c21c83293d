"""What the rows of all versions of SpikingJelly share: how its networks are run and taken in."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from heard import heard, livened
from row import Made, Own
from torch import Tensor, nn

from soul_deploy import from_torch
from soul_deploy.model.model import Model

NEURONS = ("BaseNode", "GatedLIFNode", "PSN", "MaskedPSN", "SlidingPSN")


@dataclass(frozen=True)
class Tool:
    """The modules of one version, by their names in it."""

    package: str

    def __getattr__(self, name: str) -> Any:
        return self.part(name)

    def part(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")

    def made(
        self,
        build: Callable[[], nn.Module],
        shape: tuple[int, ...],
        steps: int = 4,
        *,
        mode: str = "m",
        static: bool = False,
        live: bool = True,
        gain: float = 1.0,
        batch: int = 4,
        level: float = 0.8,
        over_time: Any = None,
    ) -> Made:
        """A network with its input: (T, B, ...) in step mode m, or for `static` an image.

        live: weights are scaled until all neurons fire.
        """
        torch.manual_seed(1)
        network: Any = build().eval()
        if self.package.endswith("activation_based"):
            self.functional.set_step_mode(network, mode)
        x = torch.rand(steps, batch, *shape) * gain
        if static:
            x = x[0]

        def run() -> Tensor:
            """The scores at all steps (T, B, classes), or those that forward makes of them."""
            self.functional.reset_net(network)
            with torch.no_grad():
                if mode == "m":
                    out: Tensor = network(x)
                else:
                    out = torch.stack([network(x if static else x[t]) for t in range(steps)])
            self.functional.reset_net(network)
            return out

        kinds = tuple(getattr(self.neuron, n) for n in NEURONS if hasattr(self.neuron, n))
        if live:
            livened(network, kinds, lambda: (run(), None)[1], level)

        def own() -> Own:
            outs: list[Tensor] = []
            sent = heard(network, kinds, lambda: outs.append(run()))
            scores = outs[0].mean(0) if outs[0].dim() == 3 else outs[0]
            return Own(sent, scores)

        def taken() -> Model:
            return from_torch(network, shape, steps, example=x, over_time=over_time)

        return Made(x, own, taken, tuple(name for name, _ in network.named_modules()))
