"""`soul-deploy prune unstructured`: search for masks of weights and neurons, fine-tune, remove."""

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any

import click

from soul_deploy import distributed
from soul_deploy.base.errors import SoulDeployError, UnknownNameError, UsageError
from soul_deploy.base.files import file_sha256, require_file
from soul_deploy.base.progress import status
from soul_deploy.cli.config import (
    checkpoints_of,
    data_of,
    load_task_data,
    new_module,
    prepare,
    provenance,
    recipe_of,
    require_outputs,
    task_of,
    warn_of_replacing,
)
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
from soul_deploy.cli.search_job import (
    Job,
    checkpoint_folder,
    compact_path,
    log_path,
    outputs,
    result_path,
)
from soul_deploy.cli.search_options import (
    MaskOptions,
    SearchOptions,
    mask_options,
    search_options,
)
from soul_deploy.cli.search_report import (
    Outcome,
    Recorder,
    check_tensorboard,
    note_of,
    print_outcome,
    print_preview,
)
from soul_deploy.cli.start_model import NAME_HELP, assumed, open_start
from soul_deploy.ir.graph import Convolution, SpikingGraph
from soul_deploy.model.model import Model, ModelInfo, from_module, save_model
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.channel_groups import residual_name
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.prune.unstructured.loops import FinetuneLoop, SearchLoop
from soul_deploy.prune.unstructured.masks import Masks, MaskStart, make_masks, maskable_neurons
from soul_deploy.prune.unstructured.penalty import coefficients
from soul_deploy.prune.unstructured.plan import Search, SearchStoppedError
from soul_deploy.prune.unstructured.search import Pruning
from soul_deploy.training.checkpoint_manager import (
    CheckpointManager,
    managed,
)
from soul_deploy.training.device import module_of
from soul_deploy.training.epoch_log import epoch_log
from soul_deploy.training.messages import note, warn
from soul_deploy.training.state import Bundle
from soul_deploy.training.trainer import accuracy


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
    task, recipe = task_of(network, data, learning.seed), recipe_of(learning)
    search, finetune = searching.search(learning, recipe), searching.finetuning()
    begin = masking.start(learning.seed, steered=search.target is not None)
    masking.weight_indexes(), masking.neuron_indexes()
    check_tensorboard(searching.tensorboard)
    _warn_of_idle(searching, explicit_flags(context))
    if model_path is not None:
        require_file(model_path)
    device = prepare(run)
    start = None if model_path is None else open_start(model_path, task, explicit_flags(context))
    task = task if start is None else start.task
    if not dry_run:
        require_outputs(*outputs(task, run, searching.save_latest))
    loaded = load_task_data(data_of(task, data), None if start is None else start.taken)
    if start is None:
        module = new_module(task, loaded).to(device)
    else:
        model = start.network(loaded)
        _check_start(start.path, model)
        module, begin = _unmasked(model, device), replace(begin, known=model.alphas)
    masks = _masks(module, masking, begin)
    _check_masked(masks, search)
    job = Job(
        *(
            task,
            data.data_dir,
            recipe,
            search,
            finetune,
            masking,
            loaded,
            module,
            masks,
            run,
            start,
        ),
        *(searching.save_latest, searching.tensorboard, keeping),
    )
    if dry_run:
        if distributed.hand_over():
            print_preview(run.output_format, module.graph, masks)
    else:
        warn_of_replacing(job.masked_path, "prune unstructured")
        with _keeper(job).watching() as keeper:
            _carry_out(job, keeper)


def _warn_of_idle(searching: SearchOptions, given: Collection[str]) -> None:
    idle = searching.idle(given)
    if idle:
        warn(f"{', '.join(idle)} given without --finetune: there is no fine-tuning, so unused")


def _check_start(path: Path, model: Model) -> None:
    if model.channel_masks or (model.neuron_masks and not model.alphas):
        raise UsageError(
            f"{path} is a masked network; start from a dense one, from its compact one "
            f"(soul-deploy prune compact {quote(str(path))}) if that has no masks left, or from "
            "the masked result of an earlier prune unstructured"
        )


def _unmasked(start: Model, device: Any) -> GraphModule:
    return module_of(replace(start, neuron_masks={}), device)


def _masks(module: GraphModule, masking: MaskOptions, begin: MaskStart) -> Masks:
    graph = module.graph
    weights = () if masking.not_prune_weight else _chosen_weights(graph, masking)
    neurons = () if masking.not_prune_neuron else _chosen_neurons(graph, masking)
    return make_masks(module, weights, neurons, coefficients(graph, masking.rule), begin)


def _chosen_weights(graph: SpikingGraph, masking: MaskOptions) -> tuple[str, ...]:
    names = [node.name for node in graph.projections]
    what = "layers with weights"
    chosen, warning = existing_indexes(
        "weight_prune_layers", masking.weight_indexes(), len(names), what
    )
    if warning:
        warn(warning)
    return tuple(names[index] for index in sorted(chosen))


def _chosen_neurons(graph: SpikingGraph, masking: MaskOptions) -> tuple[str, ...]:
    """Named populations; by default those behind a convolution, but the first and the output."""
    nodes, able = graph.populations, maskable_neurons(graph)
    indexes = masking.neuron_indexes()
    if indexes is None:
        behind = [n for n in nodes[1:] if isinstance(graph[n.inputs[0]], Convolution)]
        return tuple(node.name for node in behind if node.name in able)
    chosen, warning = existing_indexes("neuron_prune_layers", indexes, len(nodes), "spiking layers")
    if warning:
        warn(warning)
    names = tuple(nodes[index].name for index in sorted(chosen))
    refused = [name for name in names if name not in able]
    if refused:
        valid = [str(i) for i, node in enumerate(nodes) if node.name in able]
        raise UsageError(
            f"neuron_prune_layers: {', '.join(refused)} cannot be masked, its spikes are the "
            f"network's output; valid: {', '.join(valid)}"
        )
    return names


def _check_masked(masks: Masks, search: Search) -> None:
    if search.target is not None and not masks.weights:
        raise UsageError("target_connectivity needs weight masks; leave --not_prune_weight out")


def _keeper(job: Job) -> CheckpointManager:
    path = None if job.start is None else file_sha256(job.start.path)
    kept = checkpoints_of(
        job.keeping, checkpoint_folder(job.task, job.run), task=asdict(job.task), model_path=path
    )
    return managed(
        *(("search", "finetune"), kept, job.module, job.data, "prune unstructured"),
        recipe=job.recipe.recorded(),
        search=job.search.recorded(),
        finetune=None if job.finetune is None else asdict(job.finetune),
        masking=asdict(job.masking),
    )


def _carry_out(job: Job, keeper: CheckpointManager) -> None:
    module, data = job.module, job.data
    pruning = Pruning(module, data, job.recipe, job.search, job.masks)
    accuracies: dict[str, float] = {}
    before = pruning.synops(from_module(module, ModelInfo()))
    if job.start is not None:
        accuracies["start"] = accuracy(module, data, data.test)
    _train(job, pruning, keeper)
    if distributed.hand_over():
        _finish(job, pruning, accuracies, before)


def _finish(job: Job, pruning: Pruning, accuracies: dict[str, float], before: float) -> None:
    """Remove, test, write, print. before: SynOps per image at the start."""
    status("prune unstructured: removing and testing")
    module, data = job.module, job.data
    accuracies["masked"] = accuracy(module, data, data.test)
    masked = pruning.hard_model(_info(job, "masked", accuracies))
    if not job.masks.parameters():
        masked = replace(masked, info=replace(masked.info, stage="dense"))
    files = {"Masked model" if job.masks.parameters() else "Model": job.masked_path}
    save_model(job.masked_path, masked)
    compact = None
    if job.masks.parameters():
        residual = residual_name(job.masking.residual)
        plan = plan_removal(masked, round_to=job.masking.round_to, residual=residual)
        compact = remove(masked, plan)
        device = next(module.parameters()).device
        accuracies["compact"] = accuracy(module_of(compact, device), data, data.test)
        files["Compact model"] = compact_path(job.masked_path)
        save_model(files["Compact model"], replace(compact, alphas={}))
        if not plan.removes:
            note(plan.whole_note(files["Compact model"], job.masked_path))
    files["Table of epochs"] = log_path(job.task, job.run).with_suffix(".csv")
    synops = before, pruning.synops(masked)
    print_outcome(
        job.run.output_format,
        Outcome(*(masked, compact, pruning.meter.exact(), accuracies, synops, files, job.data_dir)),
    )


def _train(job: Job, pruning: Pruning, keeper: CheckpointManager) -> None:
    """Search and fine-tune; the module has hard masks then."""
    recorder = Recorder(log_path(job.task, job.run), tensorboard=job.tensorboard)
    pruning.after_step = keeper.after_step
    try:
        loop = SearchLoop(pruning)
        if not keeper.passed("search"):
            _follow(job, loop, recorder, keeper, "search", job.search.epochs)
    except SearchStoppedError as stop:
        kept = _kept(job, stop)
        distributed.current().wait()  # until it is written: torchrun ends all when one has ended
        raise SoulDeployError(f"{stop}{kept}") from stop
    job.masks.attach_hard(job.module)
    if job.finetune is not None:
        tuning = FinetuneLoop(pruning, job.finetune)
        _follow(job, tuning, recorder, keeper, "finetune", job.finetune.epochs)
    elif job.masks.parameters():
        warn(
            "not fine-tuned: the batch norms' running statistics belong to the soft masks of the "
            "search; give --finetune"
        )


def _follow(
    job: Job,
    loop: SearchLoop | FinetuneLoop,
    recorder: Recorder,
    keeper: CheckpointManager,
    label: str,
    epochs: int,
) -> None:
    pruning = loop.pruning
    with epoch_log(label, epochs, None) as log:
        pruning.tick = log.tick
        with keeper.loop(label, Bundle({"loop": loop, "recorder": recorder, "log": log})):
            for epoch in loop.run():
                log.epoch(epoch.result, note_of(epoch))
                recorder.add(epoch)
                if job.save_latest and distributed.current().is_main:
                    path = result_path(job.task, job.run, "latest")
                    accuracies = {"validation": epoch.hard_accuracy}
                    save_model(path, pruning.hard_model(_info(job, "masked", accuracies)))
                keeper.after_epoch()


def _kept(job: Job, stop: SearchStoppedError) -> str:
    if not distributed.current().is_main:
        return ""
    if stop.last_good is None:
        return ". No epoch was left to keep; no model was written"
    good = replace(stop.last_good, info=_info(job, "masked", {}))
    save_model(job.masked_path, good)
    return f". The last model with all layers alive was kept in {job.masked_path}"


def _info(job: Job, stage: Any, accuracies: dict[str, float]) -> ModelInfo:
    made = provenance(
        job.task,
        job.recipe,
        job.search.epochs,
        command="prune unstructured",
        search=job.search.recorded(),
        masking=asdict(job.masking),
        finetune=None if job.finetune is None else asdict(job.finetune),
        start=None if job.start is None else str(job.start.path),
        accuracy=dict(accuracies),
        **assumed(job.start),
    )
    data = job.data
    return ModelInfo(stage, data.normalization, data.classes, made, input_kind=data.input_kind)
