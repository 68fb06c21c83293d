"""Objects by dotted name: how this floor uses what stands above it without importing it."""

from importlib import import_module
from typing import Any

from soul_deploy.runtime.errors import UsageError


def load_object(name: str, purpose: str) -> Any:
    """The object called "package.module:attribute".

    purpose: what it is needed for, for the message. Raises UsageError if a package that the
    module imports is not installed.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{purpose} needs the package {error.name!r}, which is not installed here; install "
            "soul-deploy with all its dependencies, or run this where they are"
        ) from error
