"""`verify` of ONNX files that another tool has written anew: running them decides, and is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from deployed import small_model
from onnx import ModelProto, compose, inliner, numpy_helper, version_converter

from soul_deploy.base.errors import FileFormatError, ValidityError
from soul_deploy.cli.main import root
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.onnx.model import build_onnx, export_onnx
from soul_deploy.export.onnx.step import build_step
from soul_deploy.export.verify.onnx_static import StaticCheck, check_static
from soul_deploy.export.verify.verify import VerifyReport, verify
from soul_deploy.model.file import save
from soul_deploy.model.model import Model

MODEL = small_model()
X = torch.randn(5, *MODEL.input_shape, generator=torch.Generator().manual_seed(2))
FRAMES = torch.stack([X.roll(t, dims=3) for t in range(MODEL.graph.time_steps)])
BOTH = ("forced", "end_to_end")


def inlined() -> ModelProto:
    return inliner.inline_local_functions(build_onnx(MODEL, functions=True))


def renamed(built: ModelProto) -> ModelProto:
    """Everything by another name, inputs and outputs too."""
    return compose.add_prefix(built, "theirs/")


def stored(file: ModelProto, weight: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(t for t in file.graph.initializer if t.name.endswith(weight))
    return found


def changed(file: ModelProto, weight: str = "5.weight") -> ModelProto:
    """The weights of one layer have another sign."""
    tensor = stored(file, weight)
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return file


def verified(folder: Path, file: ModelProto, model: Model = MODEL, **how: Any) -> VerifyReport:
    onnx.save(file, folder / "theirs.onnx")
    images = how.pop("images", X)
    return verify(model, folder / "theirs.onnx", images, **how)


def test_an_inlined_file_is_judged_by_what_it_does(tmp_path: Path) -> None:
    report = verified(tmp_path, inlined())
    assert report.passed
    assert report.problems == () and report.carried_by == BOTH
    assert "node '2/0/charge.0': missing" in report.incomparable
    text = report.text().splitlines()
    assert (
        "1 static: not comparable, since names or structure are not as they were exported" in text
    )
    last = "Verified: yes; by check 2 (layer by layer) and check 3 (end to end)"
    assert text[-1] == last
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (document["verdict"], document["carried_by"]) == ("passed", list(BOTH))
    assert (document["static"]["passed"], document["static"]["comparable"]) == (None, False)
    assert document["forced"]["passed"] and document["end_to_end"]["flipped"] == 0
    found = report.comparison
    assert found is not None
    wrong = replace(found, forced=replace(found.forced, logit_difference=1.0))
    assert replace(report, comparison=wrong).carried_by == ("forced",)
    assert replace(report, comparison=wrong).verdict is Verdict.FAILED


def test_images_that_the_file_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidityError, match="this file takes static images"):
        verified(tmp_path, inlined(), images=FRAMES)


@pytest.mark.parametrize("weight", ["0.weight", "5.weight", "7.weight"])
def test_an_inlined_file_with_another_weight_fails(weight: str, tmp_path: Path) -> None:
    report = verified(tmp_path, changed(inlined(), weight))
    assert report.verdict is Verdict.FAILED
    assert set(report.carried_by) <= set(BOTH) and report.carried_by
    assert "static" not in report.carried_by and report.problems == ()
    assert report.incomparable[0] == f"initializer '{weight}' holds other numbers"
    assert "Verified: NO; by check" in report.text()
    assert report.to_dict()["static"]["passed"] is None


FORMS: dict[str, tuple[Callable[..., ModelProto], dict[str, Any]]] = {
    "static": (build_onnx, {}),
    "sequence": (build_onnx, {"input_mode": "sequence"}),
    "spikes": (build_onnx, {"outputs": "spikes"}),
    "fixed": (build_onnx, {"fixed_batch": 2}),
    "step": (build_step, {}),
    "currents": (build_step, {"static_input": "current"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_any_name_of_ours_is_judged_by_its_ends(form: str, tmp_path: Path) -> None:
    build, how = FORMS[form]
    images = FRAMES if form == "sequence" else X
    report = verified(tmp_path, renamed(build(MODEL, **how)), images=images)
    assert report.passed, report.text()
    assert report.carried_by == ("end_to_end",)
    assert "2 layer by layer: not run, 2 cannot be cut out of the file" in report.text()
    assert report.end_to_end is not None and report.end_to_end.samples == 5
    assert report.end_to_end.spikes_compared is (form == "spikes")
    assert ("spikes not compared" in report.text()) is (form != "spikes")
    assert report.to_dict()["forced"] is None
    wrong = verified(tmp_path, renamed(changed(build(MODEL, **how))), images=images)
    assert wrong.verdict is Verdict.FAILED
    assert wrong.carried_by == ("end_to_end",)


def test_a_renamed_input_is_not_a_swapped_one(tmp_path: Path) -> None:
    """Another name is found by its place; names of ours at other places are a fault."""
    file = build_onnx(MODEL)
    file.graph.input[0].name = "pixels"
    for node in file.graph.node:
        node.input[:] = ["pixels" if name == "input" else name for name in node.input]
    report = verified(tmp_path, file)
    assert report.passed and report.carried_by == BOTH
    assert report.incomparable == ("'input' is called 'pixels'",)
    step = build_step(MODEL)
    one, two = step.graph.input[1], step.graph.input[2]
    one.name, two.name = two.name, one.name
    report = verified(tmp_path, step)
    assert report.verdict is Verdict.FAILED and "a file of this model should" in report.problems[0]


def test_silent_populations_stay_untested(tmp_path: Path) -> None:
    state = {n: a * 0 if n.startswith(("0.", "1.")) else a for n, a in MODEL.state.items()}
    quiet = replace(MODEL, state=state)
    for file in (renamed(build_onnx(quiet)), inlined_of(quiet)):
        report = verified(tmp_path, file, quiet)
        assert report.verdict is Verdict.INCONCLUSIVE
        assert report.silent[0] == "2"
        assert verified(tmp_path, file, quiet, allow_silent=True).passed


def inlined_of(model: Model) -> ModelProto:
    return inliner.inline_local_functions(build_onnx(model, functions=True))


def test_a_file_without_metadata_is_not_comparable(tmp_path: Path) -> None:
    file = build_onnx(MODEL)
    del file.metadata_props[:]
    report = verified(tmp_path, file)
    assert report.passed and report.carried_by == BOTH
    assert report.incomparable == ("the file has no metadata of soul-deploy",)


def test_a_part_that_is_missing_shows_in_its_layer(tmp_path: Path) -> None:
    """The bias of a linear layer is gone, and its name with it."""
    file = build_onnx(MODEL)
    node = next(n for n in file.graph.node if n.op_type == "Gemm")
    file.graph.initializer.remove(stored(file, node.input[2]))
    del node.input[2]
    report = verified(tmp_path, file)
    assert report.incomparable == ("initializer '5.bias': missing",)
    assert report.verdict is Verdict.FAILED
    assert "forced" in report.carried_by


@pytest.mark.parametrize("opset", [20, 22])
def test_a_converted_file_is_still_compared(opset: int, tmp_path: Path) -> None:
    """The converter drops what viewers show and keeps names; numbers of ours that differ fail."""
    forms: list[dict[str, Any]] = [{}, {"input_mode": "sequence"}]
    for form in forms:
        converted = version_converter.convert_version(build_onnx(MODEL, **form), opset)
        images = FRAMES if form else X
        report = verified(tmp_path, converted, images=images)
        assert report.passed and report.carried_by == ("static", *BOTH), report.text()
        wrong = verified(tmp_path, changed(converted), images=images)
        assert wrong.verdict is Verdict.FAILED and wrong.carried_by == ("static",)


def test_a_conversion_that_writes_nodes_anew_is_not_comparable(tmp_path: Path) -> None:
    """As ours but for one default spelt out, in a file that says another opset than it has."""
    file = build_onnx(MODEL)
    node = next(n for n in file.graph.node if n.op_type == "MaxPool")
    node.attribute.append(onnx.helper.make_attribute("ceil_mode", 0))
    assert check_static(MODEL, file) == StaticCheck(("node '3' is not what the graph says",))
    next(entry for entry in file.metadata_props if entry.key == "opset").value = "17"
    report = verified(tmp_path, file)
    assert report.passed and report.carried_by == BOTH
    assert report.incomparable[0] == "converted from opset 17 to 18"
    assert verified(tmp_path, changed(file)).carried_by == ("static",)


def test_comments_and_other_spellings_of_numbers_are_no_difference(tmp_path: Path) -> None:
    file = build_onnx(MODEL)
    for node in file.graph.node:
        node.doc_string = "seen"
        node.ClearField("metadata_props")
    tensor = stored(file, "5.weight")
    array = numpy_helper.to_array(tensor)
    spelt = onnx.helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1))
    assert spelt.float_data and not spelt.raw_data
    tensor.CopyFrom(spelt)
    report = verified(tmp_path, file)
    assert report.passed and report.carried_by == ("static", *BOTH)


def test_a_file_that_does_not_run_fails(tmp_path: Path) -> None:
    """A converter that forgets the functions that the file calls."""
    converted = version_converter.convert_version(build_onnx(MODEL, functions=True), 20)
    assert not converted.functions
    report = verified(tmp_path, converted)
    assert report.verdict is Verdict.FAILED
    assert report.comparison is None and report.carried_by == ("end_to_end",)
    assert "2 layer by layer, 3 end to end: FAILED, the file does not run as" in report.text()
    assert "is not a registered function/op" in report.to_dict()["stopped"]


def test_another_network_fails(tmp_path: Path) -> None:
    """Of other sizes: what it takes and yields says so, or its metadata, or its layers."""
    longer = replace(small_model(5), info=MODEL.info)
    for file in (build_onnx(longer), build_step(longer)):
        report = verified(tmp_path, file)
        assert report.verdict is Verdict.FAILED and report.carried_by == ("static",)
        assert "metadata time_steps is '5', the graph says '3'" in report.problems
    nameless = build_onnx(longer, input_mode="sequence")
    del nameless.metadata_props[:]
    report = verified(tmp_path, nameless, images=FRAMES)
    assert report.verdict is Verdict.FAILED
    assert "the file takes [('input', (5, 'batch'" in report.problems[0]
    nameless = build_onnx(longer)
    del nameless.metadata_props[:]
    report = verified(tmp_path, nameless)
    assert report.verdict is Verdict.FAILED and "static" not in report.carried_by


def test_numbers_in_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # onnx looks for them here
    onnx.save(build_onnx(MODEL), "theirs.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(FileFormatError, match="numbers of this ONNX file lie in other files"):
        verify(MODEL, "theirs.onnx", X)


@pytest.mark.parametrize("form", [*FORMS, "functions"])
def test_a_fixed_batch_runs_any_number_of_samples(form: str, tmp_path: Path) -> None:
    """5 samples in calls of 2, and of 8: of whole runs, of layers, and of counts."""
    build, how = FORMS.get(form, (build_onnx, {"functions": True}))
    for size in (2, 8):
        file = build(MODEL, **(how | {"fixed_batch": size}))
        images = FRAMES if form == "sequence" else X
        report = verified(tmp_path, file, images=images)
        assert report.passed and report.carried_by == ("static", *BOTH), report.text()
        assert report.end_to_end is not None and report.end_to_end.samples == 5
        assert report.end_to_end.counted is (form == "spikes")
        assert verified(tmp_path, changed(file), images=images).verdict is Verdict.FAILED


# The commands.


def invoke(*words: object) -> Any:
    return CliRunner().invoke(root, [str(word) for word in words])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(MODEL, path)
    return path


def test_exit_codes_are_those_of_the_verdict(model: Path, tmp_path: Path) -> None:
    words = ("verify", model, tmp_path / "theirs.onnx", "--input", "random", "--samples", 4)
    onnx.save(inlined(), tmp_path / "theirs.onnx")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("Verified: yes; by check 2")
    onnx.save(renamed(changed(build_step(MODEL))), tmp_path / "theirs.onnx")
    result = invoke(*words, "--format", "json")
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert (document["verdict"], document["carried_by"]) == ("failed", ["end_to_end"])


def test_the_form_is_chosen_by_options(model: Path) -> None:
    target = model.with_suffix(".onnx")
    words = ("export", "onnx", model, "--input", "random", "--samples", 5)
    assert invoke(*words).exit_code == 0
    flat = onnx.load(target)
    assert not flat.functions and len(flat.graph.node) > 50
    assert invoke(*words, "--functions", "--fixed_batch", 3).exit_code == 0
    file = onnx.load(target)
    assert file.functions and len(file.graph.node) < 30
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    step = ("--mode", "step", "--static_input", "current", "--fixed_batch", 2)
    assert invoke(*words, *step).exit_code == 0
    for path in (target, target.with_suffix(".currents.onnx")):
        values = onnx.load(path).graph.input
        assert {v.type.tensor_type.shape.dim[0].dim_value for v in values} == {2}
    result = invoke(*words, "--fixed-batch", 0)
    assert (result.exit_code, "fixed_batch 0 must be at least 1" in result.stderr) == (2, True)


def test_an_export_of_its_own_has_to_be_comparable(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(_: Model, path: Path, **__: object) -> None:
        onnx.save(renamed(build_onnx(MODEL)), path)

    monkeypatch.setattr("soul_deploy.export.onnx.model.export_onnx", other)
    result = invoke("export", "onnx", model, "--input", "random")
    assert result.exit_code == 1
    assert "it was not kept" in result.stderr and "not comparable" in result.stderr
    assert not model.with_suffix(".onnx").exists()


def test_both_forms_from_python(tmp_path: Path) -> None:
    flat = export_onnx(MODEL, tmp_path / "flat.onnx")
    calls = export_onnx(MODEL, tmp_path / "calls.onnx", functions=True, fixed_batch=5)
    assert not flat.functions and calls.functions
    for name in ("flat.onnx", "calls.onnx"):
        assert verify(MODEL, tmp_path / name, X).carried_by == ("static", *BOTH)
