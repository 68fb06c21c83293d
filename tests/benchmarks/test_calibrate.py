"""`benchmarks/calibrate.py`: both forms of one layer compute the same, and where they cross."""

import json
from pathlib import Path

import calibrate
import numpy as np
import pytest
from calibrate import Crossing, calibration_report, crossover
from click.testing import CliRunner
from places import ROOT

from soul_deploy.cli.main import root
from soul_deploy.runtime.format.network import DenseRows
from soul_deploy.runtime.plan.regions import run_calls


def test_the_crossover_lies_between_two_measured_densities() -> None:
    found = [Crossing(0.1, 2.0, 6.0), Crossing(0.2, 4.0, 6.0), Crossing(0.4, 8.0, 6.0)]
    assert crossover(found) == pytest.approx(0.3)
    assert crossover(found[:2]) is None
    assert crossover([Crossing(0.1, 7.0, 6.0)]) is None
    assert "overtake compressed ones: at 30% of the weights" in calibration_report(found)
    assert "none in this range" in calibration_report(found[:2])


def test_both_forms_leave_the_same_spikes() -> None:
    rng = np.random.default_rng(0)
    channels, side = calibrate.CHANNELS, calibrate.SIDE
    values = (rng.random((2, side * side, channels)) < 0.02).astype(np.uint8)
    weight = rng.integers(-4, 5, (channels, 3, 3, channels)).astype(np.float32) / 8
    weight[rng.random(weight.shape) >= 0.02] = 0
    compressed = calibrate._compressed(weight)
    assert len(compressed.targets) == np.count_nonzero(weight)
    spikes = []
    for rows in (compressed, DenseRows(weight)):
        calls = calibrate._calls(rows, values)
        run_calls(calls)
        spikes.append(calls[-1].arguments[7].copy())
    assert spikes[0].any()
    np.testing.assert_array_equal(*spikes)


def test_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(calibrate, "DENSITIES", (0.02,))
    monkeypatch.setattr(calibrate, "CHANNELS", 8)
    monkeypatch.setattr(calibrate, "SIDE", 6)
    calibrate.main(["--iterations", "2", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "soul-deploy/calibration/1"
    assert document["layers"][0]["density"] == 0.02 and document["crossover"] is None
    calibrate.main(["--iterations", "2"])
    assert "compressed ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--reference"], "unrecognized arguments: --reference"),
        (["--rate", "2"], "--rate 2: give 0 < rate <= 1"),
        (["--rate", "0"], "--rate 0: give 0 < rate <= 1"),
        (["--time_step", "0"], "--time_step 0: give 1 to 65535"),
        (["--time_step", "65536"], "--time_step 65536: give 1 to 65535"),
        (["--iterations", "0"], "--iterations 0: give at least 1"),
    ],
)
def test_wrong_use(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        calibrate.main(words)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["roof", "calibrate"])
def test_the_former_option_names_the_script(name: str, tmp_path: Path) -> None:
    words = ["bench", "sparse", f"--{name}", "--event", str(tmp_path / "none")]
    done = CliRunner().invoke(root, words)
    assert done.exit_code == 2
    assert f"--{name} is a script of its own now; run python benchmarks/{name}.py" in done.output
    assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert f"--{name}" not in CliRunner().invoke(root, ["bench", "sparse", "--help"]).output
