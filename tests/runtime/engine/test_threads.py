"""Several threads: the same bits as one, batches of any size, and no thread left waiting."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chains import ChainSpec, build, chains, images, random_neuron_masks
from hypothesis import given, settings
from hypothesis import strategies as st

from soul_deploy.analysis.reference_network import ReferenceNetwork, reference_model
from soul_deploy.base import environment
from soul_deploy.base.environment import physical_cores
from soul_deploy.base.errors import LimitError, UsageError
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.event.storage_format import CHOICES, Choice
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.engine.thread_team import ThreadTeam
from soul_deploy.runtime.format.validate import MAX_THREADS
from soul_deploy.runtime.kernels.barrier import (
    Barrier,
    Meeting,
    SpinBarrier,
    _PlainBarrier,
    barrier_for,
    look,
)
from soul_deploy.runtime.kernels.cache import cached_njit
from soul_deploy.runtime.kernels.program import Bound, Program
from soul_deploy.runtime.kernels.simd import compiled

BARRIERS = (SpinBarrier, _PlainBarrier) if compiled() else (_PlainBarrier,)
SMALL = ReferenceNetwork(density=0.3, width=4, hidden=8, image=(3, 8, 8))


@given(
    chains(),
    st.sampled_from(CHOICES),
    st.integers(2, 3),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_any_number_of_threads_gives_the_same_bits(
    spec: ChainSpec, choice: Choice, threads: int, batch: int, masked: bool, seed: int
) -> None:
    model = build(spec)
    if masked:
        model = replace(model, neuron_masks=random_neuron_masks(model, seed))
    events = build_event_network(model, representation=choice)
    x = np.resize(images(spec).numpy(), (batch, *events.input_shape))
    alone = Network(events, threads=1).run(x)
    split = Network(events, threads=threads)
    for _ in range(2):
        np.testing.assert_array_equal(split.run(x), alone)
    one_by_one = [split.run(x[b : b + 1]) for b in range(batch)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), alone)


def test_callers_may_share_a_network_that_has_threads() -> None:
    events = build_event_network(reference_model(SMALL))
    network = Network(events, threads=2)
    rng = np.random.default_rng(0)
    sizes = [1 + i % 3 for i in range(12)]
    inputs = [rng.normal(size=(n, *events.input_shape)).astype(np.float32) for n in sizes]
    expected = [Network(events, threads=1).run(x) for x in inputs]
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        found[i] = network.run(inputs[i])

    callers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    for i, logits in enumerate(expected):
        np.testing.assert_array_equal(found[i], logits)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kind", BARRIERS)
def test_nobody_passes_before_all_have_come(kind: type[SpinBarrier], threads: int) -> None:
    barrier, arrived = kind(threads), np.zeros((threads, 20), np.int64)
    early: list[int] = []

    def work(thread: int) -> None:
        for i in range(20):
            arrived[thread, i] = 1
            barrier.wait(thread)
            if not arrived[:, i].all():
                early.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not early


@cached_njit
def fail_if(failing: bool) -> None:
    if failing:
        raise ArithmeticError("thread 1 gave up")


@cached_njit
def add(amount: int, total: np.ndarray) -> None:
    total[0] += amount


def programs_of(calls: Sequence[Sequence[Bound]], barrier: Meeting) -> list[Program]:
    """Of each thread, which meets the others after each of its calls."""
    own = enumerate(calls)
    return [Program([c for call in few for c in (call, *barrier.calls(i))]) for i, few in own]


def test_a_thread_that_fails_lets_the_others_go() -> None:
    """Every thread fails once, so the caller's own does, too; and those that wait are told."""
    team, totals = ThreadTeam(3), np.zeros((3, 1), np.int64)
    for failing in range(3):
        barrier = barrier_for(3)
        calls: list[list[Bound]] = [
            [(add, (1, totals[i])), (fail_if, (i == failing,)), (add, (100, totals[i]))]
            for i in range(3)
        ]
        with pytest.raises(ArithmeticError, match="thread 1 gave up"):
            team.run(programs_of(calls, barrier), barrier)
    assert (totals == 3).all()
    barrier = barrier_for(3)
    team.run(programs_of([[(add, (1, totals[i]))] for i in range(3)], barrier), barrier)
    assert (totals == 4).all()


def test_programs_and_tasks_take_turns() -> None:
    """A thread that looks for a program hears of a task, and one that sleeps of a program."""
    team, totals, barrier = ThreadTeam(3), np.zeros((3, 1), np.int64), barrier_for(3)
    programs = programs_of([[(add, (1, totals[i]))] * 5 for i in range(3)], barrier)
    seen: list[int] = []
    for i in range(200):
        team.run(programs, barrier)
        if i % 3 == 0:
            team.each(lambda thread, check: seen.append(thread))
        if i % 20 == 0:
            time.sleep(0.002)  # they fall asleep
    assert (totals == 1000).all()
    assert sorted(seen) == sorted(list(range(3)) * 67)


def test_threads_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have started end, and the next run may have them."""
    start, started = threading.Thread.start, list[threading.Thread]()

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    team = ThreadTeam(3)
    with (
        monkeypatch.context() as patch,
        pytest.raises(LimitError, match="3 threads asked, and the"),
    ):
        patch.setattr(threading.Thread, "start", refuse)
        team.each(lambda thread, barrier: None)
    assert len(started) == 2
    _wait_for_the_end(started)
    seen: list[int] = []
    team.each(lambda thread, barrier: seen.append(thread))
    assert sorted(seen) == [0, 1, 2]


def test_a_core_that_is_refused_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*ignored: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    team, seen = ThreadTeam(len(physical_cores())), []
    team.each(lambda thread, barrier: seen.append(thread))
    assert sorted(seen) == list(range(team.threads))


def _wait_for_the_end(threads: Iterable[threading.Thread]) -> None:
    """Of these threads; others may come and go."""
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_threads_end_with_their_network() -> None:
    events = build_event_network(reference_model(SMALL))
    before = set(threading.enumerate())
    network = Network(events, threads=3)
    network.warm_up()
    own = set(threading.enumerate()) - before
    assert len(own) == 3
    del network
    _wait_for_the_end(own)


def test_a_forked_process_has_threads_of_its_own() -> None:
    network = Network(build_event_network(reference_model(SMALL)), threads=2)
    x = np.random.default_rng(0).random((1, *network.events.input_shape)).astype(np.float32)
    expected = network.run(x)
    child = os.fork()
    if child == 0:
        ended_with = 2  # whatever is raised: a child that goes on is a second run of these tests
        try:
            ended_with = int(not np.array_equal(network.run(x), expected))
        finally:
            os._exit(ended_with)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@cached_njit
def hold(started: np.ndarray, goes_on: np.ndarray, done: np.ndarray) -> None:
    started[0] = 1
    while look(goes_on) == 0:
        pass
    done[0] = 1


@pytest.mark.skipif(not compiled(), reason="without compilation the caller runs no program")
def test_ctrl_c_waits_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread uses the caller's buffers: the caller waits, but not at the barrier."""
    monkeypatch.setattr(environment, "physical_cores", lambda: ())  # the caller is thread 0
    team, barrier = ThreadTeam(2), barrier_for(2)
    started, goes_on, done = np.zeros((3, 1), np.int64)
    calls: list[list[Bound]] = [
        [(add, (1, np.zeros(1, np.int64)))],
        [(hold, (started, goes_on, done))],
    ]
    programs = programs_of(calls, barrier)

    def interrupt() -> None:
        while not started[0]:
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.3)  # whoever does not wait is seen
        goes_on[0] = 1

    sender = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' jobs ignore it
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            team.run(programs, barrier)
        assert done[0] == 1
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    seen: list[int] = []
    team.each(lambda thread, barrier: seen.append(thread))
    assert sorted(seen) == [0, 1]


def test_ctrl_c_waits_for_tasks() -> None:
    """They use the caller's buffers, and one that asks whether to go on is told not to."""
    team, running, interrupted = ThreadTeam(2), threading.Event(), threading.Event()
    state: list[str] = []

    def work(thread: int, go_on: Barrier) -> None:
        if thread == 1:
            running.set()
            while True:
                go_on()
        interrupted.wait(60)  # so the work cannot be over before
        time.sleep(0.3)  # whoever does not wait is seen
        state.append("done")

    def interrupt() -> None:
        running.wait(60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        interrupted.set()

    sender = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' jobs ignore it
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            team.each(work)
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    assert state == ["done"]
    seen: list[int] = []
    team.each(lambda thread, barrier: seen.append(thread))
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("threads", [-1, MAX_THREADS + 1, 2.0, "2"])
def test_a_number_of_threads_that_cannot_be(threads: Any) -> None:
    events = build_event_network(reference_model(SMALL))
    with pytest.raises(UsageError, match=f"{threads!r} threads asked; give 1 to {MAX_THREADS}"):
        Network(events, threads=threads)


def test_a_process_with_threads_ends() -> None:
    code = (
        "from soul_deploy.runtime.engine.thread_team import ThreadTeam\n"
        "team = ThreadTeam(2)\n"
        "team.each(lambda share, barrier: print(f'{share}\\n', end='', flush=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert sorted(done.stdout.split()) == ["0", "1"]
