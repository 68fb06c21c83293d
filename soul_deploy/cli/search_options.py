"""The options of `soul-deploy prune unstructured` that say what is pruned and how."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from soul_deploy.base import errors
from soul_deploy.cli import curve, parsing
from soul_deploy.cli.common_options import given
from soul_deploy.prune.channel_groups import REMOVAL_HELP, RESIDUAL
from soul_deploy.prune.ramp import RAMPS
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured.config import FinetuneConfig, SearchConfig
from soul_deploy.prune.unstructured.loss import RULES
from soul_deploy.prune.unstructured.methods import METHODS
from soul_deploy.training import lr_schedules, recipes, trainer

AS_GIVEN = ("penalty_lmbda", *("accumulate_step", "prune_lr", "prune_weight_decay"))
"""Options that `SearchConfig` takes as they are."""


@dataclass(frozen=True)
class MaskOptions:
    """What is masked: layers, kinds, how alphas begin and what each entry costs."""

    weight_prune_layers: str = given(
        "all",
        "Convolutions and linear layers whose weights are masked, counted from 0 in forward order.",
        cls=parsing.ListOption,
    )
    neuron_prune_layers: str = given(
        "all",
        "Spiking layers whose neurons are masked; all: those behind a convolution but the "
        "first and the output.",
        cls=parsing.ListOption,
    )
    not_prune_weight: bool = given(False, "No weight masks.")
    not_prune_neuron: bool = given(False, "No neuron masks; without both kinds it only trains.")
    mask_init_factor: str = given(
        "0 0 0 0",
        "Start of the mask parameters: weights mean, neurons mean, weights std, neurons std.",
        cls=parsing.ListOption,
    )
    penalty_coef: str = given(
        recipes.AUTO,
        "authors: the paper's code; exact: counted on this network; params: parameters; auto: "
        "authors, or params with --target_params.",
    )
    round_to: int = given(1, "Compact channel counts are multiples of this.")
    residual: str = given("coupled", REMOVAL_HELP)

    def indexes(self) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The chosen projections and populations, each None for the default. Raises UsageError."""
        return (
            parsing.parse_indexes("weight_prune_layers", self.weight_prune_layers),
            parsing.parse_indexes("neuron_prune_layers", self.neuron_prune_layers),
        )


@dataclass(frozen=True)
class SearchOptions:
    """How masks are searched for, and what follows."""

    method: str = given(
        "search",
        "search: masks are trained; magnitude, random: baselines, by the weights' size or at "
        "random, with hard masks over the same epochs. They need a target.",
    )
    prune_ramp: str = given(
        "constant",
        "How a baseline gets to its target over the epochs: constant (at once), linear, cubic.",
    )
    penalty_lmbda: float | None = given(
        None,
        "lambda; with a target, where it starts. "
        "[default: 1e-11; with a target, what suits it on the first batch]",
    )
    target_connectivity: str | None = curve.given_targets(
        "Steer lambda so that this share of the synapses is left, within 5 % of it. Of several, "
        "falling (0.5,0.2), each goes on from the network before it."
    )
    target_synops: str | None = curve.given_targets(
        "As target_connectivity, for SynOps per sample of the validation split: a share of the "
        "dense network's (0.1; needs --model_path), or a count."
    )
    target_params: str | None = curve.given_targets(
        "As target_connectivity, for kept weights and all other trained values: shares or counts."
    )
    temp_scheduler: str = given(
        "5 1000",
        "init final [T0 Tmax], or w_init n_init w_final n_final T0 Tmax (T in epochs).",
        cls=parsing.ListOption,
    )
    accumulate_step: int = given(1, "Batches to an optimizer step.")
    prune_optimizer: str | None = given(None, "Of the masks. [default: --optimizer]")
    prune_lr: float | None = given(None, "Of the masks. [default: --learning_rate]")
    prune_weight_decay: float = given(0.0, "Of the masks.")
    finetune: bool = given(
        False, "Train on with fixed masks after the search.", "--finetune/--no_finetune"
    )
    epoch_finetune: int = given(200, "Epochs of the fine-tuning.")
    finetune_lr: float = given(1e-4, "Learning rate of the fine-tuning.")
    finetune_lr_scheduler: str = given(
        "constant", "As --scheduler, over the fine-tuning.", cls=parsing.ListOption
    )
    reset_optimizer: bool = given(False, "Forget the optimizer's moments before fine-tuning.")
    save_latest: bool = given(False, "Write the hard model after every epoch.")

    def config(self, masking: MaskOptions) -> SearchConfig:
        """The search as asked for, of all layers. Raises UsageError."""
        optimizer = self.prune_optimizer
        coef: Any = errors.known("penalty_coef", masking.penalty_coef, (*RULES, recipes.AUTO))
        schedule = lr_schedules.parse_schedule([self.finetune_lr_scheduler])
        finetune = FinetuneConfig(
            self.epoch_finetune, self.finetune_lr, schedule, self.reset_optimizer
        )
        if optimizer is not None:
            optimizer = errors.known("prune_optimizer", optimizer, trainer.OPTIMIZERS)
        return SearchConfig(
            **{name: getattr(self, name) for name in AS_GIVEN},
            penalty_coef=None if coef == recipes.AUTO else coef,
            temp_scheduler=number_list("temp_scheduler", self.temp_scheduler),
            mask_init_factor=number_list("mask_init_factor", masking.mask_init_factor),
            target=next(iter(self.targets()), None),
            method=errors.known("method", self.method, METHODS),
            prune_ramp=errors.known("prune_ramp", self.prune_ramp, RAMPS),
            prune_optimizer=optimizer,
            finetune=finetune if self.finetune else None,
            round_to=masking.round_to,
            residual=errors.known("residual", masking.residual, RESIDUAL),
        )

    def targets(self) -> tuple[Target, ...]:
        """Those that are given, if any, of one quantity. Raises UsageError."""
        return curve.targets_of(self)

    def idle(self, flags: Collection[str]) -> list[str]:
        """Those of `flags` that do nothing, since there is no fine-tuning."""
        names = ("epoch_finetune", "finetune_lr", "finetune_lr_scheduler", "reset_optimizer")
        return [] if self.finetune else [f"--{name}" for name in names if name in flags]


def number_list(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a list such as `5 1000` or `[5, 1000]`. Raises UsageError."""
    found = parsing.words(text)
    try:
        return tuple(float(word) for word in found)
    except ValueError:
        raise errors.UsageError(f"{name} {text!r}: give numbers, such as 0 1 or [0, 1]") from None
