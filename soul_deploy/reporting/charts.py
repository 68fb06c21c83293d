"""Charts: learning curves, accuracy against cost, bars by layer, verification."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from soul_deploy.base.terminal import one_line
from soul_deploy.reporting import content, svg
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting.networks import Network

SIDE = 4.2  # inches of a chart
ROW = 0.17  # of a bar
LONGEST = 28  # characters of a label in a chart
_UNITS = FuncFormatter(lambda value, _: _short_number(value))


def _short_number(value: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def label(text: str) -> str:
    """A text of a file as one line of a chart, cut off in the middle."""
    whole = one_line(text)
    half = LONGEST // 2 - 1
    return whole if len(whole) <= LONGEST else f"{whole[:half]}…{whole[-half:]}"


def learning(found: Sequence[kinds.Learned]) -> list[svg.Drawing]:
    """For each run with epochs, its loss and its accuracies."""
    runs = [run for run in found if run.epochs]
    return [
        chart(run, f"learn{number}-{name}")
        for number, run in enumerate(runs)
        for name, chart in (("loss", _losses), ("accuracy", _accuracies))
    ]


def _losses(run: kinds.Learned, name: str) -> svg.Drawing:
    figure, axes = svg.new_figure(SIDE, 2.4)
    at, losses = [e.epoch for e in run.epochs], [e.loss for e in run.epochs]
    axes.plot(at, losses, marker="o", ms=3, color=svg.SERIES[0])
    return _over_epochs(figure, axes, name, f"{run.command}, loss: {run.where}")


def _accuracies(run: kinds.Learned, name: str) -> svg.Drawing:
    figure, axes = svg.new_figure(SIDE, 2.4)
    at, train = [e.epoch for e in run.epochs], [e.train for e in run.epochs]
    axes.plot(at, train, svg.LINES[0], marker="o", ms=3, color=svg.SERIES[0], label="train")
    held = [(e.epoch, e.validation) for e in run.epochs if e.validation is not None]
    if held:
        where, values = zip(*held, strict=True)
        how = {"marker": "s", "ms": 3, "color": svg.SERIES[1], "label": "validation"}
        axes.plot(where, values, svg.LINES[1], **how)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    return _over_epochs(figure, axes, name, f"{run.command}, accuracy: {run.where}")


def _over_epochs(figure: Figure, axes: Axes, name: str, caption: str) -> svg.Drawing:
    svg.plain_axes(axes, "y")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return svg.drawing(figure, name, caption)


def against_cost(networks: Sequence[Network]) -> list[svg.Drawing]:
    """Accuracy against SynOps, and against the fastest engine's time."""
    costs: tuple[tuple[str, str, Callable[[Network], float | None]], ...] = (
        ("synops", "SynOps per sample", lambda n: None if n.counted is None else n.counted.synops),
        ("time", "ms, the fastest engine", lambda n: n.fastest),
    )
    drawn: list[svg.Drawing] = []
    for name, axis, cost in costs:
        points = [
            (i, n.label, cost(n), n.accuracy)
            for i, n in enumerate(networks)
            if cost(n) and n.accuracy is not None
        ]
        if len(points) < 2:
            continue
        figure, axes = svg.new_figure(SIDE, 3.0)
        for i, text, x, y in points:
            how = {"color": svg.SERIES[i % 8], "marker": svg.MARKERS[i % 8], "s": 42}
            axes.scatter([x], [y], label=label(text), **how)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_UNITS)
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.margins(0.12, 0.15)
        axes.set(xlabel=f"{axis} (log)", ylabel="accuracy")
        svg.plain_axes(axes, "both")
        _legend_below(axes, len(points))
        drawn.append(svg.drawing(figure, f"cost-{name}", f"Accuracy against {axis}"))
    return drawn


def _legend_below(axes: Axes, count: int) -> None:
    columns = 2 if count > 1 else 1
    axes.figure.legend(loc="outside lower center", ncols=columns, fontsize=8)


def by_layer(networks: Sequence[Network]) -> list[svg.Drawing]:
    """Bars for each layer and network: firing rate, SynOps, time, connectivity."""
    kinds_of_bars: tuple[tuple[str, str, Callable[[Network, str], float | None], bool], ...] = (
        ("rate", "firing rate", _rate, True),
        ("synops", "SynOps per sample", _synops, False),
        ("time", "µs in the event runtime", content.layer_time, False),
        ("connectivity", "connectivity", _connectivity, True),
    )
    names = content.layer_names(networks)
    drawn = [
        _bars(f"bars-{name}", title, names, networks, value, share)
        for name, title, value, share in kinds_of_bars
    ]
    return [drawing for drawing in drawn if drawing is not None]


def _rate(network: Network, layer: str) -> float | None:
    found = content.numbers(network, layer)
    return None if found is None else found.rate


def _synops(network: Network, layer: str) -> float | None:
    found = content.numbers(network, layer)
    return None if found is None or not found.synapses_dense else found.synops


def _connectivity(network: Network, layer: str) -> float | None:
    found = content.numbers(network, layer)
    return None if found is None else content.connected(found)


def _bars(
    name: str,
    title: str,
    layers: Sequence[str],
    networks: Sequence[Network],
    value: Callable[[Network, str], float | None],
    share: bool,
) -> svg.Drawing | None:
    cells = [[value(network, layer) for layer in layers] for network in networks]
    shown = [i for i in range(len(layers)) if any(row[i] is not None for row in cells)]
    used = [i for i, row in enumerate(cells) if any(cell is not None for cell in row)]
    if not shown:
        return None
    height = 1.1 + 0.2 * ((len(used) + 1) // 2) + len(shown) * (ROW * len(used) + 0.12)
    figure, axes = svg.new_figure(SIDE, height)
    thick = 0.86 / len(used)
    for place, i in enumerate(used):
        at = [row - 0.43 + (place + 0.5) * thick for row in range(len(shown))]
        values = [cells[i][layer] or 0.0 for layer in shown]
        how = {"color": svg.SERIES[i % 8], "hatch": svg.HATCHES[i % 8], "edgecolor": svg.PAPER}
        axes.barh(at, values, thick, label=label(networks[i].label), linewidth=0.4, **how)
    axes.set_yticks(range(len(shown)), [label(layers[i]) for i in shown])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1) if share else _UNITS)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title(title)
    svg.plain_axes(axes, "x")
    _legend_below(axes, len(used))
    return svg.drawing(figure, name, f"By layer: {title}")


def removed(found: Sequence[kinds.Removed]) -> list[svg.Drawing]:
    """For each plan, the channels of each population: kept, and gone by each rule."""
    drawn: list[svg.Drawing] = []
    for number, plan in enumerate(found):
        names = [label(row[0]) for row in plan.layers]
        rules = list(dict.fromkeys(rule for row in plan.layers for rule in row[3]))
        if not rules:
            continue
        figure, axes = svg.new_figure(SIDE, 1.2 + 0.26 * len(names))
        left = [0] * len(names)
        parts = [("kept", [row[2] for row in plan.layers])]
        parts += [(rule, [row[3].get(rule, 0) for row in plan.layers]) for rule in rules]
        for i, (rule, counts) in enumerate(parts):
            how = {"color": svg.SERIES[i % 8], "hatch": svg.HATCHES[i % 8]}
            axes.barh(names, counts, 0.7, left, label=rule, edgecolor=svg.PAPER, **how)
            left = [a + b for a, b in zip(left, counts, strict=True)]
        axes.invert_yaxis()
        axes.set_title(f"channels of {label(plan.where)}")
        svg.plain_axes(axes, "x")
        _legend_below(axes, len(parts))
        caption = f"Channels that go, and why: {plan.where}"
        drawn.append(svg.drawing(figure, f"gone{number}", caption))
    return drawn


def flips(found: kinds.Verified, name: str) -> list[svg.Drawing]:
    """Which layer differs first, and how far flips are from the threshold."""
    if not found.layers:
        return []
    drawn = [_differing(found, name)]
    if any(flip.distance is not None for flip in found.flips):
        drawn.append(_distances(found, name))
    return drawn


def _differing(found: kinds.Verified, name: str) -> svg.Drawing:
    names = [label(row.layer) for row in found.layers]
    figure, axes = svg.new_figure(SIDE, 1.3 + 0.3 * len(names))
    rows = range(len(names))
    sides = (("on given inputs", "flips_forced", -0.19), ("end to end", "flips_whole", 0.19))
    for i, (text, field, shift) in enumerate(sides):
        values = [getattr(row, field) or 0 for row in found.layers]
        how = {"color": svg.SERIES[i], "hatch": svg.HATCHES[i], "edgecolor": svg.PAPER}
        axes.barh([row + shift for row in rows], values, 0.36, label=text, **how)
    most = max([1, *(row.flips_whole or 0 for row in found.layers)])
    for row, layer in enumerate(found.layers):
        note = _told(found, layer)
        if note:
            at = max(layer.flips_whole or 0, layer.flips_forced or 0)
            axes.annotate(note, (at, row), (6, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, most * 1.3)  # room for notes behind bars
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.set_title("flips, first layer at the top")
    svg.plain_axes(axes, "x")
    _legend_below(axes, 2)
    return svg.drawing(figure, f"{name}-layers", f"{found.artifact}: flips by layer")


def _told(found: kinds.Verified, layer: kinds.LayerChecked) -> str:
    if layer.silent:
        return "? never fired: not tested"
    if layer.flips_whole is None and layer.flips_forced is None:
        return "not compared"
    if not layer.flips_whole and not layer.flips_forced:
        return "✓ equal"
    return "← differs first" if layer is found.first else ""


def _distances(found: kinds.Verified, name: str) -> svg.Drawing:
    """Each flip's distance as a share of what rounding explains: below 1 it does."""
    layers = list(dict.fromkeys(flip.layer for flip in found.flips))
    figure, axes = svg.new_figure(SIDE, 1.4 + 0.28 * len(layers))
    sorts: tuple[tuple[str, Callable[[kinds.Flip], bool]], ...] = (
        ("near the threshold", lambda f: f.explained and not f.traced),
        ("follows a flip upstream", lambda f: f.traced),
        ("UNEXPLAINED", lambda f: not f.explained),
    )
    for i, (text, chosen) in enumerate(sorts):
        points = [
            (max(abs(flip.distance) / max(flip.allowance, 1e-30), 1e-6), layers.index(flip.layer))
            for flip in found.flips
            if flip.distance is not None and chosen(flip)
        ]
        if points:
            x, y = zip(*points, strict=True)
            how = {"marker": svg.MARKERS[i], "color": svg.SERIES[i], "s": 18}
            axes.scatter(x, y, label=text, alpha=0.8, **how)
    axes.axvline(1, color=svg.INK, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(layers)), [label(layer) for layer in layers])
    axes.set(ylim=(len(layers) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.set_title("distance from the threshold")
    axes.set_xlabel("in what rounding explains: above 1 it does not")
    svg.plain_axes(axes, "x")
    _legend_below(axes, 3)
    return svg.drawing(figure, f"{name}-distances", f"{found.artifact}: distance of flips")
