"""Events that are pushed: steps as of frames, windows of time, and updates of what events reach."""

import copy
import itertools
import tracemalloc

import numpy as np
import pytest
from event_nets import SIDE, STEPS, drawn_events, event_model, events_of, frames

from soul_deploy import ir
from soul_deploy.base import Array, errors
from soul_deploy.base.events import EVENT
from soul_deploy.export.event.build import build_event_network
from soul_deploy.runtime.engine.answers import Fit, LastSteps, answers, answers_by_event, chunks_of
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.windows import WindowRule, windows_of
from soul_deploy.runtime.plan.forms import event_forms

SPECS = {
    "leaky": ir.NeuronSpec("lif", tau=2.0),
    "soft": ir.NeuronSpec("lif", tau=3.0, decay_input=False, v_reset=None),
    "never at rest": ir.NeuronSpec("if", v_reset=None),
    "snntorch": ir.NeuronSpec("lif", tau=5.0, decay_input=False, v_reset=None, form="snntorch"),
}


def network_of(kind: str = "counts", spec: ir.NeuronSpec = SPECS["leaky"]) -> Network:
    events = build_event_network(event_model(kind, spec))
    return Network(events, 1, None, dict(event_forms(events)))


def framed(events: Array, length: int, count: int, *, stride: int | None = None) -> Array:
    """(count, 1, 2, SIDE, SIDE): by loops over events and windows."""
    found, first = np.zeros((count, 1, 2, SIDE, SIDE), np.uint8), int(events["t"][0])
    for event in events:
        since = int(event["t"]) - first
        for window in range(count):
            if 0 <= since - window * (stride or length) < length:
                found[window, 0, event["p"], event["y"], event["x"]] += 1
    return found


@pytest.mark.parametrize("stride", [10_000, 5_000])
def test_windows_are_the_steps_of_their_frames(stride: int) -> None:
    network, events = network_of(), drawn_events(300, 200_000)
    rule = WindowRule(10_000, stride)
    for size in (1, 7, 300):  # however the events are cut into arrays
        last = LastSteps(STEPS, "mean")
        found = list(answers(network.stream(), chunks_of(events, size), rule, last))
        given = framed(events, 10_000, len(found), stride=stride)
        stream = network.stream()
        expected = [stream.step(frame)[0] for frame in given]
        np.testing.assert_array_equal([answer.scores for answer in found], expected)
        assert [answer.events for answer in found] == given.sum(axis=(1, 2, 3, 4)).tolist()
        np.testing.assert_allclose(
            found[STEPS - 1].average, network.run(given[:STEPS])[0], atol=1e-6
        )
        begin = int(events["t"][0])
        assert [a.time for a in found[:3]] == [begin + 10_000 + k * stride for k in range(3)]
    assert np.any(expected)


def test_what_is_late_is_left_out_and_counted() -> None:
    at = [5, 12, 8, 19, 31, 9, 33, 30, 60]
    events = events_of(*((t, k % SIDE, 0, 0) for k, t in enumerate(at)))
    rule = WindowRule(10, 10)  # from 5: 5–15, 15–25, 25–35, …; 31 closes two windows
    expected = [(15, [5, 8, 12], 0), (25, [19], 0), (35, [30, 31, 33], 1), (45, [], 0)]
    for size in (1, 2, 9):
        found = list(windows_of(chunks_of(events, size), rule))
        told = [(w.end, w.events["t"].tolist(), w.late) for w in found]
        assert told[:4] == expected and told[-1] == (65, [60], 0) and len(told) == 6
    with pytest.raises(errors.UsageError, match="leaves events out"):
        WindowRule(10, 11)
    with pytest.raises(errors.UsageError, match="at most"):
        WindowRule(1 << 64, 1)
    far = events_of((0, 0, 0, 0), (1 << 60, 0, 0, 0))
    with pytest.raises(errors.ValidityError, match="windows without an end"):
        list(windows_of([far], rule))
    with pytest.raises(errors.ValidityError, match=f"a time of {1 << 63} µs"):
        list(windows_of([events_of((1 << 63, 0, 0, 0))], rule))


def test_a_region_of_a_larger_sensor() -> None:
    fit = Fit(45, 2, 20, 20, down=2)
    seen = fit.of(events_of((1, 44, 5, 1), (2, 45, 2, 0), (3, 64, 21, 1), (4, 65, 21, 1)))
    assert seen.tolist() == [(2, 0, 0, 0), (3, 9, 9, 1)] and fit.sides == (10, 10)
    with pytest.raises(errors.UsageError, match="does not divide by 3"):
        Fit(0, 0, 20, 20, down=3)


@pytest.mark.parametrize("kind", ["counts", "spikes"])
@pytest.mark.parametrize("name", SPECS)
def test_updates_of_what_events_reach_are_exact(kind: str, name: str) -> None:
    network, random = network_of(kind, SPECS[name]), np.random.default_rng(8)
    dense, sparse, fired = network.stream(), network.event_stream(), 0
    assert (sparse.always > 0) == (name != "leaky")
    for _ in range(150):  # steps with and without events, pushed one by one, looked at meanwhile
        events = drawn_events(int(random.choice([0, 0, 1, 2, 6, 40])), 1)
        events["x"], events["y"] = random.integers(0, SIDE, (2, len(events)))
        dense.push(events)
        for event in np.split(events, len(events)) if len(events) else ():
            sparse.push(event)
            if random.random() < 0.2:
                sparse.peek()
        seen, expected = sparse.peek(), dense.step()
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(sparse.step(), expected)
        fired += bool(expected.any())
    assert fired
    sparse.reset()
    np.testing.assert_array_equal(sparse.step(), network.stream().step())


def test_an_answer_for_each_event() -> None:
    network, events = network_of(), drawn_events(40, 30_000)
    rule = WindowRule(10_000, 10_000)
    found = list(answers_by_event(network.event_stream(), [events], rule, LastSteps(STEPS, "mean")))
    ended = [answer for answer in found if answer.ended]
    assert len(found) - len(ended) == len(events)
    whole = list(answers(network.stream(), [events], rule, LastSteps(STEPS, "mean")))
    np.testing.assert_array_equal([a.scores for a in ended], [a.scores for a in whole])
    for before, after in itertools.pairwise(found):
        if after.ended:  # the last event of a window was answered as its end is
            np.testing.assert_array_equal(before.scores, after.scores)


def test_streams_keep_and_refuse_events() -> None:
    network, events = network_of(), drawn_events(5, 9)
    stream = network.stream()
    assert stream.scores is None
    stream.push(events)
    other = copy.deepcopy(stream)
    np.testing.assert_array_equal(stream.step(), other.step())
    assert stream.scores is not None and stream.step().shape == (1, 3)
    stream.push(events)
    stream.reset()
    assert stream.scores is None
    stream.step(frames()[0][:1])  # what was pushed is forgotten: no step waits to be ended
    stream.reset()
    several, fed = network.stream(), network.stream()
    given = frames()[0]
    for each in (several, fed):
        assert each.step(given).shape == (3, 3)  # a batch
    np.testing.assert_array_equal(several.step(), fed.step(np.zeros_like(given)))
    stream.push(events)
    with pytest.raises(errors.UsageError, match="a frame is given too"):
        stream.step(frames()[0][:1])
    many = np.repeat(events[:1], 256)
    outside = events_of((1, SIDE, 0, 1))
    for each in (network.stream(), network.event_stream()):
        each.push(many[:200])
        for wrong, told in ((many[:56], "one more than 255"), (outside, "outside"), (1, "needed")):
            with pytest.raises(errors.ValidityError, match=told):
                each.push(wrong)
        each.push(many[:55])  # nothing of what was refused was added
        each.step()
    values = Network(build_event_network(event_model("values")), 1)
    with pytest.raises(errors.UsageError, match="takes values"):
        values.stream().push(events)
    with pytest.raises(errors.UnsupportedGraphError, match="values without a bound"):
        values.event_stream()


def test_what_cannot_be_updated_by_event_is_named() -> None:
    izhikevich = ir.NeuronSpec("izhikevich")
    with pytest.raises(
        errors.UnsupportedGraphError, match="sn1: neurons of more than one membrane"
    ):
        network_of("counts", izhikevich).event_stream()


def test_memory_does_not_grow() -> None:
    network, events = network_of(), drawn_events(20_000, 10_000 * 2_000)
    rule, last = WindowRule(2_000, 2_000), LastSteps(STEPS, "mean")
    found = answers(network.stream(), chunks_of(events, 1_000), rule, last)
    for _ in range(500):
        next(found)
    tracemalloc.start()
    before, count = tracemalloc.get_traced_memory()[0], 500
    for _ in found:
        count += 1
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert count == pytest.approx(10_000, abs=5) and after - before < 200_000
    assert EVENT.itemsize == 13
