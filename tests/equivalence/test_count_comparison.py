"""Counts of an execution: right ones, wrong ones, and those that flipped spikes change."""

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from test_compare import AT_THRESHOLD, FIRES_AT_IT, ONES, two_layers
from torch import Tensor

from soul_deploy import ir
from soul_deploy.analysis.synops import count_steps
from soul_deploy.equivalence.counts import CountComparer, CountDifference, CountMismatch
from soul_deploy.equivalence.engines import Comparer, ExecutionRun, LayerRun, ModelExecution
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import StepCounts

Change = Callable[[str, StepCounts], StepCounts]
STEPS, SAMPLES = 3, 2


def nothing(name: str, counts: StepCounts) -> StepCounts:
    return counts


def more(at: tuple[int, int], count: str = "synops", where: str = "2") -> Change:
    """One operation too many, at this step and sample."""

    def change(name: str, counts: StepCounts) -> StepCounts:
        if name != where:
            return counts
        wrong = counts.values.get(count, np.zeros((STEPS, SAMPLES), np.int64)).copy()
        wrong[at] += 1
        return StepCounts({**counts.values, count: wrong})

    return change


class Counting(ModelExecution):
    """A model that counts, and what it counts is changed on the way out."""

    def __init__(self, model: Model, change: Change = nothing) -> None:
        super().__init__(model)
        self.entries = {entry.name: entry for entry in lower(model).counted}
        self.change = change

    def counts(self, names: list[str], values: Mapping[str, Tensor]) -> dict[str, StepCounts]:
        return {n: self.change(n, count_steps(self.entries[n], values)) for n in names}

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        known = {name: spikes.float() for name, spikes in run.spikes.items()} | {"input": images}
        counts = self.counts([*self.entries], known)
        return replace(run, counts={name: c.total() for name, c in counts.items()})

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        run = super().run_layer(layer, values)
        names = [n for n, e in self.entries.items() if layer in (e.population, n)]
        known = {name: signal.tensor for name, signal in values.items()}
        return replace(run, counts=self.counts(names, known | {layer: run.output.float()}))


REFERENCE = two_layers(first=1.5, second=1.5)


def comparer(model: Model = REFERENCE) -> Comparer:
    return Comparer(ReferenceModel(model))


def test_right_counts_agree() -> None:
    found = comparer().both(Counting(REFERENCE), ONES)
    for check in (found.forced, found.end_to_end):
        assert check.passed and check.counted and check.counts_agree
        assert not check.mismatches and not check.differences
    assert not comparer().both(ModelExecution(REFERENCE), ONES).end_to_end.counted


@pytest.mark.parametrize("at", [(0, 0), (1, 0), (2, 1)])
@pytest.mark.parametrize("count", ["synops", "touched", "spikes_out"])
def test_a_wrong_count_is_named_with_its_place(at: tuple[int, int], count: str) -> None:
    execution = Counting(REFERENCE, more(at, count))
    forced = comparer().forced(execution, ONES)
    (item,) = forced.mismatches
    assert not forced.passed and not forced.counts_agree
    assert (item.layer, item.count, item.place, item.other - item.golden) == ("2", count, at, 1)
    assert str(item) == (
        f"2: {count} is {item.golden} in the golden, {item.other} here, at step {at[0]} of "
        f"sample {at[1]}"
    )
    whole = comparer().end_to_end(execution, ONES)
    (item,) = whole.mismatches
    assert (item.layer, item.count, item.place, item.other - item.golden) == ("2", count, None, 1)
    assert str(item).endswith(f" in the golden, {item.other} here")
    if count == "synops":
        (changed,) = whole.differences
        assert changed == CountDifference("2", "synops", 1, 0) and not whole.counts_agree
        text = "2: synops differs by +1, the fan-out of the spikes that differ is +0"
        assert str(changed) == text
    else:
        assert whole.differences == ()


def test_counts_that_are_missing_or_too_many_or_of_other_steps_are_named() -> None:
    counts = CountComparer(ReferenceModel(REFERENCE))
    values, _ = counts.reference.record(ONES)
    assert counts.missing({"0", "4"}) == [CountMismatch("2", "entries", 1, 0)]
    assert counts.missing({"0", "2", "4"}) == []
    right = Counting(REFERENCE).run_layer("3", values).counts
    spikes = {"3": values["3"].tensor.bool()}
    assert right is not None and counts.mismatches(right, dict(values), spikes) == []
    other = {"more": StepCounts(), **right}
    expected = [CountMismatch("more", "entries", 0, 1)]
    assert counts.mismatches(other, dict(values), spikes) == expected
    synops = right["2"].values["synops"]
    short = StepCounts({**right["2"].values, "synops": synops[:2]})
    found = counts.mismatches({"2": short}, dict(values), spikes)
    assert found == [CountMismatch("2", "synops", int(synops.sum()), int(synops[:2].sum()))]
    found = counts.mismatches({"more": StepCounts(), "2": short}, dict(values), spikes)
    assert [item.layer for item in found] == ["more", "2"]  # what is unknown hides nothing
    for item in (found[0], CountDifference("2", "synops", 1, 0), counts):
        with pytest.raises(FrozenInstanceError):
            item.layer = "3"  # type: ignore[misc, union-attr]
    none = StepCounts({n: a for n, a in right["2"].values.items() if n != "synops"})
    found = counts.mismatches({"2": none}, dict(values), spikes)
    first = tuple(map(int, np.argwhere(synops)[0]))
    assert found == [CountMismatch("2", "synops", int(synops[first]), 0, first)]  # type: ignore[arg-type]


class OneLess(Counting):
    """Counts nothing of the second layer."""

    def run(self, images: Tensor) -> ExecutionRun:
        run = super().run(images)
        assert run.counts is not None
        return replace(run, counts={n: c for n, c in run.counts.items() if n != "2"})

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        run = super().run_layer(layer, values)
        return replace(run, counts={n: c for n, c in (run.counts or {}).items() if n != "2"})


def test_a_layer_that_is_not_counted_is_named() -> None:
    found = comparer().both(OneLess(REFERENCE), ONES)
    for check in (found.forced, found.end_to_end):
        assert check.mismatches == (CountMismatch("2", "entries", 1, 0),) and not check.passed


def test_flipped_spikes_explain_by_how_much_counts_differ() -> None:
    """Neuron "1" fires at all three steps instead of one, on both samples; "3" at other ones."""
    found = comparer(AT_THRESHOLD).end_to_end(Counting(FIRES_AT_IT), ONES)
    assert found.passed and found.counts_agree and found.mismatches == ()
    spikes = [ModelExecution(m).run(ONES).spikes["3"].sum() for m in (AT_THRESHOLD, FIRES_AT_IT)]
    last = int(spikes[1] - spikes[0])
    by_count = {(d.layer, d.count): d.difference for d in found.differences}
    assert by_count["2", "synops"] == by_count["2", "synops_events"] == 4
    assert by_count["4", "synops"] == 2 * last > 0  # two classes
    assert all(d.difference == d.explained for d in found.differences)
    twice = comparer(AT_THRESHOLD).end_to_end(Counting(FIRES_AT_IT), ONES, batch=1)
    assert twice.differences == found.differences
    assert CountDifference("a", "b", 7, 3) + CountDifference("a", "b", 5, -2) == (
        CountDifference("a", "b", 12, 1)
    )


def test_analog_counts_differ_by_the_inputs_that_differ() -> None:
    """The first layer's inputs are the same, so nothing is explained: another count is wrong."""
    execution = Counting(REFERENCE, more((0, 1), "macs_effective", "0"))
    whole = comparer().end_to_end(execution, ONES)
    assert whole.differences == (CountDifference("0", "macs_effective", 1, 0),)
    assert [item.count for item in whole.mismatches] == ["macs_effective"]


def test_an_input_that_lost_values_explains_its_multiplications() -> None:
    counts = CountComparer(ReferenceModel(REFERENCE))
    before, _ = counts.reference.record(torch.tensor([[1.0], [-2.0], [0.5]]))
    own = {**before, "input": Signal(torch.tensor([[1.0], [0.0], [0.0]]), True)}
    entry = counts.counted["0"]
    theirs = count_steps(entry, {"input": own["input"].tensor, "1": before["1"].tensor}).total()
    found = counts.differences({"0": theirs}, dict(before), own)
    assert found == [CountDifference("0", "macs_effective", -2, -2)]


def cancelling(least: float = 0.0) -> Model:
    """Two projections in a row: the first current's values are a sum that is 0 to rounding, and 3.

    The second one reads them, by 4 synapses each: 3 · 4 = 12 operations, since `a` says 3 values.
    """
    neuron = ir.NeuronSpec("if", v_threshold=1.0)
    graph = ir.SpikingGraph(
        (
            ir.Input("input", (), (3,)),
            ir.Linear("a", ("input",), False, None, 3, 3),
            ir.Linear("b", ("a",), False, None, 3, 4),
            ir.Population("c", ("b",), neuron),
            ir.Readout("head", ("c",), 2),
        ),
        1,
    )
    rows = np.array([[0.1, 0.2, least - 0.3], [1, 1, 1], [0, 0, 0]], np.float32)
    head = np.ones((2, 4), np.float32)
    state = {"a.weight": rows, "b.weight": np.ones((4, 3), np.float32)}
    return Model(graph, state | {"head.weight": head, "head.bias": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    ("least", "change", "agree"),
    [(0.0, 4, True), (0.0, 0, True), (0.0, -4, False), (0.0, 5, False), (1e-5, 4, False)],
)
def test_a_computed_value_that_rounding_makes_0_may_count_or_not(
    least: float, change: int, agree: bool
) -> None:
    """0.1 + 0.2 - 0.3 is 0 or almost: its 4 operations may be there, and no others."""

    def other(name: str, counts: StepCounts) -> StepCounts:
        changed = {n: of + change * (name == "b") for n, of in counts.values.items()}
        return StepCounts({**counts.values, "macs_effective": changed["macs_effective"]})

    model = cancelling(least)
    values, _ = ReferenceModel(model).record(torch.ones(1, 3))
    counts = CountComparer(ReferenceModel(model))
    own = {n: signal.tensor for n, signal in values.items()}
    own |= {
        n: s.tensor.detach() for n, s in counts.reference.module.evaluate(values, ["a"]).items()
    }
    right = count_steps(counts.counted["b"], own)
    assert right.values["macs_effective"].tolist() == [[4 if least == 0 else 8]]
    changed = other("b", right)
    spikes = {"c": values["c"].tensor.bool()}
    assert (counts.mismatches({"b": changed}, dict(values), spikes) == []) == agree
    assert (counts.mismatches({"b": changed.total()}, dict(values), spikes) == []) == agree
    found = counts.differences({"b": changed.total()}, dict(values), dict(values))
    assert all(item.is_explained for item in found) == agree
    if change == 4 and agree:
        assert "of values that are 0 but for rounding +0 to +4" in str(*found)
