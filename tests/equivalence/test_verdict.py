"""A comparison of networks that stay silent proves nothing, and says so: three verdicts."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from soul_deploy import ir
from soul_deploy.base.errors import UsageError
from soul_deploy.cli.main import root
from soul_deploy.equivalence.engines import compare
from soul_deploy.equivalence.verdict import Verdict, verdict_of
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.step import export_step
from soul_deploy.export.verify.verify import verify
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo

STEPS = 3
HIDDEN, OUT = "hidden.lif", "out.lif"
KINDS = {"onnx": "net.onnx", "event": "net.event.safetensors", "nir": "net.nir"}


def network(scales: Mapping[str, float], *, generated: int = 0) -> Model:
    """For 8×8 digits: convolution, population, linear, population, readout.

    scales: of the positive weights in front of each population. On pixels that are not black, at 1
    every neuron fires at every step, at 1e-4 none does within T.
    """
    nodes: list[ir.Node] = [
        ir.Input("input", (), (1, 8, 8)),
        ir.Convolution("conv", ("input",), False, None, 1, 2, (3, 3)),
        ir.Population(HIDDEN, ("conv",), ir.NeuronSpec("if"), generated),
        ir.Flatten("flat", (HIDDEN,)),
        ir.Linear("linear", ("flat",), False, None, (2 + generated) * 36, 4),
        ir.Population(OUT, ("linear",), ir.NeuronSpec("if")),
        ir.Readout("head", (OUT,), 4),
    ]
    state = {
        "conv.weight": np.full((2, 1, 3, 3), 8 * scales[HIDDEN], np.float32),
        "linear.weight": np.full((4, (2 + generated) * 36), 8 * scales[OUT], np.float32),
        "head.weight": np.eye(4, dtype=np.float32),
        "head.bias": np.arange(4, dtype=np.float32),
    }
    if generated:
        state[f"{HIDDEN}.pattern"] = np.ones((STEPS, generated), np.float32)
    info = ModelInfo(provenance={"data": "digits"})
    return Model(ir.SpikingGraph(tuple(nodes), STEPS), state, info=info)


FIRING = network({HIDDEN: 1, OUT: 1})
SILENT = network({HIDDEN: 1e-4, OUT: 1e-4})
LAST_SILENT = network({HIDDEN: 1, OUT: 1e-4})
ONES = torch.ones(2, 1, 8, 8)


def invoke(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def saved(folder: Path, model: Model) -> Path:
    path = folder / "net.safetensors"
    save(model, path)
    return path


def exported(folder: Path, model: Model, kind: str = "onnx") -> tuple[Path, Path]:
    """The model file, and what was exported from it without a check."""
    path = saved(folder, model)
    assert invoke("export", kind, path, "--no-check").exit_code == 0
    return path, folder / KINDS[kind]


# The command `verify`.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("model", "silent"),
    [(SILENT, [HIDDEN, OUT]), (LAST_SILENT, [OUT])],
    ids=["nothing fires", "the last population does not fire"],
)
def test_verify_is_inconclusive_where_a_population_never_fires(
    tmp_path: Path, kind: str, model: Model, silent: list[str]
) -> None:
    words = ("verify", *exported(tmp_path, model, kind))
    result = invoke(*words)
    assert result.exit_code == 3, result.output
    named = f"never fired, so untested: {', '.join(silent)}"
    assert result.stdout.splitlines()[-1] == f"Verified: inconclusive: {named}"
    assert "Inconclusive: " in result.stderr
    assert f"{named}. Verify on images on which they fire" in result.stderr
    assert "--allow_silent" in result.stderr
    result = invoke(*words, "--format", "json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3
    assert document["schema"] == "soul-deploy/verify/3"
    assert (document["verdict"], document["passed"]) == ("inconclusive", False)
    assert document["silent_layers"] == silent
    assert document["end_to_end"]["passed"] is True


def test_silent_populations_can_be_allowed_and_are_still_named(tmp_path: Path) -> None:
    words = ("verify", *exported(tmp_path, LAST_SILENT), "--allow-silent")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    last = result.stdout.splitlines()[-1]
    assert last == f"Verified: yes; never fired, so untested: {OUT}"
    document = json.loads(invoke(*words, "--format", "json").stdout)
    assert (document["verdict"], document["passed"]) == ("passed", True)
    assert (document["silent_layers"], document["allow_silent"]) == ([OUT], True)


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_that_fire_are_proven(tmp_path: Path, kind: str) -> None:
    words = ("verify", *exported(tmp_path, FIRING, kind))
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "Verified: yes"
    document = json.loads(invoke(*words, "--format", "json").stdout)
    assert (document["verdict"], document["passed"]) == ("passed", True)
    assert document["silent_layers"] == []


def test_neurons_that_all_fire_at_every_step_are_proven(tmp_path: Path) -> None:
    export_event(FIRING, tmp_path / "net")
    report = verify(FIRING, tmp_path / "net", ONES)
    assert report.end_to_end is not None
    layers = report.end_to_end.layers
    assert [layer.golden_spikes for layer in layers] == [2 * STEPS * 72, 2 * STEPS * 4]
    assert report.verdict is Verdict.PASSED


@pytest.mark.parametrize("allow", [(), ("--allow_silent",)])
def test_a_difference_is_a_failure_whoever_is_silent(tmp_path: Path, allow: tuple[str]) -> None:
    path, artifact = exported(tmp_path, SILENT)
    other = {**SILENT.state, "head.bias": np.zeros(4, np.float32)}
    save(replace(SILENT, state=other), path)
    result = invoke("verify", path, artifact, *allow)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Verified: NO"
    document = json.loads(invoke("verify", path, artifact, *allow, "--format", "json").stdout)
    assert (document["verdict"], document["passed"]) == ("failed", False)


# The exporters.


@pytest.mark.parametrize("kind", KINDS)
def test_exporters_keep_the_file_and_say_so(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, LAST_SILENT)
    result = invoke("export", kind, path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / KINDS[kind]).exists()
    assert f"Verified: inconclusive: never fired, so untested: {OUT}" in result.stdout
    assert "Inconclusive, but kept: " in result.stderr
    assert f"never fired, so untested: {OUT}" in result.stderr
    result = invoke("export", kind, path, "--format", "json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["schema"] == "soul-deploy/export/2"
    assert document["verdict"] == document["verified"]["verdict"] == "inconclusive"
    assert document["verified"]["passed"] is False
    assert "Inconclusive, but kept: " in result.stderr


def test_exporters_are_quiet_where_all_fired(tmp_path: Path) -> None:
    path = saved(tmp_path, FIRING)
    for more, verdict in (((), "passed"), (("--no-check",), None)):
        result = invoke("export", "onnx", path, "--format", "json", *more)
        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout)["verdict"] == verdict


def test_one_image_gives_a_sequence_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that shows its first frame at every step would pass on frames that are all equal."""
    shown: list[Tensor] = []

    def seen(golden: Model, artifact: Path, images: Tensor, **options: Any) -> Any:
        shown.append(images)
        return verify(golden, artifact, images, **options)

    monkeypatch.setattr("soul_deploy.export.verify.verify.verify", seen)
    path = saved(tmp_path, FIRING)
    for more in (("--input_mode", "sequence"), ("--mode", "step")):
        result = invoke("export", "onnx", path, "--samples", 1, *more)
        assert result.exit_code == 0, result.output
        assert "a sequence of different frames each" in result.stdout
        frames = shown.pop()
        assert frames.shape == (STEPS, 1, 1, 8, 8)
        assert not torch.equal(frames[0], frames[1])


# Other ways of proving nothing.


def test_no_samples_are_refused(tmp_path: Path) -> None:
    export_onnx(FIRING, tmp_path / "net.onnx")
    export_event(FIRING, tmp_path / "net.event")
    for name in ("net.onnx", "net.event"):
        with pytest.raises(UsageError, match="no samples to verify on"):
            verify(FIRING, tmp_path / name, ONES[:0])


def test_generated_channels_that_fire_prove_nothing_about_neurons(tmp_path: Path) -> None:
    model = network({HIDDEN: 0, OUT: 1}, generated=1)
    for export in (export_onnx, export_event):
        export(model, tmp_path / "net")
        report = verify(model, tmp_path / "net", ONES)
        assert report.end_to_end is not None
        first = report.end_to_end.layers[0]
        assert (first.golden_spikes, first.driven_spikes) == (2 * STEPS * 36, 0)
        assert report.silent == (HIDDEN,)
        assert report.verdict is Verdict.INCONCLUSIVE


def test_a_population_that_is_masked_whole_is_untested(tmp_path: Path) -> None:
    masks = {HIDDEN: np.zeros((2, 6, 6), np.bool_)}
    model = replace(FIRING, neuron_masks=masks)
    for export in (export_onnx, export_event):
        export(model, tmp_path / "net")
        report = verify(model, tmp_path / "net", ONES)
        assert HIDDEN in report.silent
        assert report.verdict is Verdict.INCONCLUSIVE


def test_neurons_that_an_event_network_leaves_out_prove_nothing_about_it(tmp_path: Path) -> None:
    """Only the first channel is read, and it is silent; the other one fires for nobody."""
    conv, linear = FIRING.state["conv.weight"].copy(), FIRING.state["linear.weight"].copy()
    conv[0], linear[:, 36:] = 0, 0
    model = replace(FIRING, state={**FIRING.state, "conv.weight": conv, "linear.weight": linear})
    export_onnx(model, tmp_path / "net.onnx")
    export_event(model, tmp_path / "net.event")
    assert verify(model, tmp_path / "net.onnx", ONES).silent == (OUT,)
    assert verify(model, tmp_path / "net.event", ONES).silent == (HIDDEN, OUT)


def test_step_files_are_judged_alike(tmp_path: Path) -> None:
    for model, verdict in ((FIRING, Verdict.PASSED), (LAST_SILENT, Verdict.INCONCLUSIVE)):
        export_step(model, tmp_path / "step.onnx", static_input="current")
        assert verify(model, tmp_path / "step.onnx", ONES).verdict is verdict


def test_masked_and_compact_are_judged_alike() -> None:
    assert compare(FIRING, FIRING, ONES).verdict is Verdict.PASSED
    found = compare(LAST_SILENT, LAST_SILENT, ONES)
    assert (found.verdict, found.passed, found.silent) == (Verdict.INCONCLUSIVE, False, (OUT,))
    assert compare(LAST_SILENT, LAST_SILENT, ONES, allow_silent=True).passed
    assert compare(SILENT, FIRING, ONES, allow_silent=True).verdict is Verdict.FAILED


def test_channels_that_are_compared_must_fire_not_those_removed() -> None:
    """The golden's channel 0 fires and is not in the other; channel 1, the one left, is silent."""
    conv = FIRING.state["conv.weight"].copy()
    conv[1] = 0
    golden = replace(FIRING, state={**FIRING.state, "conv.weight": conv})
    nodes = {
        "conv": replace(golden.graph["conv"], channels=1),  # type: ignore[call-arg]
        "linear": replace(golden.graph["linear"], in_features=36),  # type: ignore[call-arg]
    }
    state = {
        **golden.state,
        "conv.weight": conv[1:],
        "linear.weight": golden.state["linear.weight"][:, 36:],
    }
    narrow = Model(golden.graph.with_nodes(nodes), state)
    found = compare(golden, narrow, ONES, {HIDDEN: np.array([1])})
    assert found.end_to_end.layers[0].silent
    assert HIDDEN in found.silent


def test_equal_counts_of_a_silent_network_are_not_called_proof(tmp_path: Path) -> None:
    for model, verdict in ((FIRING, "passed"), (LAST_SILENT, "inconclusive")):
        path = saved(tmp_path, model)
        result = invoke("energy", path, "--samples", 2)
        assert result.exit_code == 0, result.output
        said = f"; inconclusive: never fired, so untested: {OUT}" in result.stdout
        assert said is (verdict == "inconclusive")
        document = json.loads(invoke("energy", path, "--samples", 2, "--format", "json").stdout)
        assert document["check"]["verdict"] == verdict


# The rule itself.


def test_the_verdict() -> None:
    assert verdict_of(True, 4, ()) is Verdict.PASSED
    assert verdict_of(True, 4, ("a",)) is Verdict.INCONCLUSIVE
    assert verdict_of(True, 4, ("a",), allow_silent=True) is Verdict.PASSED
    assert verdict_of(True, 0, (), allow_silent=True) is Verdict.INCONCLUSIVE
    for silent in ((), ("a",)):
        for allowed in (False, True):
            assert verdict_of(False, 4, silent, allow_silent=allowed) is Verdict.FAILED


def test_help_tells_the_exit_codes() -> None:
    text = " ".join(invoke("--help").stdout.split())
    for code in ("0 done", "1 an operation", "2 a given value", "3 inconclusive"):
        assert code in text
    assert "with 3, inconclusive" in " ".join(invoke("verify", "--help").stdout.split())
