"""Kills real commands at random moments, goes on with --resume, and compares the ends.

`python killing.py COMMAND COUNTS SEED FOLDER` starts PyTorch once and forks a process for each run.
COUNTS such as "kill=3,damage=3,TERM=1,INT=1" says how often what is done: "kill" (SIGKILL by itself
at a random event, or by the parent after a random time), "damage" (also the newest checkpoint is
cut), "TERM" or "INT" (the signal at a random event). Events are optimizer steps, and what a written
file goes through. Prints one JSON line per case.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from searching import few
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from soul_deploy.cli.main import root
from soul_deploy.data.datasets import READERS

SMALL = "--model spikingvgg5 --hidden 8 --dataset_name digits -T 2 --threads 1 -b 32"
COMMANDS = {
    "train": f"train {SMALL} --epochs 3 --augment crop_flip --scheduler warmup --save_steps 2",
    "structured": f"prune structured {SMALL} --epochs 2 --prune_ratio 0.5 --min_keep 0.25 "
    "--finetune_epochs 1 --optimizer sgd -lr 0.05 --augment shift --save_steps 2",
    "unstructured": f"prune unstructured {SMALL} --epochs 2 --criterion ce --prune_lr 0.02 "
    "--target_connectivity 0.3 --temp_scheduler 5,200 --save_steps 1 --finetune "
    "--epoch_finetune 2 --finetune_lr_scheduler cosine",
    "structured curve": f"prune structured {SMALL} --epochs 2 --target_params 0.6,0.4 "
    "--finetune_epochs 1 --optimizer sgd -lr 0.05 --save_steps 2",
    "unstructured curve": f"prune unstructured {SMALL} --epochs 2 --criterion ce --prune_lr 0.02 "
    "--target_params 0.5,0.3 --temp_scheduler 5,200 --save_steps 2",
}


class Events:
    """Counts events in this process; at number `at` it sends itself `number`."""

    def __init__(self, at: int | None, number: int, report: Path) -> None:
        self.count, self.at, self.number, self.report = 0, at, number, report

    def add(self, *ignored: object) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            self.add()
            result = inner(*values)
            self.add()
            return result

        return call


def start(folder: Path, words: list[str], at: int | None, number: int = signal.SIGKILL) -> int:
    """Fork a process that runs a command in `folder`; its id."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        events = Events(at, number, folder / "events.txt")
        register_optimizer_step_pre_hook(events.add)
        register_optimizer_step_post_hook(events.add)
        os.fsync = events.around(os.fsync)
        Path.replace = events.around(Path.replace)  # type: ignore[method-assign]
        try:
            root.main(words, prog_name="soul-deploy")
        except SystemExit as end:
            code = int(end.code or 0)
        Path("events.txt").write_text(str(events.count))
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> dict[str, str]:
    """sha256 of every model file, and of the epochs' results without their durations."""
    found = {}
    for path in sorted((folder / "saved_models").glob("*.safetensors")):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((folder / "logs").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = json.dumps([{**row, "seconds": 0} for row in rows])
    for path in (folder / "saved_models").glob("*.json"):
        curve = json.loads(path.read_text())
        found[path.name] = json.dumps([{**point, "seconds": 0} for point in curve["points"]])
    return found


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "saved_models" / "checkpoints").rglob("*.safetensors"))


def text(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def one_case(
    folder: Path, how: str, words: list[str], random: np.random.Generator, whole: tuple[int, float]
) -> dict[str, Any]:
    """Interrupt, perhaps damage, go on to the end; what was seen."""
    events, seconds = whole
    seen: dict[str, Any] = {"how": how, "codes": []}
    number = {"TERM": signal.SIGTERM, "INT": signal.SIGINT}.get(how, signal.SIGKILL)
    timed = how == "kill" and random.random() < 0.3
    first = events * 2 // 3 if how == "damage" else 1
    at = None if timed else int(random.integers(first, events - 1))
    seen["at"] = at
    child = start(folder, [*words, "--resume", "auto"], at, number)
    if timed:
        time.sleep(random.uniform(0, 0.9) * seconds)
        os.kill(child, signal.SIGKILL)
    seen["codes"].append(ended(child))
    if how == "damage":
        *_, newest = checkpoints(folder)
        os.truncate(newest, int(random.integers(0, newest.stat().st_size)))
        seen["damaged"] = newest.name
    seen["codes"].append(ended(start(folder, [*words, "--resume", "auto"], None)))
    seen["output"] = text(folder)
    return seen


def warm_up() -> None:
    """Load what the commands load when they are first used. No gradient: that forbids forking."""
    for name in ("train", "prune_structured", "prune_unstructured"):
        import_module(f"soul_deploy.cli.{name}")
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    for kind in (torch.optim.Adam, torch.optim.SGD):
        kind([parameter]).step()


def main(command: str, counts: str, seed: int, folder: Path) -> None:
    """Run the uninterrupted command once, then the cases."""
    torch.set_num_threads(1)
    warm_up()
    data = few(96)
    READERS["digits"] = lambda data_dir, download: data  # type: ignore[index]
    words = COMMANDS[command].split()
    begun = time.monotonic()
    assert ended(start(folder / "whole", words, None)) == 0, text(folder / "whole")
    whole = int((folder / "whole" / "events.txt").read_text()), time.monotonic() - begun
    expected = outcome(folder / "whole")
    assert expected
    wanted = [part.split("=") for part in counts.split(",")]
    for case, how in enumerate(how for how, count in wanted for _ in range(int(count))):
        random = np.random.default_rng([seed, case])
        place = folder / f"{how}{case}"
        seen = one_case(place, how, words, random, whole)
        found = outcome(place)
        seen["same"] = found == expected
        seen["left"] = [str(path) for path in place.rglob(".*.tmp") if "checkpoints" in path.parts]
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
