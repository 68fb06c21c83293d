"""Help: options under headings, and a last line that runs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_next import NETS
from test_output import commands
from torch import nn

from soul_deploy.base.files import file_sha256
from soul_deploy.cli.main import root
from soul_deploy.cli.parsing import HEADINGS, SoulCommand
from soul_deploy.export.event.build import export_event
from soul_deploy.export.nir.write import export_nir
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.zoo.create import create

CHEAP = {"demo", "verify", "inspect", "run", "compact", "onnx", "event", "nir", "torch", "energy"}
CHEAP |= {"warm-up", "zoo", "report"}
PATHS = commands()


def command_of(path: tuple[str, ...]) -> SoulCommand:
    found: click.Command | None = root
    for word in path:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)
    assert isinstance(found, SoulCommand)
    return found


def digits_model() -> Model:
    """A network for 8×8 digits that all formats can hold; all of its layers fire."""
    torch.manual_seed(1)
    modules = nn.Sequential(
        layers.Conv2d(1, 3, 3, 2),
        SpikingNeuron(NeuronSpec(v_threshold=0.1), 2),
        layers.Flatten(),
        nn.Linear(27, 10),
        SpikingNeuron(NeuronSpec(v_threshold=0.05), 2),
        layers.RateReadout(10, 10),
    )
    module = GraphModule(trace(modules, (1, 8, 8), 2))
    module.load_state_dict(modules.state_dict())
    return from_module(module, ModelInfo())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that examples name."""
    model = digits_model()
    save(model, tmp_path / "model.safetensors")
    sha256 = file_sha256(tmp_path / "model.safetensors")
    export_event(model, tmp_path / "net.event", source_sha256=sha256)
    export_nir(model, tmp_path / "net.nir")
    network = create("spikingvgg5", input_shape=(3, 32, 32), classes=10, hidden=8).module()
    torch.save(network.state_dict(), tmp_path / "best.pt")
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "mynets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    return tmp_path


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_last_line_of_help_runs(path: tuple[str, ...], place: Path) -> None:
    """Each example is parsed as its command does; those that take no training are run."""
    shown = CliRunner().invoke(root, [*path, "--help"])
    assert shown.exit_code == 0, shown.output
    last = shown.stdout.splitlines()[-1]
    words = shlex.split(last.removeprefix("Example: soul-deploy "))
    assert last.startswith("Example: soul-deploy ") and tuple(words[: len(path)]) == path
    if path[-1] in CHEAP:
        done = CliRunner().invoke(root, words)
        assert done.exit_code == 0, done.output
    else:
        command_of(path).make_context(path[-1], words[len(path) :])


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_each_option_has_a_heading_and_stands_under_it_once(path: tuple[str, ...]) -> None:
    lines = CliRunner().invoke(root, [*path, "--help"]).stdout.splitlines()
    headings = [line[:-1] for line in lines if line[:-1] in HEADINGS and line.endswith(":")]
    assert headings == [name for name in HEADINGS if name in headings]
    assert headings[-1] == "Other" and len(headings) > 1
    assert "Options:" not in lines
    command = command_of(path)
    for parameter in command.get_params(click.Context(command)):
        hidden = getattr(parameter, "hidden", isinstance(parameter, click.Argument))
        flags = {*parameter.opts, *parameter.secondary_opts}
        rows = [line for line in lines if line.startswith("  -") and flags & set(_words(line))]
        assert len(rows) == (not hidden), parameter.opts


def _words(line: str) -> list[str]:
    """The words of a row before its text."""
    return line[2:].partition("  ")[0].replace(",", " ").replace("/", " ").split()


def test_groups_of_options_name_their_heading() -> None:
    text = CliRunner().invoke(root, ["train", "--help"]).stdout
    parts = {part.partition(":\n")[0]: part for part in text.split("\n\n")}
    for heading, flag in (
        ("Data", "--data_dir"),
        ("Network", "--tau"),
        ("Training", "--learning_rate"),
        ("Training", "--device"),
        ("Files", "--resume"),
        ("Output", "--format"),
        ("Other", "--help"),
    ):
        assert flag in parts[heading], heading
    text = CliRunner().invoke(root, ["prune", "structured", "--help"]).stdout
    assert "--prune_ratio" in text.partition("\nMethod:")[2].partition("\nTraining:")[0]


def test_help_of_commands_for_devices_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom soul_deploy.cli.main import root\n"
        "for args in (['run', '--help'], ['inspect', '--help'], ['warm-up', '-h']):\n"
        "    root.main(args, standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numba', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shell_completes_commands_without_importing_them() -> None:
    """click's own protocol: words, the place of the one to complete, and a line for each."""
    code = "import sys; sys.argv[0] = 'soul-deploy'; from soul_deploy.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: print({'torch', 'numpy'} & set(sys.modules))"
    for words, found in (("soul-deploy ver", "verify"), ("soul-deploy prune str", "structured")):
        asked = {"_SOUL_DEPLOY_COMPLETE": "bash_complete", "COMP_WORDS": words}
        asked["COMP_CWORD"] = str(len(words.split()) - 1)
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
        )
        assert done.stdout.splitlines() == [f"plain,{found}", "set()"], done.stderr
