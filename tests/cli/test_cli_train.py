"""`train` and `prune structured` as typed: spellings, files, and what wrong input is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from places import FIXTURES

from soul_deploy.base.errors import SoulDeployError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.cli.parsing import existing_indexes, join_lists, parse_indexes
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.model.file import load

SMALL = ["--model", "SpikingVGG5", "--hidden", "8", "--dataset_name", "Digits", "-T", "2"]


def call(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


def words_of(text: str) -> list[str]:
    """The words that a shell makes of a command without quotes."""
    return text.split()


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on few samples."""
    whole = load_data("digits", Path("."))

    def few(data_dir: Path, download: bool) -> Data:
        train, test = whole.train.select(torch.arange(64)), whole.test.select(torch.arange(50))
        norm = whole.normalization
        return Data("digits", train, whole.validation, test, whole.classes, norm)

    monkeypatch.setitem(READERS, "digits", few)
    monkeypatch.chdir(tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    result = call("train", *SMALL, "--epochs", "1", "--threads", "1")
    assert result.exit_code == 0, result.output
    return tmp_path / "saved_models" / "best_spikingvgg5_lif_digits_T2_2025.safetensors"


def test_a_refused_removal_leaves_the_masked_network(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*ignored: object, **named: object) -> None:
        raise SoulDeployError("nothing would be left")

    monkeypatch.setattr("soul_deploy.prune.removal.planner.plan_removal", refuse)
    words = ("--mode", "load", "--model_path", str(trained), "--prune_ratio", "0.5")
    loop = ("--prune_epochs", "1", "--dataset_name", "digits", "-T", "2", "--threads", "1")
    result = call("prune", "structured", *words, *loop)
    assert result.exit_code == 1 and "nothing would be left" in result.output
    (masked,) = (tmp_path / "saved_models").glob("pruned_*.safetensors")
    assert load(masked).channel_masks


def test_train_writes_a_model_file_and_prints_what_next(trained: Path, tmp_path: Path) -> None:
    model = load(trained)
    assert model.info.stage == "dense" and model.graph.time_steps == 2
    assert model.channel_masks == {} and len(model.info.classes) == 10
    made = model.info.provenance
    assert made["data"] == "digits" and made["recipe"]["seed"] == 2025
    assert 0 <= made["accuracy"]["test"] <= 1 and "torch" in made["versions"]
    log = (tmp_path / "logs" / "train_spikingvgg5_lif_digits_T2_2025.jsonl").read_text()
    assert json.loads(log)["epoch"] == 1


def test_train_prints_clean_json() -> None:
    spellings = ["-b", "32", "-lr", "2e-3", "-epochs", "2", "--scheduler", "Step", "1", "-n", "if"]
    result = call("train", *SMALL, *spellings, "--v-reset", "None", "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "soul-deploy/train/1"
    assert [epoch["learning_rate"] for epoch in document["epochs"]] == [2e-3, 2e-4]
    assert "train 1/2: loss" in result.stderr and "Next" not in result.stdout
    neuron = load(Path(document["model"])).graph.populations[0].neuron
    assert (neuron.family, neuron.v_reset) == ("if", None)
    assert document["bytes"] == Path(document["model"]).stat().st_size


def test_two_runs_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    again = call("train", *SMALL, "-epochs", "1", "--threads", "1", "-model_dir", "again")
    assert again.exit_code == 0, again.output
    first, second = load(trained), load(tmp_path / "again" / trained.name)
    for name, array in first.state.items():
        assert (array == second.state[name]).all(), name


def test_soul_command_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the epochs and the data are made small; the file is a bare state dict."""
    from soul_deploy.data.datasets import Split
    from soul_deploy.ir import NeuronSpec
    from soul_deploy.model.model import Normalization
    from soul_deploy.zoo.registry import NetworkOptions, create

    def tiny(data_dir: Path, download: bool) -> Data:
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (4, 3, 8, 8), generator=random).to(torch.uint8)
        part = Split(images, torch.tensor([0, 1, 2, 3]))
        norm = Normalization((0.5,) * 3, (0.25,) * 3)
        return Data("cifar10", part, part, part, tuple("0123456789"), norm)

    monkeypatch.setitem(READERS, "cifar10", tiny)
    line = (FIXTURES / "soul_commands.txt").read_text().splitlines()[0]
    words = words_of(line.removeprefix("python structured_prune.py"))
    words[words.index("--epochs") + 1] = "1"
    model_path = Path(words[words.index("--model_path") + 1])
    network, _ = create("spikingvgg9", NetworkOptions((3, 8, 8), 10, NeuronSpec(), 4))
    model_path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), model_path)
    result = call("prune", "structured", *words, "--dry_run")
    assert result.exit_code == 0, result.output
    missing = "8, 9, 10, 11, 12 ignored; this network has 8 spiking layers, 0 to 7"
    assert f"Warning: pruning_nodes: {missing}" in result.stderr
    assert result.stderr.count("Warning") == 1
    assert files(tmp_path) == [str(model_path)]
    result = call("prune", "structured", *words)
    assert result.exit_code == 0, result.output
    stem = "saved_models/pruned_spikingvgg9_lif_cifar10_T4_2025"
    masked, compact = (load(Path(f"{stem}.safetensors")), load(Path(f"{stem}_compact.safetensors")))
    channels = sum(len(keep) for keep in masked.channel_masks.values())
    assert sum(int(keep.sum()) for keep in masked.channel_masks.values()) == 9 * channels // 10
    assert compact.info.stage == "compact"


def test_a_model_file_alone_says_what_to_load(trained: Path, tmp_path: Path) -> None:
    """Neither --mode nor the data set is typed; cifar10, the default, isn't here."""
    for how in ("structured", "unstructured"):
        result = call("prune", how, "--model_path", str(trained), "--dry_run")
        assert result.exit_code == 0, result.output
    words = ("--model_path", str(trained), "--epochs", "1", "--prune_ratio", "0.2")
    assert call("prune", "structured", *words).exit_code == 0
    (compact,) = (tmp_path / "saved_models").glob("pruned_*_digits_*_compact.safetensors")
    assert load(compact).info.provenance["data"] == "digits"


def test_prune_masks_removes_and_reports(trained: Path, tmp_path: Path) -> None:
    loaded = ["--mode", "load", "--model_path", str(trained), "-dataset", "digits"]
    options = ["--prune_ratio", "0.5", "--min-keep", "0.25", "-epochs", "2", "--finetune_epochs=1"]
    result = call("prune", "structured", *loaded, *options, "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "soul-deploy/prune/1"
    assert [row[1] for row in document["layers"]] == [64, 128, 8, 8]
    assert sum(row[2] for row in document["layers"]) == 104
    for _, before, masked, compact in document["layers"]:
        assert before / 4 <= masked and 1 <= compact <= masked
    accuracies = document["test_accuracy"]
    assert accuracies["masked"] == accuracies["compact"]
    small = load(Path(document["files"]["Compact model"]["path"]))
    assert small.channel_masks == {} and small.info.provenance["sca"]["schedule"]["ratio"] == 0.5
    masked_model = load(Path(document["files"]["Masked model"]["path"]))
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(
        small.module()(images), masked_model.module()(images), atol=1e-5, rtol=0
    )


def test_mode_train_writes_the_dense_model_too(tmp_path: Path) -> None:
    result = call(
        "prune", "structured", *SMALL, "-epochs", "1", "-nodes", "[0,", "1]", "--prune-ratio", "0.3"
    )
    assert result.exit_code == 0, result.output
    stem = "spikingvgg5_lif_digits_T2_2025"
    kept = f"checkpoints/structured_{stem}"
    assert files(tmp_path / "saved_models") == [
        f"best_{stem}.safetensors",
        f"{kept}/00000001.safetensors",
        f"{kept}/00000002.safetensors",
        f"pruned_{stem}.safetensors",
        f"pruned_{stem}_compact.safetensors",
        f"pruned_{stem}_config.yaml",
    ]
    masked = load(tmp_path / "saved_models" / f"pruned_{stem}.safetensors")
    assert set(masked.channel_masks) == {"features.0.sn", "features.2.sn"}
    assert "Next: soul-deploy export event" in result.stdout


def test_dry_run_leaves_no_file(tmp_path: Path) -> None:
    result = call(
        "prune",
        "structured",
        *SMALL,
        "--dry-run",
        "--format",
        "json",
        "-nodes",
        "0,3",
        "--recipe",
        "soul",
    )
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    assert [layer["pruned"] for layer in document["layers"]] == [True, False, False, True]
    assert document["updates"][0] == {"epoch": 1, "kept": 64}  # nine tenths of 64 + 8, floored
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model resnet", "unknown model 'resnet'; valid: spikingvgg5"),
        ("--dataset_name imagenet", "unknown data set 'imagenet'; valid: mnist5k"),
        ("--optimizer lion", "unknown optimizer 'lion'; valid: adam, sgd"),
        ("--scheduler plateau", "unknown scheduler 'plateau'; valid: cosine"),
        ("--scheduler Step 3 2", "needs rising milestones"),
        ("--neuron_type hodgkin", "unknown neuron 'hodgkin'; valid: lif, plif, if"),
        ("--surrogate relu", "unknown surrogate 'relu'; valid: atan"),
        ("--fire eq", "unknown firing rule 'eq'; valid: gt, ge"),
        ("--v_reset high", "v_reset 'high' is neither a number nor none"),
        ("--v_reset 1", "v_reset 1.0 must be below v_threshold 1.0"),
        ("--tau 0.5", "tau 0.5 must be at least 1"),
        ("-T 0", "time_step 0 must be at least 1"),
        ("-coding ttfs", "unknown coding 'ttfs'; valid: direct"),
        ("-b 0", "batch_size 0 must be at least 1"),
        ("-lr -1", "learning_rate -1.0 must be above 0"),
        ("-lr inf", "learning_rate inf must be above 0 and finite"),
        ("--weight_decay inf", "weight_decay inf must not be negative, and finite"),
        ("--momentum 2 --optimizer sgd", "momentum 2.0 must be below 1"),
        ("--momentum 1 --optimizer rmsprop", "momentum 1.0 must be below 1"),
        ("--workers -1", "workers -1 must be at least 0"),
        ("--tau nan", "tau nan must be finite in float32"),
        ("--v_threshold inf", "v_threshold inf must be finite in float32"),
        ("--v_reset nan", "v_reset nan must be finite in float32"),
        ("--epochs 0", "epochs 0 must be at least 1"),
        ("--device tpu", "'tpu' is not one of"),
        ("--threads 0", "threads 0 must be at least 1"),
        ("--dataset_name mnist --data_dir nowhere", "no train-images-idx3-ubyte[.gz] in nowhere/"),
        ("--no_such_flag 1", "No such option"),
    ],
)
@pytest.mark.parametrize("command", [["train"], ["prune", "structured"]])
def test_wrong_values(command: list[str], words: str, message: str, tmp_path: Path) -> None:
    result = call(*command, *SMALL, *words_of(words))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert result.stdout == "" and files(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mode search", "unknown mode 'search'; valid: train, load"),
        ("--mode load", "--mode load needs --model_path"),
        ("--mode load --model_path gone.pt", "no file at gone.pt"),
        ("--model_path gone.pt", "no file at gone.pt"),
        ("--mode train --model_path gone.pt", "--mode train starts from nothing, but --model_path"),
        ("--prune_ratio 0.6 --regrow_ratio 0.4", "sum must be below 1"),
        ("--prune_ratio 0.5 --min_keep 0.9", "lower one of them"),
        ("--finetune_epochs 50", "no mask update fits into prune_epochs 50"),
        ("-nodes [9, 10, 11]", "none of 9, 10, 11 exists; this network has 4 spiking layers"),
        ("-nodes -1", "'-1' is not an index"),
        ("-nodes [0, 1.5]", "'1.5' is not an index"),
        ("-nodes [0, one]", "'one' is not an index"),
        ("-nodes []", "the list is empty"),
        ("--score rate", "unknown score 'rate'; valid: spike_membrane, spike, membrane"),
        ("--prune_ramp square", "unknown prune_ramp 'square'"),
        ("--residual all", "unknown residual 'all'; valid: internal"),
        ("--round_to 0", "must be at least 1"),
    ],
)
def test_wrong_pruning(words: str, message: str, tmp_path: Path) -> None:
    result = call("prune", "structured", *SMALL, *words_of(words))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert result.stdout == "" and files(tmp_path) == []


def test_files_that_do_not_fit(trained: Path, tmp_path: Path) -> None:
    def load(path: Path | str, *words: str) -> Result:
        return call("prune", "structured", "-mode", "load", "-model_path", str(path), *words)

    before = files(tmp_path)
    on_digits = ["-dataset", "digits"]
    for words, code, message in (
        (["-dataset", "mnist5k"], 2, "needs images of (1, 8, 8), but data set 'mnist5k' has"),
        ([*on_digits, "-m", "spikingvgg9"], 2, "--model spikingvgg9 given, but"),
        ([*on_digits, "--tau", "3"], 2, "--tau 3.0 given, but"),
        ([*on_digits, "--v_reset", "none"], 2, "--v_reset None given, but"),
    ):
        result = load(trained, *words)
        assert result.exit_code == code and message in result.stderr, result.output
    (tmp_path / "notes.pt").write_text("these are not weights")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    for name, message in (
        ("notes.pt", "is not a file of weights"),
        ("other.pt", "It was read as spikingvgg5 for digits (input (1, 8, 8)), hidden 8"),
    ):
        result = load(tmp_path / name, *SMALL)
        assert result.exit_code == 1 and message in result.stderr, result.output
    assert files(tmp_path) == sorted([*before, "notes.pt", "other.pt"])


def test_another_number_of_steps_for_a_model_file(trained: Path) -> None:
    words = ["-mode", "load", "-model_path", str(trained), "-dataset", "digits", "-T", "3"]
    result = call("prune", "structured", *words, "-epochs", "1")
    assert result.exit_code == 0, result.output
    masked = load(Path("saved_models/pruned_spikingvgg5_lif_digits_T3_2025.safetensors"))
    assert masked.graph.time_steps == 3


@pytest.mark.parametrize(
    "text", ["0 1 2", "0,1,2", "[0, 1, 2]", "[0,1,2]", "(0 1,2)", "'[0, 1, 2]'"]
)
def test_list_spellings(text: str) -> None:
    assert parse_indexes("nodes", text) == (0, 1, 2)
    joined = join_lists(["--nodes", *text.split(), "--seed", "5"], {"--nodes"})
    assert joined == ["--nodes", text, "--seed", "5"]
    joined = join_lists([*f"--nodes={text}".split(), "-x", "1"], {"--nodes"})
    assert joined == [f"--nodes={text}", "-x", "1"]


def test_lists_join_only_what_belongs_to_them() -> None:
    flags = {"--scheduler", "--weight-prune-layers"}
    assert join_lists(["--scheduler", "Cosine", "0", "5", "5", "-b", "1"], flags) == [
        *("--scheduler", "Cosine 0 5 5", "-b", "1")
    ]
    assert join_lists(["--weight_prune_layers", "[0,", "1,", "x]", "y"], flags) == [
        *("--weight_prune_layers", "[0, 1, x]", "y")
    ]
    assert join_lists(["--weight_prune_layers"], flags) == ["--weight_prune_layers"]
    assert join_lists(["--other", "1", "2"], flags) == ["--other", "1", "2"]


def test_index_rules() -> None:
    assert parse_indexes("nodes", "All") is None
    assert parse_indexes("nodes", "2 0 2") == (2, 0)
    assert existing_indexes("nodes", None, 3, "layers") == ((0, 1, 2), None)
    assert existing_indexes("nodes", (2, 0), 3, "layers") == ((2, 0), None)
    kept, warning = existing_indexes("nodes", (0, 3, 7), 3, "layers")
    assert kept == (0,) and warning == "nodes: 3, 7 ignored; this network has 3 layers, 0 to 2"
    with pytest.raises(UsageError, match="none of 3 exists"):
        existing_indexes("nodes", (3,), 3, "layers")


def test_help_shows_both_commands() -> None:
    for command in (["train"], ["prune", "structured"]):
        result = call(*command, "--help")
        assert result.exit_code == 0 and "--learning_rate" in result.output
