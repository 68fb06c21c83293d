"""`soul-deploy import zoo`."""

from dataclasses import dataclass, replace
from pathlib import Path

import click

from soul_deploy.base import errors, files, pixel_rule, progress
from soul_deploy.cli import common_options as common
from soul_deploy.cli import config, options, parsing
from soul_deploy.cli.common_options import given, option
from soul_deploy.cli.import_model import InputOptions, print_import
from soul_deploy.cli.output import data_flags
from soul_deploy.cli.start_model import assumed, say_assumed
from soul_deploy.data import event_sets
from soul_deploy.data.datasets import READERS, Data, canonical_data_name
from soul_deploy.model.file import save
from soul_deploy.model.model import ModelInfo, with_input_kind
from soul_deploy.training.messages import warn
from soul_deploy.zoo import import_zoo, read_weights, registry
from soul_deploy.zoo.soul_names import read_name


@dataclass(frozen=True)
class ZooInput(InputOptions):
    """What the network takes, and how its pixels were normalised."""

    mean: str | None = given(
        *(None, "Without a data set: mean of pixels in [0, 1], one or one a channel."),
        cls=parsing.ListOption,
    )
    std: str | None = given(
        *(None, "Without a data set: their standard deviation."), cls=parsing.ListOption
    )

    def named_by(self, path: Path) -> "ZooInput":
        """With the data set that the file's name says, where nothing else says the input."""
        name = read_name(path)
        said = None if name is None else name.data
        if (
            self.dataset_name is None
            and self.input_shape is None
            and said in (*READERS, *event_sets.NAMES)
        ):
            return replace(self, dataset_name=said)
        return self

    def info(self, data: Data | None) -> ModelInfo:
        """Normalisation, classes, kind of input. Raises UsageError."""
        numbers = [_numbers(name, getattr(self, name)) for name in ("mean", "std")]
        norm = import_zoo.normalization(*numbers)
        if data is None:
            info = with_input_kind(ModelInfo(), self.input_kind or pixel_rule.KIND_OF_OLD_FILES)
            return replace(info, normalization=norm)
        if norm is not None:
            raise errors.UsageError("the data set says mean and std; leave these flags out")
        made = {"data": data.name} | data.record()
        return ModelInfo(
            "dense", data.normalization, data.classes, made, input_kind=data.input_kind
        )


def _numbers(name: str, text: str | None) -> list[float]:
    try:
        return [float(word) for word in parsing.words(text or "")]
    except ValueError as error:
        told = f"{name} {text!r}: give one number, or one a channel, such as 0.49 0.48 0.45"
        raise errors.UsageError(told) from error


def _zoo_options() -> common.Decorator:
    weights = (
        "The network's weights: .pt, .pth, .ckpt or .safetensors, alone or in a checkpoint.  "
        "[required]"
    )
    where = "Where the model file goes.  [default: beside the weights, under their name]"
    return common.options(
        click.argument("model", metavar="NETWORK"),
        option("--model_path", "path", type=common.FILE, required=True, help=weights),
        common.output_option(where),
        common.option_group("asked", ZooInput, "Data"),
        options.network_options(common.ARGUMENT),
        common.format_option(),
    )


@click.command(
    "zoo",
    cls=parsing.SoulCommand,
    example="import zoo spikingvgg5 --model_path best.pt --hidden 8 --input_shape 3 32 32 "
    "--classes 10",
)
@_zoo_options()
@click.pass_context
def zoo(
    context: click.Context,
    path: Path,
    output: Path | None,
    asked: ZooInput,
    network: options.NetworkChoice,
    output_format: str,
) -> None:
    """Make a model file of the weights of NETWORK, one of this package's names, for any data set.

    NETWORK is spikingvgg5, 9, 11, 13, 16 or 19, cifar10net, sewresnet18, 34 or 50, msresnet18, 34
    or 50, mlp or lenet; --hidden, --width and the like are those that it was trained with.
    Soul's files, and checkpoints in which other people keep weights, are read as they are. What the
    file's name and the arguments saved in it say of network, neuron, data set and T holds where no
    flag is given; flags that say something else are refused. What is assumed is a line each on
    standard error, and stands in the model file.
    """
    target = output or files.require_file(path).with_suffix(".safetensors")
    if target.resolve() == path.resolve():
        raise errors.UsageError(f"{target} holds the weights themselves; give another --output")
    files.require_writable(target)
    asked, explicit = asked.named_by(path), parsing.explicit_flags(context)
    named = asked.dataset_name and canonical_data_name(asked.dataset_name)
    flags, steps = read_weights.FLAGS, network.time_step
    fields = {name for name, flag in flags.items() if flag.removeprefix("--") in explicit}
    fields |= {"model", "data"}
    spec, sizes = config.neuron_spec(network), config.sizes_of(network)
    reading = import_zoo.read_file(
        *(path, network.model, spec, steps, fields), data=named, flags=flags | {"model": "NETWORK"}
    )
    say_assumed(reading.assumptions, reading.warning)
    data = asked.data(reading.choice.time_steps)
    shape, classes = asked.sizes(data)
    made = registry.NetworkOptions(shape, classes, spec, steps, **sizes)
    with progress.warnings_said(warn):
        model = import_zoo.build(reading, made, asked.info(data))
    say_assumed(assumed(model)[len(reading.assumptions) :])
    save(model, target)
    words, told = data_flags(named, asked.data_dir), assumed(model)
    print_import(output_format, model, target, words, "", assumptions=told)
