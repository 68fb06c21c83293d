"""Which checkpoints stay, which signals count, and what is no error to be caught."""

import os
import signal
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from searching import few, network, pruning_of, search_of
from test_resume import Number, count_to, keeper_of

from soul_deploy import distributed
from soul_deploy.base.errors import (
    DistributedError,
    FileFormatError,
    FileWriteError,
    InterruptedRunError,
)
from soul_deploy.base.files import write_text
from soul_deploy.base.progress import messages_printed
from soul_deploy.cli.config import warn_of_replacing
from soul_deploy.cli.main import root
from soul_deploy.distributed import Group
from soul_deploy.ir import NeuronSpec, Population
from soul_deploy.model.file import save
from soul_deploy.model.model import ModelInfo, from_module
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured import search, threshold
from soul_deploy.prune.unstructured.config import FinetuneConfig
from soul_deploy.prune.unstructured.lambda_control import LambdaControl
from soul_deploy.prune.unstructured.search import FinetuneLoop, SearchLoop
from soul_deploy.training.checkpoint import checkpoints_in
from soul_deploy.training.checkpoint_manager import content_of, network_of
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.state import Tree, join_tree, split_tree


@pytest.fixture(autouse=True)
def _as_in_a_command() -> Iterator[None]:
    with messages_printed():
        yield


def test_the_checkpoint_gone_on_from_stays_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("saved")
    count_to(keeper_of(folder), 3)
    newest = checkpoints_in(folder)[-1]
    keeper = keeper_of(folder, str(newest.resolve()))
    count_to(keeper, 4)
    assert [path.name[6:8] for path in checkpoints_in(folder)] == ["03", "04"]


def test_checkpoints_of_another_folder_replace_those_here_when_there_are_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    count_to(keeper_of(here), 2)
    count_to(keeper_of(there), 5)
    capsys.readouterr()
    keeper = keeper_of(here, str(there))
    told = capsys.readouterr().err
    assert f"resuming from {there}" in told and f"{here} holds checkpoints of an earlier" in told
    assert count_to(keeper, 6) == 5
    assert [path.name[6:8] for path in checkpoints_in(here)] == ["01", "02", "03"]
    count_to(keeper, 2)
    assert [path.name[6:8] for path in checkpoints_in(here)] == ["04", "05"]
    assert [path.name[6:8] for path in checkpoints_in(there)] == ["04", "05"]


class Diverged(Number):
    """A part whose number is not finite from 2 on."""

    def state(self) -> Tree:
        return super().state() | {"array": np.full(3, np.inf if self.value > 1 else 1.0)}


def test_a_state_that_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    keeper, part = keeper_of(tmp_path), Diverged()
    with keeper.loop("work", part), pytest.raises(FileWriteError, match="the run has diverged"):
        for part.value in (1, 2):
            keeper.after_epoch()
    assert [path.name[6:8] for path in checkpoints_in(tmp_path)] == ["01"]
    assert count_to(keeper_of(tmp_path, True), 1) == 1


WAITED: list[int] = []


class First(Group):
    """The first of two processes; the other is always of its opinion."""

    def largest(self, number: int) -> int:
        return number

    def wait(self) -> None:
        WAITED.append(1)

    def agree(self, when: str, parts: Mapping[str, Iterable[torch.Tensor]]) -> None:
        pass


def test_several_processes_finish_their_step_however_often_they_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun passes on a signal that the processes have got already."""
    monkeypatch.setattr(distributed, "current", lambda: First(0, 2))
    WAITED.clear()
    part = Number()
    with (
        keeper_of(tmp_path).watching() as keeper,
        pytest.raises(InterruptedRunError, match=r"00000001\.safetensors holds the run") as stop,
        keeper.loop("work", part),
    ):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        part.value = 1
        keeper.after_step()
    assert stop.value.exit_code == 143 and len(checkpoints_in(tmp_path)) == 1
    assert WAITED == [1]  # nobody leaves before the checkpoint is written


@pytest.mark.parametrize(
    "raised", [InterruptedRunError("stopped", signal.SIGTERM), DistributedError("another ended")]
)
def test_an_adjustment_that_was_interrupted_is_no_missed_target(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = SearchLoop(pruning_of(few(32), search_of(2, target=Target("connectivity", 0.3))))

    def adjust(*ignored: object) -> None:
        raise raised

    monkeypatch.setattr(threshold, "shift", adjust)
    for epoch in (1, 2):
        monkeypatch.setattr(search, "LATE", 0.0)
        monkeypatch.setattr(search, "FAR", 0.0)
        with pytest.raises(type(raised)) as caught:
            loop._correct(epoch)
        assert caught.value is raised


@pytest.mark.parametrize(("key", "value"), [("epoch", 3), ("step", 99), ("hits", 33)])
def test_a_place_outside_of_the_search_is_refused(key: str, value: int) -> None:
    for make in (
        lambda: SearchLoop(pruning_of(few(32), search_of(2))),
        lambda: FinetuneLoop(
            pruning_of(few(32), search_of(2)), FinetuneConfig(2, 1e-3, Schedule("constant"))
        ),
    ):
        loop = make()
        for _ in loop.run():
            break
        tree = join_tree(*split_tree(loop.state()))
        make().restore(tree)
        with pytest.raises(
            FileFormatError, match="this run has 2 epochs of 1 steps and 32 samples"
        ):
            make().restore(tree | {"progress": {**tree["progress"], key: value}})


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"start": -1.0}, {"value": 0.0}, {"value": 1e5}])
def test_an_impossible_controller_is_refused(wrong: dict[str, float]) -> None:
    state = {"start": 0.1, "value": 0.5}
    assert LambdaControl.restored(state).state() == state
    with pytest.raises(FileFormatError, match="no state of the controller"):
        LambdaControl.restored(state | wrong)


def test_ctrl_c_outside_of_training_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*ignored: object, **also: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("soul_deploy.runtime.engine.network.load", interrupted)
    result = CliRunner().invoke(root, ["run", __file__, __file__])
    assert result.exit_code == 130 and result.stderr == "stopped by Ctrl-C\n"


def test_another_network_or_another_test_split_is_another_run() -> None:
    data, graph = few(32), network(few(32)).graph
    nodes = [
        replace(node, neuron=NeuronSpec(tau=8.0)) if isinstance(node, Population) else node
        for node in graph.nodes
    ]
    assert network_of(graph) == network_of(graph) != network_of(replace(graph, nodes=tuple(nodes)))
    changed = replace(data, test=data.validation)
    assert content_of(data) == content_of(few(32)) != content_of(changed)


def test_the_new_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync

    def recorded(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_text(tmp_path / "a.txt", "a")
    assert synced == [False, True]


def test_another_commands_result_is_not_replaced_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pruned.safetensors"
    warn_of_replacing(path, "prune structured")
    path.write_bytes(b"damaged")
    warn_of_replacing(path, "prune structured")
    info = ModelInfo(provenance={"command": "prune structured"})
    save(from_module(network(few(32)), info), path)
    warn_of_replacing(path, "prune structured")
    assert capsys.readouterr().err == ""
    warn_of_replacing(path, "prune unstructured")
    told = capsys.readouterr().err
    assert f"Warning: {path} is the result of prune structured, which this run will" in told
