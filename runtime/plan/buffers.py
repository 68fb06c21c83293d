"""Buffers for every layer of one sample, and the kernel calls bound to the buffers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from soul_deploy.base import Array, brief, dispatch, errors
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.kernels.barrier import Meeting, barrier_for
from soul_deploy.runtime.kernels.program import Bound, Program
from soul_deploy.runtime.kernels.steps import membrane_type
from soul_deploy.runtime.plan import plane_regions, planes, recurrent, regions
from soul_deploy.runtime.plan.layer_plan import LayerPlan, aligned, partitions_of
from soul_deploy.runtime.plan.layout import CompactLayout, channel_last, layout_of, pattern_spikes
from soul_deploy.runtime.plan.neuron_state import sent_dtype, state_at_rest, update_numbers
from soul_deploy.runtime.plan.planes import Words
from soul_deploy.runtime.plan.readout import membranes_of, readout_region
from soul_deploy.runtime.plan.regions import Region
from soul_deploy.runtime.plan.word_maps import pools_on_words, read_as_maps


@brief
@dataclass
class Buffers:
    """Buffers and calls for one sample; used by one caller at a time.

    values    maps by layer name, the input included: (T, positions, channels); spikes and graded
              values are uint8, signed ones int8, analog ones float32, with a single step where
              all steps are the same. Compacted populations have a map only where something
              reads the map
    compacted spikes (T, L) uint8 of compacted populations, by name
    words     of populations that run on bit planes, or that such layers read, by name
    membranes by layer name: (L,) float32, or integers, or (S, L) of neurons with S state variables;
              by the name of a feedback the spikes that its population sent last
    patterns  by layer name: the slice of a map that holds constant-pattern channels, and their
              spikes (all T, positions, G); outside streams the map holds them from the start
    stepwise  in a stream: numbers of neurons that change from step to step, (1, K, n or 1), and
              those of all steps
    static_regions  in a stream, regions whose results only change with the input
    regions   the other regions, in order
    owners    of each of `regions` the layer's name
    scores    (classes,) float32, written by the last call
    barrier   at which the threads that run a partition each wait after every region
    """

    scores: Array
    barrier: Meeting
    values: dict[str, Array] = field(default_factory=dict)
    compacted: dict[str, Array] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)
    membranes: dict[str, Array] = field(default_factory=dict)
    patterns: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    stepwise: list[tuple[Array, Array]] = field(default_factory=list)
    static_regions: list[Region] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    _programs: dict[tuple[str, int], Program] = field(default_factory=dict, init=False, repr=False)

    def add(self, owner: str, region: Region) -> None:
        """One more region, of the layer `owner`."""
        self.regions.append(region)
        self.owners.append(owner)

    def run(self, partition: int = 0) -> None:
        """Execute all regions on the input in `values`.

        partition: which of the partitions that the buffers were built with; one thread runs each,
        all at the same time. Raises BrokenBarrierError if another thread failed.
        """
        self.program(partition).run(self.barrier.delayed)

    def program(self, partition: int) -> Program:
        """Of `run`."""
        return self._program("whole", partition, (*self.static_regions, *self.regions))

    def repeat(self) -> None:
        """As `run`, when the input is still the one of the run before; a single partition."""
        self._program("steps", 0, self.regions).run(self.barrier.delayed)

    def run_static(self) -> None:
        """In a stream: execute the static regions on the input in `values`; `repeat` may follow."""
        self._program("static", 0, self.static_regions).run(self.barrier.delayed)

    def _program(self, part: str, partition: int, run: Sequence[Region]) -> Program:
        """A partition of the regions `run`, which have the name `part`."""
        if (program := self._programs.get((part, partition))) is None:
            calls: list[Bound] = []
            for region in run:
                for call in region[partition] if partition < len(region) else ():
                    calls.append((call.kernel, call.arguments))
                if self.barrier.threads > 1:
                    calls += self.barrier.calls(partition)
            program = self._programs[part, partition] = Program(calls)
        return program

    def __reduce__(self) -> NoReturn:
        """Raise UsageError: a copy's calls would write to buffers that nobody reads."""
        raise errors.UsageError(
            "a workspace cannot be copied; copy its network, which builds its own"
        )

    def set_step(self, step: int) -> None:
        """In a stream: write what `step` has of its own: the spikes of constant-pattern channels,
        into their maps, and neurons' numbers.
        """
        for shown, numbers in self.stepwise:
            shown[0] = numbers[step]
        for pattern_slice, spikes in self.patterns.values():
            pattern_slice[0] = spikes[step]


def build_buffers(
    network: net.EventNetwork, plans: Mapping[str, LayerPlan], *, input_steps: int, steps: int,
    carry: bool, partitions: int = 1,
) -> Buffers:  # fmt: skip
    """Buffers and calls for `steps` steps. input_steps 1: a static image (or a single step).

    carry: membranes are kept between runs instead of starting at rest. partitions: of every region.
    """
    largest = 0
    for layer in network.spiking_layers:
        if plans[layer.name].planes is not None:
            continue
        given = input_steps if layer.source in network.static else steps
        if regions.tiles_of(layer, plans[layer.name], given, partitions) > 1:
            continue
        shape = regions.currents_shape(layer, plans[layer.name], given)
        largest = max(largest, math.prod(shape))
    builder = Builder(network, plans, steps, carry, partitions, aligned((largest,), np.float32))
    made, shown = builder.made, (input_steps, *channel_last(network.input_shape))
    made.values[network.input_name] = aligned(shown, network.takes)
    for each in network.layers:
        bind(each, builder)
    source = made.values[network.readout.source]
    membranes = membranes_of(network.readout, steps, carry=carry)
    if membranes is not None:
        made.membranes[network.readout.name] = membranes.state
    region = readout_region(network.readout, source, made.scores, membranes)
    made.add(network.readout.name, region)
    return made


@brief
@dataclass
class Builder:
    """Buffers being `made`, layer after layer.

    currents: one buffer that serves all layers in turn whose currents only their neurons read.
    taught: what a feedback reads instead of the spikes of its population; None: these.
    """

    network: net.EventNetwork
    plans: Mapping[str, LayerPlan]
    steps: int
    carry: bool
    partitions: int
    currents: Array
    taught: Array | None = None

    def __post_init__(self) -> None:
        scores = aligned((self.network.readout.classes,), np.float32)
        self.made = Buffers(scores, barrier_for(self.partitions))
        self.read = read_as_maps(self.network, self.plans)
        rows = {name: plan.planes for name, plan in self.plans.items() if plan.planes is not None}
        pools = pools_on_words(self.network, self.plans) if rows else ()
        self.frames = planes.frames_of(self.network, rows, pools, self.steps)
        self.scratch = regions.Scratch()

    def add_current(self, layer: net.CurrentLayer) -> None:
        plan, source = self.plans[layer.name], self._source(layer)
        out = self._map(layer, len(source))
        flat = out.reshape(len(out), -1)
        region = regions.current_region(
            layer, plan, source, flat, lanes=0, partitions=self.partitions, shared=self.scratch
        )
        self._add(layer.name, region)

    def add_map(self, layer: net.MapLayer) -> None:
        if planes.fits_pooling(layer) and layer.sources[0] in self.made.words:
            self._pool_words(layer)
            return
        sources = [self.made.values[name] for name in layer.sources]
        out = self._map(layer, max(map(len, sources)))
        region = regions.map_region(layer, sources, out, partitions=self.partitions)
        self._add(layer.name, region)

    def _pool_words(self, layer: net.MapLayer) -> None:
        source, words = self.made.words[layer.sources[0]], self._empty_words(layer)
        region = plane_regions.pool_words_region(
            source, words, layer.out_shape, partitions=self.partitions
        )
        self.made.add(layer.name, region)
        self._unpack(layer, words)

    def _unpack(self, layer: net.Layer, words: planes.Words) -> None:
        """If a layer reads the map of a layer that gives words."""
        if layer.name in self.read:
            out = self._map(layer, self.steps)
            region = plane_regions.unpack_region(words, out, partitions=self.partitions)
            self.made.add(layer.name, region)

    def _add(self, name: str, region: Region) -> None:
        """A layer's region, to those that it belongs to."""
        if self._is_static(name):
            self.made.static_regions.append(region)
        else:
            self.made.add(name, region)

    def _is_static(self, name: str) -> bool:
        """In a stream, whether a layer's values change with the input alone."""
        return self.carry and name in self.network.static

    def _map(self, layer: net.Layer, steps: int) -> Array:
        """A zeroed map for what the layer gives."""
        edge = self.network.edges[layer.name]
        full = aligned((steps, *channel_last(layer.out_shape)), sent_dtype(edge))
        full[...] = 0
        self.made.values[layer.name] = full
        return full

    def _source(self, layer: net.Synaptic) -> Array:
        compacted = self.plans[layer.name].source_layout is not None
        return (self.made.compacted if compacted else self.made.values)[layer.source]

    def add_spiking(self, layer: net.SpikingLayer) -> None:
        if (rows := self.plans[layer.name].planes) is not None:
            self._add_planes(layer, rows)
            return
        plan, source = self.plans[layer.name], self._source(layer)
        static, current = self._is_static(layer.source), self._current(layer, plan, source)
        wanted = layer.name in self.frames and layer.name not in self.read
        if wanted and layer.neuron.fuses:
            self._add_words(layer, plan, source, current, static=static)
            return
        v, spikes, numbers = self.add_neurons(layer, plan.layout, plan.neurons)
        *of_input, of_steps = regions.spiking_regions(
            layer, plan, source, current, v, spikes, carry=self.carry, partitions=self.partitions,
            apart=static, shared=self.scratch, numbers=numbers,
        )  # fmt: skip
        self.made.static_regions += of_input
        self.made.add(layer.name, of_steps)
        self._scatter_spikes(layer, plan.layout, spikes)

    def _current(self, layer: net.SpikingLayer, plan: LayerPlan, source: Array) -> Array:
        """The buffer of a layer's currents."""
        shape, kind = regions.currents_shape(layer, plan, len(source)), np.dtype(plan.current)
        if self._is_static(layer.source):  # its current must outlast the other layers'
            return aligned(shape, kind)
        if regions.tiles_of(layer, plan, len(source), self.partitions) > 1:
            return np.empty((0, 0), kind)  # each tile has its own
        if self.currents.size < math.prod(shape):
            self.currents = aligned(shape, np.float32).reshape(-1)
        return self.currents.view(kind)[: math.prod(shape)].reshape(shape)

    def _add_words(
        self, layer: net.SpikingLayer, plan: LayerPlan, source: Array, current: Array, *,
        static: bool,
    ) -> None:  # fmt: skip
        """A layer in another form, whose spikes leave as words."""
        v = self.made.membranes[layer.name] = state_at_rest(layer.neuron, plan.neurons)
        spikes = self._empty_words(layer)
        currents = regions.current_region(
            layer, plan, source, current, lanes=0, partitions=self.partitions, shared=self.scratch
        )
        if static:
            self.made.static_regions.append(currents)
        else:
            self.made.add(layer.name, currents)
        pitch = spikes.frame.pitch
        live = planes.live_words(layer, pitch, self.steps, layer.out_shape[1] * pitch)
        updates = plane_regions.words_region(
            *(layer.neuron, current, live, v, spikes), carry=self.carry, partitions=self.partitions
        )
        self.made.add(layer.name, updates)

    def _add_planes(self, layer: net.SpikingLayer, rows: planes.PlaneRows) -> None:
        source, steps = self._words(layer), self.steps
        pitch = source.frame.pitch
        lanes = rows.tiling(pitch, steps).size
        kind = membrane_type(layer.neuron)
        v = self.made.membranes[layer.name] = aligned((layer.out_shape[0], lanes), kind)
        v[...] = layer.neuron.start[0]
        spikes = self._empty_words(layer)
        live = planes.live_words(layer, pitch, steps, lanes)
        region = plane_regions.plane_region(
            layer.neuron, rows, live, source, v, spikes, carry=self.carry,
            partitions=self.partitions,
        )  # fmt: skip
        self.made.add(layer.name, region)
        self._unpack(layer, spikes)

    def _words(self, layer: net.SpikingLayer) -> planes.Words:
        """The words of what a layer on bit planes reads; packed from its map if they are new."""
        name = layer.source
        if name not in self.made.words:
            words = self._new_words(name, layer.in_shape)
            source = self.made.values[name]
            packing = plane_regions.pack_region(source, words, partitions=self.partitions)
            self.made.add(layer.name, packing)
        return self.made.words[name]

    def _empty_words(self, layer: net.Layer) -> planes.Words:
        """New words of a layer's map."""
        return self._new_words(layer.name, layer.out_shape)

    def _new_words(self, name: str, shape: net.Shape) -> planes.Words:
        words = planes.empty_words(shape[0], self.steps, self.frames[name])
        self.made.words[name] = words
        return words

    def add_population(self, layer: net.PopulationLayer) -> None:
        layout, source = layout_of(layer), self.made.values[layer.source]
        v, spikes, numbers = self.add_neurons(layer, layout, layer.neurons)
        current, gather = source.reshape(len(source), -1), None
        if layout is not None and layer.updated is not None and not layer.updated.all():
            gather = layout.gather_index
        bounds = [partition.of(current.shape[1]) for partition in partitions_of(self.partitions)]
        region = regions.neuron_region(
            layer.neuron, current, gather, v, spikes, carry=self.carry, lanes=0, bounds=bounds,
            numbers=numbers,
        )  # fmt: skip
        self.made.add(layer.name, region)
        self._scatter_spikes(layer, layout, spikes)

    def add_neurons(
        self, layer: net.Firing, layout: CompactLayout | None, neurons: int
    ) -> tuple[Array, Array, Array | None]:
        """State at rest, the buffer of the spikes, the map, or (T, L) if compacted, and numbers as
        `update_numbers`; in a stream those of one step, which `set_step` puts there.
        """
        v = self.made.membranes[layer.name] = state_at_rest(layer.neuron, neurons)
        shape = (neurons,) if layout is not None else channel_last(layer.out_shape)
        spikes = aligned((self.steps, *shape), sent_dtype(self.network.edges[layer.name]))
        (self.made.values if layout is None else self.made.compacted)[layer.name] = spikes
        index = None if layout is None else layout.gather_index
        numbers = update_numbers(layer.neuron, layer.current_shape, index)
        if numbers is not None and self.carry and len(numbers) > 1:
            self.made.stepwise.append((numbers[:1].copy(), numbers))
            numbers = self.made.stepwise[-1][0]
        return v, spikes, numbers

    def _scatter_spikes(
        self, layer: net.Firing, layout: CompactLayout | None, spikes: Array
    ) -> None:
        """If a layer reads the map of a compacted population, scatter the spikes into it."""
        if layout is None or layer.name not in self.read:
            return
        full = self._map(layer, len(spikes))
        flat = full.reshape(len(full), -1)
        region = regions.scatter_spikes_region(
            spikes, layout.scatter_index, flat, partitions=self.partitions
        )
        self.made.add(layer.name, region)
        if layer.pattern is not None:
            shown = full[:, :, layer.current_shape[0] :]
            self.made.patterns[layer.name] = shown, pattern_spikes(layer)
            shown[...] = self.made.patterns[layer.name][1][: len(shown)]


@dispatch.operation_table(net.Layer)
def bind(layer: net.Layer, builder: Builder) -> None:
    """Buffers and calls of one layer; those of its sources are there."""
    raise bind.unknown(layer)


bind.on(net.SpikingLayer)(lambda layer, builder: builder.add_spiking(layer))
bind.on(net.PopulationLayer)(lambda layer, builder: builder.add_population(layer))
bind.on(net.RecurrentLayer)(recurrent.add_recurrent)
bind.on(net.CurrentLayer)(lambda layer, builder: builder.add_current(layer))
bind.on(net.MapLayer)(lambda layer, builder: builder.add_map(layer))
