"""What a search for masks of weights and neurons is asked for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from soul_deploy.base import Array, errors
from soul_deploy.prune.channel_groups import RESIDUAL, Residual
from soul_deploy.prune.ramp import RAMPS, Ramp
from soul_deploy.prune.target import Target
from soul_deploy.prune.unstructured import loss, masks
from soul_deploy.prune.unstructured.methods import METHODS, Method
from soul_deploy.training import lr_schedules, trainer

LAMBDA = 1e-11
CONSTANT = lr_schedules.Schedule("constant")


@dataclass(frozen=True)
class FinetuneConfig:
    """Training with fixed masks after a search, without the penalty; the best epoch stays."""

    epochs: int = 200
    learning_rate: float = 1e-4
    schedule: lr_schedules.Schedule = CONSTANT
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        errors.require_least(1, epoch_finetune=self.epochs)
        _require_rate("finetune_lr", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A search for masks; how weights are trained meanwhile, and how long, `TrainConfig` says.

    weight_prune_layers  projections whose weights are masked, by name or index; None: all
    neuron_prune_layers  populations whose neurons are masked; None: those behind a convolution, but
                         the first and the output
    target               lambda is steered so that the network ends within 5 % of it; params: kept
                         weights and all other trained values
    method               search: masks are trained; magnitude, random: baselines without, which need
                         a target; prune_ramp: how they get there over the epochs
    penalty_lmbda        lambda; with a target, where it starts. None: 1e-11, or with a target: what
                         suits it on the first batch
    penalty_coef         what an entry costs; "authors": the published code's coefficients, "exact":
                         counted on this network, "params": its parameters. None: "authors", or with
                         a target of parameters "params"
    temp_scheduler       init, final[, T0, Tmax], or w_init, n_init, w_final, n_final, T0, Tmax;
                         T0 and Tmax are epochs
    mask_init_factor     alpha's mean for weights and for neurons, and both standard deviations
    accumulate_step      batches to an optimizer step
    prune_optimizer      of the masks, as prune_lr; None: that of the weights
    finetune             None: no fine-tuning
    round_to, residual   as `plan_removal` takes them
    """

    weight_prune_layers: masks.Layers = None
    neuron_prune_layers: masks.Layers = None
    target: Target | None = None
    method: Method = "search"
    prune_ramp: Ramp = "constant"
    penalty_lmbda: float | None = None
    penalty_coef: loss.CoefficientRule | None = None
    temp_scheduler: Sequence[float] = (5, 1000)
    mask_init_factor: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    accumulate_step: int = 1
    prune_optimizer: str | None = None
    prune_lr: float | None = None
    prune_weight_decay: float = 0.0
    finetune: FinetuneConfig | None = None
    round_to: int = 1
    residual: Residual = "coupled"

    def __post_init__(self) -> None:
        lmbda, decay = self.penalty_lmbda, self.prune_weight_decay
        if lmbda is not None and not (math.isfinite(lmbda) and lmbda >= 0):
            raise errors.UsageError(f"penalty_lmbda {lmbda} must be a finite number from 0")
        if lmbda == 0 and self.target is not None:
            raise errors.UsageError(
                f"penalty_lmbda 0 cannot be steered to {self.target}; leave one of them out"
            )
        self._check_method()
        errors.require_least(1, accumulate_step=self.accumulate_step, round_to=self.round_to)
        if self.prune_lr is not None:
            _require_rate("prune_lr", self.prune_lr)
        if not 0 <= decay < math.inf:
            raise errors.UsageError(f"prune_weight_decay {decay} must not be negative, and finite")
        errors.require_known("penalty_coef", self.cost_rule, loss.RULES)
        if self.prune_optimizer is not None:
            errors.require_known("prune_optimizer", self.prune_optimizer, trainer.OPTIMIZERS)
        errors.known("residual", self.residual, RESIDUAL)
        for checked in (self.temperature(1), self.mask_start(0)):
            assert checked is not None, "each of them has raised UsageError before"

    def _check_method(self) -> None:
        errors.require_known("method", self.method, METHODS)
        errors.require_known("prune_ramp", self.prune_ramp, RAMPS)
        if self.method == "search" and self.prune_ramp != "constant":
            raise errors.UsageError(
                f"prune_ramp {self.prune_ramp} is for method magnitude or random; a search finds "
                "its own way"
            )
        if self.method != "search" and self.target is None:
            raise errors.UsageError(f"method {self.method} needs a target: give one of target_*")
        if self.method != "search" and self.neuron_prune_layers:
            raise errors.UsageError(
                f"method {self.method} prunes weights alone; leave neuron_prune_layers out"
            )

    def temperature(self, epochs: int) -> masks.Temperature:
        """The masks' temperature over a search of so many epochs. Raises UsageError."""
        return masks.Temperature.of(self.temp_scheduler, epochs)

    def mask_start(self, seed: int, known: Mapping[str, Array] | None = None) -> masks.MaskStart:
        """How alphas begin; known: those of an earlier search. Raises UsageError."""
        factors = self.mask_init_factor
        if len(factors) != 4:
            raise errors.UsageError(
                "mask_init_factor takes 4 numbers (weights mean, neurons mean, weights std, "
                f"neurons std), got {len(factors)}"
            )
        weights, neurons, weight_std, neuron_std = factors
        return masks.MaskStart(weights, neurons, weight_std, neuron_std, seed, known or {})

    def mask_training(self, training: trainer.TrainConfig) -> trainer.TrainConfig:
        """How the masks are trained beside weights that are trained as `training` says."""
        rate = self.prune_lr
        return replace(
            training,
            optimizer=self.prune_optimizer or training.optimizer,
            learning_rate=training.learning_rate if rate is None else rate,
            weight_decay=self.prune_weight_decay,
        )

    @property
    def cost_rule(self) -> loss.CoefficientRule:
        """What an entry costs."""
        values = self.target is not None and self.target.quantity == "params"
        return self.penalty_coef or ("params" if values else "authors")

    @property
    def first_lmbda(self) -> float | None:
        """Lambda at the start; None: what suits the target on the first batch."""
        automatic = self.penalty_lmbda is None and self.target is None
        return LAMBDA if automatic else self.penalty_lmbda

    def recorded(self, training: trainer.TrainConfig) -> dict[str, Any]:
        """The search and the fine-tuning as files hold them; plain JSON data."""
        masks_trained = self.mask_training(training).recorded()
        del masks_trained["objective"]  # the weights' and theirs is one loss
        return {
            "search": {
                "epochs": training.epochs,
                "temperature": asdict(self.temperature(training.epochs)),
                "masks": masks_trained,
                "method": self.method,
                "ramp": self.prune_ramp,
                "lmbda": self.first_lmbda,
                "target": None if self.target is None else asdict(self.target),
                "accumulate": self.accumulate_step,
            },
            "finetune": None if self.finetune is None else asdict(self.finetune),
        }


def _require_rate(name: str, rate: float) -> None:
    if not 0 < rate < math.inf:
        raise errors.UsageError(f"{name} {rate} must be above 0 and finite")
