"""Running an event network: `load(path)`, then `network.run(images)`.

Weights are shared and never written; every run takes buffers and membranes of its own, so one
network may be used from several threads.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from soul_deploy.base import Array, brief, environment, errors, files, pixel_rule
from soul_deploy.runtime.engine import event_stream, streaming, thread_team
from soul_deploy.runtime.engine.inputs import InputReader, by_step, source_values
from soul_deploy.runtime.format import file, network, validate
from soul_deploy.runtime.kernels.barrier import Barrier
from soul_deploy.runtime.plan import estimate, layer_plan
from soul_deploy.runtime.plan.buffers import Buffers, build_buffers
from soul_deploy.runtime.plan.layout import channel_last, dense_map, layout_of
from soul_deploy.runtime.plan.one_layer import run_layer
from soul_deploy.runtime.plan.planes import map_of
from soul_deploy.runtime.plan.readout import step_scores


def load(
    path: files.File,
    threads: int = 0,
    *,
    max_memory: int | None = None,
    forms: Mapping[str, str] | None = None,
) -> "Network":
    """The network in the event file at `path`, ready to run on `threads`; 0: all physical cores.

    If it takes images, give pixels as uint8, which it normalises as the file says, or normalised
    images as floating-point numbers.
    max_memory: bytes that its description, and one run besides the file's arrays, may take (one
    sample, one thread); None: 128 MiB and 4 GiB (DESCRIPTION_BYTES, WORK_BYTES).
    forms: how some layers' synapses run, by name, as in `Network`.
    Raises MissingFileError, FileFormatError, LimitError, UsageError.
    """
    events = file.load_event_network(path, max_memory=max_memory)
    try:
        return Network(events, threads, max_memory, forms or {})
    except errors.FileFormatError as error:  # a form of rows that the file asks for
        raise errors.FileFormatError(f"{files.path_of(path)}: {error}") from error


@brief
@dataclass(frozen=True)
class Recording:
    """One run: spikes of each population, bool (T, B, C, H, W) or (T, B, N), and logits."""

    spikes: Mapping[str, Array]
    logits: Array


_State = tuple[network.EventNetwork, int, int | None, Mapping[str, str], streaming.StreamState]


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

    forms: how the synapses of some layers run, by name (plan/forms.py); of the others, the form
    that the file asks for, or else the one that is expected to be fastest here, if it fits the
    memory. `layer_forms` says which all have.
    """

    events: network.EventNetwork
    threads: int = 0
    max_memory: int | None = None
    forms: Mapping[str, str] = field(default_factory=dict)
    _spare: dict[tuple[int, int], list[Buffers]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.threads = self.threads or min(len(environment.physical_cores()), validate.MAX_THREADS)
        if not isinstance(self.threads, int) or not 1 <= self.threads <= validate.MAX_THREADS:
            raise errors.UsageError(
                f"{self.threads!r} threads asked; give 1 to {validate.MAX_THREADS}, or 0 for all"
            )
        self.layer_forms = estimate.affordable_forms(self.events, self.forms, self.max_memory)
        estimate.require_running(self.events, self.max_memory, self.layer_forms)
        self._plans = layer_plan.plan_layers(self.events, self.layer_forms)
        self._team = thread_team.ThreadTeam(self.threads) if self.threads > 1 else None
        self._build = partial(build_buffers, self.events, self._plans)
        self._reader = InputReader(self.events)
        self._stream = self.stream()

    def __getstate__(self) -> "_State":
        """What a copy is made of: tables and buffers refer to each other, so it builds its own."""
        # Its forms go along: on another processor the copy sums in the same order.
        return self.events, self.threads, self.max_memory, self.layer_forms, self._stream.state()

    def __setstate__(self, state: "_State") -> None:
        self.events, self.threads, self.max_memory, self.forms, running = state
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
        self.run(self.events.blank)
        if stream:
            self._stream.warm_up()

    def normalise(self, pixels: Array) -> Array:
        """(pixel / 255 - mean) / std per channel, float32, as the file says.

        pixels: uint8 (..., C, H, W) or (..., N). A file without a normalisation: pixel / 255.
        Raises ValidityError for another dtype or shape, UsageError if the network takes no images.
        """
        return pixel_rule.normalise(pixels, self.events.rule)

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
        team = self._team
        if team is None:
            self._run_into(samples, logits)
        elif len(samples) < self.threads:
            with self._buffers(samples.shape[1], self.threads) as buffers:
                programs = [buffers.program(i) for i in range(self.threads)]
                run = partial(team.run, programs, buffers.barrier)
                self._run_each(buffers, samples, logits, run)
        else:
            bounds = [
                partition.of(len(samples)) for partition in layer_plan.partitions_of(self.threads)
            ]
            shares = [(samples[first:last], logits[first:last]) for first, last in bounds]
            team.each(lambda share, barrier: self._run_into(*shares[share], barrier))
        return logits

    def _run_into(self, samples: Array, logits: Array, barrier: Barrier = lambda: None) -> None:
        """One sample after the other, on this thread."""
        with self._buffers(samples.shape[1], 1) as buffers:
            self._run_each(buffers, samples, logits, buffers.run, barrier)

    def _run_each(
        self, buffers: Buffers, samples: Array, logits: Array, run: Callable[[], None],
        barrier: Barrier = lambda: None,
    ) -> None:  # fmt: skip
        """One sample after the other: `run` does all regions of the buffers."""
        arrival = buffers.values[self.events.input_name]
        for sample, row in zip(samples, logits, strict=True):
            barrier()
            arrival[...] = sample
            run()
            row[...] = buffers.scores

    def run_recorded(self, x: Array) -> Recording:
        """As `run`, and every population's spikes in PyTorch's channel-major layout."""
        names = [layer.name for layer in self.events.populations]
        recorded, logits = self.run_recording_values(x, names)
        return Recording(self.spikes_of(recorded), logits)

    def run_steps(self, x: Array) -> Array:
        """The class scores of each step, float32 (T, B, classes), of which `run` makes their mean,
        sum, last or maximum (`events.readout.over_time`). x: as in `run`; on one thread.
        """
        source = self.events.readout.source
        recorded, _ = self.run_recording_values(x, [source])
        return step_scores(self.events.readout, recorded[source])

    def run_recording_values(
        self, x: Array, names: Iterable[str]
    ) -> tuple[dict[str, Array], Array]:
        """Values of the input and the named layers, (B, steps, positions, channels), and scores."""
        samples = self._reader.samples(x)
        logits = np.empty((len(samples), self.events.readout.classes), np.float32)
        recorded: dict[str, Array] = {}
        with self._buffers(samples.shape[1], 1) as buffers:
            for b, sample in enumerate(samples):
                buffers.values[self.events.input_name][...] = sample
                buffers.run()
                logits[b] = buffers.scores
                for name in names:
                    values = self.values_of(buffers, name)
                    if name not in recorded:
                        recorded[name] = np.empty((len(samples), *values.shape), values.dtype)
                    recorded[name][b] = values
        for name in set(names) - set(recorded):  # no samples
            positions, channels = channel_last(self.events.by_name[name].out_shape)
            recorded[name] = np.empty((0, self.time_steps, positions, channels), np.uint8)
        return recorded | {self.events.input_name: samples}, logits

    def values_of(self, buffers: Buffers, name: str) -> Array:
        """A layer's map, from wherever the run left it."""
        if name in buffers.values:
            return buffers.values[name]
        layer = self.events.by_name[name]
        if name in buffers.words:
            return map_of(buffers.words[name], layer.out_shape)
        layout = layout_of(layer)
        assert layout is not None
        return dense_map(layer, layout, buffers.compacted[name])

    def spikes_of(self, recorded: Mapping[str, Array]) -> dict[str, Array]:
        """(T, B, ...) of every population: bool of spikes, else the integers that it sent."""
        found = {}
        for layer in self.events.populations:
            sent = by_step(recorded[layer.name], layer.out_shape)
            spikes = self.events.edges[layer.name][0] == "spike"
            found[layer.name] = sent.astype(np.bool_) if spikes else sent
        return found

    def run_layer(self, name: str, *inputs: Array, sent: Array | None = None) -> Array:
        """Run one layer on values of its sources; membranes start at rest.

        name: a layer, or a projection with its population. inputs: one per source, each
        (T, B, ...) in the source's shape, or (B, ...) for an analog value that is the same at every
        step. sent: of a layer with a feedback, (T, B, ...) that is fed back instead of what the
        layer sends itself.
        Returns (T, B, ...): bool of spikes, integers of graded edges, float32 of analog values;
        these (B, ...) if they are the same at every step.
        """
        layer = self.layer(name)
        if len(inputs) != len(layer.sources):
            raise errors.UsageError(
                f"{name}: {len(inputs)} inputs given; it takes {len(layer.sources)}: "
                f"{', '.join(layer.sources)}"
            )
        pairs = zip(layer.sources, inputs, strict=True)
        values = [source_values(self.events, layer, source, array) for source, array in pairs]
        kind, _ = self.events.edges[layer.name]
        taught = None
        if sent is not None:
            if layer.feedback is None:
                raise errors.UsageError(f"{name}: {layer.what} has no feedback to give spikes to")
            taught = source_values(self.events, layer, layer.name, sent)
        out = run_layer(self.events, self._plans, layer, values, taught)
        stepwise = by_step(out, layer.out_shape)
        if kind == "analog" and all(i.ndim == len(layer.in_shape) + 1 for i in inputs):
            return np.asarray(stepwise[0])
        return stepwise.astype(np.bool_) if kind == "spike" else stepwise

    def stream(self) -> streaming.Stream:
        """A stream at rest, apart from all others.

        Raises ValidityError at its first step if neurons of the network mix all steps.
        """
        return streaming.Stream(self.events, self._plans, self._reader)

    def event_stream(self) -> event_stream.EventStream:
        """A stream at rest of one sample that updates what events reach, and nothing else: for a
        few events at a time. Scores have the bits of `stream()` where synapses run from event to
        event (`forms`). Raises UnsupportedGraphError, naming the layer, for what cannot run so.
        """
        return event_stream.EventStream(self.events, self.max_memory)

    def step(self, x: Array | None = None) -> Array:
        """`Stream.step` of the network's own stream, which copies of the network go on with."""
        return self._stream.advance(None if x is None else self._reader.frames(x))

    def reset(self) -> None:
        """`Stream.reset` of the network's own stream."""
        self._stream.reset()

    @contextmanager
    def _buffers(self, input_steps: int, partitions: int) -> Iterator[Buffers]:
        """Buffers that no other run uses; as many as one run needs are kept for the next run."""
        spare = self._spare.setdefault((input_steps, partitions), [])
        try:
            buffers = spare.pop()
        except IndexError:
            buffers = self._build(
                input_steps=input_steps, steps=self.time_steps, carry=False, partitions=partitions
            )
        yield buffers
        if len(spare) < (self.threads if partitions == 1 else 1):
            spare.append(buffers)

    def layer(self, name: str) -> network.Layer:
        for layer in self.events.layers:
            if name in layer.names:
                return layer
        raise errors.UnknownNameError("layer", name, (layer.name for layer in self.events.layers))
