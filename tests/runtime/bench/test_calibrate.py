"""`bench sparse --calibrate`: both forms of one layer compute the same, and where they cross."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from soul_deploy.cli.main import root
from soul_deploy.runtime.bench import calibrate as bench_calibrate
from soul_deploy.runtime.bench.calibrate import Crossing, calibration_report, crossover
from soul_deploy.runtime.format.network import DenseRows
from soul_deploy.runtime.plan.partition import run_calls


def test_the_crossover_lies_between_two_measured_densities() -> None:
    found = [Crossing(0.1, 2.0, 6.0), Crossing(0.2, 4.0, 6.0), Crossing(0.4, 8.0, 6.0)]
    assert crossover(found) == pytest.approx(0.3)
    assert crossover(found[:2]) is None
    assert crossover([Crossing(0.1, 7.0, 6.0)]) is None
    assert "overtake compressed ones: at 30% of the weights" in calibration_report(found)
    assert "none in this range" in calibration_report(found[:2])


def test_both_forms_leave_the_same_spikes() -> None:
    rng = np.random.default_rng(0)
    channels, side = bench_calibrate.CHANNELS, bench_calibrate.SIDE
    values = (rng.random((2, side * side, channels)) < 0.02).astype(np.uint8)
    weight = rng.integers(-4, 5, (channels, 3, 3, channels)).astype(np.float32) / 8
    weight[rng.random(weight.shape) >= 0.02] = 0
    compressed = bench_calibrate._compressed(weight)
    assert len(compressed.targets) == np.count_nonzero(weight)
    spikes = []
    for rows in (compressed, DenseRows(weight)):
        calls = bench_calibrate._calls(rows, values)
        run_calls(calls)
        spikes.append(calls[-1].arguments[7].copy())
    assert spikes[0].any()
    np.testing.assert_array_equal(*spikes)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_calibrate, "DENSITIES", (0.02,))
    monkeypatch.setattr(bench_calibrate, "CHANNELS", 8)
    monkeypatch.setattr(bench_calibrate, "SIDE", 6)
    words = ["bench", "sparse", "--calibrate", "--iterations", "2"]
    done = CliRunner().invoke(root, [*words, "--format", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["schema"] == "soul-deploy/calibration/1"
    assert document["layers"][0]["density"] == 0.02 and document["crossover"] is None
    assert "compressed ms" in CliRunner().invoke(root, words).stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--reference"], "--reference: --calibrate times a layer of its own"),
        (["--rate", "2"], "--rate 2: give 0 < rate <= 1"),
        (["--rate", "0"], "--rate 0: give 0 < rate <= 1"),
        (["--time_step", "0"], "--time_step 0 must be at least 1"),
    ],
)
def test_wrong_use(words: list[str], text: str) -> None:
    done = CliRunner().invoke(root, ["bench", "sparse", "--calibrate", *words])
    assert done.exit_code == 2
    assert text in done.output
