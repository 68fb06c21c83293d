"""A network at rest: graph, weights, masks, and what its file says besides."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from soul_deploy.base import Array, brief, errors
from soul_deploy.base import pixel_rule as rules
from soul_deploy.ir import IntegerInput, Shape, SpikingGraph
from soul_deploy.ir.inputs import of_kind
from soul_deploy.nn.graph_module import ChannelMask, GraphModule, HardGate

State: TypeAlias = Mapping[str, Array]
Stage = Literal["dense", "masked", "compact"]


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1]; whoever runs it applies them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Validity:
    """What a removal was proven for. `time_steps` None: any T."""

    time_steps: int | None = None
    reset_per_sample: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says about its network besides structure and weights.

    input_kind: what its input is, "images", "counts", "spikes" or "values"; only images have a
    normalisation. It says what uint8 means to the runtime (soul_deploy/base/pixel_rule.py).
    """

    stage: Stage = "dense"
    normalization: Normalization | None = None
    classes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    validity: Validity = Validity()
    input_kind: rules.InputKind = rules.KIND_OF_OLD_FILES


@brief
@dataclass(frozen=True)
class Model:
    """A network at rest: graph, weights under the original names, masks, description.

    channel_masks: population or projection -> bool (C,), on its current (by projection where no
    population reads it directly). neuron_masks: population -> bool of the population's shape, on
    its spikes. Pruned weights are zeros in `state`. alphas: projection or population -> the mask
    parameters that a search of weights and neurons ended with.
    """

    graph: SpikingGraph
    state: State
    channel_masks: Mapping[str, Array] = field(default_factory=dict)
    info: ModelInfo = ModelInfo()
    neuron_masks: Mapping[str, Array] = field(default_factory=dict)
    alphas: Mapping[str, Array] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """A copy gets the fields; what was computed from them stays with the original."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def module(self) -> GraphModule:
        """The network as a PyTorch module in evaluation mode, masks applied."""
        module = GraphModule(self.graph)
        module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in self.state.items()})
        for name, keep in self.channel_masks.items():
            module.channel_masks[name] = ChannelMask(torch.from_numpy(keep.astype(np.float32)))
        for name, keep in self.neuron_masks.items():
            module.neuron_gates[name] = HardGate(torch.from_numpy(keep.astype(np.float32)))
        return module.eval()

    def with_time_steps(self, time_steps: int) -> "Model":
        """The same network for another T. Raises ValidityError if its removal forbids that."""
        stepwise = [node.name for node in self.graph.populations if node.neuron.stepwise]
        if stepwise and time_steps != self.graph.time_steps:
            raise errors.ValidityError(
                f"T = {time_steps} asked, but the neurons of {stepwise[0]} have numbers of each of "
                f"{self.graph.time_steps} steps; run it with T = {self.graph.time_steps}"
            )
        valid = self.info.validity.time_steps
        if valid is not None and time_steps != valid:
            raise errors.ValidityError(
                f"T = {time_steps} asked, but channels were removed that are silent only within "
                f"T = {valid} steps; run it with T = {valid}, or remove again for another T"
            )
        return replace(self, graph=self.graph.with_time_steps(time_steps))

    @property
    def for_one_t(self) -> bool:
        """Whether it holds for its T only: by its removal, for a stored spike pattern, or because
        neurons have numbers of each step.
        """
        generated = any(node.generated for node in self.graph.nodes)
        return generated or self.validity.time_steps is not None

    @property
    def validity(self) -> Validity:
        """What it is valid for: by its removal, or because neurons have numbers of each step."""
        removal = self.info.validity
        if any(node.neuron.stepwise for node in self.graph.populations):
            return replace(removal, time_steps=self.graph.time_steps)
        return removal

    @property
    def input_shape(self) -> Shape:
        return self.graph.input.shape

    @property
    def input_rule(self) -> rules.InputRule:
        """What the numbers given to it mean."""
        norm = self.info.normalization
        mean, std = ((), ()) if norm is None else (norm.mean, norm.std)
        rule = rules.InputRule(
            self.input_shape, self.graph.time_steps, mean, std, kind=self.info.input_kind
        )
        given = self.graph.input
        rule = replace(rule, events=given.events)
        if not isinstance(given, IntegerInput):
            return rule
        return replace(rule, integers=rules.Integers(given.low, given.high, given.zero))


def from_module(module: GraphModule, info: ModelInfo) -> Model:
    """A Model with copies of a module's weights and masks, whose input is of `info.input_kind`."""
    masks = {
        name: mask.keep.detach().cpu().numpy() > 0 for name, mask in module.channel_masks.items()
    }
    graph = taking(module.graph, info.input_kind)
    return Model(graph, arrays_of(module.state_dict()), masks, info)


def taking(graph: SpikingGraph, kind: rules.InputKind) -> SpikingGraph:
    """The graph of a network that is made for that kind of input."""
    made = of_kind(graph.input, kind)
    return graph if made is graph.input else graph.with_nodes({made.name: made})


def arrays_of(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """Copies of a state dict's tensors as numpy arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def for_kind(model: Model, kind: str) -> Model:
    """A network that was just made, for that kind of input: events where it takes counts or spikes.

    Raises as `with_input_kind`.
    """
    info = with_input_kind(model.info, kind)
    return replace(model, graph=taking(model.graph, info.input_kind), info=info)


def with_input_kind(info: ModelInfo, kind: str) -> ModelInfo:
    """`info` for another kind of input.

    Raises UnknownNameError, or UsageError if pixels are normalised for what takes no images.
    """
    if not rules.is_input_kind(kind):
        raise errors.UnknownNameError("input kind", kind, rules.INPUT_KINDS)
    if kind != "images" and info.normalization is not None:
        raise errors.UsageError(
            f"input_kind {kind} given, but a normalisation of pixels is stored, which images have; "
            "leave input_kind out"
        )
    return replace(info, input_kind=kind)
