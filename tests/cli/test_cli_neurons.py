"""Each of Soul's neurons by commands: train, prune both ways, export, verify, inspect, run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.ir import SOUL_NEURONS
from soul_deploy.model.file import load, save

FIRING: dict[str, str] = {
    **dict.fromkeys(("lif", "plif", "clif", "ilif", "rplif", "izhikevich"), "--v_threshold 0.2"),
    "glif": "--neuron_settings init_v_threshold=0.3",
    "ielif": "",
    "intlif": "--neuron_settings norm=1",
    "ltmd": "--neuron_settings kappa=0.3",
    "psn": "",
    "stbif": "--neuron_settings q_threshold=0.5",
    "tlif": "--neuron_settings norm=1",
}
"""Soul's thirteen, and the numbers with which every population of the network fires."""
SENT = {"intlif": "graded ≤ 8", "ielif": "graded ≤ 4", "tlif": "signed ± 1"}
LEAKY = ("lif", "plif", "ltmd")
STEPWISE = ("glif", "psn")
NETWORK = "--model spikingvgg5 --hidden 16 --dataset_name digits -T 3 -b 4 --threads 1"
STEM = "spikingvgg5_{}_digits_T3_2025"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on few samples."""
    whole = load_data("digits", Path("."))
    parts = {
        name: getattr(whole, name).select(torch.arange(count))
        for name, count in (("train", 64), ("validation", 12), ("test", 12))
    }
    few = replace(whole, **parts)

    def read(data_dir: Path, download: bool) -> Data:
        return few

    monkeypatch.setitem(READERS, "digits", read)
    monkeypatch.chdir(tmp_path)


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [part for word in words for part in str(word).split()])


def done(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result


def made(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done(*words, "--format json").stdout)
    return document


def mixed(array: Any) -> Any:
    """Another weight (T, T) or bias (T, 1) of a PSN, with which neurons fire; else the array."""
    if array.shape == (3, 3):
        random = np.random.default_rng(0)
        return random.uniform(-0.3, 1, array.shape).astype(np.float32)
    return array * np.float32(0.05) if array.shape == (3, 1) else array


def trained(neuron: str) -> Path:
    """One epoch, on --v_threshold and the like as FIRING says; PSNs, whose bias starts at -1 and
    which one epoch leaves silent, fire by a bias that is made."""
    path = Path(made("train", NETWORK, "--epochs 1 -n", neuron, FIRING[neuron])["model"])
    assert path == Path("saved_models", f"best_{STEM.format(neuron)}.safetensors")
    model = load(path)
    assert {node.neuron.family for node in model.graph.populations} == {neuron}
    if neuron == "psn":
        save(
            replace(model, state={name: mixed(array) for name, array in model.state.items()}), path
        )
    return path


def compacts(path: Path) -> Iterator[Path]:
    """The compact networks of both methods of pruning, one epoch each."""
    start = ("--model_path", path, "-b 4 --threads 1")
    loop = "--epochs 1 --finetune_epochs 0 --prune_ratio 0.4 --min_keep 0.3"
    masked = "--epochs 1 --target_connectivity 0.4 --criterion ce"
    for method, words in (("structured", loop), ("unstructured", masked)):
        folder = f"-model_dir {method}"
        files = made("prune", method, *start, words, folder)["files"]
        dense, compact = load(path), load(Path(files["Compact model"]["path"]))
        assert compact.info.stage == "compact"
        sizes = [sum(array.size for array in model.state.values()) for model in (dense, compact)]
        assert sizes[1] < sizes[0], method
        yield Path(files["Compact model"]["path"])


@pytest.mark.parametrize("neuron", FIRING)
def test_a_neuron_goes_the_whole_way(neuron: str) -> None:
    for model in compacts(trained(neuron)):
        for kind, file in (("event", "net.event.safetensors"), ("onnx", "net.onnx")):
            made("export", kind, model, "-o", file, "--no-check")
            report = made("verify", model, file, "--samples 12")
            assert (report["verdict"], report["silent_layers"]) == ("passed", [])
            told = done("inspect", file).stdout
            assert ("v ← " if neuron in LEAKY else neuron) in told
    described = made("inspect", "net.event.safetensors")
    senders = {row["source"]: row for row in described["layers"] if row["source"] != "input"}
    edges = {(row["edge"], row["bound"]) for row in senders.values() if row["edge"]}
    kind, _, bound = SENT.get(neuron, "spike ≤ 1").partition(" ")
    assert edges == {(kind, int(bound.split()[-1]))}


def test_the_table_of_these_tests_has_all_neurons() -> None:
    assert set(FIRING) == set(SOUL_NEURONS) - {"if"} and len(FIRING) == 13


def untrained(neuron: str, *words: object) -> Path:
    """A model file of one epoch on four images."""
    return Path(made("train", NETWORK, "--epochs 1 -n", neuron, *words)["model"])


def test_a_network_that_mixes_steps_runs_and_is_no_stream() -> None:
    model = trained("psn")
    made("export event", model, "-o net.event.safetensors --no-check")
    assert len(made("run net.event.safetensors digits --samples 2")["results"]) == 2
    np.save("sequence.npy", np.zeros((3, 1, 8, 8), np.float32))
    for words, told in (
        ("run net.event.safetensors digits --samples 2 --stream", "mix all T = 3 steps"),
        (f"export onnx {model} -o step.onnx --mode step", "features.0.sn: its neurons mix all"),
        (f"export nir {model} -o net.nir", "PSN, which mixes all steps; NIR has no node"),
        (f"export event {model} -o other.event.safetensors -T 4", "numbers of each of 3 steps"),
    ):
        refused = call(words)
        assert refused.exit_code != 0 and told in refused.output, words
    assert not Path("step.onnx").exists() and not Path("net.nir").exists()


@pytest.mark.parametrize("neuron", ["glif", "psn", "tlif"])
def test_inspect_says_what_a_network_is_valid_for(neuron: str) -> None:
    """Of GLIF and PSN, which have numbers of each step, this T alone; in all three files."""
    model = untrained(neuron)
    files = (str(model), "net.event.safetensors", "net.onnx")
    made("export event", model, "-o", files[1], "--no-check")
    made("export onnx", model, "-o", files[2], "--no-check")
    for file in files:
        told = done("inspect", file).stdout
        assert ("T = 3 only" if neuron in STEPWISE else "any T") in told, file
        assert f"{neuron}:" in told or f"{neuron} (" in told
    if neuron == "tlif":
        assert "sends -1 to 1" in done("inspect", files[2]).stdout
        assert "signed ± 1" in " ".join(done("inspect", files[0]).stdout.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("intlf", "unknown neuron 'intlf'; valid: lif, plif, if, clif,"),
        ("psn --neuron_settings x=1", "psn has no 'x'; its own numbers: none"),
        ("intlif --neuron_settings nrm=1", "no 'nrm'; its own numbers: norm, top, carry"),
        ("intlif --neuron_settings norm", "'norm' is not NAME=NUMBER"),
        ("intlif --neuron_settings norm=many", "'norm=many' is not NAME=NUMBER"),
        ("intlif --neuron_settings =1", "'=1' is not NAME=NUMBER"),
        ("intlif --neuron_settings norm=1,norm=2", "says norm twice; give it once"),
        ("intlif --neuron_settings tau=3", "tau=3: give --tau, which many neurons have"),
        ("intlif --neuron_settings norm=-1", "intlif: norm -1 must be above 0"),
        ("intlif --neuron_settings norm=nan", "norm nan must be finite"),
        ("intlif --neuron_settings top=9.5", "top 9.5 must be an integer from 1 to 255"),
        ("intlif --neuron_settings carry=2", "carry 2; valid: 1 (the membrane is carried"),
        ("ielif --neuron_settings lens=8", "ielif: lens 8; supported is 4"),
        ("ltmd --v_reset none", "ltmd: v_reset none; it resets to 0"),
        ("rplif --v_reset none", "RPLIF cannot run with soft reset, give a number"),
        ("clif --v_reset 0.5", "v_reset 0.5; supported are 0 and none (soft reset)"),
    ],
)
def test_a_wrong_neuron_is_refused_and_says_what_would_do(words: str, told: str) -> None:
    result = call("train", NETWORK, "--epochs 1 -n", words)
    assert result.exit_code == 2 and told in result.stderr
    assert not list(Path(".").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("glif --v_threshold 0.5", "--v_threshold ignored; glif does not read it; its own, for"),
        ("ielif --tau 3", "--tau ignored; ielif does not read it"),
        ("if --tau 3 --v_threshold 0.5", "--tau ignored; if does not read it"),
    ],
)
def test_a_number_that_a_neuron_does_not_read_is_told(words: str, told: str) -> None:
    result = done("train", NETWORK, "--epochs 1 -n", words)
    assert f"Warning: {told}" in result.stderr


def test_a_number_that_a_neuron_reads_is_not_told() -> None:
    result = done("train", NETWORK, "--epochs 1 -n plif --tau 3 --surrogate sigmoid")
    assert "ignored" not in result.stderr
