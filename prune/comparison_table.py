"""What a comparison of pruning methods found: runs, means over seeds, paired differences."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from soul_deploy.base.tables import Shown, Table

DENSE = "dense"
"""The name of the network before pruning among the runs."""


@dataclass(frozen=True)
class Run:
    """One entry with one seed.

    seed        None: the dense network that all seeds share
    accuracy    of the test split, 0 to 1; None for a run that failed, as are the next three
    synops      per image, the mean over part of the validation split
    parameters  trained values, zeros included
    nonzero     weights (of layers and batch norms) that are not 0
    seconds     of the whole run: training, removal, its own tests
    error       why it failed
    """

    entry: str
    seed: int | None
    accuracy: float | None = None
    synops: float | None = None
    parameters: int | None = None
    nonzero: int | None = None
    seconds: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"failed: {self.error}"
        return f"accuracy {self.accuracy:.2%}, {self.synops:,.0f} SynOps, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1; None below two values) of n values."""

    mean: float
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """None without a value."""
        if not values:
            return None
        return Spread(fmean(values), stdev(values) if values[1:] else None, len(values))

    @property
    def error(self) -> float | None:
        """The mean's standard error."""
        return None if self.deviation is None else self.deviation / sqrt(self.count)


@dataclass(frozen=True)
class Difference:
    """An entry less the first one, over the seeds with which neither failed.

    accuracy: of the differences, 0 to 1; synops: of the ratios to the first one's.
    """

    entry: str
    accuracy: Spread
    synops: Spread | None


@dataclass(frozen=True)
class Comparison(Shown):
    """Runs in the order in which they were asked for: of each seed the dense network, the entries.

    The first of the entries is what the others are compared with.
    """

    entries: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def failed(self) -> tuple[Run, ...]:
        """Runs without a result."""
        return tuple(run for run in self.runs if run.error)

    def of(self, entry: str) -> tuple[Run, ...]:
        """The runs of an entry, those that failed left out."""
        return tuple(run for run in self.runs if run.entry == entry and not run.error)

    def spread(self, entry: str, field: str) -> Spread | None:
        """Of a field of Run over the seeds; None if every run failed."""
        return Spread.of([float(getattr(run, field)) for run in self.of(entry)])

    def differences(self, first: str | None = None) -> tuple[Difference, ...]:
        """Of all entries to the first one, or to the entry `first`."""
        base = {run.seed: run for run in self.of(first or self.entries[0])} if self.entries else {}
        found = []
        for entry in self.entries:
            pairs = [(run, base[run.seed]) for run in self.of(entry) if run.seed in base]
            apart = Spread.of([_value(a, "accuracy") - _value(b, "accuracy") for a, b in pairs])
            ratios = [_value(a, "synops") / _value(b, "synops") for a, b in pairs if b.synops]
            if apart is not None and entry != (first or self.entries[0]):
                found.append(Difference(entry, apart, Spread.of(ratios)))
        return tuple(found)

    def table(self) -> Table:
        """A row per entry, the dense network first."""
        columns = ["method", "accuracy", "SynOps", "of dense", "parameters", "nonzero", "s", "runs"]
        rows = [self._row(name) for name in (DENSE, *self.entries)]
        several = f", {len(self.seeds)} seeds: mean ± standard deviation" if self.seeds[1:] else ""
        return Table(f"Test accuracy and cost{several}", columns, rows)

    def _row(self, name: str) -> tuple[object, ...]:
        asked = sum(run.entry == name for run in self.runs)
        done = len(self.of(name))
        runs = f"{done}" if done == asked else f"{done} of {asked}"
        accuracy, synops = self.spread(name, "accuracy"), self.spread(name, "synops")
        if accuracy is None or synops is None:
            return (name, "failed", *[""] * 5, runs)
        whole = self.spread(DENSE, "synops")
        share = f"{100 * synops.mean / whole.mean:.1f} %" if whole and whole.mean else ""
        sizes = [round(_mean(self.spread(name, field))) for field in ("parameters", "nonzero")]
        seconds = f"{_mean(self.spread(name, 'seconds')):.1f}"
        shown = _with_spread(accuracy, accuracy.deviation, lambda value: f"{100 * value:.2f}")
        return (name, f"{shown} %", round(synops.mean), share, *sizes, seconds, runs)

    def differences_table(self, first: str | None = None) -> Table:
        """Paired by seed: the mean and its standard error."""
        title = f"Less {first or self.entries[0]}, by seed"
        rows = [
            (
                each.entry,
                _with_spread(each.accuracy, each.accuracy.error, lambda v: f"{100 * v:+.2f}"),
                "" if each.synops is None else f"{each.synops.mean:.2f}",
                each.accuracy.count,
            )
            for each in self.differences(first)
        ]
        return Table(title, ["method", "points ± standard error", "SynOps, ratio", "pairs"], rows)

    def parts(self) -> list[Table | str]:
        """The table, the differences, why runs failed."""
        apart = [self.differences_table()] if self.entries[1:] else []
        return [self.table(), *apart, *self.failures()]

    def failures(self) -> list[str]:
        """A line for each run that failed."""
        return [f"{run.entry}, seed {run.seed} failed: {run.error}" for run in self.failed]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; accuracies from 0 to 1."""
        return {
            "seeds": list(self.seeds),
            "entries": [self._summary(name) for name in (DENSE, *self.entries)],
            "differences": [asdict(each) for each in self.differences()],
            "runs": [asdict(run) for run in self.runs],
        }

    def _summary(self, name: str) -> dict[str, Any]:
        fields = ("accuracy", "synops", "parameters", "nonzero", "seconds")
        spreads = {field: self.spread(name, field) for field in fields}
        shown = {field: None if held is None else asdict(held) for field, held in spreads.items()}
        return {"entry": name, **shown}

    def __repr__(self) -> str:
        done = len(self.runs) - len(self.failed)
        return f"Comparison({len(self.entries)} entries, {len(self.seeds)} seeds, {done} runs)"


def _value(run: Run, field: str) -> float:
    return float(getattr(run, field))


def _mean(spread: Spread | None) -> float:
    return 0.0 if spread is None else spread.mean


def _with_spread(spread: Spread, around: float | None, shown: Callable[[float], str]) -> str:
    """The mean, and what is around it if that is known."""
    return shown(spread.mean) + ("" if around is None else f" ± {shown(around).lstrip('+')}")
