"""A file that is replaced by rename while it is read: what is loaded is one of the two, whole.

The replacement is put at every moment at which the reader can look at the path: before each call
that it makes. Two intact files are told apart by a key; anything else is an error.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peak
import pytest
import torch
from chains import ChainSpec, ConvSpec, build
from deployed import SHAPE, small_model
from places import ROOT
from safetensors.numpy import save_file

from soul_deploy.base.files import read_tensors, write_tensors
from soul_deploy.base.pixel_rule import InputRule
from soul_deploy.cli.checking import Source
from soul_deploy.export.event.build import export_event
from soul_deploy.export.nir import package as nir_import
from soul_deploy.export.nir.read import read_nir
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.reader import read_onnx
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, load_state_dict, save
from soul_deploy.model.model import Model
from soul_deploy.runtime.bench.report import SCHEMA, load_baseline
from soul_deploy.runtime.engine import network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.io.images import read_array
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

Make = Callable[[Path, float], None]
Read = Callable[[Path], Any]


def scaled(factor: float) -> Model:
    """The same network with other weights, and, by its factor, other sizes in the file."""
    model = small_model()
    state = {k: (v * factor if v.dtype.kind == "f" else v) for k, v in model.state.items()}
    made = {"factor": factor, "note": "x" * int(100 * factor)}
    info = type(model.info)(provenance=made)
    return Model(model.graph, state, model.channel_masks, info)


def state_of(factor: float) -> dict[str, Any]:
    return {k: torch.from_numpy(np.array(v)) for k, v in scaled(factor).state.items()}


def make_pickle(path: Path, factor: float, archive: bool) -> None:
    torch.save(state_of(factor), path, _use_new_zipfile_serialization=archive)


def make_nir(path: Path) -> None:
    """NIR knows neither max pooling nor soft reset."""
    neuron = NeuronSpec()
    convolution = ConvSpec(3, (3, 3), (2, 2), (1, 1), (1, 1), 1, True, True, neuron, None)
    spec = ChainSpec((1, 6, 5), 2, 2, (convolution,), True, (), 3, 0, True, False, 7)
    export_nir(build(spec), path)


def make_array(path: Path, factor: float) -> None:
    np.save(path, np.full((int(factor), 3, 4, 4), factor, np.float32))


def make_baseline(path: Path, factor: float) -> None:
    entry = {"engine": "event", "threads": 1, "batch_size": 1, "p50_ms": factor}
    path.write_text(json.dumps({"schema": SCHEMA, "entries": [entry] * int(factor)}))


def make_checkpoint(path: Path, factor: float) -> None:
    array = np.full(int(factor) * 10, factor, np.float32)
    write_checkpoint(path, Checkpoint({"factor": factor}, {}, "train", {"x": array}))


def make_model(path: Path, factor: float) -> None:
    save(scaled(factor), path)


def make_event(path: Path, factor: float) -> None:
    export_event(scaled(factor), path)


def make_onnx(path: Path, factor: float) -> None:
    export_onnx(scaled(factor), path)


def bytes_of(tensors: Any) -> str:
    """A digest of a dict of arrays."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode() + np.asarray(tensors[name], order="C").tobytes())
    return state.hexdigest()


RULE = InputRule((3, 4, 4), 2, (), (), resize=False)
KINDS: dict[str, tuple[str, Make, Read]] = {
    "event": (
        ".safetensors",
        make_event,
        lambda p: [layer.synapses.rows.weight.sum() for layer in load_event_network(p).projected],
    ),
    "network": (
        ".safetensors",
        make_event,
        lambda p: network.load(p, 1).run(np.ones((1, *SHAPE), np.float32)).tobytes(),
    ),
    "model": (".safetensors", make_model, lambda p: bytes_of(load(p).state)),
    "source": (
        ".safetensors",
        make_model,
        lambda p: (bytes_of((s := Source.load(p, None)).model.state), s.sha256),
    ),
    "checkpoint": (
        ".safetensors",
        make_checkpoint,
        lambda p: ((c := read_checkpoint(p)).settings["factor"], bytes_of(c.state)),
    ),
    "archive": (
        ".pt",
        lambda p, f: make_pickle(p, f, True),
        lambda p: bytes_of(load_state_dict(p)),
    ),
    "legacy": (
        ".pt",
        lambda p, f: make_pickle(p, f, False),
        lambda p: bytes_of(load_state_dict(p)),
    ),
    "bare": (
        ".safetensors",
        lambda p, f: save_file({k: v.numpy() for k, v in state_of(f).items()}, p),
        lambda p: bytes_of(load_state_dict(p)),
    ),
    "onnx": (".onnx", make_onnx, lambda p: read_onnx(p).SerializeToString()),
    "inspected model": (".safetensors", make_model, describe_file),
    "inspected event": (".safetensors", make_event, describe_file),
    "inspected onnx": (".onnx", make_onnx, describe_file),
    "array": (".npy", make_array, lambda p: read_array(p, RULE).values.tobytes()),
    "baseline": (".json", make_baseline, load_baseline),
}


class Moments:
    """Counts the calls that a reader makes, and does something before one of them."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.seen = at, act, 0

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event not in ("call", "c_call") or not self._ours(frame, event):
            return
        self.seen += 1
        if self.seen == self.at:
            sys.setprofile(None)
            self.act()
            sys.setprofile(self)

    def _ours(self, frame: Any, event: str) -> bool:
        """Calls out of our own functions, and those of our own functions."""
        caller = frame if event == "c_call" else frame.f_back
        while caller is not None and caller.f_code.co_filename.endswith("contextlib.py"):
            caller = caller.f_back
        name = "" if caller is None else caller.f_code.co_filename
        return name.startswith(str(ROOT)) and "/tests/" not in name and "/.venv/" not in name

    def around(self, read: Read, path: Path) -> Any:
        """What `read` gives, watched."""
        before = sys.getprofile()
        sys.setprofile(self)
        try:
            return read(path)
        finally:
            sys.setprofile(before)


def told(found: Any) -> str:
    """What was read as text, without the path that it was read from."""
    return repr(
        {k: v for k, v in found.items() if k != "path"} if isinstance(found, dict) else found
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_replacement_at_any_moment(tmp_path: Path, kind: str) -> None:
    suffix, make, read = KINDS[kind]
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file, factor in zip(files, (2.0, 3.0), strict=True):
        make(file, factor)
    path, spare = tmp_path / f"x{suffix}", tmp_path / "spare"
    expected = []
    for file in files:
        shutil.copy(file, path)
        expected.append(told(read(path)))
    assert expected[0] != expected[1]
    watched = Moments(0, lambda: None)
    assert told(watched.around(read, path)) == expected[1]
    assert watched.seen > 2
    found = set()
    stride = max(1, watched.seen // 150)
    for at in [*range(1, min(60, watched.seen)), *range(60, watched.seen + 1, stride)]:
        shutil.copy(files[0], path)
        shutil.copy(files[1], spare)
        moments = Moments(at, lambda: os.replace(spare, path))
        found.add(expected.index(told(moments.around(read, path))))
    assert found == {0, 1}, "the file was always replaced before, or behind, what was read"


def test_a_nir_file_replaced_between_its_two_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays are looked at first, then another process tries it, then it is read."""
    pytest.importorskip("nir")
    first, second, path = (tmp_path / f"{name}.nir" for name in "abx")
    make_nir(first)
    second.write_bytes(b"no NIR file at all")
    expected = read_nir(first)
    for name in ("nir_package", "check_sizes", "try_reading"):
        shutil.copy(first, path)
        original = getattr(nir_import, name)

        def replaced(*given: Any, _original: Any = original) -> Any:
            shutil.copy(second, tmp_path / "spare")
            os.replace(tmp_path / "spare", path)
            return _original(*given)

        with monkeypatch.context() as patched:
            patched.setattr(nir_import, name, replaced)
            found = read_nir(path)
        assert set(found.nodes) == set(expected.nodes)


def test_a_thousand_loads_beside_a_writer(tmp_path: Path) -> None:
    """As an exporter beside a server: no load fails, and both files are seen."""
    path, ended = tmp_path / "x.safetensors", threading.Event()
    contents = []
    for factor in (2.0, 3.0):
        make_event(path, factor)
        contents.append(path.read_bytes())
    read = KINDS["event"][2]
    expected = []
    for content in contents:
        path.write_bytes(content)
        expected.append(told(read(path)))

    def write() -> None:
        turn = 0
        while not ended.is_set():
            spare = tmp_path / "spare"
            spare.write_bytes(contents[turn % 2])
            os.replace(spare, path)
            turn += 1

    writer = threading.Thread(target=write)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer.start()
    try:
        found = {expected.index(told(read(path))) for _ in range(1000)}
    finally:
        ended.set()
        writer.join()
        sys.setswitchinterval(interval)
    assert found == {0, 1}


@pytest.mark.skipif(not peak.RESETTABLE, reason="a peak stays until the process ends")
def test_a_large_file_is_not_read_twice(tmp_path: Path) -> None:
    """Its arrays are views of the one mapping, not copies."""
    path, size = tmp_path / "x.safetensors", 64 << 20
    write_tensors(path, {"a": np.ones(size // 4, np.float32)}, {"format": "x"})
    before = peak.reset()
    found = read_tensors(path)
    assert peak.peak() - before < 1.5 * size
    assert found.tensors["a"].nbytes == size
    assert not found.tensors["a"].flags.owndata
