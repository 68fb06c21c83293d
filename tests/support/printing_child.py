"""Commands in processes that share their imports: forked, each with streams of its own.

Arguments: a JSON file of jobs (see `Job` in test_output.py), a file for the exit codes. Each job
ends as Python does, but for what C libraries do at an exit: ONNX Runtime's would wait for a thread
that is not in the child. With FORBID set, PyTorch cannot be imported: it is "missing", or it is
"broken", since a library that it needs is not there.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, TextIO, cast

FORBIDDEN = ("torch", "torchvision", "onnx", "onnxruntime")


class Forbid(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] in FORBIDDEN:
            if os.environ["FORBID"] == "broken":
                raise OSError("libcudart.so.12: cannot open shared object file")
            raise ModuleNotFoundError(f"no {name} on this device", name=name)


def stream(number: int, kind: str) -> None:
    """Make descriptor 1 or 2 what `kind` says: a path, "closed", "gone" (nobody reads a pipe)."""
    name = {1: "stdout", 2: "stderr"}[number]
    if kind == "closed":
        os.close(number)
        setattr(sys, name, cast(TextIO, None))
        setattr(sys, f"__{name}__", None)
        return
    if kind == "gone":
        reading, opened = os.pipe()
        os.close(reading)
    else:
        opened = os.open(kind, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(opened, number)
    os.close(opened)


def share_imports() -> None:
    """Import what commands need, so that children have it."""
    from soul_deploy.cli.main import COMMANDS, GROUPS

    for entries in (COMMANDS, *(entries for _, entries in GROUPS.values())):
        for name, _ in entries.values():
            import_module(name.partition(":")[0])
    for name in ("nir", "torch._dynamo"):  # the latter by optimizers and tracers, late
        import_module(name)


def begin(job: dict[str, Any]) -> None:
    """In the child: its folder, its streams, its words."""
    os.chdir(job["folder"])
    stream(2, job["stderr"])
    stream(1, job["stdout"])
    sys.argv = ["soul-deploy", *map(os.fsdecode, map(bytes.fromhex, job["words"]))]


def ended(jobs: list[dict[str, Any]]) -> list[int]:
    """Exit codes of all jobs in the parent; does not return in children, which go on to main."""
    codes = []
    for job in jobs:
        child = os.fork()
        if not child:
            begin(job)
            return []
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


def run() -> None:
    from soul_deploy.cli.main import main

    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = Path(sys.argv[2])
    if codes := ended(jobs):
        results.write_text(json.dumps(codes), encoding="utf-8")
    else:
        try:
            main()
        except SystemExit as end:
            leave(end.code)
        except BaseException:
            traceback.print_exc()
            leave(1)


def leave(code: object) -> None:
    """Python's own end: streams are flushed, and one that fails makes it 120."""
    number = code if isinstance(code, int) else int(code is not None)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            traceback.print_exc()
            number = 120
    os._exit(number)


if os.environ.get("FORBID"):
    sys.meta_path.insert(0, Forbid())
else:
    share_imports()
run()
