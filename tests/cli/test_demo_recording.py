"""The recording that the demo on events ends with: the first test digit, as a camera sees it."""

from pathlib import Path

import numpy as np

from soul_deploy.cli import demo
from soul_deploy.data.datasets import load_data
from soul_deploy.runtime.io.recordings import read_events


def test_it_is_the_digit_that_the_demo_says(tmp_path: Path) -> None:
    path = tmp_path / demo.RECORDING
    demo._record(path)
    digits = load_data("mnist5k", Path("data"))
    (run,) = [words for words in demo.commands(tmp_path, 1, demo.EVENTS) if words[0] == "run"]
    assert run[2] == str(path)
    assert run[run.index("--label") + 1] == str(int(digits.test.labels[0]))
    events = np.concatenate(list(read_events(path)))
    assert events["t"].max() < 4 * 75_000 and (np.diff(events["t"].astype(np.int64)) >= 0).all()
    seen = np.zeros((34, 34), bool)
    seen[events["y"], events["x"]] = True
    drawn = np.argwhere(digits.test.images[0, 0].numpy() > 128)
    around = np.argwhere(seen)
    assert (around.min(0) <= drawn.min(0) + 3).all() and (around.max(0) >= drawn.max(0) + 3).all()


def test_the_demo_of_images_has_none() -> None:
    assert not [words for words in demo.commands(Path("demo"), 1) if words[0] == "run"]
