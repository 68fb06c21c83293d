"""Reports of several networks side by side: one table, a column per network."""

from collections.abc import Callable, Sequence
from pathlib import Path

from soul_deploy.analysis.report import OpsReport
from soul_deploy.base.tables import Table


def side_by_side(reports: Sequence[OpsReport]) -> Table:
    """What the reports say in sum, per inference; shares are of the first network's value."""
    first = reports[0]
    rows: list[list[object]] = [
        ["stage", *(report.stage for report in reports)],
        ["T", *(report.time_steps for report in reports)],
        ["samples", *(f"{report.samples:,} of {_data(report)}" for report in reports)],
    ]
    if any(report.data.get("correct") is not None for report in reports):
        rows.append(["accuracy", *map(_accuracy, reports)])
    for name, value in _quantities(first).items():
        base = value(first)
        others = (_shared(value(report), base) for report in reports[1:])
        rows.append([name, _number(base), *others])
    return Table("Side by side, per inference", ["", *_titles(reports)], rows)


def _quantities(first: OpsReport) -> dict[str, Callable[[OpsReport], float]]:
    def size(key: str) -> Callable[[OpsReport], float]:
        return lambda report: report.structure()[key]

    def work(key: str) -> Callable[[OpsReport], float]:
        return lambda report: report.totals[key] / report.samples

    def ops(at: int) -> Callable[[OpsReport], float]:
        return lambda report: report.ops[at].picojoules / report.samples / 1e3

    def stored(at: int) -> Callable[[OpsReport], float]:
        return lambda report: report.memory[at].value / 10 / report.samples / 1e3

    return {
        "nonzero weights": size("weights_nz"),
        "live neurons": size("neurons_live"),
        "live synapses": size("synapses"),
        "SynOps": work("synops"),
        "MACs": work("macs_effective"),
        **{f"{e.preset}, nJ (estimate)": ops(at) for at, e in enumerate(first.ops)},
        **{f"{e.memory}, nJ (estimate)": stored(at) for at, e in enumerate(first.memory)},
        "parameters, bytes": size("footprint_bytes"),
        "file, bytes": size("artifact_bytes"),
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.4g}"


def _shared(value: float, base: float) -> str:
    return f"{_number(value)} ({value / base:.1%})" if base else _number(value)


def _accuracy(report: OpsReport) -> str:
    correct = report.data.get("correct")
    return "" if correct is None else f"{correct / report.samples:.2%}"


def _data(report: OpsReport) -> str:
    name, split = (str(report.data.get(key, "")) for key in ("name", "split"))
    return name if split in ("", "all") else f"{name}, {split}"


def _titles(reports: Sequence[OpsReport]) -> list[str]:
    """The files' names, or their paths where two are called alike."""
    names = [Path(report.path).name for report in reports]
    return names if len(set(names)) == len(names) else [report.path for report in reports]
