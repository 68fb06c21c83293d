"""`soul-deploy prune unstructured`: search for masks of weights and neurons, fine-tune, remove."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base import errors, terminal
from soul_deploy.base.files import file_sha256, require_file
from soul_deploy.cli import config as resolve
from soul_deploy.cli import options, output, parsing, start_model
from soul_deploy.cli.common_options import dry_run_option, option, option_group
from soul_deploy.cli.search_options import MaskOptions, SearchOptions
from soul_deploy.data.datasets import Data
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.file import save
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.unstructured import masks, pipeline, pruning, search
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.log import check_tensorboard
from soul_deploy.training import checkpoint, checkpoint_manager, messages, trainer

SCHEMA = "soul-deploy/prune-unstructured/1"


@click.command(
    cls=parsing.SoulCommand,
    example="prune unstructured --model spikingvgg5 --dataset_name digits --epochs 2",
)
@option(*("--mode", "-mode"), default="search", help="search, as in Soul's script.")
@start_model.model_path_option("Trained network to start from: a model file")
@dry_run_option("Print what would be masked; no file is written.")
@options.network_options("spikingvgg9")
@options.data_options
@option_group("masking", MaskOptions)
@option_group("searching", SearchOptions)
@options.learning_options(epochs=150, batch_size=128, scheduler="constant")
@options.run_options
@options.resume_options
@click.pass_context
def unstructured(
    context: click.Context,
    mode: str,
    model_path: Path | None,
    dry_run: bool,
    network: options.NetworkChoice,
    data: options.DataOptions,
    masking: MaskOptions,
    searching: SearchOptions,
    learning: options.LearningOptions,
    run: options.RunOptions,
    keeping: options.ResumeOptions,
) -> None:
    """Prune single weights and neurons by trainable masks, then remove what died.

    Masks are searched for with a penalty on synaptic operations and a rising temperature; with
    --finetune the network is then trained on with the masks fixed. At the end the masked network
    and a compact one without its dead channels are written.
    """
    _check(mode, searching, masking, parsing.explicit_flags(context))
    task, training = resolve.task_of(network, data, learning.seed), resolve.recipe_of(learning)
    config = searching.config(masking)
    path = model_path and require_file(model_path)
    resolve.prepare(run)
    start, task = start_model.started(path, task, context)
    if not dry_run:
        resolve.require_outputs(*ResultPaths(task, run).outputs(searching.save_latest))
    loaded = start_model.data_for(data, task, start)
    model = _model(task, start, loaded, masking)
    config = replace(config, **_layers(masking, model.graph))
    plan = pipeline.plan_unstructured(model, config, path=path)
    if not dry_run:
        places = ResultPaths(task, run, masked=any(row.entries for row in plan.layers))
        asked: dict[str, Any] = {"task": asdict(task), "masking": asdict(masking)}
        asked["model_path"] = start and file_sha256(start.path)
        kept = resolve.checkpoints_of(keeping, places.checkpoints, **asked)
        job = Job(model, loaded, config, training, places, searching, kept, fresh=start is None)
        _carry_out(job, data.data_dir)
    elif distributed.hand_over():
        _print_preview(run.output_format, plan)


def _check(
    mode: str, searching: SearchOptions, masking: MaskOptions, given: Collection[str]
) -> None:
    """Raise UsageError for what needs no network to be seen wrong; tell what does nothing."""
    if mode.lower() != "search":
        raise errors.UnknownNameError("mode", mode, ("search",))
    masking.indexes()
    check_tensorboard(searching.tensorboard)
    idle = searching.idle(given)
    if idle:
        names = ", ".join(idle)
        messages.warn(f"{names} given without --finetune: there is no fine-tuning, so unused")


@dataclass(frozen=True)
class ResultPaths:
    """Where the files of a run go; masked: whether the network gets masks."""

    task: resolve.Task
    run: options.RunOptions
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
            checkpoint.checkpoint_path(self.checkpoints),
        ]


@dataclass(frozen=True)
class Job:
    """What is pruned and how, and where it goes; fresh: from random weights."""

    model: Model
    data: Data
    config: SearchConfig
    training: trainer.TrainConfig
    places: ResultPaths
    searching: SearchOptions
    checkpoints: checkpoint_manager.Checkpoints
    fresh: bool = field(kw_only=True)

    def described(self, model: Model, accuracies: Mapping[str, float]) -> Model:
        """`model`, with these accuracies."""
        made = {**model.info.provenance, "accuracy": self.told(accuracies)}
        return replace(model, info=replace(model.info, provenance=made))

    def told(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        """The accuracies, without that of random weights."""
        return {k: v for k, v in accuracies.items() if k != "start" or not self.fresh}


def _model(
    task: resolve.Task, start: start_model.Start | None, data: Data, masking: MaskOptions
) -> Model:
    """Where the search starts, knowing what its results will tell of that."""
    model = resolve.new_model(task, data) if start is None else start.network(data)
    made = resolve.facts(task) | {
        "masking": asdict(masking),
        "start": None if start is None else str(start.path),
        **start_model.kept(model),
    }
    return replace(model, info=replace(model.info, provenance=made))


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
            found[option], warning = parsing.existing_indexes(option, indexes, len(nodes), what)
            if warning:
                messages.warn(warning)
    return found


def _carry_out(job: Job, data_dir: Path) -> None:
    resolve.warn_of_replacing(job.places.result, pipeline.COMMAND)
    try:
        result = pipeline.prune_unstructured(
            *(job.model, job.data, job.config, job.training),
            device=job.places.run.device,
            checkpoints=job.checkpoints,
            log=job.places.log,
            tensorboard=job.searching.tensorboard,
            on_epoch=partial(_save_latest, job) if job.searching.save_latest else None,
            on_masked=partial(_save_masked, job),
        )
    except search.SearchStoppedError as stop:
        with job.checkpoints.watching():
            kept = _kept(job, stop)
        distributed.current().wait()  # until it is written: torchrun ends all when one has ended
        raise errors.SoulDeployError(f"{stop}{kept}") from stop
    with job.checkpoints.watching():
        if distributed.hand_over():
            _print_outcome(job, result, _write(job, result), data_dir)


def _save_masked(job: Job, masked: Model) -> None:
    if distributed.current().is_main:
        save(job.described(masked, masked.info.provenance["accuracy"]), job.places.result)


def _save_latest(job: Job, epoch: pruning.SearchEpoch) -> None:
    if distributed.current().is_main:
        latest = job.described(epoch.model, {"validation": epoch.hard_accuracy})
        save(latest, job.places.model("latest"))


def _kept(job: Job, stop: search.SearchStoppedError) -> str:
    if not distributed.current().is_main:
        return ""
    if stop.last_good is None:
        return ". No epoch was left to keep; no model was written"
    save(job.described(stop.last_good, {}), job.places.result)
    return f". The last model with all layers alive was kept in {job.places.result}"


def _write(job: Job, result: PruneResult) -> dict[str, Path]:
    """The models; returns all files of the run by what they are."""
    places = job.places
    accuracies = {k: v for k, v in result.accuracies.items() if k != "compact"}
    files = {"Masked model" if places.masked else "Model": places.result}
    if result.compact is not None and result.plan is not None:
        files["Compact model"] = places.compact
        save(job.described(result.compact, accuracies), places.compact)
        if not result.plan.removes:
            messages.note(result.plan.whole_note(places.compact, places.result))
    return files | {"Table of epochs": places.log.with_suffix(".csv")}


def _print_preview(output_format: str, plan: pipeline.MaskPlan) -> None:
    """What would be masked, and what each entry costs."""
    document, schema = plan.to_dict(), "soul-deploy/mask-plan/1"
    title = "Masks, and the penalty's coefficient of each of their entries"
    columns = ("layer", "masks", "index", "entries", "cost")
    rows = [tuple(row.values()) for row in document["layers"]]
    output.print_result(output_format, schema, document, title, columns, rows)


def _print_outcome(
    job: Job, result: PruneResult, files: Mapping[str, Path], data_dir: Path
) -> None:
    """Survivors, connectivity, SynOps, accuracies, files, the next command."""
    output_format, compact = job.places.run.output_format, result.compact
    connectivity, layers = result.connectivity, masks.survivors(result.masked)
    assert connectivity is not None
    tested, (before, after) = job.told(result.accuracies), result.synops or (0.0, 0.0)
    document = {
        "test_accuracy": tested,
        "connectivity": {
            **{name: getattr(connectivity, name) for name in ("share", "live", "dense")},
            "layers": [asdict(layer) for layer in connectivity.layers],
        },
        "synops_per_image": {"before": before, "after": after},
        "survivors": [asdict(layer) for layer in layers],
        "parameters": {
            "before": parameters(result.masked.state),
            "after": None if compact is None else parameters(compact.state),
        },
        "files": output.files_json(files),
    }
    rows = [(row.projection, *_shares(row.weights), *_shares(row.neurons)) for row in layers]
    columns, schema = ("layer", "weights", "kept", "neurons", "kept"), SCHEMA
    output.print_result(output_format, schema, document, "Survivors", columns, rows)
    if output_format == "json":
        return
    terminal.show(output.drawn(connectivity))
    fewer = f" ({before / after:.1f}× fewer)" if after else ""
    terminal.say(f"SynOps per image: {before:,.0f} → {after:,.0f}{fewer}")
    shares = ", ".join(f"{kind} {value:.2%}" for kind, value in tested.items())
    terminal.say(f"Test accuracy: {shares}")
    path = files["Model" if compact is None else "Compact model"]
    words = ["export", "event", path, *output.folder_flags(data_dir)]
    output.print_files(output_format, files, words)


def _shares(pair: tuple[int, int] | None) -> tuple[object, object]:
    if pair is None:
        return "", ""
    kept, total = pair
    return f"{total:,}", f"{kept:,} ({kept / total:.2%})"
