"""What a recorded run of an event network yields."""

from collections.abc import Mapping
from dataclasses import dataclass

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array


@brief
@dataclass(frozen=True)
class Recording:
    """One run: spikes of each population, bool (T, B, C, H, W) or (T, B, N), and logits."""

    spikes: Mapping[str, Array]
    logits: Array
