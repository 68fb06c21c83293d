"""The curve: points against naive counts, what stands in the file, going on, what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import LIF, conv, model_of
from click.testing import CliRunner, Result

from soul_deploy import ir
from soul_deploy.analysis.synops import count_model
from soul_deploy.base.errors import TargetError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, load_data
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.curve import label_of, prune_curve
from soul_deploy.prune.curve_record import Curve
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.selection import Guard, PruningUnit
from soul_deploy.prune.target import Quantity, Spent, Target
from soul_deploy.prune.unstructured.config import FinetuneConfig, SearchConfig
from soul_deploy.training.checkpoint_manager import Checkpoints
from soul_deploy.training.trainer import TrainConfig

TRAINING = TrainConfig(batch_size=32, learning_rate=5e-3, epochs=3)
BY_CHANNEL = ScaConfig(PruneSchedule(epochs=3, finetune_epochs=1, ramp="cubic"))
BY_WEIGHT = SearchConfig(temp_scheduler=(5, 200), prune_lr=0.02, finetune=FinetuneConfig(1, 1e-3))


@pytest.fixture(scope="module")
def digits() -> Data:
    whole, index = load_data("digits", Path(".")), torch.arange(64)
    parts = {n: getattr(whole, n).select(index) for n in ("train", "validation", "test")}
    return replace(whole, **parts)


@pytest.fixture(scope="module")
def dense(digits: Data) -> Model:
    """12 channels, 10 linear neurons, a head; it fires."""
    nodes = (
        ir.Input("input", (), (1, 8, 8)),
        conv("a", "input", 1, 12, norm=ir.BatchNorm("n")),
        ir.Population("sa", ("a",), LIF),
        ir.MaxPool("pool", ("sa",), (2, 2), (2, 2)),
        ir.Flatten("flat", ("pool",)),
        ir.Linear("b", ("flat",), True, ir.BatchNorm("m"), 192, 10),
        ir.Population("sb", ("b",), LIF),
        ir.Readout("head", ("sb",), 10, linear=True, bias=True),
    )
    model = model_of(ir.SpikingGraph(nodes, 2), 2)
    info = replace(model.info, normalization=digits.normalization, classes=digits.classes)
    return replace(model, info=info)


def targets(quantity: Quantity, *values: float) -> list[Target]:
    return [Target(quantity, value) for value in values]


def trained_values(model: Model) -> int:
    names = [n for n in model.state if n.endswith((".weight", ".bias"))]
    return sum(model.state[name].size for name in names)


def synops(model: Model, data: Data) -> float:
    images = data.normalise(data.validation.images)
    return sum(layer.synops for layer in count_model(model, images).values()) / len(images)


def accuracy(model: Model, data: Data) -> float:
    with torch.no_grad():
        scores = model.module()(data.normalise(data.test.images))
    return float((scores.argmax(1) == data.test.labels).double().mean())


def check_points(curve: Curve, data: Data, labels: Sequence[str]) -> None:
    """Every figure against a naive count of the file that the point names."""
    assert [point.label for point in curve.points] == list(labels)
    folder = curve.path.parent
    for point in curve.points:
        compact = load(folder / point.files["compact"])
        assert point.files["compact"].endswith(f"_{point.label}_compact.safetensors")
        assert point.parameters == trained_values(compact)
        assert point.synops == synops(compact, data)
        assert point.accuracy == accuracy(compact, data)
    held = json.loads(curve.path.read_text())
    assert held.pop("schema") == "soul-deploy/curve/1"
    assert held == json.loads(json.dumps(curve.to_dict()))


def test_channels_fall_to_shares_of_the_first_network(
    dense: Model, digits: Data, tmp_path: Path
) -> None:
    asked = targets("params", 0.6, 0.35)
    path = tmp_path / "pruned_a.safetensors"
    log = tmp_path / "prune.jsonl"
    curve = prune_curve(dense, digits, asked, BY_CHANNEL, TRAINING, path=path, log=log)
    check_points(curve, digits, ["0.60", "0.35"])
    for point in curve.points:
        assert point.cost == point.parameters
        assert abs(point.cost / trained_values(dense) - point.target) <= 0.05 * point.target
    first, second = (load(tmp_path / f"pruned_a_0.{n}.safetensors") for n in ("60_compact", "35"))
    assert second.graph.to_json() == first.graph.to_json()
    assert second.info.provenance["start"] == "pruned_a_0.60_compact.safetensors"
    assert second.info.provenance["sca"]["widths"] == {"sa": 12, "sb": 10}
    assert curve.dense is not None and curve.dense.parameters == trained_values(dense)
    assert curve.dense.accuracy == accuracy(dense, digits)
    assert curve.dense.synops == synops(dense, digits)
    assert [len(p.read_text().splitlines()) for p in sorted(tmp_path.glob("*.jsonl"))] == [3, 3]
    assert curve.path == tmp_path / "curve_a.json" and "0.35" in curve.text()


@pytest.mark.parametrize("quantity", ["synops", "params", "connectivity"])
def test_weights_fall_to_shares_of_the_first_network(
    quantity: Quantity, dense: Model, digits: Data, tmp_path: Path
) -> None:
    asked, path = targets(quantity, 0.5, 0.3), tmp_path / "pruned_a.safetensors"
    curve = prune_curve(dense, digits, asked, BY_WEIGHT, TRAINING, path=path)
    check_points(curve, digits, ["0.50", "0.30"])
    assert curve.dense is not None and curve.dense.cost > 0
    for point in curve.points:
        assert abs(point.cost / curve.dense.cost - point.target) <= 0.05 * point.target
    last = curve.points[1]
    if quantity == "synops":
        assert last.cost == last.synops and curve.dense.cost == synops(dense, digits)
    elif quantity == "connectivity":
        assert last.cost == pytest.approx(last.connectivity * curve.dense.cost)
    else:
        masked = load(tmp_path / last.files["masked"])
        weights = [f"{node.name}.weight" for node in masked.graph.projections]
        zeros = sum(int((masked.state[name] == 0).sum()) for name in weights)
        assert last.cost == trained_values(masked) - zeros
    made = load(tmp_path / last.files["masked"]).info.provenance
    assert made["start"] == "pruned_a_0.50.safetensors"


def test_a_network_that_votes_has_a_curve_of_synops(digits: Data, tmp_path: Path) -> None:
    nodes = (
        ir.Input("input", (), (1, 8, 8)),
        conv("a", "input", 1, 6, norm=ir.BatchNorm("n")),
        ir.Population("sa", ("a",), LIF),
        ir.Flatten("flat", ("sa",)),
        ir.Linear("b", ("flat",), True, ir.BatchNorm("m"), 384, 60),
        ir.Population("sb", ("b",), LIF),
        ir.Readout("vote", ("sb",), 10),
    )
    model = model_of(ir.SpikingGraph(nodes, 2), 2)
    info = replace(model.info, normalization=digits.normalization, classes=digits.classes)
    model, path = replace(model, info=info), tmp_path / "pruned_a.safetensors"
    config = replace(BY_WEIGHT, finetune=None)
    asked = targets("synops", 0.7, 0.55)
    curve = prune_curve(model, digits, asked, config, TRAINING, path=path)
    check_points(curve, digits, ["0.70", "0.55"])
    assert curve.dense is not None and curve.dense.cost == synops(model, digits)


def test_a_target_that_cannot_be_met_keeps_the_points_before_it(
    dense: Model, digits: Data, tmp_path: Path
) -> None:
    config = replace(BY_CHANNEL, guard=Guard(min_keep=0.5))
    asked, path = targets("params", 0.8, 0.05), tmp_path / "pruned_a.safetensors"
    with pytest.raises(TargetError, match=r"target_params 0\.05 cannot be met"):
        prune_curve(dense, digits, asked, config, TRAINING, path=path)
    (point,) = json.loads((tmp_path / "curve_a.json").read_text())["points"]
    assert point["label"] == "0.80" and (tmp_path / point["files"]["compact"]).exists()


def test_a_run_goes_on_behind_what_is_whole(
    dense: Model, digits: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = tmp_path / "m" / "pruned_a.safetensors", Checkpoints(tmp_path / "c" / "a")

    def run(*values: float, resume: bool = True, training: TrainConfig = TRAINING) -> Curve:
        checkpoints = replace(kept, resume=resume)
        where: dict[str, Any] = {"path": path, "checkpoints": checkpoints}
        return prune_curve(dense, digits, targets("params", *values), BY_CHANNEL, training, **where)

    caplog.set_level("INFO")
    run(0.6, 0.35, resume=False)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["a_0.35", "a_0.60"]
    files = {p.name: p.read_bytes() for p in path.parent.glob("*.safetensors")}
    stamps = {p.name: p.stat().st_mtime_ns for p in path.parent.glob("*.safetensors")}
    run(0.6, 0.35)
    assert caplog.text.count("not pruned again") == 2
    assert {p.name: p.stat().st_mtime_ns for p in path.parent.glob("*.safetensors")} == stamps

    damaged = path.with_name("pruned_a_0.60_compact.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    caplog.clear()
    run(0.6, 0.35)
    assert caplog.text.count("not pruned again") == 1 and "resuming from" in caplog.text
    assert {p.name: p.read_bytes() for p in path.parent.glob("*.safetensors")} == files

    # Another point in between: what followed it before begins with another network now.
    caplog.clear()
    curve = run(0.6, 0.45, 0.35)
    assert caplog.text.count("not pruned again") == 1
    assert [point.label for point in curve.points] == ["0.60", "0.45", "0.35"]
    made = load(path.with_name("pruned_a_0.35.safetensors")).info.provenance
    assert made["start"] == "pruned_a_0.45_compact.safetensors"

    with pytest.raises(UsageError, match=r"curve_a.json: .*learning_rate was 0.005, now 0.1"):
        run(0.6, 0.35, training=replace(TRAINING, learning_rate=0.1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 0.5), "and 0.5 is not"),
        ((0.2, 0.5), "and 0.5 is not"),
        ((0.5, 0.48), "more than 5% below the one before it, and 0.48 is not"),
        ((0.5, 0.2, 0.2), "and 0.2 is not"),
        ((2000, 0.5), "all shares .* or all counts"),
        ((), "give some"),
    ],
)
def test_targets_fall(
    values: tuple[float, ...], message: str, dense: Model, digits: Data, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        prune_curve(dense, digits, targets("params", *values), path=tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_labels() -> None:
    found = [label_of(Target("synops", v)) for v in (0.5, 0.05, 0.042, 1e-5, 2000, 1500.5, 3e7)]
    assert found == ["0.50", "0.05", "0.042", "0.00001", "2000", "1500.5", "30000000"]


def test_a_share_can_be_of_another_network() -> None:
    target = Target("params", 0.2, dense=1000)
    assert target.amount(400) == 200 and Target("params", 0.2).amount(400) == 80
    assert target.reached(209, 400) and not target.reached(80, 400)
    assert str(Spent(target, 400, 210)) == "210 of 1,000 parameters, 21.00%; wanted 200"


def test_floors_are_of_the_first_network() -> None:
    units = [PruningUnit(name, 8, (name,), (name,)) for name in ("sa", "sb")]
    config = ScaConfig(guard=Guard(min_keep=0.5))
    assert config.floors(units) == {"sa": 4, "sb": 4}
    assert replace(config, widths={"sa": 12, "sb": 20}).floors(units) == {"sa": 6, "sb": 8}


SMALL = ["--dataset_name", "digits", "--threads", "1", "-b", "32", "--epochs", "2"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: Model, digits: Data) -> Path:
    """The network's file, in an empty folder, with few samples."""
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    monkeypatch.chdir(tmp_path)
    save(dense, tmp_path / "dense.safetensors")
    return tmp_path / "dense.safetensors"


def call(kind: str, start: Path, *words: str) -> Result:
    before = ["prune", kind, "--model_path", str(start), *SMALL]
    return CliRunner().invoke(root, [*before, *words])


@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_the_command_goes_down_and_prints_the_points(kind: str, start: Path) -> None:
    more = ["--prune_epochs", "2"] if kind == "structured" else ["--prune_lr", "0.02"]
    words = ["--target_params", "0.6", "0.35", *more, "--resume", "auto"]
    first = call(kind, start, *words)
    assert first.exit_code == 0, first.output
    for text in ("Curve of target_params", "dense", "0.60", "0.35", "Curve: ", "_0.35_compact"):
        assert text in first.stdout, text
    (table,) = Path("saved_models").glob("curve_*.json")
    again = call(kind, start, *words, "--format", "json")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("not pruned again") == 2
    document = json.loads(again.stdout)
    assert document.pop("path") == str(table)
    assert document == json.loads(table.read_text())
    folder = Path("saved_models/checkpoints")
    kept = sorted(p.name.rpartition("_")[2] for p in folder.iterdir() if any(p.iterdir()))
    assert kept == ["0.35", "0.60"]
    words[-1] = str(next(folder.iterdir()))
    one = call(kind, start, *words)
    assert one.exit_code == 2 and "give --resume auto" in " ".join(one.stderr.split())


@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_a_dry_run_shows_the_first_plan_and_says_so(kind: str, start: Path) -> None:
    result = call(kind, start, "--target_params", "0.6,0.35", "--dry_run")
    assert result.exit_code == 0, result.output
    assert "the plan is that of target_params 0.6; 0.35 are planned" in result.stderr
    assert not Path("saved_models").exists()


@pytest.mark.parametrize("kind", ["structured", "unstructured"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--target_params 0.3,0.6", "0.6 is not"),
        ("--target_params 0.3,x", "'0.3,x': give a number, or several such as 0.5,0.2,0.1"),
        ("--target_connectivity 0.3,0", "target_connectivity 0 must be above 0"),
        ("--target_synops 900,0.5", "all shares (below 1) or all counts"),
        ("--target_synops []", "give some"),
        ("--target_params 0.3,0.2 --target_synops 0.3", "--target_synops and --target_params"),
    ],
)
def test_wrong_lists(kind: str, words: str, message: str, start: Path) -> None:
    result = call(kind, start, *words.split())
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert [path.name for path in Path(".").iterdir()] == ["dense.safetensors"]
