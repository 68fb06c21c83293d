"""`soul_deploy.prune_unstructured` as a Python user calls it: arrays in, frozen results out."""

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searching import CONSTANT, SMALL, STEM, call, few, network

from soul_deploy import (
    FinetuneConfig,
    PruneSchedule,
    ScaConfig,
    SearchConfig,
    plan_unstructured,
    prune_structured,
    prune_unstructured,
    train,
)
from soul_deploy.base.errors import UsageError
from soul_deploy.base.files import digest
from soul_deploy.data.datasets import READERS, Data
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model, ModelInfo, Validity, from_module
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured.masks import survivors
from soul_deploy.prune.unstructured.pruning import SearchEpoch
from soul_deploy.prune.unstructured.search import SearchStoppedError
from soul_deploy.training.checkpoint_manager import Checkpoints
from soul_deploy.training.trainer import TrainConfig

torch.set_num_threads(1)
TRAINING = TrainConfig(epochs=2, batch_size=32, schedule=CONSTANT, nesterov=True)
CONFIG = SearchConfig(
    target=Target("connectivity", 0.3),
    temp_scheduler=(5, 200),
    prune_lr=0.02,
    finetune=FinetuneConfig(epochs=1, learning_rate=1e-3),
)
SAME = (
    "--epochs 2 -b 32 --threads 1 --criterion ce --target_connectivity 0.3 --temp_scheduler 5 200"
)
SAME += " --prune_lr 0.02 --finetune --epoch_finetune 1 --finetune_lr 1e-3"


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(96)


@pytest.fixture(scope="module")
def arrays(digits: Data) -> dict[str, tuple[Any, Any]]:
    """The digits as a program of one's own has them."""
    splits = {name: getattr(digits, name) for name in ("train", "validation", "test")}
    return {name: (split.images.numpy(), split.labels.numpy()) for name, split in splits.items()}


@pytest.fixture(scope="module")
def model(digits: Data) -> Model:
    info = ModelInfo("dense", digits.normalization, digits.classes)
    return from_module(network(digits), replace(info, input_kind="images"))


@pytest.fixture(scope="module")
def result(model: Model, arrays: Mapping[str, Any]) -> PruneResult:
    pruned: PruneResult = prune_unstructured(model, arrays, CONFIG, TRAINING)
    return pruned


def bits(model: Model | None) -> str:
    assert model is not None
    kinds = {"state": model.state, "mask": model.neuron_masks, "alpha": model.alphas}
    named = {f"{kind}.{n}": array for kind, held in kinds.items() for n, array in held.items()}
    return digest(named) + json.dumps(model.graph.to_json())


def test_the_function_gives_the_bits_of_the_command(
    result: PruneResult, model: Model, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    monkeypatch.chdir(tmp_path)
    save(model, Path("dense.safetensors"))
    done = call(*SMALL, "--model_path", "dense.safetensors", *SAME.split(), "--format", "json")
    assert done.exit_code == 0, done.output
    written = tmp_path / "saved_models" / f"pruned_{STEM}.safetensors"
    masked, compact = load(written), load(written.with_stem(f"{written.stem}_compact"))
    assert bits(result.masked) == bits(masked) and bits(result.compact) == bits(compact)
    document = json.loads(done.stdout)
    assert document["test_accuracy"] == result.accuracies
    assert tuple(document["synops_per_image"].values()) == result.synops
    lines = (tmp_path / "logs" / f"unstructured_{STEM}.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"seconds": 0} for line in lines]
    assert rows == [row | {"seconds": 0} for row in result.history]
    told = masked.info.provenance
    assert told["search"] == json.loads(json.dumps(result.masked.info.provenance["search"]))


def test_the_result_is_whole_frozen_and_plain(result: PruneResult, model: Model) -> None:
    assert [row["phase"] for row in result.history] == ["search", "search", "finetune"]
    assert set(result.accuracies) == {"start", "masked", "compact"}
    assert result.connectivity is not None and abs(result.connectivity.share - 0.3) <= 0.015
    assert result.plan is not None
    assert bits(remove(result.masked, result.plan)) == bits(result.compact)
    assert result.compact is not None
    assert (result.masked.info.stage, result.compact.info.stage) == ("masked", "compact")
    with pytest.raises(FrozenInstanceError):
        result.masked = model  # type: ignore[misc]
    document = json.loads(json.dumps(result.to_dict()))
    assert document["history"] == list(result.history)
    first = survivors(result.masked)[0]
    alive = int((result.masked.state["features.0.conv.0.weight"] != 0).sum())
    assert first.projection == "features.0.conv.0" and first.weights == (alive, 576)
    assert model.info.stage == "dense" and not model.alphas  # what came in is as it was


class Stop(Exception):
    """The user's program ends here."""


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_resumed_from_python_ends_with_the_same_bits(
    stop_after: int, result: PruneResult, model: Model, arrays: Mapping[str, Any], tmp_path: Path
) -> None:
    epochs: list[SearchEpoch] = []

    def stop(epoch: SearchEpoch) -> None:
        epochs.append(epoch)
        if len(epochs) > stop_after:
            raise Stop

    kept = Checkpoints(tmp_path, every=2)
    with pytest.raises(Stop):
        prune_unstructured(model, arrays, CONFIG, TRAINING, checkpoints=kept, on_epoch=stop)
    told: list[SearchEpoch] = []
    again = prune_unstructured(
        *(model, arrays, CONFIG, TRAINING),
        checkpoints=replace(kept, resume=True),
        on_epoch=told.append,
    )
    assert len(told) == 3 - stop_after
    assert bits(again.masked) == bits(result.masked)
    assert bits(again.compact) == bits(result.compact)
    plain = [row | {"seconds": 0} for row in again.history]
    assert plain == [row | {"seconds": 0} for row in result.history]
    other = replace(CONFIG, weight_prune_layers=[1, 2, 3])
    with pytest.raises(UsageError, match="A run goes on with the settings it began with"):
        prune_unstructured(model, arrays, other, TRAINING, checkpoints=replace(kept, resume=True))


@pytest.mark.parametrize("changed", [{"round_to": 2}, {"mask_init_factor": (0.2, 0.1, 0, 0)}])
def test_a_run_of_named_settings_does_not_go_on_with_another_masking(
    changed: dict[str, Any], model: Model, arrays: Mapping[str, Any], tmp_path: Path
) -> None:
    def stop(done: int, batches: int, loss: float) -> None:
        if done == 2:
            raise Stop

    kept = Checkpoints(tmp_path, every=1, settings={"start": "mine"})
    with pytest.raises(Stop):
        prune_unstructured(model, arrays, CONFIG, TRAINING, checkpoints=kept, on_batch=stop)
    again, other = replace(kept, resume=True), replace(CONFIG, **changed)
    with pytest.raises(UsageError, match=r"masking\..* was .* A run goes on with the settings"):
        prune_unstructured(model, arrays, other, TRAINING, checkpoints=again, on_batch=stop)


def test_fresh_weights_are_not_tested(arrays: Mapping[str, Any], model: Model) -> None:
    short, once = replace(CONFIG, finetune=None), replace(TRAINING, epochs=1)
    fresh = prune_unstructured(model.graph, arrays, short, once)
    assert set(fresh.accuracies) == {"masked", "compact"}
    given = prune_unstructured(model, arrays, short, once, test_start=False)
    assert set(given.accuracies) == {"masked", "compact"}


def test_what_another_command_made_is_not_said_of_the_result(
    result: PruneResult, model: Model, arrays: Mapping[str, Any]
) -> None:
    still, short = replace(TRAINING, epochs=1), replace(CONFIG, finetune=None)
    own = replace(model, info=replace(model.info, provenance={"by": "me", "start": "scratch"}))
    trained = train(own, arrays, still)
    assert trained.model.info.provenance["best_epoch"] == 1
    assert trained.model.info.provenance["start"] == "scratch"
    made = prune_unstructured(trained.model, arrays, short, still).masked.info.provenance
    assert made["by"] == "me" and made["command"] == "prune unstructured"
    assert not {"best_epoch", "start"}.intersection(made) and made["accuracy"]["masked"] >= 0
    pruned = prune_structured(
        model, arrays, training=still, config=ScaConfig(PruneSchedule(epochs=1))
    )
    assert pruned.compact is not None
    again = train(pruned.compact, arrays, still).model.info.provenance
    assert not {"sca", "layers"}.intersection(again) and again["command"] == "train"


def test_callbacks_are_told_and_nothing_is_printed(
    result: PruneResult,
    model: Model,
    arrays: Mapping[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    epochs: list[SearchEpoch] = []
    batches: list[tuple[int, int]] = []
    again = prune_unstructured(
        *(model, arrays, replace(CONFIG, finetune=None), replace(TRAINING, epochs=1)),
        log=tmp_path / "log" / "epochs.jsonl",
        on_epoch=epochs.append,
        on_batch=lambda done, of, loss: batches.append((done, of)),
    )
    assert capfd.readouterr() == ("", "")
    assert [epoch.phase for epoch in epochs] == ["search"]
    assert batches == [(1, 3), (2, 3), (3, 3)]
    assert bits(epochs[-1].model) == bits(again.masked)
    for suffix in ("csv", "jsonl"):
        assert (tmp_path / "log" / f"epochs.{suffix}").read_text().count("search") == 1
    assert len(again.history) == 1


def test_a_plan_names_what_is_masked_and_trains_nothing(model: Model) -> None:
    plan = plan_unstructured(model, SearchConfig())
    assert plan.masked("weights") == tuple(node.name for node in model.graph.projections)
    assert plan.masked("neurons") == ("features.2.sn", "pre_logits.sn1")
    named = SearchConfig(weight_prune_layers=["pre_logits.fc1.0", 1], neuron_prune_layers=())
    rows = plan_unstructured(model, named).layers
    assert [row.layer for row in rows if row.entries] == ["features.2.conv.0", "pre_logits.fc1.0"]
    assert [row.entries for row in rows[1:3]] == [73_728, 50_176]
    assert json.loads(json.dumps(plan.to_dict()))["layers"][0]["cost"] == "64"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": Target("connectivity", 0.1), "weight_prune_layers": ()}, "needs weight masks"),
        ({"target": Target("params", 0.1), "penalty_lmbda": 0}, "cannot be steered to target_par"),
        ({"weight_prune_layers": ["features"]}, "unknown layer in weight_prune_layers 'features'"),
        ({"weight_prune_layers": [4]}, r"unknown .* '4'; valid: 0 \(features\.0\.conv\.0\), 1"),
        ({"neuron_prune_layers": ["pre_logits.sn2"]}, "cannot be masked"),
        ({"mask_init_factor": (0, 0)}, "takes 4 numbers .* got 2"),
        ({"temp_scheduler": (5,)}, "temp_scheduler takes 2 numbers"),
        ({"prune_optimizer": "lion"}, "unknown prune_optimizer 'lion'; valid: adam"),
        ({"penalty_coef": "soul"}, "unknown penalty_coef 'soul'; valid: authors, exact, params"),
        ({"round_to": 0}, "round_to 0 must be at least 1"),
    ],
)
def test_wrong_use_is_refused(
    model: Model, arrays: Mapping[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prune_unstructured(model, arrays, SearchConfig(**changed), TRAINING)


def test_a_masked_network_is_no_start(model: Model, arrays: Mapping[str, Any]) -> None:
    bare = replace(model, neuron_masks={"features.2.sn": np.ones((128, 4, 4), bool)})
    with pytest.raises(UsageError, match="the model is a masked network; start from a dense one"):
        prune_unstructured(bare, arrays, CONFIG, TRAINING)


def test_a_search_that_dies_gives_the_last_good_model(
    model: Model, arrays: Mapping[str, Any]
) -> None:
    config = SearchConfig(penalty_lmbda=1, mask_init_factor=(0.1, 0.1, 0, 0), prune_lr=0.02)
    with pytest.raises(SearchStoppedError, match="lower penalty_lmbda") as stop:
        prune_unstructured(model, arrays, config, replace(TRAINING, epochs=5))
    good = stop.value.last_good
    assert good is not None and good.info.stage == "masked" and good.alphas
    assert all(row.weights[0] for row in survivors(good))


def test_a_search_goes_on_from_its_own_result(
    result: PruneResult, arrays: Mapping[str, Any]
) -> None:
    still = replace(TRAINING, epochs=1, learning_rate=1e-30)
    config = replace(CONFIG, prune_lr=1e-30, finetune=None)
    valid = Validity(time_steps=2, reset_per_sample=True)
    start = replace(result.masked, info=replace(result.masked.info, validity=valid))
    again = prune_unstructured(start, arrays, config, still)
    assert again.compact is not None
    assert again.masked.info.validity == again.compact.info.validity == valid
    for name, alpha in result.masked.alphas.items():
        np.testing.assert_array_equal(again.masked.alphas[name], alpha)


def test_training_does_not_fill_pruned_weights_again(
    result: PruneResult, arrays: Mapping[str, Any]
) -> None:
    for ask in (train, prune_structured):
        with pytest.raises(UsageError, match="training would fill them again"):
            ask(result.masked, arrays)


def test_tensorboard_needs_a_place(model: Model, arrays: Mapping[str, Any]) -> None:
    pytest.importorskip("tensorboard", reason="it is an extra")
    with pytest.raises(UsageError, match="tensorboard needs log"):
        prune_unstructured(model, arrays, CONFIG, TRAINING, tensorboard=True)
