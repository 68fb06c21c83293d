"""A step file in ONNX Runtime, looped over T steps, so that the checks see it as a whole run."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from soul_deploy.base import Array, errors
from soul_deploy.equivalence.engines import ExecutionRun, LayerRun
from soul_deploy.equivalence.reference import sent_of, sources
from soul_deploy.export.onnx import nodes
from soul_deploy.export.onnx import step as onnx_step
from soul_deploy.export.verify import onnx, onnx_values
from soul_deploy.lowering.fan_out import step_before
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal

Feed = dict[str, Array]


class StepExecution(onnx.OnnxFile):
    """A step file, whole or cut at populations. What a static image determines, where the file
    takes that instead of the image, is computed by the model's own `build_currents`."""

    def __init__(self, file: ModelProto, reference: Model) -> None:
        super().__init__(file, reference)
        self.model = reference
        self.all_states = onnx_step.states_of(reference)
        self.populations = [node.name for node in reference.graph.populations]
        self.from_image = self.form.static_input == "image"
        self.counted = reference.for_one_t

    def run(self, images: Tensor) -> ExecutionRun:
        """T calls from rest, with every population as an additional output."""
        names = self.populations if self.shows_spikes else []
        self.whole(map(self.value, names))
        outputs = [nodes.OUTPUT, *map(self.value, names)]
        found = self._loop("", self._frames(images), list(self.all_states), outputs)
        scores, *spikes = map(torch.from_numpy, found)
        pairs = zip(names, spikes, strict=True)
        named = {name: sent_of(self.graph, name, steps) for name, steps in pairs}
        return ExecutionRun(named, onnx_values.combined(scores, self.graph))

    def run_layer(self, layer: str, values: Mapping[str, Signal]) -> LayerRun:
        """What stands between the populations (or the input) that feed `layer`, and `layer`."""
        self.layer(layer)
        output, states = self.ends(layer)[1][0], self._states_in(layer)
        feeds, kept = self._feeds(layer, values), states
        if layer in self.graph.feedbacks:  # it is given what it sent at the step before
            *kept, back = states
            before = step_before(values[layer].tensor.float()).numpy()
            feeds = [feed | {back.input: s} for feed, s in zip(feeds, before, strict=True)]
        (found,) = self._loop(layer, feeds, kept, [output])
        result = torch.from_numpy(found)
        if layer == self.graph.readout.name:
            return LayerRun(onnx_values.combined(result, self.graph))
        return LayerRun(sent_of(self.graph, layer, result))

    def ends(self, layer: str) -> tuple[list[str], list[str]]:
        states, feeding = self._states_in(layer), sources(self.graph, layer)
        given = [self.value(name) for name in feeding if name != self.graph.input.name]
        if self.graph.input.name in feeding:
            given += dict.fromkeys(self._still_before(layer))
        given += [state.input for state in states]
        given += [onnx_step.COUNTER_IN] if self._counter_in(layer) else []
        output = nodes.OUTPUT if layer == self.graph.readout.name else self.value(layer)
        return given, [output, *(state.output for state in states)]

    def _states_in(self, layer: str) -> list[onnx_step.State]:
        readout = self.graph.readout
        owner = readout.neurons_name if layer == readout.name else layer
        return [state for state in self.all_states if state.population == owner]

    def _loop(
        self, key: str, feeds: Sequence[Feed], states: Sequence[onnx_step.State], wanted: list[str]
    ) -> list[Array]:
        """The wanted outputs of all steps, each (T, batch, ...); states start at rest."""
        session = self._sessions[key]
        batch = len(next(iter(feeds[0].values())))
        dtype = np.int32 if self.graph.integers else np.float32
        at_rest = {s: np.full((batch, *s.shape), s.initial, dtype) for s in states}
        state_values: Feed = {state.input: values for state, values in at_rest.items()}
        returned = {state.output: state.input for state in states}
        if self._counter_in(key):
            state_values[onnx_step.COUNTER_IN] = np.zeros(1, np.int64)
        if not key and self.counted:
            returned[onnx_step.COUNTER_OUT] = onnx_step.COUNTER_IN
        steps: list[list[Array]] = []
        for t, feed in enumerate(feeds):
            results = session.run([*wanted, *returned], feed | state_values)
            steps.append(results[: len(wanted)])
            state_values |= dict(zip(returned.values(), results[len(wanted) :], strict=True))
            if key and onnx_step.COUNTER_IN in state_values:
                state_values[onnx_step.COUNTER_IN] = np.full(1, t + 1, np.int64)
        return [np.stack(arrays) for arrays in zip(*steps, strict=True)]

    def _counter_in(self, layer: str) -> bool:
        """Whether the whole file ("") or the part that ends with `layer` takes the counter."""
        if not layer:
            return self.counted
        return any(
            node.name == layer and (node.generated or node.neuron.stepwise)
            for node in self.graph.populations
        )

    def _frames(self, images: Tensor) -> list[Feed]:
        """The input of the file at each step, for static images or a sequence."""
        static = images.dim() == len(self.graph.input.shape) + 1
        steps = self.graph.time_steps
        if self.from_image:
            shown = [images] * steps if static else list(images)
            return [{self.graph.input.name: onnx_values.input_array(self.graph, i)} for i in shown]
        if not static:
            raise errors.ValidityError(
                f"a sequence {tuple(images.shape)} given; this file takes the currents of a static "
                "image. Export it with static_input image to run sequences"
            )
        return [self._currents(images)] * steps

    def _currents(self, images: Tensor) -> Feed:
        if CURRENTS_SESSION not in self._sessions:
            built = onnx_step.build_currents(self.model)
            self._sessions[CURRENTS_SESSION] = onnx.open_session(built)
        names = [self.value(name) for name in onnx_step.currents_of(self.graph)]
        feed = {self.graph.input.name: onnx_values.input_array(self.graph, images)}
        currents = self._sessions[CURRENTS_SESSION].run(names, feed)
        return dict(zip(names, currents, strict=True))

    def _feeds(self, layer: str, values: Mapping[str, Signal]) -> list[Feed]:
        """The values that feed `layer` at each step."""
        feeding = sources(self.graph, layer)
        feeds: list[Feed] = [{} for _ in range(self.graph.time_steps)]
        for name in feeding:
            if name != self.graph.input.name:
                for feed, spikes in zip(feeds, values[name].tensor, strict=True):
                    feed[self.value(name)] = self.spikes(spikes)
        if self.graph.input.name in feeding:
            read = set(self._still_before(layer))
            frames = self._frames(values[self.graph.input.name].tensor)
            for feed, frame in zip(feeds, frames, strict=True):
                feed |= {name: array for name, array in frame.items() if name in read}
        return feeds

    def _still_before(self, layer: str) -> Iterator[str]:
        """The file's inputs that reach `layer` without passing a population."""
        given = (self.graph.input.name,) if self.from_image else onnx_step.currents_of(self.graph)
        seen, pending = set(), list(self.graph[layer].inputs)
        while pending:
            name = pending.pop()
            if name in given:
                yield self.value(name)
            elif name not in self.populations and name not in seen:
                seen.add(name)
                pending.extend(self.graph[name].inputs)


CURRENTS_SESSION = "currents of the image"
