"""What the model gives on samples, in the numbers and the order of the C program."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soul_deploy.analysis.synops import count_model, count_steps
from soul_deploy.base import Array, brief
from soul_deploy.export.c import ordered
from soul_deploy.export.c.program import Program
from soul_deploy.export.c.rows import channel_last
from soul_deploy.lowering import deploy
from soul_deploy.lowering.linear_operators import ReadoutOperator
from soul_deploy.nn.given_input import shows_image


@brief
@dataclass(frozen=True)
class Golden:
    """By population, in the program's order of neurons: spikes bool (T, N, neurons), membranes
    after the last step (N, neurons with a current); scores (N, classes); synops: of all.
    """

    spikes: Mapping[str, Array]
    membranes: Mapping[str, Array]
    scores: Array
    synops: int


@torch.no_grad()
def golden(program: Program, images: Tensor) -> Golden:
    """On inputs (N, ...) shown at every step, or (T, N, ...), as `images_for` gives them. Of
    float32, in the program's order of sums.
    """
    if program.floats:
        return _ordered(program, images)
    model = program.model
    module, graph = model.module(), program.graph
    membranes: dict[str, Array] = {}

    def observe(name: str, t: int, spikes: Tensor, membrane: Tensor) -> None:
        membranes[name] = in_order(membrane.to(torch.int64).numpy())

    (source,) = program.sources(graph.readout)
    known = {graph.input.name: module.as_signal(images)}
    names = [node.name for node in graph.populations]
    values = module.evaluate(known, sorted({*names, source}), observe)
    spikes = {name: in_order(values[name].tensor.numpy() != 0, 2) for name in names}
    read = values[source].tensor.to(torch.int64).numpy()
    synops = sum(counts.synops for counts in count_model(model, images).values())
    return Golden(spikes, membranes, integer_scores(program, read), int(synops))


def _ordered(program: Program, images: Tensor) -> Golden:
    found = ordered.run(program, images.numpy(), still=shows_image(program.graph, images))
    steps = program.graph.time_steps
    tensors = {
        name: torch.from_numpy(np.broadcast_to(v, (steps, *v.shape[1:])).copy())
        for name, v in found.values.items()
    }
    layers = deploy.lower(program.model).counted
    synops = sum(count_steps(layer, tensors).total().synops for layer in layers)
    spikes = {node.name: found.values[node.name] for node in program.graph.populations}
    return Golden(
        {name: in_order(values, 2) != 0 for name, values in spikes.items()},
        {name: in_order(v) for name, v in found.membranes.items()},
        found.scores,
        int(synops),
    )


def in_order(values: Array, axes: int = 1) -> Array:
    """(..., C, H, W) with `axes` in front as (..., neurons) of the program's order."""
    shape = values.shape[axes:]
    flat = values.reshape(*values.shape[:axes], -1)
    return np.ascontiguousarray(flat[..., channel_last(shape)])


def integer_scores(program: Program, values: Array) -> Array:
    """int64 (N, classes) of what the readout reads, (T, N, ...)."""
    node, operator = program.graph.readout, program.lowered.readout
    steps = _step_scores(operator, values)
    reduce = {"last": lambda: steps[-1], "max": lambda: steps.max(axis=0)}
    found: Array = reduce.get(node.over_time, lambda: steps.sum(axis=0))()
    return found


def _step_scores(operator: ReadoutOperator, values: Array) -> Array:
    lead = values.shape[:2]
    sums = values.reshape(*lead, values.shape[2], -1)
    sums = sums.sum(axis=3) if operator.space else values.reshape(*lead, -1)
    if operator.weight is None:
        scores: Array = sums.reshape(*lead, -1, operator.votes).sum(axis=3)
    else:
        scores = sums @ operator.weight.astype(np.int64).T
    return scores if operator.bias is None else scores + operator.bias.astype(np.int64)


def frames_of(program: Program, images: Tensor) -> Array:
    """(N, frames, inputs) in the program's order: one frame of a sample shown at every step."""
    still = shows_image(program.graph, images)
    given = images.numpy()
    shown = in_order(given)[:, None] if still else in_order(given, 2).swapaxes(0, 1)
    kind = np.float32 if program.floats and program.takes_maps else np.int16
    return np.ascontiguousarray(shown).astype(kind)
