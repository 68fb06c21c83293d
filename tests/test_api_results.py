"""`compare`, `count`, `connectivity`, `verify` and `bench` as a Python user calls them."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployed import SHAPE, STEPS, Files, make_files, random_pixels

import soul_deploy
from soul_deploy import BenchConfig, EnergyChoice, Model, errors, load
from soul_deploy.base.tables import Table
from soul_deploy.data.datasets import Data, Split
from soul_deploy.model.model import Normalization
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.bench.timing import Schedule

PIXELS = random_pixels(4)
QUICK = BenchConfig(schedule=Schedule(0, 2), fresh=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def masked(files: Files) -> Model:
    return load(files.masked)


@pytest.fixture(scope="module")
def compact(files: Files) -> Model:
    return load(files.compact)


def compared(files: Files) -> Any:
    masked = load(files.masked)
    kept = plan_removal(masked).kept_channels
    return soul_deploy.compare(masked, load(files.compact), PIXELS, kept)


RESULTS: dict[str, Callable[[Files], Any]] = {
    "compare": compared,
    "count": lambda files: soul_deploy.count(load(files.masked), PIXELS),
    "connectivity": lambda files: soul_deploy.connectivity(load(files.masked)),
    "verify": lambda files: soul_deploy.verify(load(files.compact), files.compact_onnx, PIXELS),
    "bench": lambda files: soul_deploy.bench([files.compact_event], PIXELS, QUICK),
    "plan": lambda files: plan_removal(load(files.masked)),
}


@pytest.mark.parametrize("name", [*RESULTS])
def test_a_result_is_frozen_short_and_shown_and_nothing_is_printed(
    name: str, files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    found = RESULTS[name](files)
    for field in fields(found):
        with pytest.raises(FrozenInstanceError):
            setattr(found, field.name, None)
    positional = [field for field in fields(found) if field.init and not field.kw_only]
    assert len(positional) <= 3
    assert len(repr(found)) < 2000 and "\n" not in repr(found) and "array(" not in repr(found)
    tables = [part for part in found.parts() if isinstance(part, Table)]
    assert tables and tables[0].title in found.text()
    html = found._repr_html_()
    assert html.count("<table>") == html.count("</table>") == len(tables)
    if name != "plan":
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    captured = capfd.readouterr()
    assert captured.out == "" and "Compiling" in (captured.err or "Compiling")


# compare


def test_masked_and_compact_are_the_same(masked: Model, compact: Model) -> None:
    kept = plan_removal(masked).kept_channels
    found = soul_deploy.compare(masked, compact, PIXELS, kept, allow_silent=True)
    assert found.passed and found.to_dict()["verdict"] == "passed"
    assert found.end_to_end.samples == 4 and found.time_steps == STEPS
    assert found.text().splitlines()[-1] == "Same: yes"


def test_another_network_is_not(masked: Model) -> None:
    weight = masked.state["0.weight"] * np.float32(3)
    other = replace(masked, state={**masked.state, "0.weight": weight})
    found = soul_deploy.compare(masked, other, PIXELS)
    assert not found.passed and "end to end: FAILED" in found.text()
    assert found.text().endswith("Same: NO")


def test_removed_channels_have_to_be_named(masked: Model, compact: Model) -> None:
    with pytest.raises(errors.UsageError, match="say which channels are left"):
        soul_deploy.compare(masked, compact, PIXELS)


# Images, as every function takes them


def test_pixels_arrays_tensors_and_data_are_the_same_images(masked: Model) -> None:
    rule = masked.input_rule
    mean, std = (
        np.asarray(values, np.float32).reshape(3, 1, 1) for values in (rule.mean, rule.std)
    )
    floats = (PIXELS.astype(np.float32) / np.float32(255) - mean) / std
    labels = torch.arange(4)
    split = Split(torch.from_numpy(PIXELS), labels)
    data = Data("mine", split, split, split, tuple("abcd"), Normalization((0.0,) * 3, (1.0,) * 3))
    given: list[Any] = [PIXELS, torch.from_numpy(PIXELS), floats, torch.from_numpy(floats), data]
    given += [floats.astype(np.float64), torch.from_numpy(floats).requires_grad_()]
    counts = [soul_deploy.count(masked, images).totals for images in given]
    assert counts[0]["synops"] > 0
    assert all(found == counts[0] for found in counts)


def test_a_sequence_has_steps_first(masked: Model) -> None:
    frames = np.stack([PIXELS] * STEPS)
    found = soul_deploy.count(masked, frames)
    assert (found.samples, found.time_steps) == (4, STEPS)
    assert found.totals["synops"] == soul_deploy.count(masked, PIXELS).totals["synops"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, *SHAPE), np.nan, np.float32), "not finite"),
        (np.ones((1, *SHAPE), np.int64), "holds int64; needed: floating-point values"),
        (np.zeros(SHAPE, np.float32), r"this network takes \(batch, 3, 8, 10\), or"),
        (np.zeros((1, 3, 8, 9), np.uint8), r"pixels of \(1, 3, 8, 9\) given"),
    ],
)
def test_images_that_mean_nothing_are_refused(masked: Model, images: Any, message: str) -> None:
    with pytest.raises(errors.ValidityError, match=message):
        soul_deploy.count(masked, images)


def test_verify_refuses_another_shape(masked: Model, files: Files) -> None:
    for shape in ((5,), SHAPE, (STEPS + 1, 2, *SHAPE)):
        with pytest.raises(errors.ValidityError, match=r"takes \(batch|a sequence of 4 steps"):
            soul_deploy.verify(masked, files.masked_onnx, np.zeros(shape, np.float32))


def test_another_data_set_is_refused(masked: Model) -> None:
    split = Split(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    data = Data("grey", split, split, split, ("a",), Normalization((0.0,), (1.0,)))
    with pytest.raises(errors.UsageError, match="grey has images of"):
        soul_deploy.count(masked, data)


# count


def test_a_report_has_sums_estimates_and_its_original(masked: Model, compact: Model) -> None:
    labels = torch.from_numpy(PIXELS[:, 0, 0, 0] % 4)
    energy = EnergyChoice(presets=("int8",), memories=())
    found = soul_deploy.count(compact, PIXELS, labels=labels, original=masked, energy=energy)
    document = found.to_dict()
    assert document["original"] == "original"
    assert 0 <= document["dataset"]["correct"] <= document["dataset"]["n_samples"] == 4
    assert [entry["model"] for entry in document["energy"]] == ["ops45_int8"]
    structure = document["structure"]
    assert structure["synapses"] < structure["synapses_dense"]
    alone = soul_deploy.count(compact, PIXELS).to_dict()
    assert alone["totals"] == document["totals"] and alone["original"] == "itself"
    assert alone["structure"]["synapses_dense"] < structure["synapses_dense"]
    assert set(alone["compat"]) == {"neurobench", "upr_sops", "sj_synop", "sj_mac"}


def test_unknown_and_dropped_estimates_are_refused_before_anything_runs() -> None:
    with pytest.raises(errors.UnknownNameError, match="unknown energy preset 'fp8'"):
        EnergyChoice(presets=("fp8",))
    with pytest.raises(errors.UsageError, match=r"'int32' was dropped.* 3\.2 pJ per MAC, 0\.1"):
        EnergyChoice(presets=("int32",))
    with pytest.raises(errors.UnknownNameError, match="unknown memory model 'hbm'"):
        EnergyChoice(memories=("hbm",))


# connectivity


def test_connectivity_is_of_the_original_if_there_is_one(masked: Model, compact: Model) -> None:
    dense = replace(masked, channel_masks={})
    assert soul_deploy.connectivity(dense).share == 1
    found = soul_deploy.connectivity(masked)
    assert 0 < found.share < 1
    assert found.to_dict()["live"] == found.live == sum(layer.live for layer in found.layers)
    smaller = soul_deploy.connectivity(compact, masked)
    assert smaller.dense == found.dense and smaller.live <= found.live
    assert soul_deploy.connectivity(compact).dense < found.dense


# verify


def test_a_file_of_another_network_fails(masked: Model, files: Files) -> None:
    found = soul_deploy.verify(masked, str(files.compact_event), PIXELS)
    assert not found.passed and found.comparison is None and found.problems
    assert found.to_dict()["static"]["passed"] is False
    assert found.text().endswith("Verified: NO")


# bench


def test_what_files_there_are_says_what_is_timed(files: Files) -> None:
    found = soul_deploy.bench([files.compact_onnx, files.compact_event], PIXELS, QUICK)
    assert {entry["engine"] for entry in found.entries} >= {"event", "onnxruntime-dense"}
    assert found.to_dict()["input"] == f"array, static, 4 samples, T = {STEPS}"
    again = found.against(found.to_dict())
    assert [item["speedup"] for item in again.document["comparison"]] == [1] * len(found.entries)
    assert "Against the baseline" in again.text()


def test_files_that_do_not_go_together_are_told(files: Files) -> None:
    with pytest.raises(errors.UsageError, match="at most 1 files of the kind event"):
        soul_deploy.bench([files.compact_event, files.masked_event], PIXELS, QUICK)
    with pytest.warns(errors.NetworkWarning, match="was not made from"):
        config = replace(QUICK, engines=("event",))
        soul_deploy.bench([files.masked, files.compact_event], PIXELS, config)
    with pytest.raises(errors.UnknownNameError, match="unknown engine 'gpu'"):
        soul_deploy.bench([files.compact_event], PIXELS, replace(QUICK, engines=("gpu",)))


def test_a_device_can_bench(files: Files) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from soul_deploy import BenchConfig, bench\n"
        "config = BenchConfig(engines=('event',), fresh=False)\n"
        "print(len(bench([sys.argv[1]], 'random', config).entries))\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(files.compact_event))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
