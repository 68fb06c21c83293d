"""From the JSON of a command to records, one reader for each schema."""

import json
from collections.abc import Callable, Mapping

from soul_deploy.base import errors, files, json_text
from soul_deploy.reporting.documents import (
    Benched,
    Counted,
    Document,
    Epoch,
    Flip,
    LayerChecked,
    LayerNumbers,
    Learned,
    Quantized,
    Removed,
    Timing,
    Verified,
    Written,
)
from soul_deploy.reporting.fields import Fields
from soul_deploy.runtime.ops.energy import UNITS

LARGEST = 64 << 20  # bytes of a document


def read_documents(file: files.File) -> tuple[Document, ...]:
    """The records in a JSON file, or in a `.jsonl` of epochs.

    Raises MissingFileError, LimitError, and FileFormatError for what no command prints, or for a
    result that a report does not show.
    """
    with files.opened(file) as source:
        json_text.require_length(str(source), source.size, None)
        errors.require(source.size <= LARGEST, f"{source} is larger than {LARGEST:,} bytes")
        content, where = source.start(source.size), str(source)
    if source.path.suffix == ".jsonl":
        return (_epoch_lines(where, content),)
    found = files.parse_json(content, where)
    schema = found.get("schema") if isinstance(found, dict) else None
    read = READERS.get(str(schema))
    if read is None:
        raise errors.FileFormatError(
            f"{where} is of schema {schema!r}, which a report does not show; it shows what train, "
            "prune structured, prune unstructured, prune compact, verify, export, energy, bench "
            "sparse and quantize print with --format json"
        )
    return read(Fields(where, found))


def _epoch_lines(where: str, content: bytes) -> Learned:
    lines = [line for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        row = files.parse_json(line, f"{where}: line {number}")
        errors.require(isinstance(row, dict), f"{where}: line {number} is no JSON object")
        rows.append(row)
    epochs = _epochs(Fields(where, {"epochs": rows}), "epochs")
    return Learned(where=where, command="epochs", written=(), accuracies={}, epochs=epochs)


def _epochs(found: Fields, name: str) -> tuple[Epoch, ...]:
    """Rows of epochs, numbered through: a pruning has several phases."""
    return tuple(
        Epoch(
            number,
            row.number("loss"),
            row.number("train_accuracy"),
            row.maybe("hard_accuracy" if "hard_accuracy" in row.data else "validation_accuracy"),
        )
        for number, row in enumerate(found.parts(name), 1)
    )


def _trained(found: Fields) -> tuple[Document, ...]:
    written = Written(found.text("model"), found.whole("bytes"))
    return (
        Learned(
            where=found.where,
            command="train",
            written=(written,),
            accuracies={"dense": found.number("test_accuracy")},
            epochs=_epochs(found, "epochs"),
        ),
    )


def _pruned(command: str) -> Callable[[Fields], tuple[Document, ...]]:
    def read(found: Fields) -> tuple[Document, ...]:
        places = found.part("files")
        listed = [places.part(name) for name in places.data]
        target = found.maybe_part("target")
        told = ""
        if target is not None:
            wanted, reached = target.number("wanted"), target.number("cost")
            told = f"{target.text('quantity')}: {wanted:,.0f} wanted, {reached:,.0f} reached"
        learned = Learned(
            where=found.where,
            command=command,
            written=tuple(Written(item.text("path"), item.whole("bytes")) for item in listed),
            accuracies=found.numbers("test_accuracy"),
            epochs=_epochs(found, "history"),
            target=told,
        )
        return (learned,)

    return read


def _counted(found: Fields) -> tuple[Document, ...]:
    if "reports" in found.data:
        return tuple(counted(part) for part in found.parts("reports"))
    return (counted(found),)


def counted(found: Fields) -> Counted:
    """One report of `energy`, or of `count` as JSON data."""
    artifact, data, totals = found.part("artifact"), found.part("dataset"), found.part("totals")
    samples, steps = max(data.whole("n_samples"), 1), found.whole("T")
    whole, correct = found.part("structure"), data.maybe("correct")
    preset = "ops45_int8" if artifact.text("weights_dtype") == "int8" else "ops45_fp32"
    energy, constants = None, ""
    for row in found.parts("energy"):
        if row.text("model") == preset:
            parts = UNITS.get(row.text("unit"))
            errors.require(parts, f"{found.where}: an energy of another unit than we know")
            cost = row.part("constants")
            energy = row.whole("value_int") / (parts or 1) / samples / 1e3
            per = (cost.number("mac") / (parts or 1), cost.number("ac") / (parts or 1))
            constants = f"{per[0]:g} pJ a MAC, {per[1]:g} a SynOp"
    return Counted(
        where=found.where,
        path=artifact.text("path"),
        sha256=artifact.text("sha256"),
        data=" ".join(str(data.data.get(name, "")) for name in ("name", "split")).strip(),
        samples=samples,
        time_steps=steps,
        accuracy=None if correct is None else correct / samples,
        synops=totals.whole("synops") / samples,
        macs=totals.whole("macs_effective") / samples,
        energy=energy,
        constants=constants,
        weights=whole.whole("weights"),
        weights_kept=whole.whole("weights_nz"),
        layers=tuple(_layer(row, samples) for row in found.parts("layers")),
    )


def _layer(row: Fields, samples: int) -> LayerNumbers:
    counts, all_outputs = row.part("counts"), row.whole("activation_total")
    return LayerNumbers(
        name=row.text("name"),
        op=row.text("op"),
        rate=row.whole("activation_nonzero") / all_outputs if all_outputs else None,
        synops=counts.whole("synops") / samples,
        macs=counts.whole("macs_effective") / samples,
        synapses=row.whole("synapses"),
        synapses_dense=row.whole("synapses_dense"),
        neurons=row.whole("neurons_live"),
        neurons_dense=row.whole("neurons"),
    )


def _benched(found: Fields) -> tuple[Document, ...]:
    timings = tuple(
        Timing(
            where=found.where,
            engine=row.text("engine"),
            file=row.text("file"),
            size=row.whole("file_bytes"),
            threads=row.whole("threads"),
            batch=row.whole("batch_size"),
            p50=row.number("p50_ms"),
            p90=row.number("p90_ms"),
            source_sha256=row.maybe_text("source_sha256"),
        )
        for row in found.parts("entries")
    )
    profile = found.maybe_part("profile")
    layers = [] if profile is None else list(profile.parts("layers"))
    times = {row.text("layer"): sum(row.numbers("us").values()) for row in layers}
    machine = found.part("environment").maybe_text("cpu") or "a processor that it does not name"
    told = f"{machine}; input {found.text('input')}"
    return (Benched(where=found.where, machine=told, timings=timings, profile=times),)


def _exported(found: Fields) -> tuple[Document, ...]:
    report = found.maybe_part("verified")
    return () if report is None else _verified(report)


def _verified(found: Fields) -> tuple[Document, ...]:
    forced, whole = found.maybe_part("forced"), found.maybe_part("end_to_end")
    static = found.part("static")
    told = {"static": static.data.get("passed")}
    told |= {"layer by layer": None if forced is None else forced.flag("passed")}
    told |= {"end to end": None if whole is None else whole.flag("passed")}
    words = {True: "passed", False: "FAILED", None: "not run"}
    checks = {name: words.get(outcome, "not run") for name, outcome in told.items()}
    if whole is not None:
        samples, agreeing = whole.whole("samples"), whole.whole("agreeing")
        checks["end to end"] += f", same class on {agreeing} of {samples} samples"
    rows = {} if forced is None else {row.text("layer"): row for row in forced.parts("layers")}
    every = [] if whole is None else list(whole.parts("layers"))
    silent = found.texts("silent_layers")
    report = Verified(
        where=found.where,
        artifact=found.text("artifact"),
        kind=found.text("kind"),
        verdict=found.text("verdict"),
        images=found.text("images"),
        problems=static.texts("problems"),
        checks=checks,
        layers=tuple(_checked(row, rows.get(row.text("layer")), silent) for row in every),
        flips=tuple(_flip(flip) for row in every for flip in row.parts("flips")),
    )
    return (report,)


def _checked(row: Fields, forced: Fields | None, silent: tuple[str, ...]) -> LayerChecked:
    compared = row.flag("compared")
    alone = 0 if forced is None else forced.whole("unexplained")
    return LayerChecked(
        layer=row.text("layer"),
        spikes=row.whole("golden_spikes"),
        flips_forced=None if forced is None else forced.whole("flipped"),
        flips_whole=row.whole("flipped") if compared else None,
        differing=row.whole("differing") if compared else None,
        unexplained=row.whole("unexplained") + alone,
        silent=row.text("layer") in silent,
    )


def _flip(row: Fields) -> Flip:
    return Flip(
        *(row.text("layer"), row.whole("step"), row.whole("sample")),
        neuron=json.dumps(row.data.get("neuron"))[:40],
        distance=row.maybe("distance"),
        allowance=row.maybe("allowance") or 0.0,
        traced=row.data.get("cause") is not None,
    )


def _verified_c(found: Fields) -> tuple[Document, ...]:
    layers = tuple(
        LayerChecked(
            layer=row.text("name"),
            spikes=row.whole("spikes"),
            flips_forced=None,
            flips_whole=row.whole("differing_spikes"),
            differing=row.whole("differing_spikes"),
            unexplained=row.whole("differing_spikes"),
            silent=not row.whole("spikes"),
        )
        for row in found.parts("populations")
    )
    report = Verified(
        where=found.where,
        artifact=found.text("artifact"),
        kind="c",
        verdict=found.text("verdict"),
        images=found.text("images"),
        problems=found.texts("problems"),
        checks={},
        layers=layers,
        flips=(),
    )
    return (report,)


def _quantized(found: Fields) -> tuple[Document, ...]:
    samples, rows = max(found.whole("samples"), 1), found.part("populations")
    both = found.part("float"), found.part("fixed_point")
    layers = {name: rows.part(name) for name in rows.data}
    names = ("firing_rate_float", "firing_rate")
    accuracies, synops = ([part.maybe(name) for part in both] for name in ("accuracy", "synops"))
    result = Quantized(
        where=found.where,
        written=Written(found.text("model"), found.whole("bytes")),
        samples=samples,
        accuracies=(accuracies[0], accuracies[1]),
        synops=((synops[0] or 0) / samples, (synops[1] or 0) / samples),
        rates={name: (row.number(names[0]), row.number(names[1])) for name, row in layers.items()},
        distances={name: row.number("earth_movers_distance") for name, row in layers.items()},
    )
    return (result,)


def _removed(found: Fields) -> tuple[Document, ...]:
    rows = []
    for row in found.parts("layers"):
        gone = row.part("removed")
        rules = [gone.text(channel) for channel in gone.data]
        channels, kept = row.whole("channels"), row.data.get("kept")
        errors.require(isinstance(kept, list), f"{row.where}: 'kept' is not a list")
        counted = {rule: rules.count(rule) for rule in dict.fromkeys(rules)}
        stays = row.maybe_text("tied") or ""
        rows.append((row.text("layer"), channels, len(kept or ()), counted, stays))
    return (Removed(found.where, tuple(rows)),)


READERS: Mapping[str, Callable[[Fields], tuple[Document, ...]]] = {
    "soul-deploy/train/1": _trained,
    "soul-deploy/prune/1": _pruned("prune structured"),
    "soul-deploy/prune-unstructured/1": _pruned("prune unstructured"),
    "soul-deploy/removal/1": _removed,
    "soul-deploy/ops-report/2": _counted,
    "soul-deploy/bench/1": _benched,
    "soul-deploy/verify/3": _verified,
    "soul-deploy/verify-c/1": _verified_c,
    "soul-deploy/export/2": _exported,
    "soul-deploy/quantize/1": _quantized,
}
