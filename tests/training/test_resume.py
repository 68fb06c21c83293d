"""A run that was interrupted ends as if it had not been, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from places import PATH, SUPPORT
from searching import few, network, pruning_of, search_of

from soul_deploy import distributed
from soul_deploy.base.errors import FileFormatError, InterruptedRunError
from soul_deploy.base.files import digest
from soul_deploy.base.progress import messages_printed
from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS, Data, Split
from soul_deploy.data.sampler import DataOrder, EpochBatches
from soul_deploy.distributed import Group
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.structured.config import PruneSchedule, ScaConfig
from soul_deploy.prune.structured.sca import ChannelPruning
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured.baselines import BaselineLoop
from soul_deploy.prune.unstructured.config import FinetuneConfig
from soul_deploy.prune.unstructured.search import FinetuneLoop, SearchLoop
from soul_deploy.training.checkpoint import (
    Checkpoint,
    checkpoints_in,
    read_checkpoint,
    write_checkpoint,
)
from soul_deploy.training.checkpoint_manager import (
    CheckpointManager,
    Checkpoints,
    Run,
    find_checkpoint,
)
from soul_deploy.training.lr_schedules import Schedule
from soul_deploy.training.state import (
    Tree,
    join_tree,
    random_states,
    restore_random_states,
    split_tree,
)
from soul_deploy.training.trainer import BatchHooks, TrainConfig, Training


@pytest.fixture(scope="module")
def digits() -> Data:
    return few(96)


def cases(command: str, counts: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """What tests/support/killing.py saw."""
    words = [sys.executable, str(SUPPORT / "killing.py"), command, counts, str(seed)]
    done = subprocess.run(
        [*words, str(folder)],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_case(seen: dict[str, Any]) -> None:
    how, codes = seen["how"], seen["codes"]
    assert codes[-1] == 0, seen["output"]
    assert seen["same"], seen
    assert seen["left"] == []
    expected = {"TERM": 143, "INT": 130}.get(how, -signal.SIGKILL)
    late = how == "kill" and seen["at"] is None and codes[0] == 0  # it had ended before
    assert codes[0] == expected or late, seen["output"]
    if how == "damage":
        assert f"{seen['damaged']} is not an intact" in seen["output"] or (
            f"{seen['damaged']}: its content does not match" in seen["output"]
        ), seen["output"]
        assert "trying the checkpoint before it" in seen["output"]
    if how in ("TERM", "INT"):
        assert "stopped by " + {"TERM": "SIGTERM", "INT": "Ctrl-C"}[how] in seen["output"]


@pytest.mark.parametrize("command", ["train", "structured", "unstructured"])
def test_an_interrupted_command_ends_bit_identical(command: str, tmp_path: Path) -> None:
    """Killed, killed and its newest checkpoint cut, stopped by SIGTERM or by Ctrl-C."""
    stopped = "INT=1" if command == "structured" else "TERM=1"
    found = cases(command, f"kill=3,damage=3,{stopped}", 1, tmp_path)
    assert len(found) == 7
    for seen in found:
        check_case(seen)


@pytest.mark.parametrize("command", ["structured curve", "unstructured curve"])
def test_an_interrupted_curve_ends_bit_identical(command: str, tmp_path: Path) -> None:
    """Killed inside of points and between them."""
    found = cases(command, "kill=3,TERM=1", 2, tmp_path)
    assert len(found) == 4
    for seen in found:
        check_case(seen)


@pytest.mark.soak
@pytest.mark.parametrize("command", ["train", "structured", "unstructured"])
def test_soak_interrupted_commands(command: str, tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    for seen in cases(command, "kill=20,damage=20,TERM=20,INT=20", seed, tmp_path):
        check_case(seen)


class Noise(BatchHooks):
    """Draws from all three global generators."""

    def forward(
        self,
        module: GraphModule,
        images: torch.Tensor,
        weight: float = 1.0,
        *,
        per_step: bool = False,
    ) -> torch.Tensor:
        noise = torch.rand(len(images), 1, 1, 1) + random.random() + np.random.random()
        return super().forward(module, images + 0.1 * noise, weight, per_step=per_step)


@pytest.fixture(autouse=True)
def _as_in_a_command() -> Iterator[None]:
    with messages_printed():
        yield


class Job:
    """A loop of one kind, with its step hook free."""

    def __init__(self, kind: str, data: Data) -> None:
        self.kind, self.data = kind, data
        self.hook: Callable[[], None] = lambda: None
        torch.manual_seed(3)
        self.loop = self._loop()

    def _loop(self) -> Any:
        recipe = TrainConfig(
            learning_rate=5e-3, batch_size=32, augment="shift", schedule=Schedule()
        )
        if self.kind == "training":
            random_hooks = Noise()
            module = network(self.data)
            return Training(
                *(module, self.data, replace(recipe, epochs=2)),
                hooks=random_hooks,
                after_step=lambda: self.hook(),
            )
        if self.kind in ("sca", "frozen"):
            module = network(self.data)
            names = [node.name for node in module.graph.populations]
            schedule = (3, 2) if self.kind == "frozen" else (2, 0)
            sca = ScaConfig(PruneSchedule(0.5, 0.1, *schedule))
            return ChannelPruning(
                *(module, self.data, replace(recipe, optimizer="sgd"), sca, names),
                after_step=lambda: self.hook(),
            )
        plan = search_of(2, target=Target("connectivity", 0.3), prune_lr=0.02)
        if self.kind == "baseline":
            target = Target("synops", 2000)
            plan = search_of(2, target=target, method="magnitude", prune_ramp="linear")
        pruning = pruning_of(self.data, plan, schedule=Schedule())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for mask in pruning.masks:  # different from the first, so that counts are not all 1
                mask.alpha.add_(0.1 * torch.randn(mask.alpha.shape, generator=generator))
        pruning.after_step = lambda: self.hook()
        if self.kind == "search":
            return SearchLoop(pruning)
        if self.kind == "baseline":
            with torch.no_grad():
                for parameter in pruning.module.parameters():  # fresh ones are silent
                    parameter.mul_(4)
            return BaselineLoop(pruning)
        return FinetuneLoop(pruning, FinetuneConfig(2, 1e-3, Schedule()))

    def finish(self) -> str:
        """Run to the end; the digest of all state, durations aside."""
        list(self.loop.run())
        arrays, facts = split_tree(self.loop.state())
        return digest(arrays) + json.dumps(without_times(facts), sort_keys=True)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "seconds"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


KINDS = ("training", "sca", "frozen", "search", "finetune", "baseline")
AT = 4
"""The step after which is saved: the second epoch's first."""


def saved(kind: str, data: Data, path: Path) -> str:
    """Write a checkpoint after step AT of a run that goes on; the digest of its end."""
    job, steps = Job(kind, data), []

    def hook() -> None:
        steps.append(1)
        if len(steps) == AT:
            state = {"run": job.loop.state(), "random": random_states()}
            write_checkpoint(path, Checkpoint({}, {}, kind, state))

    job.hook = hook
    return job.finish()


@pytest.fixture(scope="module")
def runs(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for kind in KINDS:
        path = folder / f"{kind}.safetensors"
        found[kind] = saved(kind, digits, path), path
    return found


Runs = dict[str, tuple[str, Path]]


def resumed(kind: str, data: Data, path: Path, drop: str = "") -> str:
    """The end of a run from a checkpoint, with the part `drop` as at the beginning."""
    job = Job(kind, data)
    fresh = {"run": job.loop.state(), "random": random_states()}
    tree = read_checkpoint(path).state
    if drop:
        *folders, name = drop.split("/")
        arrays, facts = split_tree(fresh)
        source: Tree = join_tree({k: np.array(v) for k, v in arrays.items()}, facts)
        target = tree
        for folder in folders:
            source, target = source[folder], target[folder]
        target[name] = source[name]
    job.loop.restore(tree["run"])
    restore_random_states(tree["random"])
    return job.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_a_checkpoint_ends_the_same(kind: str, digits: Data, runs: Runs) -> None:
    end, path = runs[kind]
    assert resumed(kind, digits, path) == end


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *(("training", f"run/{part}") for part in ("module", "optimizer", "scheduler")),
        *(("training", f"random/{part}") for part in ("torch", "numpy_place", "python")),
        ("training", "run/progress"),
        *(("sca", f"run/training/{part}") for part in ("module", "optimizer", "progress")),
        ("sca", "run/training/module/channel_masks"),
        ("sca", "run/statistics"),
        *(("search", f"run/{part}") for part in ("control", "progress")),
        *(
            ("search", f"run/pruning/{part}")
            for part in ("module", "alphas", "temperatures", "lambda")
        ),
        *(("search", f"run/pruning/optimizers/{part}") for part in ("weights", "masks")),
        *(("finetune", f"run/{part}") for part in ("scheduler", "progress", "best")),
        *(("finetune", f"run/pruning/{part}") for part in ("module", "optimizers")),
    ],
)
def test_every_part_of_a_checkpoint_matters(kind: str, part: str, digits: Data, runs: Runs) -> None:
    end, path = runs[kind]
    assert resumed(kind, digits, path, part) != end


@pytest.mark.parametrize(
    "part", ["whole", "training/module", "training/optimizer", "training/progress", "best"]
)
def test_every_part_of_a_checkpoint_of_frozen_epochs_matters(
    part: str, digits: Data, runs: Runs
) -> None:
    end, path = runs["frozen"]
    arrays, facts = split_tree(read_checkpoint(path).state)
    prefix, changed = f"run/frozen/{part}", 0
    for name, array in arrays.items():
        if name.startswith(prefix) and name.endswith(("weight", "exp_avg", "buffer")):
            arrays[name], changed = array + np.float32(0.125), changed + 1
    tree = join_tree(arrays, facts)
    if part == "training/progress":
        tree["run"]["frozen"]["training"]["progress"]["step"] = 0
    if part == "best":  # so that it is what the run ends with
        tree["run"]["frozen"]["best"]["accuracy"] = 1.0
    job = Job("frozen", digits)
    job.loop.restore(tree["run"])
    assert (changed or part == "training/progress") and job.finish() != end


@pytest.mark.parametrize("kind", KINDS)
def test_restoring_gives_the_very_state_that_was_saved(kind: str, digits: Data, runs: Runs) -> None:
    tree = read_checkpoint(runs[kind][1]).state["run"]
    job = Job(kind, digits)
    job.loop.restore(tree)
    (arrays, facts), (found, told) = split_tree(tree), split_tree(job.loop.state())
    assert digest(found) == digest(arrays) and told == facts


def test_a_state_of_another_network_is_refused(digits: Data, runs: Runs) -> None:
    tree = read_checkpoint(runs["training"][1]).state["run"]
    other = Training(network(digits, hidden=9), digits, TrainConfig(epochs=2))
    with pytest.raises(FileFormatError, match=r"this run needs torch\.float32\(9"):
        other.restore(tree)
    with pytest.raises(FileFormatError, match="is missing"):
        other.restore({"module": {}})


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once_and_depends_on_seed_and_epoch_alone(
    samples: int, size: int, seed: int, epoch: int
) -> None:
    order = DataOrder(samples, size, seed)
    batches = order.batches(epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(samples))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    torch.rand(3)
    again = DataOrder(samples, size, seed).batches(epoch)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_epochs_and_seeds_give_other_orders() -> None:
    orders = [DataOrder(50, 50, seed).batches(epoch)[0] for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


@pytest.mark.parametrize("augment", ["none", "shift", "crop_flip"])
def test_processes_together_see_the_batch_that_one_sees(augment: Any, digits: Data) -> None:
    order = DataOrder(len(digits.train), 32, 5)

    def batch(group: Group) -> Split:
        return EpochBatches(digits.train, order, augment, 1, group)[2].own

    whole, parts = batch(Group()), [batch(Group(i, 3)) for i in range(3)]
    for i, part in enumerate(parts):
        assert torch.equal(part.images, whole.images[i::3])
        assert torch.equal(part.labels, whole.labels[i::3])


class Number:
    """A part that is one number."""

    def __init__(self) -> None:
        self.value = 0

    def state(self) -> Tree:
        return {"value": self.value, "array": np.arange(self.value)}

    def restore(self, tree: Tree) -> None:
        self.value = int(tree["value"])


def keeper_of(folder: Path, resume: bool | str = False) -> CheckpointManager:
    return CheckpointManager(Run(("work",), {"a": 1}), Checkpoints(folder, resume=resume))


def count_to(keeper: CheckpointManager, last: int) -> int:
    """Where the count began."""
    part = Number()
    with keeper.loop("work", part):
        first = part.value
        while part.value < last:
            part.value += 1
            keeper.after_epoch()
    return first


def test_the_last_two_are_kept_and_auto_takes_the_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count_to(keeper_of(tmp_path, True), 5) == 0
    assert "yet: starting from the beginning" in capsys.readouterr().err
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "00000004.safetensors",
        "00000005.safetensors",
    ]
    assert count_to(keeper_of(tmp_path, True), 6) == 5
    assert count_to(keeper_of(tmp_path, str(tmp_path)), 6) == 6
    assert count_to(keeper_of(tmp_path, str(tmp_path / "00000005.safetensors")), 5) == 5


class Drawing(Number):
    """Counts, and draws from all three global generators at each count."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[int, tuple[float, ...]] = {}

    def step(self) -> None:
        self.value += 1
        numbers = torch.rand(()).item(), float(np.random.random()), random.random()
        self.drawn[self.value] = numbers


def test_a_run_goes_on_with_the_random_numbers_that_it_would_have_drawn(tmp_path: Path) -> None:
    whole = Drawing()
    keeper = keeper_of(tmp_path)
    with keeper.loop("work", whole):
        for _ in range(3):
            whole.step()
        keeper.save()
        for _ in range(3):
            whole.step()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    rest = Drawing()
    with keeper_of(tmp_path, True).loop("work", rest):
        while rest.value < 6:
            rest.step()
    assert rest.drawn == {count: whole.drawn[count] for count in (4, 5, 6)}


def test_a_damaged_newest_one_falls_back_and_the_intact_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count_to(keeper_of(tmp_path), 3)
    older, newest = checkpoints_in(tmp_path)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    keeper = keeper_of(tmp_path, True)
    told = capsys.readouterr().err
    assert f"{newest}: its content does not match its sha256" in told
    assert f"resuming from {older}" in told
    part = Number()
    with keeper.loop("work", part):
        assert part.value == 2
        keeper.save()
        assert [p.name[6:8] for p in checkpoints_in(tmp_path)] == ["02", "04"]
    for path in checkpoints_in(tmp_path):
        path.write_bytes(b"no")
    with pytest.raises(FileFormatError, match="none of the 2 checkpoints"):
        keeper_of(tmp_path, True)
    with pytest.raises(FileFormatError, match="not an intact"):
        keeper_of(tmp_path, str(path))


def test_changed_facts_are_damage_too(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, Checkpoint({"a": 1}, {}, "work", {"run": {"value": 12345}}))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"12345", b"12346"))
    with pytest.raises(FileFormatError, match="does not match its checksum"):
        read_checkpoint(path)


def test_a_new_run_over_old_checkpoints_says_so_and_keeps_them_until_it_has_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count_to(keeper_of(tmp_path), 3)
    (tmp_path / ".00000009.safetensors.x.tmp").write_bytes(b"half")
    capsys.readouterr()
    keeper = keeper_of(tmp_path)
    assert "give --resume auto to go on with that one" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))
    count_to(keeper, 1)
    assert len(checkpoints_in(tmp_path)) == 3
    count_to(keeper, 2)
    assert find_checkpoint(tmp_path, True) is not None
    assert [path.name[6:8] for path in checkpoints_in(tmp_path)] == ["05", "06"]


class Second(Group):
    """The second of two processes, the first of which never says anything."""

    def largest(self, number: int) -> int:
        return number

    def wait(self) -> None:
        pass

    def agree(self, when: str, parts: Mapping[str, Iterable[torch.Tensor]]) -> None:
        assert when == "at the start" and len(parts) == 2


def test_processes_that_do_not_write_leave_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "current", lambda: Second(1, 2))
    count_to(keeper_of(tmp_path), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_outside_of_a_loop_and_a_second_one_stop_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with keeper_of(tmp_path).watching(), pytest.raises(InterruptedRunError) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_code == 143 and "before the first checkpoint" in str(stop.value)
    with (
        keeper_of(tmp_path).watching() as keeper,
        pytest.raises(InterruptedRunError) as stop,
        keeper.loop("work", Number()),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        assert not checkpoints_in(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


SMALL = "--model spikingvgg5 --hidden 8 --dataset_name digits -T 2 --threads 1 -b 32"


def call(*words: str) -> Result:
    return CliRunner().invoke(root, list(words))


def test_other_settings_or_data_are_refused_by_name(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: digits)
    words = ["train", *SMALL.split(), "--epochs", "1"]
    assert call(*words).exit_code == 0
    result = call(*words, "-lr", "0.01", "--l1", "0.5", "--resume", "auto")
    assert result.exit_code == 2 and "recipe.l1 was 0.0, now 0.5" in result.stderr
    assert "recipe.learning_rate was 0.001, now 0.01" in result.stderr
    other = replace(digits, train=digits.train.select(torch.arange(95)))
    monkeypatch.setitem(READERS, "digits", lambda data_dir, download: other)
    result = call(*words, "--resume", "auto")
    assert result.exit_code == 2 and "data.sha256 was" in result.stderr
    result = call(*words, "--resume", "nowhere")
    assert result.exit_code == 2 and "no file at nowhere" in result.stderr
    result = call(*words, "--resume", ".")
    assert result.exit_code == 2 and "no checkpoint in ." in result.stderr
    result = call(*words, "--save_steps", "0")
    assert result.exit_code == 2 and "save_steps 0 must be at least 1" in result.stderr
    model = next((tmp_path / "saved_models").glob("best_*"))
    result = call(*words, "--resume", str(model))
    assert result.exit_code == 1 and "is a model file, and a checkpoint" in result.stderr


def test_another_environment_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count_to(CheckpointManager(Run(("work",), {}, {"threads": 1}), Checkpoints(tmp_path)), 1)
    CheckpointManager(Run(("work",), {}, {"threads": 2}), Checkpoints(tmp_path, resume=True))
    assert "threads was 1, now 2" in capsys.readouterr().err
