"""Several processes do what one does: sums, masks, files, and what happens when one dies."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from jobs import torchrun
from places import SUPPORT
from safetensors.torch import load_file
from sharing import everything
from torch import Tensor, nn

from soul_deploy.base.errors import UsageError
from soul_deploy.cli.main import root
from soul_deploy.distributed import (
    Group,
    attempt,
    current,
    digest_of,
    join,
    main_first,
    odd_ones,
    restart_advice,
    running_statistics,
    started_by_torchrun,
)
from soul_deploy.model.file import load
from soul_deploy.training import trainer as training
from soul_deploy.training.trainer import TrainConfig, begin_training

SMALL = ["--model", "Cifar10Net", "--width", "8", "--hidden", "16", "--dataset_name", "digits"]
QUICK = [
    *SMALL,
    "-T",
    "1",
    "-b",
    "128",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--process_timeout",
    "30",
]
E = ".safetensors"
STEM = "cifar10net_lif_digits_T1_2025"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what they ended with."""
    folder = tmp_path_factory.mktemp("job")
    started = torchrun(folder, str(SUPPORT / "sharing.py"), str(folder))
    _, said = started.communicate(timeout=120)
    assert started.returncode == 0, said
    return folder


@pytest.fixture(scope="module")
def two(job: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    return load_file(job / "rank0.safetensors"), load_file(job / "rank1.safetensors")


@pytest.fixture(scope="module")
def one() -> Mapping[str, Tensor]:
    before = training.EVALUATION_BATCH
    try:
        return everything()
    finally:
        training.EVALUATION_BATCH = before


def test_all_processes_end_with_the_same_bits(
    two: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> None:
    first, second = two
    assert first.keys() == second.keys() and len(first) > 100
    for name in first:
        assert digest_of([first[name]]) == digest_of([second[name]]), name


@pytest.mark.parametrize("run", ["channels", "connections"])
def test_two_processes_cut_what_one_cuts(
    run: str, one: Mapping[str, Tensor], two: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
) -> None:
    masks = [name for name in one if name.startswith(f"{run}/mask of ")]
    assert len(masks) > 3
    for name in masks:
        assert torch.equal(one[name], two[0][name]), name
    kept = sum(float(one[name].double().sum()) for name in masks)
    assert 0.2 < kept / sum(one[name].numel() for name in masks) < 0.8


@pytest.mark.parametrize("run", ["train", "channels", "connections"])
def test_two_processes_learn_what_one_learns(
    run: str, one: Mapping[str, Tensor], two: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
) -> None:
    for name in one:
        if name.startswith(f"{run}/"):
            torch.testing.assert_close(two[0][name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def test_each_process_has_batch_statistics_of_its_own(
    one: Mapping[str, Tensor], two: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
) -> None:
    means = [name for name in one if name.startswith("live/") and name.endswith("running_mean")]
    frozen = [name.replace("live/", "train/") for name in means]
    assert any(not torch.equal(one[name], two[0][name]) for name in means)
    assert all(torch.equal(one[name], two[0][name]) for name in frozen)


def test_a_process_that_holds_something_else_is_named(job: Path) -> None:
    for rank in (0, 1):
        order, alone, told, same, data, checkpoint = (
            (job / f"rank{rank}.txt").read_text().split("\n")
        )
        assert order == str(rank == 0)  # the main process downloads
        assert alone == f"{rank == 0} 1"
        assert told.startswith("epoch 3: masks of rank 1 differ from those of the other ranks")
        assert same == "nothing"
        assert data.startswith("at the start: settings and data of rank 1 differ from those of")
        assert checkpoint.startswith("at the start: the checkpoint to go on from of rank 1 differ")


def _process_of(job: "subprocess.Popen[str]", rank: int) -> int:
    """The process id of a rank, from its environment."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"rank {rank} does not run")


def _kill_rank_one(job: "subprocess.Popen[str]", folder: Path) -> float:
    """As soon as a second checkpoint stands in `folder`; the moment of it."""
    while not list(folder.glob("*[2-9].safetensors")):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    os.kill(_process_of(job, 1), signal.SIGKILL)
    return time.monotonic()


def test_a_killed_process_ends_the_job_and_the_rest_resumes(tmp_path: Path) -> None:
    words = ["-m", "soul_deploy", "prune", "structured", *QUICK, "--prune_ratio", "0.3"]
    words += ["--epochs", "1", "--prune_epochs", "3", "--save_steps", "2", "--resume", "auto"]
    words += ["--finetune_epochs", "1"]
    started = torchrun(tmp_path, *words)
    checkpoints = tmp_path / "saved_models" / "checkpoints" / f"structured_{STEM}"
    killed = _kill_rank_one(started, checkpoints)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1 and time.monotonic() - killed < 60
    assert re.search("rank 0: another of the 2 processes was ended, failed or hangs", said)
    assert "Signal 9 (SIGKILL) received" in said and "--resume auto" in said
    assert not list((tmp_path / "saved_models").glob("*.safetensors"))
    _resume(tmp_path, words)


def test_two_processes_go_down_a_curve_and_past_what_is_whole(tmp_path: Path) -> None:
    words = ["-m", "soul_deploy", "prune", "structured", *QUICK, "--target_params", "0.6,0.4"]
    words += ["--epochs", "1", "--prune_epochs", "1", "--resume", "auto"]
    models = tmp_path / "saved_models"
    for passed in (0, 1):
        for left in models.glob("*_0.40*"):
            left.unlink()
        started = torchrun(tmp_path, *words)
        _, said = started.communicate(timeout=120)
        assert started.returncode == 0, said
        assert said.count("not pruned again") == passed
        points = json.loads((models / f"curve_{STEM}.json").read_text())["points"]
        assert [point["label"] for point in points] == ["0.60", "0.40"]
        assert all(load(models / point["files"]["compact"]).state for point in points)


SLOW_DISK = """
import os, time

sync = os.fsync
os.fsync = lambda handle: (time.sleep(1), sync(handle))
"""


def _files(checkpoints: Path) -> list[Path]:
    """Those in a folder that may be there and gone again: a run tries whether it can be made."""
    try:
        return list(checkpoints.glob("0*.safetensors"))
    except FileNotFoundError:
        return []


def test_a_stopped_job_has_written_its_checkpoint_before_one_ends(tmp_path: Path) -> None:
    """torchrun ends all processes when one has ended, and passes on the signals that it gets."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK)
    words = ["-m", "soul_deploy", "train", *QUICK, "--epochs", "30"]
    started = torchrun(tmp_path, *words, more_paths=(tmp_path,))
    checkpoints = tmp_path / "saved_models" / "checkpoints" / f"train_{STEM}"
    while not _files(checkpoints):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.05)
    (before,) = _files(checkpoints)
    for rank in (0, 1):
        os.kill(_process_of(started, rank), signal.SIGTERM)
    time.sleep(0.4)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=60)
    found = re.search(r"rank 0: stopped by SIGTERM; (\S+) holds the run", said)
    assert found and (tmp_path / found[1]).exists() and found[1] != str(before), said
    assert said.count("holds the run") == 1 and "before the first checkpoint" not in said


def test_torchrun_restarts_a_job_that_goes_on_and_its_model_is_pruned(tmp_path: Path) -> None:
    words = ["-m", "soul_deploy", "train", *QUICK, "--epochs", "4", "--save_steps", "2"]
    checkpoints = tmp_path / "saved_models" / "checkpoints" / f"train_{STEM}"
    started = torchrun(tmp_path, *words, "--resume", "auto", more=("--max-restarts", "1"))
    _kill_rank_one(started, checkpoints)
    out, said = started.communicate(timeout=120)
    assert started.returncode == 0, said
    assert said.count("resuming from") == 1 and said.count("train 4/4: loss") == 1
    assert len((tmp_path / "logs" / f"train_{STEM}.jsonl").read_text().splitlines()) == 4
    trained = tmp_path / "saved_models" / f"best_{STEM}{E}"
    assert load(trained).info.provenance["command"] == "train" and "test" in out

    words = ["-m", "soul_deploy", "prune", "unstructured", *QUICK, "--model_path", str(trained)]
    words += ["--epochs", "2", "--finetune", "--epoch_finetune", "1", "--prune_lr", "0.1"]
    words += ["--mask_init_factor", "0.1 0.1 0.1 0.1", "--target_connectivity", "0.3"]
    pruned = torchrun(tmp_path, *words)
    out, said = pruned.communicate(timeout=120)
    assert pruned.returncode == 0, said
    assert out.count("Connectivity") == 1
    models = {path.name for path in (tmp_path / "saved_models").glob("*.safetensors")}
    assert len(models) == 3


def _resume(folder: Path, words: list[str]) -> None:
    """Go on to the end; one process has written and spoken."""
    again = torchrun(folder, *words)
    out, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert said.count("resuming from") == 1 and out.count("Compact model") == 1
    assert said.count("train 1/1: loss") == said.count("prune 3/3: loss") == 1
    models = {path.name for path in (folder / "saved_models").glob("*.safetensors")}
    assert models == {f"best_{STEM}{E}", f"pruned_{STEM}{E}", f"pruned_{STEM}_compact{E}"}
    compact = load(folder / "saved_models" / f"pruned_{STEM}_compact{E}")
    assert compact.info.provenance["command"] == "prune structured"
    for name, lines in (("train", 1), ("prune", 3)):
        assert len((folder / "logs" / f"{name}_{STEM}.jsonl").read_text().splitlines()) == lines


@given(st.integers(1, 9), st.integers(1, 70))
def test_parts_make_the_batch(world: int, samples: int) -> None:
    parts = [Group(rank, world).part(samples) for rank in range(world)]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    taken = [list(range(samples))[part.index] for part in parts]
    if world > 1 and samples < 2 * world:
        assert all(own == list(range(samples)) for own in taken)
    else:
        assert sorted(sample for own in taken for sample in own) == list(range(samples))
        assert min(map(len, taken)) >= min(2, samples)
        for own, part in zip(taken, parts, strict=True):
            assert part.weight == len(own) / samples


def test_a_group_of_one_adds_nothing() -> None:
    tensor = torch.tensor([1.5])
    group = current()
    group.add_up([tensor])
    group.agree("now", {"weights": [tensor]})
    assert group == Group() and group.is_main and group.total(3) == 3 and group.largest(-2) == -2
    assert group.sums([0.1, 2.0]) == [0.1, 2.0] and tensor.item() == 1.5
    assert main_first(lambda main: main) is True


def test_the_odd_ones_are_named() -> None:
    assert odd_ones([b"a", b"a", b"a"]) == ()
    assert odd_ones([b"a", b"b"]) == (1,)
    assert odd_ones([b"b", b"a", b"a", b"c"]) == (0, 3)


def test_a_digest_sees_type_shape_and_every_value() -> None:
    seen = {
        digest_of([torch.zeros(2)]),
        digest_of([torch.zeros(2, 1)]),
        digest_of([torch.zeros(2).int()]),
        digest_of([torch.tensor([0.0, -0.0])]),
        digest_of([]),
    }
    assert len(seen) == 5


def test_frozen_batch_norms_are_not_averaged() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(2, 2))
    begin_training(module, TrainConfig())
    assert len(running_statistics(module)) == 2
    begin_training(module, TrainConfig(freeze_batch_norm=True))
    assert running_statistics(module) == [] and module[1].training


def test_half_a_description_of_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not started_by_torchrun({}) and not started_by_torchrun({"WORLD_SIZE": "1"})
    with pytest.raises(UsageError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not"):
        started_by_torchrun({"WORLD_SIZE": "2"})
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu", 1) == torch.device("cpu")


def test_starts_of_one_job_are_told_apart() -> None:
    alone = {"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert attempt({}) == attempt(alone) == "start 0"
    assert attempt(alone | {"TORCHELASTIC_RESTART_COUNT": "2"}) == "start 2"
    assert restart_advice(alone | {"TORCHELASTIC_MAX_RESTARTS": "3"}) is None
    several = alone | {"GROUP_WORLD_SIZE": "2"}
    restarted = [{}, {"TORCHELASTIC_RESTART_COUNT": "2"}]  # each agent counts its own
    assert {attempt(several | more) for more in restarted} == {"start"}
    assert restart_advice(several) is None
    several |= {"TORCHELASTIC_MAX_RESTARTS": "3"}
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for" in (restart_advice(several) or "")
    assert restart_advice(several | {"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None


def test_other_commands_refuse_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(root, ["prune", "compact", "x.safetensors"])
    assert result.exit_code == 2
    assert "rank 1: compact runs in one process, and torchrun started several" in result.stderr
