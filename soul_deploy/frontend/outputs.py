"""Which of the values that a forward returns holds the class scores."""

from collections.abc import Mapping
from typing import Any

from soul_deploy.base import errors

Key = int | str
"""The place of a value in the tuple or list that forward returns, or its name in the dict."""


def returned(given: Any) -> dict[Key, Any]:
    """What a forward returns, by place or name; {} if it is one value."""
    if isinstance(given, Mapping):
        return {str(name): item for name, item in given.items()}
    if isinstance(given, list | tuple):
        return dict(enumerate(given))
    return {}


def key_of(outputs: Mapping[Key, Any], output: Key) -> Key:
    """The value that `output` names; a negative place counts from the end.

    Raises UsageError, which lists them.
    """
    if not outputs:
        raise errors.UsageError(
            f"output {output!r} given, but the network's forward returns one value; leave it out"
        )
    place = output
    if isinstance(output, int) and -len(outputs) <= output < 0:
        place = output + len(outputs)
    if place not in outputs or isinstance(output, bool):
        raise errors.UsageError(
            f"output {output!r} given; the network's forward returns {listed(outputs)}"
        )
    return place


def listed(outputs: Mapping[Key, Any]) -> str:
    """Their keys, for messages."""
    return ", ".join(map(repr, outputs))
