"""A block that may take only so much processor time and memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import peak

SECONDS, GROWTH = 5.0, 300 << 20


@contextmanager
def bounded(seconds: float = SECONDS, growth: int = GROWTH) -> Iterator[None]:
    """Fails if what is inside takes more processor time or memory."""
    before, begun = peak.reset(), time.process_time()
    yield
    assert time.process_time() - begun < seconds
    if peak.RESETTABLE:
        assert peak.peak() - before < growth
