"""Networks of the zoo and the reference network: the event runtime, ONNX Runtime, OpenVINO's int8.

    python benchmarks/networks.py [NAME ...] [--threads 1,2] [--batch 1] [--rate 0.08] [--json]

sewresnet18, msresnet18, spikingvgg16  3×32×32, every second channel removed (as
    `prune structured` removes them), random weights, every layer set to the rate, T = 4
reference:DENSITY  6Conv2FC, as `soul-deploy bench sparse --reference --density DENSITY`

All engines run the same network, the one without the removed channels, in turns in one process.
Prints Markdown rows: medians in milliseconds a batch, and the rate of all neurons on the images.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compaction import half_masked

from soul_deploy.analysis.reference_network import ReferenceNetwork, reference_model, set_rates
from soul_deploy.base.files import temporary_folder
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.prune.removal.apply import remove
from soul_deploy.runtime.bench import inputs, runner
from soul_deploy.runtime.bench.timing import TimingSchedule

NETWORKS = (
    "sewresnet18",
    "msresnet18",
    "spikingvgg16",
    *map("reference:{}".format, (0.02, 0.05, 1)),
)
REFERENCE = "reference:"
RIVALS = ("onnxruntime-compact", "openvino-int8-compact")
COLUMNS = (
    *("network", "rate", "batch", "threads", "ONNX Runtime, ms", "OpenVINO int8, ms"),
    *("event runtime, ms", "against ONNX Runtime", "against OpenVINO int8"),
)


def network(name: str, rate: float) -> Model:
    """A network as it is timed. Raises UsageError for a density that is none."""
    if name.startswith(REFERENCE):
        density = float(name.removeprefix(REFERENCE))
        return reference_model(ReferenceNetwork(density=density, rate=rate))
    torch.manual_seed(2025)  # fresh weights
    model = remove(half_masked(name))
    module = model.module()
    image = torch.randn((1, *model.input_shape))
    with torch.no_grad():
        set_rates(module, module.as_signal(image), rate)
    return replace(model, state=arrays_of(module.state_dict()))


def time_network(model: Model, config: runner.BenchConfig) -> dict[str, Any]:
    """The document of `bench` on normal noise, which rates were set on, and the rate there."""
    count = max(config.batch_sizes) * runner.MAX_BATCHES
    rng = np.random.default_rng(2026)
    images = rng.standard_normal((count, *model.input_shape)).astype(np.float32)
    spikes = model.module().record(torch.from_numpy(images[: runner.MAX_BATCHES])).spikes.values()
    rate = sum(int(fired.sum()) for fired in spikes) / sum(fired.numel() for fired in spikes)
    with temporary_folder() as folder:
        path = Path(folder) / "network.safetensors"
        save(model, path)
        report = runner.bench(inputs.BenchFiles(compact=path), images, config)
    return {**report.to_dict(), "rate": rate}


def rows_of(name: str, document: dict[str, Any]) -> Iterator[str]:
    """One row for each number of threads and each batch."""
    times: dict[tuple[int, int], dict[str, float]] = {}
    for entry in document["entries"]:
        setting = entry["batch_size"], entry["threads"]
        times.setdefault(setting, {})[entry["engine"]] = entry["p50_ms"]
    for (batch, threads), found in times.items():
        event = found[runner.EVENT]
        rivals = [found.get(rival) for rival in RIVALS]
        shown = ["" if ms is None else f"{ms:,.1f}" for ms in rivals]
        ratios = ["" if ms is None else f"{ms / event:.2f}" for ms in rivals]
        yield row(name, f"{document['rate']:.1%}", batch, threads, *shown, f"{event:,.2f}", *ratios)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NAME")
    parser.add_argument("--threads", type=numbers, default=(1, 2))
    parser.add_argument("--batch", type=numbers, default=(1,))
    parser.add_argument("--rate", type=float, default=0.08, help="spikes per neuron and step")
    parser.add_argument("--iterations", type=int, default=20, help="measured runs of an engine")
    parser.add_argument("--warmup", type=int, default=3, help="runs before")
    parser.add_argument("--engines", default=",".join((*RIVALS, runner.EVENT)))
    parser.add_argument("--json", action="store_true", help="the documents of `bench` instead")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    schedule = TimingSchedule(given.warmup, given.iterations, rounds=min(5, given.iterations))
    config = runner.BenchConfig(
        engines=tuple(given.engines.split(",")),
        threads=given.threads,
        batch_sizes=given.batch,
        schedule=schedule,
        fresh=False,
    )
    if not given.json:
        print(row(*COLUMNS), row(*["---"], *["---:"] * (len(COLUMNS) - 1)), sep="\n", flush=True)
    for name in given.networks:
        document = time_network(network(name, given.rate), config)
        if given.json:
            print(json.dumps({"network": name, **document}), flush=True)
        else:
            print(*rows_of(name, document), sep="\n", flush=True)


if __name__ == "__main__":
    main()
