"""Weights as Soul writes them, through the commands: its spikes, and what its file names say."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from places import FIXTURES
from safetensors import safe_open
from torch import Tensor

from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, Split
from soul_deploy.ir import SOUL_NEURONS
from soul_deploy.model.file import load
from soul_deploy.model.model import Model, Normalization
from soul_deploy.zoo.soul_names import SoulName, read_name

HIDDEN = {"lif": "48", "plif": "32"}
STILL = ["--learning_rate", "1e-38", "--freeze_batch_norm", "--epochs", "1"]
"""One epoch that leaves float32 weights as they are."""
COMMANDS = {
    "structured": [
        *("prune", "structured", "--mode", "load", *STILL),
        *("--prune_ratio", "0", "--regrow_ratio", "0"),
    ],
    "unstructured": ["prune", "unstructured", *STILL, "--not_prune_weight", "--not_prune_neuron"],
}
WRITTEN = {"structured": "pruned", "unstructured": "best"}


def golden(neuron: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Weights, input, spikes and logits that Soul's own code made, and Soul's settings."""
    with safe_open(FIXTURES / f"spikingvgg5_{neuron}.safetensors", framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()["config"])


def soul_file(neuron: str, name: str) -> Path:
    """Soul's state dict in a file of this name."""
    tensors, _ = golden(neuron)
    start = "weights."
    weights = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    torch.save(weights, name)
    return Path(name)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty folder, a tiny CIFAR-10; the list of data sets that were read."""
    read: list[str] = []

    def tiny(name: str) -> Callable[[Path, bool], Data]:
        def reader(data_dir: Path, download: bool) -> Data:
            read.append(name)
            random = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (4, 3, 32, 32), generator=random).to(torch.uint8)
            part = Split(images, torch.tensor([0, 1, 2, 3]))
            norm = Normalization((0.5,) * 3, (0.25,) * 3)
            return Data(name, part, part, part, tuple("0123456789"), norm)

        return reader

    for name in ("cifar10", "svhn"):
        monkeypatch.setitem(READERS, name, tiny(name))
    monkeypatch.chdir(tmp_path)
    return read


def call(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


def prune(command: str, path: Path, *words: str, hidden: str = "32") -> Result:
    return call(*COMMANDS[command], "--model_path", str(path), "--hidden", hidden, *words)


def written(command: str, stem: str) -> Model:
    return load(Path("saved_models") / f"{WRITTEN[command]}_{stem}.safetensors")


def assert_souls_spikes(model: Model, neuron: str) -> None:
    tensors, _ = golden(neuron)
    recording = model.module().record(tensors["input"])
    for name, spikes in recording.spikes.items():
        expected = tensors[f"spikes.{name}"].bool()
        assert expected.any()
        assert torch.equal(spikes, expected), name
    torch.testing.assert_close(recording.logits, tensors["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("middle", ["cifar10_T4_2025", "cifar10_2099"])
def test_a_soul_file_fires_souls_spikes(command: str, neuron: str, middle: str) -> None:
    """No flag says what the neuron computes but its name; --hidden is the fixture's small head."""
    path = soul_file(neuron, f"best_spikingvgg5_{neuron}_{middle}.pt")
    result = prune(command, path, "--neuron_type", neuron, hidden=HIDDEN[neuron])
    assert result.exit_code == 0, result.output
    model = written(command, f"spikingvgg5_{neuron}_cifar10_T4_2025")
    assert_souls_spikes(model, neuron)
    first, *more = model.info.provenance["assumptions"]
    assert first == f"{path.name}: taken from its name: model spikingvgg5"
    constants = {
        "lif": "tau 2, v_threshold 1, v_reset 0, decay_input yes, fire gt",
        "plif": "v_threshold 1, v_reset 0, decay_input no, fire gt",
    }[neuron]
    steps = "" if "_T4_" in middle else ", T 4"
    assert more == [
        f"{path.name} holds weights only; assumed without being told (Soul's {neuron}): "
        f"{constants}{steps}"
    ]
    assert all(sentence in result.stderr for sentence in (first, *more))


def test_the_name_alone_is_enough() -> None:
    path = soul_file("plif", "best_SpikingVGG5_PLIF_CIFAR10_T4_7.pt")
    result = prune("structured", path)
    assert result.exit_code == 0, result.output
    assert f"{path.name}: taken from its name: model spikingvgg5, neuron plif" in result.stderr
    assert_souls_spikes(written("structured", "spikingvgg5_plif_cifar10_T4_2025"), "plif")


def test_flags_win_over_souls_constants() -> None:
    path = soul_file("plif", "best_spikingvgg5_plif_cifar10_T4_2025.pt")
    words = ["--decay_input", "--v_threshold", "0.5", "--v_reset", "none", "--surrogate", "sigmoid"]
    result = prune("structured", path, *words)
    assert result.exit_code == 0, result.output
    model = written("structured", "spikingvgg5_plif_cifar10_T4_2025")
    for node in model.graph.populations:
        spec = node.neuron
        assert (spec.decay_input, spec.v_threshold, spec.v_reset) == (True, 0.5, None)
        assert (spec.surrogate, spec.surrogate_alpha, spec.fire) == ("sigmoid", 4.0, "gt")
    told = model.info.provenance["assumptions"][1]
    assert told.endswith("assumed without being told (Soul's plif): fire gt")


@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_constants_are_those_of_souls_settings(neuron: str) -> None:
    """Against the settings with which Soul's own code made the fixture."""
    _, config = golden(neuron)
    spec = asdict(SOUL_NEURONS[neuron])
    tau = "init_tau" if neuron == "plif" else "tau"
    assert spec.pop("family") == neuron and spec.pop("tau") == config[tau]
    for name in ("v_threshold", "v_reset", "decay_input", "surrogate", "detach_reset"):
        assert spec[name] == config[name], name


@pytest.mark.parametrize("command", [["train"], ["prune", "structured"]])
def test_new_networks_have_souls_constants(command: list[str]) -> None:
    small = ["-m", "spikingvgg5", "--hidden", "4", "-T", "2", *STILL]
    for flags, decayed in ((["-n", "plif"], False), (["-n", "PLIF", "--decay_input"], True)):
        result = call(*command, *small, *flags)
        assert result.exit_code == 0, result.output
        model = load(Path("saved_models/best_spikingvgg5_plif_cifar10_T2_2025.safetensors"))
        assert {node.neuron.decay_input for node in model.graph.populations} == {decayed}
        assert "assumptions" not in model.info.provenance
    text = " ".join(call(*command, "--help").output.split())
    assert "[default: Soul's, by neuron: no; LIF yes, RPLIF yes]" in text


def test_a_model_file_keeps_its_neurons() -> None:
    """What it was trained with is in it; Soul's constants are for networks that are new."""
    small = ["-m", "spikingvgg5", "--hidden", "4", "-T", "2", *STILL]
    assert call("train", *small, "-n", "plif", "--decay_input").exit_code == 0
    path = Path("saved_models/best_spikingvgg5_plif_cifar10_T2_2025.safetensors")
    result = prune("structured", path, "-n", "plif", hidden="4")
    assert result.exit_code == 0, result.output
    model = written("structured", "spikingvgg5_plif_cifar10_T2_2025")
    assert all(node.neuron.decay_input for node in model.graph.populations)
    refused = prune("structured", path, "--no_decay_input", hidden="4")
    assert refused.exit_code == 2
    assert "--decay_input False given, but" in refused.stderr


def test_a_run_goes_on_with_the_constants_that_it_began_with() -> None:
    """A checkpoint of a PLIF with decayed input, as versions before wrote it by default."""
    small = ["train", "-m", "spikingvgg5", "--hidden", "4", "-T", "2", "-n", "plif", *STILL]
    assert call(*small, "--decay_input").exit_code == 0
    refused = call(*small, "--resume", "auto")
    assert refused.exit_code == 2
    assert "task.neuron.decay_input was True, now False" in refused.stderr
    assert call(*small, "--resume", "auto", "--decay_input").exit_code == 0


OTHERS = (
    *("clif", "glif", "ielif", "ilif", "intlif", "izhikevich", "ltmd", "psn", "rplif", "stbif"),
    "tlif",
)


@pytest.mark.parametrize("neuron", OTHERS)
def test_another_neurons_file_is_refused_where_a_neuron_is_asked_for(
    here: list[str], neuron: str
) -> None:
    """Its tensors are LIF's: only the name tells."""
    path = soul_file("lif", f"best_spikingvgg5_{neuron}_cifar10_T4_2025.pt")
    for command in COMMANDS:
        result = prune(command, path, "--neuron_type", "lif", hidden="48")
        assert result.exit_code == 2, result.output
        assert (
            f"{path}: its name says neuron {neuron}, but neuron lif is asked for (--neuron_type); "
            f"give --neuron_type {neuron}. If the file's name is wrong, rename the file"
        ) in result.stderr
    assert here == [] and [item.name for item in Path().iterdir()] == [path.name]


def test_a_file_whose_name_says_another_neuron_is_read_with_it() -> None:
    """INTLIF's own constants are assumed, and said; Soul's carries no membrane."""
    path = soul_file("lif", "best_spikingvgg5_intlif_cifar10_T4_2025.pt")
    result = prune("structured", path, hidden="48")
    assert result.exit_code == 0, result.output
    assert f"{path.name}: taken from its name: model spikingvgg5, neuron intlif" in result.stderr
    assert "tau 4, v_threshold 1, v_reset 0, norm 8, top 8, carry 0" in result.stderr
    model = written("structured", "spikingvgg5_intlif_cifar10_T4_2025")
    assert {node.neuron.family for node in model.graph.populations} == {"intlif"}


@pytest.mark.parametrize("neuron", ["glif", "ltmd", "psn"])
def test_a_file_that_lacks_what_its_neuron_has_learned_is_refused(neuron: str) -> None:
    path = soul_file("lif", f"best_spikingvgg5_{neuron}_cifar10_T4_2025.pt")
    result = prune("structured", path, hidden="48")
    assert result.exit_code == 1 and f"{path}: lacks weights features.0.sn." in result.stderr


@pytest.mark.parametrize("neuron", ["eif", "newlif"])
@pytest.mark.parametrize("middle", ["cifar10_T4_2025", "cifar10_2099"])
@pytest.mark.parametrize("asked", [[], ["--neuron_type", "lif"]])
def test_another_neurons_file_is_refused(
    here: list[str], neuron: str, middle: str, asked: list[str]
) -> None:
    """Its tensors are LIF's: only the name tells."""
    path = soul_file("lif", f"best_spikingvgg5_{neuron}_{middle}.pt")
    for command in COMMANDS:
        result = prune(command, path, *asked, hidden="48")
        assert result.exit_code == 2, result.output
        default = "" if asked else ", the default"
        assert (
            f"{path}: its name says neuron {neuron}, but neuron lif is asked for (--neuron_type"
            f"{default}); neuron {neuron} cannot be loaded, valid: lif, plif, if, " in result.stderr
        )
    assert here == [] and [item.name for item in Path().iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "best_spikingvgg5_lif_cifar10_T4_2025.pt",
            ["-m", "spikingvgg9"],
            "its name says model spikingvgg5, but model spikingvgg9 is asked for (--model); "
            "give --model spikingvgg5",
        ),
        (
            "best_spikingvgg5_lif_cifar10_T4_2025.pt",
            ["-n", "plif"],
            "its name says neuron lif, but neuron plif is asked for (--neuron_type); give "
            "--neuron_type lif",
        ),
        (
            "pruned_spikingvgg5_lif_svhn_1.pt",
            ["-dataset", "cifar10"],
            "its name says data set svhn, but data set cifar10 is asked for (--dataset_name); "
            "give --dataset_name svhn",
        ),
        (
            "best_spikingvgg5_lif_cifar10_T8_1.pth",
            ["-T", "4"],
            "its name says T 8, but T 4 is asked for (--time_step); give --time_step 8",
        ),
        (
            "up_search_lastest_spikformer256_lif_imagenet_1.pth",
            [],
            "its name says data set imagenet, but data set cifar10 is asked for "
            "(--dataset_name, the default); data set imagenet cannot be loaded",
        ),
        (
            "up_search_lastest_spikformer256_lif_cifar10_1.pth",
            ["-m", "spikingvgg5"],
            "its name says model spikformer256, but model spikingvgg5 is asked for (--model); "
            "model spikformer256 cannot be loaded",
        ),
        (
            "my_clif_weights.pt",
            ["-m", "spikingvgg5", "-n", "lif"],
            "its name says neuron clif, but neuron lif is asked for",
        ),
    ],
)
def test_name_and_flags_that_disagree_are_refused(
    here: list[str], name: str, words: list[str], message: str
) -> None:
    path = soul_file("lif", name)
    result = prune("structured", path, *words, hidden="48")
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "rename the file" in result.stderr
    assert here == []


def test_what_the_name_says_holds_where_no_flag_is_given(here: list[str]) -> None:
    path = soul_file("lif", "best_spikingvgg5_lif_svhn_T2_2025.pt")
    result = prune("unstructured", path, hidden="48")
    assert result.exit_code == 0, result.output
    model = written("unstructured", "spikingvgg5_lif_svhn_T2_2025")
    assert here == ["svhn"] and model.graph.time_steps == 2
    assert f"{path.name}: taken from its name: model spikingvgg5, data set svhn, T 2" in (
        result.stderr
    )


def test_a_renamed_file_is_used_and_its_neuron_said() -> None:
    path = soul_file("lif", "weights.pt")
    result = prune("structured", path, "-m", "spikingvgg5", hidden="48")
    assert result.exit_code == 0, result.output
    line = (
        "weights.pt holds weights only; assumed without being told (Soul's lif): neuron lif, "
        "tau 2, v_threshold 1, v_reset 0, decay_input yes, fire gt, T 4"
    )
    assert result.stderr.splitlines().count(line) == 1
    target = Path("saved_models/pruned_spikingvgg5_lif_cifar10_T4_2025.safetensors")
    assert load(target).info.provenance["assumptions"] == [line]
    for path in (target, target.with_name(f"{target.stem}_compact.safetensors")):
        shown = call("inspect", str(path))
        assert shown.exit_code == 0 and f"assumed       {line}" in shown.stdout
        assert json.loads(call("inspect", str(path), "--format", "json").stdout)["provenance"][
            "assumptions"
        ] == [line]
    again = call(*COMMANDS["structured"], "--model_path", str(target), "--model_dir", "again")
    assert again.exit_code == 0, again.output
    assert line not in again.stderr
    kept = load(Path("again") / target.name)
    assert kept.info.provenance["assumptions"] == [line]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("best_spikingvgg5_clif_cifar10_T4_2025.pt", SoulName("spikingvgg5", "clif", "cifar10", 4)),
        ("best_SpikingVGG9_LIF_cifar10_2099.pt", SoulName("spikingvgg9", "lif", "cifar10", None)),
        (
            "up_finetune_sparsified_sewresnet18_plif_svhn_3.pth",
            SoulName("sewresnet18", "plif", "svhn", None),
        ),
        ("best_rnn_if_cifar10_T4_1.pt", None),
        ("spikingvgg5_if_digits_T2.pt", SoulName("spikingvgg5", "if", "digits", 2)),
        ("my_clif_net.pt", SoulName(None, "clif", None, None)),
        ("what_if.pt", None),
        ("lif_or_plif.pt", None),
        ("checkpoint.pth", None),
        ("best_2025.pt", None),
    ],
)
def test_names(name: str, found: SoulName | None) -> None:
    assert read_name(Path("clif") / name) == found


FACTORY = """
from soul_deploy.ir import NeuronSpec
from soul_deploy.zoo.registry import NetworkOptions, create

def make(classes, input_shape, time_steps):
    return create("spikingvgg5", NetworkOptions(
        input_shape, classes, NeuronSpec("lif"), time_steps, hidden=48))[0]
"""


def test_import_torch_reads_names_too(here: list[str]) -> None:
    Path("theirs.py").write_text(FACTORY)
    words = ["import", "torch", "theirs:make", "--input_shape", "3 32 32", "--classes", "10"]

    def imported(name: str, *more: str) -> Result:
        return call(*words, "--model_path", str(soul_file("lif", name)), "-o", "m.st", *more)

    refused = imported("best_spikingvgg5_clif_cifar10_T4_2025.pt")
    assert refused.exit_code == 2, refused.output
    assert "its name says neuron clif, but the network's neurons are lif" in refused.stderr
    refused = imported("best_spikingvgg5_lif_cifar10_T8_2025.pt", "-T", "4")
    assert refused.exit_code == 2
    assert "its name says T 8, but T 4 is asked for (--time_step)" in refused.stderr
    assert not Path("m.st").exists()
    result = imported("best_spikingvgg5_lif_cifar10_T8_2025.pt")
    assert result.exit_code == 0, result.output
    model = load(Path("m.st"))
    assert model.graph.time_steps == 8
    taken, told = model.info.provenance["assumptions"]
    assert taken == "best_spikingvgg5_lif_cifar10_T8_2025.pt: taken from its name: T 8"
    assert told.startswith(
        "best_spikingvgg5_lif_cifar10_T8_2025.pt holds weights only; the neurons"
    )
    assert taken in result.stderr and told in result.stderr
