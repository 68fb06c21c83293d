"""Event files: what is written comes back, and nothing damaged is trusted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from soul_deploy.base.errors import FileFormatError, LimitError, MissingFileError
from soul_deploy.base.files import METADATA_KEY, digest, read_tensors, write_tensors
from soul_deploy.runtime.equations import NeuronEquation
from soul_deploy.runtime.format.file import FORMAT, load_event_network, save_event_network
from soul_deploy.runtime.format.network import (
    Alternative,
    ConvSynapses,
    DenseRows,
    EventNetwork,
    MatrixSynapses,
    PixelNormalization,
    PoolLayer,
    ReadoutLayer,
    SparseRows,
    SpikingLayer,
)

Document = dict[str, Any]
Tensors = dict[str, Any]


def example() -> EventNetwork:
    """Dense and sparse convolution and matrix, pool, readout."""
    rng = np.random.default_rng(0)

    def f(*shape: int) -> Any:
        return rng.integers(1, 9, shape).astype(np.float32)

    def neuron(v_reset: float | None) -> NeuronEquation:
        return NeuronEquation("soul_lif_decay", 2.0, 1.0, v_reset, "gt")

    square: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    first = ConvSynapses(
        (1, 4, 4), (2, 4, 4), DenseRows(f(1, 3, 3, 2)), f(2), (3, 3), reach=(4, 4), **square
    )
    starts = np.cumsum([0, *([1, 0, 2] * 6)]).astype(np.uint32)
    targets = np.array([1, 0, 2] * 6, np.uint32)
    second = ConvSynapses(
        (2, 2, 2),
        (3, 2, 2),
        SparseRows(starts, targets, f(18)),
        None,
        (3, 3),
        reach=(2, 2),
        **square,
    )
    rows = SparseRows(
        np.array([0, 2, 2, *[3] * 14], np.uint32), np.array([0, 3, 1], np.uint32), f(3)
    )
    live = np.ones(16, np.bool_)
    live[[3, 5]] = False  # the constant-pattern channel at position 0, and a neuron at position 1
    pattern = np.array([[0], [1], [1]], np.uint8)
    weighed = Alternative("sparse", 200, 30, True), Alternative("explicit", 900, 20, False)
    layers = (
        SpikingLayer("p1", "c1", "input", "analog", None, first, neuron(0.0), grid=3),
        PoolLayer("m1", "p1", (2, 4, 4), (2, 2, 2), (2, 2), (2, 2), (0, 0)),
        SpikingLayer(
            "p2",
            "c2",
            "m1",
            "spike",
            1,
            second,
            neuron(None),
            live=live,
            pattern=pattern,
            alternatives=weighed,
        ),
        SpikingLayer(
            "p3",
            "l1",
            "p2",
            "spike",
            1,
            MatrixSynapses((4, 2, 2), (4,), rows, f(4)),
            neuron(-0.5),
            live=np.array([1, 1, 0, 1], np.bool_),
        ),
        SpikingLayer(
            "p4",
            "l2",
            "p3",
            "spike",
            1,
            MatrixSynapses((4,), (6,), DenseRows(f(4, 6)), None),
            neuron(0.0),
        ),
    )
    return EventNetwork(
        "input",
        (1, 4, 4),
        3,
        layers,
        ReadoutLayer("head", "p4", (6,), 2, False, f(2, 6), f(2), 1, 1),
        fixed_steps=True,
        normalization=PixelNormalization((0.5,), (0.25,)),
        classes=("cat", "dog"),
        source_sha256="0" * 64,
        rates={"m1": 0.25, "p2": 0.5},
        active={"m1": 0.25},
        forms={"p2": "sparse"},
    )  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if type(a) is not type(b) and (a is None or b is None):
            return False
        return a.dtype == b.dtype and np.array_equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        names = [n for n, f in a.__dataclass_fields__.items() if f.compare]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_event_network(path, example())
    loaded = load_event_network(path)
    assert same(loaded, example())
    assert not same(loaded, load_event_network(rewritten(tmp_path, other_weight)))
    assert loaded.digest is not None
    rows = loaded.spiking_layers[0].synapses.rows
    assert not rows.weight.flags.writeable  # memory-mapped


def test_expectations_that_nobody_has_take_no_bytes(tmp_path: Path) -> None:
    """Readers of 0.1.0's files and writers of files alike: none of the keys has to be there."""
    path = tmp_path / "net.safetensors"
    save_event_network(path, replace(example(), rates={}, active={}, forms={}))
    document = read_tensors(path).document(FORMAT)
    assert not {"rates", "active", "forms"} & document.keys()
    loaded = load_event_network(path)
    assert (loaded.rates, loaded.active, loaded.forms) == ({}, {}, {})
    save_event_network(path, example())
    told = read_tensors(path).document(FORMAT)
    assert (told.pop("rates"), told.pop("forms")) == ({"m1": 0.25, "p2": 0.5}, {"p2": "sparse"})
    assert told.pop("active") == {"m1": 0.25}
    assert told == document


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_is_a_number(rate: float) -> None:
    with pytest.raises(FileFormatError, match=r"a rate of p1, .* not from 0 to 1"):
        replace(example(), rates={"p1": rate})


def other_weight(document: Document, tensors: Tensors) -> None:
    tensors["p4/weight"][0, 0] += 1


def test_it_is_readable_without_this_package(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_event_network(path, example())
    with safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()[METADATA_KEY])
        assert file.get_tensor("p2/targets").dtype == np.uint32
    assert document["format"] == FORMAT
    assert [entry["operation"] for entry in document["layers"]] == [
        *("convolution", "max_pool", "convolution", "matrix", "matrix")
    ]
    assert [entry.get("rows") for entry in document["layers"]] == [
        *("dense", None, "sparse", "sparse", "dense")
    ]
    assert document["layers"][2]["synapses"] == 18


def rewritten(tmp_path: Path, change: Callable[[Document, Tensors], Any]) -> Path:
    """A file of the example with something changed, and a digest that fits again."""
    path = tmp_path / "changed.safetensors"
    save_event_network(path, example())
    opened = read_tensors(path)
    document = opened.document(FORMAT)
    tensors = {name: np.array(array) for name, array in opened.tensors.items()}
    change(document, tensors)
    write_tensors(path, tensors, {**document, "digest": digest(tensors)})
    return path


def at(layer: int, key: str, value: Any) -> Callable[[Document, Tensors], None]:
    """Sets a field of a layer's description."""

    def change(document: Document, tensors: Tensors) -> None:
        document["layers"][layer][key] = value

    return change


def top(key: str, value: Any) -> Callable[[Document, Tensors], None]:
    return lambda document, tensors: document.update({key: value})


def neuron(key: str, value: Any, layer: int = 0) -> Callable[[Document, Tensors], None]:
    return lambda document, tensors: document["layers"][layer]["neuron"].update({key: value})


def head(key: str, value: Any) -> Callable[[Document, Tensors], None]:
    return lambda document, tensors: document["readout"].update({key: value})


def tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Document, Tensors], None]:
    """Replaces a tensor by a function of it."""
    return lambda document, tensors: tensors.update({name: change(tensors[name])})


def element(name: str, index: int, value: Any) -> Callable[[Document, Tensors], None]:
    def change(document: Document, tensors: Tensors) -> None:
        tensors[name].reshape(-1)[index] = value

    return change


def without(name: str) -> Callable[[Document, Tensors], Any]:
    return lambda document, tensors: tensors.pop(name)


DAMAGE: dict[str, tuple[Callable[[Document, Tensors], Any], str]] = {
    "version": (top("format", "soul-deploy/event/9"), "is of format 'soul-deploy/event/9'"),
    "target beyond": (element("p2/targets", 1, 3), "p2: .*targets 3, but targets are 0..2"),
    "matrix target": (element("p3/targets", 1, 4), "p3: .*targets 4, but targets are 0..3"),
    "starts fall": (element("p2/starts", 2, 9), "p2: .*row starts do not rise"),
    "starts end early": (element("p2/starts", -1, 17), "p2: .*row starts do not rise"),
    "starts begin late": (element("p3/starts", 0, 1), "p3: .*row starts do not rise"),
    "row order": (tensor("p3/targets", lambda a: a[[1, 0, 2]]), "p3: .*not strictly rising"),
    "twice": (element("p3/targets", 1, 0), "p3: .*not strictly rising"),
    "stored zero": (element("p3/weight", 1, 0), "p3: .*weight 0"),
    "starts length": (tensor("p2/starts", lambda a: a[1:]), r"starts is uint32\(18,\), expected"),
    "targets dtype": (tensor("p2/targets", lambda a: a.astype(np.int64)), "targets is int64"),
    "weights length": (tensor("p2/weight", lambda a: a[1:]), r"weights is float32\(17,\)"),
    "weight dtype": (tensor("p1/weight", lambda a: a.astype(np.float64)), "weights is float64"),
    "weight shape": (tensor("p1/weight", lambda a: a[:, :2]), r"weights is float32\(1, 2, 3, 2\)"),
    "matrix shape": (tensor("p4/weight", lambda a: a[:3]), r"p4: weights is float32\(3, 6\)"),
    "bias length": (tensor("p1/bias", lambda a: a[:1]), r"p1: bias is float32\(1,\)"),
    "matrix bias": (tensor("p3/bias", lambda a: a[:1]), r"p3: bias is float32\(1,\)"),
    "nan": (element("p1/weight", 0, np.nan), "'p1/weight' holds values that are not finite"),
    "missing tensor": (without("p2/targets"), "tensor p2/targets is missing"),
    "surplus tensor": (lambda d, t: t.update(x=np.zeros(1)), "belong to no layer: x"),
    "in shape": (at(0, "in_shape", [1, 4, 5]), "output .* does not follow|takes"),
    "out shape": (at(0, "out_shape", [2, 5, 4]), "at most 4 positions along axis 0"),
    "flat convolution": (at(0, "out_shape", [2]), r"joins \(C, H, W\) maps"),
    "empty side": (at(0, "in_shape", [0, 4, 4]), "has an empty side"),
    "two sides": (at(0, "in_shape", [4, 4]), r"neither \(C, H, W\) nor \(N,\)"),
    "kernel": (at(0, "kernel", [0, 3]), "kernel .* must be two numbers from 1"),
    "stride": (at(0, "stride", [0, 1]), "stride .* must be two numbers from 1"),
    "dilation": (at(0, "dilation", [1, 0]), "dilation .* must be two numbers from 1"),
    "padding": (at(0, "padding", [-1, 0]), "padding .* must be two numbers from 0"),
    "long pair": (at(0, "stride", [1, 1, 1]), "description cannot be read"),
    "groups": (at(0, "groups", 2), "2 groups do not divide the channels 1 and 2"),
    "reach": (at(0, "reach", [5, 4]), "reach .* exceeds the input"),
    "operation": (at(0, "operation", "pool"), "operation 'pool'; known"),
    "rows": (at(0, "rows", "diagonal"), "rows 'diagonal'; known"),
    "synapses": (at(0, "synapses", 4), "18 synapses stored, 4 announced"),
    "live": (at(2, "live", 13), "p2: live is 14 by its tensors, 13 announced"),
    "live missing": (without("p2/live"), "p2: live is None by its tensors, 14 announced"),
    "live length": (tensor("p2/live", lambda a: a[1:]), r"p2: live is bool\(15,\), expected"),
    "live dtype": (tensor("p2/live", lambda a: a.astype(np.uint8)), "p2: live is uint8"),
    "dead target": (element("p3/live", 3, False), "p3: a synapse leads to a neuron that is not"),
    "dead source": (
        tensor("p2/live", lambda a: np.roll(a, -1)), "p3: a synapse comes from a neuron of p2"),
    "generators": (at(2, "generators", 2), "p2: generators is 1 by its tensors, 2 announced"),
    "pattern steps": (tensor("p2/pattern", lambda a: a[1:]), "p2: a pattern of 2 steps needs"),
    "pattern validity": (lambda d, t: d["validity"].update(fixed_steps=False), "for T = 3 only"),
    "pattern values": (element("p2/pattern", 1, 2), "p2: the pattern holds values above 1"),
    "pattern dtype": (tensor("p2/pattern", lambda a: a.astype(np.int64)), "p2: pattern is int64"),
    "pattern sides": (tensor("p2/pattern", lambda a: a[:, 0]), r"p2: pattern \(3,\) is not"),
    "pattern empty": (tensor("p2/pattern", lambda a: a[:, :0]), r"p2: pattern \(3, 0\) is not"),
    "pattern width": (tensor("p2/pattern", lambda a: a[:, [0, 0]]), r"expected bool\(20,\)"),
    "pattern alone": (lambda d, t: (without("p2/live")(d, t), at(2, "live", None)(d, t),
        tensor("p2/pattern", lambda a: a[:, [0, 0]])(d, t), at(2, "generators", 2)(d, t)),
        r"p3: takes \(4, 2, 2\), but p2 is \(5, 2, 2\)"),
    "alternatives": (at(2, "alternatives", None), "description cannot be read"),
    "alternative kind": (
        lambda d, t: d["layers"][2]["alternatives"][0].update(kind="x"), "alternative 'x' of 200"),
    "alternative size": (
        lambda d, t: d["layers"][2]["alternatives"][1].update(bytes=-1), "'explicit' of -1 bytes"),
    "edge": (at(0, "edge", "loud"), "edge 'loud'"),
    "edge kind": (at(2, "edge", "analog"), "float32 weights on an analog edge with bound 1"),
    "input edge": (lambda d, t: d["layers"][0].update(edge="spike", bound=1), "a spike edge from"),
    "bound": (at(2, "bound", None), "a spike edge with bound None"),
    "graded bound": (lambda d, t: d["layers"][2].update(edge="graded", bound=0), "bound 0"),
    "grid": (at(0, "grid", 61), "grid 61 not in 0..60"),
    "source": (at(2, "source", "p9"), "source 'p9' is not there"),
    "source shape": (at(2, "source", "p1"), r"takes \(2, 2, 2\), but p1 is \(2, 4, 4\)"),
    "same name": (at(1, "name", "p1"), "two layers are called 'p1'"),
    "pool output": (at(1, "out_shape", [2, 3, 2]), "m1: output .* does not follow"),
    "pool stride": (at(1, "stride", [0, 2]), "m1: stride .* must be two numbers"),
    "threshold": (neuron("v_threshold", 0.0), "v_threshold 0.0 is not above 0"),
    "threshold below float32": (neuron("v_threshold", 1e-60), "v_threshold 1e-60 is not above 0"),
    "reset": (neuron("v_reset", 1.5), "v_reset 1.5 is not below v_threshold"),
    "constant": (neuron("constant", 0.0), "the neuron's constant is 0"),
    "huge constant": (neuron("constant", 1e60), "not finite in float32"),
    "charge": (neuron("charge", "magic"), "charge 'magic'; known: integrate"),
    "fire": (neuron("fire", "lt"), "fire 'lt'; known: gt, ge"),
    "text number": (neuron("constant", "2"), "'2' is not a number"),
    "steps": (top("time_steps", 0), "time_steps 0 is not at least 1"),
    "steps kind": (top("time_steps", True), "True is not an integer"),
    "layers kind": (top("layers", {}), "is not a list"),
    "missing field": (lambda d, t: d.pop("validity"), "description cannot be read"),
    "truth": (lambda d, t: d["validity"].update(fixed_steps=1), "1 is not true or false"),
    "std": (top("normalization", {"mean": [0.0], "std": [0.0]}), "std above 0"),
    "classes": (top("classes", ["a"]), "1 class names for 2 classes"),
    "class kind": (top("classes", [1, 2]), "1 is not text"),
    "rates kind": (top("rates", [0.5]), r"\[0.5\] is not an object"),
    "rates null": (top("rates", None), "None is not an object"),
    "rate kind": (top("rates", {"p1": "0.5"}), "'0.5' is not a number"),
    "rate true": (top("rates", {"p1": True}), "True is not a number"),
    "rate above 1": (top("rates", {"p1": 1.5}), "a rate of p1, 1.5, that is not from 0 to 1"),
    "rate below 0": (top("rates", {"p1": -0.1}), "a rate of p1, -0.1, that is not from 0 to 1"),
    "rate huge": (top("rates", {"p1": 10**400}), "description cannot be read"),
    "active kind": (top("active", {"p2": "0.5"}), "'0.5' is not a number"),
    "active list": (top("active", [0.5]), r"\[0.5\] is not an object"),
    "active below": (top("active", {"p2": 0.4}), "active neurons of p2, 0.4, that are not from"),
    "active above": (top("active", {"p2": 1.1}), "active neurons of p2, 1.1, that are not from"),
    "active alone": (top("active", {"p1": 0.5}), "active neurons of 'p1', which has no rate"),
    "rate of nothing": (top("rates", {"p9": 0.5}), "a rate of 'p9', which is no layer that gives"),
    "rate of the input": (top("rates", {"input": 0.5}), "a rate of 'input', which is no layer"),
    "forms kind": (top("forms", "planes"), "'planes' is not an object"),
    "form kind": (top("forms", {"p2": 1}), "1 is not text"),
    "form of a pool": (top("forms", {"m1": "sparse"}), "a form of 'm1', which is no layer with"),
    "form of a projection": (top("forms", {"c2": "sparse"}), "a form of 'c2', which is no layer"),
    "head weights": (tensor("head/weight", lambda a: a[:, 1:]), r"weights is float32\(2, 5\)"),
    "head bias": (tensor("head/bias", lambda a: a[1:]), r"head: bias is float32\(1,\)"),
    "head votes": (head("votes", 2), "votes together with weights"),
    "head space": (head("space", True), "a sum over space of"),
    "head divisor": (head("divisor", 0), "divisor 0"),
    "head source": (head("source", "input"), "head: takes"),
    "no votes": (head("votes", 0), "no classes or no votes"),
    "voteless": (without("head/weight"), "6 sums for 2 classes of 1 votes"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    change, text = DAMAGE[name]
    with pytest.raises(FileFormatError, match=text) as caught:
        load_event_network(rewritten(tmp_path, change))
    assert "changed.safetensors" in str(caught.value)


LIMITS = {
    "steps": (top("time_steps", 1 << 16), "T = 65536; the limit is 65535"),
    "values": (
        lambda d, t: (
            d.update(time_steps=65535),
            d["input"].update(shape=[1, 65536, 4]),
            at(0, "in_shape", [1, 65536, 4])(d, t),
            tensor("p2/pattern", lambda a: np.ones((65535, 1), np.uint8))(d, t),
        ),
        r"input: 65535 steps of \(1, 65536, 4\) given; the limit is 2147483648 values",
    ),
    "neurons": (at(3, "in_shape", [1 << 31]), "the limit is 2147483647"),
    "graded": (lambda d, t: d["layers"][2].update(edge="graded", bound=256), "at most 255"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_named(tmp_path: Path, name: str) -> None:
    change, text = LIMITS[name]
    with pytest.raises(LimitError, match=text):
        load_event_network(rewritten(tmp_path, change))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_kernel_that_spans_more_than_32_bits_is_refused(axis: int) -> None:
    """Its targets are counted in 32 bits; a little less is built."""
    channels, far = 1 << 17, (1 << 15, (1 << 15) - 2)
    rows = SparseRows(
        np.array([0, 1, 2], np.uint32), np.array([5, 7], np.uint32), np.ones(2, np.float32)
    )

    def layer(dilation: int) -> ConvSynapses:
        side = 1 << 15 | 1
        along = ((side, 1), (2, 1), (dilation, 1), (side - dilation, 1))
        sides, kernel, spread, out = (pair if axis == 0 else pair[::-1] for pair in along)
        return ConvSynapses(
            in_shape=(1, *sides), out_shape=(channels, *out), rows=rows, bias=None, kernel=kernel,
            stride=(1, 1), padding=(0, 0), dilation=spread, groups=1, reach=sides,
        )  # fmt: skip

    assert layer(far[1]).pitches[axis] == far[1] * channels
    with pytest.raises(LimitError, match="the kernel spans 4295098368 outputs"):
        layer(far[0])


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_event_network(path, example())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="do not match their digest"):
        load_event_network(path)
    path.write_bytes(content[:-40])
    with pytest.raises(FileFormatError, match="not an intact safetensors file"):
        load_event_network(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": np.ones(3, np.float32)}, foreign)
    with pytest.raises(
        FileFormatError, match="is a file of weights, and an event network is needed"
    ):
        load_event_network(foreign)
    with pytest.raises(MissingFileError, match="no file at"):
        load_event_network(tmp_path / "none.safetensors")


@pytest.mark.parametrize("sparse", [False, True])
def test_arrays_that_are_not_contiguous_are_refused(sparse: bool) -> None:
    """Kernels read them by their addresses."""
    wide = np.ones((4, 12), np.float32)
    rows: DenseRows | SparseRows = DenseRows(wide[:, ::2])
    if sparse:
        starts, targets = np.arange(5, dtype=np.uint32), np.zeros(4, np.uint32)
        rows = SparseRows(starts, targets, wide[:, 0])
    with pytest.raises(FileFormatError, match="weights is not contiguous"):
        MatrixSynapses((4,), (6,), rows, None)
    with pytest.raises(FileFormatError, match="bias is not contiguous"):
        MatrixSynapses((4,), (6,), DenseRows(np.ones((4, 6), np.float32)), wide[0, ::2])
