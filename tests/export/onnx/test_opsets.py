"""Opsets that the installed onnx or ONNX Runtime does not know are refused in words."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from test_cli_export import digits_model

from soul_deploy.base.errors import UsageError
from soul_deploy.cli.main import root
from soul_deploy.export.onnx.model import build_onnx
from soul_deploy.export.onnx.opsets import OPSETS, newest_opened, opset_of
from soul_deploy.export.onnx.step import build_currents, build_step
from soul_deploy.model.file import save

SESSION = onnxruntime.InferenceSession


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(digits_model(), path)
    return path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def old_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnx 1.17, the oldest that setup.cfg allows: opsets up to 22, file formats up to 10."""
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 22)
    monkeypatch.setattr(onnx, "IR_VERSION", 10)
    monkeypatch.setattr(onnx, "__version__", "1.17.0")


def old_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime 1.20: it opens opsets up to 21."""

    def opened(model: bytes, *rest: Any, **options: Any) -> Any:
        if opset_of(onnx.load_from_string(model)) > 21:
            raise InvalidArgument("Opset 22 is under development")
        return SESSION(model, *rest, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)


def left(model: Path) -> set[str]:
    return {entry.name for entry in model.parent.iterdir()}


@pytest.mark.parametrize(("opset", "needed"), [(23, "1.18"), (24, "1.19")])
@pytest.mark.parametrize("mode", ["sequence", "step"])
def test_an_opset_that_onnx_does_not_know_is_refused(
    opset: int, needed: str, mode: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_onnx(monkeypatch)
    for check in ("--check", "--no-check"):
        result = invoke("export", "onnx", model, "--opset", opset, "--mode", mode, check)
        assert result.exit_code == 2, result.output
        assert result.stderr == (
            f"Error: opset {opset} given; the installed onnx 1.17.0 knows opsets up to 22. Give "
            f"opset 22 or less, or install onnx>={needed}\n"
        )
        assert left(model) == {model.name}
    assert invoke("export", "onnx", model, "--opset", 22, "--mode", mode).exit_code == 0


def test_an_opset_that_onnx_runtime_does_not_open_is_refused_before_any_work(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert newest_opened() == OPSETS[-1]
    old_runtime(monkeypatch)
    assert newest_opened() == 21
    result = invoke("export", "onnx", model, "--opset", 22, "--data_dir", "/nowhere")
    assert result.exit_code == 2
    assert "onnxruntime " in result.stderr
    assert "runs opsets up to 21. Give opset 21 or less, or install a newer" in result.stderr
    assert left(model) == {model.name}
    assert invoke("export", "onnx", model, "--opset", 22, "--no-check").exit_code == 0
    result = invoke("verify", model, model.with_suffix(".onnx"))
    assert result.exit_code == 1
    assert "net.onnx is of opset 22; the installed onnxruntime" in result.stderr
    assert "Install a newer onnxruntime, or export with a lower opset" in result.stderr
    assert invoke("export", "onnx", model, "--opset", 21, "--samples", 2).exit_code == 0


def test_both_too_old(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_onnx(monkeypatch)
    old_runtime(monkeypatch)
    text = invoke("export", "onnx", model, "--opset", 24).stderr
    assert "the installed onnx 1.17.0 knows opsets up to 22 and onnxruntime " in text
    assert "Give opset 21 or less, or install onnx>=1.19 and a newer onnxruntime" in text


def test_a_file_that_is_newer_than_onnx_is_not_called_damaged(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model.with_suffix(".onnx")
    assert invoke("export", "onnx", model, "--opset", 24, "--no-check").exit_code == 0
    old_onnx(monkeypatch)
    for words in (("inspect", path), ("verify", model, path)):
        result = invoke(*words)
        assert result.exit_code == 1
        assert "is of opset 24 in file format" in result.stderr
        assert (
            "the installed onnx 1.17.0 knows opsets up to 22 and formats up to 10" in result.stderr
        )


def test_functions_refuse_too(monkeypatch: pytest.MonkeyPatch) -> None:
    old_onnx(monkeypatch)
    for build in (build_onnx, build_step, build_currents):
        with pytest.raises(UsageError, match=r"Give opset 22 or less, or install onnx>=1\.18"):
            build(digits_model(), opset=23)
