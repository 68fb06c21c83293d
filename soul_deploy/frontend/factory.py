"""Networks named on the command line as `package.module:factory`.

Such a name runs somebody's code, so only a name that the user typed is ever imported; one that
stands in a file is only shown.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import Shape


def is_dotted(name: str) -> bool:
    """Whether a network's name means a factory, and not a network of the zoo."""
    return ":" in name


def check_dotted(name: str) -> None:
    """Raise UsageError unless the name reads `package.module:factory`; nothing is imported."""
    module, _, factory = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *factory.split("."))):
        raise UsageError(
            f"model {name!r}: a network of your own is named package.module:factory, "
            "for example nets.small:make"
        )


def build_network(name: str, *, classes: int, input_shape: Shape, time_steps: int) -> nn.Module:
    """Import the factory and call it with those of the keywords that it accepts.

    Modules are found in the current folder and among the installed packages. Raises UsageError
    naming what failed.
    """
    check_dotted(name)
    factory = _find(name)
    known = {"classes": classes, "input_shape": input_shape, "time_steps": time_steps}
    keywords = _accepted(name, factory, known)
    try:
        network = factory(**keywords)
    except Exception as error:  # somebody else's code can fail in any way
        given = ", ".join(f"{key}={value}" for key, value in keywords.items())
        raise UsageError(
            f"model {name!r}: calling it with ({given}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"model {name!r} returned {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def _find(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        with _current_folder():
            value: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"model {name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}; "
            "it is looked for in the current folder and among the installed packages"
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UsageError(f"model {name!r}: module {module_name!r} has no {attribute!r}")
        value = getattr(value, part)
    if not callable(value):
        raise UsageError(
            f"model {name!r} is a {type(value).__name__}; it must be a function or class that "
            "makes the network"
        )
    factory: Callable[..., Any] = value
    return factory


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder first on the search path, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _accepted(name: str, factory: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in callables have no signature
        return {}
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and (p.kind is p.POSITIONAL_ONLY or (p.kind in named and p.name not in known))
    ]
    if missing:
        raise UsageError(
            f"model {name!r} needs {', '.join(missing)}; a factory is called with "
            f"{', '.join(known)} at most, so give everything else a default"
        )
    return {k: v for k, v in known.items() if k in parameters and parameters[k].kind in named}
