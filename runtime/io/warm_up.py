"""Compiling the kernels of event networks before they run, as while a container's image is made."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base import brief, errors, progress, tables
from soul_deploy.base.opening import OpenFile
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.io.inspect import require_event_network
from soul_deploy.runtime.kernels.cache import compilations, unkept
from soul_deploy.runtime.kernels.kept import places
from soul_deploy.runtime.kernels.simd import compiled
from soul_deploy.runtime.ops.counted_run import count_run

SCHEMA = "soul-deploy/warm-up/1"
THREADS = 1, 2  # on two, a layer is split; more take the same kernels


@dataclass(frozen=True)
class WarmNetwork:
    """One event network: how many kernels were compiled for it, and seconds with loading it."""

    path: Path
    compiled: int
    seconds: float


@brief
@dataclass(frozen=True)
class WarmUp(tables.Shown):
    """What `warm_up` did. folder: where kernels are kept; None if no folder can be written, and
    all that is needed was found.
    """

    networks: Sequence[WarmNetwork]
    folder: Path | None
    seconds: float

    @property
    def compiled(self) -> int:
        """How many kernels were compiled; all others were found on disk."""
        return sum(network.compiled for network in self.networks)

    def to_dict(self) -> dict[str, Any]:
        """JSON data of the schema SCHEMA."""
        rows = [vars(network) | {"path": str(network.path)} for network in self.networks]
        folder = None if self.folder is None else str(self.folder)
        return {"schema": SCHEMA, "folder": folder, "seconds": self.seconds, "networks": rows}

    def parts(self) -> Sequence[tables.Table | str]:
        """A table of the networks, and where the kernels are."""
        rows = [[str(each.path), each.compiled, each.seconds] for each in self.networks]
        table = tables.Table("Warm-up", ["network", "kernels compiled", "seconds"], rows)
        if self.folder is None:
            return table, "All kernels were found; no folder can be written."
        return table, f"{self.compiled} compiled in {self.seconds:.1f} s, kept in {self.folder}"


def warm_up(*paths: Path | str, counts: bool = False, max_memory: int | None = None) -> WarmUp:
    """Compile all kernels that runs and streams of the event networks at `paths` need.

    They are kept on disk, so that no later process waits for them: one in the same place with the
    same sources, versions and kind of processor. counts: also those that count operations.
    max_memory: as in `load_network`. Raises UsageError without compilation (NUMBA_DISABLE_JIT),
    FileWriteError if kernels were compiled and no folder can be written, and what `load_network`
    raises.
    """
    if not compiled():
        raise errors.UsageError("NUMBA_DISABLE_JIT is set, so that no kernel is compiled; unset it")
    begun = time.perf_counter()
    networks = [_warm(Path(path), counts, max_memory) for path in paths]
    result = WarmUp(networks, places().written, time.perf_counter() - begun)
    if result.compiled and result.folder is None:
        raise errors.FileWriteError(
            f"{result.compiled} kernels were compiled, and are lost: {unkept(places())}"
        )
    return result


def _warm(path: Path, counts: bool, max_memory: int | None) -> WarmNetwork:
    progress.status(f"kernels of {path}")
    begun = time.perf_counter()
    with compilations() as found:
        with OpenFile(path) as source:
            require_event_network(source)
            events = load_event_network(source, max_memory=max_memory)
        for threads in THREADS:
            _run_blank(Network(events, threads, max_memory), _blanks(events), counts)
    return WarmNetwork(path, len(found), round(time.perf_counter() - begun, 3))


def _blanks(events: EventNetwork) -> Iterable[Any]:
    """An input that stays, and one that is given for each step."""
    yield events.blank
    yield np.repeat(events.blank[None], events.time_steps, axis=0)


def _run_blank(network: Network, inputs: Iterable[Any], counts: bool) -> None:
    """All that a network may be asked for; streams and counted runs take one thread."""
    network.warm_up(stream=network.threads == 1)
    for x in inputs:
        network.run(x)
        if counts and network.threads == 1:
            count_run(network, x)
