"""`soul-deploy bench pruning`: several ways to prune one network, on one budget and schedule."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from soul_deploy.base import errors, files, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import config as resolve
from soul_deploy.cli import options, output, parsing, start_model
from soul_deploy.cli.common_options import given
from soul_deploy.data.datasets import Data
from soul_deploy.model.model import Model
from soul_deploy.prune import comparison
from soul_deploy.prune.comparison_table import Comparison
from soul_deploy.prune.ramp import RAMPS
from soul_deploy.prune.structured import config as structured
from soul_deploy.prune.structured import pipeline as by_channel
from soul_deploy.prune.structured import scores, selection
from soul_deploy.prune.target import QUANTITIES, Target
from soul_deploy.prune.unstructured import config as searching
from soul_deploy.prune.unstructured import pipeline as by_weight
from soul_deploy.prune.unstructured.methods import METHODS as WEIGHT_METHODS
from soul_deploy.training import train, trainer

SCHEMA = "soul-deploy/bench-pruning/1"
STRUCTURED, UNSTRUCTURED = "structured", "unstructured"
SCA = "sca"
METHODS = {STRUCTURED: (*scores.SCORES, SCA), UNSTRUCTURED: WEIGHT_METHODS}
"""What can be compared, by kind. sca: spike_membrane alone, whatever channels cost."""
ACTIVITY = ("spike", "membrane", "spike_membrane")
"""Scores that channels pay their cost from; the others are baselines, which rank by them alone."""
DEVICES = ("auto", "cpu", "cuda")
BUDGETS = ("prune_ratio", *(f"target_{quantity}" for quantity in QUANTITIES))


@dataclass(frozen=True)
class ComparedOptions:
    """What is compared, on which budget, how long."""

    methods: str = given(
        "spike_membrane",
        "With commas: scores of prune structured "
        f"({', '.join(scores.SCORES)}; sca: spike_membrane alone, whatever channels cost), and "
        "ways of prune unstructured as "
        f"{', '.join(f'{UNSTRUCTURED}:{name}' for name in METHODS[UNSTRUCTURED])}. The others are "
        "compared with the first.",
        metavar="LIST",
    )
    seeds: int = given(3, "How many seeds: --seed and those after it.")
    dense_epochs: int | None = given(
        None, "Epochs of the dense network, without --model_path. [default: --epochs]"
    )
    prune_ratio: float | None = given(
        None, "Budget of structured methods: the pruned share of all channels."
    )
    target_synops: float | None = given(
        None, "Budget: SynOps per sample, a share of the dense network's or a count."
    )
    target_params: float | None = given(
        None, "Budget: parameters, a share of the dense network's or a count."
    )
    target_connectivity: float | None = given(
        None, "Budget: live synapses, a share of the dense network's."
    )
    frozen_epochs: int | None = given(
        None, "Of --epochs, those at the end with fixed masks. [default: a third]"
    )
    prune_ramp: str = common.one_of(RAMPS, "How the pruned share rises, of channels.")
    regrow_ratio: float = given(0.1, "Share of the channels that comes back by gradient.")
    min_keep: float = given(0.0, "Share of its channels that every layer keeps.")
    prune_lr: float | None = given(None, "Of masks searched for. [default: --learning_rate]")

    def __post_init__(self) -> None:
        errors.require_least(1, seeds=self.seeds, dense_epochs=self.dense_epochs)
        errors.require_least(0, frozen_epochs=self.frozen_epochs)

    def entries(self, training: trainer.TrainConfig) -> tuple[comparison.Entry, ...]:
        """One per method. Raises UsageError, UnknownNameError."""
        target = self._target()
        frozen = training.epochs // 3 if self.frozen_epochs is None else self.frozen_epochs
        if frozen >= training.epochs:
            told = f"frozen_epochs {frozen} leaves nothing of --epochs {training.epochs}"
            raise errors.UsageError(f"{told} to prune in; give fewer")
        made = {STRUCTURED: self._by_channel, UNSTRUCTURED: self._by_weight}
        names = [word.strip() for word in self.methods.split(",") if word.strip()]
        if not names:
            raise errors.UsageError(f"--methods {self.methods!r}: the list is empty; give some")
        methods = [method_of(name) for name in names]
        return tuple(made[kind](name, target, training, frozen) for kind, name in methods)

    def _target(self) -> Target | None:
        """The budget, or None for prune_ratio. Raises UsageError unless one is given."""
        asked = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(asked) != 1:
            told = ", ".join(f"--{name}" for name in BUDGETS)
            raise errors.UsageError(f"{len(asked)} budgets given; needs one of {told}")
        given = {f"target_{quantity}": quantity for quantity in QUANTITIES}
        return Target(given[asked[0]], getattr(self, asked[0])) if asked[0] in given else None

    def _by_channel(
        self, method: Any, target: Target | None, training: trainer.TrainConfig, frozen: int
    ) -> comparison.Entry:
        ramp: Any = self.prune_ramp
        regrown = self.regrow_ratio if method in (*ACTIVITY, SCA) else 0.0
        schedule = structured.PruneSchedule(
            *(self.prune_ratio or 0.0, regrown, training.epochs), finetune_epochs=frozen, ramp=ramp
        )
        config = structured.ScaConfig(
            schedule,
            selection.Guard(min_keep=self.min_keep),
            "spike_membrane" if method == SCA else method,
            target=target,
            budget_rule="per_cost" if method in ACTIVITY else "score",
        )
        name = f"{STRUCTURED}:{method}"
        return comparison.Entry(name, by_channel.prune_structured, config, training)

    def _by_weight(
        self, method: Any, target: Target | None, training: trainer.TrainConfig, frozen: int
    ) -> comparison.Entry:
        if target is None:
            told = f"{UNSTRUCTURED} methods prune no share of the channels"
            raise errors.UsageError(f"{told}; give a --target_… or leave them out")
        finetune = None
        if frozen:
            rate, schedule = training.learning_rate, training.schedule
            finetune = searching.FinetuneConfig(frozen, rate, schedule)
        ramp: Any = "constant" if method == "search" else self.prune_ramp
        how = {"method": method, "prune_ramp": ramp, "prune_lr": self.prune_lr}
        config = searching.SearchConfig(target=target, finetune=finetune, **how)
        training = replace(training, epochs=training.epochs - frozen)
        name = f"{UNSTRUCTURED}:{method}"
        return comparison.Entry(name, by_weight.prune_unstructured, config, training)


def method_of(word: str) -> tuple[str, str]:
    """Kind and name of a method: `l1` and `structured:l1` are one. Raises UnknownNameError."""
    kind, colon, name = word.replace("-", "_").rpartition(":")
    kind = errors.known("kind of method", kind, METHODS) if colon else STRUCTURED
    return kind, errors.known(f"{kind} method", name, METHODS[kind])


@click.command(
    cls=parsing.SoulCommand,
    recipes_of="prune structured",
    example="bench pruning --model spikingvgg5 --hidden 64 --dataset_name digits --methods "
    "spike_membrane,membrane --prune_ratio 0.5 --epochs 3 -o compared",
)
@start_model.model_path_option("Trained network, the same for all seeds: a model file")
@options.network_options("spikingvgg9")
@options.data_options
@common.option_group("compared", ComparedOptions)
@options.learning_options
@common.option("--device", type=common.choice(DEVICES), default="auto", heading="Training")
@common.threads_option(heading="Training")
@common.option(
    *("--output", "-o", "folder"),
    type=options.FOLDER,
    default=Path("bench_pruning"),
    help="Folder of the runs: a model file and the figures of each, read again by a rerun.",
    heading="Files",
)
@common.format_option()
@click.pass_context
def pruning(
    context: click.Context,
    model_path: Path | None,
    network: options.NetworkChoice,
    data: options.DataOptions,
    compared: ComparedOptions,
    learning: options.LearningOptions,
    device: str,
    threads: int | None,
    folder: Path,
    output_format: str,
) -> None:
    """Compare methods of pruning: one network, one budget, one schedule, several seeds.

    Without --model_path a dense network is trained first with each seed, and all methods prune it.
    Printed are test accuracies, mean and standard deviation, what is left, and the differences to
    the first method, paired by seed. Runs whose files are in the folder are not repeated.
    """
    training, seeds = resolve.recipe_of(learning), _seeds(learning.seed, compared.seeds)
    task = resolve.task_of(network, data, learning.seed)
    if model_path is not None and compared.dense_epochs is not None:
        told = "--dense_epochs given, but the network of --model_path is trained already"
        raise errors.UsageError(f"{told}; leave one of them out")
    place = train.prepare_device(device, threads).type
    start, task = start_model.started(model_path, task, context)
    training = resolve.on_data(training, learning, task.data)
    entries = compared.entries(training)
    files.require_writable(folder / "probe.json")
    loaded = start_model.data_for(data, task, start)
    begin: comparison.Start = partial(_fresh, task, loaded)
    dense: trainer.TrainConfig | None = replace(
        training, epochs=compared.dense_epochs or training.epochs
    )
    if start is not None:
        begin, dense = start_model.network(start, task, loaded), None
    found = comparison.compare_pruning(
        *(begin, loaded, entries, seeds, folder),
        dense=dense,
        shared=_shared(compared, learning),
        device=place,
    )
    _print(found, folder, output_format)


def _seeds(first: int, count: int) -> range:
    errors.require_seed(first + count - 1)
    return range(first, first + count)


def _fresh(task: resolve.Task, data: Data, seed: int) -> Model:
    return resolve.new_model(replace(task, seed=seed), data)


def _shared(compared: ComparedOptions, learning: options.LearningOptions) -> dict[str, Any]:
    """Budget, schedule and how weights are learned: what runs in one folder have in common."""
    apart = ("methods", "seeds", "dense_epochs", "seed")
    given = asdict(compared) | asdict(learning)
    return {"options": {name: value for name, value in given.items() if name not in apart}}


def _print(found: Comparison, folder: Path, output_format: str) -> None:
    """Tables, failures, where the models are. Raises SoulDeployError if every run failed."""
    table = found.table()
    document = {**found.to_dict(), "folder": str(folder)}
    output.print_result(output_format, SCHEMA, document, table.title, table.columns, table.rows)
    if output_format != "json":
        for part in found.parts()[1:]:
            terminal.show(output.drawn([part]))
        terminal.say(f"Models and figures: {folder}")
    if all(run.error for run in found.runs if run.entry in found.entries):
        raise errors.SoulDeployError(f"no run succeeded; the first: {found.failed[0].error}")
