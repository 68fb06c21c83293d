"""The tables of a report."""

from collections.abc import Iterator, Sequence

from soul_deploy.base.tables import Table
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting.networks import Network, engine_name

NOTHING = ""
COMPARED = ("PyTorch", "ONNX Runtime", "event runtime", "openvino")
"""Engines with a column in the summary; the table of times has all."""
LISTED = 50  # flips in a table


def summary(networks: Sequence[Network]) -> Table:
    """A row for each network; columns that no network has are left out."""
    timed = (engine for network in networks for engine in network.times)
    engines = [engine for engine in dict.fromkeys(timed) if engine in COMPARED]
    columns: dict[str, list[object]] = {
        "accuracy": [_share(network.accuracy) for network in networks],
        "weights": [_weights(network, 1) for network in networks],
        "nonzero weights": [_weights(network, 0) for network in networks],
        "SynOps": [_count(network, "synops") for network in networks],
        "MACs": [_count(network, "macs") for network in networks],
        "energy, nJ (estimate)": [_energy(network) for network in networks],
    }
    columns |= {
        f"{engine}, ms": [_ms(network.times.get(engine)) for network in networks]
        for engine in engines
    }
    columns |= {
        "file, kB": [_kilobytes(network.size) for network in networks],
        "exports, kB": [_exports(network) for network in networks],
        "verified": [", ".join(network.verdicts) for network in networks],
    }
    used = {name: cells for name, cells in columns.items() if any(c != NOTHING for c in cells)}
    rows = [
        [network.label, *(cells[i] for cells in used.values())]
        for i, network in enumerate(networks)
    ]
    return Table("Networks", ["network", *used], rows)


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2%}"


def _weights(network: Network, which: int) -> object:
    found = network.weights
    return NOTHING if found is None else found[which]


def _count(network: Network, name: str) -> object:
    return NOTHING if network.counted is None else round(getattr(network.counted, name))


def _energy(network: Network) -> object:
    if network.counted is None or network.counted.energy is None:
        return NOTHING
    return round(network.counted.energy)


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _kilobytes(size: int | None) -> object:
    return NOTHING if size is None else round(size / 1000)


def _exports(network: Network) -> str:
    return ", ".join(f"{e.kind} {e.size / 1000:,.0f}" for e in network.exports)


def accuracy_line(networks: Sequence[Network]) -> str:
    """On what accuracies were measured, as a sentence."""
    told: dict[str, list[str]] = {}
    for network in networks:
        if network.accuracy is not None:
            told.setdefault(network.accuracy_of, []).append(network.label)
    if len(told) == 1:
        return f"Accuracy is on {next(iter(told))}."
    parts = "; ".join(f"{', '.join(names)}: {text}" for text, names in told.items())
    return f"Accuracy is on: {parts}." if told else NOTHING


def energy_line(networks: Sequence[Network]) -> str:
    """The constants of the estimates, as a sentence."""
    found = [n for n in networks if n.counted is not None and n.counted.energy is not None]
    by_constants: dict[str, list[str]] = {}
    for network in found:
        assert network.counted is not None
        by_constants.setdefault(network.counted.constants, []).append(network.label)
    if len(by_constants) == 1:
        return f"Energy is an estimate: {next(iter(by_constants))}."
    told = "; ".join(f"{', '.join(names)}: {text}" for text, names in by_constants.items())
    return f"Energy is an estimate. {told}." if told else NOTHING


def layers(networks: Sequence[Network]) -> Table:
    """A row for each layer of each network that was counted."""
    columns = ["layer", "network", "operation", "firing rate", "SynOps", "MACs", "time, µs"]
    columns += ["synapses", "of dense", "neurons"]
    rows: list[list[object]] = []
    for name in layer_names(networks):
        for network in networks:
            found = numbers(network, name)
            if found is not None and (found.synapses_dense or layer_time(network, name)):
                rows.append([name, network.label, *_layer_cells(network, found)])
    return Table("Layers", columns, rows)


def _layer_cells(network: Network, found: kinds.LayerNumbers) -> list[object]:
    time = layer_time(network, found.name)
    share = connected(found)
    return [
        found.op,
        NOTHING if found.rate is None else f"{found.rate:.2%}",
        round(found.synops),
        round(found.macs),
        NOTHING if time is None else f"{time:.1f}",
        found.synapses,
        _share(share),
        found.neurons,
    ]


def layer_names(networks: Sequence[Network]) -> list[str]:
    """Of all counted layers, in execution order; a layer that only a later network has is last."""
    found = (row.name for n in networks if n.counted is not None for row in n.counted.layers)
    return list(dict.fromkeys(found))


def numbers(network: Network, layer: str) -> kinds.LayerNumbers | None:
    """The counts of one of a network's layers."""
    rows = () if network.counted is None else network.counted.layers
    return next((row for row in rows if row.name == layer), None)


def connected(found: kinds.LayerNumbers) -> float | None:
    """The share of the dense layer's synapses that is left; None for a layer without any."""
    return found.synapses / found.synapses_dense if found.synapses_dense else None


def layer_time(network: Network, layer: str) -> float | None:
    """µs of a layer in the event runtime: those of the population that it feeds."""
    if layer in network.profile:
        return network.profile[layer]
    if network.model is None or layer not in network.model.graph.by_name:
        return None
    users = network.model.graph.consumers.get(layer, ())
    return next((network.profile[name] for name in users if name in network.profile), None)


def removed(found: Sequence[kinds.Removed]) -> Table:
    """A row for each population of each plan: how many channels went, and why."""
    rules = dict.fromkeys(rule for plan in found for row in plan.layers for rule in row[3])
    rows = [
        [name, plan.where, channels, kept, *(gone.get(rule, 0) for rule in rules), stays]
        for plan in found
        for name, channels, kept, gone, stays in plan.layers
    ]
    columns = ["layer", "network", "channels", "kept", *rules, "stays whole because"]
    return Table("Channels that go, and why", columns, rows)


def times(found: Sequence[kinds.Benched], networks: Sequence[Network]) -> Table:
    """All times of all benches."""
    labels = {network.sha256: network.label for network in networks}
    rows = [
        [
            engine_name(timing.engine),
            labels.get(timing.source_sha256 or "", NOTHING),
            *(timing.file, timing.threads, timing.batch),
            *(_ms(timing.p50), _ms(timing.p90)),
        ]
        for bench in found
        for timing in bench.timings
    ]
    columns = ["engine", "network", "file", "threads", "batch", "p50, ms", "p90, ms"]
    return Table("Times", columns, rows)


def verified(found: kinds.Verified) -> Table:
    """A row for each population."""
    columns = ["layer", "spikes", "flips on given inputs", "flips end to end"]
    columns += ["spikes that differ", "unexplained", "fired"]
    rows = [
        [
            *(row.layer, row.spikes, _or_dash(row.flips_forced), _or_dash(row.flips_whole)),
            *(_or_dash(row.differing), row.unexplained, "never" if row.silent else "yes"),
        ]
        for row in found.layers
    ]
    return Table(f"Spikes of {found.artifact}", columns, rows)


def _or_dash(value: int | None) -> object:
    return "–" if value is None else value


def flips(found: kinds.Verified) -> Table:
    """The first flips: how far the membrane was from its threshold, and what explains them."""
    rows = [
        [
            *(flip.layer, flip.neuron, flip.sample, flip.step),
            *("" if flip.distance is None else f"{flip.distance:+.3g}", f"{flip.allowance:.3g}"),
            "upstream" if flip.traced else "rounding" if flip.explained else "nothing",
        ]
        for flip in found.flips[:LISTED]
    ]
    columns = ["layer", "neuron", "sample", "step", "distance", "allowed", "explained by"]
    return Table("Flips", columns, rows)


def verdict_lines(found: kinds.Verified) -> Iterator[str]:
    """What was compared, what each check said, where it differs first."""
    told = "; ".join(f"{name}: {outcome}" for name, outcome in found.checks.items())
    yield (
        f"{found.artifact} ({found.kind}) against its model, on {found.images}: {found.verdict}. "
        f"{told}"
    )
    yield from found.problems[:10]
    first = found.first
    if first is not None:
        flips = first.flips_whole or first.flips_forced
        yield f"The first layer that differs is {first.layer}: {flips} flips"
    elif found.layers:
        yield "No layer differs"
    silent = [row.layer for row in found.layers if row.silent]
    if silent:
        yield f"Never fired, so nothing is known of: {', '.join(silent)}"


def quantized(found: kinds.Quantized) -> Table:
    """Firing of both networks by population."""
    rows = [
        [name, f"{real:.2%}", f"{whole:.2%}", f"{found.distances.get(name, 0):.3%}"]
        for name, (real, whole) in found.rates.items()
    ]
    title = f"Fixed point: {found.written.path}"
    return Table(title, ["layer", "rate, float", "rate, int8", "earth mover's distance"], rows)


def learned(found: Sequence[kinds.Learned]) -> Table:
    """A row for each run: its epochs, the last losses, the accuracies at its end."""
    rows = [
        [
            *(item.command, item.where, len(item.epochs), item.target),
            ", ".join(f"{kind} {value:.2%}" for kind, value in item.accuracies.items()),
        ]
        for item in found
    ]
    return Table("Runs", ["command", "file", "epochs", "target", "test accuracy"], rows)


def wordy(table: Table) -> set[int]:
    """Columns, but for the first, that hold words: they are left-aligned and may be folded."""
    columns = range(1, len(table.columns))
    cells = {i: [str(row[i]) for row in table.rows] for i in columns}
    return {i for i in columns if any(c and c[0].isalpha() for c in cells[i])}
