"""`soul-deploy quantize`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from soul_deploy.base import errors, files, progress, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import options, output, parsing
from soul_deploy.cli.common_options import given, one_of, option_group, shared
from soul_deploy.data import datasets
from soul_deploy.data.samples import Data
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.quantization import network, units
from soul_deploy.quantization import quantize as integers
from soul_deploy.training.messages import note


@dataclass(frozen=True)
class QuantizeOptions:
    """How weights become integers."""

    scale: str = one_of(units.SCALES, "Units of currents: one for each channel, or for the layer.")
    clip: str = one_of(
        units.CLIPS,
        "Which weight becomes 127. mse: that of the smallest squared error; percentile; max: the "
        "largest.",
    )
    percentile: float = given(99.9, "For --clip percentile: of the weights that are not 0.")
    membrane: str = one_of(
        network.MEMBRANES, "auto: int16, but int32 where training images saturate it."
    )
    calibration: int = given(256, "Training images on which membranes are watched.")
    largest_count: int | None = given(
        None, "Of networks that take counts: the largest. [default: that of the data set]"
    )


@dataclass(frozen=True)
class TuningOptions:
    """Fine-tuning with fake quantisation."""

    epochs: int = given(0, "Epochs with fake quantisation, straight-through; 0: none.")
    lr: float = given(1e-3, "Learning rate, of weights in shares of the largest.")
    batch_size: int = given(64, "Images per batch.", "-b")
    seed: int = shared(common.seed_option())


@dataclass(frozen=True)
class JudgedOptions(options.EventFlags):
    """What both networks are compared on."""

    samples: int = given(1000, "Validation images.")
    dataset_name: str | None = shared(common.dataset_option(f"Data set.  {options.TRAINED_ON}"))
    data_dir: Path = shared(common.data_dir_option())
    download: bool = shared(common.download_option())
    threads: int | None = shared(common.threads_option())
    output_format: str = shared(common.format_option())


@click.command(cls=parsing.SoulCommand, example="quantize model.safetensors --dataset_name digits")
@click.argument("model_path", metavar="MODEL", type=common.FILE)
@common.output_option("Where the network goes.  [default: MODEL_int8.safetensors]")
@option_group("how", QuantizeOptions, "Method")
@option_group("tuning", TuningOptions, "Training")
@option_group("judged", JudgedOptions, "Data")
def quantize(
    model_path: Path,
    output: Path | None,
    how: QuantizeOptions,
    tuning: TuningOptions,
    judged: JudgedOptions,
) -> None:
    """Make a fixed-point network of MODEL: int8 weights, integer thresholds and membranes.

    PyTorch, ONNX Runtime and the event runtime give it the same integers. Printed are accuracy,
    SynOps and firing of both networks on validation images, and the proven bounds.
    """
    files.require_file(model_path)
    place = output or model_path.with_name(f"{model_path.stem}_int8.safetensors")
    files.refuse_itself(place, model_path)
    files.require_writable(place)
    config = _config(how, tuning, judged)
    if judged.threads is not None:
        torch.set_num_threads(judged.threads)
    progress.status(f"quantize: reading {model_path}")
    with files.OpenFile(model_path) as source:
        model, sha256 = load(source), source.sha256()
    found = integers.quantize(model, _data(model, judged), config)
    made = {**found.model.info.provenance, "quantized_from_sha256": sha256}
    save(replace(found.model, info=replace(found.model.info, provenance=made)), place)
    _print(found, place, judged)


def _config(
    how: QuantizeOptions, tuning: TuningOptions, judged: JudgedOptions
) -> integers.QuantizeConfig:
    chosen: Any = {"scale": how.scale, "clip": how.clip, "membrane": how.membrane}
    return integers.QuantizeConfig(
        unit=units.UnitChoice(chosen["scale"], chosen["clip"], how.percentile),
        membrane=chosen["membrane"],
        calibration=how.calibration,
        samples=judged.samples,
        epochs=tuning.epochs,
        learning_rate=tuning.lr,
        batch_size=tuning.batch_size,
        seed=tuning.seed,
        largest_count=how.largest_count,
    )


def _data(model: Model, judged: JudgedOptions) -> Data:
    """The data set that was asked for, or that the model was trained on."""
    name = judged.dataset_name or model.info.provenance.get("data")
    if not isinstance(name, str):
        raise errors.UsageError(
            "the model file does not say which data it was trained on; give --dataset_name"
        )
    found = datasets.load_data_of(
        model, name, judged.data_dir, download=judged.download, events=judged.events()
    )
    for remark in found.remarks:
        note(remark)
    return found


def _print(found: integers.QuantizeResult, place: Path, judged: JudgedOptions) -> None:
    if judged.output_format == "json":
        told = {"model": str(place), "bytes": place.stat().st_size}
        document = {"schema": integers.SCHEMA, **told, **found.to_dict()}
        terminal.show(json.dumps(document))
        return
    terminal.show(output.drawn(found))
    terminal.say(f"Wrote {place} ({place.stat().st_size:,} bytes)")
    output.print_next(["export", "event", place, *output.folder_flags(judged.data_dir)])
