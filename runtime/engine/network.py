"""Running an event network: `load(path)`, then `network.run(images)`.

Weights are shared and never written; every run takes a workspace of buffers and membranes of its
own, so one network may be used from several threads.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from soul_deploy.base.brief import brief
from soul_deploy.base.environment import physical_cores
from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.base.files import Array, File
from soul_deploy.base.input_rule import normalise
from soul_deploy.runtime.engine.inputs import (
    InputReader,
    by_step,
    source_values,
)
from soul_deploy.runtime.engine.single_layer import run_one
from soul_deploy.runtime.engine.streaming import Stream, StreamState
from soul_deploy.runtime.engine.thread_team import Crew
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.format.network import EventNetwork, Layer
from soul_deploy.runtime.format.validate import MAX_THREADS
from soul_deploy.runtime.kernels.barrier import Meet
from soul_deploy.runtime.plan.buffers import Workspace, build_workspace
from soul_deploy.runtime.plan.estimate import require_running
from soul_deploy.runtime.plan.layer_plan import prepare_all
from soul_deploy.runtime.plan.layout import channel_last, packing_of, unpacked
from soul_deploy.runtime.plan.partition import parts_of


def load(path: File, threads: int = 0, *, max_memory: int | None = None) -> "Network":
    """The network in the event file at `path`, ready to run on `threads`; 0: all physical cores.

    If it takes images, give pixels as uint8, which it normalises as the file says, or normalised
    images as floating-point numbers.
    max_memory: bytes that its description, and one run besides the file's arrays, may take (one
    sample, one thread); None: 128 MiB and 4 GiB (DESCRIPTION_BYTES, WORK_BYTES).
    Raises MissingFileError, FileFormatError, LimitError, UsageError.
    """
    return Network(load_event_network(path, max_memory=max_memory), threads, max_memory)


@brief
@dataclass(frozen=True)
class Recording:
    """One run: spikes of each population, bool (T, B, C, H, W) or (T, B, N), and logits."""

    spikes: Mapping[str, Array]
    logits: Array


@brief
@dataclass(eq=False)
class Network:
    """An event network that runs. Layers are named as the graph's nodes.

    Inputs are static images (B, C, H, W), shown T times, or sequences (T, B, C, H, W); (B, N) and
    (T, B, N) for a network that takes vectors. What the numbers mean is recorded in the file
    (`events.input_kind`): for images, uint8 are pixels, which are normalised as the file says, and
    floating-point numbers are taken as they are (`normalise` makes them of pixels); other integers
    and bool are refused. For counts, spikes and values, numbers of any dtype are taken as they are.
    Everything is computed in float32.

    threads: as many samples run at the same time; if there are fewer, each layer is split. Results
    are the same to the bit for any number. 0: as many as there are physical cores. Streams,
    recordings and single layers run on one.

    A copy (copy, deepcopy, pickle, a worker process of any kind) is a network of its own with as
    many threads: it computes the same, and a running stream goes on in it from the same step, apart
    from the original's. A step that another thread is in the middle of is not copied.

    max_memory: as in `load`; LimitError is raised before anything larger is made.
    """

    events: EventNetwork
    threads: int = 0
    max_memory: int | None = None
    _spare: dict[tuple[int, int], list[Workspace]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.threads = self.threads or min(len(physical_cores()), MAX_THREADS)
        if not isinstance(self.threads, int) or not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(
                f"{self.threads!r} threads asked; give 1 to {MAX_THREADS}, or 0 for all"
            )
        require_running(self.events, self.max_memory)
        self._prepared = prepare_all(self.events)
        self._crew = Crew(self.threads) if self.threads > 1 else None
        self._build = partial(build_workspace, self.events, self._prepared)
        self._reader = InputReader(self.events)
        self._stream = self.stream()

    def __getstate__(self) -> tuple[EventNetwork, int, int | None, StreamState]:
        """What a copy is made of: tables and buffers refer to each other, so it builds its own."""
        return self.events, self.threads, self.max_memory, self._stream.state()

    def __setstate__(self, state: tuple[EventNetwork, int, int | None, StreamState]) -> None:
        self.events, self.threads, self.max_memory, running = state
        self._spare = {}
        self.__post_init__()
        self._stream.resume(running)

    @property
    def time_steps(self) -> int:
        """T."""
        return self.events.time_steps

    def warm_up(self, *, stream: bool = False) -> None:
        """Run one blank sample, so that no later run waits for a kernel to be compiled or loaded.

        stream: also what `step` needs. A running stream is left as it is.
        """
        self.run(np.zeros((1, *self.events.input_shape), np.float32))
        if stream:
            self._stream.warm_up()

    def normalise(self, pixels: Array) -> Array:
        """(pixel / 255 - mean) / std per channel, float32, as the file says.

        pixels: uint8 (..., C, H, W) or (..., N). A file without a normalisation: pixel / 255.
        Raises ValidityError for another dtype or shape, UsageError if the network takes no images.
        """
        return normalise(pixels, self.events.rule)

    def input_values(self, x: Array) -> Array:
        """float32 (B, ...) or (T, B, ...) that a run of `x` computes with: pixels normalised.

        Raises ValidityError for another T or shape, or numbers of another kind.
        """
        return self._reader.values(x)

    def run(self, x: Array) -> Array:
        """Class scores, float32 (B, classes), of images (B, C, H, W) or a sequence (T, B, C, H, W).

        uint8 images are pixels and are normalised as the file says (see Network). Raises
        ValidityError for another T or shape, or numbers of another kind. Warns once
        (NetworkWarning) if floating-point numbers look like pixels that nobody has normalised.
        """
        samples = self._reader.samples(x)
        logits = np.empty((len(samples), self.events.readout.classes), np.float32)
        crew = self._crew
        if crew is None:
            self._run_into(samples, logits)
        elif len(samples) < self.threads:
            with self._workspace(samples.shape[1], self.threads) as workspace:
                crew.together(
                    lambda thread, meet: self._run_part(workspace, samples, logits, thread, meet)
                )
        else:
            bounds = [part.of(len(samples)) for part in parts_of(self.threads)]
            shares = [(samples[first:last], logits[first:last]) for first, last in bounds]
            crew.each(lambda share, meet: self._run_into(*shares[share], meet))
        return logits

    def _run_into(self, samples: Array, logits: Array, meet: Meet = lambda: None) -> None:
        """One sample after the other, on this thread."""
        with self._workspace(samples.shape[1], 1) as workspace:
            self._run_part(workspace, samples, logits, 0, meet)

    def _run_part(
        self, workspace: Workspace, samples: Array, logits: Array, part: int, meet: Meet
    ) -> None:
        """One sample after the other, one part of every stage."""
        arrival = workspace.values[self.events.input_name]
        for sample, row in zip(samples, logits, strict=True):
            if part == 0:
                arrival[...] = sample
            meet()
            workspace.run(part, meet)
            if part == 0:
                row[...] = workspace.scores

    def run_recorded(self, x: Array) -> Recording:
        """As `run`, and every population's spikes in PyTorch's channel-major layout."""
        names = [layer.name for layer in self.events.populations]
        held, logits = self.run_held(x, names)
        return Recording(self.spikes_of(held), logits)

    def run_held(self, x: Array, names: Iterable[str]) -> tuple[dict[str, Array], Array]:
        """What the input and the named layers held, (B, steps, positions, channels), and scores."""
        samples = self._reader.samples(x)
        logits = np.empty((len(samples), self.events.readout.classes), np.float32)
        held: dict[str, Array] = {}
        with self._workspace(samples.shape[1], 1) as workspace:
            for b, sample in enumerate(samples):
                workspace.values[self.events.input_name][...] = sample
                workspace.run()
                logits[b] = workspace.scores
                for name in names:
                    values = self._values(workspace, name)
                    if name not in held:
                        held[name] = np.empty((len(samples), *values.shape), values.dtype)
                    held[name][b] = values
        for name in set(names) - set(held):  # no samples
            positions, channels = channel_last(self.events.by_name[name].out_shape)
            held[name] = np.empty((0, self.time_steps, positions, channels), np.uint8)
        return held | {self.events.input_name: samples}, logits

    def _values(self, workspace: Workspace, name: str) -> Array:
        """A layer's map, from wherever the run left it."""
        if name in workspace.packed:
            layer = self.events.by_name[name]
            packing = packing_of(layer)
            assert packing is not None
            return unpacked(layer, packing, workspace.packed[name])
        return workspace.values[name]

    def spikes_of(self, held: Mapping[str, Array]) -> dict[str, Array]:
        """bool (T, B, ...) of every population."""
        return {
            layer.name: by_step(held[layer.name], layer.out_shape).astype(np.bool_)
            for layer in self.events.populations
        }

    def run_layer(self, name: str, *inputs: Array) -> Array:
        """What one layer gives for what its sources held; membranes start at rest.

        name: a layer, or a projection with its population. inputs: one per source, each
        (T, B, ...) in the source's shape, or (B, ...) for an analog value that is the same at every
        step. Returns (T, B, ...): bool of spikes, uint8 of graded, float32 of analog values; these
        (B, ...) if they are the same at every step.
        """
        layer = self.layer(name)
        if len(inputs) != len(layer.sources):
            raise UsageError(
                f"{name}: {len(inputs)} inputs given; it takes {len(layer.sources)}: "
                f"{', '.join(layer.sources)}"
            )
        pairs = zip(layer.sources, inputs, strict=True)
        values = [source_values(self.events, layer, source, given) for source, given in pairs]
        kind, _ = self.events.edges[layer.name]
        out = run_one(self.events, self._prepared, layer, values)
        found = by_step(out, layer.out_shape)
        if kind == "analog" and all(i.ndim == len(layer.in_shape) + 1 for i in inputs):
            alike: Array = found[0]
            return alike
        return found.astype(np.bool_) if kind == "spike" else found

    def stream(self) -> Stream:
        """A stream at rest, apart from all others."""
        return Stream(self.events, self._prepared, self._reader)

    def step(self, x: Array | None = None) -> Array:
        """`Stream.step` of the network's own stream, which copies of the network go on with."""
        return self._stream.advance(None if x is None else self._reader.frames(x))

    def reset(self) -> None:
        """`Stream.reset` of the network's own stream."""
        self._stream.reset()

    @contextmanager
    def _workspace(self, input_steps: int, parts: int) -> Iterator[Workspace]:
        """A workspace nobody else uses; as many as one run needs are kept for the next."""
        spare = self._spare.setdefault((input_steps, parts), [])
        try:
            workspace = spare.pop()
        except IndexError:
            workspace = self._build(
                input_steps=input_steps, steps=self.time_steps, carry=False, parts=parts
            )
        yield workspace
        if len(spare) < (self.threads if parts == 1 else 1):
            spare.append(workspace)

    def layer(self, name: str) -> Layer:
        for layer in self.events.layers:
            if name in layer.names:
                return layer
        raise UnknownNameError("layer", name, (layer.name for layer in self.events.layers))
