"""The contents of a file as tables and lines for people; `inspect` makes the data."""

from collections.abc import Mapping, Sequence
from typing import Any

from soul_deploy.base.tables import Table

Description = Mapping[str, Any]
ASSUMPTIONS = "assumptions"
"""Of a model file's provenance: a list of sentences."""


def report(found: Description) -> list[Table | str]:
    """What `soul-deploy inspect` prints, of what `inspect.describe` found."""
    return {"model": _model, "event": _event, "onnx": _onnx}[found["kind"]](found)


def shape_text(shape: Sequence[object]) -> str:
    """(64, 28, 28) as 64×28×28."""
    return "×".join(map(str, shape))


def size_text(size: int) -> str:
    """A file size in kB or MB (powers of ten)."""
    return f"{size / 1e6:.2f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"


def _facts(pairs: Sequence[tuple[str, object]]) -> list[str]:
    width = max(len(name) for name, _ in pairs)
    shown = [(name, value) for name, value in pairs if value not in (None, "")]
    return [f"{name:<{width}}  {value}" for name, value in shown]


def _network_facts(found: Description) -> list[tuple[str, object]]:
    steps, classes = found["time_steps"], list(found["classes"])
    return [
        ("time steps T", steps),
        ("input", f"{shape_text(found['input_shape'])}, {_input(found)}"),
        ("classes", _some(classes) if classes else "no names stored"),
        ("valid for", _validity(found["validity"])),
    ]


def _input(found: Description) -> str:
    """What the numbers are, and what is done to pixels."""
    kind = found["input_kind"]
    return f"images, {_normalization(found)}" if kind == "images" else f"{kind}, as they are"


def _normalization(found: Description) -> str:
    norm = found["normalization"]
    if norm is None:
        return "no normalisation stored: pixel / 255"
    mean, std = (", ".join(f"{value:g}" for value in norm[key]) for key in ("mean", "std"))
    return f"normalised: (pixel / 255 - {mean}) / {std}"


def _validity(validity: Description) -> str:
    steps = validity["time_steps"]
    text = "any T" if steps is None else f"T = {steps} only"
    return text + (", state reset before each sample" if validity["reset_per_sample"] else "")


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f", … ({len(names)})" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _model(found: Description) -> list[Table | str]:
    masked = any(row["channels_kept"] is not None for row in found["layers"])
    neurons = {row["what"] for row in found["layers"] if row["operation"] == "population"}
    alike = next(iter(neurons)) if len(neurons) == 1 else None
    rows = [_model_row(row, masked, alike) for row in found["layers"]]
    columns = ["layer", "operation", "what", "shape", "edge", "parameters", "nonzero"]
    facts = [
        ("model file", f"{found['path']}, {size_text(found['bytes'])}, {found['stage']}"),
        *_network_facts(found),
        ("parameters", _share(found["nonzeros"], found["parameters"])),
        ("neurons", alike),
        ("made from", _provenance(found["provenance"])),
        *_assumptions(found["provenance"]),
        ("sha256", found["sha256"]),
    ]
    return [*_facts(facts), "", Table("Graph", columns + ["kept"] * masked, rows)]


def _model_row(row: Description, masked: bool, alike: str | None) -> list[object]:
    """`alike`: what all populations are, if it is said elsewhere."""
    counted = row["parameters"] > 0
    cells = [
        row["layer"],
        row["operation"].replace("_", " "),
        "" if row["what"] == alike else row["what"],
        shape_text(row["shape"]),
        _edge(row),
        row["parameters"] if counted else "",
        _percent(row["nonzeros"], row["parameters"]) if counted else "",
    ]
    kept = "" if row["channels_kept"] is None else f"{row['channels_kept']}/{row['channels']}"
    return [*cells, kept] if masked else cells


def _edge(row: Description) -> str:
    return f"graded ≤ {row['bound']}" if row["edge"] == "graded" else row["edge"] or ""


def _share(part: int, whole: int) -> str:
    return f"{whole:,}, {_percent(part, whole)} of them not 0"


def _percent(part: int, whole: int) -> str:
    """A share with one decimal; 100 % means all."""
    if part == whole:
        return "100 %"
    share = 100 * part / whole
    return f"{share:.1f} %" if share < 99.95 else "> 99.9 %"


def _provenance(provenance: Description) -> str:
    told = {key: value for key, value in provenance.items() if key != ASSUMPTIONS}
    return ", ".join(f"{key} {_short(value)}" for key, value in told.items())


def _assumptions(provenance: Description) -> list[tuple[str, object]]:
    """What nobody said when the network was read from another tool's file, a line each."""
    found = provenance.get(ASSUMPTIONS)
    return [("assumed", str(text)) for text in found] if isinstance(found, list) else []


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _event(found: Description) -> list[Table | str]:
    facts = [
        ("event network", f"{found['path']}, {size_text(found['bytes'])}"),
        *_network_facts(found),
        ("size", f"{found['neurons']:,} neurons, {found['synapses']:,} stored synapses"),
        *_neuron_facts(found["layers"]),
        ("generated", _generated(found["layers"])),
        ("made from", f"model file with sha256 {found['source_sha256'] or 'unknown'}"),
        ("digest", f"{found['digest']} (checked)"),
    ]
    columns = ["layer", "operation", "from", "shape", "neurons", "edge", "kind", "rows"]
    columns += ["synapses", "kB"]
    rows = [
        [
            row["layer"],
            row["operation"].replace("_", " "),
            row["source"],
            shape_text(row["shape"]),
            _neurons(row),
            _edge(row),
            f"{row['representation']} rows" if row["representation"] else "",
            row["rows"] or "",
            row["synapses"] or "",
            f"{row['bytes'] / 1e3:,.1f}" if row["bytes"] else "",
        ]
        for row in found["layers"]
    ]
    tables = [Table("Layers", columns, rows)]
    if any(row["alternatives"] for row in found["layers"]):
        tables.append(representation_table(found["layers"]))
    return [*_facts(facts), "", *tables]


def _neurons(row: Description) -> str:
    """How many are updated."""
    return f"{row['neurons']:,}" if row["neuron"] is not None else ""


def _generated(layers: Sequence[Description]) -> str:
    """Channels that spike in a stored pattern."""
    found = [row for row in layers if row["generated"]]
    return ", ".join(f"{row['generated']} channels of {row['layer']}" for row in found)


def representation_table(layers: Sequence[Description]) -> Table:
    """What each layer's synapses take, and what was weighed against it.

    Additions are those of one spike of every live presynaptic neuron; times spikes per neuron they
    are the synaptic work. Zeros of dense rows and synapses onto neurons that are not live are added
    too, explicit rows have neither.
    """
    rows: list[list[object]] = []
    for row in layers:
        for item in row["alternatives"]:
            name = row["layer"] if item is row["alternatives"][0] else ""
            sizes = f"{item['bytes'] / 1e3:,.1f}", f"{item['additions']:,}"
            rows.append([name, f"{item['kind']} rows", *sizes, "yes" if item["chosen"] else ""])
    columns = ["layer", "kind", "kB", "additions if all spike", "chosen"]
    return Table("Representation of the synapses", columns, rows)


FORMS = {
    "integrate": "v + x",
    "soul_lif_decay": "v + (r - v + x) / {a}",
    "soul_lif": "v + (r - v) / {a} + x",
    "decay_divide": "v + (x - (v - r)) / {a}",
    "decay_multiply": "v + (x - (v - r)) · {a}",
    "leak_multiply": "v · {a} + x",
    "leak_subtract_divide": "v - (v - r) / {a} + x",
    "leak_subtract_multiply": "v - (v - r) · {a} + x",
}


def neuron_text(neuron: Description) -> str:
    """An equation in one line."""
    a, reset = f"{neuron['constant']:g}", neuron["v_reset"]
    form = FORMS[neuron["charge"]].format(a=a)
    form = form.replace("(v - r)", "v").replace("r - v", "-v") if not reset else form
    sign = ">" if neuron["fire"] == "gt" else "≥"
    taken = neuron.get("v_subtract") or neuron["v_threshold"]
    after = f"v - {taken:g}" if reset is None else f"{reset:g}"
    rest = f", r = {reset:g}" if "r" in form else ""
    return f"v ← {form}{rest}; spike if v {sign} {neuron['v_threshold']:g}; then v ← {after}"


def _neuron_facts(layers: Sequence[Description]) -> list[tuple[str, object]]:
    """One line for each different equation, with the layers that have it."""
    users: dict[str, list[str]] = {}
    for row in layers:
        if row["neuron"] is not None:
            users.setdefault(neuron_text(row["neuron"]), []).append(row["layer"])
    if len(users) == 1:
        return [("neurons", next(iter(users)))]
    return [("neurons", f"{text} ({_some(names, 3)})") for text, names in users.items()]


def _onnx(found: Description) -> list[Table | str]:
    values = [
        [what, value["name"], value["dtype"], shape_text(value["shape"])]
        for what in ("input", "output")
        for value in found[f"{what}s"]
    ]
    operators = ", ".join(f"{name} {count}" for name, count in found["operators"].items())
    opsets = ", ".join(f"{name} {number}" for name, number in found["opsets"].items())
    place = ", weights in another file" if found["external_data"] else ""
    facts = [
        ("ONNX file", f"{found['path']}, {size_text(found['bytes'])}{place}"),
        ("producer", found["producer"]),
        ("opset", f"{opsets} (IR {found['ir_version']})"),
        ("nodes", f"{found['nodes']:,}: {operators}"),
        ("weights", _share(found["nonzeros"], found["parameters"])),
        *_onnx_metadata(found["metadata"]),
        ("sha256", found["sha256"]),
    ]
    return [
        *_facts(facts),
        "",
        Table("Inputs and outputs", ["", "name", "dtype", "shape"], values),
    ]


def _onnx_metadata(metadata: Description) -> list[tuple[str, object]]:
    """metadata_props by line; the neurons as one line for each different equation."""
    lines: list[tuple[str, object]] = []
    for key, value in metadata.items():
        if key == "neurons" and isinstance(value, dict):
            rows = [{"layer": name, "neuron": neuron} for name, neuron in value.items()]
            lines += _neuron_facts(rows)
        elif key == "normalization" and isinstance(value, dict):
            lines.append((key, _normalization(metadata)))
        elif key == "validity" and isinstance(value, dict):
            lines.append((key, _validity(value)))
        elif key == "input_shape" and isinstance(value, list):
            lines.append((key, shape_text(value)))
        elif isinstance(value, dict):
            lines.append((key, _provenance(value)))
        elif isinstance(value, list):
            lines.append((key, _some(list(map(str, value)))))
        else:
            lines.append((key, value))
    return lines
