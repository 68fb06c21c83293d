"""`--config`: a run's options from a YAML file, and the file that a run leaves beside its result.

A file says what words on the command line would, and those go before it. What a run leaves holds
the options that were given, and under `defaults` what all others were then, so that giving it back
repeats the run whatever a later version's defaults are. What was not given stays so: it gives way
to what a model file says.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from soul_deploy.base import errors, files, yaml_text
from soul_deploy.cli import common_options as common
from soul_deploy.cli.parsing import dashes
from soul_deploy.training import recipes

COMMAND, DEFAULTS, CONFIG = "command", "defaults", "config"
UNRECORDED = (CONFIG, "resume", "dry_run", "help", "output_format")
"""How a run is started or printed, which is not what it computes."""
LARGEST = 1 << 20  # bytes of a file


def config_option() -> common.Decorator:
    """--config of the commands whose result depends on dozens of options."""
    text = (
        "Options from a YAML file, NAME: VALUE; flags go before them. Each run leaves such a file "
        "beside its result, ..._config.yaml, which repeats it."
    )
    return common.option(
        "--config", type=common.FILE, help=text, heading="Files", expose_value=False
    )


@dataclass(frozen=True)
class Words:
    """A file as words of the command line, and as defaults by parameter."""

    words: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)


def read(command: click.Command, path: Path, args: Sequence[str]) -> Words:
    """The file's options. args: the words that are given besides.

    Raises MissingFileError, FileFormatError for what is no YAML, UsageError for keys and values
    that the command does not have.
    """
    document = _document(path)
    told = document.pop(COMMAND, None)
    mine = _name(command)
    if told not in (None, mine):
        raise errors.UsageError(
            f"{path} is of the command {str(told)!r}; give it to soul-deploy {told}, or remove its "
            f"line {COMMAND!r} to take what {mine} knows"
        )
    held = document.pop(DEFAULTS, None) or {}
    if not isinstance(held, dict):
        raise errors.UsageError(f"{path}: {DEFAULTS} {held!r} is not a list of NAME: VALUE")
    words: list[str] = []
    for key, value in document.items():
        words += _words(_option(command, path, key), path, key, value)
    defaults: dict[str, Any] = {}
    for key, value in held.items():
        option = _option(command, path, key)
        assert option.name is not None
        _words(option, path, key, value)
        defaults[option.name] = _joined(value)
    if any(dashes(word.partition("=")[0]) == "--recipe" for word in args):
        decided: Any = getattr(command, "recipes_of", None)
        for name in recipes.values(decided, "ours") if decided else ():
            defaults.pop(name, None)
    return Words(words, defaults)


def place_in(args: Sequence[str]) -> Path | None:
    """The file that the words of a command line name, if any; the last one."""
    found: Path | None = None
    for word, following in zip(args, [*args[1:], ""], strict=False):  # there may be no words
        flag, equals, value = word.partition("=")
        if dashes(flag) == "--config" and (equals or following):
            found = Path(value if equals else following)
    return found


def _name(command: click.Command) -> str:
    return str(getattr(command, "recipes_of", None) or command.name)


def _document(path: Path) -> dict[Any, Any]:
    with files.opened(path) as source:
        if source.size > LARGEST:
            raise errors.FileFormatError(f"{source} is larger than {LARGEST:,} bytes")
        text = source.start(source.size)
    try:
        import yaml
    except ImportError as error:
        raise errors.UsageError("--config needs the package PyYAML; pip install pyyaml") from error
    try:
        # Few lines of aliases of aliases make more values than memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise errors.FileFormatError(f"{path} has aliases (*name); write the values out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())[:200]
        raise errors.FileFormatError(f"{path} is not YAML: {first}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise errors.FileFormatError(f"{path} is not a list of NAME: VALUE")
    keys = [key.value for key, _ in node.value]
    double = next((key for key in keys if keys.count(key) > 1), None)
    if double is not None:
        raise errors.UsageError(f"{path}: {double!r} stands twice; keep one")
    return dict(found)


def _options(command: click.Command) -> dict[str, click.Option]:
    """All options by their long names, with dashes."""
    found: dict[str, click.Option] = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in (CONFIG, "help"):
            names = [flag.lstrip("-") for flag in option.opts if flag.startswith("--")]
            found |= {dashes(name): option for name in (*names, str(option.name))}
    return found


def _option(command: click.Command, path: Path, key: object) -> click.Option:
    known = _options(command)
    option = known.get(dashes(str(key)))
    if option is None:
        near = difflib.get_close_matches(dashes(str(key)), known, 1)
        hint = f"did you mean {near[0].replace('-', '_')!r}?" if near else "see --help"
        raise errors.UsageError(f"{path}: {_name(command)} has no option {str(key)!r}; {hint}")
    return option


def _words(option: click.Option, path: Path, key: object, value: Any) -> list[str]:
    """One option as words. Raises UsageError for a value that no word can be."""
    flag = _flag(option)
    if value is None:
        return []
    if isinstance(value, bool):
        if not option.is_flag:
            raise errors.UsageError(f"{path}: {key}: {value} given, but --{key} takes a value")
        return [flag] if value else option.secondary_opts[:1]
    if option.is_flag:
        raise errors.UsageError(f"{path}: {key}: {value!r} given; it is true or false")
    several = isinstance(value, list) and all(isinstance(v, int | float | str) for v in value)
    if not several and not isinstance(value, int | float | str):
        raise errors.UsageError(f"{path}: {key}: {value!r} is no value of an option")
    return [f"{flag}={_joined(value)}"]


def _flag(option: click.Option) -> str:
    """The option's long flag; of several, the one of its parameter's name."""
    own = f"--{option.name}"
    return own if own in option.opts else max(option.opts, key=len)


def _joined(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def beside(result: Path) -> Path:
    """Where the configuration of the run goes that wrote `result`."""
    return result.with_name(f"{result.stem}_config.yaml")


def write(path: Path, **resolved: Any) -> None:
    """Leave the options of the command that runs at `path`.

    resolved: what an option that was None became.
    """
    context = click.get_current_context()
    command = _name(context.command)
    given, others = _values(context, resolved)
    lines = [
        f"# soul-deploy {version('soul-deploy')}, torch {version('torch')}. The same run again:",
        f"# soul-deploy {command} --config THIS_FILE",
        *yaml_text.lines({COMMAND: command, **given}),
        f"{DEFAULTS}:",
        *yaml_text.lines(others, "  "),
    ]
    files.write_text(path, "\n".join(lines) + "\n")


def _values(
    context: click.Context, resolved: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that were given, and all others that are not None; by their long names."""
    usual = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    given: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for option in context.command.params:
        name = option.name
        if not isinstance(option, click.Option) or name is None or name in UNRECORDED:
            continue
        value = context.params.get(name)
        value = resolved.get(name) if value is None else value
        if value is not None:
            place = others if context.get_parameter_source(name) in usual else given
            place[_flag(option).lstrip("-")] = value
    return given, others
