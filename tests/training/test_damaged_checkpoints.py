"""Checkpoints with the right checksums and the wrong content: refused when they are restored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpointed import JOBS, MODEL, write_checkpoints

from soul_deploy.base.errors import FileFormatError
from soul_deploy.training.checkpoint import Checkpoint, read_checkpoint
from soul_deploy.training.state import Tree, join_tree, split_tree
from soul_deploy.training.trainer import BestState, EpochResult


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def checkpoint(paths: list[Path], when: str) -> Checkpoint:
    """Of the job `warm`, "step1" or "step5" (in its frozen epoch): every part holds something."""
    return read_checkpoint(next(p for p in paths if p.name.startswith(f"warm.{when}")))


def put(tree: Tree, path: str, value: Any) -> None:
    *folders, name = path.split("/")
    place: Any = tree
    for folder in folders:
        place = place[int(folder) if isinstance(place, list) else folder]
    assert (int(name) < len(place)) if isinstance(place, list) else name in place
    place[int(name) if isinstance(place, list) else name] = value


NUMPY, PYTHON = "random/numpy_place", "random/python_place"
SCORES, GRADIENTS = "run/pruning/statistics/scores", "run/pruning/statistics/gradients"
FROZEN = "run/pruning/frozen"
TRAINING, BEST = f"{FROZEN}/training", f"{FROZEN}/best"
CASES: list[tuple[str, Any, str]] = [
    (f"{NUMPY}/0", 10**9, r"numpy_place is \[1000000000, 0, 0\.0\], needs 0 to 624, 0 or 1"),
    *((f"{NUMPY}/0", bad, "numpy_place is") for bad in (625, -1, 2**31, 2**63, 10**30, 5.0, True)),
    (f"{NUMPY}/0", 10**5000, r"numpy_place is \[an integer of 16610 bits, 0"),
    *((f"{NUMPY}/1", bad, "numpy_place is") for bad in (2, -1, "0", None, False)),
    *((f"{NUMPY}/2", bad, "numpy_place is") for bad in (float("nan"), "x", 10**400, None)),
    (NUMPY, [1, 0], "numpy_place is"),
    *((f"{PYTHON}/0", bad, "python_place is") for bad in (2, 4, "3", None)),
    *((f"{PYTHON}/1", bad, "python_place is") for bad in ("x", [0.5], float("inf"), 10**400)),
    (PYTHON, [3], "python_place is"),
    (
        f"{SCORES}/2/value",
        np.zeros(1),
        r"a mean over 1 batches is float64\(1,\), needs float64\(3,",
    ),
    (f"{SCORES}/2/value", np.zeros((1, 3)), r"needs float64\(3,\)"),
    (f"{GRADIENTS}/6/value", np.zeros(3), r"needs float64\(4,\)"),
    (f"{GRADIENTS}/6/value", np.zeros(4, np.float32), r"is float32\(4,\), needs float64\(4,\)"),
    (f"{SCORES}/2/count", 0, r"a mean over 0 batches is float64\(3,\), needs float64\(0,\)"),
    *((f"{SCORES}/2/count", bad, "count is .*, needs a whole") for bad in (2**64, -1, True)),
    (f"{SCORES}/2/count", 10**5000, "count is an integer of 16610 bits, needs a whole number"),
    (f"{TRAINING}/scheduler/T_i", 0, "epoch 1 of a period of 0, needs one before its end"),
    (f"{TRAINING}/scheduler/T_cur", 9, "epoch 9 of a period of 2, needs one before its end"),
    (f"{TRAINING}/scheduler/rates", [], "scheduler: 0 learning rates, needs 1"),
    (f"{TRAINING}/scheduler/rates", [10**400], "rate is an integer of 1329 bits, needs a finite"),
    (f"{TRAINING}/progress/epoch", 4, "this run has 3 epochs of 2 steps and 8 samples"),
    (f"{TRAINING}/progress/epoch", 3, "epoch 3, step 1, .* right: this run has"),
    (f"{TRAINING}/progress/step", 3, "epoch 2, step 3, .* right: this run has"),
    (f"{TRAINING}/progress/hits", 9, "step 1, 9 right: this run has"),
    (f"{TRAINING}/progress/loss", "x", "'loss' is a str, which does not fit"),
    (f"{FROZEN}/whole/channel_masks/2", np.full(3, 0.5, np.float32), "hold other than 0 and 1"),
    (f"{TRAINING}/optimizer/moments/0/exp_avg", None, "parameter 0 has the moments"),
    ("run/history/epochs/0/validation_accuracy", "x", "'validation_accuracy' is a str"),
    ("run/history/epochs/0/epoch", 1.0, "'epoch' is a float"),
    ("run/history/epochs/0", [], "'EpochResult' is a list"),
    ("run/history/epochs/0", {}, "EpochResult: epoch, .* not on both sides"),
    (f"{BEST}/accuracy", "x", "'accuracy' is a str"),
    (f"{BEST}/module/weights", {}, "weights: .* not on both sides"),
    (f"{BEST}/module", {}, "'weights' is missing"),
    (f"{FROZEN}/reserve", {"2": np.ones(2, bool)}, "reserve: 2 does not fit its mask"),
    (f"{FROZEN}/whole/weights", {}, "weights: .* not on both sides"),
]


@pytest.mark.parametrize(("path", "value", "message"), CASES, ids=range(len(CASES)))
def test_content_that_cannot_be(paths: list[Path], path: str, value: Any, message: str) -> None:
    found = checkpoint(paths, "step1" if "/statistics/" in path else "step5")
    put(found.state, path, value)
    with pytest.raises(FileFormatError, match=message):
        JOBS["warm"]().restore(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda best: best["weights"].popitem(), "the best epoch's weights: .* not on both sides"),
        (
            lambda best: best["weights"].update(
                {name: np.zeros(9) for name in best["weights"] if name.endswith(".bias")}
            ),
            r"bias is torch\.float64\(9,\), this run needs torch\.float32",
        ),
        (lambda best: best.update(epochs=[], weights={}), "no epoch was kept as the best"),
        (lambda best: best.update(epochs=[]), "the best epoch: 0 results, "),
        (lambda best: best.update(weights={}), "the best epoch: 1 results, 0 weights"),
        (
            lambda best: best["epochs"][0].update(validation_accuracy="x"),
            "'validation_accuracy' is a str",
        ),
    ],
)
def test_the_best_epoch_must_fit(change: Callable[[Tree], object], message: str) -> None:
    """Seen when it is restored, or when its weights are taken."""
    module, best = MODEL.module(), BestState()
    best.offer(module, EpochResult(1, 0.5, 0.5, 0.5, 0.1, 1.0))
    arrays, facts = split_tree(best.state())
    tree = join_tree(arrays, facts)
    change(tree)
    again = BestState()
    with pytest.raises(FileFormatError, match=message):
        again.restore(tree)
        again.take(module)


def test_intact_checkpoints_are_restored(paths: list[Path]) -> None:
    assert len(paths) == 6
    for path in paths:
        job = JOBS[path.name.split(".")[0]]()
        job.restore(read_checkpoint(path))
        list(job.run())
        assert len(job.history.results) == 3
