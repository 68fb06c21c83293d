"""`soul-deploy import torch` and `import nir`."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch
from torch import Tensor, nn

from soul_deploy.base import errors, files, pixel_rule, progress, reduction
from soul_deploy.cli import common_options as common
from soul_deploy.cli import options, parsing
from soul_deploy.cli.common_options import given, option, shared
from soul_deploy.cli.config import remark_on
from soul_deploy.cli.output import data_flags, print_files, print_result
from soul_deploy.cli.start_model import say_assumed
from soul_deploy.data.datasets import Data, canonical_data_name, load_data, require_kind
from soul_deploy.export.nir import neuron, package, read
from soul_deploy.export.nir.membranes import READ_RULES
from soul_deploy.frontend.factory import build_network
from soul_deploy.frontend.from_torch import from_torch
from soul_deploy.frontend.outputs import Key
from soul_deploy.ir import NeuronSpec, Shape
from soul_deploy.model.file import load_weights, save
from soul_deploy.model.model import Model, ModelInfo, for_kind, with_input_kind
from soul_deploy.model.state_dict import Weights
from soul_deploy.runtime.io.inspect import is_model_file
from soul_deploy.training.messages import note, warn
from soul_deploy.zoo import read_weights
from soul_deploy.zoo.soul_names import require_neurons

EXAMPLES = 8


@dataclass(frozen=True)
class InputOptions(options.EventFlags):
    """What the network takes and how many classes it tells apart: a data set's, or as given."""

    dataset_name: str | None = shared(
        common.dataset_option(
            "Data set that it was trained on: gives the input's shape and scaling, the classes, "
            "and the images that graph and network are compared on."
        )
    )
    data_dir: Path = shared(common.data_dir_option())
    download: bool = shared(common.download_option())
    size: int | None = shared(options.size_option())
    input_shape: str | None = given(
        None,
        "Without a data set: channels, height and width, for example 3 32 32.",
        cls=parsing.ListOption,
    )
    classes: int | None = given(None, "Without a data set: how many classes.")
    input_kind: str | None = shared(options.input_kind_option("the data set's, or images"))

    def data(self, steps: int) -> Data | None:
        """The data set, or None; steps: T of the network. Raises UsageError, and as `load_data`."""
        if self.dataset_name is None:
            if self.size is not None:
                raise errors.UsageError("size belongs to a data set; give --input_shape instead")
            return None
        how: Any = {"download": self.download, "size": self.size, "input_kind": self.input_kind}
        how |= {"events": self.events(steps)}
        loaded = load_data(self.dataset_name, self.data_dir, **how)
        remark_on(loaded, "; --size chooses another side")
        if self.input_kind is not None:
            require_kind(loaded, self.input_kind, f"a network of --input_kind {self.input_kind}")
        return loaded

    def sizes(self, data: Data | None) -> tuple[Shape, int]:
        """(C, H, W) and the number of classes. Raises UsageError."""
        if data is not None:
            if self.input_shape is not None or self.classes is not None:
                told = "the data set says input_shape and classes; leave these flags out"
                raise errors.UsageError(told)
            return data.input_shape, len(data.classes)
        if self.input_shape is None or self.classes is None:
            raise errors.UsageError("give --dataset_name, or --input_shape and --classes")
        sides = tuple(int(w) if w.isdecimal() else 0 for w in parsing.words(self.input_shape))
        if len(sides) != 3 or 0 in sides or self.classes < 1:
            raise errors.UsageError(
                f"input_shape {self.input_shape!r} and classes {self.classes}: give channels, "
                "height and width, each at least 1, and at least one class"
            )
        return sides, self.classes


def _over_time_option(default: str) -> common.Decorator:
    text = (
        "What the class scores are of what the network gives at each step: the mean, the sum (of "
        f"spikes: their count), the last, or class by class the largest.  [default: {default}]"
    )
    ways = click.Choice(reduction.OVER_TIME)
    return option("--over_time", type=ways, help=text, heading="Network")


def _torch_options() -> common.Decorator:
    weights = "The network's weights: a .pt, .pth or .safetensors state dict.  [default: as made]"
    several = (
        "Of a forward that returns several values: the name, or the place from 0 on, of the one "
        "that holds the class scores.  [default: the spikes, if the others are membranes]"
    )
    return common.options(
        click.argument("factory", metavar="PACKAGE.MODULE:FACTORY"),
        option("--model_path", type=common.FILE, help=weights, heading="Files"),
        common.output_option("Where the model file goes.  [default: FACTORY.safetensors]"),
        common.steps_option("Time steps T.", 4),
        _over_time_option("as the network's forward makes them, else mean"),
        option("--scores_from", help=several, metavar="NAME", heading="Network"),
        common.option_group("asked", InputOptions, "Data"),
        common.format_option(),
    )


@click.command(
    "torch",
    cls=parsing.SoulCommand,
    example="import torch mynets:make --input_shape 1 32 32 --classes 10 -o model.safetensors",
)
@_torch_options()
@click.pass_context
def import_torch(
    context: click.Context,
    factory: str,
    model_path: Path | None,
    output: Path | None,
    time_step: int,
    over_time: reduction.OverTime | None,
    scores_from: str | None,
    asked: InputOptions,
    output_format: str,
) -> None:
    """Make a model file of a PyTorch network that a function of yours makes.

    PACKAGE.MODULE:FACTORY is imported from the current folder or the installed packages and called
    with those of classes, input_shape and time_steps that it accepts. The graph is compared with
    the network itself before anything is written.
    """
    parsing.require_steps("time_step", time_step)
    target = output or Path(f"{factory.rpartition(':')[2]}.safetensors")
    if model_path is not None and target.resolve() == files.require_file(model_path).resolve():
        raise errors.UsageError(f"{target} holds the weights themselves; give another --output")
    files.require_writable(target)
    explicit = parsing.explicit_flags(context)
    reading = _read_weights(model_path, factory, time_step, asked.dataset_name, explicit)
    time_step = time_step if reading is None else reading.choice.time_steps
    data = asked.data(time_step)
    shape, count = asked.sizes(data)
    network = build_network(factory, classes=count, input_shape=shape, time_steps=time_step)
    told = [] if reading is None else put_weights(network, reading.weights)
    with progress.warnings_said(warn, _advice(data, model_path)):
        progress.status("import torch: comparing the graph with the network")
        example = None if data is None else data.normalise(data.validation.images[:EXAMPLES])
        how: Any = {"over_time": over_time, "output": _output_of(scores_from)}
        model = from_torch(network, shape, time_step, example=example, **how)
    found = model.graph.readout.classes
    if found != count:
        raise errors.UsageError(f"{factory} gives {found} class scores; {count} are needed")
    told = told if reading is None else [*_assumed(reading, model, factory), *told]
    info = _info(factory, data, model, told, asked.input_kind)
    model = for_kind(replace(model, info=info), info.input_kind)
    save(model, target)
    _print(model, target, asked.data_dir, output_format)


def _output_of(given: str | None) -> Key | None:
    """A place where it is a number, else a name."""
    if given is None:
        return None
    return int(given) if given.removeprefix("-").isdecimal() else given


def _read_weights(
    path: Path | None, factory: str, steps: int, data: str | None, explicit: Collection[str]
) -> read_weights.Reading | None:
    """The file of weights for a factory's network, which brings its own neurons, and what the file
    says; None without one.

    Raises UsageError where it says another T or data set than what was asked for, FileFormatError.
    """
    if path is None:
        return None
    weights = load_weights(path)
    if is_model_file(path):  # which says in itself what it is of
        choice = read_weights.Choice(factory, NeuronSpec(), steps)
        return read_weights.Reading(weights, choice, None, ())
    known = data and canonical_data_name(data)
    given = {"data", *(["time_steps"] if "time_step" in explicit else [])}
    choice = read_weights.Choice(factory, NeuronSpec(), steps, known, given)
    reading = read_weights.take_said(weights, choice)
    say_assumed(reading.assumptions)
    return reading


def _assumed(reading: read_weights.Reading, model: Model, factory: str) -> list[str]:
    """Sentences about what the file does not hold; said on standard error.

    Raises UsageError if its name says other neurons than the network's.
    """
    path, populations = reading.weights.path, model.graph.populations
    if is_model_file(path):
        return []
    require_neurons(path, reading.name, [node.neuron.family for node in populations])
    neurons = "; ".join(dict.fromkeys(node.describe() for node in populations))
    sentence = (
        f"{path.name} holds weights only; the neurons are those that {factory} makes: "
        f"{neurons}; T {model.graph.time_steps}"
    )
    say_assumed([sentence])
    return [*reading.assumptions, sentence]


def put_weights(network: nn.Module, weights: Weights) -> list[str]:
    """Load a state dict, all of it; what was done to its names, as sentences.

    Raises FileFormatError naming what does not fit.
    """
    fitted = weights.fitted(network.state_dict())
    state = {name: torch.from_numpy(np.array(array)) for name, array in fitted.state.items()}
    _check_fit(network, state, weights.path)
    network.load_state_dict(state)
    say_assumed(fitted.told[len(weights.told) :])
    return list(fitted.told[len(weights.told) :])


def _check_fit(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = [f"{name} is missing" for name in needed if name not in given]
    found += [f"{name} belongs to nothing" for name in given if name not in needed]
    found += [
        f"{name} is {given[name]}, the network has {shape}"
        for name, shape in needed.items()
        if given.get(name, shape) != shape
    ]
    if found:
        more = f" and {len(found) - 3} more" if found[3:] else ""
        raise errors.FileFormatError(
            f"{path} does not fit the network: {'; '.join(found[:3])}{more}. Give the weights of "
            "this very network"
        )


def _advice(data: Data | None, model_path: Path | None) -> str:
    """What lets a silent layer fire."""
    if data is None:
        return "give --dataset_name to compare on the data set's images"
    if model_path is None:
        return "give trained weights with --model_path"
    return "these weights may not be those of a trained network, or of other data"


def _info(
    factory: str, data: Data | None, model: Model, assumptions: list[str], input_kind: str | None
) -> ModelInfo:
    made = {**model.info.provenance, "model": factory, "command": "import torch"}
    made |= {"assumptions": assumptions} if assumptions else {}
    if data is None:
        kind = input_kind or pixel_rule.KIND_OF_OLD_FILES
        return with_input_kind(ModelInfo(provenance=made), kind)
    made |= {"data": data.name} | data.record()
    return ModelInfo("dense", data.normalization, data.classes, made, input_kind=data.input_kind)


def _print(model: Model, target: Path, data_dir: Path, output_format: str) -> None:
    made = model.info.provenance
    untested = list(made.get("untested", ()))
    remark = "; the graph computes what the network does"
    remark += f", but for {len(untested)} populations that never fired" if untested else ""
    data = data_flags(made.get("data"), data_dir)
    print_import(output_format, model, target, data, remark, untested=untested)


def _nir_options() -> common.Decorator:
    dt = (
        f"Seconds per time step.  [default: those in FILE's metadata, or {package.DEFAULT_DT:g}, "
        "if FILE makes sense with it]"
    )
    reset = (
        "What a spike does, where FILE's metadata do not say: set the membrane to v_reset (zero); "
        "take the threshold off in the next step, after the decay, as snnTorch's Leaky does "
        "(subtract); take it off in the same step (subtract_at_once).  [default: zero, as NIR says]"
    )
    fire = (
        "Whether neurons fire above their threshold or also at it, where FILE's metadata do not "
        "say.  [default: gt, as NIR says]"
    )
    reading = (
        "What of the last spiking neurons is the output, where FILE's metadata do not say: their "
        "spikes, their membrane after each step, or the membrane of neurons that never reset, "
        "which tools write as if they did.  [default: spikes]"
    )
    rules, fires = click.Choice(get_args(neuron.ResetRule)), click.Choice(["gt", "ge"])
    return common.options(
        click.argument("nir_path", metavar="FILE", type=common.FILE),
        common.output_option("Where the model file goes.  [default: beside FILE, under its name]"),
        common.steps_option("Time steps to run.  [default: those in FILE's metadata]"),
        option("--dt", type=float, help=dt, heading="Network"),
        option("--reset", type=rules, help=reset, heading="Network"),
        option("--fire", type=fires, help=fire, heading="Network"),
        option("--read", type=click.Choice(READ_RULES), help=reading, heading="Network"),
        _over_time_option("as FILE's metadata say, else mean"),
        options.input_kind_option("the one in FILE's metadata, or images"),
        common.format_option(),
    )


@click.command(
    "nir", cls=parsing.SoulCommand, example="import nir net.nir --output model.safetensors"
)
@_nir_options()
def nir(
    nir_path: Path, output: Path | None, time_step: int | None, output_format: str, **rules: Any
) -> None:
    """Read FILE, a NIR graph from any tool, as a soul-deploy model file.

    NIR does not say how long a time step is, and tools write neurons that reset or fire otherwise
    in the same way. What FILE leaves open and no flag says is assumed, a line each on standard
    error; docs/nir.md says what to give for which tool.
    """
    parsing.require_steps("time_step", time_step)
    target = output or files.require_file(nir_path).with_suffix(".safetensors")
    if target.resolve() == nir_path.resolve():
        read.read_nir(nir_path)  # what is none is refused as what it is
        raise errors.UsageError(f"{target} is the NIR file itself; give another --output")
    files.require_writable(target)
    model = read.import_nir(read.read_nir(nir_path), time_steps=time_step, **rules)
    assumptions = list(model.info.provenance.get("assumptions", ()))
    for sentence in assumptions:
        note(f"Assumed: {sentence}")
    save(model, target)
    data = data_flags(None, common.DATA_DIR)  # NIR names no data set
    print_import(output_format, model, target, data, "", assumptions=assumptions)


def print_import(
    output_format: str, model: Model, target: Path, data: list[str], remark: str, **more: list[str]
) -> None:
    """What another tool's network became. data, remark: end the next step's words and the title."""
    graph = model.graph
    nodes = [(node.name, node.op, node.describe()) for node in graph.nodes]
    described = [{"name": name, "op": op, "description": text} for name, op, text in nodes]
    result = {"path": str(target), "time_steps": graph.time_steps, "nodes": described, **more}
    schema, columns = "soul-deploy/import/1", ["node", "op", "what"]
    title = f"{len(nodes)} nodes, T = {graph.time_steps}{remark}"
    print_result(output_format, schema, result, title, columns, nodes)
    print_files(output_format, {"Model": target}, ["export", "event", target, *data])
