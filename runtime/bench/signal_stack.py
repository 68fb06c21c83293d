"""The alternate stack on which a thread's signals are handled, kept as it was."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread its alternate signal stack back at the end; on Linux, elsewhere nothing.

    OpenVINO gives the thread that compiles a network a stack of its own, and when that network goes
    it puts back the stack it found. Where two networks do not go in the reverse order of their
    coming, the stack it puts back is one that is freed, and the next Ctrl-C kills the process
    (SIGSEGV, without a word), because Python handles its signals there.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    exchange = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = exchange(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:  # Linux refuses a stack that its signal frames outgrew; then OpenVINO's stays
            exchange(ctypes.byref(before), None)
