"""Notes and warnings of long work, through `logging`; of several processes, the main one speaks.

Nothing is printed unless somebody asks for it: the command line does, and a program may with
`logging.basicConfig(level=logging.INFO)`.
"""

import logging

from soul_deploy import distributed

LOGGER = logging.getLogger("soul_deploy")
LOGGER.addHandler(logging.NullHandler())  # else Python prints warnings that nobody handles


def note(text: str) -> None:
    """Something to know."""
    if distributed.current().is_main:
        LOGGER.info("%s", text)


def warn(text: str) -> None:
    """A warning."""
    if distributed.current().is_main:
        LOGGER.warning("%s", text)
