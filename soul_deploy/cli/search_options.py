"""The options of `soul-deploy prune unstructured` that say what is pruned and how."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TypeVar

import click

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.cli.index_lists import ListOption, parse_indexes
from soul_deploy.cli.options import Decorator, LearningOptions, option_group
from soul_deploy.cli.parsing import words
from soul_deploy.prune.channel_groups import REMOVAL_HELP, residual_name
from soul_deploy.prune.unstructured.lambda_control import check_target
from soul_deploy.prune.unstructured.masks import MaskStart, Temperature
from soul_deploy.prune.unstructured.objective import CRITERIA, Objective
from soul_deploy.prune.unstructured.penalty import CoefficientRule
from soul_deploy.prune.unstructured.plan import Finetune, Search
from soul_deploy.training.lr_schedules import parse_schedule
from soul_deploy.training.trainer import OPTIMIZERS, TrainConfig

RULES: tuple[CoefficientRule, ...] = ("authors", "exact")
STEERED_START = (0.1, 0.1)
"""Means of alpha when connectivity is steered: it then falls from 100 %."""
NameT = TypeVar("NameT", bound=str)


@dataclass(frozen=True)
class MaskOptions:
    """What is masked: layers, kinds, how alphas begin and what each entry costs."""

    weight_prune_layers: str
    neuron_prune_layers: str
    not_prune_weight: bool
    not_prune_neuron: bool
    mask_init_factor: str | None
    penalty_coef: str
    round_to: int
    residual: str

    def __post_init__(self) -> None:
        choice("penalty_coef", self.penalty_coef, RULES)
        residual_name(self.residual)
        if self.round_to < 1:
            raise UsageError(f"round_to {self.round_to} must be at least 1")

    @property
    def rule(self) -> CoefficientRule:
        """Which coefficients."""
        return choice("penalty_coef", self.penalty_coef, RULES)

    def start(self, seed: int, *, steered: bool) -> MaskStart:
        """How alphas begin; `steered`: towards a target. Raises UsageError."""
        if self.mask_init_factor is None:
            return MaskStart(*(STEERED_START if steered else (0.0, 0.0)), seed=seed)
        factors = numbers("mask_init_factor", self.mask_init_factor)
        if len(factors) != 4:
            raise UsageError(
                "mask_init_factor takes 4 numbers (weights mean, neurons mean, weights std, "
                f"neurons std), got {len(factors)}"
            )
        return MaskStart(*factors, seed=seed)

    def weight_indexes(self) -> tuple[int, ...] | None:
        """The chosen projections, or None for all. Raises UsageError."""
        return parse_indexes("weight_prune_layers", self.weight_prune_layers)

    def neuron_indexes(self) -> tuple[int, ...] | None:
        """The chosen populations, or None for all that are masked by default."""
        return parse_indexes("neuron_prune_layers", self.neuron_prune_layers)


@dataclass(frozen=True)
class SearchOptions:
    """How masks are searched for, and what follows."""

    criterion: str
    tet: bool
    tet_phi: float
    tet_lambda: float
    penalty_lmbda: float | None
    target_connectivity: float | None
    temp_scheduler: str
    accumulate_step: int
    prune_optimizer: str | None
    prune_lr: float | None
    prune_weight_decay: float
    finetune: bool
    epoch_finetune: int
    finetune_lr: float
    finetune_lr_scheduler: str
    reset_optimizer: bool
    save_latest: bool
    tensorboard: bool

    def __post_init__(self) -> None:
        lmbda = self.penalty_lmbda
        if lmbda is not None and not (math.isfinite(lmbda) and lmbda >= 0):
            raise UsageError(f"penalty_lmbda {lmbda} must be a finite number from 0")
        if lmbda == 0 and self.target_connectivity is not None:
            raise UsageError(
                "penalty_lmbda 0 cannot be steered to a target_connectivity; leave one of them out"
            )
        check_target(self.target_connectivity)
        for name, value in (
            ("accumulate_step", self.accumulate_step),
            ("epoch_finetune", self.epoch_finetune),
        ):
            if value < 1:
                raise UsageError(f"{name} {value} must be at least 1")
        for name, rate in (("finetune_lr", self.finetune_lr), ("prune_lr", self.prune_lr)):
            if rate is not None and not 0 < rate < math.inf:
                raise UsageError(f"{name} {rate} must be above 0 and finite")
        if not 0 <= self.prune_weight_decay < math.inf:
            raise UsageError(
                f"prune_weight_decay {self.prune_weight_decay} must not be negative, and finite"
            )

    def search(self, learning: LearningOptions, recipe: TrainConfig) -> Search:
        """The search as asked for; checks everything that can be known. Raises UsageError."""
        given = self.penalty_lmbda
        automatic = given is None and self.target_connectivity is not None
        return Search(
            learning.epochs,
            Temperature.of(numbers("temp_scheduler", self.temp_scheduler), learning.epochs),
            self._mask_recipe(recipe),
            None if automatic else (1e-11 if given is None else given),
            self.target_connectivity,
            self.accumulate_step,
            Objective(
                choice("criterion", self.criterion, CRITERIA),
                self.tet,
                self.tet_phi,
                self.tet_lambda,
            ),
        )

    def _mask_recipe(self, recipe: TrainConfig) -> TrainConfig:
        return replace(
            recipe,
            optimizer=choice(
                "prune_optimizer", self.prune_optimizer or recipe.optimizer, tuple(OPTIMIZERS)
            ),
            learning_rate=recipe.learning_rate if self.prune_lr is None else self.prune_lr,
            weight_decay=self.prune_weight_decay,
        )

    def idle(self, given: Collection[str]) -> list[str]:
        """Those of the flags `given` that do nothing, since there is no fine-tuning."""
        names = ("epoch_finetune", "finetune_lr", "finetune_lr_scheduler", "reset_optimizer")
        return [] if self.finetune else [f"--{name}" for name in names if name in given]

    def finetuning(self) -> Finetune | None:
        """The fine-tuning as asked for, or None. Raises UsageError."""
        schedule = parse_schedule([self.finetune_lr_scheduler])
        plan = Finetune(self.epoch_finetune, self.finetune_lr, schedule, self.reset_optimizer)
        return plan if self.finetune else None


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a list such as `5 1000` or `[5, 1000]`. Raises UsageError."""
    found = words(text)
    try:
        return tuple(float(word) for word in found)
    except ValueError:
        raise UsageError(f"{name} {text!r}: give numbers, such as 0 1 or [0, 1]") from None


def choice(name: str, given: str, valid: tuple[NameT, ...]) -> NameT:
    """`given` as one of `valid`, whatever its case. Raises UnknownNameError."""
    for candidate in valid:
        if candidate == given.lower():
            return candidate
    raise UnknownNameError(name, given, valid)


def _flag(*names: str, text: str) -> Decorator:
    return click.option(*names, is_flag=True, help=text)


def _value(name: str, kind: type, default: object, text: str) -> Decorator:
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def _list(name: str, default: str, text: str) -> Decorator:
    return click.option(name, cls=ListOption, default=default, show_default=True, help=text)


def mask_options() -> Decorator:
    """Soul's flags of what is pruned, and --penalty_coef, --round_to, --residual."""
    return option_group(
        "masking",
        MaskOptions,
        _list(
            "--weight_prune_layers",
            "all",
            "Convolutions and linear layers whose weights are masked, counted from 0 in forward "
            "order.",
        ),
        _list(
            "--neuron_prune_layers",
            "all",
            "Spiking layers whose neurons are masked; all: those behind a convolution but the "
            "first and the output.",
        ),
        _flag("--not_prune_weight", text="No weight masks."),
        _flag("--not_prune_neuron", text="No neuron masks; without both kinds it only trains."),
        click.option(
            "--mask_init_factor",
            cls=ListOption,
            default=None,
            help="Start of the mask parameters: weights mean, neurons mean, weights std, neurons "
            "std. [default: 0 0 0 0; with a target 0.1 0.1 0 0, so that all are kept at first]",
        ),
        _value(
            "--penalty_coef",
            str,
            "authors",
            "authors: the paper's code; exact: counted on this network.",
        ),
        _value("--round_to", int, 1, "Compact channel counts are multiples of this."),
        _value("--residual", str, "coupled", REMOVAL_HELP),
    )


def search_options() -> Decorator:
    """Soul's flags of the search, and --target_connectivity, --reset_optimizer, --tensorboard."""
    return option_group(
        "searching",
        SearchOptions,
        _value("--criterion", str, "MSE", "MSE (one-hot targets) or CE."),
        _flag("--TET", "tet", text="Loss of every step's output, not of their mean."),
        click.option("--TET_phi", "tet_phi", type=float, default=1.0, show_default=True),
        click.option("--TET_lambda", "tet_lambda", type=float, default=0.0, show_default=True),
        click.option(
            "--penalty_lmbda",
            type=float,
            default=None,
            help="lambda; with a target, where it starts. "
            "[default: 1e-11; with a target, balanced on the first batch]",
        ),
        _value(
            "--target_connectivity",
            float,
            None,
            "Steer lambda so that this share of the synapses is left, within 10 % of it.",
        ),
        _list(
            "--temp_scheduler",
            "5 1000",
            "init final [T0 Tmax], or w_init n_init w_final n_final T0 Tmax (T in epochs).",
        ),
        _value("--accumulate_step", int, 1, "Batches to an optimizer step."),
        _value("--prune_optimizer", str, None, "Of the masks. [default: --optimizer]"),
        _value("--prune_lr", float, None, "Of the masks. [default: --learning_rate]"),
        _value("--prune_weight_decay", float, 0.0, "Of the masks."),
        _flag("--finetune", text="Train on with fixed masks after the search."),
        _value("--epoch_finetune", int, 200, "Epochs of the fine-tuning."),
        _value("--finetune_lr", float, 1e-4, "Learning rate of the fine-tuning."),
        _list("--finetune_lr_scheduler", "constant", "As --scheduler, over the fine-tuning."),
        _flag("--reset_optimizer", text="Forget the optimizer's moments before fine-tuning."),
        _flag("--save_latest", text="Write the hard model after every epoch."),
        _flag("--tensorboard", text="Also log for tensorboard (extra: tensorboard)."),
    )
