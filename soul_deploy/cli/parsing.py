"""How commands spell arguments, taught to click.

Flags may be written with dashes or underscores. A list option takes `0 1 2`, `0,1,2` and
`[0, 1, 2]`, quoted or not: without quotes the shell hands over several words, which are joined
before click sees them.
"""

import re
from typing import Any

import click

from soul_deploy.base.errors import UsageError
from soul_deploy.cli.help_text import Speaking

_NUMBERS = re.compile(r"[\s\[\](),0-9.+-]+")


def dashes(token: str) -> str:
    """The spelling in which flags and choices are compared."""
    return token.replace("_", "-")


class ListOption(click.Option):
    """An option whose value may be several words."""


class SoulCommand(Speaking):
    """A command that understands both flag spellings and unquoted lists."""

    def __init__(self, name: str | None, **options: Any) -> None:
        settings = {"token_normalize_func": dashes, "help_option_names": ["-h", "--help"]}
        super().__init__(name, context_settings=settings, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the words of each list before click's own parsing."""
        flags = {
            dashes(flag)
            for parameter in self.params
            if isinstance(parameter, ListOption)
            for flag in parameter.opts
        }
        return super().parse_args(ctx, join_lists(args, flags))


def join_lists(args: list[str], flags: set[str]) -> list[str]:
    """`args` with the words after each of `flags` joined to one.

    A list goes on while words look like numbers and brackets, or while its bracket is open.
    """
    joined: list[str] = []
    position = 0
    while position < len(args):
        flag, equals, first = args[position].partition("=")
        joined.append(args[position])
        position += 1
        if dashes(flag) not in flags:
            continue
        if equals:
            words = [first]
        elif position < len(args):
            words = [args[position]]
            position += 1
        else:
            continue
        while position < len(args) and _continues(words, args[position]):
            words.append(args[position])
            position += 1
        text = " ".join(words)
        if equals:
            joined[-1] = f"{flag}={text}"
        else:
            joined.append(text)
    return joined


def _continues(words: list[str], word: str) -> bool:
    if _NUMBERS.fullmatch(word):
        return True
    text = " ".join(words)
    return text.count("[") > text.count("]") and not word.startswith("-")


def require_steps(name: str, steps: int | None) -> None:
    """Raise UsageError unless the T given, if any, is 1 to MAX_STEPS."""
    from soul_deploy.runtime.format.validate import MAX_STEPS  # imports numba

    if steps is not None and steps < 1:
        raise UsageError(f"{name} {steps} must be at least 1")
    if steps is not None and steps > MAX_STEPS:
        raise UsageError(f"{name} {steps}: the limit is {MAX_STEPS} steps; give 1 to {MAX_STEPS}")


def require_threads(threads: int | None) -> None:
    """Raise UsageError unless the number of threads given, if any, is 1 to MAX_THREADS."""
    from soul_deploy.runtime.format.validate import MAX_THREADS  # imports numba

    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads} must be at least 1")
    if threads is not None and threads > MAX_THREADS:
        raise UsageError(f"threads {threads}: the limit is {MAX_THREADS}; give 1 to {MAX_THREADS}")


def words(text: str) -> tuple[str, ...]:
    """The entries of a list."""
    return tuple(word for word in re.split(r"[\s,\[\]()'\"]+", text) if word)


def positive_integers(name: str, text: str) -> tuple[int, ...]:
    """Integers from 1; repeats are dropped. Raises UsageError for anything else or nothing."""
    found = words(text)
    bad = [word for word in found if not word.isdecimal() or int(word) < 1]
    if bad or not found:
        what = f"{bad[0]!r} is not an integer from 1" if bad else "the list is empty"
        raise UsageError(f"{name} {text!r}: {what}; give for example 1 4 or [1, 4]")
    return tuple(dict.fromkeys(map(int, found)))
