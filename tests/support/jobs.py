"""Jobs of two processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

from places import ROOT


def torchrun(
    folder: Path, *words: str, more: tuple[str, ...] = (), more_paths: tuple[Path, ...] = ()
) -> "subprocess.Popen[str]":
    """A job of two processes in `folder`. more_paths: where they look for modules first."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *more, *words]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (*more_paths, ROOT))),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
