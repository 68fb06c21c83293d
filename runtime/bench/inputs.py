"""Inputs of `bench`: the files of each engine, and samples that fit the files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np

from soul_deploy.base import Array, errors, file_kinds, lazy, pixel_rule
from soul_deploy.base.files import OpenFile, file_sha256, parse_json, read_tensors
from soul_deploy.runtime.bench.engines import ENGINES, EngineSpec, open_engine_session
from soul_deploy.runtime.io import inputs, inspect

TIMED = "a model file, an ONNX file or an event network"
PLACES: Mapping[str, Mapping[str, str]] = {
    "model": {"dense": "model", "compact": "compact"},
    "onnx": {"dense": "onnx", "compact": "onnx_compact"},
    "event": {"dense": "event", "compact": "event"},
}
"""Kind of a file -> network -> field of BenchFiles, and the option that gives the file."""


@dataclass(frozen=True)
class BenchFiles:
    """Files as given. Missing ONNX and event files are exported from the model files."""

    model: Path | None = None
    compact: Path | None = None
    onnx: Path | None = None
    onnx_compact: Path | None = None
    event: Path | None = None

    def given_file(self, network: str, file: str) -> Path | None:
        """The file given for "dense" or "compact" and "model", "onnx" or "event"."""
        given: Path | None = getattr(self, PLACES[file][network])
        return given


def choose_engines(names: Sequence[str], files: BenchFiles) -> tuple[str, ...]:
    """The asked engines, or all that `files` allow. Raises UnknownNameError, UsageError."""
    for name in names:
        if name not in ENGINES:
            raise errors.UnknownNameError("engine", name, ENGINES)
    chosen = tuple(dict.fromkeys(names)) or tuple(
        name for name, kind in ENGINES.items() if not kind.asked and _source(name, files)
    )
    if not chosen:
        raise errors.UsageError(
            "no file to time; give --model and --compact (model files), or artifacts with --onnx, "
            "--onnx_compact, --event"
        )
    for name in chosen:
        if not _source(name, files):
            raise errors.UsageError(f"the engine {name} needs {_needs(name)}")
    return chosen


def _needs(name: str) -> str:
    kind = ENGINES[name]
    if kind.network is None:
        return "--event, or a model file (--compact or --model) to export"
    own, model = (f"--{PLACES[file][kind.network]}" for file in (kind.file, "model"))
    return own if own == model else f"{own}, or {model} to export"


def _source(name: str, files: BenchFiles) -> tuple[str, Path] | None:
    """("use", file) or ("export", model file) of an engine."""
    kind = ENGINES[name]
    network = kind.network or ("compact" if files.compact or not files.model else "dense")
    given_file = files.given_file(network, kind.file)
    if given_file is not None:
        return "use", given_file
    model = files.given_file(network, "model")
    return ("export", model) if model is not None and kind.file != "model" else None


def network_of_engine(name: str, files: BenchFiles) -> str:
    """Which network an engine runs. An event file names the model file that it came from."""
    network = ENGINES[name].network
    if network is not None:
        return network
    if files.event is not None and files.model is not None:
        source = facts_of(files.event).source_sha256
        if source == file_sha256(files.model):
            return "dense"
    return "compact" if files.compact or files.onnx_compact or not files.model else "dense"


def prepare_engines(
    names: Sequence[str], files: BenchFiles, folder: Path, forms: Mapping[str, str] | None = None
) -> tuple[EngineSpec, ...]:
    """Engines with their files; what is missing is exported to `folder`.

    forms: how some layers' synapses run in the event runtime.

    Raises MissingFileError, FileFormatError, and what the exporters raise.
    """
    specs = []
    for name in names:
        source = _source(name, files)
        assert source is not None, name
        action, path = source
        kind = ENGINES[name]
        if action == "export":
            path = _export(path, kind.file, folder)
        network, own = network_of_engine(name, files), (forms or {}) if kind.file == "event" else {}
        specs.append(EngineSpec(name, network, kind.target, path, own))
    return tuple(specs)


def quantised(
    specs: Sequence[EngineSpec], batches: Sequence[Array], folder: Path
) -> tuple[EngineSpec, ...]:
    """The engines, those of int8 with a quantised file in `folder`; batches: to calibrate on.

    Raises what rivals.quantise raises.
    """
    make = lazy.load_object("soul_deploy.runtime.bench.rivals:quantise", "an int8 network")
    return tuple(
        replace(spec, path=make(spec.path, batches, folder)) if ENGINES[spec.name].int8 else spec
        for spec in specs
    )


def _export(model: Path, file: str, folder: Path) -> Path:
    purpose = f"exporting {model}"
    read = lazy.load_object("soul_deploy.model.file:load", purpose)
    writer, suffix = {
        "onnx": ("soul_deploy.export.onnx.model:export_onnx", ".onnx"),
        "event": ("soul_deploy.export.event.build:export_event", ".event.safetensors"),
    }[file]
    target = folder / f"{model.stem}{suffix}"
    if not target.exists():
        write = lazy.load_object(writer, purpose)
        with OpenFile(model) as source:
            network, sha256 = read(source), source.sha256()
        write(network, target, source_sha256=sha256)
    return target


@dataclass(frozen=True)
class NetworkFacts:
    """The facts about a network's input that an artifact stores.

    steps, input_kind: None for an ONNX file that doesn't say. data: the data set that a model file
    records, and artifacts don't. events: of an input of events, their largest value.
    """

    path: Path
    steps: int | None
    shape: tuple[int, ...]
    normalization: Mapping[str, Sequence[float]] | None
    source_sha256: str | None = None
    sequence: bool | None = None
    is_model: bool = False
    input_kind: pixel_rule.InputKind | None = None
    data: str | None = None
    events: int | None = None


def facts_of(path: Path) -> NetworkFacts:
    """Read from the file's description. Raises MissingFileError, FileFormatError."""
    with OpenFile(path) as source:
        return _facts(source, inspect.kind_of_file(source))


def _facts(source: OpenFile, kind: str) -> NetworkFacts:
    path = source.path
    if kind == "onnx":
        return _onnx_facts(path)
    if kind == "event":
        network = import_module("soul_deploy.runtime.format.file").load_event_network(source)
        _refuse_integers(path, network.integers is not None)
        norm = network.normalization
        stored = None if norm is None else {"mean": norm.mean, "std": norm.std}
        return NetworkFacts(
            *(path, network.time_steps, network.input_shape, stored, network.source_sha256),
            input_kind=network.input_kind,
            events=network.input_bound,
        )
    if kind != "model":
        raise file_kinds.wrong_kind(path, kind, TIMED)
    document = read_tensors(source).document(*file_kinds.MODEL_FORMATS)
    graph_class = lazy.load_object("soul_deploy.ir.graph:SpikingGraph", "reading a model file")
    graph, info = graph_class.from_json(document["graph"]), document["info"]
    _refuse_integers(path, graph.integers)
    data = info["provenance"].get("data")
    return NetworkFacts(
        *(path, graph.time_steps, graph.input.shape, info["normalization"]),
        is_model=True,
        input_kind=_kind_of(path, info.get("input_kind", pixel_rule.KIND_OF_OLD_FILES)),
        data=data if isinstance(data, str) else None,
        events=graph.input.events,
    )


def _refuse_integers(path: Path, integers: bool) -> None:
    """Raise UsageError for a fixed-point network."""
    if integers:
        raise errors.UsageError(
            f"{path}: a fixed-point network, and all engines are given the same real numbers; give "
            "the network that it was made of, with --engines event,event-int8"
        )


def _kind_of(path: Path, stored: object) -> pixel_rule.InputKind:
    """Raises FileFormatError."""
    if not pixel_rule.is_input_kind(stored):
        raise errors.FileFormatError(
            f"{path}: input kind {stored!r}; known: {', '.join(pixel_rule.INPUT_KINDS)}"
        )
    return stored


def recorded_data(files: BenchFiles) -> str:
    """The data set that the model files record; "data" if there is none. Raises ValidityError for
    files that record different ones.
    """
    models = [path for path in (files.model, files.compact) if path is not None]
    found = {data: path for path in models if (data := facts_of(path).data)}
    if len(found) > 1:
        told = ", but ".join(f"{path} was trained on {data}" for data, path in found.items())
        raise errors.ValidityError(f"{told}; name the data set with --input")
    return next(iter(found), inputs.DATA)


def source_of(facts: NetworkFacts) -> str | None:
    """sha256 of the model file that a file was made from, or is; None if it doesn't say."""
    return file_sha256(facts.path) if facts.is_model else facts.source_sha256


def foreign_files(files: BenchFiles) -> list[str]:
    """Artifacts given beside model files that they were not made from, as sentences."""
    models = {"--model": files.model, "--compact": files.compact}
    found = []
    for flag, path, among in (
        ("--onnx", files.onnx, ("--model",)),
        ("--onnx_compact", files.onnx_compact, ("--compact",)),
        ("--event", files.event, ("--model", "--compact")),
    ):
        given = {option: models[option] for option in among}
        known = {option: model for option, model in given.items() if model is not None}
        source = None if path is None or not known else source_of(facts_of(path))
        if source and source not in map(file_sha256, known.values()):
            named = " or ".join(f"{option} {model}" for option, model in known.items())
            found.append(
                f"{flag} {path} was not made from {named}, but from a model file with sha256 "
                f"{source[:16]}…: the engines run different networks"
            )
    return found


def _onnx_facts(path: Path) -> NetworkFacts:
    session = open_engine_session(path, 1)
    known = session.get_modelmeta().custom_metadata_map
    shape = session.get_inputs()[0].shape
    sides = tuple(shape[-3:] if len(shape) >= 4 else shape[-1:])
    if "input_shape" in known:
        sides = tuple(parse_json(known["input_shape"], "its input_shape"))
    return NetworkFacts(
        path,
        int(known["time_steps"]) if "time_steps" in known else None,
        sides,
        parse_json(known.get("normalization", "null"), "its normalization"),
        known.get("source_sha256") or None,
        len(shape) == len(sides) + 2,
        input_kind=_kind_of(path, known["input_kind"]) if "input_kind" in known else None,
    )


def common_rule(facts: Sequence[NetworkFacts]) -> pixel_rule.InputRule:
    """The input that all files take. Raises ValidityError if they differ in T or size."""
    first = next((item for item in facts if item.steps is not None), facts[0])
    for item in facts:
        if item.shape != first.shape or item.steps not in (None, first.steps):
            raise errors.ValidityError(
                f"{first.path} takes {first.shape} at T = {first.steps}, but {item.path} takes "
                f"{item.shape} at T = {item.steps}; only networks of the same input and T can be "
                "compared"
            )
    kinds = {item.input_kind: item.path for item in facts if item.input_kind}
    if len(kinds) > 1:
        named = ", but ".join(f"{path} takes {kind}" for kind, path in kinds.items())
        raise errors.ValidityError(
            f"{named}; only networks of the same kind of input can be compared"
        )
    norms = (item.normalization for item in facts if item.normalization)
    norm = next(norms, {"mean": (), "std": ()})
    mean, std = (tuple(norm[key]) for key in ("mean", "std"))
    kind = next(iter(kinds), pixel_rule.KIND_OF_OLD_FILES)
    most = min((item.events for item in facts if item.events is not None), default=None)
    rule = pixel_rule.InputRule(first.shape, first.steps or 1, mean, std, kind=kind)
    return replace(rule, events=most)


def input_samples(
    name_or_path: str | object, data_dir: Path, rule: pixel_rule.InputRule, count: int, seed: int
) -> tuple[Array, int]:
    """(samples, batch axis): of an array, or of what `runtime.io.inputs.read_input_name` reads.

    Raises UnknownNameError, ValidityError, MissingFileError, FileFormatError, DataError.
    """
    if not isinstance(name_or_path, str):
        values = pixel_rule.numbers_of(pixel_rule.input_array(name_or_path, rule), rule)
        return _by_step(values, rule)
    name = inputs.read_input_name(name_or_path)
    if name.kind == "random" and rule.events is not None:
        drawn = pixel_rule.random_inputs(rule, rule.time_steps * count, seed)
        return drawn.reshape(rule.time_steps, count, *rule.shape), 1
    samples = inputs.named_samples(name, rule, count, data_dir=data_dir, seed=seed)
    return _by_step(samples.values, rule)


def _by_step(values: Array, rule: pixel_rule.InputRule) -> tuple[Array, int]:
    """Samples and their axis; events arrive at each step, and so are always a sequence."""
    if rule.events is not None and values.ndim == len(rule.shape) + 1:
        values = np.repeat(values[None], rule.time_steps, axis=0)
    return values, values.ndim - len(rule.shape) - 1


@dataclass(frozen=True)
class ReferenceRequest:
    """A network that anyone can make again, without training; None: the default of
    `analysis.reference_network`.
    """

    density: float | None
    connectivity: float | None
    rate: float | None
    time_step: int | None
    seed: int

    def write(self, folder: Path, images: int) -> tuple[Path, Path]:
        """Its model file and `images` images for it, in `folder`. Raises UsageError."""
        purpose = "making the reference network"
        reference = lazy.load_object(
            "soul_deploy.analysis.reference_network:ReferenceNetwork", purpose
        )
        write = lazy.load_object("soul_deploy.analysis.reference_network:write_reference", purpose)
        wanted = reference(
            density=1.0 if self.density is None and self.connectivity is None else self.density,
            connectivity=self.connectivity,
            rate=0.08 if self.rate is None else self.rate,
            time_steps=4 if self.time_step is None else self.time_step,
            seed=self.seed,
        )
        paths: tuple[Path, Path] = write(folder, images, wanted)
        return paths
