"""docs/neurons.md says what the code does: its tables, and its equations run beside PyTorch."""

import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from neuron_tables import name_of, spec_of, tables
from places import ROOT

from soul_deploy.base.errors import UsageError
from soul_deploy.ir import NeuronSpec
from soul_deploy.ir.neurons import FAMILIES
from soul_deploy.nn.neuron import SpikingNeuron

PAGE = (ROOT / "docs" / "neurons.md").read_text()
STEPS = 6
LOUD = {"snn_lapicque": 10}  # its R and C make a tenth of an input
OTHERS: tuple[dict[str, Any], ...] = (
    {"decay_input": True},
    {"decay_input": False},
    {"v_reset": None},
    {"v_reset": -0.25},
    {"fire": "ge"},
    {"settings": (("carry", 1.0), ("norm", 2.0))},
    {"settings": (("a", 0.5), ("b", 0.25), ("tau_w", 3.0))},
    {"settings": (("q_threshold", 0.5),)},
    {"settings": (("k", 1.25), ("scale_reset", 1.0))},
    {"settings": (("scale_reset", 1.0),), "v_reset": None},
    *({"settings": (("reset", kind), ("delay", 0.0))} for kind in (0.0, 1.0, 2.0)),
    *({"settings": (("reset", kind),)} for kind in (1.0, 2.0)),
    {"tau": 3.0, "v_threshold": 0.75},
)
"""Numbers other than Soul's; a neuron is compared with those that it reads and takes."""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    place = tmp_path_factory.mktemp("page") / "equations.py"
    place.write_text(block)
    return runpy.run_path(str(place))


def specs(family: str) -> list[NeuronSpec]:
    own = spec_of(family)
    found = [own]
    for other in OTHERS:
        names = {name for name, _ in other.get("settings", ())} | (set(other) - {"settings"})
        if not names <= {*own.reads, *dict(own.settings)}:
            continue
        try:
            found.append(replace(own, **other))
        except UsageError:
            continue  # a test of its own: what is refused
    return found


def _keep(seen: list[Any], t: int, s: torch.Tensor, v: torch.Tensor) -> None:
    seen.append(v.numpy()[0].copy())


def steps_of(page: Callable[..., Any], spec: NeuronSpec, module: SpikingNeuron, x: Any) -> Any:
    """What is sent and the first state variable, by the page's function, (T, N) each."""
    held = {name: array.detach().numpy() for name, array in module.named_parameters()}
    numbers = SimpleNamespace(**{**spec.named, **held})
    if spec.parallel:
        return page(x, numbers)
    start: tuple[float, ...] = (spec.v_reset or 0.0,)
    if spec.dynamics is not None:
        known: dict[str, Any] = {
            "start": spec.v_reset or 0.0,
            "reset": spec.v_reset,
            "threshold": spec.v_threshold,
        }
        known |= dict(spec.settings)
        start = tuple(known[s] if isinstance(s, str) else s for s in spec.dynamics.start)
    state: Any = [np.full(x.shape[1:], value) for value in start]
    sent, first = [], []
    for t, row in enumerate(x):
        if "conduct" in held:
            numbers.conduct = held["conduct"][t]
        s, *state = page(row, *state, numbers)
        sent.append(s)
        first.append(state[0])
    return np.stack(sent), np.stack(first)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_equations_are_those_that_run(
    family: str, functions: dict[str, Callable[..., Any]]
) -> None:
    """In double precision, so that no rounding decides."""
    name = f"{family}_" if family == "if" else family
    assert name in functions, f"docs/neurons.md has no equations of {family}: write `def {name}`"
    page, random = functions[name], np.random.default_rng(1)
    for spec in specs(family):
        torch.manual_seed(1)
        module = SpikingNeuron(spec, STEPS).double()
        seen: list[Any] = []
        x = random.normal(0.5, 1.5, (STEPS, 400)) * max(LOUD.get(family, 1), spec.edge.bound or 0)
        with torch.no_grad():
            sent = module.simulate(
                torch.from_numpy(x)[:, None], static=False, observe=partial(_keep, seen)
            ).numpy()[:, 0]
        with np.errstate(over="ignore", invalid="ignore"):  # EIF runs away, and is reset
            by_page, first = steps_of(page, spec, module, x)
        np.testing.assert_array_equal(by_page, sent, err_msg=str(spec))
        np.testing.assert_allclose(first, np.stack(seen), rtol=1e-6, atol=1e-6, err_msg=str(spec))
        assert sent.any() and not sent.all()
        if spec.edge.kind == "graded":
            assert {spec.edge.low, spec.edge.bound} <= set(sent.ravel())


def test_the_tables_are_those_of_the_code() -> None:
    for table in tables():
        told = "`python tests/support/neuron_tables.py` prints what docs/neurons.md must have"
        assert table in PAGE, f"{told}:\n{table}"


def test_each_neuron_has_its_row() -> None:
    for family in FAMILIES:
        assert f"| {name_of(family)} |" in PAGE
    assert not re.search(r"@\w+@", PAGE)
