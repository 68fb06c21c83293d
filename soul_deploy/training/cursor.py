"""Where a loop over epochs and steps stands, as plain data."""

from dataclasses import asdict, dataclass

from soul_deploy.training.state import Tree, record_of, require


@dataclass
class Progress:
    """How far a loop has come: whole epochs, and in the present one steps and sums over samples.

    loss: the sum of the samples' losses; hits: how many were right; seconds: the epoch's so far.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    hits: int = 0
    seconds: float = 0.0

    def state(self) -> Tree:
        """As plain data."""
        return asdict(self)

    def restore(self, tree: Tree) -> None:
        """Be as far as `tree` says."""
        vars(self).update(asdict(record_of(Progress, tree)))

    def check(self, epochs: int, steps: int, samples: int) -> None:
        """Raise FileFormatError unless it lies in a run of `epochs` with so many steps each."""
        last = 0 if self.epoch == epochs else steps
        require(
            self.epoch <= epochs and self.step <= last and self.hits <= samples,
            f"epoch {self.epoch}, step {self.step}, {self.hits} right: this run has {epochs} "
            f"epochs of {steps} steps and {samples} samples",
        )

    def next_epoch(self) -> None:
        """One more epoch is whole."""
        self.epoch, self.step, self.loss, self.hits, self.seconds = self.epoch + 1, 0, 0.0, 0, 0.0
