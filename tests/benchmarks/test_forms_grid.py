"""`benchmarks/forms_grid.py`: what its points cover, their networks, and what is told of them."""

import json
from itertools import combinations, product
from pathlib import Path

import forms_grid
import pytest
from forms_grid import FACTORS, IMAGES, Point, covering_points, main, model_of, summary
from places import ROOT


def test_every_pair_of_values_occurs_and_points_stay_short() -> None:
    points = covering_points(0, 2025)
    assert len(points) < 200
    for one, other in combinations(FACTORS, 2):
        found = {(getattr(point, one), getattr(point, other)) for point in points}
        assert found == set(product(FACTORS[one], FACTORS[other])), (one, other)
    assert all(point.synops <= forms_grid.MOST_SYNOPS for point in points)
    assert len(covering_points(180, 2025)) >= 175
    assert covering_points(0, 1) != points


def test_a_network_has_the_density_and_the_rate_of_its_point() -> None:
    point = Point(rate=0.1, density=0.2, sides=(9, 11), steps=3, depth=2, channels=32)
    model, images = model_of(point)
    spikes = model.module().record(images).spikes
    assert [tuple(fired.shape) for fired in spikes.values()] == [(3, IMAGES, 32, 9, 11)] * 3
    for fired in spikes.values():
        assert fired.float().mean().item() == pytest.approx(0.1, abs=0.01)
    weights = [model.state[f"{at}.weight"] for at in (3, 6)]
    for weight in weights:
        assert weight.shape == (32, 32, 3, 3)
        assert (weight != 0).mean() == pytest.approx(0.2, abs=0.02)


def test_a_point_that_is_slower_fails_the_grid() -> None:
    text, holds = summary([{"ratio": ratio} for ratio in (0.95, 1.6, 2.0)])
    assert holds and "median 1.60 times as fast" in text and "than 10 %: 0 (0.0%)" in text
    assert not summary([{"ratio": ratio} for ratio in (0.9, 1.6, 2.0)])[1]
    assert not summary([{"ratio": ratio} for ratio in (1.0, 1.4, 2.0)])[1]


def test_both_versions_run_and_an_outlier_is_measured_in_all_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against itself, with a limit that makes each point an outlier; nothing runs again."""
    points = [Point(0.2, 0.05, (6, 6), 2, 1, 16)]
    monkeypatch.setattr(forms_grid, "covering_points", lambda count, seed: points)
    monkeypatch.setattr(forms_grid, "SLOWER", 1e9)
    monkeypatch.setattr(forms_grid, "MOST_RUNS", 2)
    words = ["--against", str(ROOT), "--folder", str(tmp_path)]
    assert main([*words, "--seconds", "0"]) == 1
    assert not (tmp_path / "forms_grid.json").exists()
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "Worst points" in printed and "1 points: median" in printed and "; 0 left" in printed
    (told,) = json.loads((tmp_path / "forms_grid.json").read_text())["points"]
    (chosen,) = list(told["chosen"].values())[1:]
    assert {chosen, *told["other_forms"]} == {"sparse", "planes"}
    assert len(told["repeats"]) == 4 and told["score_difference"] < 1e-5
    monkeypatch.setattr(forms_grid, "measured", None)  # all is there: nothing runs again
    assert main(words) == 1


def test_what_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--against", str(tmp_path)])
    assert "give the root of a checkout" in capsys.readouterr().err
