"""Channels within a budget of cost: the rule one channel at a time, floors, awkward values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.base.errors import SoulDeployError
from soul_deploy.prune.structured import budget
from soul_deploy.prune.structured.costs import Costs, PairCosts
from soul_deploy.prune.structured.selection import Flags, Values

Arrays = dict[str, Values]


def chain(*pairs: list[list[float]]) -> Costs:
    """Units u0, u1, ...: the first projection reads analog values, the next reads u0, and so on."""
    parts, widths = [], {}
    for i, rows in enumerate(pairs):
        array = np.array(rows, np.float64)
        readers = {f"u{i - 1}": np.ones(array.shape[1])} if i else {}
        parts.append(PairCosts(f"p{i}", array, np.zeros(len(array)), f"u{i}", readers))
        widths[f"u{i}"] = len(array)
    return Costs(tuple(parts), widths)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Costs, Arrays, Arrays, dict[str, int], float]:
    """Few values, so that there are many ties and zeros; layers of one channel among them."""
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    few = st.integers(0, 3).map(float)
    pairs, before = [], 1
    for width in widths:
        rows = st.lists(st.lists(few, min_size=before, max_size=before), min_size=width,
                        max_size=width)  # fmt: skip
        pairs.append(draw(rows))
        before = width
    costs = chain(*pairs)

    def drawn() -> Arrays:
        return {n: np.array(draw(st.lists(few, min_size=w, max_size=w)))
                for n, w in costs.widths.items()}  # fmt: skip

    floors = {name: draw(st.integers(1, width)) for name, width in costs.widths.items()}
    wanted = draw(st.integers(0, 60)) / 2
    return costs, drawn(), drawn(), floors, wanted


def copied(keep: dict[str, Flags]) -> dict[str, Flags]:
    return {name: flags.copy() for name, flags in keep.items()}


def naive_prices(costs: Costs, keep: dict[str, Flags]) -> dict[tuple[str, int], float]:
    """What opening or closing each channel changes; the least is a hundredth of their mean."""
    found = {}
    for name, flags in keep.items():
        for i in range(len(flags)):
            totals = []
            for state in (False, True):
                other = copied(keep)
                other[name][i] = state
                totals.append(costs.total(other))
            found[name, i] = totals[1] - totals[0]
    least = sum(found.values()) / len(found) / 100
    return {key: max(price, least, budget.TINY) for key, price in found.items()}


def naive_shrinking(
    costs: Costs, scores: Arrays, floors: dict[str, int], wanted: float, rule: budget.Rule
) -> dict[str, Flags]:
    """One channel at a time, each cost the difference of two totals."""
    keep, priced = costs.all_open(), costs.prices
    while costs.total(keep) > wanted:
        best: tuple[float, int, str, int] | None = None
        order, prices = 0, {} if priced is None else naive_prices(priced, keep)
        for name, flags in keep.items():
            held = float(scores[name][flags].sum())
            for i in range(len(flags)):
                order += 1
                if not flags[i] or flags.sum() <= floors[name]:
                    continue
                less = copied(keep)
                less[name][i] = False
                saved = costs.total(keep) - costs.total(less)
                if not 0 < saved < 2 * (costs.total(keep) - wanted):
                    continue
                share = scores[name][i] / held if held > 0 else 1.0
                paid = prices[name, i] ** 0.2 if prices else saved**0.5
                worth = scores[name][i] if rule == "score" else share / paid
                key = (worth, -order, name, i)
                best = key if best is None or key[:2] < best[:2] else best
        if best is None:
            break
        keep[best[2]][best[3]] = False
    return keep


@given(cases(), st.sampled_from(budget.RULES))
def test_shrinking_equals_the_naive_rule(
    case: tuple[Costs, Arrays, Arrays, dict[str, int], float], rule: budget.Rule
) -> None:
    """So few channels that each round takes one."""
    costs, scores, _, floors, wanted = case
    found = budget.shrunk(costs.all_open(), scores, costs, wanted, floors, rule)
    expected = naive_shrinking(costs, scores, floors, wanted, rule)
    for name, keep in expected.items():
        assert found[name].tolist() == keep.tolist(), name


@given(cases(), st.sampled_from(budget.RULES))
def test_counting_channels_by_their_price_equals_the_naive_rule(
    case: tuple[Costs, Arrays, Arrays, dict[str, int], float], rule: budget.Rule
) -> None:
    """As many stay as asked for, or the floors; those that cost nothing can go too."""
    costs, scores, gradients, floors, half = case
    wanted, counted = math.floor(half), costs.counted()
    found = budget.shrunk(counted.all_open(), scores, counted, wanted, floors, rule)
    expected = naive_shrinking(counted, scores, floors, wanted, rule)
    assert {n: flags.tolist() for n, flags in found.items()} == {
        n: flags.tolist() for n, flags in expected.items()
    }
    total = sum(costs.widths.values())
    for regrow in (0.0, 0.5):
        plan = budget.decide(scores, gradients, counted, wanted, regrow, floors, rule)
        assert plan.kept == min(total, max(wanted, sum(floors.values())))
        assert all(layer.keep.sum() >= floors[layer.name] for layer in plan.layers)


def test_a_price_weighs_less_than_a_cost_that_is_to_be_saved() -> None:
    """Shares 1/2 and 1/4, costs 18 and 1: 0.5 / 18^0.2 > 0.25, but 0.5 / 18^0.5 < 0.25."""
    costs = chain([[16], [16]], [[0.5, 0.5]] * 4)
    scores, floors = {"u0": np.ones(2), "u1": np.ones(4)}, {"u0": 1, "u1": 1}
    counted = budget.shrunk(costs.all_open(), scores, costs.counted(), 5, floors)
    assert [int(counted[unit].sum()) for unit in ("u0", "u1")] == [2, 3]
    saved = budget.shrunk(costs.all_open(), scores, costs, 20, floors)
    assert [int(saved[unit].sum()) for unit in ("u0", "u1")] == [1, 4]


def test_a_channel_that_costs_nothing_is_no_bargain() -> None:
    """Prices 1, 1, 0 and scores 1, 1, 0.1: what is worth least goes, though it saves nothing."""
    costs = chain([[0], [0], [0]], [[1, 1, 0]])
    scores = {"u0": np.array([1, 1, 0.1]), "u1": np.ones(1)}
    floors = {"u0": 1, "u1": 1}
    found = budget.shrunk(costs.all_open(), scores, costs.counted(), 3, floors)
    assert found["u0"].tolist() == [True, True, False]


@given(cases(), st.sampled_from([0.0, 0.1, 0.5]))
def test_a_plan_keeps_floors_and_nears_its_cost(
    case: tuple[Costs, Arrays, Arrays, dict[str, int], float], regrow: float
) -> None:
    costs, scores, gradients, floors, wanted = case
    plan = budget.decide(scores, gradients, costs, wanted, regrow, floors)
    keep = {layer.name: layer.keep for layer in plan.layers}
    total = costs.total(keep)
    for layer in plan.layers:
        assert layer.keep.sum() >= floors[layer.name]
        assert not (layer.regrown & ~layer.keep).any()
    least = budget.least(costs, floors)
    if total > wanted:  # only floors, or a last channel that brought it nearer
        last = [
            total - costs.total({**keep, name: np.where(np.arange(len(flags)) == i, False, flags)})
            for name, flags in keep.items()
            for i in np.flatnonzero(flags)
            if flags.sum() > floors[name]
        ]
        bound = total - wanted <= max(last, default=0.0) + 1e-9
        assert bound or math.isclose(total, least) or all(cost == 0 for cost in last)
    twice = budget.decide(scores, gradients, costs, wanted, regrow, floors)
    assert plan.keeps_as(twice)


@given(cases())
def test_a_correction_of_what_fits_changes_nothing_and_others_get_nearer(
    case: tuple[Costs, Arrays, Arrays, dict[str, int], float],
) -> None:
    costs, scores, gradients, floors, wanted = case
    plan = budget.decide(scores, gradients, costs, wanted, 0.1, floors)
    keep = {layer.name: layer.keep for layer in plan.layers}
    before = abs(costs.total(keep) - wanted)
    for goal in (wanted, wanted / 2, 2 * wanted):
        again = budget.correct(keep, scores, gradients, costs, goal, floors)
        after = costs.total({layer.name: layer.keep for layer in again.layers})
        if costs.total(keep) <= goal:
            assert abs(after - goal) <= abs(costs.total(keep) - goal)
        if goal == wanted and costs.total(keep) <= wanted:
            assert abs(after - wanted) == before and again.keeps_as(plan)


def test_a_busy_channel_pays_for_what_it_costs() -> None:
    """Of equal scores the one that costs more goes first; it stays if it is worth that."""
    costs = chain([[0], [0], [0], [0]], [[9, 1, 1, 1]])
    floors = {"u0": 1, "u1": 1}
    one = {"u1": np.ones(1)}
    even = budget.shrunk(costs.all_open(), {"u0": np.ones(4), **one}, costs, 3, floors)
    assert even["u0"].tolist() == [False, True, True, True]
    busy = {"u0": np.array([90.0, 1, 1, 1]), **one}
    kept = budget.shrunk(costs.all_open(), busy, costs, 9, floors)
    assert kept["u0"].tolist() == [True, False, False, False]


def test_by_score_alone_the_lowest_go_whatever_they_save() -> None:
    """Costs 9, 1, 1, 1: the third goes, then the first, which leaves 2 of the 3 that may stay."""
    costs = chain([[0], [0], [0], [0]], [[9, 1, 1, 1]])
    floors, scores = {"u0": 1, "u1": 1}, {"u0": np.array([2.0, 3, 1, 4]), "u1": np.ones(1)}
    slopes = {"u0": np.array([1.0, 0, 5, 0]), "u1": np.ones(1)}
    for rule, kept, grown in (
        ("score", [False, True, False, True], [False, True, True, True]),
        ("per_cost", [False, True, True, True], [False, True, True, True]),
    ):
        rules: budget.Rule = "score" if rule == "score" else "per_cost"
        found = budget.shrunk(costs.all_open(), scores, costs, 3, floors, rules)
        assert found["u0"].tolist() == kept
        plan = budget.decide(scores, slopes, costs, 3, 0.0, floors, rule=rules)
        assert plan.layers[0].keep.tolist() == grown  # 3 is met by what has the larger gradient
        assert budget.correct(found, scores, slopes, costs, 3, floors, rules).keeps_as(plan)


def test_values_that_are_not_finite_are_refused() -> None:
    costs = chain([[1.0], [1.0]])
    wrong, right = {"u0": np.array([1, math.nan])}, {"u0": np.ones(2)}
    for scores, gradients in ((wrong, right), (right, wrong)):
        with pytest.raises(SoulDeployError, match="not finite"):
            budget.decide(scores, gradients, costs, 1.0, 0.0, {"u0": 1})


def test_the_reserve_is_what_would_come_back_first() -> None:
    costs = chain([[1.0]] * 4)
    keep = {"u0": np.array([True, False, False, False])}
    slopes = {"u0": np.array([9.0, 1, 3, 2])}
    found = budget.reserve(keep, slopes, costs, 2)
    assert found["u0"].tolist() == [False, False, True, True]
    assert budget.reserve(keep, slopes, costs, 9)["u0"].tolist() == [False, True, True, True]
