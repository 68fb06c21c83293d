"""Mutation testing of one module: how many small faults put into it do its tests see?

    python benchmarks/mutate.py prune/removal/planner.py [--tests tests/prune ...]

cosmic-ray (extra `mutate`) makes the mutants; `--count` of them are drawn with `--seed`. The tests
run in a copy of the tree below build/mutate, those that reach the module. What is done is kept
there, and the same command goes on where it stopped, until the module changes; where other sources
or tests have changed, what survived is tested again (all is with `--anew`). It ends after
`--minutes`. Mutants of annotations are no faults, and what is no Python needs no test: both are
left out. Those of EQUIVALENT do the same as the module, for the reasons given there. Exit code 3:
not all are tested.
"""

import argparse
import ast
import difflib
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code, use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path("benchmarks/equivalent_mutants.toml")
MUTANTS, STAMP = "mutants.sqlite", "mutate.sha256"
LEAST_TIMEOUT = 30.0  # seconds, beside three times what the tests take
PRELOADED = ("torch", "numba", "hypothesis", "onnx", "onnxruntime", "rich.console")
"""What takes seconds to import, and is imported once: the tests run in forks."""
FORK = multiprocessing.get_context("fork")


def tracked() -> list[Path]:
    """Files of the tree that tests may need, links left out (a link's files are listed too)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def copied(module: Path, anew: bool) -> tuple[Path, str]:
    """A copy of the tree, with the mutants that were tested of the module as it is; its digest."""
    paths = tracked()
    sha = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix == ".py" and not (ROOT / path).is_symlink():
            sha.update(path.as_posix().encode() + (ROOT / path).read_bytes())
    folder = ROOT / "build" / "mutate" / module.with_suffix("").as_posix().replace("/", "-")
    tree, mutants = folder / "tree", folder / MUTANTS
    if anew or not (tree / module).exists() or not same(tree / module, ROOT / module):
        mutants.unlink(missing_ok=True)
    if not (tree / STAMP).exists() or (tree / STAMP).read_text() != sha.hexdigest():
        shutil.rmtree(tree, ignore_errors=True)
        for path in paths:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tree / path, follow_symlinks=False)
        (tree / STAMP).write_text(sha.hexdigest())
    return tree, sha.hexdigest()


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


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
    """`count` mutants of the module, the same for the same seed: no two of a place before each has
    one. None is of an annotation, and all are Python.
    """
    ranges = list(annotations(module))
    items = sorted(db.work_items, key=lambda item: repr(item.mutations))
    random.Random(seed).shuffle(items)
    turns: Counter[tuple[int, int]] = Counter()
    in_turn = []
    for place, item in ((item.mutations[0].start_pos, item) for item in items):
        if not any(begin <= place < end for begin, end in ranges):
            turns[place] += 1
            in_turn.append((turns[place], item))
    in_turn.sort(key=lambda pair: pair[0])
    return list(islice((item for _, item in in_turn if is_python(item.mutations[0])), count))


def is_python(mutation: Any) -> bool:
    """Whether the mutant can be compiled: a bare `*` among parameters is no multiplication."""
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    code = mutate_code(mutation.module_path.read_text(), operator, mutation.occurrence)
    try:
        compile(code, str(mutation.module_path), "exec")
    except SyntaxError:
        return False
    return True


def passes(words: list[str], timeout: float, *, shown: bool = False) -> bool:
    """Whether these tests pass, in seconds of at most `timeout`; shown: what they print."""
    process = FORK.Process(target=_test, args=(words, shown))
    process.start()
    process.join(timeout)
    if process.is_alive():
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)  # and what its tests started
        process.join()
    return process.exitcode == 0


def _test(words: list[str], shown: bool) -> None:
    """Run the tests of the folder that this is in; exit with pytest's code."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in () if shown else (1, 2):
        os.dup2(nothing, stream)
    sys.dont_write_bytecode = True  # mutants can be of one size and second
    sys.path[0] = os.environ["PYTHONPATH"] = str(Path.cwd())
    sys.exit(pytest.main(words))


def tested(mutation: Any, words: list[str], timeout: float, digest: str) -> WorkResult:
    """Put the mutant in, run the tests, take it out. digest: of the tree, kept as its output."""
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    with use_mutation(mutation.module_path, operator, mutation.occurrence) as (before, after):
        if after is None:
            return WorkResult(worker_outcome=WorkerOutcome.NO_TEST)
        alive = passes(words, timeout)
    diff = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="")
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL,
        test_outcome=TestOutcome.SURVIVED if alive else TestOutcome.KILLED,
        diff="\n".join(list(diff)[2:]),
        output=digest,
    )


def run(module: Path, tests: list[str], digest: str, count: int, seed: int, minutes: float) -> int:
    """Test the mutants that are not tested yet, and print the score. The exit code."""
    end = time.monotonic() + 60 * minutes
    preloaded = "ignore::pytest.PytestAssertRewriteWarning"
    words = ["-q", "-x", "-p", "no:cacheprovider", "-W", preloaded, *tests]
    for name in PRELOADED:
        with suppress(ImportError):
            import_module(name)
    passes(words, 60 * minutes)  # compiles kernels
    began = time.monotonic()
    if not passes(words, 60 * minutes, shown=True):
        print(f"the tests fail without a mutant: pytest {' '.join(words)}", file=sys.stderr)
        return 1
    timeout = 3 * (time.monotonic() - began) + LEAST_TIMEOUT
    with use_db(f"../{MUTANTS}", WorkDB.Mode.create) as db:
        if not db.num_work_items:
            init([module], db, {})
        chosen = drawn(db, module, count, seed)
        done = {
            job: result
            for job, result in db.results
            if result.test_outcome is TestOutcome.KILLED or result.output == digest
        }
        for item in chosen:
            if item.job_id not in done and time.monotonic() < end:
                done[item.job_id] = result = tested(item.mutations[0], words, timeout, digest)
                db.set_result(item.job_id, result)
    found = [done[item.job_id] for item in chosen if item.job_id in done]
    return report(module, found, len(chosen))


def report(module: Path, results: list[WorkResult], wanted: int) -> int:
    """Print each survivor and the score."""
    valid = [result for result in results if result.worker_outcome is WorkerOutcome.NORMAL]
    alive = [str(r.diff) for r in valid if r.test_outcome is TestOutcome.SURVIVED]
    same = [diff for diff in alive if is_equivalent(module, diff)]
    for diff in alive:
        print("equivalent:" if diff in same else "survived:")
        print("\n".join(line for line in diff.splitlines() if line[:1] in "+-@"))
    killed, counted = len(valid) - len(alive), len(valid) - len(same)
    share = f"{killed / counted:.0%}" if counted else "-"
    print(
        f"{module}: {killed} of {counted} mutants killed ({share}); "
        f"{wanted} were drawn, {len(same)} are equivalent"
    )
    return 0 if len(results) == wanted else 3


def is_equivalent(module: Path, diff: str) -> bool:
    """Whether EQUIVALENT lists the mutant, by the line that it puts in."""
    lines = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    known = tomllib.loads((ROOT / EQUIVALENT).read_text()).get(module.as_posix(), {})
    return len(lines) == 1 and lines[0] in known


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", type=Path, help="such as prune/removal/planner.py")
    parser.add_argument("--tests", nargs="+", help="test files or folders instead of those found")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--anew", action="store_true", help="forget what was tested before")
    given = parser.parse_args()
    if not (ROOT / given.module).is_file():
        parser.error(f"{given.module} is no file of this tree")
    tests = given.tests or tests_of(given.module)
    if not tests:
        parser.error(f"no test imports {given.module}; give --tests")
    tree, digest = copied(given.module, given.anew)
    os.chdir(tree)
    return run(given.module, tests, digest, given.count, given.seed, given.minutes)


if __name__ == "__main__":
    sys.exit(main())
