"""Size and building time of the explicit form of 6Conv2FC at the connectivity of the paper, 0.63 %.

    python benchmarks/explicit_size.py [--connectivity 0.0063] [--live 0.5]

(Shi et al., ICLR 2024: convolutions 1 to 5 with half of their neurons live.) Dense rows for every
neuron would take 12 GiB. Exits with 1 if the event network is not 75 to 95 MB at 0.63 %, or takes
60 s or 2 GB to build.
"""

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from soul_deploy.analysis.connectivity import measure_connectivity
from soul_deploy.export.event.build import build_event_network
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.runtime.format.file import save_event_network
from soul_deploy.runtime.io.inspect import representations
from soul_deploy.runtime.io.inspect_tables import representation_table
from soul_deploy.zoo.registry import NetworkOptions, create


def sparse_6conv2fc(connectivity: float, live: float, width: int, seed: int = 0) -> Model:
    """Random weights and masks with this connectivity, within 1 % of it; conv 1 keeps its weights.

    (Of a sparse first convolution, with 27 weights per neuron, many neurons would lose all.)
    """
    options = NetworkOptions((3, 32, 32), 10, NeuronSpec(), 8, 8 * width, width)
    _, graph = create("cifar10net", options)
    rng = np.random.default_rng(seed)
    state = arrays_of(GraphModule(graph).state_dict())
    maps = [node.name for node in graph.populations if len(graph.shapes[node.name]) == 3]
    masks = {name: rng.random(graph.shapes[name]) < live for name in maps[:5]}
    names = [f"{node.name}.weight" for node in graph.projections]
    order = {name: rng.random(state[name].shape, np.float32) for name in names[1:]}
    density = 0.02
    for _ in range(4):
        thinned = {n: state[n] * (order[n] < density) if n in order else state[n] for n in names}
        weights = {name.removesuffix(".weight"): weight for name, weight in thinned.items()}
        share = measure_connectivity(graph, weights, masks).share
        if abs(share / connectivity - 1) < 0.01:
            break
        density *= connectivity / share
    return replace(Model(graph, {**state, **thinned}), neuron_masks=masks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connectivity", type=float, default=0.0063)
    parser.add_argument("--live", type=float, default=0.5)
    parser.add_argument("--width", type=int, default=256)
    given = parser.parse_args()
    model = sparse_6conv2fc(given.connectivity, given.live, given.width)
    weights = {p.name: model.state[f"{p.name}.weight"] for p in model.graph.projections}
    found = measure_connectivity(model.graph, weights, model.neuron_masks)
    begun = time.monotonic()
    network = build_event_network(model, representation="explicit")
    seconds = time.monotonic() - begun
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explicit.event.safetensors"
        save_event_network(path, network)
        size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(representation_table(representations(network)))
    print(
        f"connectivity {found.share:.3%}, explicit {size / 1e6:.1f} MB, built in {seconds:.1f} s, "
        f"at most {peak / 1e9:.2f} GB resident (PyTorch and the dense model included)"
    )
    fits = 75e6 <= size <= 95e6 or given.connectivity != 0.0063
    return 0 if fits and seconds < 60 and peak < 2e9 else 1


if __name__ == "__main__":
    sys.exit(main())
