"""The contents of a file as tables and lines for people; `inspect` makes the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from soul_deploy.base.reduction import NAMES
from soul_deploy.base.tables import Table
from soul_deploy.runtime.io import other_tables

Description: TypeAlias = Mapping[str, Any]
Facts: TypeAlias = list[tuple[str, object]]
ASSUMPTIONS = "assumptions"
"""Of a model file's provenance: a list of sentences."""
FORMS = {
    "integrate": "v + x",
    "soul_lif_decay": "v + (r - v + x) / {a}",
    "soul_lif": "v + (r - v) / {a} + x",
    "decay_divide": "v + (x - (v - r)) / {a}",
    "decay_multiply": "v + (x - (v - r)) · {a}",
    "leak_multiply": "v · {a} + x",
    "leak_multiply_late": "v · {a} + x - (v > {threshold}) · {threshold}",
    "leak_subtract_divide": "v - (v - r) / {a} + x",
    "leak_subtract_multiply": "v - (v - r) · {a} + x",
}


def inspect_report(described: Description) -> list[Table | str]:
    """What `soul-deploy inspect` prints, of what `inspect.describe` found."""
    facts, tables = REPORTS[described["kind"]](described)
    width = max(len(name) for name, _ in facts)
    shown = [(name, value) for name, value in facts if value not in (None, "")]
    return [*(f"{name:<{width}}  {value}" for name, value in shown), "", *tables]


def _model(described: Description) -> tuple[Facts, list[Table]]:
    layers = described["layers"]
    neurons = {row["what"] for row in layers if row["operation"] == "population"}
    alike = next(iter(neurons)) if len(neurons) == 1 else None
    assumed = described["provenance"].get(ASSUMPTIONS)
    facts = [
        ("model file", f"{described['path']}, {_size(described['bytes'])}, {described['stage']}"),
        *_network_facts(described),
        ("parameters", _share(described["nonzeros"], described["parameters"])),
        ("neurons", alike),
        ("made from", _provenance(described["provenance"])),
        *(("assumed", str(text)) for text in (assumed if isinstance(assumed, list) else [])),
        ("sha256", described["sha256"]),
    ]
    columns = ["layer", "operation", "what", "shape", "edge", "parameters", "nonzero", "kept"]
    rows = [
        [
            row["layer"],
            row["operation"].replace("_", " "),
            "" if row["what"] == alike else row["what"],
            _shape(row["shape"]),
            _edge(row),
            row["parameters"] or "",
            _percent(row["nonzeros"], row["parameters"]) if row["parameters"] else "",
            "" if row["channels_kept"] is None else f"{row['channels_kept']}/{row['channels']}",
        ]
        for row in layers
    ]
    shown = len(columns) if any(row["channels_kept"] is not None for row in layers) else -1
    return facts, [Table("Graph", columns[:shown], [row[:shown] for row in rows])]


def _event(described: Description) -> tuple[Facts, list[Table]]:
    layers = described["layers"]
    generated = [row for row in layers if row["generated"]]
    facts = [
        ("event network", f"{described['path']}, {_size(described['bytes'])}"),
        *_network_facts(described),
        ("size", f"{described['neurons']:,} neurons, {described['synapses']:,} stored synapses"),
        *_neuron_facts({row["layer"]: row["neuron"] for row in layers}),
        ("generated", ", ".join(f"{r['generated']} channels of {r['layer']}" for r in generated)),
        ("made from", f"model file with sha256 {described['source_sha256'] or 'unknown'}"),
        ("digest", f"{described['digest']} (checked)"),
    ]
    columns = ["layer", "operation", "from", "shape", "neurons", "edge", "kind", "runs as", "rows"]
    fixed = any(row["sums"] for row in layers)
    columns += [*(["sums"] if fixed else []), "synapses", "kB"]
    rows = [
        [
            row["layer"],
            row["operation"].replace("_", " "),
            row["source"],
            _shape(row["shape"]),
            f"{row['neurons']:,}" if row["neuron"] is not None else "",
            _edge(row),
            f"{row['representation']} rows" if row["representation"] else "",
            row["runs_as"] or "",
            row["rows"] or "",
            *([row["sums"] or ""] if fixed else []),
            row["synapses"] or "",
            f"{row['bytes'] / 1e3:,.1f}" if row["bytes"] else "",
        ]
        for row in layers
    ]
    weighed = any(row["alternatives"] for row in layers)
    more = [representation_table(layers)] if weighed else []
    return facts, [Table("Layers", columns, rows), *_forms(layers), *more]


def _forms(layers: Sequence[Description]) -> list[Table]:
    """How each layer's synapses run and could run; which form the file asks for, and what rate
    nobody has measured.
    """
    rows = [
        [
            row["layer"],
            row["runs_as"] + (" (file)" if row["runs_as_by"] == "file" else ""),
            _rate(row),
            ", ".join(f"{form} {_microseconds(us)}" for form, us in row["estimated_us"].items()),
        ]
        for row in layers
        if row["runs_as"] is not None
    ]
    columns = ["layer", "runs as", "rate (at any step)", "estimated µs, one thread"]
    return [Table("Forms of the synapses", columns, rows)] if rows else []


def _rate(row: Description) -> str:
    """The rate of the layer's source, in per cent, and the share that fires at any step if the rate
    was measured; analog values have none.
    """
    if row["rate"] is None:
        return ""
    rate, active = (f"{100 * row[key]:.3g} %" for key in ("rate", "active"))
    if row["rate_by"] == "assumed":
        return f"{rate} assumed"
    return f"{rate} ({active}{' assumed' if row['active_by'] == 'assumed' else ''})"


def _microseconds(us: float) -> str:
    return f"{us:,.0f}" if us >= 10 else f"{us:.1f}"


def _onnx(described: Description) -> tuple[Facts, list[Table]]:
    values = [
        [what, value["name"], value["dtype"], _shape(value["shape"])]
        for what in ("input", "output")
        for value in described[f"{what}s"]
    ]
    operators = ", ".join(f"{name} {count}" for name, count in described["operators"].items())
    opsets = ", ".join(f"{name} {number}" for name, number in described["opsets"].items())
    place = ", weights in another file" if described["external_data"] else ""
    facts = [
        ("ONNX file", f"{described['path']}, {_size(described['bytes'])}{place}"),
        ("producer", described["producer"]),
        ("opset", f"{opsets} (IR {described['ir_version']})"),
        ("nodes", f"{described['nodes']:,}: {operators}"),
        ("weights", _share(described["nonzeros"], described["parameters"])),
        *_onnx_metadata(described["metadata"]),
        ("sha256", described["sha256"]),
    ]
    return facts, [Table("Inputs and outputs", ["", "name", "dtype", "shape"], values)]


REPORTS: Mapping[str, Callable[[Description], tuple[Facts, list[Table]]]] = {
    "model": _model,
    "event": _event,
    "onnx": _onnx,
    "nir": other_tables.nir,
    "weights": other_tables.weights,
    "checkpoint": other_tables.checkpoint,
    **dict.fromkeys(("array", "arrays"), other_tables.arrays),
    "image": other_tables.image,
    "result": other_tables.result,
}


def _onnx_metadata(metadata: Description) -> Facts:
    """metadata_props by line; the neurons as one line for each different equation."""
    lines: Facts = []
    for key, value in metadata.items():
        if key == "neurons" and isinstance(value, dict):
            lines += _neuron_facts(value)
        elif isinstance(value, dict):
            known = {"normalization": _normalization, "validity": _validity}
            lines.append((key, known.get(key, _provenance)(value)))
        elif isinstance(value, list):
            lines.append(
                (key, _shape(value) if key == "input_shape" else _some([*map(str, value)]))
            )
        else:
            lines.append((key, value))
    return lines


def representation_table(layers: Sequence[Description]) -> Table:
    """What each layer's synapses take, and what was weighed against it.

    Additions are those of one spike of every live presynaptic neuron; times spikes per neuron they
    are the synaptic work. Zeros of dense rows and synapses onto neurons that are not live are added
    too, explicit rows have neither.
    """
    rows = [
        [
            row["layer"] if position == 0 else "",
            f"{item['kind']} rows",
            f"{item['bytes'] / 1e3:,.1f}",
            item["additions"],
            "yes" if item["chosen"] else "",
        ]
        for row in layers
        for position, item in enumerate(row["alternatives"])
    ]
    columns = ["layer", "kind", "kB", "additions if all spike", "chosen"]
    return Table("Representation of the synapses", columns, rows)


def _network_facts(described: Description) -> Facts:
    classes, kind = list(described["classes"]), described["input_kind"]
    norm, taken = _normalization(described["normalization"]), described.get("integers")
    norm = norm if taken is None else _integers(taken)
    most = described.get("input_bound")
    plain = "as they are" if most is None else f"whole numbers from 0 to {most}"
    what = f"images, {norm}" if kind == "images" else f"{kind}, {plain}"
    scores = [("scores", NAMES[described["over_time"]])] if "over_time" in described else []
    return [
        ("time steps T", described["time_steps"]),
        *scores,
        ("input", f"{_shape(described['input_shape'])}, {what}"),
        ("classes", _some(classes) if classes else "no names stored"),
        ("valid for", _validity(described["validity"])),
    ]


def _integers(taken: Description) -> str:
    zero = ", ".join(map(str, taken["zero"])) or "0"
    return f"integers from {taken['low']} to {taken['high']}; of pixels, pixel - {zero}"


def _normalization(norm: Description | None) -> str:
    if norm is None:
        return "no normalisation stored: pixel / 255"
    mean, std = (", ".join(f"{value:g}" for value in norm[key]) for key in ("mean", "std"))
    return f"normalised: (pixel / 255 - {mean}) / {std}"


def _validity(validity: Description) -> str:
    steps = validity["time_steps"]
    text = "any T" if steps is None else f"T = {steps} only"
    return text + (", state reset before each sample" if validity["reset_per_sample"] else "")


def _provenance(provenance: Description) -> str:
    texts = {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in provenance.items()
        if key != ASSUMPTIONS
    }
    return ", ".join(
        f"{key} {text if len(text) <= 60 else text[:57] + '…'}" for key, text in texts.items()
    )


def _neuron_facts(neurons: Mapping[str, Description | None]) -> Facts:
    """One line for each different equation, with the layers that have it."""
    users: dict[str, list[str]] = {}
    for layer, neuron in neurons.items():
        if neuron is not None:
            users.setdefault(neuron_text(neuron), []).append(layer)
    if len(users) == 1:
        return [("neurons", next(iter(users)))]
    return [("neurons", f"{text} ({_some(names, 3)})") for text, names in users.items()]


def neuron_text(neuron: Description) -> str:
    """An equation in one line."""
    if neuron.get("family") == "psn":
        return f"psn: W x + b over all steps; spike if {'>' if neuron['fire'] == 'gt' else '≥'} 0"
    if neuron.get("family") == "fixed":
        return _fixed_text(neuron)
    if "family" in neuron:
        numbers = ", ".join(
            f"{name} {'an array' if value is None else f'{value:g}'}"
            for name, value in neuron["constants"].items()
        )
        bounds = neuron["low"], neuron["high"]
        sent = "spikes" if bounds == (0, 1) else "{} to {}".format(*bounds)
        return f"{neuron['family']} ({numbers}), sends {sent}"
    a, reset = f"{neuron['constant']:g}", neuron["v_reset"]
    form = FORMS[neuron["charge"]].format(a=a, threshold=f"{neuron['v_threshold']:g}")
    form = form.replace("(v - r)", "v").replace("r - v", "-v") if not reset else form
    sign = ">" if neuron["fire"] == "gt" else "≥"
    taken = neuron.get("v_subtract")
    taken = neuron["v_threshold"] if taken is None else taken
    after = f"v - {taken:g}" if reset is None else f"{reset:g}"
    rest = f", r = {reset:g}" if "r" in form else ""
    then = "" if reset is None and taken == 0 else f"; then v ← {after}"
    return f"v ← {form}{rest}; spike if v {sign} {neuron['v_threshold']:g}{then}"


RESETS = {
    "hard": "; then u ← 0",
    "soft": "; then u ← u - q",
    "late": "; q comes off a step later",
    "none": "",
}
"""What becomes of a fixed-point membrane."""


def _fixed_text(neuron: Description) -> str:
    m, k = neuron["multiplier"], neuron["shift"]
    leaked = "u" if k == 0 and m == 1 else f"⌊u · {m} / {2**k}⌋"
    sign, reset = ">" if neuron["fire"] == "gt" else "≥", RESETS[neuron["reset"]]
    ends = f"from {neuron['lowest']} to {neuron['highest']}"
    return f"fixed point: u ← {leaked} + I, {ends}; spike if u {sign} θ{reset}"


def _shape(shape: Sequence[object]) -> str:
    """(64, 28, 28) as 64×28×28."""
    return "×".join(map(str, shape))


def _size(size: int) -> str:
    """A file size in kB or MB (powers of ten)."""
    return f"{size / 1e6:.2f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f", … ({len(names)})" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _edge(row: Description) -> str:
    signs = {"graded": "≤", "signed": "±", "analog": "±"}
    kind = row["edge"] or ""
    told = kind in signs and row["bound"] is not None  # of analog values: integers
    return f"{kind} {signs[kind]} {row['bound']}" if told else kind


def _share(part: int, whole: int) -> str:
    return f"{whole:,}, {_percent(part, whole)} of them not 0"


def _percent(part: int, whole: int) -> str:
    """A share with one decimal; 100 % means all."""
    share = 100 * part / whole if part != whole else 100.0
    return "100 %" if part == whole else f"{share:.1f} %" if share < 99.95 else "> 99.9 %"
