"""Windows, imitated in this process: what is missing there, and its errors.

`imitate()` before anything of soul_deploy is imported. A file that this process has open or mapped
is neither replaced nor removed; folders are not opened.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
NAMES = (
    *("fork", "getloadavg", "getuid", "geteuid", "register_at_fork", "sched_getaffinity"),
    *("sched_setaffinity", "sysconf", "uname", "O_NONBLOCK", "statvfs", "mkfifo", "killpg"),
)
LIBRARIES = ("torch._dynamo", "torchvision", "onnx", "onnxruntime", "nir", "numba", "rich.console")


class _Missing(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"no {name} on Windows", name=name)


def in_use(path: str | os.PathLike[str]) -> bool:
    """Whether this process has the file open or mapped."""
    real = os.path.realpath(path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    if any(line.split(maxsplit=5)[5:] == [real] for line in maps):
        return True
    numbers = os.listdir("/proc/self/fd")
    return any(os.path.realpath(f"/proc/self/fd/{number}") == real for number in numbers)


def _guarded(action: Callable[..., Any], which: int) -> Callable[..., Any]:
    """`action` on files, refused for one in use; which: of its arguments."""

    def do(*paths: Any, **more: Any) -> Any:
        if more.get("dir_fd") is None and in_use(paths[which]):
            raise PermissionError(errno.EACCES, "Access is denied", str(paths[which]))
        return action(*paths, **more)

    return do


def _open(action: Callable[..., int]) -> Callable[..., int]:
    def do(path: Any, *given: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return action(path, *given, **more)

    return do


def imitate() -> None:
    """From now on this process meets Windows' errors. Other libraries have their own ways there."""
    for name in LIBRARIES:
        import_module(name)
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing())
    for name in NAMES:
        delattr(os, name)
    vars(shutil)["_use_fd_functions"] = False
    for action, which in (("replace", 1), ("rename", 1), ("unlink", 0), ("remove", 0)):
        setattr(os, action, _guarded(getattr(os, action), which))
    vars(os)["open"] = _open(os.open)
    files: Any = import_module("soul_deploy.base.files")
    files.WINDOWS, files.FOLDERS_CAN_BE_SYNCED = True, False
