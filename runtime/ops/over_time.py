"""When an answer is right: accuracy after each step, and what an early exit at a margin costs."""

from dataclasses import dataclass

import numpy as np

from soul_deploy.base import Array, brief, errors, tables
from soul_deploy.runtime.engine.answers import LastSteps
from soul_deploy.runtime.engine.network import Network


@brief
@dataclass(frozen=True)
class OverTime:
    """Of labelled sequences, step by step.

    accuracy  (T,) share whose class so far is right
    margin    at which a sample is answered early; None: none is
    exits     (N,) steps until each sample is answered, T for those that never reach the margin
    right     (N,) whether that answer is right
    """

    accuracy: Array
    margin: float | None
    exits: Array
    right: Array

    def parts(self) -> tuple[tables.Table | str, ...]:
        rows: list[list[object]] = [
            [step, f"{share:.2%}", f"{(self.exits <= step).mean():.2%}"]
            for step, share in enumerate(self.accuracy.tolist(), start=1)
        ]
        told = (
            f"Answered after {self.exits.mean():.2f} of {len(self.accuracy)} steps on average: "
            f"{self.right.mean():.2%} right"
        )
        columns = ["step", "right so far", "answered"]
        return tables.Table("Accuracy over time", columns, rows), told


def accuracy_over_time(
    network: Network, frames: Array, labels: Array, margin: float | None = None
) -> OverTime:
    """frames: (T, N, ...), as `Network.run` takes them; labels: (N,) classes.

    margin: an answer counts from the first step on whose highest score so far is that far ahead of
    the next one. Raises ValidityError.
    """
    steps = network.run_steps(frames)
    if len(labels) != steps.shape[1]:
        raise errors.ValidityError(f"{len(labels)} labels for {steps.shape[1]} samples")
    over_time, count = network.events.readout.over_time, len(steps)
    last = LastSteps(count, over_time)
    so_far = np.stack([last.add(scores) for scores in steps])
    best = so_far.argmax(axis=2) == np.asarray(labels)
    exits = np.full(len(labels), count)
    if margin is not None:
        ranked = np.sort(so_far, axis=2)
        ahead = ranked[..., -1] - ranked[..., -2] >= margin
        exits = np.where(ahead.any(axis=0), ahead.argmax(axis=0) + 1, count)
    right = best[exits - 1, np.arange(len(labels))]
    return OverTime(best.mean(axis=1), margin, exits, right)
