"""The runtime's tables: each says what it does with every layer, synapse and row class there is,
and one that is added is named where it is missing."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numba import njit

import soul_deploy.runtime
from soul_deploy.base import Array
from soul_deploy.base.dispatch import tables_over
from soul_deploy.base.errors import FileFormatError
from soul_deploy.runtime.bench.scipy_engine import ScipyEngine, step_of
from soul_deploy.runtime.engine.network import Network, load
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.file import save_event_network
from soul_deploy.runtime.format.layer_codec import read_layer, read_synapses
from soul_deploy.runtime.format.network import (
    DenseRows,
    Edge,
    EventNetwork,
    Layer,
    MapLayer,
    MatrixSynapses,
    ReadoutLayer,
    Rows,
    Shape,
    SpikingLayer,
    Synapses,
)
from soul_deploy.runtime.io.inspect import describe_file
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.runtime.ops.counters import StepCounts
from soul_deploy.runtime.ops.counting import steps_of
from soul_deploy.runtime.plan.regions import Call, map_region

for module in pkgutil.walk_packages(soul_deploy.runtime.__path__, "soul_deploy.runtime."):
    importlib.import_module(module.name)

FAMILIES = (Layer, MapLayer, Synapses, Rows)
STEPS = 3


def kinds_of(family: type) -> list[type]:
    """The package's classes of a family from which no other is derived."""
    derived: list[type] = family.__subclasses__()
    below = [kind for kind in derived if kind.__module__.startswith("soul_deploy.")]
    return [leaf for kind in below for leaf in kinds_of(kind)] or [family]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_says_what_it_does_with_every_class(family: type) -> None:
    assert len(kinds_of(family)) > 1 and tables_over(family)
    for table in tables_over(family):
        assert table.missing(kinds_of(family)) == [], table.name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_without_an_entry_is_refused_by_name(family: type) -> None:
    stranger = type("Stranger", (), {})()
    for table in tables_over(family):
        if table not in (read_layer, read_synapses):  # asked by class
            code = table.__wrapped__.__code__  # type: ignore[attr-defined]
            named = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            positional, keywords = named[: code.co_argcount - 1], named[code.co_argcount - 1 :]
            with pytest.raises(NotImplementedError, match=f"{table.name}: Stranger has no entry"):
                table(stranger, *positional, **dict.fromkeys(keywords))


@dataclass(frozen=True)
class Invert(MapLayer):
    """Spikes where there are none."""

    operation: ClassVar[str] = "invert"
    what: ClassVar[str] = "an inversion"
    source: str
    shape: Shape

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def in_shape(self) -> Shape:
        return self.shape

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def edge_of(self, arriving: Any) -> Edge:
        return "spike", 1


def missing(kind: type) -> set[str]:
    families = [family for family in FAMILIES if issubclass(kind, family)]
    tables = [table for family in families for table in tables_over(family)]
    return {
        table.name.removeprefix("soul_deploy.runtime.") for table in tables if table.missing([kind])
    }


@njit
def invert(source: Array, to: Array) -> None:
    """to = 1 - source; kernels are compiled, since a program calls them without Python."""
    to[...] = 1 - source


@pytest.fixture
def inverting() -> Iterator[None]:
    """Entries of the new layer, taken out again afterwards."""

    @read_layer.on(Invert)
    def _(name: str, entry: Mapping[str, Any], tensors: object) -> Invert:
        return Invert(name, entry["source"], tuple(entry["shape"]))

    @map_region.on(Invert)
    def _(layer: Invert, sources: list[Array], out: Array, *, partitions: int) -> Any:
        return ((Call(invert, (sources[0], out)),),)

    @steps_of.on(Invert)
    def _(layer: Invert, held: Any, spikes: Any) -> dict[str, StepCounts]:
        by_sample = held(layer.source).sum(axis=(2, 3), dtype=np.int64)
        return {layer.name: StepCounts({"events_in": np.ascontiguousarray(by_sample.T)})}

    @step_of.on(Invert)
    def _(layer: Invert, network: EventNetwork) -> Any:
        return lambda values: 1 - values[layer.source]

    yield
    for table in (read_layer, map_region, steps_of, step_of):
        table.forget(Invert)


def network_of() -> EventNetwork:
    weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    neuron = NeuronEquation("integrate", 1.0, 1.0, 0.0, "ge")
    synapses = MatrixSynapses((4,), (6,), DenseRows(weight), None)
    layers = (
        SpikingLayer("sn", "fc", "input", "analog", None, synapses, neuron),
        Invert("not", "sn", (6,)),
    )
    readout = ReadoutLayer("readout", "not", (6,), 3, False, None, None, 2, 2)
    return EventNetwork("input", (4,), STEPS, layers, readout)


def test_an_added_layer_is_named_where_it_is_missing() -> None:
    assert missing(Invert) == {
        "format.layer_codec.read_layer",
        "plan.regions.map_region",
        "ops.counting.steps_of",
        "bench.scipy_engine.step_of",
    }


def test_an_added_layer_without_entries_does_not_run() -> None:
    with pytest.raises(NotImplementedError, match=r"plan\.regions\.map_region: Invert has no"):
        Network(network_of(), 1).run(np.zeros((1, 4), np.float32))


def test_an_added_layer_without_entries_is_not_read(tmp_path: Path) -> None:
    save_event_network(tmp_path / "n.safetensors", network_of())
    with pytest.raises(
        FileFormatError, match="not: operation 'invert'; known: convolution, matrix"
    ):
        load(tmp_path / "n.safetensors")


@pytest.mark.usefixtures("inverting")
def test_an_added_layer_with_entries_runs(tmp_path: Path) -> None:
    assert missing(Invert) == set()
    path, x = tmp_path / "n.safetensors", np.random.default_rng(1).random((2, 4), np.float32)
    save_event_network(path, network_of())
    network = load(path, 1)
    recorded = network.run_recorded(x)
    silent = 1 - recorded.spikes["sn"].astype(np.float32)
    assert 0 < silent.mean() < 1
    scores = silent.sum(0).reshape(2, 3, 2).sum(2) / (2 * STEPS)
    np.testing.assert_allclose(network.run(x), scores, rtol=1e-6)
    stream = network.stream()
    steps = [stream.step(x), *(stream.step() for _ in range(STEPS - 1))]
    np.testing.assert_allclose(np.mean(steps, axis=0), scores, rtol=1e-6)
    counts = count_run(network, x).counts
    assert list(counts) == ["fc", "not", "readout"]
    assert counts["not"].events_in == recorded.spikes["sn"].sum()
    engine = ScipyEngine(path, 1)
    engine.load()
    np.testing.assert_allclose(engine.infer(x), scores, rtol=1e-6)
    assert [row["operation"] for row in describe_file(path)["layers"]] == [
        "matrix",
        "invert",
        "readout",
    ]
