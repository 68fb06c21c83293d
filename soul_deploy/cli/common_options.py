"""Options that several commands have, and groups of options, each declared once.

This module imports nothing heavy; `options.py` has the groups of the commands that need PyTorch.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, get_args

import click

from soul_deploy.base import memory
from soul_deploy.cli.parsing import Option

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
FILE = click.Path(path_type=Path)
ARGUMENT = object()
INPUTS = "data|random|NAME|PATH"
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


def given(default: Any, text: str | None = None, *flags: str, **settings: Any) -> Any:
    """A field of an option group: its option's default, help, flags, and what click takes.

    flags: all of them, if the first begins with two dashes; else others than --name. The option
    takes the field's type unless `settings` name another.
    """
    return field(metadata={"default": default, "help": text, "flags": flags, **settings})


def one_of(valid: Sequence[str], text: str) -> Any:
    """As `given`, for one of the words, in any case; the first is the default."""
    return given(valid[0], text, type=choice(valid))


def shared(declared: Decorator) -> Any:
    """A field of an option group whose option is declared already."""
    return field(metadata={"declared": declared})


def _declared(item: "Field[Any]", defaults: dict[str, Any]) -> Decorator:
    settings = {
        **item.metadata,
        **({"default": defaults[item.name]} if item.name in defaults else {}),
    }
    if "declared" in settings:
        found: Decorator = settings["declared"]
        return found
    flags = settings.pop("flags")
    if not flags or not flags[0].startswith("--"):
        flags = (f"--{item.name}", *flags)
    kind = next(iter(get_args(item.type)), item.type)  # of X | None, X
    if kind is bool:
        settings.setdefault("is_flag", True)
    else:
        settings.setdefault("type", FILE if kind is Path else kind)
    return option(*flags, **settings)


def option_group(
    name: str, group: type[Any], heading: str = "Method", **defaults: Any
) -> Decorator:
    """Decorate a command with the options of `group`, whose fields come from `given` and `shared`.

    Their values arrive as `name=group(...)`. heading: where help shows the options that have none
    of their own. defaults: other ones for this command, by field; ARGUMENT for a field that is no
    option but an argument of the command.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**values: Any) -> Any:
            mine = {item.name: values.pop(item.name) for item in fields(group)}
            return command(**{name: group(**mine)}, **values)

        before = len(vars(command).get("__click_params__", ()))
        declared = [f for f in fields(group) if defaults.get(f.name, "") is not ARGUMENT]
        decorated = options(*(_declared(item, defaults) for item in declared))(collect)
        for parameter in vars(decorated)["__click_params__"][before:]:
            vars(parameter).setdefault("heading", heading)
        return decorated

    return decorate


def choice(valid: Sequence[str]) -> click.Choice[str]:
    """One of the words, in any case."""
    return click.Choice(valid, case_sensitive=False)


def dataset_option(text: str, default: str | None = None) -> Decorator:
    flags = ("--dataset_name", "--dataset", "-dataset")
    return option(*flags, default=default, help=text, heading="Data")


def data_dir_option() -> Decorator:
    text = "Folder of the data set's files, or a .npz file; mnist5k and digits need none."
    flags = ("--data_dir", "-data_dir")
    return option(*flags, type=FILE, default=DATA_DIR, help=text, heading="Data")


def input_option(name: str, default: str, used: str) -> Decorator:
    """--input, the same in all commands; used: what is taken of a data set."""
    text = (
        "What it runs on. data: the data set that the model file records; random: uniform pixels, "
        "or numbers of the model's kind; a data set's name; or a path: an image, a folder of "
        f"images, a .npy or a .npz (images, labels). Of a data set: {used}."
    )
    return option("--input", name, default=default, metavar=INPUTS, help=text, heading="Data")


def resize_option() -> Decorator:
    text = "Scale image files of another size (bilinear)."
    return option("--resize", is_flag=True, help=text, heading="Data")


def download_option() -> Decorator:
    text = "Let torchvision download a missing data set."
    return option("--download", is_flag=True, help=text, heading="Data")


def steps_option(text: str, default: int | None = None) -> Decorator:
    flags = ("--time_step", "-T")
    return option(*flags, type=int, default=default, help=text, heading="Network")


def seed_option(text: str | None = None, heading: str = "Training") -> Decorator:
    return option("--seed", "-seed", type=int, default=2025, help=text, heading=heading)


def threads_option(
    text: str | None = "CPU threads. [default: PyTorch's]", kind: Any = int, **settings: Any
) -> Decorator:
    return option("--threads", type=kind, help=text, **settings)


def output_option(text: str, kind: click.Path = FILE, **settings: Any) -> Decorator:
    return option("--output", "-o", type=kind, help=text, heading="Files", **settings)


def max_memory_option(text: str = memory.HELP) -> Decorator:
    return option("--max_memory", metavar="SIZE", help=text, heading="Files")


def rows_option() -> Decorator:
    text = (
        "How a layer's synapses run: sparse, dense, analog, gather or planes; `inspect` shows how "
        "they do unasked. Goes before what the file asks for. May be repeated. Scores differ by "
        "the order of sums only."
    )
    return option("--rows", multiple=True, metavar="LAYER=FORM", help=text, heading="Network")


def dry_run_option(text: str) -> Decorator:
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
