"""What long work says on standard error: notes and warnings, by one process of a job."""

from soul_deploy import distributed
from soul_deploy.base.progress import said
from soul_deploy.base.terminal import say


def note(text: str) -> None:
    """Something to know, on standard error; of several processes, only the main one speaks."""
    if distributed.current().is_main:
        say(text, err=True)
        said()


def warn(text: str) -> None:
    """A warning on standard error."""
    note(f"Warning: {text}")
