"""`bench sparse` as a command: files in, table and JSON out, messages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from chains import ChainSpec, ConvSpec, build
from click.testing import CliRunner, Result
from deployed import SHAPE, STEPS, Files, make_files, small_model
from places import PATH, ROOT

from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.runtime.bench.engines import ENGINES, EngineSpec
from soul_deploy.runtime.bench.inputs import BenchFiles, choose_engines, facts_of, network_of_engine
from soul_deploy.runtime.bench.rivals import quantise
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.ops.counted_run import count

ENTRY_KEYS = {"p50_ms", "p90_ms", "p99_ms", "items_per_s", "rss_mb", "load_ms", "first_ms"}


QUICK = ("--iterations", 2, "--warmup", 1, "--no_fresh")
UNASKED = tuple(name for name, kind in ENGINES.items() if not kind.asked)
RIVALS = tuple(name for name, kind in ENGINES.items() if kind.asked)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("bench"))


def soul_deploy(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def bench(*words: object) -> dict[str, Any]:
    result = soul_deploy("bench", "sparse", "--format", "json", *words)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


# Which engines, which files


def test_all_engines_that_the_files_allow_are_chosen() -> None:
    model, onnx = Path("m"), Path("o")
    assert choose_engines((), BenchFiles(model=model, compact=model)) == UNASKED
    assert choose_engines((), BenchFiles(model=model)) == (
        *("pytorch-dense", "onnxruntime-dense", "scipy-csr", "event"),
    )
    assert choose_engines((), BenchFiles(onnx_compact=onnx, event=onnx)) == (
        *("onnxruntime-compact", "scipy-csr", "event"),
    )


def test_an_event_file_is_known_by_the_model_it_came_from(files: Files) -> None:
    both = {"model": files.masked, "compact": files.compact}
    assert network_of_engine("event", BenchFiles(**both, event=files.masked_event)) == "dense"
    assert network_of_engine("event", BenchFiles(**both, event=files.compact_event)) == "compact"
    assert network_of_engine("event", BenchFiles(model=files.masked)) == "dense"


def test_every_kind_of_file_tells_its_input(files: Files) -> None:
    for path in (files.compact, files.compact_onnx, files.compact_event):
        facts = facts_of(path)
        assert (facts.steps, facts.shape) == (STEPS, SHAPE)
        assert facts.normalization is not None
        assert tuple(facts.normalization["mean"]) == (0.5, 0.25, 0.4)


# The command


def test_model_files_are_enough(files: Files) -> None:
    before = sorted(files.masked.parent.iterdir())
    document = bench(
        *("--model", files.masked, "--compact", files.compact, "--iterations", 3, "--warmup", 1),
        *("--no_fresh", "--batch_size", 1, 2, "--threads", "[1]", "--percentiles", "50,95"),
    )
    assert document["schema"] == "soul-deploy/bench/1"
    settings = [(e["engine"], e["threads"], e["batch_size"]) for e in document["entries"]]
    assert settings == [(name, 1, batch) for batch in (1, 2) for name in UNASKED]
    assert all(e.keys() >= ENTRY_KEYS | {"p95_ms"} for e in document["entries"])
    assert all(e["runs"] == 3 for e in document["entries"])
    assert {item["engine"]: item["against"] for item in document["agreement"]} == {
        "onnxruntime-dense": "pytorch-dense",
        "onnxruntime-compact": "pytorch-compact",
        "scipy-csr": "pytorch-compact",
        "event": "pytorch-compact",
    }
    for item in document["agreement"]:
        assert item["classes_agree"] == item["samples"] == 24
        assert item["max_logit_difference"] < 1e-5
    assert document["environment"]["versions"]["torch"]
    assert sorted(files.masked.parent.iterdir()) == before


def test_a_result_is_written_and_compared(files: Files, tmp_path: Path) -> None:
    arguments = ["--event", files.compact_event, "--onnx-compact", files.compact_onnx]
    arguments += ["--iterations", 2, "--warmup", 0, "--no-fresh"]
    output = tmp_path / "first.json"
    first = bench(*arguments, "--output", output)
    assert json.loads(output.read_text()) == first
    result = soul_deploy("bench", "sparse", *arguments, "--compare", output)
    assert result.exit_code == 0, result.output
    for text in ("vs ORT", "Do they agree?", "Against the baseline", "event", "items/s", "cores"):
        assert text in result.stdout


def test_the_table_shows_the_fresh_process(files: Files) -> None:
    result = soul_deploy(
        *("bench", "sparse", "--event", files.compact_event, "--iterations", 2, "--warmup", 0)
    )
    assert result.exit_code == 0, result.output
    assert "load ms" in result.stdout and "memory MB" in result.stdout
    drawn = [line for line in result.stdout.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, drawn)) <= 120


def test_a_sequence_from_an_npy_file(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "sequence.npy"
    np.save(path, np.random.default_rng(0).normal(size=(STEPS, 4, *SHAPE)))
    document = bench(
        *("--compact", files.compact, "--engines", "pytorch-compact,event", "--input", path),
        *("--batch_size", 2, "--iterations", 2, "--no_fresh"),
    )
    assert "sequence, 4 samples" in document["input"]
    (item,) = document["agreement"]
    assert item["classes_agree"] == item["samples"] == 4


def test_networks_of_another_t_are_not_compared(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save(small_model(STEPS + 1), other)
    result = soul_deploy("bench", "sparse", "--model", other, "--compact", files.compact)
    assert result.exit_code == 2
    assert "at T = 4, but" in result.output and "at T = 3" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no file to time; give --model and --compact"),
        (["--event", "EVENT", "--engines", ""], 2, "--engines '': the list is empty; give some"),
        (["--event", "EVENT", "--engines", "tpu"], 2, "unknown engine 'tpu'; valid: pytorch-dense"),
        (["--event", "EVENT", "--engines", "pytorch-dense"], 2, "pytorch-dense needs --model"),
        (["--event", "EVENT", "--engines", "onnxruntime-compact"], 2, "--compact to export"),
        (["--event", "EVENT", "--threads", "0"], 2, "'0' is not an integer from 1"),
        (["--event", "EVENT", "--batch_size", "1,x"], 2, "'x' is not an integer from 1"),
        (["--event", "EVENT", "--percentiles", "101"], 2, "numbers from 0 to 100"),
        (["--event", "EVENT", "--duration", "0"], 2, "--duration 0.0 must be above 0"),
        (["--event", "EVENT", "--iterations", "0"], 2, "--iterations"),
        (["--event", "EVENT", "--input", "imagenet"], 2, "imagenet"),
        (["--event", "EVENT", "--input", "mnist5k"], 2, "mnist5k has images of (1, 28, 28)"),
        (["--event", "EVENT", "--input", "none.npy"], 2, "no file at none.npy"),
        (["--event", "EVENT", "--compare", "none.json"], 2, "no file at none.json"),
        (["--event", "EVENT", "--compare", "EVENT"], 1, "is an event network, and a result"),
        (["--event", "none.safetensors"], 2, "no file at none.safetensors"),
        (["--event", "MODEL"], 1, "is a model file, and an event network is needed"),
        (["--model", "EVENT"], 1, "is an event network, and a model file is needed"),
        (["--onnx", "EVENT"], 1, "is an event network, and an ONNX file"),
    ],
)
def test_wrong_use_is_told(files: Files, arguments: list[str], code: int, message: str) -> None:
    given = {"EVENT": str(files.compact_event), "MODEL": str(files.compact)}
    result = soul_deploy("bench", "sparse", *(given.get(word, word) for word in arguments))
    assert message in result.output
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_json_of_another_schema_is_no_baseline(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    result = soul_deploy("bench", "sparse", "--event", files.compact_event, "--compare", path)
    assert result.exit_code == 1
    assert "is not a result of bench; needed: a file of schema soul-deploy/bench/1" in result.output


QUICK = ("--iterations", 2, "--warmup", 0, "--no-fresh")


def test_a_baseline_of_something_else_is_told(files: Files, tmp_path: Path) -> None:
    pixels, baseline = tmp_path / "pixels.npy", tmp_path / "baseline.json"
    np.save(pixels, np.zeros((8, *SHAPE), np.float32))
    one = ("--event", files.compact_event, "--engines", "event", *QUICK)
    bench(*one, "--output", baseline)
    same = soul_deploy("bench", "sparse", *one, "--compare", baseline)
    assert "Against the baseline" in same.stdout and "Warning" not in same.stderr
    words = ("--event", files.masked_event, "--engines", "event", *QUICK, "--input", pixels)
    other = soul_deploy("bench", "sparse", *words, "--compare", baseline)
    assert other.exit_code == 0 and "Against the baseline" in other.stdout
    assert f"Warning: {baseline} is of something else: event ran a network made fr" in other.stderr
    assert f"the input was random, now {pixels}" in other.stderr
    none = soul_deploy("bench", "sparse", *one, "--batch_size", 2, "--compare", baseline)
    assert none.exit_code == 0 and "Against the baseline" not in none.stdout
    assert "it has event (threads 1, batch 1), and now event (threads 1, batch 2)" in none.stderr
    assert "nothing to compare" in none.stderr


def test_a_baseline_with_unreadable_entries_is_refused(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for entries in ("{}", "[{}]", '[{"engine": "event", "threads": 1, "batch_size": 1}]'):
        path.write_text(f'{{"schema": "soul-deploy/bench/1", "entries": {entries}}}')
        result = soul_deploy("bench", "sparse", "--event", files.compact_event, "--compare", path)
        assert result.exit_code == 1
        assert "has entries that cannot be read; measure the baseline again" in result.stderr


def test_an_artifact_of_another_network_is_told(files: Files) -> None:
    onnx = ("--model", files.masked, "--onnx", files.compact_onnx)
    result = soul_deploy("bench", "sparse", *onnx, "--engines", "onnxruntime-dense", *QUICK)
    assert result.exit_code == 0, result.output
    text = f"Warning: --onnx {files.compact_onnx} was not made from --model {files.masked}, but"
    assert text in result.stderr
    event = ("--compact", files.compact, "--event", files.masked_event, "--engines", "event")
    result = soul_deploy("bench", "sparse", *event, *QUICK)
    assert f"--event {files.masked_event} was not made from --compact" in result.stderr
    own = ("--model", files.masked, *event, *QUICK)
    assert "Warning" not in soul_deploy("bench", "sparse", *own).stderr


# Where the time goes


def test_a_profile_names_every_layer_its_form_and_its_work(files: Files, tmp_path: Path) -> None:
    trace, x = tmp_path / "trace.json", tmp_path / "x.npy"
    np.save(x, np.random.default_rng(1).normal(1, 1, (2, *SHAPE)).astype(np.float32))
    words = ["--event", files.compact_event, "--engines", "event", "--input", x, "--no_fresh"]
    found = bench(*words, "--iterations", 3, "--trace", trace)["profile"]
    network = Network(load_event_network(files.compact_event), 1)
    rows = {row["layer"]: row for row in found["layers"]}
    names = [layer.name for layer in network.events.layers]
    assert list(rows) == [*names, network.events.readout.name]
    counts = count(network, np.load(x)[:1])
    for layer in network.events.projected:
        row = rows[layer.name]
        assert row["form"] == network.layer_forms[layer.name]
        assert row["synops"] == counts[layer.projection].synops
        assert row["us"]["currents"] > 0 and row["bytes"] > 0
    assert sum(rows[layer.name]["synops"] for layer in network.events.projected) > 0
    assert all(0 <= rows[layer.name]["rate"] <= 1 for layer in network.events.populations)
    spent = sum(took for row in rows.values() for took in row["us"].values())
    assert found["total_us"] == pytest.approx(spent)
    ends = 0.0
    for (layer, work, begin, duration), event in zip(
        found["spans"], json.loads(trace.read_text())["traceEvents"], strict=True
    ):
        assert layer in rows and begin >= ends and duration > 0
        ends = begin + duration
        assert (event["name"], event["ph"]) == (f"{layer}: {work}", "X")
        assert (event["ts"], event["dur"]) == (begin, duration)
    shown = soul_deploy("bench", "sparse", *words, "--iterations", 2, "--profile").stdout
    assert "The event runtime's time, ms (one sample, one thread" in shown
    assert "ns/SynOp" in shown and "total" in shown


def test_a_profile_needs_the_event_runtime(files: Files, tmp_path: Path) -> None:
    words = ["--compact", files.compact, "--engines", "pytorch-compact", "--no_fresh"]
    refused = soul_deploy("bench", "sparse", *words, "--trace", tmp_path / "t.json")
    told = "are of the engine event, which is not among pytorch-compact"
    assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "t.json").exists()


def wide_convolutions(path: Path) -> Path:
    """Two convolutions to 16 channels, whose second can run in two forms."""
    one = ConvSpec(16, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, True, NeuronSpec(), None)
    spec = ChainSpec(
        input_shape=SHAPE, time_steps=STEPS, batch=4, convolutions=(one, one), flatten=True,
        linears=(), classes=4, votes=0, head_bias=True, dyadic=True, seed=7,
    )  # fmt: skip
    export_event(build(spec), path, representation="implicit")
    return path


def test_rows_are_chosen_for_the_event_runtime(files: Files, tmp_path: Path) -> None:
    layers = Network(load_event_network(files.compact_event), 1).layer_forms
    words = ["--event", files.compact_event, "--engines", "event", *QUICK[:-1], "--profile"]
    rows = [word for layer, form in layers.items() for word in ("--rows", f"{layer}={form}")]
    found = bench(*words, *rows)  # in the fresh process too
    assert {r["layer"]: r["form"] for r in found["profile"]["layers"] if r["form"]} == layers
    (entry,) = found["entries"]
    assert entry["first_ms"] > 0
    wide = wide_convolutions(tmp_path / "wide.event.safetensors")
    usual = Network(load_event_network(wide), 1).layer_forms
    ((name, taken),) = ((layer, form) for layer, form in usual.items() if form != "analog")
    other = {"gather": "dense", "dense": "gather"}[taken]
    words_of_wide = ("--event", wide, "--engines", "event", "--profile", *QUICK)
    for more, form in (((), taken), (("--rows", f"{name}={other}"), other)):
        shown = bench(*words_of_wide, *more)["profile"]["layers"]
        assert [row["form"] for row in shown if row["layer"] == name] == [form]
        engine = EngineSpec("event", "dense", ENGINES["event"].target, wide, {name: form}).create(1)
        engine.load()
        assert vars(engine)["network"].layer_forms[name] == form
    first = next(iter(layers))
    refused = soul_deploy("bench", "sparse", *words, "--rows", f"{first}=planes")
    told = f"{first}: its synapses cannot run as 'planes'"
    assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr


# What else a user would pick


def test_rivals_run_when_they_are_named(files: Files) -> None:
    words = ("--model", files.masked, "--compact", files.compact, "--engines")
    document = bench(*words, ",".join(("pytorch-dense", "pytorch-compact", *RIVALS)), *QUICK)
    entries = {entry["engine"]: entry for entry in document["entries"]}
    assert {name for name in RIVALS if entries[name]["p50_ms"] > 0} == set(RIVALS)
    for name in RIVALS:
        quantised = "int8" in name and name != "event-int8"
        assert entries[name]["file"].endswith(".int8.onnx") == quantised
    differences = {
        item["engine"]: item["max_logit_difference"]
        for item in document["agreement"]
        if item["engine"] in RIVALS
    }
    assert set(differences) == set(RIVALS)
    for name, difference in differences.items():
        assert difference < 1e-5 or "f32" not in name
    assert max(differences[name] for name in RIVALS if "int8" in name) > 1e-5
    assert document["environment"]["versions"]["openvino"]


STOPPED = """
import signal, sys
from pathlib import Path
import numpy as np
from soul_deploy.runtime.bench.rivals import OpenVinoBfloat16, OpenVinoFloat32
x = np.zeros((1, *map(int, sys.argv[2:])), np.float32)
first = OpenVinoFloat32(Path(sys.argv[1]), 1)
first.load()
second = OpenVinoBfloat16(Path(sys.argv[1]), 1)
second.load()
assert first.infer(x).shape == second.infer(x).shape
del first
del second
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_is_handled_after_rivals_have_gone(files: Files) -> None:
    """OpenVINO leaves a freed stack for signals behind, which would kill the process."""
    command = [sys.executable, "-c", STOPPED, str(files.compact_onnx), *map(str, SHAPE)]
    environment = os.environ | {"PYTHONPATH": PATH}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


def test_an_int8_network_is_calibrated_and_weighs_in_int8(files: Files, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(1, *SHAPE)).astype(np.float32) for _ in range(2)]
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder in (one, other):
        folder.mkdir()
    scales = []
    for folder, given in ((one, batches), (other, [10 * batch for batch in batches])):
        graph = onnx.load(quantise(files.compact_onnx, given, folder)).graph
        kinds = [node.op_type for node in graph.node]
        weighed = kinds.count("Conv") + kinds.count("Gemm") + kinds.count("MatMul")
        assert kinds.count("DequantizeLinear") >= 2 * weighed > 0
        constants = {tensor.name: tensor for tensor in graph.initializer}
        assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in graph.initializer)
        (first,) = (
            n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "input"
        )
        scales.append(float(onnx.numpy_helper.to_array(constants[first.input[1]])))
    assert scales[1] == pytest.approx(10 * scales[0], rel=1e-3)


def test_a_rival_that_is_not_installed_is_told(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ("--compact", files.compact, "--engines", "openvino-f32-compact", *QUICK)
    refused = soul_deploy("bench", "sparse", *words)
    told = "running a file with OpenVINO needs the package 'openvino'"
    assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr
