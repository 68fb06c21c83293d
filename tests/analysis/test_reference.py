"""The reference network of the benchmark: its rates, its density, its connectivity."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from soul_deploy.analysis.connectivity import measure_connectivity
from soul_deploy.analysis.reference_network import (
    ReferenceNetwork,
    reference_model,
    write_reference,
)
from soul_deploy.base import Array
from soul_deploy.base.errors import UsageError
from soul_deploy.cli.main import root

SMALL = {"width": 16, "hidden": 64, "image": (3, 16, 16), "seed": 7}


@pytest.mark.parametrize("rate", [0.08, 0.2])
def test_every_layer_fires_at_the_rate(rate: float) -> None:
    model = reference_model(ReferenceNetwork(density=0.3, rate=rate, time_steps=6, **SMALL))  # type: ignore[arg-type]
    kept = np.mean([(a != 0).mean() for n, a in model.state.items() if n.endswith("0.weight")])
    assert kept == pytest.approx(0.3, abs=0.03)
    image = torch.from_numpy(_images(model.input_shape))
    for name, spikes in model.module().record(image).spikes.items():
        if name != "sn2":  # 100 neurons: too few for a rate
            assert float(spikes.float().mean()) == pytest.approx(rate, rel=0.5), name


def _images(shape: tuple[int, ...]) -> Array:
    """Four images of the kind that the network was set on."""
    return np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)


def test_the_pruned_network_has_the_connectivity_and_half_of_the_neurons() -> None:
    wanted = ReferenceNetwork(density=None, connectivity=0.05, rate=0.1, **SMALL)  # type: ignore[arg-type]
    model = reference_model(wanted)
    weights = {n.name: model.state[f"{n.name}.weight"] for n in model.graph.projections}
    share = measure_connectivity(model.graph, weights, model.neuron_masks).share
    assert share == pytest.approx(0.05, rel=0.01)
    assert [int(keep.sum()) * 2 for keep in model.neuron_masks.values()] == [
        keep.size for keep in model.neuron_masks.values()
    ]
    assert list(model.neuron_masks) == [p.name for p in model.graph.populations[1:6]]


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    wanted = ReferenceNetwork(density=0.1, **SMALL)  # type: ignore[arg-type]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_reference(tmp_path / name, 3, wanted)
    for file in ("reference.safetensors", "reference.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.5, "connectivity": 0.1}, "either density or connectivity"),
        ({"density": None}, "either density or connectivity"),
        ({"density": 0.0}, "density 0 must be above 0"),
        ({"rate": 1.5}, "rate 1.5 must be above 0 and at most 1"),
    ],
)
def test_wrong_wishes(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReferenceNetwork(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--density", "0.1"], "--density: these describe the network of --reference"),
        (["--reference", "--model", "m.safetensors"], "makes its own network"),
        (["--reference", "--input", "mnist5k"], "makes its own input"),
        (["--reference", "--density", "2"], "density 2 must be above 0 and at most 1"),
    ],
)
def test_wrong_options(words: list[str], message: str) -> None:
    result = CliRunner().invoke(root, ["bench", "sparse", *words])
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_the_bench_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import soul_deploy.analysis.reference_network as module

    def small(**fields: object) -> ReferenceNetwork:
        return ReferenceNetwork(**{**fields, **SMALL})  # type: ignore[arg-type]

    monkeypatch.setattr(module, "ReferenceNetwork", small)
    words = ["--reference", "--density", "0.1", "--engines", "onnxruntime-dense,event"]
    words += ["--iterations", "3", "--warmup", "1", "--no_fresh", "--format", "json"]
    result = CliRunner().invoke(root, ["bench", "sparse", *words])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["reference"]["density"] == 0.1
    assert {entry["engine"] for entry in document["entries"]} == {"onnxruntime-dense", "event"}
