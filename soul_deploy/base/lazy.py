"""Objects by dotted name: how this floor uses what stands above it without importing it."""

from importlib import import_module
from pathlib import Path
from typing import Any

from soul_deploy.base.errors import UsageError


def load_object(name: str, purpose: str) -> Any:
    """The object called "package.module:attribute".

    purpose: what it is needed for, for the message. Raises UsageError if a package that the
    module imports is not installed, or its libraries cannot be loaded.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, OSError) as error:
        raise missing(purpose, error) from error


def missing(purpose: str, error: ImportError | OSError) -> UsageError:
    """What to say when an import failed. Raises `error` itself if the fault is our own.

    PyTorch raises OSError where a library that it needs is missing or of another version.
    """
    dotted = getattr(error, "name", None) or ""
    name = dotted.partition(".")[0]
    if left_out(dotted):
        return UsageError(
            f"{purpose} needs more than soul-deploy-runtime; install soul-deploy in its place, or "
            "run this where that is"
        )
    if name == "soul_deploy":
        raise error
    advice = "install soul-deploy with all its dependencies (pip install . in its source)"
    if isinstance(error, ModuleNotFoundError):
        return UsageError(
            f"{purpose} needs the package {name!r}, which is not installed here; {advice}, or run "
            "this where they are"
        )
    return UsageError(f"{purpose} cannot import {name or 'a package'}: {error}; {advice}")


def left_out(dotted: str) -> bool:
    """Whether something of this package is missing because soul-deploy-runtime is installed.

    The packages that stand above the runtime are not in that distribution at all.
    """
    whole = (Path(__file__).parents[1] / "lowering").exists()
    return dotted.partition(".")[0] == "soul_deploy" and not whole
