"""Settings of every test run."""

import os

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    derandomize="CI" in os.environ,  # there, a change is judged on the same draws each time
    deadline=None,  # the first example compiles kernels
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")
torch.set_num_threads(1)
os.environ["COLUMNS"] = "400"  # tables are not folded, whatever the terminal
os.environ["SOUL_DEPLOY_PROGRESS"] = "0"  # a slow machine prints no more than a fast one
