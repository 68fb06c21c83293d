"""All processes of a job hold the same network: checked, since nothing sends it around."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from soul_deploy import distributed
from soul_deploy.module import GraphModule


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
