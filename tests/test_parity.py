"""Parity at scale: the search itself, what it has stored, and (with -m soak) a long run."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from parity import Drawn, drawn_networks, from_json, problem, search, store, to_json
from places import COUNTEREXAMPLES


@settings(max_examples=30)
@given(drawn_networks())
def test_a_drawn_network_survives_its_file(drawn: Drawn) -> None:
    assert from_json(to_json(drawn)) == drawn


def test_every_stored_counterexample_stays_fixed() -> None:
    stored = sorted(COUNTEREXAMPLES.glob("*.json"))
    assert stored, f"{COUNTEREXAMPLES} holds no counterexample: nothing was tested"
    for path in stored:
        assert problem(from_json(path.read_text())) == ("all", None), path.name


def test_some_networks_agree_everywhere() -> None:
    found = search(12, seed=1)
    assert found.difference is None, to_json(found.smallest) if found.smallest else ""
    assert sum(found.counts.values()) == 12
    assert found.counts["all"] > 3


def test_a_difference_is_shrunk_and_stored(tmp_path: Path) -> None:
    """A check that dislikes more than two time steps ends at three."""

    def check(drawn: Drawn) -> tuple[str, str | None]:
        return "all", "too long" if drawn.spec.time_steps > 2 else None

    found = search(100, seed=3, check=check)
    assert found.difference == "too long"
    assert found.smallest is not None
    assert found.smallest.spec.time_steps == 3
    assert found.smallest.spec.batch == 1
    path = store(found.smallest, tmp_path)
    assert from_json(path.read_text()) == found.smallest
    assert search(100, seed=3, check=check).smallest == found.smallest


def test_an_error_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("parity.compare", broken)
    found = search(30, seed=2)
    assert found.difference == "ZeroDivisionError: broken"


@pytest.mark.soak
def test_many_networks() -> None:
    networks = int(os.environ.get("SOAK_NETWORKS", "2000"))
    seed = int(os.environ.get("SOAK_SEED", "7"))
    found = search(networks, seed)
    print(json.dumps({"networks": networks, "seed": seed, "compared": found.counts}))
    if found.smallest is not None:
        path = store(found.smallest)
        raise AssertionError(f"stored as {path}: {found.difference}")
