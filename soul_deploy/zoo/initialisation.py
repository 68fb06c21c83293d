"""How the weights of a fresh network are drawn."""

from typing import Literal, get_args

from torch import nn

Initialisation = Literal["default", "kaiming_fan_out"]
INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)
"""default: as the network's own source does; kaiming_fan_out: all layers by `kaiming_fan_out`."""


def kaiming_fan_out(network: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers anew: normal, variance 2 / fan out.

    He et al., "Delving deep into rectifiers" (ICCV 2015); as in Shi et al., ICLR 2024 (published
    code, models/cifar10.py) and in Soul's unstructured_prune.py.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
