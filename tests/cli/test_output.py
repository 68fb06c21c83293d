"""Every command on terminals of other encodings, with streams that are closed, full or unread,
and without PyTorch: what is printed, and an exit code that says whether the work was done.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from places import SUPPORT
from test_data import write_mnist_folder
from test_next import NETS
from torch import nn

from soul_deploy.base.files import file_sha256
from soul_deploy.cli.main import LazyGroup, root
from soul_deploy.data.datasets import MNIST_NORM
from soul_deploy.export.event.build import export_event
from soul_deploy.export.nir.write import export_nir
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.quantization.network import integer_network, make_plan
from soul_deploy.quantization.units import UnitChoice
from soul_deploy.zoo.create import create

CHILD = SUPPORT / "printing_child.py"
CAT = "é猫→[/red]:smile:"
ENCODINGS = {
    "iso-8859-1": {"PYTHONIOENCODING": "iso-8859-1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
NET, INTEGERS = "net é.safetensors", "integers.safetensors"
SHORT = ("--threads", 1, "--epochs", 1)
SMALL = ("--model", "somenets:make", "-T", 2, *SHORT)
DATA = ("--dataset_name", "mnist", "--model_dir", "out")
SHAPE = ("--input_shape", "1 32 32", "--classes", 10)
CHECK = ("--samples", 2, "--threads", 1)
BENCH = ("--iterations", 1, "--warmup", 0, "--no_fresh")
# command -> what makes it work, and the file that it writes
WORDS: dict[tuple[str, ...], tuple[tuple[object, ...], str | None]] = {
    ("demo",): (("--dry_run",), None),
    ("train",): ((*SMALL, *DATA), "out/best_*.safetensors"),
    ("prune", "structured"): (
        ("--mode", "load", "--model_path", NET, *SHORT, *DATA, "--finetune_epochs", 0),
        "out/pruned_*_compact.safetensors",
    ),
    ("prune", "unstructured"): (
        ("--model_path", NET, *SHORT, *DATA),
        "out/pruned_*_compact.safetensors",
    ),
    ("prune", "compact"): ((NET, "-o", "out/x"), "out/x"),
    ("export", "onnx"): ((NET, "-o", "out/x", *CHECK), "out/x"),
    ("export", "event"): ((NET, "-o", "out/x", *CHECK), "out/x"),
    ("export", "nir"): ((NET, "-o", "out/x", *CHECK), "out/x"),
    ("export", "c"): ((INTEGERS, "-o", "out/x", *CHECK, "--input", "random"), "out/x"),
    ("quantize",): ((NET, "-o", "out/x", *CHECK, *DATA[:2]), "out/x"),
    ("import", "nir"): (("net.nir", "-o", "out/x"), "out/x"),
    ("import", "torch"): (("somenets:make", *SHAPE, "-o", "out/x"), "out/x"),
    ("import", "zoo"): (
        ("spikingvgg5", "--model_path", "best.pt", "--hidden", 2, *SHAPE, "-o", "out/x"),
        "out/x",
    ),
    ("bench", "pruning"): (
        ("--model_path", NET, *SHORT, *DATA[:2], "--prune_ratio", 0.5, "--seeds", 1, "-o", "out"),
        None,
    ),
    ("bench", "sparse"): (("--event", "net.event", *BENCH, "-o", "out/x"), "out/x"),
    ("verify",): ((NET, "net.event", *CHECK), None),
    ("energy",): ((NET, "--samples", 2, "--threads", 1), None),
    ("card",): ((NET, "-o", "out/x"), "out/x"),
    ("report",): ((NET, "-o", "out/x"), "out/x"),
    ("inspect",): (("net.event",), None),
    ("run",): (("net.event", f"{CAT[:2]}.npy", "--counts"), None),
    ("warm-up",): (("net.event",), None),
}


def commands(group: click.Group = root, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All commands that there are."""
    context, found = click.Context(group), []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = (*above, name)
        found += commands(command, path) if isinstance(command, LazyGroup) else [path]
    return found


def small_model() -> Model:
    """A network for 32×32 digits that all formats can hold; all of its layers fire."""
    torch.manual_seed(1)
    modules = nn.Sequential(
        layers.Conv2d(1, 3, 5, 4),
        SpikingNeuron(NeuronSpec(v_threshold=0.1), 2),
        layers.Flatten(),
        nn.Linear(147, 10),
        SpikingNeuron(NeuronSpec(v_threshold=0.05), 2),
        layers.RateReadout(10, 10),
    )
    module = GraphModule(trace(modules, (1, 32, 32), 2))
    module.load_state_dict(modules.state_dict())
    classes = tuple(f"{CAT}{i}" for i in range(10))
    return from_module(module, ModelInfo("dense", MNIST_NORM, classes, {"data": "mnist"}))


@dataclass(frozen=True)
class Job:
    """One run: where, which words (bytes as hexadecimal text), what its streams are."""

    folder: str
    words: tuple[str, ...]
    stdout: str
    stderr: str

    @property
    def place(self) -> Path:
        return Path(self.folder)

    def text(self, name: str, encoding: str = "utf-8") -> str:
        return (self.place / name).read_bytes().decode(encoding)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that commands read, by name."""
    folder = tmp_path_factory.mktemp("made")
    model = small_model()
    save(model, folder / NET)
    integers = integer_network(make_plan(model, UnitChoice()))
    save(replace(integers, info=model.info), folder / INTEGERS)
    export_event(model, folder / "net.event", source_sha256=file_sha256(folder / NET))
    export_nir(model, folder / "net.nir")
    network = create("spikingvgg5", input_shape=(1, 32, 32), classes=10, hidden=2).module()
    torch.save(network.state_dict(), folder / "best.pt")
    (folder / "somenets.py").write_text(NETS)
    np.save(folder / f"{CAT[:2]}.npy", np.zeros((2, 1, 32, 32), np.uint8))
    write_mnist_folder(folder / "data", "")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(made: dict[str, bytes], place: Path) -> None:
    (place / "data").mkdir()
    for name, content in made.items():
        (place / name).write_bytes(content)


def job(
    place: Path, made: dict[str, bytes], words: tuple[object, ...], stdout: str, stderr: str
) -> Job:
    """A run in a folder of its own, `place`, with the files of `made` in it."""
    place.mkdir(parents=True)
    put(made, place)
    given = tuple(os.fsencode(str(word)).hex() for word in words)
    return Job(str(place), given, stdout, stderr)


def run(folder: Path, jobs: list[Job], **environment: str) -> list[int]:
    """Exit codes of all jobs, run one after the other under these variables."""
    description, codes = folder / "jobs.json", folder / "codes.json"
    description.write_text(json.dumps([asdict(each) for each in jobs]))
    usual = {key: value for key, value in os.environ.items() if not key.startswith("LC_")}
    own = {"OMP_NUM_THREADS": "1", "SOUL_DEPLOY_PROGRESS": "0"}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(description), str(codes)],
        env=usual | own | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(codes.read_text())
    assert len(found) == len(jobs)
    return found


def prepared(folder: Path, made: dict[str, bytes], stdout: str, stderr: str) -> dict[str, Job]:
    """A job for every command, by its name."""
    return {
        " ".join(path): job(folder / "_".join(path), made, (*path, *words), stdout, stderr)
        for path, (words, _) in WORDS.items()
    }


def written(name: str, each: Job) -> list[Path]:
    """What the command of this name was to write and wrote."""
    pattern = WORDS[tuple(name.split())][1]
    return [] if pattern is None else list(each.place.glob(pattern))


def check_files(name: str, each: Job) -> None:
    assert bool(written(name, each)) == (WORDS[tuple(name.split())][1] is not None), name


def test_every_command_is_tested_here() -> None:
    assert set(WORDS) == set(commands())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_an_encoding_lacks_is_shown_in_ascii(
    encoding: str, made: dict[str, bytes], tmp_path: Path
) -> None:
    jobs = prepared(tmp_path, made, "stdout", "stderr")
    codes = run(tmp_path, list(jobs.values()), **ENCODINGS[encoding])
    for code, (name, each) in zip(codes, jobs.items(), strict=True):
        assert code == 0, (name, each.text("stderr", encoding))
        shown = each.text("stdout", encoding)
        assert len(shown) > 40 and "Traceback" not in each.text("stderr", encoding), name
        assert name in ("demo", "card") or "+--" in shown or (name == "energy" and "-+" in shown), (
            shown
        )
        check_files(name, each)
    shown = jobs["run"].text("stdout", encoding)
    if encoding == "ascii":  # Python takes file names for bytes there
        assert "\\xc3\\xa9\\xe7\\x8c\\xab.npy" in shown and "\\xe9\\u732b->[/red]:smile:" in shown
    else:
        assert "é\\u732b.npy" in shown and "é\\u732b->[/red]:smile:" in shown


def one_line(text: str) -> str:
    """The only line that is an error."""
    (line,) = [line for line in text.splitlines() if line.startswith("Error")]
    assert text.endswith(line + "\n")
    return line


STREAMS = {
    "full": ("/dev/full", "stderr"),
    "closed": ("closed", "stderr"),
    "gone": ("gone", "stderr"),
    "no stderr": ("stdout", "closed"),
    "full stderr": ("stdout", "/dev/full"),
    "neither": ("closed", "closed"),
}
LOUD = ("train", "prune compact", "verify")  # enough to see what a full standard error does
Runs = dict[str, list[tuple[int, str, Job]]]


@pytest.fixture(scope="module")
def runs(made: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Exit code, name and job of every command, by what its streams are."""
    folder = tmp_path_factory.mktemp("streams")
    jobs = {kind: prepared(folder / kind, made, *streams) for kind, streams in STREAMS.items()}
    jobs["full stderr"] = {name: jobs["full stderr"][name] for name in LOUD}
    codes = iter(run(folder, [each for kind in jobs.values() for each in kind.values()]))
    return {
        kind: [(next(codes), name, each) for name, each in found.items()]
        for kind, found in jobs.items()
    }


@pytest.mark.parametrize(
    ("kind", "reason"), [("full", "No space left on device"), ("closed", "Bad file descriptor")]
)
def test_a_report_that_cannot_be_printed_is_an_error_and_names_what_was_written(
    kind: str, reason: str, runs: Runs
) -> None:
    for code, name, each in runs[kind]:
        line = one_line(each.text("stderr"))
        assert code == 1, (name, line)
        assert f"the report could not be printed: standard output: {reason}" in line
        check_files(name, each)
        for path in written(name, each):
            assert str(path.relative_to(each.place)) in line and "written;" in line, line


def test_who_reads_no_more_ends_a_command_in_silence(runs: Runs) -> None:
    for code, name, each in runs["gone"]:
        shown = each.text("stderr")
        assert code == 141, (name, shown)
        assert "Error" not in shown and "Traceback" not in shown and "Broken" not in shown, shown
        check_files(name, each)


@pytest.mark.parametrize("kind", ["no stderr", "full stderr"])
def test_no_work_ends_for_want_of_standard_error(kind: str, runs: Runs) -> None:
    for code, name, each in runs[kind]:
        assert code == 0 and len(each.text("stdout")) > 40, name
        check_files(name, each)


def test_both_streams_closed(runs: Runs) -> None:
    for code, name, each in runs["neither"]:
        assert code == 1, name
        check_files(name, each)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "needs the package 'torch', which is not installed here"),
        ("broken", "cannot import a package: libcudart.so.12: cannot open shared object file"),
    ],
)
def test_without_pytorch_commands_name_it_and_how_to_get_it(
    how: str, said: str, made: dict[str, bytes], tmp_path: Path
) -> None:
    jobs = {}
    for path, (words, _) in WORDS.items():
        given = [word for word in words if word != "--dry_run"]
        for kind, after in (("work", given), ("help", ["--help"])):
            place = tmp_path / f"{'_'.join(path)}_{kind}"
            jobs[(*path, kind)] = job(place, made, (*path, *after), "stdout", "stderr")
    codes = run(tmp_path, list(jobs.values()), FORBID=how)
    works = set()
    for code, (name, each) in zip(codes, jobs.items(), strict=True):
        shown = each.text("stderr")
        if code == 0:
            works.add(name)
            continue
        line = one_line(shown)
        assert code == 2 and shown == line + "\n", (name, shown)
        assert f"soul-deploy {' '.join(name[:-1])} {said}" in line
        assert "(pip install . in its source)" in line
        assert not written(" ".join(name[:-1]), each)
    free = {("run",), ("inspect",), ("warm-up",), ("bench", "sparse")}
    assert works == {(*path, kind) for path in free for kind in ("work", "help")} | {
        ("demo", "help")
    }


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = line.replace("soul-deploy", f"'{sys.executable}' -m soul_deploy")
    return subprocess.run(
        ["bash", "-c", f"{command}; echo codes ${{PIPESTATUS[@]}} >&2"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("soul-deploy inspect net.event | head -1", ("codes 0 0", "codes 141 0")),
        ("soul-deploy inspect net.event >&-", ("codes 1",)),
        ("soul-deploy inspect none.event 2>&-", ("codes 2",)),
        ("soul-deploy --version > /dev/full", ("codes 1",)),
        ("soul-deploy run --help >&-", ("codes 1",)),
        ("soul-deploy run --help 2>&- | grep -c stream", ("codes 0 0",)),
    ],
)
def test_a_shells_own_redirections(
    line: str, codes: tuple[str, ...], made: dict[str, bytes], tmp_path: Path
) -> None:
    put(made, tmp_path)
    done = shell(line, tmp_path)
    *said, last = done.stderr.splitlines()
    assert last in codes and "Traceback" not in done.stderr, done.stderr
    silent = "head" in line or "2>" in line
    assert len(said) == (0 if silent else 1), said


def test_nothing_that_is_written_gets_the_number_of_a_closed_stream(
    made: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / NET).write_bytes(made[NET])
    done = shell(f"soul-deploy prune compact '{NET}' -o out >&- 2>&-", tmp_path)
    assert "codes 1" in done.stderr
    assert (tmp_path / "out").read_bytes()[8:9] == b"{"
