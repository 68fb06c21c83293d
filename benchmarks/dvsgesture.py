"""A network of the size of SpikingJelly's DVSGestureNet on event-like frames, in three engines.

    python benchmarks/dvsgesture.py FOLDER [--density 0.05] [--rate 0.08] [--prepare]
    python benchmarks/dvsgesture.py FOLDER [--iterations 5]

Five times convolution of 128 channels, batch norm, LIF (tau 2), max pooling; 2048 → 512 → 110
neurons, votes of 10 for 11 classes; 2×128×128, T = 16. Weights are random; of each layer but the
share `density` of the largest are pruned, and each layer is set to `rate` on the first recording.
Frames are counts of events of three blobs that move over the sensor. --prepare writes model, ONNX
file, event file and frames to FOLDER; without it they are timed, one thread, batch 1.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from soul_deploy import ir
from soul_deploy.analysis.reference_network import set_rates
from soul_deploy.base import Array
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.ir.pools import MaxPool
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, arrays_of, for_kind
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.runtime.bench import inputs, runner
from soul_deploy.runtime.bench.timing import TimingSchedule

SIDE, CHANNELS, STEPS, SAMPLES = 128, 128, 16, 2
FILES = "net.safetensors", "net.onnx", "net.event.safetensors", "frames.npy"


def graph_of() -> ir.SpikingGraph:
    spec = ir.NeuronSpec("lif", tau=2.0, fire="ge", form="spikingjelly")
    nodes: list[ir.Node] = [ir.Input("input", (), (2, SIDE, SIDE))]
    for block in range(5):
        name, before = f"conv{block}", nodes[-1].name
        inputs_of = 2 if block == 0 else CHANNELS
        norm, sides = ir.BatchNorm(f"bn{block}"), ((3, 3), (1, 1), (1, 1))
        nodes += [
            ir.Convolution(name, (before,), False, norm, inputs_of, CHANNELS, *sides),
            ir.Population(f"lif{block}", (name,), spec),
            MaxPool(f"pool{block}", (f"lif{block}",), (2, 2), (2, 2), (0, 0)),
        ]
    nodes += [
        ir.Flatten("flat", ("pool4",)),
        ir.Linear("fc1", ("flat",), False, None, CHANNELS * 16, 512),
        ir.Population("lif5", ("fc1",), spec),
        ir.Linear("fc2", ("lif5",), False, None, 512, 110),
        ir.Population("lif6", ("fc2",), spec),
        ir.Readout("vote", ("lif6",), 11, linear=False, votes=10),
    ]
    return ir.SpikingGraph(tuple(nodes), STEPS)


def event_frames(samples: int, seed: int = 2025) -> Array:
    """(T, N, 2, SIDE, SIDE) float32: 22,000 events a frame, of both polarities."""
    random, frames = np.random.default_rng(seed), np.zeros((STEPS, samples, 2, SIDE, SIDE))
    for sample in range(samples):
        centre, speed = random.uniform(30, 98, (3, 2)), random.uniform(-3, 3, (3, 2))
        for step in range(STEPS):
            centre = centre + speed
            which = random.integers(0, 3, 22_000)
            place = np.rint(centre[which] + random.normal(size=(22_000, 2)) * 9).astype(int)
            inside = ((place >= 0) & (place < SIDE)).all(axis=1)
            moving = (place - centre[which]) @ np.ones(2) > 0
            index = (moving.astype(int)[inside], *place[inside].T)
            np.add.at(frames[step, sample], index, 1)
    return np.minimum(frames, 255).astype(np.float32)


def prepared(folder: Path, density: float, rate: float) -> None:
    folder.mkdir(exist_ok=True)
    graph, torch_random = graph_of(), torch.Generator().manual_seed(2025)
    frames = event_frames(SAMPLES)
    module = GraphModule(graph).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=torch_random)
                least = drawn.abs().flatten().kthvalue(int(drawn.numel() * (1 - density)) + 1)[0]
                parameter.copy_(torch.where(drawn.abs() >= least, drawn, 0))
        set_rates(module, module.as_signal(torch.from_numpy(frames[:, :1])), rate)
    model = for_kind(Model(graph, arrays_of(module.state_dict())), "counts")
    paths = [folder / name for name in FILES]
    save(model, paths[0])
    export_onnx(model, paths[1], fixed_batch=1)
    export_event(model, paths[2], images=torch.from_numpy(frames[:, :1]))
    np.save(paths[3], frames)


def rates_of(folder: Path) -> dict[str, float]:
    """Share of values that are not 0: of the frames, and of each population."""
    frames = torch.from_numpy(np.load(folder / FILES[3])[:, :1])
    spikes = load(folder / FILES[0]).module().record(frames).spikes
    shares = {name: float(fired.float().mean()) for name, fired in spikes.items()}
    return {"frames": float((frames != 0).float().mean()), **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--rate", type=float, default=0.08)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--engines", default="onnxruntime-compact,openvino-int8-compact,event")
    parser.add_argument("--prepare", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.prepare:
        prepared(given.folder, given.density, given.rate)
        print({name: f"{share:.1%}" for name, share in rates_of(given.folder).items()})
        return
    _, onnx, event, frames = (given.folder / name for name in FILES)
    config = runner.BenchConfig(
        engines=tuple(given.engines.split(",")),
        schedule=TimingSchedule(1, given.iterations, rounds=1),
        fresh=False,
    )
    files = inputs.BenchFiles(onnx_compact=onnx, event=event)
    print(runner.bench(files, np.load(frames), config).text())


if __name__ == "__main__":
    main()
