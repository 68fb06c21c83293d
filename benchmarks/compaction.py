"""Time and memory of planning and carrying out a removal: half of the channels masked, 3×32×32.

    python benchmarks/compaction.py [NETWORK ...]

Of spikingvgg16 and sewresnet34 (small stem) unless networks are named; one thread. Memory is what
is allocated on top of the masked network at the worst moment. Exits with 1 if a network takes 2 s
or three times its weights.
"""

import argparse
import sys
import time
import tracemalloc

import numpy as np
import torch

from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.removal.apply import parameters, remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.structured.selection import pruning_units
from soul_deploy.zoo.registry import NetworkOptions, create

LIMIT_SECONDS, LIMIT_MEMORY = 2.0, 3.0


def half_masked(name: str) -> Model:
    """Fresh weights; every second channel of each layer and each residual stream is masked."""
    options = NetworkOptions((3, 32, 32), 10, NeuronSpec(), 4, stem="small")
    _, graph = create(name, options)
    masks = {
        mask: np.arange(unit.channels) % 2 == 0
        for unit in pruning_units(graph, "coupled")
        for mask in unit.masks
    }
    return Model(graph, arrays_of(GraphModule(graph).state_dict()), masks)


def measure(model: Model) -> tuple[Model, float, float, int]:
    """(compact network, seconds of the plan, of the removal, bytes at the worst moment)."""
    begun = time.perf_counter()
    plan = plan_removal(model)
    planned = time.perf_counter()
    compact = remove(model, plan)
    done = time.perf_counter()
    tracemalloc.start()
    remove(model, plan_removal(model))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return compact, planned - begun, done - planned, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["spikingvgg16", "sewresnet34"])
    torch.set_num_threads(1)
    fits = True
    for name in parser.parse_args().networks:
        model = half_masked(name)
        weights = sum(array.nbytes for array in model.state.values())
        compact, planning, removing, peak = measure(model)
        print(
            f"{name}: {parameters(model.state):,} → {parameters(compact.state):,} parameters, "
            f"plan {planning:.2f} s, removal {removing:.2f} s, "
            f"memory {peak / 1e6:.0f} MB = {peak / weights:.2f} × the weights"
        )
        fits &= planning + removing < LIMIT_SECONDS and peak < LIMIT_MEMORY * weights
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
