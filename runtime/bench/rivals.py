"""What else a user would run an ONNX file with: OpenVINO in three precisions, int8 networks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soul_deploy.base import Array, errors, files, lazy
from soul_deploy.runtime.bench.engines import open_engine_session
from soul_deploy.runtime.bench.signal_stack import kept_signal_stack

WEIGHED = ("Conv", "Gemm", "MatMul")
"""Operations whose weights and inputs become int8; neurons stay in float32."""


class OpenVinoEngine:
    """OpenVINO on the CPU, one stream of `threads`; precision: as it names it, None: its choice."""

    imports = ("openvino",)
    precision: str | None = None

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.request: Any = None

    def load(self) -> None:
        """Compile the network. Raises MissingFileError, FileFormatError, UsageError."""
        files.require_file(self.path)
        core = lazy.load_object("openvino:Core", "running a file with OpenVINO")()
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = self.precision
        try:
            with kept_signal_stack():
                compiled = core.compile_model(str(self.path), "CPU", settings)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            text = f"{self.path} cannot be run by OpenVINO ({first})"
            raise errors.FileFormatError(text) from error
        self.request = compiled.create_infer_request()

    def infer(self, x: Array) -> Array:
        """As Engine. Raises ValidityError for an input that the network does not take."""
        try:
            found: Array = self.request.infer([x])[0]
        except RuntimeError as error:
            raise errors.ValidityError(f"{self.path} does not take an input {x.shape}") from error
        return found.copy()  # the next inference writes over it


class OpenVinoFloat32(OpenVinoEngine):
    """In float32 whatever the processor offers."""

    precision = "f32"


class OpenVinoBfloat16(OpenVinoEngine):
    """In bfloat16, which processors without it imitate slowly."""

    precision = "bf16"


class _Batches:
    """Calibration inputs, as ONNX Runtime's quantisation asks for them."""

    def __init__(self, name: str, batches: Sequence[Array]) -> None:
        self._left: Iterator[dict[str, Array]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        """The next, or None at the end."""
        return next(self._left, None)


def quantise(path: Path, batches: Sequence[Array], folder: Path) -> Path:
    """The int8 form of an ONNX file, in `folder`: static, QDQ, weights by output channel, without
    zero points: with them OpenVINO leaves most convolutions in float32.

    batches: inputs to calibrate on, each as the network takes it. Raises MissingFileError,
    FileFormatError, UsageError without ONNX Runtime's quantisation.
    """
    target = folder / f"{path.stem}.int8.onnx"
    if target.exists():
        return target
    (taken,) = open_engine_session(path, 1).get_inputs()
    purpose = "an int8 network"
    quantize = lazy.load_object("onnxruntime.quantization:quantize_static", purpose)
    reader = lazy.load_object("onnxruntime.quantization:CalibrationDataReader", purpose)
    batches_of = type("Batches", (_Batches, reader), {})
    quantize(
        *(str(path), str(target), batches_of(taken.name, batches)),
        op_types_to_quantize=list(WEIGHED),
        per_channel=True,
        activation_type=lazy.load_object("onnxruntime.quantization:QuantType", purpose).QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return target
