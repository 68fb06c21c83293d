"""What two checks found: the verdict, the words and the numbers, from results made by hand."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from soul_deploy.equivalence.comparison import (
    LOGIT_LIMIT,
    CheckResult,
    Comparison,
    check_lines,
    first_lines,
    spikes_table,
    verdict_text,
)
from soul_deploy.equivalence.counts import CountDifference, CountMismatch
from soul_deploy.equivalence.spikes import LISTED, LayerSpikes, SpikeMismatch
from soul_deploy.equivalence.verdict import Verdict

FIRST = SpikeMismatch("a", 1, 2, (0, 3), True, 5e-7, 1e-6)
TRACED = SpikeMismatch("b", 2, 2, (1,), False, -0.5, 1e-6, cause=FIRST)
FAR = SpikeMismatch("b", 0, 3, (4,), False, 0.25, 1e-6)


def layer(name: str, *flips: SpikeMismatch, spikes: int = 12, samples: int = 4) -> LayerSpikes:
    unexplained = sum(not flip.explained for flip in flips)
    return LayerSpikes(
        name, 6, samples, spikes, spikes + 1, spikes, 2 * len(flips), len(flips), unexplained, flips
    )


def check(*layers: LayerSpikes, **fields: Any) -> CheckResult:
    return CheckResult(samples=4, layers=layers, **fields)


GOOD = check(layer("a"), layer("b"), agreeing=4)
FLIPPED = check(
    layer("a", FIRST), layer("b", TRACED), agreeing=3, flipped_samples=1, counted=True,
    logit_difference=2e-6, logit_difference_flipped=0.5,
    differences=(CountDifference("c", "synops", 4, 4),),
)  # fmt: skip


def both(forced: CheckResult = GOOD, whole: CheckResult = GOOD, **fields: Any) -> Comparison:
    return Comparison(forced=forced, end_to_end=whole, time_steps=5, **fields)


def test_a_check_passes_only_if_everything_does() -> None:
    assert GOOD.passed and FLIPPED.passed
    assert (FLIPPED.flipped, FLIPPED.unexplained) == (2, 0)
    assert check(layer("a", FAR, FIRST), layer("b", TRACED)).flipped == 3
    for wrong in (
        replace(GOOD, logit_difference=LOGIT_LIMIT * 1.01),
        replace(GOOD, logit_difference=math.nan),
        replace(GOOD, layers=(layer("a"), layer("b", FAR))),
        replace(GOOD, layers=(layer("a", FAR), layer("b"))),
        replace(GOOD, mismatches=(CountMismatch("c", "synops", 1, 2),)),
        replace(GOOD, differences=(CountDifference("c", "synops", 4, 3),)),
        replace(FLIPPED, differences=(*FLIPPED.differences, CountDifference("d", "x", -1, 1))),
    ):
        assert not wrong.passed
        assert both(wrong).verdict is both(GOOD, wrong).verdict is Verdict.FAILED
    assert replace(GOOD, logit_difference=LOGIT_LIMIT).passed


def test_the_verdict_needs_samples_and_spikes() -> None:
    assert both().passed and both().verdict is Verdict.PASSED and both().silent == ()
    quiet = check(layer("a"), layer("b", spikes=0))
    assert both(GOOD, quiet).verdict is Verdict.INCONCLUSIVE and not both(GOOD, quiet).passed
    assert both(GOOD, quiet).silent == ("b",) and both(quiet).silent == ()
    assert both(GOOD, quiet, allow_silent=True).passed
    empty = replace(GOOD, samples=0)
    assert both(GOOD, empty).verdict is both(empty, empty).verdict is Verdict.INCONCLUSIVE
    assert both(empty).passed  # no layers that could be run alone: end to end carries it


def test_batches_add_up() -> None:
    more = check(layer("a", FAR), layer("b"), agreeing=1, flipped_samples=2, logit_difference=1e-6,
                 logit_difference_flipped=0.75, mismatches=(CountMismatch("c", "x", 1, 2),),
                 differences=(CountDifference("c", "synops", 3, -1),
                              CountDifference("c", "touched", 1, 1)))  # fmt: skip
    found = FLIPPED + more
    assert (found.samples, found.agreeing, found.flipped_samples) == (8, 4, 3)
    assert (found.logit_difference, found.logit_difference_flipped) == (2e-6, 0.75)
    assert found.counted and (more + FLIPPED).counted and not (more + GOOD).counted
    assert found.mismatches == more.mismatches
    assert found.differences == (
        CountDifference("c", "synops", 7, 3), CountDifference("c", "touched", 1, 1),
    )  # fmt: skip
    first, second = found.layers
    assert (first.samples, first.golden_spikes, first.other_spikes) == (8, 24, 26)
    assert (first.driven_spikes, first.differing, first.flipped, first.unexplained) == (24, 4, 2, 1)
    assert first.flips == (FAR, FIRST) and first.neurons == 6  # what nothing explains is first
    assert second.flips == (TRACED,)
    assert CheckResult() + more == more
    assert math.isnan((GOOD + replace(more, logit_difference=math.nan)).logit_difference)
    assert math.isnan((replace(GOOD, logit_difference=math.nan) + more).logit_difference)
    many = layer("a", *[FIRST] * (LISTED - 1)) + layer("a", TRACED, FAR)
    assert len(many.flips) == LISTED and many.flips[0] == FAR and many.flipped == LISTED + 1


def test_the_table_has_a_row_for_each_population() -> None:
    forced = check(layer("a", FIRST), layer("b", FAR))
    table = spikes_table(both(forced, FLIPPED))
    assert table.rows == (
        ("a", 6, "10.00%", 12, 1, 1, 2, 0),  # 12 of 6 neurons · 4 samples · 5 steps
        ("b", 6, "10.00%", 12, 1, 1, 2, 1),
    )


def test_the_lines_of_both_checks() -> None:
    forced = check(
        layer("a"), layer("b", FAR), counted=True, logit_difference=1.5e-6,
        mismatches=(CountMismatch("c", "synops", 3, 5, (1, 2)), CountMismatch("c", "x", 1, 0)),
    )  # fmt: skip
    quiet = check(layer("a", spikes=0), layer("b"))
    alone, chained = check_lines(both(forced, FLIPPED))
    assert alone == [
        "layer by layer: FAILED, 1 flips, 1 unexplained, 2 counts differ, logits within 1.5e-06",
        "  c: synops is 3 in the golden, 5 here, at step 1 of sample 2",
        "  c: x is 1 in the golden, 0 here",
        "  b[4] sample 3 step 0: golden is silent, distance +0.25 (allowed 1e-06) UNEXPLAINED",
    ]
    assert chained == [
        "end to end: passed, same class on 3 of 4 samples, 2 flips on 1 samples, 0 unexplained, "
        "counts differ by the fan-out of what flipped, exactly, logits within 2e-06 on samples "
        "without a flip",
        "  c: synops differs by +4, the fan-out of the spikes that differ is +4",
        "  a[0, 3] sample 2 step 1: golden fires, distance +5e-07 (allowed 1e-06)",
        "  b[1] sample 2 step 2: golden is silent, distance -0.5 (allowed 1e-06), traced to "
        "a[0, 3] step 1",
    ]
    (alone, chained) = check_lines(both(replace(GOOD, counted=True), quiet))
    assert alone == [
        "layer by layer: passed, 0 flips, 0 unexplained, no counts differ, logits within 0"
    ]
    assert "0 unexplained, not counted by this engine, logits" in chained[0]
    assert chained[1:] == ["Never spiked on these images: a"]
    assert "not counted by this engine" in check_lines(both())[0][0]
    wrong = replace(
        FLIPPED, mismatches=forced.mismatches, differences=(CountDifference("c", "x", 1, 2),)
    )
    assert ", 3 counts differ, logits" in check_lines(both(GOOD, wrong))[1][0]
    right = replace(GOOD, counted=True)
    assert ", no counts differ, logits" in check_lines(both(GOOD, right))[1][0]


def test_unexplained_flips_come_first_then_those_with_causes_last() -> None:
    whole = check(layer("a", FIRST), layer("b", TRACED, FAR))
    lines = check_lines(both(GOOD, whole))[1][1:]
    assert [line.split()[0] for line in lines] == ["b[4]", "a[0,", "b[1]"]


def test_ten_things_are_listed_and_the_others_counted() -> None:
    assert list(first_lines(range(10))) == [f"  {n}" for n in range(10)]
    assert list(first_lines(range(12)))[9:] == ["  9", "  and 2 more"]


def test_the_words_of_a_verdict() -> None:
    names = [f"n{k}" for k in range(10)]
    assert verdict_text(Verdict.FAILED, names) == "NO"
    assert verdict_text(Verdict.PASSED, []) == "yes"
    assert verdict_text(Verdict.INCONCLUSIVE, []) == "inconclusive"
    shown = ", ".join(names[:8])
    assert verdict_text(Verdict.PASSED, names[:8]) == f"yes; never fired, so untested: {shown}"
    assert verdict_text(Verdict.INCONCLUSIVE, names) == (
        f"inconclusive: never fired, so untested: {shown} and 2 more"
    )
    assert both().text().splitlines()[-1] == "Same: yes"


def test_json_has_everything_and_no_infinities() -> None:
    far = replace(FAR, distance=math.inf)
    forced = check(layer("a", far), layer("b"), logit_difference=math.nan)
    data = both(forced, FLIPPED, allow_silent=True).to_dict()
    data = json.loads(json.dumps(data, allow_nan=False))
    assert data["verdict"] == "failed" and data["passed"] is False and data["time_steps"] == 5
    assert data["logit_limit"] == LOGIT_LIMIT and data["silent_layers"] == []
    assert data["allow_silent"] is True
    found = data["forced"]
    assert found["logit_difference"] is None and found["layers"][0]["flips"][0]["distance"] is None
    assert (found["flipped"], found["unexplained"], found["passed"]) == (1, 1, False)
    whole = data["end_to_end"]
    assert (whole["flipped"], whole["unexplained"], whole["passed"]) == (2, 0, True)
    assert whole["layers"][1]["flips"][0]["cause"]["layer"] == "a"
    assert whole["differences"] == [
        {"layer": "c", "count": "synops", "difference": 4, "explained": 4, "fewer": 0, "more": 0}
    ]


@pytest.mark.parametrize("distance", [1e-6, -1e-6, 0.0])
def test_a_flip_within_the_allowance_is_explained(distance: float) -> None:
    near = replace(FAR, distance=distance)
    assert near.near and near.explained and "UNEXPLAINED" not in str(near)
    beyond = replace(FAR, distance=math.copysign(1.1e-6, distance))
    assert not beyond.near and not beyond.explained and str(beyond).endswith(" UNEXPLAINED")
    assert replace(beyond, cause=FIRST).explained and not layer("a").silent
    assert replace(layer("a"), driven_spikes=0).silent and layer("a", near).passed


def test_the_table_says_what_was_compared_alone_and_end_to_end() -> None:
    hidden = replace(layer("a", FIRST), compared=False)
    shown = layer("a", FAR, TRACED)
    for alone, chained, cells in (
        ((), shown, ("-", 2, 4, 1)),  # no layers that could be run alone
        ((layer("a", FAR),), shown, (1, 2, 4, 2)),  # one unexplained in each of the two checks
        ((layer("a", FAR),), hidden, (1, "-", "-", 1)),
        ((), hidden, ("-", "-", "-", "-")),
    ):
        [row] = spikes_table(both(check(*alone), check(chained))).rows
        assert row[4:] == cells
    told = check_lines(both(GOOD, check(hidden)))[1][0]
    assert "spikes not compared" in told and not check(hidden, layer("b")).spikes_compared
    assert "0 flips on 0 samples" in check_lines(both())[1][0]


def test_many_things_are_counted_and_large_counts_agree() -> None:
    assert list(first_lines(range(25)))[10:] == ["  and 15 more"]
    large = int("4000")  # not the same object as another 4000
    right = replace(
        GOOD, counted=True, differences=(CountDifference("c", "x", large, int("4000")),)
    )
    assert ", counts differ by the fan-out" in check_lines(both(GOOD, right))[1][0]


def test_results_are_values_that_do_not_change() -> None:
    for result, name in ((GOOD, "samples"), (both(), "time_steps")):
        with pytest.raises(FrozenInstanceError):
            setattr(result, name, 1)
        assert "layers=(" not in repr(result)
    with pytest.raises(TypeError):
        CheckResult(1)  # type: ignore[call-arg]
    assert CheckResult() == CheckResult(samples=0, flipped_samples=0, agreeing=0)
    with pytest.raises(ValueError, match="shorter"):
        FLIPPED + check(layer("a"))
