"""A running stream: membranes that stay between steps, and how a copy goes on with them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from soul_deploy.base import Array, brief, errors, pixel_rule
from soul_deploy.runtime.engine.inputs import InputReader
from soul_deploy.runtime.engine.pending import PendingEvents
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.plan.buffers import Buffers, build_buffers
from soul_deploy.runtime.plan.forms import Form
from soul_deploy.runtime.plan.layer_plan import LayerPlan, plan_layers


@brief
@dataclass(frozen=True)
class StreamState:
    """All that a stream remembers, as arrays of its own, sample by sample.

    steps      done so far
    inputs     what each sample was shown last, (1, positions, channels) float32
    membranes  of each sample: layer name -> (L,) float32, after the last step
    pending    events that wait for the end of a step; None: none were pushed
    scores     of the last step; None: there was none
    """

    steps: int
    inputs: tuple[Array, ...]
    membranes: tuple[Mapping[str, Array], ...]
    pending: Array | None = None
    scores: Array | None = None


@brief
@dataclass(eq=False)
class Stream:
    """A network step by step; membranes persist until `reset`. One thread at a time may step.

    A copy goes on from the same step, apart from the original.

    events      the network
    prepared    its layers with synapses
    reader      reads the inputs of a step
    running     buffers, one per sample of the batch (none before the first step and while a step
                runs), and the steps done since the start or the last `reset`: one value, since
                another thread may copy the stream meanwhile
    scores      class scores (B, classes) of the last step that ended; None: none has ended
    """

    events: EventNetwork
    prepared: Mapping[str, LayerPlan] = field(repr=False)
    reader: InputReader = field(repr=False)
    running: tuple[Sequence[Buffers], int] = field(default=((), 0), init=False, repr=False)
    scores: Array | None = field(default=None, init=False, repr=False)
    _pending: PendingEvents | None = field(default=None, init=False, repr=False)

    @property
    def samples(self) -> Sequence[Buffers]:
        return self.running[0]

    @property
    def steps(self) -> int:
        return self.running[1]

    def __getstate__(self) -> tuple[EventNetwork, dict[str, Form], StreamState]:
        forms = {name: plan.form for name, plan in self.prepared.items()}
        return self.events, forms, self.state()

    def __setstate__(self, state: tuple[EventNetwork, dict[str, Form], StreamState]) -> None:
        self.events, forms, running = state
        self.prepared, self.reader = plan_layers(self.events, forms), InputReader(self.events)
        self.running, self.scores, self._pending = ((), 0), None, None
        self.resume(running)

    def step(self, x: Array | None = None) -> Array:
        """One step: the inputs of this step, (B, C, H, W), to scores (B, classes).

        Without `x`, a network of counts or spikes is given the events that were pushed since the
        step before, none included. Of others, the inputs are those of the step before, and what
        they alone determine, such as the first layer's currents, is not computed again.
        Scores are those of this step alone; `Network.run` makes of those of T steps their mean,
        sum, last or maximum, as `events.readout.over_time` says. Raises
        ValidityError for another shape, a changed batch size, no input at the first step, or a step
        beyond the T that the network is valid for. A step that is interrupted ends the stream.
        """
        return self.advance(None if x is None else self.reader.frames(x))

    def push(self, events: Array) -> None:
        """Events (N,) of `base.events.EVENT`, in any order of time, for the step that `step()`
        ends. One sample; channel p of the input (2, H, W) holds the events of polarity p.

        Raises UsageError for a network that takes no counts or spikes, ValidityError for events
        outside of the input, or more than the network takes of a pixel in a step.
        """
        if self._pending is None:
            self._pending = PendingEvents(self.events)
        self._pending.add(events)

    def reset(self) -> None:
        """The next `step` starts at rest, with any batch size, and without events."""
        self.running, self.scores = ((), 0), None
        if self._pending is not None:
            self._pending.clear()

    def _without_input(self) -> Array | None:
        """What a step is shown that is given nothing; None: the inputs of the step before."""
        if self.events.input_kind not in pixel_rule.EVENT_KINDS:
            return None
        if self._pending:
            return self._pending.take()
        channels, *sides = self.events.input_shape
        batch = len(self.samples) or 1
        return np.zeros((batch, math.prod(sides), channels), self.events.takes)

    def advance(self, shown: Array | None) -> Array:
        """As `step`, of inputs (B, positions, channels) that were read; None: nothing given."""
        if shown is None:
            shown = self._without_input()
        elif self._pending:
            raise errors.UsageError(
                "events were pushed, and a frame is given too; end their step first, by step()"
            )
        done = self.running[1]
        mixing = [layer.name for layer in self.events.populations if layer.neuron.whole]
        if mixing:
            raise errors.ValidityError(
                f"a step asked of a network whose neurons ({mixing[0]}) mix all "
                f"T = {self.events.time_steps} steps; run whole samples instead"
            )
        workspaces = self._buffers_for(None if shown is None else len(shown))
        if self.events.fixed_steps and done >= self.events.time_steps:
            raise errors.ValidityError(
                f"step {done + 1} asked, but this network is valid for T = "
                f"{self.events.time_steps} steps from rest; call reset() first"
            )
        self.running = (), 0  # what an interruption leaves half done is nobody's next step
        scores = np.empty((len(workspaces), self.events.readout.classes), np.float32)
        for b, (buffers, row) in enumerate(zip(workspaces, scores, strict=True)):
            buffers.set_step(done)
            if shown is None:
                buffers.repeat()
            else:
                buffers.values[self.events.input_name][0] = shown[b]
                buffers.run()
            row[...] = buffers.scores
        self.running, self.scores = (workspaces, done + 1), scores
        return scores

    def warm_up(self) -> None:
        """Run a blank step beside the stream, so that no later one waits for a kernel."""
        buffers = self._workspace()
        buffers.values[self.events.input_name][...] = 0
        buffers.set_step(0)
        buffers.run()
        buffers.repeat()

    def state(self) -> StreamState:
        """Copies of what the next step depends on; everything else follows from it."""
        workspaces, steps = self.running  # none while another thread is in the middle of a step
        return StreamState(
            steps,
            tuple(buffers.values[self.events.input_name].copy() for buffers in workspaces),
            tuple(
                {name: v.copy() for name, v in buffers.membranes.items()} for buffers in workspaces
            ),
            None if self._pending is None else self._pending.values.copy(),
            None if self.scores is None else self.scores.copy(),
        )

    def resume(self, state: StreamState) -> None:
        """Go on from `state`."""
        self.running = [self._workspace() for _ in state.inputs], state.steps
        self.scores = state.scores
        if state.pending is not None:
            self._pending = PendingEvents(self.events)
            self._pending.resume(state.pending)
        for buffers, shown, membranes in zip(
            self.samples, state.inputs, state.membranes, strict=True
        ):
            buffers.values[self.events.input_name][...] = shown
            for name, v in membranes.items():
                buffers.membranes[name][...] = v
            buffers.run_static()

    def _buffers_for(self, batch: int | None) -> Sequence[Buffers]:
        """The running workspaces, or new ones, for a batch of that size; None: no new input."""
        if not self.steps:
            if batch is None:
                raise errors.ValidityError("the first step of a stream needs an input")
            return [self._workspace() for _ in range(batch)]
        if batch not in (None, len(self.samples)):
            raise errors.ValidityError(
                f"a batch of {batch} given, but the stream runs {len(self.samples)}; call "
                "reset() first"
            )
        return self.samples

    def _workspace(self) -> Buffers:
        return build_buffers(self.events, self.prepared, input_steps=1, steps=1, carry=True)
