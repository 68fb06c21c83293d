"""The engines that `bench` times: each loads one file and runs batches.

The engines that need PyTorch stand outside this package and are found by dotted name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from soul_deploy.base import Array, errors, file_kinds, files, lazy

ORT_FAILURES = "InvalidProtobuf InvalidGraph Fail InvalidArgument NotImplemented RuntimeException"


class Engine(Protocol):
    """One way to run a network.

    imports  modules that `load` needs; importing them is timed apart
    """

    imports: tuple[str, ...]

    def load(self) -> None:
        """Read the file and get ready. Raises MissingFileError, FileFormatError."""

    def infer(self, x: Array) -> Array:
        """Class scores (B, classes) of a float32 batch (B, C, H, W) or (T, B, C, H, W)."""


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU: sequential execution, `threads` inside an operator, one between.

    Its worker threads stop spinning when a run ends, so that they don't slow the next engine.
    """

    imports = ("onnxruntime",)

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.session: Any = None

    def load(self) -> None:
        """Create the session. Raises MissingFileError, FileFormatError."""
        self.session = open_engine_session(self.path, self.threads)
        self.input_name = self.session.get_inputs()[0].name
        self.shape = self.session.get_inputs()[0].shape  # sides of any length by name

    def infer(self, x: Array) -> Array:
        """As Engine. Raises ValidityError for a sequence where an image is expected, or so."""
        fixed = tuple(side if isinstance(side, int) else None for side in self.shape)
        sides = zip(fixed, x.shape, strict=False)
        if x.ndim != len(fixed) or any(side not in (None, given) for side, given in sides):
            taken = ", ".join(map(str, self.shape))
            raise errors.ValidityError(
                f"{self.path} takes ({taken}), but the input is {x.shape}; export it with the "
                "other input mode or batch, or give other input"
            )
        result: Array = self.session.run(None, {self.input_name: x})[0]
        return result


def open_engine_session(path: Path, threads: int) -> Any:
    """An onnxruntime session. Raises MissingFileError, FileFormatError, UsageError."""
    files.require_file(path)
    ort = lazy.load_object("onnxruntime:InferenceSession", "running an ONNX file")
    options = lazy.load_object("onnxruntime:SessionOptions", "running an ONNX file")()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = import_module("onnxruntime").ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    failures = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return ort(str(path), options, providers=["CPUExecutionProvider"])
    except tuple(getattr(failures, name) for name in ORT_FAILURES.split()) as error:
        found = file_kinds.kind_of(path)
        if found not in (None, "onnx"):
            raise file_kinds.wrong_kind(path, found, file_kinds.KINDS["onnx"].what) from error
        first = str(error).strip().splitlines()[0]
        text = f"{path} is not an ONNX file that can be run ({first})"
        raise errors.FileFormatError(text) from error


class EventEngine:
    """The event runtime on `threads`: samples side by side, or the layers of a single one split."""

    imports = ("soul_deploy.runtime.engine.network",)

    def __init__(self, path: Path, threads: int, forms: Mapping[str, str] | None = None) -> None:
        """forms: how some layers' synapses run, by name, as `Network` takes them."""
        self.path, self.threads, self.forms = path, threads, forms
        self.network: Any = None

    def load(self) -> None:
        """Read and check the event file. Raises MissingFileError, FileFormatError, LimitError."""
        network = import_module("soul_deploy.runtime.engine.network")
        self.network = network.load(self.path, self.threads, forms=self.forms)

    def infer(self, x: Array) -> Array:
        scores: Array = self.network.run(x)
        return scores


@dataclass(frozen=True)
class EngineKind:
    """What an engine is called, which network's file it takes, and where its class stands.

    network  "dense" or "compact"; None: either
    file     "model", "onnx" or "event"
    int8     whether the ONNX file is quantised first, calibrated on the input that is given
    asked    timed only when it is named
    """

    network: str | None
    file: str
    target: str
    int8: bool = False
    asked: bool = False


_FIXED = "soul_deploy.runtime.bench.fixed_point"
_RIVALS = "soul_deploy.runtime.bench.rivals"
_TORCH = "soul_deploy.model.torch_engine:TorchEngine"
_ONNX_RUNTIME = "soul_deploy.runtime.bench.engines:OnnxRuntimeEngine"
ENGINES: Mapping[str, EngineKind] = {
    "pytorch-dense": EngineKind("dense", "model", _TORCH),
    "pytorch-compact": EngineKind("compact", "model", _TORCH),
    "onnxruntime-dense": EngineKind("dense", "onnx", _ONNX_RUNTIME),
    "onnxruntime-compact": EngineKind("compact", "onnx", _ONNX_RUNTIME),
    "scipy-csr": EngineKind(None, "event", "soul_deploy.runtime.bench.scipy_engine:ScipyEngine"),
    "event": EngineKind(None, "event", "soul_deploy.runtime.bench.engines:EventEngine"),
    "event-int8": EngineKind(None, "event", f"{_FIXED}:FixedEventEngine", asked=True),
} | {
    f"{name}-{network}": EngineKind(network, "onnx", target, int8=name.endswith("int8"), asked=True)
    for name, target in (
        ("onnxruntime-int8", _ONNX_RUNTIME),
        ("openvino-f32", f"{_RIVALS}:OpenVinoFloat32"),
        ("openvino-bf16", f"{_RIVALS}:OpenVinoBfloat16"),
        ("openvino-int8", f"{_RIVALS}:OpenVinoEngine"),
    )
    for network in ("dense", "compact")
}


@dataclass(frozen=True)
class EngineSpec:
    """An engine and the file it runs.

    network  "dense" or "compact": engines of the same network must agree
    forms    of the event runtime alone: how some layers' synapses run, by name
    """

    name: str
    network: str
    target: str
    path: Path
    forms: Mapping[str, str] = field(default_factory=dict, hash=False)

    def create(self, threads: int) -> Engine:
        """The engine, not loaded. Raises UsageError if its packages are missing."""
        kind = lazy.load_object(self.target, f"the engine {self.name}")
        more = {"forms": self.forms} if self.forms else {}
        engine: Engine = kind(self.path, threads, **more)
        return engine
