"""Options that several commands have, each declared once; imports nothing heavy.

`options.py` makes groups of them for the commands that need PyTorch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from soul_deploy.base.memory import HELP as MEMORY_HELP
from soul_deploy.cli.parsing import Option

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
FILE = click.Path(path_type=Path)
DATA_DIR = Path("data")
"""Where commands look for data sets unless they are told otherwise."""


def option(*flags: str, heading: str | None = None, **settings: Any) -> Decorator:
    """An option under a heading of help; the settings are click's."""
    return click.option(*flags, cls=settings.pop("cls", Option), heading=heading, **settings)


def options(*decorators: Decorator) -> Decorator:
    """The options as one decorator; help shows them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def choice(valid: Sequence[str]) -> click.Choice[str]:
    """One of the words, in any case."""
    return click.Choice(valid, case_sensitive=False)


def dataset_option(text: str, default: str | None = None) -> Decorator:
    """--dataset_name."""
    flags = ("--dataset_name", "--dataset", "-dataset")
    return option(*flags, default=default, help=text, heading="Data")


def data_dir_option() -> Decorator:
    """--data_dir."""
    return option(
        *("--data_dir", "-data_dir"),
        type=FILE,
        default=DATA_DIR,
        help="Folder of the data set's files; mnist5k and digits need none.",
        heading="Data",
    )


def data_place_options() -> Decorator:
    """--data_dir, --download."""
    text = "Let torchvision download a missing data set."
    return options(data_dir_option(), option("--download", is_flag=True, help=text, heading="Data"))


def steps_option(text: str, default: int | None = None) -> Decorator:
    """--time_step."""
    flags = ("--time_step", "-T")
    return option(*flags, type=int, default=default, help=text, heading="Network")


def seed_option(text: str | None = None, heading: str = "Training") -> Decorator:
    """--seed."""
    return option("--seed", "-seed", type=int, default=2025, help=text, heading=heading)


def threads_option(
    text: str | None = "CPU threads. [default: PyTorch's]", kind: Any = int, **settings: Any
) -> Decorator:
    """--threads."""
    return option("--threads", type=kind, help=text, **settings)


def output_option(text: str, kind: click.Path = FILE, **settings: Any) -> Decorator:
    """--output."""
    return option("--output", "-o", type=kind, help=text, heading="Files", **settings)


def max_memory_option(text: str = MEMORY_HELP) -> Decorator:
    """--max_memory."""
    return option("--max_memory", metavar="SIZE", help=text, heading="Files")


def dry_run_option(text: str) -> Decorator:
    """--dry_run."""
    return option("--dry_run", "--dry-run", is_flag=True, help=text, heading="Output")


def format_option(
    name: str = "output_format",
    valid: Sequence[str] = ("table", "json"),
    text: str = "How the result is printed on standard output.",
) -> Decorator:
    """--format, as the argument `name`; the first of `valid` is the default."""
    return option(
        "--format", name, type=choice(valid), default=valid[0], help=text, heading="Output"
    )
