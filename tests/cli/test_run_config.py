"""`--config`: what a run leaves repeats it to the bit; the command line goes before; refusals."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_data import write_mnist_folder
from test_next import NETS

from soul_deploy.cli.main import root

yaml = pytest.importorskip("yaml", reason="PyYAML is needed to read --config; `make` installs it")
DATA = ("--dataset_name", "mnist", "--data_dir", "data", "--threads", 1)
TRAIN = ("train", "--model", "somenets:make", "-T", 2, "--epochs", 2, "--batch_size", 16, *DATA)
NAME = "somenets.make_mnist_T2_2025"


def call(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def done(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_mnist_folder(tmp_path / "data", "")
    (tmp_path / "somenets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "somenets", raising=False)
    return tmp_path


def test_what_a_run_leaves_repeats_it_to_the_bit(place: Path) -> None:
    """train and both prunings, from a model file too, whose network no default contradicts."""
    done(*TRAIN, "--model_dir", "a", "-lr", 0.003, "--augment", "shift")
    model = f"a/best_{NAME}.safetensors"
    start = ("--model_path", model, *DATA, "--epochs", 1, "--model_dir", "a")
    done("prune", "structured", *start, "--pruning_nodes", "[0]", "--prune_ratio", 0.3)
    structured = Path(f"a/pruned_{NAME}_config.yaml").rename("structured.yaml")
    done("train", "--config", f"a/best_{NAME}_config.yaml", "--model_dir", "b")
    done("prune", "structured", "--config", structured, "--model_dir", "b")
    kept = [f"best_{NAME}", f"pruned_{NAME}", f"pruned_{NAME}_compact"]
    for name in (f"{stem}.safetensors" for stem in kept):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes(), name
    done("prune", "unstructured", *start, "--finetune", "--epoch_finetune", 1)
    done("prune", "unstructured", "--config", f"a/pruned_{NAME}_config.yaml", "--model_dir", "b")
    for name in (f"{stem}.safetensors" for stem in kept[1:]):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes(), name
    left = yaml.safe_load(structured.read_text())
    assert left["command"] == "prune structured" and left["pruning_nodes"] == "[0]"
    assert left["defaults"]["regrow_ratio"] == 0.1 and "model_path" in left


def test_the_command_line_goes_before_the_file(place: Path) -> None:
    text = "model: somenets:make\nepochs: 5\nTime-Step: 2\npruning_nodes: [0]\nfinetune_epochs: 0\n"
    text += "defaults: {prune_ratio: 0.35, batch_size: 16}\n"
    Path("run.yaml").write_text(text.replace("Time-Step", "time-step"))
    words = ("prune", "structured", "--config", "run.yaml", *DATA, "--model_dir", "c")
    done(*words, "--epochs", 1, "--prune_epochs", 1)
    left = yaml.safe_load(Path(f"c/pruned_{NAME}_config.yaml").read_text())
    assert left["epochs"] == 1 and left["time_step"] == 2 and left["pruning_nodes"] == "0"
    assert left["defaults"]["prune_ratio"] == 0.35 and left["defaults"]["batch_size"] == 16
    soul = done(*words, "--epochs", 1, "--prune_epochs", 1, "--recipe", "soul")
    assert "recipe soul" not in soul.stdout
    left = yaml.safe_load(Path(f"c/pruned_{NAME}_config.yaml").read_text())
    assert left["recipe"] == "soul" and left["defaults"]["score_window"] == "last_batch"


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("epoch: 3", 2, "train has no option 'epoch'; did you mean 'epochs'?"),
        ("zzzzzz: 3", 2, "see --help"),
        ("config: run.yaml", 2, "no option 'config'"),
        ("command: prune structured", 2, "is of the command 'prune structured'"),
        ("defaults: {epoch: 3}", 2, "no option 'epoch'"),
        ("defaults: 3", 2, "is not a list of NAME: VALUE"),
        ("epochs: 1\nepochs: 2", 2, "'epochs' stands twice"),
        ("epochs: {a: 1}", 2, "is no value of an option"),
        ("epochs: true", 2, "takes a value"),
        ("download: 3", 2, "it is true or false"),
        ("epochs: many", 2, "is not a valid integer"),
        ("[1]", 1, "is not a list of NAME: VALUE"),
        ("a: [", 1, "is not YAML"),
        ("prune_layers: &a [1]\nepochs: *a", 1, "has aliases"),
        ("epochs: !!python/object/apply:os.system [echo]", 1, "is not YAML"),
        ("epochs: \x00", 1, "is not YAML"),
    ],
)
def test_what_the_command_does_not_have_is_refused(
    place: Path, text: str, code: int, told: str
) -> None:
    Path("run.yaml").write_text(text)
    result = call("train", "--config", "run.yaml", "--model_dir", "d")
    assert result.exit_code == code and told in result.stderr, result.stderr
    assert not Path("d").exists()


def test_tensorboard_gets_the_epochs_of_every_command(place: Path) -> None:
    pytest.importorskip("tensorboard", reason="it is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = ("--model_dir", "a", "--log_dir", "logs", "--tensorboard")
    done(*TRAIN, *out)
    start = ("--model_path", f"a/best_{NAME}.safetensors", *DATA, "--epochs", 1, *out)
    done("prune", "structured", *start)
    done("prune", "unstructured", *start)
    for command, epochs in (("train", 2), ("prune", 1), ("unstructured", 1)):
        found = EventAccumulator(f"logs/{command}_{NAME}").Reload()
        assert [e.step for e in found.Scalars("loss")] == list(range(1, epochs + 1)), command
