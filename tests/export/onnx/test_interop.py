"""Exported ONNX files in ONNX Runtime, OpenVINO and OpenCV, against PyTorch."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from deployed import small_model
from onnx import version_converter
from parity import Drawn, masked_model, search
from test_onnx import model_of
from torch import Tensor, nn

pytest.importorskip("openvino", reason="the extra `interop` brings OpenVINO")
pytest.importorskip("cv2", reason="the extra `interop` brings OpenCV")

from abroad import ENGINES, AllSteps, StepByStep, disagreement

from soul_deploy.base import Array
from soul_deploy.base.errors import SoulDeployError
from soul_deploy.equivalence.engines import Comparer
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.export.onnx.model import build_onnx, export_onnx, write_onnx
from soul_deploy.export.onnx.opsets import OPSETS
from soul_deploy.export.onnx.step import export_currents, export_step
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model
from soul_deploy.nn import layers
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal

MODEL = small_model()
X = torch.randn(3, *MODEL.input_shape, generator=torch.Generator().manual_seed(2))
FRAMES = torch.stack([X.roll(t, dims=3) for t in range(MODEL.graph.time_steps)])
BY_ENGINE = pytest.mark.parametrize("engine", ENGINES)


def agree(engine: str, path: Path, images: Tensor = X) -> None:
    """Scores of a file of all steps, whatever it calls its input."""
    found = AllSteps(ENGINES[engine](path), MODEL).run(images)
    torch.testing.assert_close(found.logits, MODEL.module().record(images).logits, **LIMITS)


LIMITS: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@BY_ENGINE
@pytest.mark.parametrize("form", [{}, {"fixed_batch": 3}], ids=str)
def test_scores_of_all_steps_and_of_single_steps(
    engine: str, form: dict[str, Any], tmp_path: Path
) -> None:
    assert disagreement(ENGINES[engine], MODEL, X, tmp_path, **form) is None


@BY_ENGINE
def test_sequences(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(MODEL, path, input_mode="sequence")
    agree(engine, path, FRAMES)
    step = tmp_path / "step.onnx"
    export_step(MODEL, step)
    found = StepByStep(ENGINES[engine](step), MODEL).run(FRAMES)
    torch.testing.assert_close(found.logits, MODEL.module().record(FRAMES).logits, **LIMITS)


@BY_ENGINE
def test_steps_that_take_currents(engine: str, tmp_path: Path) -> None:
    export_step(MODEL, tmp_path / "step.onnx", static_input="current")
    export_currents(MODEL, tmp_path / "currents.onnx")
    step, currents = (ENGINES[engine](tmp_path / f"{n}.onnx") for n in ("step", "currents"))

    def given(images: Array) -> Any:
        return currents({"input": images})

    found = StepByStep(step, MODEL, given).run(X)
    torch.testing.assert_close(found.logits, MODEL.module().record(X).logits, **LIMITS)


@BY_ENGINE
def test_spikes_explain_every_difference(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(MODEL, path, outputs="spikes")
    execution = AllSteps(ENGINES[engine](path), MODEL)
    found = Comparer(ReferenceModel(MODEL)).end_to_end(execution, X)
    assert found.spikes_compared and found.passed
    assert [layer.layer for layer in found.layers] == ["2", "6"]


@BY_ENGINE
def test_groups_of_neurons_are_summed_and_scaled(engine: str, tmp_path: Path) -> None:
    """OpenVINO scaled sums by the entries of other classes; only with 3 samples and more."""
    network = nn.Sequential(
        *(nn.Linear(6, 12), SpikingNeuron(NeuronSpec(v_threshold=0.2), 2)), layers.VoteReadout(4, 3)
    )
    model, x = model_of(network, (6,), 2), torch.randn(5, 6) * 3
    assert model.module().record(x).logits.std() > 0.1
    assert disagreement(ENGINES[engine], model, x, tmp_path) is None


@BY_ENGINE
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 3)], ids=str)
def test_padding_around_a_kernel_of_one_point(
    engine: str, stride: tuple[int, int], tmp_path: Path
) -> None:
    """As a padded `Conv` it was refused by OpenVINO, or summed otherwise by OpenCV."""
    fires = [SpikingNeuron(NeuronSpec(v_threshold=0.2), 2) for _ in range(2)]
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 1, stride, padding=(1, 2))
    network = nn.Sequential(first, fires[0], second, fires[1], layers.VoteReadout(3, 2))
    model, x = model_of(network, (2, 5, 6), 2), torch.randn(5, 2, 5, 6) * 3
    live = np.random.default_rng(1).random(model.graph.shapes["1"]) < 0.7
    model = replace(model, neuron_masks={"1": live})
    assert model.module().record(x).logits.std() > 0.01
    assert disagreement(ENGINES[engine], model, x, tmp_path) is None
    export_onnx(model, tmp_path / "net.onnx")
    assert verify(model, tmp_path / "net.onnx", x).passed


@BY_ENGINE
@pytest.mark.parametrize("padding", [(0, 1), (0, 2)], ids=str)
def test_a_row_that_comes_from_one_channel(
    engine: str, padding: tuple[int, int], tmp_path: Path
) -> None:
    """OpenVINO added it wrongly to the membranes of one sample, in step files."""
    conv = nn.Conv2d(1, 4, (3, 2), (3, 1), padding=padding)
    fires = SpikingNeuron(NeuronSpec(v_threshold=0.3), 3)
    network = nn.Sequential(conv, fires, nn.AvgPool2d((1, 3), (2, 1)), layers.RateReadout(4, 3))
    model, x = model_of(network, (1, 3, 8), 3), torch.randn(1, 1, 3, 8) * 3
    assert model.module().record(x).logits.std() > 0.01
    assert disagreement(ENGINES[engine], model, x, tmp_path) is None


@BY_ENGINE
@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(engine: str, opset: int, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(MODEL, path, opset=opset)
    agree(engine, path)


@BY_ENGINE
@pytest.mark.parametrize("opset", [20, 22])
def test_files_that_onnx_converted(engine: str, opset: int, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_onnx(path, version_converter.convert_version(build_onnx(MODEL), opset))
    agree(engine, path)


@pytest.mark.parametrize("functions", [False, True])
@pytest.mark.parametrize("package", ["onnxslim", "onnxsim"])
def test_simplified_files_are_judged_by_running_them(
    package: str, functions: bool, tmp_path: Path
) -> None:
    """They fold constants of the head, so that its weights are not found by name."""
    tool = pytest.importorskip(package, reason="the extra `interop` brings it")
    built, path = build_onnx(MODEL, functions=functions), tmp_path / "net.onnx"
    simplified = tool.slim(built) if package == "onnxslim" else tool.simplify(built)[0]
    onnx.save(simplified, path)
    report = verify(MODEL, path, X)
    assert report.passed, report.text()
    assert report.carried_by == ("forced", "end_to_end")
    assert any("7.weight" in reason for reason in report.incomparable)


# Networks of the parity soak.


def networks(drawn: Drawn) -> Iterator[tuple[str, Model, Tensor]]:
    """Masked, and compact unless removal refuses it; none that export refuses."""
    model, x = masked_model(drawn)
    found = {"masked": model}
    with suppress(SoulDeployError):
        found["compact"] = remove(model, plan_removal(model, residual=drawn.removal))
    for name, network in found.items():
        try:
            build_onnx(network)
        except SoulDeployError:
            continue
        yield name, network, x


def first_drawn(count: int, seed: int, networks: int) -> list[Drawn]:
    """The first of what `search(networks, seed)` draws."""
    found: list[Drawn] = []

    def keep(drawn: Drawn) -> tuple[str, str | None]:
        found.extend([drawn] if len(found) < count else [])
        return "drawn", None

    search(networks, seed, check=keep)
    return found


def differing(drawn: list[Drawn], folder: Path) -> tuple[dict[str, int], list[str]]:
    """How many networks each engine ran, and every disagreement."""
    counts = dict.fromkeys(ENGINES, 0)
    found = []
    for number, one in enumerate(drawn):
        for name, model, x in networks(one):
            for engine, load in ENGINES.items():
                counts[engine] += 1
                try:
                    wrong = disagreement(load, model, x, folder)
                except Exception as error:  # of each engine another one
                    wrong = f"{type(error).__name__}: {error}"
                found += [f"{number} {name} in {engine}: {wrong}"] if wrong else []
    return counts, found


def test_a_few_drawn_networks_agree_everywhere(tmp_path: Path) -> None:
    counts, wrong = differing(first_drawn(6, seed=8, networks=6), tmp_path)
    assert not wrong
    assert min(counts[engine] for engine in ENGINES) > 6


@pytest.mark.soak
def test_the_first_networks_of_the_parity_soak_agree_everywhere(tmp_path: Path) -> None:
    """As many as ABROAD_NETWORKS of those that the parity soak draws from SOAK_SEED."""
    count = int(os.environ.get("ABROAD_NETWORKS", "200"))
    drawn = first_drawn(count, int(os.environ.get("SOAK_SEED", "7")), networks=2000)
    counts, wrong = differing(drawn, tmp_path)
    print(counts)
    assert len(drawn) == count and not wrong, "\n".join(wrong)
