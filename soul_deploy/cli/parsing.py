"""How commands spell arguments and print help, taught to click; imports nothing heavy.

Flags may be written with dashes or underscores. A list option takes `0 1 2`, `0,1,2` and
`[0, 1, 2]`, quoted or not: without quotes the shell hands over several words, which are joined
before click sees them. Help shows options under headings, and ends with a line that runs.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from soul_deploy.base import errors, terminal
from soul_deploy.training import recipes

F = TypeVar("F", bound=str)
HEADINGS = ("Data", "Events", "Network", "Method", "Training", "Files", "Output", "Other")
"""The headings of help, in order."""

CONFIGURED = "soul_deploy.cli.configured"
"""The name in a context's meta of the defaults that --config gives, by parameter."""
_NUMBERS = re.compile(r"[\s\[\](),0-9.+-]+")


def dashes(token: str) -> str:
    """The spelling in which flags and choices are compared."""
    return token.replace("_", "-")


class Option(click.Option):
    """An option and its heading in help, "Method" unless it or its option group has another."""

    def __init__(self, *names: Any, heading: str | None = None, **settings: Any) -> None:
        super().__init__(*names, **settings)
        if heading is not None:
            self.heading = heading


class ListOption(Option):
    """An option whose value may be several words."""


class Speaking(click.Command):
    """A command whose help is printed as everything else is (soul_deploy/base/terminal.py)."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """click's own, but for who prints."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _print_help
        return option


def _print_help(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        terminal.show(ctx.get_help())
        ctx.exit()


class SoulCommand(Speaking):
    """A command that understands both flag spellings and unquoted lists.

    example: words after soul-deploy that run as they stand; the last line of help. recipes_of:
    the command under which `training.recipes` has the defaults of its options, if it has some.
    """

    def __init__(
        self,
        name: str | None,
        *,
        example: str,
        recipes_of: recipes.Command | None = None,
        **options: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "token_normalize_func": dashes,
            "help_option_names": ["-h", "--help"],
            "show_default": True,
        }
        if recipes_of is not None:
            settings["default_map"] = recipes.values(recipes_of, "ours")
        super().__init__(name, context_settings=settings, **options)
        self.example, self.recipes_of = example, recipes_of

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the words of --config first and join those of each list before click's parsing."""
        args = self._configured(ctx, args)
        lists = [parameter for parameter in self.params if isinstance(parameter, ListOption)]
        flags = {dashes(flag) for parameter in lists for flag in parameter.opts}
        return super().parse_args(ctx, join_lists(args, flags))

    def _configured(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing or not any(p.name == "config" for p in self.params):
            return args
        from soul_deploy.cli import run_config

        path = run_config.place_in(args)
        if path is None:
            return args
        found = run_config.read(self, path, args)
        ctx.meta[CONFIGURED] = found.defaults
        ctx.default_map = {**(ctx.default_map or {}), **found.defaults}
        return [*found.words, *args]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under their headings."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                usual = "Other" if "--help" in parameter.opts else "Method"
                rows[getattr(parameter, "heading", usual)].append(record)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, on one line however long, so that it can be copied."""
        formatter.write(f"\nExample: soul-deploy {self.example}\n")


def join_lists(args: list[str], flags: set[str]) -> list[str]:
    """`args` with the words after each of `flags` joined to one.

    A list goes on while words look like numbers and brackets, or while its bracket is open.
    """
    joined: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        flag, equals, first = word.partition("=")
        if dashes(flag) not in flags or not (equals or rest):
            joined.append(word)
            continue
        words = [first if equals else rest.pop(0)]
        while rest and _continues(words, rest[0]):
            words.append(rest.pop(0))
        text = " ".join(words)
        joined += [f"{flag}={text}"] if equals else [word, text]
    return joined


def _continues(words: list[str], word: str) -> bool:
    if _NUMBERS.fullmatch(word):
        return True
    text = " ".join(words)
    return text.count("[") > text.count("]") and not word.startswith("-")


def use_recipe(ctx: click.Context, parameter: click.Parameter, recipe: Any) -> Any:
    """Callback of an eager --recipe: options that are not given take that recipe's defaults."""
    assert isinstance(ctx.command, SoulCommand) and ctx.command.recipes_of is not None
    ctx.default_map = {
        **recipes.values(ctx.command.recipes_of, recipe),
        **ctx.meta.get(CONFIGURED, {}),
    }
    return recipe


def explicit_flags(context: click.Context) -> set[str]:
    """Names of the flags that the user gave."""
    source = context.get_parameter_source
    defaults = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return {name for name in context.params if source(name) not in defaults}


def require_steps(name: str, steps: int | None) -> None:
    """Raise UsageError unless the T given, if any, is 1 to MAX_STEPS."""
    from soul_deploy.runtime.format.validate import MAX_STEPS  # imports numba

    _require_most(name, steps, MAX_STEPS, " steps")


def require_threads(threads: int | None) -> None:
    """Raise UsageError unless the number of threads given, if any, is 1 to MAX_THREADS."""
    from soul_deploy.runtime.format.validate import MAX_THREADS  # imports numba

    _require_most("threads", threads, MAX_THREADS)


def _require_most(name: str, value: int | None, most: int, unit: str = "") -> None:
    errors.require_least(1, **{name: value})
    if value is not None and value > most:
        raise errors.UsageError(f"{name} {value}: the limit is {most}{unit}; give 1 to {most}")


def words(text: str) -> tuple[str, ...]:
    """The entries of a list."""
    return tuple(word for word in re.split(r"[\s,\[\]()'\"]+", text) if word)


def _integers(name: str, text: str, least: int, what: str, instead: str) -> tuple[int, ...]:
    found = words(text)
    bad = [word for word in found if not word.isdecimal() or int(word) < least]
    if bad or not found:
        problem = f"{bad[0]!r} is not {what}" if bad else "the list is empty"
        raise errors.UsageError(f"{name} {text!r}: {problem}; give {instead}")
    return tuple(dict.fromkeys(map(int, found)))


def positive_integers(name: str, text: str) -> tuple[int, ...]:
    """Integers from 1; repeats are dropped. Raises UsageError for anything else or nothing."""
    return _integers(name, text, 1, "an integer from 1", "for example 1 4 or [1, 4]")


def parse_indexes(name: str, text: str) -> tuple[int, ...] | None:
    """Indexes from `0 1 2`, `0,1,2` or `[0, 1, 2]`; `all` gives None. Repeats are dropped.

    Raises UsageError for anything that is not a list of non-negative integers.
    """
    if text.strip().lower() == "all":
        return None
    instead = "integers from 0, such as 0 1 2 or [0, 1, 2], or all"
    return _integers(name, text, 0, "an index", instead)


def existing_indexes(
    name: str,
    indexes: tuple[int, ...] | None,
    count: int,
    what: str,
    able: tuple[int, ...] | None = None,
) -> tuple[tuple[int, ...], str | None]:
    """The indexes below `count`, and a warning that names the others, or None.

    None stands for all. able: those that can be chosen, where not all can. Raises UsageError if
    none exists.
    """
    if indexes is None:
        return tuple(range(count)), None
    missing = [index for index in indexes if index >= count]
    kept = tuple(index for index in indexes if index < count)
    given = ", ".join(map(str, missing))
    valid = f"this network has {count} {what}, 0 to {count - 1}"
    if able is not None and len(able) < count:
        valid += f"; valid are {', '.join(map(str, able)) or 'none'}"
    if not kept:
        raise errors.UsageError(f"{name}: none of {given} exists; {valid}")
    return kept, f"{name}: {given} ignored; {valid}" if missing else None


def read_forms(words: Sequence[str], valid: Sequence[F]) -> dict[str, F]:
    """LAYER=FORM words of --rows as a mapping; valid: the forms. Raises UsageError."""
    forms: dict[str, F] = {}
    for word in words:
        layer, equals, form = word.rpartition("=")
        found = next((known for known in valid if known == form.lower()), None)
        if not equals or not layer or found is None:
            raise errors.UsageError(
                f"--rows {word}: give LAYER=FORM, where FORM is {', '.join(valid)}"
            )
        if forms.setdefault(layer, found) != found:
            raise errors.UsageError(f"--rows {word}: {layer} was given as {forms[layer]} too")
    return forms
