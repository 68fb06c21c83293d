"""The fuzzer: seeded cases against every reader, in a process of its own.

    python tests/support/fuzzing.py --seed 7 --cases 5000
    python tests/support/fuzzing.py --seed 7 --first 1234 --cases 1     # one case again

A case follows from its seed and number alone. Allowed is a SoulDeployError or a right answer, in
bounded time and memory. Prints a summary as JSON; a crash of the process is found in `--log`, which
holds the number of the case that was running.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peak
import torch
from fuzz_targets import Target, make_targets

from soul_deploy.base.errors import SoulDeployError

READ_SECONDS, JUDGE_SECONDS = 5.0, 60.0  # of processor time; judging may compile a kernel
MAX_GROWTH = 300 << 20  # bytes of peak memory that one case may add
MAX_THREADS = 100  # alive at once: those of a network end with it
ADDRESS_SPACE = 16 << 30


class TooLongError(BaseException):
    """A case beyond its time; no `except Exception` swallows it."""


@dataclass(frozen=True)
class Failure:
    """A case that must not be."""

    case: int
    target: str
    damage: str
    what: str


def _stop(signum: int, frame: Any) -> None:
    raise TooLongError


def run_case(targets: list[Target], seed: int, case: int, folder: Path) -> tuple[str, str | None]:
    """(target: outcome, what is wrong or None) of one case; raises nothing."""
    rng = np.random.default_rng([seed, case])
    shares = np.array([target.share for target in targets])
    target = targets[int(rng.choice(len(targets), p=shares / shares.sum()))]
    path = folder / f"case{target.suffix}"
    done, signed = target.damage(rng, path)
    before = peak.reset()
    outcome, wrong = _outcome(target, path, signed)
    grown = max(peak.peak() - before, peak.of_child())
    if wrong is None and grown > MAX_GROWTH:
        wrong = f"peak memory grew by {grown:,} bytes"
    if wrong is None and threading.active_count() > MAX_THREADS:
        wrong = f"{threading.active_count()} threads are alive"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return f"{target.name}: {outcome}", None if wrong is None else f"{target.name}|{done}|{wrong}"


def _outcome(target: Target, path: Path, signed: bool) -> tuple[str, str | None]:
    try:
        signal.setitimer(signal.ITIMER_PROF, READ_SECONDS)
        try:
            found = target.read(path)
        except SoulDeployError as error:
            assert str(error), "an error without a message"
            return "refused", None
        signal.setitimer(signal.ITIMER_PROF, JUDGE_SECONDS)
        target.judge(found, signed)
        return "loaded", None
    except TooLongError:
        return "wrong", "took too long:\n" + traceback.format_exc()
    except (Exception, SystemExit, KeyboardInterrupt):
        return "wrong", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def run(seed: int, first: int, cases: int, only: str | None, log: Path | None) -> dict[str, Any]:
    """The summary of `cases` cases from number `first`."""
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[peak.CHILD] = str(folder / "child.peak")
        targets = make_targets(folder / "intact", only)
        for case in range(first, first + cases):
            if log is not None:
                log.write_text(str(case))
            outcome, wrong = run_case(targets, seed, case, folder)
            counts[outcome] += 1
            if wrong is not None:
                failures.append(Failure(case, *wrong.split("|", 2)))
                print(failures[-1], file=sys.stderr, flush=True)
    return {
        "seed": seed,
        "first": first,
        "cases": cases,
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(sorted(counts.items())),
        "failures": [asdict(failure) for failure in failures],
    }


def main() -> int:
    """Exit code 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--target", default=None, help="one reader only")
    parser.add_argument("--log", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    summary = run(given.seed, given.first, given.cases, given.target, given.log)
    print(json.dumps(summary, indent=1))
    return 1 if summary["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
