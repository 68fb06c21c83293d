"""Forms of rows by the door that users take: export, inspect, run; rates that a check measures."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from places import FIXTURES
from torch import nn

from soul_deploy.base.files import read_tensors, write_tensors
from soul_deploy.cli.main import root
from soul_deploy.data.given import images_for
from soul_deploy.export.event.build import ROW_FORMS, build_event_network
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load as load_model
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.format.file import FORMAT, load_event_network
from soul_deploy.runtime.ops import rates
from soul_deploy.runtime.ops.rates import measure_rates
from soul_deploy.runtime.plan.costs import USUAL_RATE
from soul_deploy.runtime.plan.forms import FORMS, estimated_times

STEPS, SHAPE = 3, (1, 8, 8)
LONGEST_LINE = 80


def spiking_model(silent: bool = False) -> Model:
    """Two convolutions (0 on the input, 2 on spikes), a pooling (4) and a matrix (6)."""
    torch.manual_seed(1)
    modules = nn.Sequential(
        layers.Conv2d(1, 6, 3, padding=1),
        SpikingNeuron(NeuronSpec(v_threshold=0.3), STEPS),
        layers.Conv2d(6, 18, 3, padding=1),
        SpikingNeuron(NeuronSpec(v_threshold=1e3 if silent else 0.1), STEPS),
        layers.MaxPool2d(2),
        layers.Flatten(),
        nn.Linear(18 * 16, 8),
        SpikingNeuron(NeuronSpec(v_threshold=0.1), STEPS),
        layers.RateReadout(8, 10),
    )
    module = GraphModule(trace(modules, SHAPE, STEPS))
    module.load_state_dict(modules.state_dict())
    return from_module(module, ModelInfo())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(spiking_model(), path)
    return path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def exported(model: Path, *words: object) -> Path:
    target = model.with_suffix(".event")
    result = invoke("export", "event", model, "-o", target, *words)
    assert result.exit_code == 0, result.output
    return target


def inspected(path: Path) -> dict[str, Any]:
    """Rows of layers with synapses, by name."""
    result = invoke("inspect", path, "--format", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["layers"]
    return {row["layer"]: row for row in rows if row["representation"]}


def images(count: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def forms_table(path: Path) -> list[str]:
    """Lines of the table of forms."""
    text = invoke("inspect", path).stdout
    lines = text[text.index("Forms of the synapses") :].splitlines()
    end = next(k for k, line in enumerate(lines) if line.startswith("└"))
    return lines[: end + 1]


def test_the_check_measures_rates_which_inspect_shows(model: Path) -> None:
    words = ("--input", "random", "--samples", 5, "--seed", 3)
    path = exported(model, *words)
    network = load_event_network(path)
    assert network.rates.keys() == {"1", "4"}  # what convolution 2 and matrix 6 read
    rows = inspected(path)
    assert [rows[name]["rate_by"] for name in "137"] == [None, "measured", "measured"]
    assert (rows["1"]["rate"], rows["3"]["rate"]) == (None, network.rates["1"])
    assert rows["7"]["rate"] == network.rates["4"]
    assert [rows[name]["active_by"] for name in "137"] == [None, "measured", "measured"]
    assert [rows[name]["active"] for name in "37"] == [network.active[name] for name in "14"]
    for name, times in estimated_times(network).items():
        assert rows[name]["estimated_us"] == {form: ns / 1e3 for form, ns in times.items()}
        assert rows[name]["runs_as"] == min(times, key=times.__getitem__)
        assert rows[name]["runs_as_by"] == "estimate"
    text = "\n".join(forms_table(path))
    assert f"{100 * network.rates['1']:.3g} % ({100 * network.active['1']:.3g} %)" in text
    assert "assumed" not in text
    plain = exported(model, "--no_check")
    assert (load_event_network(plain).rates, load_event_network(plain).active) == ({}, {})
    rows = inspected(plain)
    assert [rows[name]["rate_by"] for name in "37"] == ["assumed", "assumed"]
    assert [rows[name]["rate"] for name in "37"] == [USUAL_RATE, 1 - (1 - USUAL_RATE) ** 4]
    assert [rows[name]["active_by"] for name in "37"] == ["assumed", "assumed"]
    chance = 1 - (1 - USUAL_RATE) ** STEPS
    assert rows["3"]["active"] == pytest.approx(chance)
    text = "\n".join(forms_table(plain))  # of four pooled values one fires more often
    assert "8 % assumed" in text and "28.4 % assumed" in text


def test_measured_rates_are_what_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over batches of any size, of images and of sequences."""
    given = spiking_model()
    x, _ = images_for(given, images(5))
    network = build_event_network(given, images=x)
    spikes = Network(network, 1).run_recorded(x.numpy()).spikes
    assert network.rates["1"] == pytest.approx(spikes["1"].mean(), abs=5e-5) != 0
    pooled = spikes["3"].reshape(STEPS, 5, 18, 4, 2, 4, 2).any(axis=(4, 6))
    assert network.rates["4"] == pytest.approx(pooled.mean(), abs=5e-5) != 0
    at_any = [spikes["1"].any(axis=0).mean(), pooled.any(axis=0).mean()]
    assert [network.active[name] for name in "14"] == pytest.approx(at_any, abs=5e-5)
    assert network.active["1"] > network.rates["1"]
    monkeypatch.setattr(rates, "BATCH", 2)
    running = Network(network, 1)
    assert measure_rates(running, x.numpy()) == (network.rates, network.active)
    moving = np.stack([x.numpy()] * STEPS)
    assert measure_rates(running, moving) == (network.rates, network.active)


def test_a_silent_layer_has_no_rate(tmp_path: Path) -> None:
    network = build_event_network(spiking_model(silent=True), images=images())
    assert network.rates.keys() == {"1"}


@pytest.mark.parametrize("form", ["gather", "dense", "sparse", "planes"])
def test_a_form_of_the_export_is_kept_run_and_overridden(model: Path, form: str) -> None:
    path = exported(model, "--rows", f"2={form.upper()}", "--input", "random", "--samples", 3)
    assert load_event_network(path).forms == {"3": form}
    row = inspected(path)["3"]
    assert (row["runs_as"], row["runs_as_by"]) == (form, "file")
    assert row["representation"] == {"gather": "dense", "planes": "sparse"}.get(form, form)
    assert any(re.search(rf"│ 3 +│ +{form} \(file\) │", line) for line in forms_table(path))
    assert load(path, 1).layer_forms["3"] == form
    x = images()
    with torch.no_grad():
        expected = load_model(model).module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(load(path, 1).run(x), expected, atol=1e-5)
    other = {"gather": "dense", "dense": "gather", "sparse": "planes", "planes": "sparse"}[form]
    assert load(path, 1, forms={"2": other}).layer_forms["3"] == other


def test_rows_of_storage_alone_say_nothing_of_running(model: Path) -> None:
    path = exported(model, "--rows", "2=explicit", "--rows", "0=dense", "--no_check")
    network = load_event_network(path)
    assert network.forms == {}
    rows = inspected(path)
    assert (rows["3"]["representation"], rows["3"]["runs_as"]) == ("explicit", "sparse")
    assert (rows["1"]["representation"], rows["1"]["runs_as"]) == ("dense", "analog")
    path = exported(model, "--rows", "0=analog", "--rows", "6=dense", "--no_check")
    assert load_event_network(path).forms == {"1": "analog", "7": "dense"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("2=analog", "--rows 2=analog: its synapses cannot run as 'analog'; give dense or gather"),
        ("0=planes", "--rows 0=planes: its synapses cannot run as 'planes'; give sparse"),
        ("6=gather", "--rows 6=gather: its synapses cannot run as 'gather'; give dense"),
        ("6=planes", "--rows 6=planes: 6 is a matrix; choose dense or explicit"),
        ("2=lanes", "--rows 2=lanes: give LAYER=FORM, where FORM is dense, sparse, explicit, "),
    ],
)
def test_what_a_layer_cannot_have_is_refused_at_export(
    model: Path, rows: str, message: str
) -> None:
    result = invoke("export", "event", model, "--rows", rows, "--no_check")
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_a_file_of_a_form_to_come_is_refused_unless_another_is_given(
    model: Path, tmp_path: Path
) -> None:
    path = exported(model, "--rows", "2=sparse", "--no_check")
    opened = read_tensors(path)
    document = opened.document(FORMAT) | {"forms": {"3": "lightning"}}
    tensors = {name: np.array(array) for name, array in opened.tensors.items()}
    newer = tmp_path / "newer.event"
    write_tensors(newer, tensors, document)
    np.save(tmp_path / "x.npy", images())
    told = "newer.event: the file asks for a form of rows: 3: its synapses cannot run as 'light"
    for words in (("inspect", newer), ("run", newer, tmp_path / "x.npy")):
        refused = invoke(*words)
        assert (refused.exit_code, told in refused.stderr) == (1, True), refused.stderr
    shown = ("--format", "json", "--top", 10)
    found = [
        invoke("run", file, tmp_path / "x.npy", *shown, *more)
        for file, more in ((newer, ("--rows", "3=sparse")), (path, ()))
    ]
    assert [each.exit_code for each in found] == [0, 0], found[0].output
    first, second = (json.loads(each.stdout)["results"] for each in found)
    assert first == second


def test_the_table_of_forms_fits_a_terminal(model: Path) -> None:
    path = exported(model, "--rows", "2=planes", "--no_check")
    lines = forms_table(path)
    assert max(map(len, lines)) <= LONGEST_LINE
    head = [cell.strip() for cell in lines[2].strip("┃").split("┃")]
    assert head == ["layer", "runs as", "rate (at any step)", "estimated µs, one thread"]
    (row,) = (line for line in lines if line.startswith("│ 3 "))
    assert re.search(r"sparse [\d.,]+, planes [\d.,]+", row)


def test_old_files_run_at_assumed_rates(tmp_path: Path) -> None:
    path = tmp_path / "old.event"
    shutil.copy(FIXTURES / "v0_1_0" / "compact.event.safetensors", path)
    network = load_event_network(path)
    assert (network.rates, network.active, network.forms) == ({}, {}, {})
    assert "% assumed" in "\n".join(forms_table(path))
    rows = [row for row in inspected(path).values() if row["edge"] != "analog"]
    assert rows and {row["rate_by"] for row in rows} == {"assumed"}


def test_every_form_of_running_can_be_asked_of_an_export() -> None:
    assert set(ROW_FORMS) == {*FORMS, "explicit"}
