"""Channel masks in a module: opened, and set as a plan says."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_deploy.nn.graph_module import ChannelMask, GraphModule
from soul_deploy.prune.structured import selection
from soul_deploy.prune.structured.config import RegrowWeights


def open_masks(module: GraphModule, names: Iterable[str]) -> None:
    """Give each of `names` a mask that keeps everything, unless it has one."""
    device = next(module.parameters()).device
    for name in names:
        if name not in module.channel_masks:
            keep = torch.ones(selection.channels_of(module.graph, name), device=device)
            module.channel_masks[name] = ChannelMask(keep)


@torch.no_grad()
def apply(
    layers: Iterable[selection.LayerChannels],
    module: GraphModule,
    optimizer: Optimizer,
    regrow_weights: RegrowWeights,
) -> None:
    """Set the masks that `layers` are named after; clear the optimizer's memory of masked rows."""
    for layer in layers:
        mask = module.channel_masks[layer.name]
        keep = torch.from_numpy(layer.keep).to(mask.keep.device)
        back = keep & (mask.keep == 0)
        mask.keep = keep.to(mask.keep.dtype)
        projection = module.graph.projection(module.graph.masked_projection(layer.name))
        owners = [projection.name] + ([projection.norm.name] if projection.norm else [])
        norms = module.graph.masked_norms.items()
        owners += [norm for norm, masked in norms if masked == projection.name]
        # One row per channel: the projection's weight first, bias, batch norm.
        parameters = [p for owner in owners for p in module.get_submodule(owner).parameters()]
        for parameter in parameters:
            for value in optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[~keep] = 0
        if regrow_weights == "zero":
            parameters[0][back] = 0
