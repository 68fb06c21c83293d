"""Event files whose neurons hold numbers that no export writes are refused when they are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soul_deploy.base.errors import FileFormatError
from soul_deploy.base.files import digest, read_tensors, write_tensors
from soul_deploy.ir import NeuronSpec
from soul_deploy.runtime.dynamics.equation import DYNAMICS
from soul_deploy.runtime.format.file import FORMAT, load_event_network, save_event_network
from soul_deploy.runtime.format.network import (
    EventNetwork,
    PoolLayer,
    PopulationLayer,
    ReadoutLayer,
)

DIVISORS = {
    **dict.fromkeys(("rplif", "qif", "eif"), "tau"),
    "izhikevich": "tau_w",
    "stbif": "q_threshold",
}
STARTS = {
    family: next(start for start in DYNAMICS[family].start if isinstance(start, str))
    for family in ("qif", "eif", "izhikevich", "rplif")
}
Change = Callable[[dict[str, Any], dict[str, Any]], None]


def network(family: str) -> EventNetwork:
    neurons = PopulationLayer("p", "input", (3,), NeuronSpec(family, v_reset=0.0).equation())
    head = ReadoutLayer("head", "p", (3,), 2, False, np.ones((2, 3), np.float32), None, 1, 1)
    return EventNetwork("input", (3,), 3, (neurons,), head, fixed_steps=True)


def rewritten(path: Path, change: Change) -> None:
    """Changes the first layer's description and the tensors, and lets the digest fit again."""
    opened = read_tensors(path)
    document = opened.document(FORMAT)
    tensors = {name: np.array(array) for name, array in opened.tensors.items()}
    change(document["layers"][0], tensors)
    write_tensors(path, tensors, {**document, "digest": digest(tensors)})


@pytest.mark.parametrize("family", DIVISORS)
def test_nothing_is_divided_by_zero(family: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_event_network(path, network(family))
    load_event_network(path)

    def change(layer: dict[str, Any], tensors: dict[str, Any]) -> None:
        assert layer["neuron"]["constants"][DIVISORS[family]] != 0
        layer["neuron"]["constants"][DIVISORS[family]] = 0.0

    rewritten(path, change)
    with pytest.raises(FileFormatError, match=f"p: {family} .* gives no numbers, even at rest"):
        load_event_network(path)


@pytest.mark.parametrize("family", STARTS)
def test_all_neurons_start_with_one_number(family: str, tmp_path: Path) -> None:
    path, start = tmp_path / "net.safetensors", STARTS[family]
    save_event_network(path, network(family))

    def change(layer: dict[str, Any], tensors: dict[str, Any]) -> None:
        layer["neuron"]["constants"][start] = None
        tensors[f"p/neuron.{start}"] = np.zeros((1, 3), np.float32)

    rewritten(path, change)
    with pytest.raises(FileFormatError, match=f"p: {start}, which all neurons start with"):
        load_event_network(path)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_no_window_of_signed_values_is_empty(padding: int) -> None:
    out_shape = (2, 2 + padding, 2 + padding)
    pool = PoolLayer("m", "p", (2, 4, 4), out_shape, (2, 2), (2, 2), (padding, padding))
    assert pool.edge_of([("spike", 1)]) == ("spike", 1)
    if padding < 2:
        assert pool.edge_of([("signed", 1)]) == ("signed", 1)
        return
    with pytest.raises(FileFormatError, match="beyond half the kernel"):
        pool.edge_of([("signed", 1)])
