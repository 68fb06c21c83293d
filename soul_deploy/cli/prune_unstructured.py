"""`soul-deploy prune unstructured`: search for masks of weights and neurons, fine-tune, remove."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base.errors import SoulDeployError, UnknownNameError
from soul_deploy.base.files import file_sha256, require_file
from soul_deploy.base.terminal import say, show
from soul_deploy.cli import config as cli
from soul_deploy.cli.config import Task
from soul_deploy.cli.index_lists import SoulCommand, existing_indexes, explicit_flags
from soul_deploy.cli.options import (
    DataOptions,
    LearningOptions,
    NetworkChoice,
    ResumeOptions,
    RunOptions,
    data_options,
    learning_options,
    network_options,
    resume_options,
    run_options,
)
from soul_deploy.cli.output import folder_flags, print_files, print_result
from soul_deploy.cli.search_options import (
    MaskOptions,
    SearchOptions,
    mask_options,
    search_options,
)
from soul_deploy.cli.start_model import NAME_HELP, Start, assumed, open_start
from soul_deploy.data.datasets import Data
from soul_deploy.ir.graph import SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, from_module, save_model
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.log import check_tensorboard
from soul_deploy.prune.unstructured.masks import survivors
from soul_deploy.prune.unstructured.pipeline import (
    COMMAND,
    MaskPlan,
    plan_unstructured,
    prune_unstructured,
)
from soul_deploy.prune.unstructured.pruning import SearchEpoch
from soul_deploy.prune.unstructured.search import SearchStoppedError
from soul_deploy.training.checkpoint import checkpoint_path
from soul_deploy.training.checkpoint_manager import Checkpoints
from soul_deploy.training.messages import note, warn
from soul_deploy.training.trainer import TrainConfig


@click.command(cls=SoulCommand)
@click.option(
    *("--mode", "-mode"), default="search", show_default=True, help="search, as in Soul's script."
)
@click.option(
    *("--model_path", "-model_path"),
    type=click.Path(path_type=Path),
    help="Trained network to start from: a model file, or a .pt/.pth/.safetensors state dict. "
    + NAME_HELP,
)
@click.option("--dry_run", is_flag=True, help="Print what would be masked; no file is written.")
@network_options("spikingvgg9")
@data_options()
@mask_options()
@search_options()
@learning_options(epochs=150, batch_size=128, scheduler="constant")
@run_options()
@resume_options()
@click.pass_context
def unstructured(
    context: click.Context,
    mode: str,
    model_path: Path | None,
    dry_run: bool,
    network: NetworkChoice,
    data: DataOptions,
    masking: MaskOptions,
    searching: SearchOptions,
    learning: LearningOptions,
    run: RunOptions,
    keeping: ResumeOptions,
) -> None:
    """Prune single weights and neurons by trainable masks, then remove what died.

    Masks are searched for with a penalty on synaptic operations and a rising temperature; with
    --finetune the network is then trained on with the masks fixed. At the end the masked network
    and a compact one without its dead channels are written.
    """
    if mode.lower() != "search":
        raise UnknownNameError("mode", mode, ("search",))
    task, training = cli.task_of(network, data, learning.seed), cli.recipe_of(learning)
    config, given = searching.config(masking), explicit_flags(context)
    masking.indexes()
    check_tensorboard(searching.tensorboard)
    _warn_of_idle(searching, given)
    if model_path is not None:
        require_file(model_path)
    cli.prepare(run)
    start = None if model_path is None else open_start(model_path, task, given)
    task = task if start is None else start.task
    if not dry_run:
        cli.require_outputs(*Places(task, run).outputs(searching.save_latest))
    loaded = cli.load_task_data(cli.data_of(task, data), None if start is None else start.taken)
    model = _fresh(task, loaded) if start is None else start.network(loaded)
    config = replace(config, **_layers(masking, model.graph))
    plan = plan_unstructured(model, config, path=model_path)
    if dry_run:
        if distributed.hand_over():
            _print_preview(run.output_format, plan)
        return
    job = Job(
        task=task,
        training=training,
        config=config,
        masking=masking,
        run=run,
        start=start,
        places=Places(task, run, masked=any(row.entries for row in plan.layers)),
    )
    cli.warn_of_replacing(job.places.result, COMMAND)
    kept = cli.checkpoints_of(keeping, job.places.checkpoints, **job.settings())
    result = _pruned(job, model, loaded, kept, searching)
    if distributed.hand_over():
        with kept.watching():
            _print_outcome(job, result, _write(job, result), data.data_dir)


@dataclass(frozen=True)
class Places:
    """Where the files of a run go; masked: whether the network gets masks."""

    task: Task
    run: RunOptions
    masked: bool = True

    def model(self, kind: str) -> Path:
        return self.run.model_dir / f"{kind}_{self.task.stem}.safetensors"

    @property
    def result(self) -> Path:
        return self.model("pruned" if self.masked else "best")

    @property
    def compact(self) -> Path:
        return self.model("pruned").with_stem(f"{self.model('pruned').stem}_compact")

    @property
    def log(self) -> Path:
        return self.run.log_dir / f"unstructured_{self.task.stem}.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.run.model_dir / "checkpoints" / f"unstructured_{self.task.stem}"

    def outputs(self, save_latest: bool) -> list[Path]:
        """Every file that may be written, but for checkpoints' numbers."""
        kinds = ("pruned", "best", *(("latest",) if save_latest else ()))
        return [
            *(self.model(kind) for kind in kinds),
            *(self.compact, self.log, self.log.with_suffix(".csv")),
            checkpoint_path(self.checkpoints),
        ]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked for, as model files tell it."""

    task: Task
    training: TrainConfig
    config: SearchConfig
    masking: MaskOptions
    run: RunOptions
    start: Start | None
    places: Places

    def settings(self) -> dict[str, Any]:
        """What a run begins with, besides what `prune_unstructured` is given."""
        path = None if self.start is None else file_sha256(self.start.path)
        return {"task": asdict(self.task), "masking": asdict(self.masking), "model_path": path}

    def described(self, model: Model, accuracies: Mapping[str, float]) -> Model:
        """`model`, saying how it was made."""
        made = cli.provenance(
            self.task,
            self.training,
            self.training.epochs,
            command=COMMAND,
            search=self.config.recorded(self.training)["search"],
            masking=asdict(self.masking),
            finetune=self.config.recorded(self.training)["finetune"],
            start=None if self.start is None else str(self.start.path),
            accuracy=self.told(accuracies),
            **assumed(self.start),
        )
        return replace(model, info=replace(model.info, provenance=made))

    def told(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        """The accuracies, without that of a start that has only random weights."""
        return {k: v for k, v in accuracies.items() if k != "start" or self.start is not None}


def _warn_of_idle(searching: SearchOptions, given: Collection[str]) -> None:
    idle = searching.idle(given)
    if idle:
        warn(f"{', '.join(idle)} given without --finetune: there is no fine-tuning, so unused")


def _fresh(task: Task, data: Data) -> Model:
    """The task's network with random weights."""
    kind = data.input_kind
    info = ModelInfo("dense", data.normalization, data.classes, input_kind=kind)
    return from_module(cli.new_module(task, data), info)


def _layers(masking: MaskOptions, graph: SpikingGraph) -> dict[str, Any]:
    """The layers to mask, as `SearchConfig` takes them; a warning for indexes that don't exist."""
    weights, neurons = masking.indexes()
    found: dict[str, Any] = {}
    for name, left_out, indexes, nodes, what in (
        ("weight", masking.not_prune_weight, weights, graph.projections, "layers with weights"),
        ("neuron", masking.not_prune_neuron, neurons, graph.populations, "spiking layers"),
    ):
        option = f"{name}_prune_layers"
        found[option] = () if left_out else indexes
        if indexes is not None and not left_out:
            found[option], warning = existing_indexes(option, indexes, len(nodes), what)
            if warning:
                warn(warning)
    return found


def _pruned(
    job: Job, model: Model, data: Data, kept: Checkpoints, searching: SearchOptions
) -> PruneResult:
    """The result; of a search that stops, the last good model is kept. Raises SoulDeployError."""

    def save_latest(epoch: SearchEpoch) -> None:
        if searching.save_latest and distributed.current().is_main:
            latest = job.described(epoch.model, {"validation": epoch.hard_accuracy})
            save_model(job.places.model("latest"), latest)

    try:
        return prune_unstructured(
            model,
            data,
            job.config,
            job.training,
            device=job.run.device,
            checkpoints=kept,
            log=job.places.log,
            tensorboard=searching.tensorboard,
            on_epoch=save_latest,
        )
    except SearchStoppedError as stop:
        with kept.watching():
            left = _kept(job, stop)
        distributed.current().wait()  # until it is written: torchrun ends all when one has ended
        raise SoulDeployError(f"{stop}{left}") from stop


def _kept(job: Job, stop: SearchStoppedError) -> str:
    if not distributed.current().is_main:
        return ""
    if stop.last_good is None:
        return ". No epoch was left to keep; no model was written"
    save_model(job.places.result, job.described(stop.last_good, {}))
    return f". The last model with all layers alive was kept in {job.places.result}"


def _write(job: Job, result: PruneResult) -> dict[str, Path]:
    """The models; returns all files of the run by what they are."""
    places = job.places
    accuracies = {k: v for k, v in result.accuracies.items() if k != "compact"}
    files = {"Masked model" if places.masked else "Model": places.result}
    save_model(places.result, job.described(result.masked, accuracies))
    if result.compact is not None and result.plan is not None:
        files["Compact model"] = places.compact
        save_model(places.compact, job.described(result.compact, accuracies))
        if not result.plan.removes:
            note(result.plan.whole_note(places.compact, places.result))
    return files | {"Table of epochs": places.log.with_suffix(".csv")}


def _print_preview(output_format: str, plan: MaskPlan) -> None:
    """What would be masked, and what each entry costs."""
    document = plan.to_dict()
    rows = [tuple(row.values()) for row in document["layers"]]
    print_result(
        output_format,
        "soul-deploy/mask-plan/1",
        document,
        "Masks, and the penalty's coefficient of each of their entries",
        ("layer", "masks", "index", "entries", "cost"),
        rows,
    )


def _print_outcome(
    job: Job, result: PruneResult, files: Mapping[str, Path], data_dir: Path
) -> None:
    """Survivors, connectivity, SynOps, accuracies, files, the next command."""
    output_format, compact, layers = job.run.output_format, result.compact, survivors(result.masked)
    assert result.connectivity is not None and result.synops is not None
    connectivity, tested = result.connectivity, job.told(result.accuracies)
    before, after = result.synops
    document = {
        "test_accuracy": tested,
        "connectivity": {
            **{name: getattr(connectivity, name) for name in ("share", "live", "dense")},
            **asdict(connectivity),
        },
        "synops_per_image": {"before": before, "after": after},
        "survivors": [asdict(layer) for layer in layers],
        "parameters": {
            "before": parameters(result.masked.state),
            "after": None if compact is None else parameters(compact.state),
        },
        "files": {
            what: {"path": str(path), "bytes": path.stat().st_size} for what, path in files.items()
        },
    }
    rows = [(row.projection, *_shares(row.weights), *_shares(row.neurons)) for row in layers]
    columns, schema = (
        ("layer", "weights", "kept", "neurons", "kept"),
        "soul-deploy/prune-unstructured/1",
    )
    print_result(output_format, schema, document, "Survivors", columns, rows)
    if output_format == "json":
        return
    show(connectivity.table())
    fewer = f" ({before / after:.1f}× fewer)" if after else ""
    say(f"SynOps per image: {before:,.0f} → {after:,.0f}{fewer}")
    say(f"Test accuracy: {', '.join(f'{kind} {value:.2%}' for kind, value in tested.items())}")
    path = files["Model" if compact is None else "Compact model"]
    print_files(output_format, files, ["export", "event", path, *folder_flags(data_dir)])


def _shares(pair: tuple[int, int] | None) -> tuple[object, object]:
    if pair is None:
        return "", ""
    kept, total = pair
    return f"{total:,}", f"{kept:,} ({kept / total:.2%})"
