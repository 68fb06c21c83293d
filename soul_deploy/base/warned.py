"""NetworkWarnings of the functions as lines of a command's own."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from soul_deploy.base.errors import NetworkWarning


@contextmanager
def warnings_said(say: Callable[[str], None], advice: str = "") -> Iterator[None]:
    """Inside, NetworkWarnings are kept, and told to `say` at the end, each text once.

    advice: takes the place of a warning's own. Other warnings are shown as Python shows them.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NetworkWarning)
            yield
    finally:
        told: set[str] = set()
        for item in caught:
            found = item.message
            if not isinstance(found, NetworkWarning):
                warnings.showwarning(found, item.category, item.filename, item.lineno)
            elif found.text not in told:
                told.add(found.text)
                say(f"{found.text}; {advice}" if found.advice and advice else str(found))
