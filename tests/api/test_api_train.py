"""Training from Python: what goes in, what comes out, what is said, and how it goes on."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from searching import few, network, small_graph
from torch.utils.data import IterableDataset, TensorDataset

import soul_deploy
from soul_deploy import Checkpoints, Model, TrainConfig, TrainResult
from soul_deploy.base import Array
from soul_deploy.base.errors import DataError, SoulDeployError, UnknownNameError, UsageError
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, Split
from soul_deploy.data.given import as_data
from soul_deploy.model.file import load
from soul_deploy.model.model import ModelInfo, from_module

QUICK = TrainConfig(epochs=3, batch_size=16, learning_rate=5e-3)


def arrays(count: int = 60, dtype: Any = np.uint8) -> tuple[Array, Array]:
    """Images (count, 2, 6, 6) and labels of three classes."""
    random = np.random.default_rng(3)
    labels = np.arange(count) % 3
    images = random.integers(0, 80, (count, 2, 6, 6)) + 80 * labels[:, None, None, None]
    return images.astype(dtype), labels


def same_weights(one: Model, other: Model) -> bool:
    return all(np.array_equal(one.state[name], other.state[name]) for name in one.state)


def test_a_graph_and_arrays_give_a_trained_model(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    batches: list[tuple[int, int]] = []
    result = soul_deploy.train(
        *(small_graph(), arrays(), QUICK),
        device="cpu",
        on_epoch=seen.append,
        on_batch=lambda done, all_of_them, loss: batches.append((done, all_of_them)),
    )
    assert capfd.readouterr() == ("", "")
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3] and tuple(seen) == result.history
    assert batches == [(1, 3), (2, 3), (3, 3)] * 3  # 48 of 60 samples, 16 at a time
    assert result.best.validation_accuracy == max(e.validation_accuracy for e in result.history)
    made = result.model.info
    assert (made.stage, made.classes, made.normalization) == ("dense", ("0", "1", "2"), None)
    decided = replace(QUICK, objective=soul_deploy.Objective("ce"))
    assert made.provenance["recipe"] == decided.recorded() and made.provenance["epochs"] == 3
    assert json.loads(json.dumps(result.to_dict()))["best_epoch"] == result.best.epoch
    assert len(repr(result)) < 120 and f"test {result.test_accuracy:.2%}" in repr(result)
    with pytest.raises(FrozenInstanceError):
        result.test_accuracy = 1.0  # type: ignore[misc]


def test_messages_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "soul_deploy"):
        soul_deploy.train(small_graph(), arrays(), replace(QUICK, epochs=1), device="cpu")
    loss, record = caplog.records
    assert loss.getMessage() == "loss: cross-entropy, since the network's readout is linear"
    assert record.levelname == "INFO" and record.getMessage().startswith("train 1/1: loss")


def test_the_model_given_stays_as_it_is_and_training_goes_on_from_it() -> None:
    start = soul_deploy.train(small_graph(), arrays(), QUICK, device="cpu").model
    before = {name: array.copy() for name, array in start.state.items()}
    random = torch.get_rng_state()
    still = soul_deploy.train(start, arrays(), replace(QUICK, learning_rate=1e-30), device="cpu")
    assert all(np.array_equal(start.state[name], array) for name, array in before.items())
    for name in (name for name in before if name.endswith("weight")):
        np.testing.assert_allclose(still.model.state[name], before[name], atol=1e-6)
    assert torch.equal(random, torch.get_rng_state())


def test_the_command_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = few(32)
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: data)
    monkeypatch.chdir(tmp_path)
    words = "train --model spikingvgg5 --hidden 8 --dataset_name digits -T 2 -b 16 --epochs 2"
    done = CliRunner().invoke(root, [*words.split(), "--threads", "1", "--seed", "7"])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "saved_models").glob("best_*.safetensors")
    start = from_module(network(data), ModelInfo())  # its seed is 7
    result = soul_deploy.train(start, "digits", TrainConfig(epochs=2, batch_size=16, seed=7))
    written = load(path)
    assert same_weights(written, result.model)
    assert written.info.provenance["accuracy"] == result.model.info.provenance["accuracy"]
    assert written.info.normalization == result.model.info.normalization


class _Stop(Exception):
    """Somebody's program ends here."""


def stopped(at: int) -> Callable[[int, int, float], None]:
    """Raises _Stop after so many batches."""
    left = [at]

    def count(done: int, batches: int, loss: float) -> None:
        left[0] -= 1
        if not left[0]:
            raise _Stop

    return count


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = soul_deploy.train(small_graph(), arrays(), QUICK, device="cpu")
    kept = Checkpoints(tmp_path, every=1)

    def go_on(checkpoints: Checkpoints, at: int = 0, **changed: Any) -> TrainResult:
        config = replace(QUICK, **changed)
        return soul_deploy.train(
            *(small_graph(), arrays(), config),
            device="cpu",
            checkpoints=checkpoints,
            log=tmp_path / "log.jsonl",
            on_batch=stopped(at),
        )

    with pytest.raises(_Stop):
        go_on(kept, 5)
    again = replace(kept, resume=True)
    with pytest.raises(UsageError, match=r"recipe\.l1 was 0\.0, now 0\.5"):
        go_on(again, l1=0.5)
    with pytest.raises(UsageError, match="start was"):
        go_on(again, seed=9)
    result = go_on(again)
    assert same_weights(whole.model, result.model) and result.best.epoch == whole.best.epoch
    assert [e.loss for e in result.history] == [e.loss for e in whole.history]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_all_forms_of_data_are_the_same_data() -> None:
    images, labels = arrays()
    parts = {"train": slice(0, 40), "validation": slice(40, 50), "test": slice(50, 60)}
    given = {name: (images[part], labels[part]) for name, part in parts.items()}
    expected = as_data(given)
    pairs = [[(torch.from_numpy(images[i]), int(labels[i])) for i in range(*p.indices(60))]
             for p in parts.values()]  # fmt: skip
    for other in (
        {k: (torch.from_numpy(x), torch.from_numpy(y)) for k, (x, y) in given.items()},
        {k: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for k, (x, y) in given.items()},
        dict(zip(parts, map(Listed, pairs), strict=True)),
    ):
        found = as_data(other)
        for name in parts:
            assert torch.equal(getattr(found, name).images, getattr(expected, name).images)
            assert torch.equal(getattr(found, name).labels, getattr(expected, name).labels)
    assert as_data(expected) is expected
    assert as_data("Digits").name == "digits"


class Listed(torch.utils.data.Dataset[tuple[Any, int]]):
    """A Dataset of a list."""

    def __init__(self, items: list[tuple[Any, int]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.items[index]


def test_missing_splits_are_a_tenth_each_class_by_class() -> None:
    images, labels = arrays(300)
    found = as_data((images, labels))
    assert [len(part) for part in (found.train, found.validation, found.test)] == [240, 30, 30]
    assert found.test.labels.bincount().tolist() == [10, 10, 10]
    both = torch.cat([part.images for part in (found.train, found.validation, found.test)])
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, images))
    again = as_data({"train": (images, labels), "test": (images[:5], labels[:5])})
    assert [len(part) for part in (again.train, again.validation, again.test)] == [270, 30, 5]


def test_what_the_numbers_mean() -> None:
    norm = few(32).normalization
    model = from_module(network(few(32)), ModelInfo(normalization=norm))
    pixels = few(32).train.images
    labels = few(32).train.labels
    ours = as_data((pixels[:, 0].numpy(), labels), model=model)  # (N, H, W)
    assert ours.normalization == norm and len(ours.classes) == 10
    floats = as_data((pixels.double() / 3, labels), model=model)
    assert floats.train.images.dtype == torch.float32
    assert torch.equal(floats.normalise(floats.train.images), floats.train.images)
    bare = as_data((pixels, labels))
    assert torch.equal(bare.normalise(pixels), pixels.float() / 255)


def test_pictures_become_channels_first() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    found = as_data(Listed([(image.fromarray(pixels), 0)] * 10))
    assert np.array_equal(found.train.images[0].numpy(), pixels.transpose(2, 0, 1))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x, y: (x, y[:-1]), DataError, r"train: images \(60, 2, 6, 6\) and labels"),
        (lambda x, y: (x, y / 2), DataError, "integer labels"),
        (lambda x, y: (x, y - 1), DataError, "labels count from 0"),
        (lambda x, y: (x, y * 2), DataError, "labels up to 4 given; the model has 3 classes"),
        (lambda x, y: (x.astype(np.int64), y), DataError, "images of torch.int64; needs uint8"),
        (lambda x, y: (x / np.nan, y), DataError, "finite numbers"),
        (lambda x, y: (x[:, 0, 0, 0], y), DataError, "needs images"),
        (
            lambda x, y: (x[:9], y[:9]),
            UsageError,
            "9 training samples are given, and no validation",
        ),
        (lambda x, y: (x[..., :5], y), UsageError, r"the model needs images of \(2, 6, 6\)"),
        (lambda x, y: {"test": (x, y)}, UsageError, "needs train"),
        (lambda x, y: {"train": (x, y), "dev": (x, y)}, UsageError, "train, dev given"),
        (lambda x, y: {"train": (x, y), "test": (x / 1, y)}, DataError, "different forms"),
        (lambda x, y: x, UsageError, "ndarray given; needs"),
        (lambda x, y: ([["a"]], [0]), DataError, "no array of numbers"),
        (lambda x, y: Endless(), UsageError, "Endless given"),
        (lambda x, y: Listed([(x[0], 0), (x[0, :1], 1)]), DataError, "not all of one shape"),
        (lambda x, y: "cifar11", UnknownNameError, "cifar11"),
        (lambda x, y: "digits", UsageError, "the model needs images"),
    ],
)
def test_wrong_data_is_refused(
    wrong: Callable[[Array, Array], Any], error: type[SoulDeployError], message: str
) -> None:
    with pytest.raises(error, match=message):
        soul_deploy.train(small_graph(), wrong(*arrays()), QUICK, device="cpu")


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="tpu"):
        soul_deploy.train(small_graph(), arrays(), QUICK, device="tpu")
    with pytest.raises(UsageError, match="epochs 0"):
        TrainConfig(epochs=0)
    with pytest.raises(UsageError, match="every 0"):
        Checkpoints(tmp_path, every=0)
    part = Split(torch.zeros(3, 4), torch.arange(3))
    flat = Data("flat", part, part, part, ("a", "b", "c"), None, input_kind="values")
    graph = flat_graph()
    model = from_module(soul_deploy.GraphModule(graph), ModelInfo(input_kind="values"))
    with pytest.raises(UsageError, match="augment shift moves images"):
        soul_deploy.train(model, flat, replace(QUICK, augment="shift"), device="cpu")
    assert soul_deploy.train(model, flat, QUICK, device="cpu").model.info.input_kind == "values"


def flat_graph() -> soul_deploy.SpikingGraph:
    from soul_deploy.ir import Input, Linear, NeuronSpec, Population, Readout

    nodes = (
        Input("input", (), (4,)),
        Linear("a", ("input",), True, None, 4, 5),
        Population("sa", ("a",), NeuronSpec()),
        Readout("head", ("sa",), 3, linear=True, bias=True),
    )
    return soul_deploy.SpikingGraph(nodes, 2)


def test_a_run_does_not_go_on_under_other_masks(tmp_path: Path) -> None:
    graph = small_graph()
    dense = from_module(soul_deploy.GraphModule(graph), ModelInfo())
    name = graph.populations[0].name
    keep = np.ones(graph.shapes[name], np.bool_)
    keep.flat[0] = False
    kept = Checkpoints(tmp_path, resume=True)
    soul_deploy.train(dense, arrays(), replace(QUICK, epochs=1), device="cpu", checkpoints=kept)
    masked = replace(dense, neuron_masks={name: keep})
    with pytest.raises(UsageError, match="start"):
        soul_deploy.train(
            masked, arrays(), replace(QUICK, epochs=1), device="cpu", checkpoints=kept
        )
