"""A running stream: membranes that stay between steps, and how a copy goes on with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from soul_deploy.base.brief import brief
from soul_deploy.base.files import Array
from soul_deploy.runtime.plan.buffers import Workspace


@brief
@dataclass(frozen=True)
class StreamState:
    """All that a stream remembers, as arrays of its own, sample by sample.

    steps      done so far
    inputs     what each sample was shown last, (1, positions, channels) float32
    membranes  of each sample: layer name -> (L,) float32, after the last step
    """

    steps: int
    inputs: tuple[Array, ...]
    membranes: tuple[Mapping[str, Array], ...]


@brief
@dataclass
class Stream:
    """Workspaces of a running stream, one per sample of the batch, and the steps done.

    input_name: of the map that the workspaces read their input from.
    """

    workspaces: list[Workspace]
    input_name: str
    steps: int = 0

    def advance(self, x: Array | None, scores: Array) -> None:
        """One step of every sample; `scores` (B, classes) gets what it gives.

        x: (B, positions, channels), or None for the inputs of the step before.
        """
        for b, (workspace, row) in enumerate(zip(self.workspaces, scores, strict=True)):
            workspace.generate(self.steps)
            if x is None:
                workspace.repeat()
            else:
                workspace.values[self.input_name][0] = x[b]
                workspace.run()
            row[...] = workspace.scores
        self.steps += 1

    def state(self) -> StreamState:
        """Copies of what the next step depends on; everything else follows from it."""
        return StreamState(
            self.steps,
            tuple(workspace.values[self.input_name].copy() for workspace in self.workspaces),
            tuple(
                {name: v.copy() for name, v in workspace.membranes.items()}
                for workspace in self.workspaces
            ),
        )

    @staticmethod
    def resumed(state: StreamState, build: Callable[[], Workspace], input_name: str) -> "Stream":
        """A stream that goes on from `state`; build: makes a workspace of one step at rest."""
        workspaces = []
        for shown, membranes in zip(state.inputs, state.membranes, strict=True):
            workspace = build()
            workspace.values[input_name][...] = shown
            for name, v in membranes.items():
                workspace.membranes[name][...] = v
            workspace.settle()
            workspaces.append(workspace)
        return Stream(workspaces, input_name, state.steps)
