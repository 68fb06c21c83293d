"""`soul-deploy import torch`."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import click
import torch
from torch import Tensor, nn

from soul_deploy.base.errors import FileFormatError, UsageError
from soul_deploy.base.files import require_file, require_writable
from soul_deploy.base.input_rule import KIND_OF_OLD_FILES
from soul_deploy.base.progress import status
from soul_deploy.cli.index_lists import ListOption, SoulCommand, explicit_flags, input_kind_option
from soul_deploy.cli.options import size_option
from soul_deploy.cli.output import data_flags, print_files, print_result
from soul_deploy.cli.parsing import require_steps, words
from soul_deploy.cli.progress import remark_on, warnings_told
from soul_deploy.data.datasets import Data, canonical_data_name, load_data, require_kind
from soul_deploy.frontend.factory import build_network
from soul_deploy.frontend.from_torch import from_torch
from soul_deploy.ir.graph import Shape
from soul_deploy.model.file import load_state_dict, save
from soul_deploy.model.model import Model, ModelInfo, with_input_kind
from soul_deploy.runtime.io.inspect import is_model_file
from soul_deploy.training.messages import note
from soul_deploy.zoo.soul_names import Asked, SoulName, read_name, require_neurons, settle

IMPORT_SCHEMA = "soul-deploy/import/1"
EXAMPLES = 8


@click.command("torch", cls=SoulCommand)
@click.argument("factory", metavar="PACKAGE.MODULE:FACTORY")
@click.option(
    "--model_path",
    type=click.Path(path_type=Path),
    default=None,
    help="The network's weights: a .pt, .pth or .safetensors state dict.  [default: as made]",
)
@click.option(
    *("--output", "-o"),
    type=click.Path(path_type=Path),
    default=None,
    help="Where the model file goes.  [default: FACTORY.safetensors]",
)
@click.option(*("--time_step", "-T"), type=int, default=4, show_default=True, help="Time steps T.")
@click.option(
    *("--dataset_name", "--dataset", "-dataset"),
    default=None,
    help="Data set that it was trained on: gives the input's shape and scaling, the classes, and "
    "the images that graph and network are compared on.",
)
@click.option(
    *("--data_dir", "-data_dir"),
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Folder of the data set's files; mnist5k and digits need none.",
)
@click.option("--download", is_flag=True, help="Download a missing data set.")
@size_option()
@click.option(
    "--input_shape",
    cls=ListOption,
    default=None,
    help="Without a data set: channels, height and width, for example 3 32 32.",
)
@click.option("--classes", type=int, default=None, help="Without a data set: how many classes.")
@input_kind_option("the data set's, or images")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"], case_sensitive=False),
    default="table",
    show_default=True,
    help="How the result is printed on standard output.",
)
@click.pass_context
def import_command(
    context: click.Context,
    factory: str,
    model_path: Path | None,
    output: Path | None,
    time_step: int,
    dataset_name: str | None,
    data_dir: Path,
    download: bool,
    size: int | None,
    input_shape: str | None,
    classes: int | None,
    input_kind: str | None,
    output_format: str,
) -> None:
    """Make a model file of a PyTorch network that a function of yours makes.

    PACKAGE.MODULE:FACTORY is imported from the current folder or the installed packages and called
    with those of classes, input_shape and time_steps that it accepts. The graph is compared with
    the network itself before anything is written.
    """
    require_steps("time_step", time_step)
    target = output or Path(f"{factory.rpartition(':')[2]}.safetensors")
    if model_path is not None and target.resolve() == require_file(model_path).resolve():
        raise UsageError(f"{target} holds the weights themselves; give another --output")
    require_writable(target)
    weights = Weights.of(model_path)
    if weights is not None:
        time_step = weights.steps(time_step, dataset_name, explicit_flags(context))
    data = _data(dataset_name, data_dir, download, size)
    if data is not None and input_kind is not None:
        require_kind(data, input_kind, f"a network of --input_kind {input_kind}")
    shape, count = _sizes(data, input_shape, classes)
    network = build_network(factory, classes=count, input_shape=shape, time_steps=time_step)
    if model_path is not None:
        load_weights(network, model_path)
    with warnings_told(_advice(data, model_path)):
        status("import torch: comparing the graph with the network")
        model = from_torch(network, shape, time_step, example=_examples(data))
    _check_classes(factory, model, count)
    told = [] if weights is None else weights.assumed(model, factory)
    model = replace(model, info=_info(factory, data, model, told, input_kind))
    save(model, target)
    _print(model, target, data_dir, output_format)


@dataclass(frozen=True)
class Weights:
    """A file of weights for the factory's network, and what its name says."""

    path: Path
    name: SoulName | None

    @staticmethod
    def of(path: Path | None) -> "Weights | None":
        """None without a file, and for a model file, which says in itself what it is of."""
        if path is None or is_model_file(path):
            return None
        return Weights(path, read_name(path))

    def steps(self, asked: int, dataset_name: str | None, explicit: Collection[str]) -> int:
        """T: what was asked for, or what the name says if nothing was.

        Raises UsageError where the name says another T or data set than what was asked for.
        """
        if self.name is None:
            return asked
        wishes = {"time_steps": Asked("--time_step", asked, "time_step" in explicit)}
        if dataset_name is not None:
            known = canonical_data_name(dataset_name)
            wishes["data"] = Asked("--dataset_name", known, given=True)
        steps: int = settle(self.path, self.name, wishes).get("time_steps", asked)
        return steps

    def assumed(self, model: Model, factory: str) -> list[str]:
        """Sentences about what the file does not hold; said on standard error.

        Raises UsageError if its name says other neurons than the network's.
        """
        populations = model.graph.populations
        require_neurons(self.path, self.name, [node.neuron.family for node in populations])
        neurons = "; ".join(dict.fromkeys(node.describe() for node in populations))
        sentence = (
            f"{self.path.name} holds weights only; the neurons are those that {factory} makes: "
            f"{neurons}; T {model.graph.time_steps}"
        )
        note(sentence)
        return [sentence]


def _check_classes(factory: str, model: Model, count: int) -> None:
    found = model.graph.readout.classes
    if found != count:
        raise UsageError(f"{factory} gives {found} class scores; {count} are needed")


def _data(name: str | None, folder: Path, download: bool, size: int | None) -> Data | None:
    if name is None:
        if size is not None:
            raise UsageError("size belongs to a data set; give --input_shape instead")
        return None
    loaded = load_data(name, folder, download=download, size=size)
    return remark_on(loaded, "; --size chooses another side")


def _sizes(data: Data | None, input_shape: str | None, classes: int | None) -> tuple[Shape, int]:
    if data is not None:
        if input_shape is not None or classes is not None:
            raise UsageError("the data set says input_shape and classes; leave these flags out")
        return data.input_shape, len(data.classes)
    if input_shape is None or classes is None:
        raise UsageError("give --dataset_name, or --input_shape and --classes")
    sides = tuple(int(word) if word.isdecimal() else 0 for word in words(input_shape))
    if len(sides) != 3 or 0 in sides or classes < 1:
        raise UsageError(
            f"input_shape {input_shape!r} and classes {classes}: give channels, height and width, "
            "each at least 1, and at least one class"
        )
    return sides, classes


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict, all of it. Raises FileFormatError naming what does not fit."""
    try:
        state = {name: torch.from_numpy(array) for name, array in load_state_dict(path).items()}
    except FileFormatError as error:
        if isinstance(error.__cause__, UnpicklingError):
            raise FileFormatError(
                f"{path} is not a file of weights alone: it holds objects whose code would run, "
                "such as a whole network, or it is no file of PyTorch's. Save the weights with "
                "torch.save(network.state_dict(), path), or as safetensors"
            ) from error
        raise
    _check_fit(network, state, path)
    network.load_state_dict(state)


def _check_fit(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = [f"{name} is missing" for name in needed if name not in given]
    found += [f"{name} belongs to nothing" for name in given if name not in needed]
    found += [
        f"{name} is {given[name]}, the network has {needed[name]}"
        for name in needed
        if given.get(name, needed[name]) != needed[name]
    ]
    if found:
        more = f" and {len(found) - 3} more" if found[3:] else ""
        raise FileFormatError(
            f"{path} does not fit the network: {'; '.join(found[:3])}{more}. Give the weights of "
            "this very network"
        )


def _examples(data: Data | None) -> Tensor | None:
    return None if data is None else data.normalise(data.validation.images[:EXAMPLES])


def _advice(data: Data | None, model_path: Path | None) -> str:
    """What lets a silent layer fire."""
    if data is None:
        return "give --dataset_name to compare on the data set's images"
    if model_path is None:
        return "give trained weights with --model_path"
    return "these weights may not be those of a trained network, or of other data"


def _info(
    factory: str,
    data: Data | None,
    model: Model,
    assumptions: list[str],
    input_kind: str | None,
) -> ModelInfo:
    made = {**model.info.provenance, "model": factory, "command": "import torch"}
    made |= {"assumptions": assumptions} if assumptions else {}
    if data is None:
        return with_input_kind(ModelInfo(provenance=made), input_kind or KIND_OF_OLD_FILES)
    made |= {"data": data.name}
    return ModelInfo("dense", data.normalization, data.classes, made, input_kind=data.input_kind)


def _print(model: Model, target: Path, data_dir: Path, output_format: str) -> None:
    graph = model.graph
    nodes = [(node.name, node.op, node.describe()) for node in graph.nodes]
    result = {
        "path": str(target),
        "time_steps": graph.time_steps,
        "nodes": [{"name": name, "op": op, "description": text} for name, op, text in nodes],
    }
    untested = list(model.info.provenance.get("untested", ()))
    result["untested"] = untested
    title = f"{len(nodes)} nodes, T = {graph.time_steps}; the graph computes what the network does"
    title += f", but for {len(untested)} populations that never fired" if untested else ""
    print_result(output_format, IMPORT_SCHEMA, result, title, ["node", "op", "what"], nodes)
    words = ["export", "event", target, *data_flags(model.info.provenance.get("data"), data_dir)]
    print_files(output_format, {"Model": target}, words)
