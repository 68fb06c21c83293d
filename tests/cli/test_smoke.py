"""What an installed package must do; also run against the wheel, from another folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, arrays_of
from soul_deploy.runtime.engine.network import load as load_network
from soul_deploy.zoo.registry import NetworkOptions, create


def small_model() -> Model:
    torch.manual_seed(0)
    options = NetworkOptions((1, 12, 12), 10, NeuronSpec(), 3, hidden=8)
    network, graph = create("spikingvgg5", options)
    return Model(graph, arrays_of(network.state_dict()))


def test_every_command_has_help_and_its_line_in_the_list() -> None:
    runner = CliRunner()
    for path in (
        *(["demo"], ["train"], ["verify"], ["inspect"], ["run"], ["bench", "sparse"]),
        *(["prune", "structured"], ["prune", "compact"]),
        *(["export", "onnx"], ["export", "event"]),
    ):
        shown = runner.invoke(root, [*path, "--help"])
        assert shown.exit_code == 0, shown.output
        assert len(shown.output.splitlines()) > 5
        listed = runner.invoke(root, [*path[:-1], "--help"]).output
        assert path[-1] in listed


def test_help_and_version_import_no_torch() -> None:
    code = (
        "import sys\nfrom soul_deploy.cli.main import root\n"
        "for args in (['--help'], ['--version'], ['export', '--help']):\n"
        "    root.main(args, standalone_mode=False)\n"
        "heavy = {'torch', 'numba', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(root, ["trian"])
    assert result.exit_code == 2
    assert "No such command 'trian'" in result.output


def test_a_model_goes_from_file_to_event_network(tmp_path: Path) -> None:
    model = small_model()
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    export_event(loaded, tmp_path / "net.event.safetensors")
    x = torch.rand(2, 1, 12, 12)
    expected = model.module()(x).detach().numpy()
    found = load_network(tmp_path / "net.event.safetensors").run(x.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
