"""The options of `soul-deploy prune unstructured` that say what is pruned and how."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

import click

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.cli import common_options, options, parsing
from soul_deploy.prune.channel_groups import REMOVAL_HELP, residual_name
from soul_deploy.prune.unstructured.config import FinetuneConfig, SearchConfig
from soul_deploy.prune.unstructured.loss import CRITERIA, RULES
from soul_deploy.training import lr_schedules, trainer

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

    def indexes(self) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The chosen projections and populations, each None for the default. Raises UsageError."""
        return (
            parsing.parse_indexes("weight_prune_layers", self.weight_prune_layers),
            parsing.parse_indexes("neuron_prune_layers", self.neuron_prune_layers),
        )


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

    def config(self, masking: MaskOptions) -> SearchConfig:
        """The search as asked for, of all layers. Raises UsageError."""
        start, optimizer = masking.mask_init_factor, self.prune_optimizer
        schedule = lr_schedules.parse_schedule([self.finetune_lr_scheduler])
        finetune = FinetuneConfig(
            self.epoch_finetune, self.finetune_lr, schedule, self.reset_optimizer
        )
        return SearchConfig(
            target_connectivity=self.target_connectivity,
            penalty_lmbda=self.penalty_lmbda,
            penalty_coef=choice("penalty_coef", masking.penalty_coef, RULES),
            criterion=choice("criterion", self.criterion, CRITERIA),
            tet=self.tet,
            tet_phi=self.tet_phi,
            tet_lambda=self.tet_lambda,
            temp_scheduler=numbers("temp_scheduler", self.temp_scheduler),
            mask_init_factor=None if start is None else numbers("mask_init_factor", start),
            accumulate_step=self.accumulate_step,
            prune_optimizer=choice("prune_optimizer", optimizer, tuple(trainer.OPTIMIZERS))
            if optimizer
            else None,
            prune_lr=self.prune_lr,
            prune_weight_decay=self.prune_weight_decay,
            finetune=finetune if self.finetune else None,
            round_to=masking.round_to,
            residual=residual_name(masking.residual),
        )

    def idle(self, given: Collection[str]) -> list[str]:
        """Those of the flags `given` that do nothing, since there is no fine-tuning."""
        names = ("epoch_finetune", "finetune_lr", "finetune_lr_scheduler", "reset_optimizer")
        return [] if self.finetune else [f"--{name}" for name in names if name in given]


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a list such as `5 1000` or `[5, 1000]`. Raises UsageError."""
    found = parsing.words(text)
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


def _flag(*names: str, text: str) -> common_options.Decorator:
    return click.option(*names, is_flag=True, help=text)


def _value(name: str, kind: type, default: object, text: str) -> common_options.Decorator:
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def _list(name: str, default: str, text: str) -> common_options.Decorator:
    return click.option(name, cls=parsing.ListOption, default=default, show_default=True, help=text)


def mask_options() -> common_options.Decorator:
    """Soul's flags of what is pruned, and --penalty_coef, --round_to, --residual."""
    return options.option_group(
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
            cls=parsing.ListOption,
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


def search_options() -> common_options.Decorator:
    """Soul's flags of the search, and --target_connectivity, --reset_optimizer, --tensorboard."""
    return options.option_group(
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
