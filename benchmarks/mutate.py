"""Mutation testing of one module: how many small faults put into it do its tests see?

    python benchmarks/mutate.py prune/removal/planner.py [--tests tests/prune ...]

cosmic-ray (extra `mutate`) makes the mutants; `--count` of them are drawn with `--seed`. The tests
run in a copy of the tree below build/mutate, those that reach the module. What is done is kept
there: the same command goes on where it stopped, until a source or a test changes. It ends after
`--minutes`. A mutant of an annotation is no fault and is left out. Exit code 3: not all are tested.
"""

import argparse
import ast
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parent.parent
LEAST_TIMEOUT = 30.0  # seconds, beside three times what the tests take


def tracked() -> list[Path]:
    """Files of the tree that tests may need, links left out (a link's files are listed too)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def copied(module: Path) -> Path:
    """A copy of the tree; a new one if a source or test has changed since the last."""
    paths = tracked()
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix == ".py" and not (ROOT / path).is_symlink():
            digest.update(path.as_posix().encode() + (ROOT / path).read_bytes())
    folder = ROOT / "build" / "mutate" / module.with_suffix("").as_posix().replace("/", "-")
    stamp = folder / "mutate.sha256"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path, follow_symlinks=False)
        stamp.write_text(digest.hexdigest())
    return folder


def dotted(path: Path) -> str:
    """The name by which a file of the sources is imported."""
    parts = path.with_suffix("").parts
    return ".".join(parts if parts[0] == "soul_deploy" else ("soul_deploy", *parts))


def importers(names: set[str], paths: list[Path]) -> list[Path]:
    """Those of `paths` that import one of the modules."""
    found = []
    for path in paths:
        imported: set[str] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom):
                imported |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
        if imported & names:
            found.append(path)
    return found


def tests_of(module: Path) -> list[str]:
    """The test files nearest to the module: they import it, or else what imports it.

    Those of the module's own package come first, since the first failure ends a mutant.
    """
    paths = [path for path in tracked() if path.suffix == ".py" and not (ROOT / path).is_symlink()]
    tests = [path for path in paths if path.name.startswith("test_")]
    sources = [path for path in paths if path.parts[0] not in ("tests", "benchmarks", "examples")]
    names = {dotted(module)}
    while names:
        found = importers(names, tests)
        if found:
            own = "/".join(part for part in module.parent.parts if part != "soul_deploy")
            found.sort(key=lambda path: (not path.as_posix().startswith(f"tests/{own}"), path))
            return [path.as_posix() for path in found]
        names = {dotted(path) for path in importers(names, sources)} - names
    return []


def annotations(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end."""
    for node in ast.walk(ast.parse(path.read_text())):
        for kind in ("annotation", "returns"):
            part = getattr(node, kind, None)
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def drawn(db: Any, module: Path, count: int, seed: int) -> list[Any]:
    """`count` mutants of the module, none of an annotation, the same for the same seed."""
    ranges = list(annotations(module))
    items = sorted(db.work_items, key=lambda item: repr(item.mutations))
    real = [
        item for item in items if not any(a <= item.mutations[0].start_pos < b for a, b in ranges)
    ]
    return random.Random(seed).sample(real, min(count, len(real)))


def run(module: Path, tests: list[str], count: int, seed: int, minutes: float) -> int:
    """Test the mutants that are not tested yet, and print the score. The exit code."""
    end = time.monotonic() + 60 * minutes
    os.environ["PYTHONPATH"] = str(Path.cwd())
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    if subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode:
        print(f"the tests fail without a mutant: {' '.join(words[1:])}", file=sys.stderr)
        return 1
    timeout = 3 * (time.monotonic() - began) + LEAST_TIMEOUT
    with use_db("mutants.sqlite", WorkDB.Mode.create) as db:
        if not db.num_work_items:
            init([module], db, {})
        chosen = drawn(db, module, count, seed)
        done = dict(db.results)
        for item in chosen:
            if item.job_id not in done and time.monotonic() < end:
                result = mutate_and_test(item.mutations, " ".join(words), timeout)
                db.set_result(item.job_id, result)
                done[item.job_id] = result
    return report(
        module, [done[item.job_id] for item in chosen if item.job_id in done], len(chosen)
    )


def report(module: Path, results: list[WorkResult], wanted: int) -> int:
    """Print each survivor and the score."""
    valid = [result for result in results if result.worker_outcome is WorkerOutcome.NORMAL]
    alive = [result for result in valid if result.test_outcome is TestOutcome.SURVIVED]
    for result in alive:
        lines = (result.diff or "").splitlines()
        print(
            "\n".join(
                line for line in lines if line[:1] in "+-@" and line[:3] not in ("+++", "---")
            )
        )
    killed = len(valid) - len(alive)
    share = f"{killed / len(valid):.0%}" if valid else "-"
    print(f"{module}: {killed} of {len(valid)} mutants killed ({share}); {wanted} were drawn")
    return 0 if len(results) == wanted else 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", type=Path, help="such as prune/removal/planner.py")
    parser.add_argument("--tests", nargs="+", help="test files or folders instead of those found")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0)
    given = parser.parse_args()
    if not (ROOT / given.module).is_file():
        parser.error(f"{given.module} is no file of this tree")
    tests = given.tests or tests_of(given.module)
    if not tests:
        parser.error(f"no test imports {given.module}; give --tests")
    os.chdir(copied(given.module))
    return run(given.module, tests, given.count, given.seed, given.minutes)


if __name__ == "__main__":
    sys.exit(main())
