"""Options of `soul-deploy prune structured` that say what is pruned and when."""

from dataclasses import dataclass
from typing import TypeVar

import click

from soul_deploy.base.errors import UnknownNameError
from soul_deploy.cli.common_options import Decorator
from soul_deploy.cli.options import option_group
from soul_deploy.cli.parsing import ListOption, parse_indexes
from soul_deploy.prune.channel_groups import RESIDUAL
from soul_deploy.prune.structured.sca import REGROW_WEIGHTS, Sca
from soul_deploy.prune.structured.schedule import RAMPS, PruneSchedule
from soul_deploy.prune.structured.scores import SCORES, WINDOWS
from soul_deploy.prune.structured.selection import Guard

NameT = TypeVar("NameT", bound=str)


@dataclass(frozen=True)
class ScaOptions:
    """The options of method S; `sca` checks them."""

    pruning_nodes: str
    prune_ratio: float
    regrow_ratio: float
    prune_interval: int
    prune_warmup: int
    prune_ramp: str
    prune_epochs: int | None
    finetune_epochs: int
    score: str
    score_window: str
    regrow_window: str
    regrow_weights: str
    min_channels: int
    min_keep: float
    round_to: int
    residual: str

    def __post_init__(self) -> None:
        for kind, given, valid in (
            ("prune_ramp", self.prune_ramp, RAMPS),
            ("score", self.score, SCORES),
            ("score_window", self.score_window, WINDOWS),
            ("regrow_window", self.regrow_window, WINDOWS),
            ("regrow_weights", self.regrow_weights, REGROW_WEIGHTS),
            ("residual", self.residual, RESIDUAL),
        ):
            if _plain(given) not in valid:
                raise UnknownNameError(kind, given, valid)

    def indexes(self) -> tuple[int, ...] | None:
        """The chosen layers, or None for all. Raises UsageError."""
        return parse_indexes("pruning_nodes", self.pruning_nodes)

    def sca(self, epochs: int) -> Sca:
        """Method S as asked for; `epochs` is the length of its loop unless prune_epochs is given.

        Raises UsageError.
        """
        return Sca(
            schedule=PruneSchedule(
                ratio=self.prune_ratio,
                regrow_ratio=self.regrow_ratio,
                epochs=epochs if self.prune_epochs is None else self.prune_epochs,
                finetune_epochs=self.finetune_epochs,
                interval=self.prune_interval,
                warmup=self.prune_warmup,
                ramp=_choice(RAMPS, self.prune_ramp),
            ),
            guard=Guard(self.min_channels, self.min_keep, self.round_to),
            score=_choice(SCORES, self.score),
            score_window=_choice(WINDOWS, self.score_window),
            regrow_window=_choice(WINDOWS, self.regrow_window),
            regrow_weights=_choice(REGROW_WEIGHTS, self.regrow_weights),
            residual=_choice(RESIDUAL, self.residual),
        )


def _plain(text: str) -> str:
    return text.lower().replace("-", "_")


def _choice(valid: tuple[NameT, ...], given: str) -> NameT:
    return next(name for name in valid if name == _plain(given))


def sca_options() -> Decorator:
    """--pruning_nodes (Soul's) and the flags of method S that Soul has hard-coded or lacks."""

    def number(flag: str, kind: type, default: object, text: str) -> Decorator:
        return click.option(flag, type=kind, default=default, show_default=True, help=text)

    def name(flag: str, valid: tuple[str, ...], text: str) -> Decorator:
        help_text = f"{text} [{'|'.join(valid)}]"
        return click.option(flag, default=valid[0], show_default=True, help=help_text)

    return option_group(
        "pruning",
        ScaOptions,
        click.option(
            *("--pruning_nodes", "-nodes"),
            cls=ListOption,
            default="all",
            show_default=True,
            help="Spiking layers to prune, counted from 0 in forward order: 0 1 2 or [0, 1, 2].",
        ),
        number("--prune_ratio", float, 0.1, "p: pruned share of all channels of these layers."),
        number("--regrow_ratio", float, 0.1, "q: share that comes back by gradient; p + q < 1."),
        number("--prune_interval", int, 1, "Epochs from one mask update to the next."),
        number("--prune_warmup", int, 0, "Epochs before the first interval."),
        name("--prune_ramp", RAMPS, "How the share rises to p over the updates."),
        number("--prune_epochs", int, None, "Length of the pruning loop. [default: --epochs]"),
        number("--finetune_epochs", int, 0, "Epochs with frozen masks at the loop's end."),
        name("--score", SCORES, "What keeps a channel: spikes + |membrane|, or one of them."),
        name("--score_window", WINDOWS, "Batches that count into the score (Soul: last_batch)."),
        name("--regrow_window", WINDOWS, "Batches that count into the regrowth gradient."),
        name("--regrow_weights", REGROW_WEIGHTS, "Weights with which a channel comes back."),
        number("--min_channels", int, 1, "Channels that every layer keeps."),
        number("--min_keep", float, 0.0, "Share of its channels that every layer keeps."),
        number("--round_to", int, 1, "Kept counts are raised to a multiple of this."),
        name(
            "--residual",
            RESIDUAL,
            "What is pruned of residual streams: nothing, all their members, branches.",
        ),
    )
