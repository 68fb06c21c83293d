"""Small files that ask readers, planning and composing for much; see test_work.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peak
import pytest
from bounded import GROWTH, bounded
from click.testing import CliRunner
from deployed import small_model
from fuzz_targets import write_signed
from safetensors.numpy import save_file

from soul_deploy.base.errors import FileFormatError, LimitError
from soul_deploy.base.files import METADATA_KEY, read_tensors
from soul_deploy.base.json_text import json_bytes, parse_json
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.nir.read import _is_head
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.onnx.reader import read_onnx
from soul_deploy.ir import AvgPool, Flatten, Input, NeuronSpec, Population, Readout, SpikingGraph
from soul_deploy.ir import Convolution as GraphConvolution
from soul_deploy.ir import MaxPool as GraphMaxPool
from soul_deploy.lowering.fold_batch_norm import fold
from soul_deploy.lowering.linear_operators import ConvOperator, as_matrix, lower_projection
from soul_deploy.model.file import expected_shapes, load, load_state_dict, save
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.bench.report import load_baseline
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.training.checkpoint import Checkpoint, _content, read_checkpoint, write_checkpoint

LISTS = "[" + "[]," * 20_000_000 + "[]]"
"""60 MB of JSON: 20 million objects, 1.1 GB."""


def lists_in_place(text: str, key: str) -> str:
    """A description with empty lists under another name."""
    return text[:-1] + f', "{key}": {LISTS}' + "}"


def signed(path: Path, document: Any, tensors: Any) -> None:
    write_signed(path, dict(tensors), lists_in_place(json.dumps(document), "more"))


@pytest.mark.parametrize("kind", ["event", "model", "checkpoint", "header", "baseline", "onnx"])
def test_sixty_megabytes_of_empty_lists(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.onnx" if kind == "onnx" else "x.safetensors")
    readers: list[Any] = [describe_file]
    if kind == "event":
        export_event(small_model(), path)
        readers.append(load_event_network)
    elif kind == "model":
        save(small_model(), path)
        readers += [load, load_state_dict]
    elif kind == "checkpoint":
        write_checkpoint(path, Checkpoint({}, {}, "train", {"x": np.ones(3, np.float32)}))
        readers = [read_checkpoint]
    elif kind == "header":
        text = LISTS.encode()
        header = b'{"a":' + text + b"}"
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        readers += [load_state_dict, load_event_network]
    elif kind == "baseline":
        path.write_text(LISTS)
        readers = [load_baseline]
    else:
        export_onnx(small_model(), path)
        file = onnx.load(path)
        file.metadata_props.add(key="lists", value=LISTS)
        onnx.save(file, path)
    if kind in ("event", "model", "checkpoint"):
        opened = read_tensors(path)
        document = json.loads(opened.metadata[METADATA_KEY])
        if kind == "checkpoint":
            document["sha256"] = _content(document, opened.tensors)
        signed(path, document, opened.tensors)
    for read in readers:
        copied = 4 * len(LISTS) if kind == "onnx" else 0  # its text, by the two parsers of ONNX
        told = r"bytes of memory; allowed are 134,217,728\. R"
        with bounded(growth=GROWTH + copied), pytest.raises(LimitError, match=told):
            read(path)


def test_descriptions_are_estimated_from_above() -> None:
    """Lists, dicts, numbers and texts take no more than `json_bytes` says."""
    for text in (
        "[" + "[]," * 300_000 + "0]",
        "[" + "{}," * 300_000 + "0]",
        "[" + '{"a":1},' * 200_000 + "0]",
        "[" + "0.5," * 300_000 + "0]",
        "[" + '"ab",' * 300_000 + "0]",
        '"' + "x" * 5_000_000 + '"',
        "{" + ",".join(f'"k{i}":[{i}]' for i in range(100_000)) + "}",
    ):
        before = peak.reset()
        held = parse_json(text, "here")
        taken = peak.peak() - before
        del held
        assert taken < json_bytes(text) + (8 << 20), text[:20]
    with pytest.raises(LimitError, match=r"^here, as JSON data, needs [\d,]+ bytes of memory"):
        parse_json("[" + "[]," * 1000 + "0]", "here", max_memory=50_000)
    assert parse_json("[" + "[]," * 1000 + "0]", "here", max_memory=500_000)


def with_graph(model: Model, graph: SpikingGraph) -> Model:
    """Weights of ones for a graph."""
    state = {name: np.ones(shape, np.float32) for name, shape in expected_shapes(graph).items()}
    return Model(graph, state, info=model.info)


def wide_model(*, steps: int = 2, side: int = 30_000) -> Model:
    """A 1 × 1 convolution on a map of a thousand million pixels, in a file of some kB."""
    nodes = (
        Input("input", (), (1, side, side)),
        GraphConvolution("c", ("input",), True, None, 1, 1, (1, 1)),
        Population("n", ("c",), NeuronSpec()),
        GraphMaxPool("p", ("n",), (side, side), (side, side)),
        Flatten("f", ("p",)),
        Readout("r", ("f",), 1, linear=True, bias=False),
    )
    empty = small_model()
    empty = replace(empty, info=replace(empty.info, normalization=None, classes=()))
    return with_graph(empty, SpikingGraph(nodes, steps))


@pytest.mark.parametrize("words", [("prune", "compact"), ("export", "event", "--no-check")])
@pytest.mark.parametrize("large", ["maps", "steps"])
def test_models_that_plan_too_much(tmp_path: Path, words: tuple[str, ...], large: str) -> None:
    path, made = tmp_path / "x.safetensors", tmp_path / "made"
    asked: dict[str, int] = {"side": 8, "steps": 2**31 - 1} if large == "steps" else {}
    save(wide_model(**asked), path)
    assert path.stat().st_size < 10_000
    with bounded():
        done = CliRunner().invoke(root, [*words, str(path), "-o", str(made)])
    told = "the limit is 65535 steps" if large == "steps" else "Raise it with --max_memory"
    assert (done.exit_code, told in done.stderr, made.exists()) == (1, True, False)


def test_functions_that_plan_take_the_limit() -> None:
    model = wide_model()
    for call in (
        lambda: plan_removal(model, max_memory=1 << 30),
        lambda: build_event_network(model),
    ):
        with bounded(), pytest.raises(LimitError, match=r"planning with this network \(most of"):
            call()


def pooled(pool: AvgPool, shape: tuple[int, int, int], kernel: int = 1) -> tuple[Any, Any]:
    nodes = (
        Input("input", (), shape),
        pool,
        GraphConvolution("c", (pool.name,), False, None, 1, 1, (kernel, kernel)),
        Population("n", ("c",), NeuronSpec()),
        Readout("r", ("n",), 1, linear=False, votes=1),
    )
    graph = SpikingGraph(nodes, 2)
    model = with_graph(small_model(), graph)
    return graph, fold(graph, model.state, {})


@pytest.mark.parametrize(
    ("kernel", "stride"), [((20_000, 20_000), (20_000, 20_000)), ((3, 3), (20_000, 20_000))]
)
def test_composing_is_bounded_before_it_is_made(
    kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    """A window of 4·10^8 pixels as a kernel; a map of as many as a matrix."""
    side = 20_000
    pool = AvgPool("p", ("input",), kernel, stride)
    graph, folded = pooled(pool, (1, side, side))
    with bounded(), pytest.raises(LimitError, match="at most 268435456 elements are supported"):
        lower_projection(graph, folded, "c")


def test_large_windows_are_composed_at_once() -> None:
    pool = AvgPool("p", ("input",), (2000, 2000), (2000, 2000))
    graph, folded = pooled(pool, (1, 2000, 2000))
    with bounded():
        operator: Any = lower_projection(graph, folded, "c").operator
    assert operator.weight.shape == (1, 1, 2000, 2000)
    assert np.allclose(operator.weight.sum(dtype=np.float64), 1.0)


def test_long_kernels_become_matrices_at_once() -> None:
    size = 2048
    weight = np.arange(1, 4097, dtype=np.float32).reshape(1, 1, 4096, 1)
    operator = ConvOperator(
        weight, None, (1, 1), (2048, 0), (1, 1), 1, (1, size, 1), (1, 2049, 1), (size, 1)
    )
    with bounded():
        matrix = as_matrix(operator).weight
    output, position = np.arange(2049)[:, None], np.arange(size)
    assert np.array_equal(matrix, position + 2048 - output + 1)


def test_onnx_files_of_nothing_but_nodes(tmp_path: Path) -> None:
    """Two bytes a node, of which parsers make hundreds."""
    graph = b"\x0a\x00" * 400_000
    length, varint = len(graph), bytearray()
    while length:
        varint.append(length & 127 | (128 if length > 127 else 0))
        length >>= 7
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x08\x08\x3a" + bytes(varint) + graph)
    for read in (read_onnx, describe_file):
        with bounded(), pytest.raises(LimitError, match=r"more than 335,544 nodes, values and"):
            read(path)
    done = CliRunner().invoke(root, ["inspect", str(path)])
    assert (done.exit_code, "Raise it with --max_memory" in done.stderr) == (1, True)
    export_onnx(small_model(), path)
    with pytest.raises(LimitError, match="more than 2 nodes"):
        read_onnx(path, max_memory=1000)
    assert read_onnx(path, max_memory=1 << 20).graph.node


def test_votes_of_a_nir_file_take_no_more_than_its_head() -> None:
    head = Readout("h", ("n",), 2, linear=True, bias=False)
    own = Readout("h", ("n",), 2, linear=False, votes=10**9)
    with bounded():
        assert not _is_head(own, head, {"h.weight": np.ones((2, 4), np.float32)})


def test_sides_without_number_of_an_array(tmp_path: Path) -> None:
    """Their product would be a number of 10^7 digits."""
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": [2**62] * 100_000, "data_offsets": [0, 0]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with bounded(), pytest.raises(FileFormatError, match="has 100000 sides"):
        read_tensors(path)


def test_many_arrays_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"a{k}": np.full(1, k, np.float32) for k in range(5000)}, path)
    with bounded():
        found = read_tensors(path).tensors
    assert all(found[f"a{k}"][0] == k for k in range(0, 5000, 7))
