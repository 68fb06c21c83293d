"""What commands say of data and networks, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from soul_deploy.base.warned import warnings_said
from soul_deploy.data.datasets import Data
from soul_deploy.training.messages import note, warn


def remark_on(data: Data, advice: str = "") -> Data:
    """`data`; what was done to its images is said, with `advice` behind it."""
    if data.remark:
        note(f"{data.remark}{advice}")
    return data


@contextmanager
def warnings_told(advice: str) -> Iterator[None]:
    """NetworkWarnings as lines of a command's own, ending in `advice` where they end in one."""
    with warnings_said(warn, advice):
        yield
