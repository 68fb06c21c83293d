"""Options and lists of Soul's commands, and which flags were given.

Flags and lists as such are read by soul_deploy/cli/parsing.py.
"""

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from soul_deploy.base.errors import UsageError
from soul_deploy.base.input_rule import INPUT_KINDS
from soul_deploy.cli.parsing import ListOption, SoulCommand, dashes, join_lists, words

__all__ = [
    "ListOption",
    "SoulCommand",
    "dashes",
    "existing_indexes",
    "explicit_flags",
    "input_kind_option",
    "join_lists",
    "parse_indexes",
]


def explicit_flags(context: click.Context) -> set[str]:
    """Names of the flags that the user gave."""
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def input_kind_option(default: str) -> Callable[[Any], Any]:
    """--input_kind of the commands that make models; default: what counts without it, in words."""
    return click.option(
        "--input_kind",
        type=click.Choice(INPUT_KINDS),
        default=None,
        help="What the network is given. images: uint8 are pixels and are normalised; counts, "
        f"spikes, values: numbers are taken as they are.  [default: {default}]",
    )


def parse_indexes(name: str, text: str) -> tuple[int, ...] | None:
    """Indexes from `0 1 2`, `0,1,2` or `[0, 1, 2]`; `all` gives None. Repeats are dropped.

    Raises UsageError for anything that is not a list of non-negative integers.
    """
    if text.strip().lower() == "all":
        return None
    tokens = words(text)
    bad = [token for token in tokens if not token.isdecimal()]
    if bad or not tokens:
        what = f"{bad[0]!r} is not an index" if bad else "the list is empty"
        raise UsageError(
            f"{name} {text!r}: {what}; give integers from 0, such as 0 1 2 or [0, 1, 2], or all"
        )
    return tuple(dict.fromkeys(int(token) for token in tokens))


def existing_indexes(
    name: str, indexes: tuple[int, ...] | None, count: int, what: str
) -> tuple[tuple[int, ...], str | None]:
    """The indexes below `count`, and a warning that names the others, or None.

    None stands for all. Raises UsageError if none exists.
    """
    if indexes is None:
        return tuple(range(count)), None
    missing = [index for index in indexes if index >= count]
    kept = tuple(index for index in indexes if index < count)
    given = ", ".join(map(str, missing))
    valid = f"this network has {count} {what}, 0 to {count - 1}"
    if not kept:
        raise UsageError(f"{name}: none of {given} exists; {valid}")
    return kept, f"{name}: {given} ignored; {valid}" if missing else None
