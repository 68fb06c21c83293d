"""Mutation testing of one module: how many small faults put into it do its tests see?

    python benchmarks/mutate.py prune/removal/planner.py [--tests tests/prune ...] [-k "not zoo"]

cosmic-ray (extra `mutate`) makes the mutants; `--count` of them are drawn with `--seed`. The tests
run in a copy of the tree below build/mutate, those that reach the module. What is done is kept
there, and the same command goes on where it stopped, until the module changes; where other sources
or tests have changed, what survived is tested again (all is with `--anew`). It ends after
`--minutes`. Options that are none of this program are pytest's. Mutants of annotations are no
faults, and what is no Python needs no test: both are left out. Those of EQUIVALENT do the same as
the module, for the reasons given there. Exit code 3: not all are tested.
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
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path("benchmarks/equivalent_mutants.toml")
FOLDER = ROOT / "build" / "mutate"
LEAST_TIMEOUT = 30.0  # seconds, beside three times what the tests take
PRELOADED = ("torch", "numba", "hypothesis", "onnx", "onnxruntime", "rich.console")
"""What takes seconds to import, and is imported once: the tests run in forks."""
PRELOADED_TOO = "ignore::pytest.PytestAssertRewriteWarning"
FORK = multiprocessing.get_context("fork")


def tracked() -> list[Path]:
    """Files of the tree that tests may need, links left out (a link's files are listed too)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def copied(tree: Path) -> str:
    """Make `tree` a copy of this one (and of its times, for kernels); a digest of its Python."""
    paths, sha = tracked(), hashlib.sha256()
    for path in sorted(paths):
        source, target = ROOT / path, tree / path
        if path.suffix == ".py" and not source.is_symlink() and path.parts[0] != "benchmarks":
            sha.update(path.as_posix().encode() + source.read_bytes())
        link = target.is_symlink()
        if not link and not (target.exists() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    for path in set(tree.rglob("*.py")) - {tree / path for path in paths}:
        path.unlink()
    return sha.hexdigest()


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


def drawn(db: Any, module: Path, seed: int) -> Iterator[Any]:
    """The module's mutants, none of an annotation, in an order that the seed gives: no two of a
    place before each has one.
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
    return (item for _, item in sorted(in_turn, key=lambda pair: pair[0]))


def is_python(code: str | None) -> bool:
    """Whether a mutant can be compiled: a bare `*` among parameters is no multiplication."""
    try:
        compile(code or "", "mutant", "exec")
    except SyntaxError:
        return False
    return code is not None


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
        if not is_python(after):
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
    words = ["-q", "-x", "-p", "no:cacheprovider", "-W", PRELOADED_TOO, *tests]
    for name in PRELOADED:
        with suppress(ImportError):
            import_module(name)
    began = time.monotonic()
    if not passes(words, 60 * minutes, shown=True):
        print(f"the tests fail without a mutant: pytest {' '.join(words)}", file=sys.stderr)
        return 1
    timeout = 3 * (time.monotonic() - began) + LEAST_TIMEOUT
    found: list[WorkResult] = []
    with use_db(mutants_of(module), WorkDB.Mode.create) as db:
        if not db.num_work_items:
            init([module], db, {})
        known = dict(db.results)
        for item in drawn(db, module, seed):
            result = known.get(item.job_id)
            if result is None or (is_alive(result) and result.output != digest):
                if time.monotonic() > end:
                    continue
                result = tested(item.mutations[0], words, timeout, digest)
                db.set_result(item.job_id, result)
            found += [result] if result.worker_outcome is WorkerOutcome.NORMAL else []
            if len(found) == count:
                break
    return report(module, found, count)


def mutants_of(module: Path) -> Path:
    """Where the mutants of the module, as it is, are kept, and what was found of them."""
    sha = hashlib.sha256(module.read_bytes()).hexdigest()[:16]
    return FOLDER / f"{module.with_suffix('').as_posix().replace('/', '-')}-{sha}.sqlite"


def is_alive(result: WorkResult) -> bool:
    return result.test_outcome is TestOutcome.SURVIVED


def report(module: Path, results: list[WorkResult], wanted: int) -> int:
    """Print each survivor and the score."""
    alive = [str(result.diff) for result in results if is_alive(result)]
    same = [diff for diff in alive if is_equivalent(module, diff)]
    for diff in alive:
        print("equivalent:" if diff in same else "survived:")
        print("\n".join(line for line in diff.splitlines() if line[:1] in "+-@"))
    killed, counted = len(results) - len(alive), len(results) - len(same)
    share = f"{killed / counted:.0%}" if counted else "-"
    print(
        f"{module}: {killed} of {counted} mutants killed ({share}); "
        f"{len(results)} of {wanted} were tested, {len(same)} are equivalent"
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
    given, of_pytest = parser.parse_known_args()
    if not (ROOT / given.module).is_file():
        parser.error(f"{given.module} is no file of this tree")
    tests = given.tests or tests_of(given.module)
    if not tests:
        parser.error(f"no test imports {given.module}; give --tests")
    tree = FOLDER / "tree"
    digest = copied(tree)
    os.environ["NUMBA_CACHE_DIR"] = str(FOLDER / "kernels")
    os.chdir(tree)
    if given.anew:
        mutants_of(given.module).unlink(missing_ok=True)
    return run(given.module, [*of_pytest, *tests], digest, given.count, given.seed, given.minutes)


if __name__ == "__main__":
    sys.exit(main())
