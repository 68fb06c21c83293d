"""What is fuzzed: every reader, an intact file for it, ways to damage that, and what may come out.

A damaged file is *signed* when its checksums were computed again behind the damage, so that the
validation behind the checksums is what is tested. What is not signed must be refused or be the
original; what is signed must be refused or be a network that is valid itself: it runs, and the
event runtime agrees with a dense reading of the same arrays (naive_events.py).
"""

import gzip
import hashlib
import io
import json
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import event_archives
import numpy as np
import torch
from chains import ChainSpec, ConvSpec, LinearSpec, build
from checkpointed import JOBS, write_checkpoints
from deployed import small_model
from fuzz_mutations import (
    Rng,
    crowded_text,
    damaged_bytes,
    damaged_container,
    damaged_json,
    damaged_tensors,
    damaged_text,
    enlarged_json,
    json_text,
    pick,
)
from naive_events import disagreement, small
from PIL import Image
from safetensors.numpy import save_file
from test_eventfile import example, same
from test_residual_files import model_of

from soul_deploy.base.errors import SoulDeployError, require
from soul_deploy.base.event_frames import FrameRule, frames_of
from soul_deploy.base.events import EVENT
from soul_deploy.base.files import CHECKSUM_KEY, METADATA_KEY, TensorFile, digest, read_tensors
from soul_deploy.base.pixel_rule import InputRule
from soul_deploy.data import event_layouts
from soul_deploy.data.datasets import _read_table
from soul_deploy.data.files import read_idx_pair
from soul_deploy.data.frame_cache import FrameCache, Frames
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.nir import package as nir_trial
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.export.nir.write import export_nir
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.reader import describe_onnx as describe_onnx
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, load_state_dict, save
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.bench.report import SCHEMA, load_baseline
from soul_deploy.runtime.engine import network
from soul_deploy.runtime.format.file import load_event_network, save_event_network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.io import event_files
from soul_deploy.runtime.io.images import read_archive, read_array, read_image
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.training.checkpoint import _content, read_checkpoint

Damage = Callable[[Rng, Path], tuple[str, bool]]
"""Writes a damaged file to a path; what was done, and whether it was signed."""

RUN_MEMORY = 200 << 20  # bytes that getting ready to run an event network may take
MAX_RUN = 20_000  # values of one layer, of a model that is run


@dataclass(frozen=True)
class Target:
    """One reader. `judge` raises AssertionError for a wrong answer; it gets (result, signed)."""

    name: str
    suffix: str
    damage: Damage
    read: Callable[[Path], Any]
    judge: Callable[[Any, bool], None]
    share: float = 1.0


def raw(contents: list[bytes]) -> Damage:
    """Bytes of one of several intact files, damaged once or twice."""

    def damage(rng: Rng, path: Path) -> tuple[str, bool]:
        done, data = damaged_bytes(pick(rng, contents), rng)
        if rng.random() < 0.2:
            more, data = damaged_bytes(data, rng)
            done = f"{done}; {more}"
        path.write_bytes(data)
        return done, False

    return damage


def sign_document(document: Any, tensors: Any) -> Any:
    """The description with the digest of its arrays, if it is one that has one."""
    if isinstance(document, dict) and "digest" in document:
        document["digest"] = digest(tensors)
    return document


def tensor_files(
    files: list[TensorFile], contents: list[bytes], sign: Callable[[Any, Any], Any] = sign_document
) -> Damage:
    """Ours: bytes, header, description and arrays; the last two signed again."""
    unsigned = raw(contents)

    def damage(rng: Rng, path: Path) -> tuple[str, bool]:
        draw = rng.random()
        if draw < 0.25:
            return unsigned(rng, path)
        if draw < 0.4:
            done, data = damaged_container(pick(rng, contents), rng)
            path.write_bytes(data)
            return done, False
        opened = pick(rng, files)
        tensors: dict[str, Any] = dict(opened.tensors)
        document: Any = json.loads(opened.metadata[METADATA_KEY])
        steps = []
        for _ in range(int(pick(rng, (1, 1, 1, 2, 3)))):
            kind = rng.random()
            if kind < 0.45:
                done, tensors = damaged_tensors(tensors, rng)
            elif kind < 0.85:
                done, document = damaged_json(document, rng)
            else:
                done, document = enlarged_json(document, rng)
            steps.append(done)
        text = json_text(sign(document, tensors))
        if rng.random() < 0.02:
            done, text = crowded_text(text, rng)
            steps.append(done)
        if rng.random() < 0.1:
            done, text = damaged_text(text, rng)
            steps.append(done)
        write_signed(path, tensors, text)
        return "signed: " + "; ".join(steps), True

    return damage


def write_signed(path: Path, tensors: dict[str, Any], text: str) -> None:
    """A file of ours around any description."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    checksum = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    save_file(arrays, path, metadata={METADATA_KEY: text, CHECKSUM_KEY: checksum})


def event_networks(folder: Path) -> list[Path]:
    """A chain with everything, residual networks of both styles, explicit rows."""
    networks = [example()]
    networks += [build_event_network(model_of(s)) for s in ("sew", "ms")]
    networks.append(build_event_network(model_of("ms"), representation="explicit"))
    paths = [folder / f"{k}.event.safetensors" for k in range(len(networks))]
    for path, made in zip(paths, networks, strict=True):
        save_event_network(path, made)
    return paths


def event_target(folder: Path) -> Target:
    paths = event_networks(folder)
    intact = [load_event_network(path) for path in paths]
    for path in paths:  # kernels are loaded here, not within the time of a case
        network.load(path, 1)._build(input_steps=1, steps=2, carry=False)

    def judge(events: EventNetwork, signed: bool) -> None:
        if any(same(events, other) for other in intact):
            return
        assert signed, "not the original, although nothing was signed"
        if small(events):
            found = disagreement(events, 1)
            assert found is None, found

    files, contents = [read_tensors(p) for p in paths], [p.read_bytes() for p in paths]
    damage = tensor_files(files, contents)

    def read(path: Path) -> EventNetwork:
        """Ready to run: all tables and buffers of a run are made."""
        ready = network.load(path, 1, max_memory=RUN_MEMORY)
        ready._build(input_steps=1, steps=ready.time_steps, carry=False)
        return ready.events

    return Target("event", ".safetensors", damage, read, judge, share=4)


def models(folder: Path) -> list[Path]:
    """Masked, compact with a generated pattern, residual with neuron masks, searched."""
    dense = small_model()
    compact = remove(with_generators(dense), plan_removal(with_generators(dense)))
    found = [compact, model_of("ms"), model_of("sew")]
    alphas = {
        name.removesuffix(".weight"): array.astype(np.float32)
        for name, array in dense.state.items()
        if name.endswith(".weight") and array.ndim == 4
    }
    found.append(replace(dense, alphas=alphas))
    paths = [folder / f"{k}.model.safetensors" for k in range(len(found))]
    for path, model in zip(paths, found, strict=True):
        save(model, path)
    return paths


def with_generators(model: Model) -> Model:
    """A channel without synapses whose bias makes it spike now and then."""
    state = {name: array.copy() for name, array in model.state.items()}
    name = model.graph.projections[1].name
    state[f"{name}.weight"][0] = 0
    state[f"{name}.bias"][0] = 0.8
    return replace(model, state=state)


def same_model(a: Model, b: Model) -> bool:
    """Everything equal, arrays to the bit."""
    parts = ("state", "channel_masks", "neuron_masks", "alphas")
    return (a.graph, a.info) == (b.graph, b.info) and all(
        set(getattr(a, part)) == set(getattr(b, part))
        and all(same(array, getattr(b, part)[key]) for key, array in getattr(a, part).items())
        for part in parts
    )


def run_model(model: Model) -> None:
    """It runs in PyTorch; its event network, if it has one, agrees with a dense reading."""
    graph = model.graph
    if graph.time_steps * max(int(np.prod(s)) for s in graph.shapes.values()) > MAX_RUN:
        return
    with torch.no_grad():
        scores = model.module()(torch.ones(1, *graph.input.shape))
    assert scores.shape == (1, graph.readout.classes), scores.shape
    try:
        network = build_event_network(model)
    except SoulDeployError:
        return
    if small(network):
        found = disagreement(network, 1)
        assert found is None, found


def model_target(folder: Path) -> Target:
    paths = models(folder)
    intact = [load(path) for path in paths]

    def judge(model: Model, signed: bool) -> None:
        if any(same_model(model, other) for other in intact):
            return
        assert signed, "not the original, although nothing was signed"
        run_model(model)

    files, contents = [read_tensors(p) for p in paths], [p.read_bytes() for p in paths]
    damage = tensor_files(files, contents)
    return Target("model", ".safetensors", damage, load, judge, share=4)


def checkpoint_target(folder: Path) -> Target:
    """Runs of a pruning loop, restored whole and run to the end."""
    paths = write_checkpoints(folder)
    settings = read_checkpoint(paths[0]).settings

    def sign(document: Any, tensors: Any) -> Any:
        if isinstance(document, dict):
            document.pop("sha256", None)
            document["sha256"] = _content(document, tensors)
        return document

    def read(path: Path) -> Any:
        found = read_checkpoint(path)
        # Of which job the damaged file was is told by its moments, as settings tell it in a run.
        job = JOBS["warm" if b"exp_avg_sq" in path.read_bytes() else "steps"]()
        job.restore(found)
        return found, job

    def judge(result: Any, signed: bool) -> None:
        found, job = result
        assert signed or found.settings == settings
        try:
            list(job.run())
        except SoulDeployError as error:
            assert str(error)

    opened, contents = [read_tensors(p) for p in paths], [p.read_bytes() for p in paths]
    damage = tensor_files(opened, contents, sign)
    return Target("checkpoint", ".safetensors", damage, read, judge, share=2)


def inspect_target(folder: Path) -> Target:
    files = [path for kind in ("safetensors", "onnx", "pt") for path in folder.glob(f"*.{kind}")]
    damage = raw([path.read_bytes() for path in sorted(files)])
    return Target(
        "inspect", ".safetensors", damage, describe_file, lambda found, _: json_data(found)
    )


def json_data(found: Any) -> None:
    """Raises unless `found` can be printed as JSON."""
    json.dumps(found)


def weights_target(folder: Path) -> Target:
    """Other people's state dicts: pickles of tensors and bare safetensors."""
    state = {k: torch.from_numpy(np.array(v)) for k, v in small_model().state.items()}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(state, zipped)
    torch.save({"state_dict": state}, legacy, _use_new_zipfile_serialization=False)
    checkpoint = {"net": {f"module.{k}": v for k, v in state.items()}, "args": Namespace(T=4)}
    torch.save(checkpoint, folder / "checkpoint.pt")
    (folder / "legacy.pt").write_bytes(legacy.getvalue())
    bare = folder / "bare"
    save_file({k: v.numpy() for k, v in state.items()}, bare)
    contents = [zipped.getvalue(), legacy.getvalue(), bare.read_bytes()]
    contents += [(folder / "checkpoint.pt").read_bytes()]

    def judge(found: dict[str, Any], _: bool) -> None:
        assert all(isinstance(array, np.ndarray) for array in found.values())

    return Target("weights", ".pt", raw(contents), load_state_dict, judge)


def onnx_target(folder: Path) -> Target:
    path = folder / "network.onnx"
    export_onnx(small_model(), path)
    damage = raw([path.read_bytes()])
    return Target("onnx", ".onnx", damage, describe_onnx, lambda found, _: json_data(found))


def nir_target(folder: Path) -> Target:
    """NIR knows neither max pooling nor soft reset."""
    path, neuron = folder / "network.nir", NeuronSpec()
    convolution = ConvSpec(3, (3, 3), (2, 2), (1, 1), (1, 1), 1, True, True, neuron, None)
    linears = (LinearSpec(4, True, False, neuron),)
    shape = (1, 6, 5)
    spec = ChainSpec(shape, 2, 2, (convolution,), True, linears, 3, 0, True, False, 7)
    export_nir(build(spec), path)

    def judge(model: Model, _: bool) -> None:
        run_model(model)

    damage = raw([path.read_bytes()])
    nir_trial.SECONDS = 3.0
    nir_trial.PROGRAM = (str(Path(__file__).with_name("nir_child.py")),)
    read = lambda p: import_nir(read_nir(p), time_steps=2)  # noqa: E731
    return Target("nir", ".nir", damage, read, judge, share=0.04)


RULE = InputRule((3, 8, 10), 3, (0.5, 0.25, 0.4), (0.2, 0.5, 0.3), resize=True)


def array_target(folder: Path) -> Target:
    rng = np.random.default_rng(0)
    contents = []
    for array in (rng.random((2, 3, 8, 10)).astype(np.float32), np.zeros((3, 2, 3, 8, 10), "u1")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        contents.append(buffer.getvalue())

    def judge(found: Any, _: bool) -> None:
        assert found.values.dtype == np.float32
        assert found.values.shape[-3:] == RULE.shape

    return Target("array", ".npy", raw(contents), lambda p: read_array(p, RULE), judge)


def archive_target(folder: Path) -> Target:
    """A .npz of samples or of sequences, with labels, packed and not."""
    rng, contents = np.random.default_rng(0), []
    for images in (rng.random((4, 3, 8, 10)).astype(np.float32), np.zeros((4, 3, 3, 8, 10), "u1")):
        for write in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            write(
                buffer, images=images, labels=np.arange(4), classes=np.array(["a", "b", "c", "d"])
            )
            contents.append(buffer.getvalue())

    def judge(found: Any, _: bool) -> None:
        assert found.values.dtype == np.float32
        assert found.values.shape[-3:] == RULE.shape

    return Target("archive", ".npz", raw(contents), lambda p: read_archive(p, RULE), judge)


def image_target(folder: Path) -> Target:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    contents = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        contents.append(buffer.getvalue())

    def judge(found: Any, _: bool) -> None:
        assert found.shape == RULE.shape
        assert found.dtype == np.uint8

    return Target("image", ".img", raw(contents), lambda p: read_image(p, RULE), judge)


def idx_target(folder: Path) -> Target:
    """Images and labels in MNIST's format, packed and not; one of the two files is damaged."""
    rng = np.random.default_rng(0)
    images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 28, 28))
    images += rng.bytes(3 * 28 * 28)
    labels = b"\0\0\x08\x01" + (3).to_bytes(4, "big") + bytes([1, 0, 9])
    parts = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}

    def damage(rng: Rng, path: Path) -> tuple[str, bool]:
        path.mkdir()
        hurt = pick(rng, sorted(parts))
        for name, content in parts.items():
            packed = rng.random() < 0.5
            data, inside = content, rng.random() < 0.5
            done = "intact"
            if name == hurt and inside:
                done, data = damaged_bytes(data, rng)
            data = gzip.compress(data, mtime=0) if packed else data
            if name == hurt and not inside:
                done, data = damaged_bytes(data, rng)
            (path / (name + ".gz" * packed)).write_bytes(data)
            if name == hurt:
                told = f"{name}: {done}"
        return told, False

    def judge(found: Any, _: bool) -> None:
        assert found[0].shape[1:] == (1, 28, 28)
        assert len(found[0]) == len(found[1])

    return Target("idx", "", damage, lambda p: read_idx_pair(p, "train"), judge)


def table_target(folder: Path) -> Target:
    text = "\n".join("1,2,3" for _ in range(4)).encode()
    damage = raw([gzip.compress(text, mtime=0)])
    expected = (4, 3)

    def judge(found: Any, _: bool) -> None:
        assert found.shape == expected

    return Target("table", ".csv.gz", damage, lambda p: _read_table(p, expected), judge)


def baseline_target(folder: Path) -> Target:
    entry = {"engine": "event", "threads": 1, "batch_size": 1, "p50_ms": 1.0}
    document = {"schema": SCHEMA, "entries": [entry, dict(entry, engine="onnxruntime-dense")]}
    unsigned = raw([json.dumps(document).encode()])

    def damage(rng: Rng, path: Path) -> tuple[str, bool]:
        if rng.random() < 0.3:
            return unsigned(rng, path)
        done, changed = damaged_json(document, rng)
        text = json_text(changed)
        if rng.random() < 0.2:
            more, text = damaged_text(text, rng)
            done = f"{done}; {more}"
        path.write_text(text)
        return done, True

    return Target("baseline", ".json", damage, load_baseline, lambda found, _: None)


def recording_target(name: str, suffix: str, write: Any, read: Any) -> Target:
    """Events in one of the formats of data sets; few of a camera of 34×34 or 128×128."""

    def contents(folder: Path) -> list[bytes]:
        path, found = folder / f"intact{suffix}", []
        for count in (3, 70):
            write(path, event_archives.recording(count, count, 34, 34))
            found.append(path.read_bytes())
        return found

    def judge(found: Any, _: bool) -> None:
        assert found.events.dtype == EVENT
        for rule in (FrameRule(3), FrameRule(3, duration=50), FrameRule(2, side=(9, 5))):
            frames = frames_of(found, rule)
            assert frames.min() >= 0 and frames.sum() <= len(found)

    with tempfile.TemporaryDirectory() as place:
        return Target(name, suffix, raw(contents(Path(place))), read, judge, share=0.5)


def aedat2_target(folder: Path) -> Target:
    return recording_target("aedat2", ".aedat", event_archives.aedat2, event_files.read_aedat2)


def aedat3_target(folder: Path) -> Target:
    return recording_target("aedat3", ".aedat", event_archives.aedat3, event_files.read_aedat3)


def atis_target(folder: Path) -> Target:
    read = partial(event_files.read_atis, width=34, height=34)
    return recording_target("atis", ".bin", event_archives.atis, read)


def events_target(folder: Path) -> Target:
    """SpikingJelly's .npz."""

    def write(path: Path, found: Any) -> None:
        np.savez(path, **{name: found.events[name].astype(np.int64) for name in "txyp"})

    read = partial(event_files.read_npz_events, width=34, height=34)
    return recording_target("events", ".npz", write, read)


def gesture_target(folder: Path) -> Target:
    """The labels of a recording of gestures."""
    lines = [f"{label},{label * 1000},{label * 1000 + 900}" for label in range(1, 12)]
    text = "\r\n".join(["class,startTime_usec,endTime_usec", *lines]).encode()

    def judge(found: Any, _: bool) -> None:
        assert all(0 <= label < 11 and begin >= 0 <= end for label, begin, end in found)

    return Target("gesture", ".csv", raw([text]), event_layouts._windows, judge, share=0.3)


def frames_target(folder: Path) -> Target:
    """A cache of frames: what is not as it was written is not there."""
    cache = FrameCache(folder / "cache", "x", {"data": "x"})
    values = np.random.default_rng(0).integers(0, 9, (5, 2, 2, 4, 4)).astype(np.uint8)

    def fill(place: Path) -> Frames:
        with place.open("wb") as stream:
            np.save(stream, values)
        return Frames(values, (0, 1, 2, 4), ("x.bin is cut off",))

    made = cache.make(fill)
    parts = {path.name: path.read_bytes() for path in cache.paths}

    def damage(rng: Rng, path: Path) -> tuple[str, bool]:
        path.mkdir()
        hurt = pick(rng, sorted(parts))
        done, data = damaged_bytes(parts[hurt], rng)
        for name, content in parts.items():
            (path / name).write_bytes(data if name == hurt else content)
        return f"{hurt}: {done}", False

    def read(path: Path) -> Any:
        found = FrameCache(path, "x", {"data": "x"}).read()
        require(found is not None, "no frames")
        return found

    def judge(found: Any, _: bool) -> None:
        assert np.array_equal(found.values, values)
        assert (found.places, found.told) == (made.places, made.told)

    return Target("frames", "", damage, read, judge, share=0.3)


MAKERS: list[Callable[[Path], Target]] = [
    *(event_target, model_target, weights_target, onnx_target, nir_target, array_target),
    archive_target,
    *(aedat2_target, aedat3_target, atis_target, events_target, gesture_target, frames_target),
    *(checkpoint_target, image_target, idx_target, table_target, baseline_target, inspect_target),
]


def make_targets(folder: Path, only: str | None = None) -> list[Target]:
    """Every target, or the one called `only`; the intact files lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = [make for make in MAKERS if only in (None, make.__name__.removesuffix("_target"))]
    return [make(folder) for make in makers]
