"""`make floor`: its constraints are the minimum versions that setup.cfg names, from there alone."""

import shutil
import subprocess
import sys
from pathlib import Path

from places import ROOT

SETUP = """
[options]
install_requires =
    torch>=2.4
    # a note
    typing_extensions>=4.10  # another
[options.extras_require]
nir =
    nir>=1.0.8
dev =
    pytest
"""


def floor(root: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / ".ci" / "floor.py"), *extras]
    return subprocess.run(command, capture_output=True, text=True)


def test_each_requirement_becomes_its_minimum(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "floor.py", tmp_path / ".ci")
    (tmp_path / "setup.cfg").write_text(SETUP)
    assert floor(tmp_path).stdout.split() == ["torch==2.4", "typing_extensions==4.10"]
    assert floor(tmp_path, "nir").stdout.split()[2:] == ["nir==1.0.8"]
    refused = floor(tmp_path, "dev")
    assert refused.returncode == 1 and "'pytest' names no minimum" in refused.stderr


def test_all_that_the_product_needs_has_a_minimum() -> None:
    done = floor(ROOT, "nir")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 13 and "\nclick==8.2\n" in done.stdout
