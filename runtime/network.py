"""Running an event network: `load(path)`, then `network.run(images)`.

Weights are shared and never written; every run takes a workspace of buffers and membranes of its
own, so one network may be used from several threads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from soul_deploy.runtime.counters import LayerCounts
from soul_deploy.runtime.counting import (
    additions_map,
    count_additions,
    count_readout,
    count_spiking,
    fanout_map,
    readout_fanout,
)
from soul_deploy.runtime.errors import UnknownNameError, UsageError, ValidityError
from soul_deploy.runtime.eventfile import load_event_network
from soul_deploy.runtime.eventnet import (
    EventNetwork,
    PoolLayer,
    ReadoutLayer,
    Shape,
    SpikingLayer,
)
from soul_deploy.runtime.files import Array
from soul_deploy.runtime.packing import channel_last, unpacked
from soul_deploy.runtime.program import (
    Workspace,
    aligned,
    build_workspace,
    pool_call,
    prepare_all,
    spiking_calls,
)


@dataclass(frozen=True)
class Recording:
    """One run: spikes of each population, bool (T, B, C, H, W) or (T, B, N), and logits."""

    spikes: Mapping[str, Array]
    logits: Array


def load(path: Path | str) -> "Network":
    """The network in the event file at `path`, ready to run.

    Raises MissingFileError, FileFormatError, LimitError.
    """
    return Network(load_event_network(Path(path)))


@dataclass
class _Stream:
    """Membranes of a running stream: one workspace per sample of the batch, and steps done."""

    workspaces: list[Workspace]
    static: bool = True
    steps: int = 0


@dataclass(eq=False)
class Network:
    """An event network that runs. Layers are named as the graph's nodes.

    Analog inputs are float32 (anything else is converted): static images (B, C, H, W), shown T
    times, or sequences (T, B, C, H, W); (B, N) and (T, B, N) for a network that takes vectors.
    """

    events: EventNetwork
    _spare: dict[int, list[Workspace]] = field(default_factory=dict, init=False, repr=False)
    _stream: _Stream | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._prepared = prepare_all(self.events.layers)

    @property
    def time_steps(self) -> int:
        """T."""
        return self.events.time_steps

    def run(self, x: Array) -> Array:
        """Class scores, float32 (B, classes). Raises ValidityError for another T or shape."""
        samples = self._samples(x)
        logits = np.empty((len(samples), self.events.readout.classes), np.float32)
        with self._workspace(samples.shape[1]) as workspace:
            arrival = workspace.values[self.events.input_name]
            for sample, row in zip(samples, logits, strict=True):
                arrival[...] = sample
                workspace.run()
                row[...] = workspace.scores
        return logits

    def run_recorded(self, x: Array) -> Recording:
        """As `run`, and every population's spikes in PyTorch's channel-major layout."""
        samples = self._samples(x)
        logits = np.empty((len(samples), self.events.readout.classes), np.float32)
        layers = self.events.spiking_layers
        spikes = {
            layer.name: np.empty((self.time_steps, len(samples), *layer.out_shape), np.bool_)
            for layer in layers
        }
        with self._workspace(samples.shape[1]) as workspace:
            for b, sample in enumerate(samples):
                workspace.values[self.events.input_name][...] = sample
                workspace.run()
                logits[b] = workspace.scores
                for layer in layers:
                    values = self._spikes(workspace, layer)
                    spikes[layer.name][:, b] = to_channel_major(values, layer.out_shape)
        return Recording(spikes, logits)

    def run_layer(self, name: str, inputs: Array) -> Array:
        """Spikes (T, B, ...), bool, of one layer fed with what its source held.

        name: a population, a projection or a max pooling. inputs: (T, B, ...) in the source's
        shape, or (B, ...) for a static image into the first layer. Membranes start at rest.
        """
        layer = self._layer(name)
        values = self._source_values(layer, inputs)
        out = np.empty((self.time_steps, len(values), *layer.out_shape), np.bool_)
        run = self._run_pool if isinstance(layer, PoolLayer) else self._run_spiking
        for b, spikes in enumerate(run(layer, values)):  # type: ignore[arg-type]
            out[:, b] = to_channel_major(spikes, layer.out_shape)
        return out

    def _run_pool(self, layer: PoolLayer, values: Array) -> Iterator[Array]:
        """Sample by sample the map (T, positions, channels)."""
        spikes = aligned((self.time_steps, *channel_last(layer.out_shape)), np.uint8)
        for sample in values:
            call = pool_call(layer, np.ascontiguousarray(sample), spikes)
            call.kernel(*call.arguments)
            yield spikes

    def _run_spiking(self, layer: SpikingLayer, values: Array) -> Iterator[Array]:
        """As `_run_pool`, from rest."""
        prepared = self._prepared[layer.name]
        if prepared.source is not None:
            values = values.reshape(*values.shape[:2], -1)[..., prepared.source.placed]
        source = aligned(values.shape[1:], values.dtype)
        v = aligned((prepared.neurons,), np.float32)
        current = aligned((len(source), prepared.columns), np.float32)
        packing = prepared.packing
        room = channel_last(layer.out_shape) if packing is None else (len(v),)
        spikes = aligned((self.time_steps, *room), np.uint8)
        calls = spiking_calls(layer, prepared, source, current, v, spikes, carry=False)
        for sample in values:
            source[...] = sample
            for call in calls:
                call.kernel(*call.arguments)
            yield spikes if packing is None else unpacked(layer, packing, spikes)

    def _spikes(self, workspace: Workspace, layer: SpikingLayer) -> Array:
        """A population's map, from wherever the run left its spikes."""
        packing = self._prepared[layer.name].packing
        if packing is None:
            return workspace.values[layer.name]
        return unpacked(layer, packing, workspace.packed[layer.name])

    def count(self, x: Array) -> dict[str, LayerCounts]:
        """Operation counts of running `x`, summed over samples; by projection, then the readout."""
        return self.count_executed(x)[0]

    def count_executed(self, x: Array) -> tuple[dict[str, LayerCounts], dict[str, int]]:
        """As `count`, and by projection the synaptic additions that were executed.

        These include zeros in dense rows and synapses onto neurons that are not live; analog inputs
        are left out.
        """
        recording = self.run_recorded(x)
        held: dict[str, Array] = {self.events.input_name: np.asarray(x), **recording.spikes}
        counts: dict[str, LayerCounts] = {}
        executed: dict[str, int] = {}
        for layer in self.events.layers:
            if isinstance(layer, PoolLayer):
                held[layer.name] = self.run_layer(layer.name, held[layer.source])
                continue
            name, values = layer.projection, self._source_values(layer, held[layer.source])
            counts[name] = count_spiking(layer, values, held[layer.name])
            executed[name] = count_additions(layer, values)
        readout = self.events.readout
        counts[readout.name] = self.count_layer(readout.name, held[readout.source])
        return counts, executed

    def count_layer(self, name: str, inputs: Array, spikes_out: Array | None = None) -> LayerCounts:
        """Counts of one projection (or the readout) for what its source held, as in `run_layer`.

        spikes_out: the population's spikes for these inputs, if the caller has them; otherwise
        the layer is run.
        """
        if name == self.events.readout.name:
            return count_readout(self.events.readout, self._source_values(None, inputs))
        layer = self._layer(name)
        if isinstance(layer, PoolLayer):
            return LayerCounts()
        if spikes_out is None:
            spikes_out = self.run_layer(name, inputs)
        return count_spiking(layer, self._source_values(layer, inputs), spikes_out)

    def fanout(self, name: str) -> Array:
        """int64 map in the source's shape: synapses onto live neurons of each presynaptic neuron.

        name: a projection or its population; for the readout, the nonzero columns of its weights.
        """
        if name == self.events.readout.name:
            return readout_fanout(self.events.readout)
        layer = self._spiking(name)
        return fanout_map(layer.synapses, layer.updated)

    def additions(self, name: str) -> Array:
        """As `fanout`, the additions that an event of each presynaptic neuron executes."""
        layer = self._spiking(name)
        return additions_map(layer.synapses, layer.neurons)

    def _spiking(self, name: str) -> SpikingLayer:
        layer = self._layer(name)
        if isinstance(layer, PoolLayer):
            raise UsageError(f"{name} is a pooling; it has no synapses")
        return layer

    def step(self, x: Array) -> Array:
        """One step of a stream: the inputs of this step, (B, C, H, W), to scores (B, classes).

        Scores are those of this step alone; their mean over T steps is `run`. Membranes persist
        until `reset`. Raises ValidityError for another shape, a changed batch size, or a step
        beyond the T that the network is valid for.
        """
        shape = self.events.input_shape
        x = np.asarray(x, np.float32)
        if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
            raise ValidityError(
                f"a step of {x.shape} given; this network takes (batch, {_sides(shape)}) per step"
            )
        stream = self._stream or self._new_stream(len(x))
        if len(stream.workspaces) != len(x):
            raise ValidityError(
                f"a batch of {len(x)} given, but the stream runs {len(stream.workspaces)}; call "
                "reset() first"
            )
        if self.events.fixed_steps and stream.steps >= self.time_steps:
            raise ValidityError(
                f"step {stream.steps + 1} asked, but this network is valid for T = "
                f"{self.time_steps} steps from rest; call reset() first"
            )
        self._stream = stream
        scores = np.empty((len(x), self.events.readout.classes), np.float32)
        for workspace, sample, row in zip(stream.workspaces, x, scores, strict=True):
            workspace.values[self.events.input_name][0] = to_channel_last(sample[None], shape)[0]
            workspace.generate(stream.steps)
            workspace.run()
            row[...] = workspace.scores
        stream.steps += 1
        return scores

    def reset(self) -> None:
        """Forget the stream: the next `step` starts at rest, with any batch size."""
        self._stream = None

    def _new_stream(self, batch: int) -> _Stream:
        return _Stream([self._build(1, 1, carry=True) for _ in range(batch)])

    def _build(self, input_steps: int, steps: int, *, carry: bool) -> Workspace:
        return build_workspace(
            self.events, self._prepared, input_steps=input_steps, steps=steps, carry=carry
        )

    @contextmanager
    def _workspace(self, input_steps: int) -> Iterator[Workspace]:
        """A workspace nobody else uses; kept for the next run."""
        spare = self._spare.setdefault(input_steps, [])
        workspace = spare.pop() if spare else self._build(input_steps, self.time_steps, carry=False)
        yield workspace
        spare.append(workspace)

    def _samples(self, x: Array) -> Array:
        """(B, T or 1, positions, channels) float32. Raises ValidityError."""
        x = np.asarray(x, np.float32)
        shape = self.events.input_shape
        static = x.ndim == len(shape) + 1
        if x.shape[-len(shape) :] != shape or x.ndim - len(shape) not in (1, 2):
            raise ValidityError(
                f"input {x.shape} given; this network takes (batch, {_sides(shape)}), or "
                f"({self.time_steps}, batch, {_sides(shape)}) for a sequence"
            )
        if not static and len(x) != self.time_steps:
            raise ValidityError(
                f"a sequence of {len(x)} steps given; this network runs T = {self.time_steps} steps"
            )
        if not np.isfinite(x).all():
            raise ValidityError("the input holds values that are not finite; check its scaling")
        return np.swapaxes(to_channel_last(x[None] if static else x, shape), 0, 1)

    def _layer(self, name: str) -> SpikingLayer | PoolLayer:
        for layer in self.events.layers:
            if name == layer.name or (isinstance(layer, SpikingLayer) and name == layer.projection):
                return layer
        raise UnknownNameError("layer", name, (layer.name for layer in self.events.layers))

    def _source_values(self, layer: SpikingLayer | PoolLayer | None, inputs: Array) -> Array:
        """(B, T or 1, positions, channels) of what a layer's (or the readout's) source held."""
        target: SpikingLayer | PoolLayer | ReadoutLayer = layer or self.events.readout
        if isinstance(target, SpikingLayer) and target.edge == "analog":
            return self._samples(inputs)
        shape, inputs = target.in_shape, np.asarray(inputs)
        if inputs.ndim != len(shape) + 2 or inputs.shape[2:] != shape:
            raise ValidityError(
                f"{target.name}: inputs {inputs.shape} given; it takes ({self.time_steps}, batch, "
                f"{_sides(shape)})"
            )
        if len(inputs) != self.time_steps:
            raise ValidityError(
                f"{target.name}: {len(inputs)} steps given; this network runs T = "
                f"{self.time_steps} steps"
            )
        values = inputs.astype(np.uint8)
        bound = 1 if not isinstance(target, SpikingLayer) else target.bound
        if (values != inputs).any() or int(values.max(initial=0)) > (bound or 1):
            raise ValidityError(f"{target.name}: inputs must be whole numbers from 0 to {bound}")
        values = np.swapaxes(to_channel_last(values, shape), 0, 1)
        source = self.events.by_name[target.source]
        if isinstance(source, SpikingLayer) and source.live is not None:
            dead = values.reshape(*values.shape[:2], -1)[..., ~source.live]
            if dead.any():
                raise ValidityError(
                    f"{target.name}: spikes given of neurons of {source.name} that are not live"
                )
        return values


def to_channel_last(x: Array, shape: Shape) -> Array:
    """(..., C, H, W) to (..., H·W, C), or (..., N) to (..., 1, N)."""
    if len(shape) == 1:
        return x[..., None, :]
    lead = x.shape[: x.ndim - 3]
    return np.moveaxis(x.reshape(*lead, shape[0], shape[1] * shape[2]), -2, -1)


def to_channel_major(values: Array, shape: Shape) -> Array:
    """(T, positions, channels) to (T, C, H, W) or (T, N)."""
    return np.swapaxes(values, 1, 2).reshape(len(values), *shape)


def _sides(shape: Shape) -> str:
    return ", ".join(map(str, shape))
