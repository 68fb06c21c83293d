"""Random fixed-point networks: the float networks that other tests draw, in integers."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import hypothesis
import numpy as np
from chains import ChainSpec
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from parity import Drawn, drawn_networks, masked_model
from torch import Tensor

from soul_deploy.base import Array, errors
from soul_deploy.export.c.program import make_program
from soul_deploy.model.model import Model, with_input_kind
from soul_deploy.quantization import network, units
from soul_deploy.quantization.network import INT16_BITS

COUNTS = 3
ROUNDS = 20


@dataclass(frozen=True)
class FixedCase:
    """A fixed-point network and inputs for it, (N, ...) shown at every step or (T, N, ...)."""

    model: Model
    given: Array


def fixed_case(drawn: Drawn, kind: str, scale: units.Scale, sequence: bool) -> FixedCase | None:
    """None where the network has no form in fixed point, which it says by name."""
    model, _ = masked_model(drawn)
    model = replace(model, info=with_input_kind(model.info, kind))
    rng = np.random.default_rng(drawn.seed)
    wide = {node.name: INT16_BITS + 5 for node in model.graph.populations if rng.random() < 0.3}
    try:
        plan = network.make_plan(model, units.UnitChoice(scale=scale), COUNTS)
        found = network.integer_network(plan, wide)
    except errors.SoulDeployError:
        return None
    state = {name: np.asarray(array) for name, array in found.state.items()}
    found = replace(found, state=state)
    lead = (model.graph.time_steps, 2) if sequence else (2,)
    most = {"images": 255, "counts": COUNTS, "spikes": 1}[kind]
    values = rng.integers(0, most + 1, (*lead, *model.input_shape))
    return FixedCase(found, values.astype(np.uint8 if kind == "images" else np.int16))


@dataclass(frozen=True)
class FloatCase:
    """A float network and images for it; exact: all its sums are, in any order."""

    model: Model
    images: Tensor
    exact: bool

    @property
    def given(self) -> Array:
        found: Array = self.images.numpy()
        return found


def float_case(drawn: Drawn) -> FloatCase:
    """IF, LIF and PLIF, as the spec of the network has them."""
    plain = replace(drawn, family="", membrane="", feedback="")
    return FloatCase(*masked_model(plain), plain.exact)


def draw_float(count: int, seed: int = 0) -> list[FloatCase]:
    """Networks that have a form in C."""
    found: list[FloatCase] = []

    @hypothesis.seed(seed)
    @_only_drawing(3 * count)
    @hypothesis.given(drawn_networks())
    def draw(drawn: Drawn) -> None:
        if len(found) < count:
            case = float_case(drawn)
            with contextlib.suppress(errors.UnsupportedGraphError):
                make_program(case.model, as_float=True)
                found.append(case)

    run: Callable[[], None] = draw
    run()
    assert len(found) == count
    return found


def draw_fixed(count: int, seed: int = 0) -> list[FixedCase]:
    """Networks of all kinds, of which those are left out that cannot be in fixed point."""
    found: list[FixedCase] = []
    for part in range(ROUNDS):
        if len(found) < count:
            found += _drawn(count - len(found), seed * ROUNDS + part)
    assert len(found) == count
    return found


def _only_drawing(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _drawn(most: int, seed: int) -> list[FixedCase]:
    found: list[FixedCase] = []
    kinds, scales = st.sampled_from(("images", "counts", "spikes")), st.sampled_from(units.SCALES)

    @hypothesis.seed(seed)
    @_only_drawing(3 * most)
    @hypothesis.given(drawn_networks(), kinds, scales, st.booleans())
    def draw(drawn: Drawn, kind: str, scale: Any, sequence: bool) -> None:
        slow = isinstance(drawn.spec, ChainSpec) and drawn.seed % 3  # it is traced from a module
        if len(found) < most and not slow:
            made = fixed_case(replace(drawn, family=""), kind, scale, sequence)
            found.extend([] if made is None else [made])

    run: Callable[[], None] = draw
    run()
    return found
