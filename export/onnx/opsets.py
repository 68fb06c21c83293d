"""Versions of ONNX's operators: which are written, and which the installed packages know.

onnx builds a file of an opset that it does not know without a word, unchecked; ONNX Runtime refuses
to open it. So both are asked before anything is written.
"""

from importlib.metadata import version
from pathlib import Path

import onnx
from onnx import ModelProto, OperatorSetIdProto, TensorProto, helper

from soul_deploy.base.errors import FileFormatError, UsageError

OPSETS = range(17, 25)
ONNX_WITH = {23: "1.18", 24: "1.19"}  # the first onnx that knows an opset
LEAST_ONNX = "1.17"  # as setup.cfg says; it knows those before
LEAST_IR = 8  # the first format of files with functions


def opset_of(model: ModelProto) -> int:
    """The version of the standard operator set."""
    return next((o.version for o in model.opset_import if o.domain == ""), 0)


def ir_version_for(opsets: list[OperatorSetIdProto]) -> int:
    """The lowest version of the file format for these, so that older readers open it."""
    return max(LEAST_IR, helper.find_min_ir_version_for(opsets, ignore_unknown=True))


def require_opset(opset: int, *, run: bool = False) -> None:
    """Raise UsageError unless files of this opset can be written, and opened if they shall `run`.

    The message names the newest opset that the installed packages know, and what to install.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} given; supported: {OPSETS[0]} to {OPSETS[-1]}")
    known = onnx.defs.onnx_opset_version()
    newest, short, install = min(known, OPSETS[-1]), [], []
    if known < opset:
        short.append(f"onnx {onnx.__version__} knows opsets up to {known}")
        install.append(f"onnx>={ONNX_WITH.get(opset, LEAST_ONNX)}")
    if run and not _opens(opset):
        opened = newest_opened()
        newest = min(newest, opened)
        short.append(f"onnxruntime {version('onnxruntime')} runs opsets up to {opened}")
        install.append("a newer onnxruntime")
    if short:
        raise UsageError(
            f"opset {opset} given; the installed {' and '.join(short)}. Give opset {newest} or "
            f"less, or install {' and '.join(install)}"
        )


def require_readable(model: ModelProto, path: Path) -> None:
    """Raise FileFormatError if the file is newer than the installed onnx, which cannot check it."""
    known = onnx.defs.onnx_opset_version()
    if opset_of(model) > known or model.ir_version > onnx.IR_VERSION:
        raise FileFormatError(
            f"{path} is of opset {opset_of(model)} in file format {model.ir_version}; the "
            f"installed onnx {onnx.__version__} knows opsets up to {known} and formats up to "
            f"{onnx.IR_VERSION}. Install a newer onnx, or export with a lower opset"
        )


def require_opened(model: ModelProto, path: Path) -> None:
    """Raise FileFormatError if the installed ONNX Runtime opens no file of this opset."""
    if not _opens(opset_of(model)):
        raise FileFormatError(
            f"{path} is of opset {opset_of(model)}; the installed onnxruntime "
            f"{version('onnxruntime')} runs opsets up to {newest_opened()}. Install a newer "
            "onnxruntime, or export with a lower opset"
        )


def newest_opened() -> int:
    """The newest opset whose files the installed ONNX Runtime opens."""
    return next((opset for opset in reversed(OPSETS) if _opens(opset)), OPSETS[0] - 1)


def _opens(opset: int) -> bool:
    """Whether the smallest file of this opset is opened: ONNX Runtime doesn't say what it knows."""
    # Imported here, since `inspect` reads ONNX files without ONNX Runtime.
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    given, found = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [found])
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version_for(opsets))
    refusals = (
        *(failures.InvalidArgument, failures.InvalidGraph),
        *(failures.Fail, failures.NotImplemented),
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is said by us
    try:
        data, cpu = model.SerializeToString(), ["CPUExecutionProvider"]
        onnxruntime.InferenceSession(data, options, providers=cpu)
    except refusals:
        return False
    return True
