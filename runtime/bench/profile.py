"""Where an event network's time goes: each kernel call by itself, by layer and kind of work.

One sample runs again and again on one thread. The same calls run as in `Network.run`; between
them only the clock is read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soul_deploy.base import Array
from soul_deploy.runtime.bench.profile_table import WORK
from soul_deploy.runtime.engine.inputs import is_static, samples_of
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format import file, layer_codec, network
from soul_deploy.runtime.ops.counted_run import count
from soul_deploy.runtime.plan.buffers import build_buffers
from soul_deploy.runtime.plan.layer_plan import plan_layers
from soul_deploy.runtime.plan.regions import Call

WARM_UP = 3

Owned = tuple[str, Call]
"""A layer's name and one of its kernel calls."""


def profile(path: Path, x: Array, runs: int, forms: Mapping[str, str]) -> dict[str, Any]:
    """JSON data of the first sample of a batch `x`, taken as `Network.run` takes it.

    "layers": rows with the layer's name, form, microseconds by kind of work (medians of `runs`,
    after WARM_UP), SynOps, spikes per neuron and step, bytes of its rows; "total_us": their sum;
    "spans": [layer, kind of work, begin and duration in microseconds] of the last run.
    path: an event file; forms: as `Network` takes them. Raises MissingFileError, FileFormatError,
    LimitError, ValidityError, UsageError.
    """
    running = Network(file.load_event_network(path), 1, forms=forms)
    events, samples = running.events, samples_of(running.events, x)[:1]
    buffers = build_buffers(
        *(events, plan_layers(events, running.layer_forms)),
        input_steps=samples.shape[1],
        steps=events.time_steps,
        carry=False,
    )
    buffers.values[events.input_name][...] = samples[0]
    pairs = zip(buffers.owners, buffers.regions, strict=True)
    calls = [(owner, call) for owner, region in pairs for call in region[0]]
    begins, durations = _timed([call for _, call in calls], runs)
    medians = np.median(durations, axis=0)
    one = x[:1] if is_static(x.shape, events.input_shape, events.time_steps) else x[:, :1]
    layers = _rows(running, one, calls, medians)
    last = zip(calls, begins[-1], durations[-1], strict=True)
    return {
        "runs": runs,
        "layers": layers,
        "total_us": float(medians.sum()),
        "spans": [[owner, call.work, float(at), float(took)] for (owner, call), at, took in last],
    }


def _timed(calls: Sequence[Call], runs: int) -> tuple[Array, Array]:
    """When each call began in its run, and how long it took; microseconds, (runs, calls) each."""
    begins, ends = (np.zeros((WARM_UP + runs, len(calls))) for _ in range(2))
    bound: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (call.kernel, call.arguments) for call in calls
    ]
    for begun, ended in zip(begins, ends, strict=True):
        for i, (kernel, arguments) in enumerate(bound):
            begun[i] = time.perf_counter()
            kernel(*arguments)
            ended[i] = time.perf_counter()
    begins, durations = begins[WARM_UP:], (ends - begins)[WARM_UP:]
    return (begins - begins[:, :1]) * 1e6, durations * 1e6


def _rows(
    running: Network, x: Array, calls: Sequence[Owned], medians: Array
) -> list[dict[str, Any]]:
    """The layers in order, the readout last."""
    events = running.events
    counts, rates = count(running, x), _rates(running, x)
    rows = []
    parts: list[network.Layer | network.ReadoutLayer] = [*events.layers, events.readout]
    for layer in parts:
        spent = dict.fromkeys(WORK, 0.0)
        for (owner, call), took in zip(calls, medians, strict=True):
            if owner == layer.name:
                spent[call.work] += float(took)
        counted = counts.get(_counted_as(layer))
        stored = layer_codec.layer_arrays(layer).values()
        rows.append(
            {
                "layer": layer.name,
                "form": running.layer_forms.get(layer.name),
                "us": spent,
                "synops": 0 if counted is None else counted.synops,
                "rate": rates.get(layer.name),
                "bytes": sum(array.nbytes for array in stored),
            }
        )
    return rows


def _counted_as(layer: network.Layer | network.ReadoutLayer) -> str:
    """The name by which a layer's operations are counted."""
    if isinstance(layer, network.RecurrentLayer):
        return layer.feedback.name
    return layer.projection if isinstance(layer, network.Synaptic) else layer.name


def _rates(running: Network, x: Array) -> dict[str, float]:
    """Spikes per neuron and step, by population."""
    spikes = running.run_recorded(x).spikes
    return {name: float(values.mean()) for name, values in spikes.items()}
