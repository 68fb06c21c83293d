"""Events to frames: SpikingJelly 2.0.0's values to the bit, and what it does not do."""

from typing import Any

import absent
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.base import Array, errors
from soul_deploy.base.event_frames import FrameRule, by_duration, frames_of, nearest
from soul_deploy.base.events import EVENT, Recording

theirs = absent.spikingjelly_data("utils")
WIDTH, HEIGHT = 7, 5


@st.composite
def recordings(draw: st.DrawFn, least: int = 1) -> Recording:
    """Times in order, or, now and then, jumping back."""
    count = draw(st.integers(least, 60))
    steps = draw(st.lists(st.sampled_from([0, 1, 3, 1000, 70_000]), min_size=count, max_size=count))
    events = np.zeros(count, EVENT)
    events["t"] = draw(st.sampled_from([0, 80_048_239])) + np.cumsum(steps)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if draw(st.integers(0, 4)) == 0 and count > 2:
        events["t"][1:-1] = random.permutation(events["t"][1:-1])
    for name, most in (("x", WIDTH), ("y", HEIGHT), ("p", 2)):
        events[name] = random.integers(0, most, count)
    return Recording(events, WIDTH, HEIGHT)


def columns(recording: Recording) -> dict[str, Array]:
    return {name: recording.events[name].astype(np.int64) for name in "txyp"}


@given(recordings(), st.sampled_from(["number", "time"]), st.integers(1, 12))
def test_frames_by_number_are_spikingjellys(recording: Recording, split: Any, frames: int) -> None:
    ours = frames_of(recording, FrameRule(frames, split))
    try:
        known = theirs.integrate_events_by_fixed_frames_number(
            columns(recording), split, frames, HEIGHT, WIDTH
        )
    except IndexError:
        if split == "time" and (np.diff(recording.events["t"].astype(np.int64)) >= 0).all():
            assert ours.sum((1, 2, 3)).tolist() == in_bins(recording, frames)
        return
    np.testing.assert_array_equal(ours, known)


def in_bins(recording: Recording, frames: int) -> list[int]:
    """Events in each bin of equal times, event by event."""
    times, found = recording.events["t"].tolist(), [0] * frames
    width = (times[-1] - times[0]) // frames
    for time in times:
        found[min((time - times[0]) // width if width else frames, frames - 1)] += 1
    return found


@given(recordings(), st.sampled_from([1, 7, 1000, 70_000, 10**9]))
def test_frames_by_duration_are_spikingjellys(recording: Recording, duration: int) -> None:
    events = recording.events[np.argsort(recording.events["t"], kind="stable")]
    length = int(events["t"][-1] - events["t"][0])
    if length // duration > 5000:
        return
    ours = by_duration(recording, duration)
    assert ours.sum() == len(recording)
    if not length:
        assert len(ours) == 1  # SpikingJelly: IndexError
        return
    ordered = columns(Recording(events, WIDTH, HEIGHT))
    known = theirs.integrate_events_by_fixed_duration(ordered, duration, HEIGHT, WIDTH)
    np.testing.assert_array_equal(ours, known)
    for steps in (len(known) - 1 or 1, len(known), len(known) + 2):
        cut = frames_of(recording, FrameRule(steps, duration=duration))
        assert len(cut) == steps
        np.testing.assert_array_equal(cut[: len(known) - 1], known[: min(steps, len(known) - 1)])
        if steps >= len(known):
            np.testing.assert_array_equal(cut[: len(known)], known)
            assert not cut[len(known) :].any()


def few(*times: int) -> Recording:
    events = np.zeros(len(times), EVENT)
    events["t"] = times
    return Recording(events, 2, 2)


def counted(recording: Recording, rule: FrameRule) -> list[int]:
    found: list[int] = frames_of(recording, rule).sum((1, 2, 3)).tolist()
    return found


def test_what_can_be_counted_by_hand() -> None:
    assert counted(few(0, 1, 2, 3, 4), FrameRule(2)) == [2, 3]
    assert counted(few(0, 1, 2, 3, 40), FrameRule(4, "time")) == [4, 0, 0, 1]
    assert counted(few(0, 10, 20), FrameRule(3, duration=10)) == [1, 2, 0]
    assert counted(few(0, 10, 20, 21), FrameRule(2, duration=10)) == [1, 1]
    assert counted(few(), FrameRule(3, "time")) == [0, 0, 0]
    assert counted(few(), FrameRule(3, duration=5)) == [0, 0, 0]
    assert counted(few(7, 7), FrameRule(3, "time")) == [0, 0, 2]


def test_what_has_no_frames_is_refused() -> None:
    with pytest.raises(errors.ValidityError, match="split by number"):
        frames_of(few(9, 3), FrameRule(2, "time"))
    with pytest.raises(errors.LimitError, match="give a longer duration"):
        by_duration(few(0, 2**40), 1)
    with pytest.raises(errors.UsageError, match="together at most"):
        FrameRule(4, duration=1 << 62)
    with pytest.raises(errors.UsageError, match="steps 0 must be at least 1"):
        FrameRule(0)
    with pytest.raises(errors.UsageError, match="summed up to"):
        frames_of(few(0), FrameRule(1, side=(4, 4), scaling="sum"))


@pytest.mark.parametrize("side", [(3, 3), (48, 48), (64, 50), (200, 128), (128, 128)])
def test_nearest_is_pytorchs(side: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 9, (2, 2, 128, 97))
    known = torch.nn.functional.interpolate(torch.from_numpy(frames).float(), side, mode="nearest")
    np.testing.assert_array_equal(nearest(frames, side), known.numpy())


def test_a_sum_keeps_every_event() -> None:
    events = np.zeros(4, EVENT)
    events["x"], events["y"] = [0, 1, 2, 6], [0, 4, 4, 4]
    found = frames_of(Recording(events, 7, 5), FrameRule(1, side=(2, 3), scaling="sum"))
    assert found[0, 0].tolist() == [[1, 0, 0], [2, 0, 1]]
