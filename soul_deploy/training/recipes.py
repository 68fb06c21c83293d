"""Recipes: the defaults that touch accuracy, of Soul, of the papers' authors, and ours.

One line per command and option. docs/methods.md has the same table for readers; a test compares
the two. Network, neuron and T are the user's choice and belong to no recipe.

SP, UP and run are Soul's structured_prune.py, unstructured_prune.py and run_soul.py. The authors of
`train` and `prune structured` are Li et al. (SCA, ICML 2024), those of `prune unstructured` Shi et
al. (ICLR 2024).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Command = Literal["train", "prune structured", "prune unstructured"]
Recipe = Literal["ours", "soul", "authors"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
Value = str | int | float | bool
AUTO = "auto"


@dataclass(frozen=True)
class Row:
    """An option's defaults, as the command line takes them; reason: sources, and why ours."""

    command: Command
    option: str
    soul: Value
    authors: Value
    ours: Value
    reason: str

    def of(self, recipe: Recipe) -> Value:
        """The option's default in a recipe."""
        return {"soul": self.soul, "authors": self.authors, "ours": self.ours}[recipe]


T: Command = "train"
S: Command = "prune structured"
U: Command = "prune unstructured"
READOUT = (
    "by the readout: MSE for a vote (no sum over time), whose softmax is nearly flat; else "
    "cross-entropy"
)
BY_DATA = "by data set, see below"
OWN = "by network: its source's own (6Conv2FC: Kaiming fan_out)"
STEPS = "run, SP; SCA's script: times 0.1 every 100 epochs"
KAIMING = "UP:456; models/cifar10.py; ours as for the other commands"
LAYERS = "UP; models/cifar10.py:16; ours by the network"

RISING = "SP; SCA: p from the first step; ours: see docs/quality.md"
HELD = "neither has one; ours: see docs/quality.md"
PAID = "SP; SCA: over all layers at once; ours: by what is saved too, see below"
COSTS = "UP; penalty_term; auto: authors, but params with --target_params"

# fmt: off
ROWS: tuple[Row, ...] = (
    Row(T, "epochs", 150, 300, 150, "run; SCA section 5.1"),
    Row(T, "batch_size", 64, 64, 64, "run; SCA's script"),
    Row(T, "optimizer", "adam", "sgd", "adam", "run; SCA's script"),
    Row(T, "learning_rate", 1e-3, 0.01, 1e-3, "run; SCA's script"),
    Row(T, "scheduler", "cosine", "Step 100 200", "cosine", STEPS),
    Row(T, "momentum", 0.9, 0.9, 0.9, "run; SCA's script"),
    Row(T, "nesterov", False, False, False, "run; SCA's script"),
    Row(T, "weight_decay", 0.0, 0.0, 0.0, "run; SCA's script"),
    Row(T, "l1", 0.0, 3e-5, 0.0, "none in Soul; SCA's script"),
    Row(T, "criterion", "ce", AUTO, AUTO, READOUT),
    Row(T, "TET", False, False, False, "none has it here"),
    Row(T, "augment", AUTO, AUTO, AUTO, BY_DATA),
    Row(T, "initialisation", "default", "default", "default", OWN),
    Row(S, "epochs", 50, 300, 50, "SP; SCA section 5.1"),
    Row(S, "batch_size", 128, 64, 128, "SP; SCA's script"),
    Row(S, "optimizer", "adam", "sgd", "adam", "SP; SCA's script"),
    Row(S, "learning_rate", 1e-3, 0.01, 1e-3, "SP; SCA's script"),
    Row(S, "scheduler", "cosine", "Step 100 200", "cosine", STEPS),
    Row(S, "momentum", 0.9, 0.9, 0.9, "SP; SCA's script"),
    Row(S, "nesterov", False, False, False, "SP; SCA's script"),
    Row(S, "weight_decay", 0.0, 0.0, 0.0, "SP; SCA's script"),
    Row(S, "l1", 0.0, 3e-5, 0.0, "none in Soul; SCA's script"),
    Row(S, "criterion", "ce", AUTO, AUTO, READOUT),
    Row(S, "TET", False, False, False, "none has it here"),
    Row(S, "augment", AUTO, AUTO, AUTO, BY_DATA),
    Row(S, "initialisation", "default", "default", "default", OWN),
    Row(S, "regrow_ratio", 0.1, 0.1, 0.1, "SP:340; SCA's script (b); p is 0.1 there too"),
    Row(S, "prune_interval", 1, 1, 1, "SP; SCA's script"),
    Row(S, "prune_warmup", 0, 0, 0, "SP; SCA's script"),
    Row(S, "prune_ramp", "constant", "constant", "cubic", RISING),
    Row(S, "finetune_epochs", 0, 0, 0, "SP:720; SCA: masks change to the end"),
    Row(S, "score", *("spike_membrane",) * 3, "SP:324; SCA's script"),
    Row(S, "score_window", "last_batch", "epoch", "epoch", "SP:332; SCA: since the last update"),
    Row(S, "regrow_window", "last_batch", "last_batch", "epoch", "SP:370; SCA; a mean is calmer"),
    Row(S, "regrow_weights", "zero", "zero", "retain", "both zero rows, ours multiplies by masks"),
    Row(S, "budget_rule", "score", "score", "per_cost", PAID),
    Row(S, "kept_count", "floor", "floor", "floor", "SP; SCA: 3,801 of 4,224 at p = 0.1"),
    Row(S, "min_channels", 1, 1, 1, "none in Soul and SCA: layers can end empty"),
    Row(S, "min_keep", 0.0, 0.0, 0.15, HELD),
    Row(U, "epochs", 150, 800, 150, "UP; main's default"),
    Row(U, "batch_size", 128, 16, 128, "UP; main's default"),
    Row(U, "optimizer", "adam", "adam", "adam", "UP; main's default"),
    Row(U, "learning_rate", 1e-3, 1e-4, 1e-3, "UP; main's default"),
    Row(U, "scheduler", "constant", "constant", "constant", "UP; main's default: none"),
    Row(U, "momentum", 0.9, 0.9, 0.9, "UP; main"),
    Row(U, "nesterov", True, True, True, "UP and main: SGD always has it"),
    Row(U, "weight_decay", 0.0, 0.0, 0.0, "UP; main's default"),
    Row(U, "criterion", "mse", "mse", "mse", "UP; main's default"),
    Row(U, "TET", False, False, False, "UP; main's default"),
    Row(U, "augment", AUTO, AUTO, AUTO, BY_DATA),
    Row(U, "initialisation", *("kaiming_fan_out",) * 2, "default", KAIMING),
    Row(U, "weight_prune_layers", "0 1 2 3 4 5 6 7", "all", "all", LAYERS),
    Row(U, "neuron_prune_layers", "1 2 3 4 5", "1 2 3 4 5", "all", LAYERS),
    Row(U, "mask_init_factor", *("0 0 0 0",) * 3, "UP; main:80"),
    Row(U, "temp_scheduler", "5 1000", "5 1000", "5 1000", "UP; temp_scheduler"),
    Row(U, "penalty_coef", "authors", "authors", AUTO, COSTS),
    Row(U, "accumulate_step", 1, 1, 1, "UP; main's default"),
    Row(U, "prune_weight_decay", 0.0, 0.0, 0.0, "UP; main's default"),
    Row(U, "finetune", False, True, False, "UP; main: always"),
    Row(U, "epoch_finetune", 200, 200, 200, "UP; main's default"),
    Row(U, "finetune_lr", 1e-4, 1e-4, 1e-4, "UP; main's default"),
    Row(U, "finetune_lr_scheduler", *("constant",) * 3, "UP; main's default: none"),
    Row(U, "reset_optimizer", False, False, False, "main:862 keeps the moments"),
)
# fmt: on

SOULS_AUGMENT = {
    "cifar10": "crop_flip",
    "cifar100": "crop_flip",
    "cifar10dvs": "dvs30",
    "ncaltech101": "dvs30",
    "dvsgesture": "dvs15",
    "nmnist": "dvs15",
}
AUGMENT: Mapping[Recipe, Mapping[str, str]] = {
    "soul": SOULS_AUGMENT,
    "authors": SOULS_AUGMENT,
    "ours": SOULS_AUGMENT,
}
"""What `augment auto` means, by data set; none for the others: mirrored digits are no digits.

Soul (soul/utils/dataset/vision_dataset.py) also changes the brightness of CIFAR-100, and rolls
N-Caltech101 by 3 pixels, not 5.
"""


def values(command: Command, recipe: Recipe) -> dict[str, Value]:
    """Option -> default of a command in a recipe; names as the command's parameters have them."""
    return {row.option.lower(): row.of(recipe) for row in ROWS if row.command == command}


def augment_of(recipe: Recipe, data: str) -> str:
    """How a recipe moves the images of a data set."""
    return AUGMENT[recipe].get(data, "none")


def differences(command: Command, recipe: Recipe, data: str, given: Collection[str]) -> list[str]:
    """What a recipe has otherwise than Soul, such as "kept_count round (Soul: floor)".

    given: names of the parameters that the user chose. What is automatic is not among them: the run
    says itself what it takes.
    """
    pairs = [
        (row.option, row.of(recipe), row.soul)
        for row in ROWS
        if row.command == command and row.option.lower() not in given and row.of(recipe) != AUTO
    ]
    if "augment" not in given:
        pairs.append(("augment", augment_of(recipe, data), augment_of("soul", data)))
    return [f"{name} {spelt(v)} (Soul: {spelt(soul)})" for name, v, soul in pairs if v != soul]


def spelt(value: Value) -> str:
    """The value as it is printed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
