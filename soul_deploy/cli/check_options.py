"""Options that `export` and `verify` share: on how many images of what a file is checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from soul_deploy.base.errors import UsageError
from soul_deploy.cli.options import Decorator, option_group
from soul_deploy.cli.parsing import require_threads


@dataclass(frozen=True)
class CheckOptions:
    """On how many images of what an artifact is verified."""

    samples: int
    batch: int
    source: str
    dataset_name: str | None
    data_dir: Path
    download: bool
    seed: int
    threads: int | None
    output_format: str

    def __post_init__(self) -> None:
        for name, value in (
            ("samples", self.samples),
            ("batch", self.batch),
        ):
            if value < 1:
                raise UsageError(f"{name} {value} must be at least 1")
        require_threads(self.threads)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} must be from 0 to 2^63 - 1")


def check_options() -> Decorator:
    """--samples, --batch, --input, the data set's options, --seed, --threads, --format."""
    return option_group(
        "check_on",
        CheckOptions,
        click.option(
            "--samples", type=int, default=32, show_default=True, help="Images to verify on."
        ),
        click.option(
            *("--batch", "-b"),
            type=int,
            default=16,
            show_default=True,
            help="Images at a time while verifying; files take any batch.",
        ),
        click.option(
            "--input",
            "source",
            type=click.Choice(["data", "random"], case_sensitive=False),
            default="data",
            show_default=True,
            help="data: validation images of the data set; random: random pixels, or for other "
            "kinds of input random numbers of that kind.",
        ),
        click.option(
            *("--dataset_name", "--dataset", "-dataset"),
            default=None,
            help="Data set to verify on.  [default: the one the model was trained on]",
        ),
        click.option(
            *("--data_dir", "-data_dir"),
            type=click.Path(path_type=Path),
            default=Path("data"),
            show_default=True,
            help="Folder of the data set's files; mnist5k and digits need none.",
        ),
        click.option("--download", is_flag=True, help="Download a missing data set."),
        click.option(
            *("--seed", "-seed"),
            type=int,
            default=2025,
            show_default=True,
            help="Of random pixels.",
        ),
        click.option("--threads", type=int, default=None, help="CPU threads. [default: PyTorch's]"),
        click.option(
            "--format",
            "output_format",
            type=click.Choice(["table", "json"], case_sensitive=False),
            default="table",
            show_default=True,
            help="How the result is printed on standard output.",
        ),
    )


def steps_option() -> Decorator:
    return click.option(
        *("--time_step", "-T"),
        type=int,
        default=None,
        help="Run for another number of time steps.  [default: the model's]",
    )


def export_options() -> Callable[[Any], Any]:
    """MODEL, -o, -T, --check and what the check runs on."""

    def decorate(command: Any) -> Any:
        for option in reversed(
            (
                click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path)),
                click.option(
                    *("--output", "-o"),
                    type=click.Path(path_type=Path),
                    help="Where the file goes.  [default: beside MODEL, under its name]",
                ),
                steps_option(),
                click.option(
                    "--check/--no-check",
                    default=True,
                    show_default=True,
                    help="Verify the file against the model; a file that fails is not kept.",
                ),
                check_options(),
            )
        ):
            command = option(command)
        return command

    return decorate
