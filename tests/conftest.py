"""Settings of every test run."""

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "same",  # `make test`: the same examples on every machine, at every run
    derandomize=True,
    deadline=None,  # the first example compiles kernels
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "new",  # `make search`: other examples at every run
    settings.get_profile("same"),
    derandomize=False,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
torch.set_num_threads(1)
os.environ["COLUMNS"] = "400"  # tables are not folded, whatever the terminal
os.environ["SOUL_DEPLOY_PROGRESS"] = "0"  # a slow machine prints no more than a fast one


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed the global generators: what a test draws depends on no test before it."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
