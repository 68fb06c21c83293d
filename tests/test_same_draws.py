"""`make test` draws the same examples everywhere; `make search` and `make soak` draw new ones."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from chains import ChainSpec, chains
from hypothesis import given, settings


def draws(profile: str) -> list[ChainSpec]:
    seen: list[ChainSpec] = []

    @settings(settings.get_profile(profile), max_examples=20)
    @given(chains())
    def collect(spec: ChainSpec) -> None:
        seen.append(spec)

    run: Callable[[], None] = collect
    run()
    return seen


def test_the_normal_profile_draws_the_same_networks_at_every_run() -> None:
    assert draws("same") == draws("same")
    assert len(draws("same")) == 20


def test_the_search_draws_others() -> None:
    assert draws("new") != draws("new")


@pytest.mark.parametrize("_", range(2))
def test_global_generators_begin_anew_in_every_test(_: int) -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)
    assert np.random.random() == np.random.RandomState(0).random_sample()
    assert random.random() == random.Random(0).random()
