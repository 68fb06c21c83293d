"""`benchmarks/calibrate.py`: constants that explain times, and what choosing by them costs."""

import json
from dataclasses import replace
from pathlib import Path

import calibrate
import numpy as np
import pytest
from calibrate import Case, Timed, choices, constants_text, fit, report
from click.testing import CliRunner
from places import ROOT

from soul_deploy.cli.main import root
from soul_deploy.runtime.plan import costs
from soul_deploy.runtime.plan.costs import KINDS, WITH_MASKS, Costs
from soul_deploy.runtime.plan.forms import possible_forms
from soul_deploy.runtime.plan.layer_plan import aligned
from soul_deploy.runtime.plan.layout import channel_last
from soul_deploy.runtime.plan.regions import run_calls

SMALL = Case(16, 24, 6, 0.3, 0.2)


def timed(case: Case, form: str, ns: float, **work: float) -> Timed:
    return Timed(case, form, work, ns)


def test_the_fit_finds_constants_that_made_the_times() -> None:
    """Of kinds that nothing does, it takes the constants of before."""
    true = replace(costs.costs_here(), launch=500.0, lane_row=3.5, pack=0.07)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(8):
        work = {kind: float(rng.integers(1, 1000)) for kind in ("launch", "lane_row", "pack")}
        found.append(timed(SMALL, "sparse", true.nanoseconds(work), **work))
    assert fit(found) == true


def test_no_constant_is_negative() -> None:
    found = [
        timed(SMALL, "sparse", 10, launch=1, pack=9),
        timed(SMALL, "sparse", 10, launch=2, pack=1),
        timed(SMALL, "sparse", 11, launch=3),
    ]
    constants = fit(found)
    assert all(getattr(constants, kind) >= 0 for kind in KINDS)
    assert constants.pack > 0 and constants.launch > 0


def test_what_a_wrong_choice_costs() -> None:
    """By the constants `planes` takes 2 ns, `sparse` 3, `gather` 1: what was measured is other."""
    constants = Costs(**dict.fromkeys(KINDS, 1.0))
    found = [
        timed(SMALL, "sparse", 20, lane_row=3),
        timed(SMALL, "planes", 30, pack=2),
        timed(SMALL, "gather", 60, launch=1),
        timed(Case(1, 1, 1, 1.0), "dense", 7, launch=1),
    ]
    told = [(c.chosen, c.fastest, c.ratio) for c in choices(found, constants, stored=True)]
    assert told == [("planes", "sparse", 1.5), ("gather", "gather", 1), ("dense", "dense", 1)]
    told = [(c.chosen, c.fastest, c.ratio) for c in choices(found, constants, stored=False)]
    assert told == [("gather", "sparse", 3), ("dense", "dense", 1)]
    text = report(found, constants)
    assert "Worst of 3 choices among forms of the same rows" in text and "1.50" in text
    assert "16→24 6×6 3×3 30.00% at 20%, T = 4" in text


def test_the_constants_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    for masks, name in ((True, "WITH_MASKS"), (False, "WITHOUT_MASKS")):
        monkeypatch.setattr(calibrate, "has_mask_registers", lambda: masks)  # noqa: B023
        text = constants_text(WITH_MASKS)
        assert text.startswith(f"{name} = Costs(\n    launch=")
        inside = text.removeprefix(f"{name} = Costs(").removesuffix(")")
        pairs = (line.strip(" ,").split("=") for line in inside.strip().splitlines())
        assert Costs(**{kind: float(value) for kind, value in pairs}) == WITH_MASKS


@pytest.mark.parametrize(
    "case",
    [SMALL, Case(16, 24, 6, 0.3, 0.2, stride=2), Case(40, 16, 0, 0.3, 0.2), Case(3, 8, 6, 1, 1, 4)],
)
def test_all_forms_of_a_layer_leave_the_same_spikes(case: Case) -> None:
    rng, spikes = np.random.default_rng(0), {}
    layers = calibrate.layers_of(case, rng)
    assert [layer.synapses.rows.dense for layer in layers] == [True, False]
    shape = (case.steps, *channel_last(layers[0].in_shape))
    values = aligned(shape, np.uint8)
    values[...] = rng.random(shape) < case.rate
    for layer in layers:
        network = calibrate.network_of(layer, case.steps)
        for form in possible_forms(layer):
            bound = calibrate.regions_of(network, form, values)
            for region in bound.regions:
                run_calls(region[0])
            spikes[form] = bound.out.copy()
    first, *others = spikes.values()
    assert first.any() and not first.all()
    for each in others:
        assert np.mean(each != first) < 0.001  # sums run in another order on bit planes


def test_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cases = (SMALL, Case(16, 24, 0, 0.3), Case(3, 8, 6, 1.0, 1.0, edge="analog"))
    for name in ("usual_cases", "other_cases"):
        monkeypatch.setattr(calibrate, name, lambda: cases)
    calibrate.main(["--milliseconds", "0", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "soul-deploy/calibration/2"
    assert document["constants"].keys() == set(KINDS) and document["worst"] >= 1
    forms = ["dense", "gather", "sparse", "planes", "dense", "sparse", "analog"]
    assert [each["form"] for each in document["forms"]] == forms
    assert all(each["ns"] > 0 for each in document["forms"])
    calibrate.main(["--milliseconds", "0"])
    assert " = Costs(\n    launch=" in capsys.readouterr().out
    calibrate.main(["--milliseconds", "0", "--check", "--json"])
    assert json.loads(capsys.readouterr().out)["constants"] == vars(costs.costs_here())
    calibrate.main(["--milliseconds", "0", "--check"])
    text = capsys.readouterr().out
    assert "Costs(" not in text and "Worst of 5 choices among forms of the same rows" in text


def test_the_cases_that_judge_are_not_those_that_fit() -> None:
    usual, other = calibrate.usual_cases(), calibrate.other_cases()
    assert len(usual) > 100 and len(other) > 100 and not set(usual) & set(other)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--reference"], "unrecognized arguments: --reference"),
        (["--milliseconds", "-1"], "--milliseconds -1: give 0 to 10000"),
        (["--milliseconds", "nan"], "--milliseconds nan: give 0 to 10000"),
        (["--milliseconds", "1e6"], "--milliseconds 1e+06: give 0 to 10000"),
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
