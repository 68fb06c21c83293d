"""Event files of fixed-point networks: what is written, what older programs say, what is refused;
and the types that the weights' bounds ask for.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fixed_events
import numpy as np
import pytest

from soul_deploy.base import Array, files
from soul_deploy.base.errors import FileFormatError, LimitError
from soul_deploy.base.pixel_rule import Integers
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.equations import FixedEquation
from soul_deploy.runtime.format import bounds
from soul_deploy.runtime.format import network as net
from soul_deploy.runtime.format.file import FORMAT_FIXED, load_event_network, save_event_network

Change = Callable[[dict[str, Any], dict[str, Array]], None]


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    opened = files.read_tensors(path)
    arrays = {name: np.array(array) for name, array in opened.tensors.items()}
    return opened.document(FORMAT_FIXED), arrays


def rewritten(tmp_path: Path, change: Change) -> Path:
    path = tmp_path / "changed.safetensors"
    save_event_network(path, fixed_events.chain(0)[0])
    document, tensors = parts_of(path)
    change(document, tensors)
    files.write_tensors(path, tensors, {**document, "digest": files.digest(tensors)})
    return path


def test_a_file_holds_the_integers_and_gives_the_same(tmp_path: Path) -> None:
    (chain, pixels), (branches, counts) = fixed_events.chain(2), fixed_events.branches(2)
    voting = fixed_events.with_readout(
        branches, weight=None, bias=None, unit=None, classes=5, over_time="sum"
    )
    for network, drawn in ((chain, pixels), (branches, counts), (voting, counts)):
        path = tmp_path / "net.safetensors"
        save_event_network(path, network)
        read = load_event_network(path)
        assert read.edges == network.edges and read.integers == network.integers
        assert [each.neuron for each in read.populations] == [
            each.neuron for each in network.populations
        ]
        again = tmp_path / "again.safetensors"
        save_event_network(again, read)
        assert again.read_bytes() == path.read_bytes()
        x = drawn.inputs(2)
        np.testing.assert_array_equal(Network(read, 1).run(x), Network(network, 1).run(x))
        document, tensors = parts_of(path)
        assert document["format"] == FORMAT_FIXED == "soul-deploy/event/3"
        kinds = {str(array.dtype) for array in tensors.values()}
        assert kinds <= {"int8", "int32", "uint32", "uint8", "bool"}


def set_in(*keys: Any, to: Any) -> Change:
    def change(document: dict[str, Any], tensors: dict[str, Array]) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def tensor(name: str, made: Callable[[Array], Array]) -> Change:
    def change(document: dict[str, Any], tensors: dict[str, Array]) -> None:
        tensors[name] = np.ascontiguousarray(made(tensors[name]))

    return change


def first(value: int) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


DAMAGE: dict[str, tuple[Change, str]] = {
    "older format": (set_in("format", to="soul-deploy/event/2"), "is analog with bound None"),
    "accumulator": (set_in("layers", 1, "accumulator", to="int32"), "sums in int32, .* int16"),
    "no accumulator": (set_in("layers", 0, "accumulator", to=None), "sums in None, where"),
    "other accumulator": (set_in("layers", 0, "accumulator", to="int64"), "sums in int64, where"),
    "bias beyond": (tensor("b/bias", first(40_000)), "b: sums in int16, where .* ask for int32"),
    "weight -128": (tensor("a/weight", first(-128)), "weights hold -128"),
    "bias kind": (tensor("a/bias", lambda b: b.astype(np.float32)), "bias is float32"),
    "weight kind": (tensor("a/weight", lambda w: w.astype(np.float32)), "bias is int32"),
    "low": (set_in("integers", "low", to=0), "do not lie from 0 to"),
    "high": (set_in("integers", "high", to=40_000), "integers from .* to 40000"),
    "zero": (set_in("integers", "zero", to=[300, 0, 0]), r"zeros \(300, 0, 0\) of pixels"),
    "zeros": (set_in("integers", "zero", to=[1, 2]), r"zeros \(1, 2\) of pixels"),
    "no integers": (set_in("integers", to=None), "description cannot be read"),
    "kind of input": (set_in("input_kind", to="values"), "integers of values"),
    "normalised": (
        set_in("normalization", to={"mean": [0.5], "std": [0.5]}), "integers that are normalised"),
    "edge": (set_in("layers", 0, "bound", to=7), "where the weights ask for int16"),
    "shift": (set_in("layers", 0, "neuron", "shift", to=16), "the shift is 0 to 15"),
    "multiplier": (set_in("layers", 0, "neuron", "multiplier", to=-1), "the quotient from 0 to 1"),
    "lowest": (set_in("layers", 0, "neuron", "lowest", to=1), "0 lies between"),
    "highest": (set_in("layers", 0, "neuron", "highest", to=1 << 30), "both within 2.29"),
    "reset": (set_in("layers", 0, "neuron", "reset", to="warm"), "reset 'warm'; known: hard"),
    "fire": (set_in("layers", 0, "neuron", "fire", to="eq"), "fire 'eq'; known: gt, ge"),
    "threshold": (tensor("a/neuron.threshold", first(-1)), "a threshold of -1, at which"),
    "threshold kind": (tensor("a/neuron.threshold", lambda a: a.astype(np.int16)), "is int16"),
    "thresholds": (tensor("a/neuron.threshold", lambda a: np.ones(3, np.int32)), "for neurons"),
    "subtract": (tensor("a/neuron.subtract", first(40_000)), "a spike takes off .* 40000"),
    "no threshold": (
        lambda d, t: t.__delitem__("a/neuron.threshold"), "a/neuron.threshold is missing"),
    "unit": (set_in("readout", "unit", to=0.0), "unit 0.0 is no usable float32"),
    "tiny unit": (set_in("readout", "unit", to=1e-37), "unit 1e-37 is no usable float32"),
    "no unit": (set_in("readout", "unit", to=None), "unit None with weights of int8"),
    "float neuron": (
        set_in("layers", 0, "neuron", to={"charge": "integrate", "constant": 1.0, "fire": "gt",
            "v_threshold": 1.0, "v_reset": 0.0}), "integer currents to neurons of the other kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    change, text = DAMAGE[name]
    with pytest.raises(FileFormatError, match=text):
        load_event_network(rewritten(tmp_path, change))


def matrix(weights: list[int], bias: int, edge: net.Edge = ("spike", 1)) -> net.CurrentLayer:
    """One output of many inputs, in the type that its bound asks for."""
    weight = np.array(weights, np.int8)[:, None]
    rows = net.DenseRows(weight)
    synapses = net.MatrixSynapses((len(weight),), (1,), rows, np.array([bias], np.int32))
    return net.CurrentLayer(
        "c", "p", *edge, synapses, accumulator=fixed_events.sums(synapses, edge)
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bias", "kind"), [(32766, "int16"), (32767, "int16"), (32768, "int32")])
def test_int16_is_taken_up_to_its_last_integer(sign: int, bias: int, kind: str) -> None:
    """127 · 258 + 1: the weights alone are one below the limit; the sum is right all the same."""
    bias -= 127 * 258
    layer = matrix([sign * 127] * 258, sign * bias)
    assert layer.accumulator == kind
    d = fixed_events.Drawn(0, (258,), 1, "spikes")
    d.spiking("p", "input", 258, sparse=False, density=0.0, shape=(258,))
    source = d.layers[0]
    assert isinstance(source, net.SpikingLayer)
    assert isinstance(source.neuron, FixedEquation)
    always = replace(source.neuron, threshold=np.array(1, np.int32), fire="ge", reset="none")
    biases = np.ones(258, np.int32)
    d.layers[0] = replace(source, neuron=always, synapses=replace(source.synapses, bias=biases))
    d.add(layer)
    made = Network(d.network("p", head=False), 1)
    x = np.zeros((1, 258), np.int16)
    assert made.run_recorded(x).spikes["p"].all()
    found = made.run_layer("c", np.ones((1, 1, 258), np.uint8))
    assert found.reshape(-1).tolist() == [sign * (127 * 258 + bias)]


def test_currents_beyond_30_bits_are_refused() -> None:
    most = bounds.MOST_CURRENT - 127 * 100
    assert matrix([127] * 100, most).current_bound == bounds.MOST_CURRENT
    with pytest.raises(LimitError, match="currents up to 1,073,741,824; the limit is"):
        matrix([127] * 100, most + 1)


def test_scores_beyond_32_bits_are_refused() -> None:
    network, _ = fixed_events.branches(1)
    bias = np.full(3, (1 << 31) - 1, np.int32)
    with pytest.raises(LimitError, match="scores up to"):
        fixed_events.with_readout(network, bias=bias)


def test_kinds_do_not_mix() -> None:
    network, _ = fixed_events.branches(1)
    with pytest.raises(FileFormatError, match=r"an? analog edge from input"):
        replace(network, integers=None)
    weight = np.ones((3, 5), np.float32)
    with pytest.raises(FileFormatError, match="a head of the other kind"):
        fixed_events.with_readout(network, weight=weight, bias=None, unit=None)
    with pytest.raises(FileFormatError, match="a analog edge from input"):
        replace(network, integers=Integers(-5, 7))
