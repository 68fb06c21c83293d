"""Compiled C equals the naive twin in every integer, on random networks of every kind."""

from collections.abc import Sequence
from pathlib import Path

import naive_fixed
import numpy as np
import pytest
from drawn_fixed import FixedCase, draw_fixed

from soul_deploy.analysis.synops import count_model
from soul_deploy.data.given import images_for
from soul_deploy.export.c import harness
from soul_deploy.export.c.golden import frames_of, in_order
from soul_deploy.export.c.rows import LAYOUTS
from soul_deploy.export.c.write import CProgram, build_c

CC = harness.compiler()
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler on this machine")
QUICK = ("-O0",)


def built(cases: Sequence[FixedCase]) -> list[CProgram]:
    return [
        build_c(case.model, case.given, layout=LAYOUTS[i % len(LAYOUTS)], prefix=f"n{i}")
        for i, case in enumerate(cases)
    ]


def assert_naive(case: FixedCase, shown: harness.Shown) -> int:
    """Every integer is the naive twin's; how many populations fired."""
    expected = naive_fixed.run(case.model, case.given)
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(shown.spikes[name], in_order(spikes, 2) != 0, name)
        membranes = in_order(expected.membranes[name])
        np.testing.assert_array_equal(shown.membranes[name], membranes, name)
    np.testing.assert_array_equal(shown.scores, expected.integers)
    images, _ = images_for(case.model, case.given)
    counted = sum(c.synops for c in count_model(case.model, images).values())
    assert shown.synops == counted
    return sum(bool(spikes.any()) for spikes in expected.spikes.values())


def assert_all_equal(
    cases: Sequence[FixedCase], folder: Path, flags: Sequence[str] = harness.SANITIZED
) -> tuple[int, int]:
    """Populations that fired, and all."""
    assert CC is not None
    programs = built(cases)
    executable = harness.build(programs, folder, CC, flags)
    given = [
        (found.program, frames_of(found.program, images_for(case.model, case.given)[0]))
        for found, case in zip(programs, cases, strict=True)
    ]
    shown = harness.run(executable, given)
    fired = [assert_naive(case, one) for case, one in zip(cases, shown, strict=True)]
    return sum(fired), sum(len(case.model.graph.populations) for case in cases)


@needs_cc
def test_a_hundred_networks(tmp_path: Path) -> None:
    fired, populations = assert_all_equal(draw_fixed(100), tmp_path, QUICK)
    assert fired > populations / 2


@needs_cc
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_thousand_networks(tmp_path: Path, seed: int) -> None:
    cases = draw_fixed(100, seed)
    fired = np.zeros(2, int)
    for first in range(0, len(cases), 10):  # built apart: a compiler has its limit of time
        fired += assert_all_equal(cases[first : first + 10], tmp_path / str(first))
    assert fired[0] > fired[1] / 3
