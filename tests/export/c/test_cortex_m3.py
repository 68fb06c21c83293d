"""The self-test on an emulated Cortex-M3, as examples/microcontroller/README.md says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from counting_nets import counting_network, inputs

from soul_deploy.export.c.write import export_c

EXAMPLE = Path(__file__).parents[3] / "examples" / "microcontroller"
NEEDED = ("make", "arm-none-eabi-gcc", "qemu-system-arm")
MISSING = [tool for tool in NEEDED if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not on this machine: {', '.join(MISSING)}"),
    pytest.mark.skipif(not EXAMPLE.is_dir(), reason="the examples are not here"),
]


def make(folder: Path, *words: str) -> str:
    command = ["make", "-s", *words, f"MODEL={folder.parent / 'net'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def board(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "board")
    export_c(counting_network(), tmp_path / "net", inputs())
    return tmp_path / "board"


def test_spikes_scores_and_synops_are_the_model_s(board: Path) -> None:
    said = make(board, "test")
    assert "passed: 2 samples, 0 differences" in said
    counted = re.search(r"SynOps: (\d+), (\d+) expected", said)
    assert counted is not None and counted[1] == counted[2] and int(counted[1]) > 0


def test_instructions_are_counted(board: Path) -> None:
    said = make(board, "measure")
    counted = re.search(r"thousand instructions of sample 0: (\d+)", said)
    assert counted is not None and 5 < int(counted[1]) < 500


def test_another_weight_fails(board: Path) -> None:
    header = board.parent / "net" / "model.c"
    header.write_text(header.read_text().replace("h > 40", "h > 20"))
    done = subprocess.run(
        ["make", "-s", "test", f"MODEL={board.parent / 'net'}"],
        cwd=board, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0 and "FAILED" in done.stdout
