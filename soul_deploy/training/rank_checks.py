"""All processes of a job do the same with the same: checked, since nothing sends it around."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.nn.graph_module import GraphModule


def check_same(
    when: str, module: GraphModule, place: Sequence[float], masks: Iterable[Tensor] = ()
) -> None:
    """Raise DistributedError, in all processes, if not all of them hold the same network.

    place: numbers that say how far each has come; masks: others than the module's.
    """
    keeps = [mask.keep for mask in module.channel_masks.values()]
    distributed.current().agree(
        when,
        {
            "place": [torch.tensor(place, dtype=torch.float64)],
            "masks": [*keeps, *masks],
            "weights": module.state_dict().values(),
        },
    )


def check_same_start(settings: Mapping[str, Any], checkpoint: str) -> None:
    """Raise DistributedError, in all processes, if they do not begin the same run at one place.

    settings: what was asked for, the data's sha256 among it. checkpoint: what the run goes on from;
    empty: nothing.
    """
    distributed.current().agree(
        "at the start",
        {
            "settings and data": [_text(json.dumps(settings, sort_keys=True, default=str))],
            "the checkpoint to go on from": [_text(checkpoint)],
        },
    )


def _text(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
