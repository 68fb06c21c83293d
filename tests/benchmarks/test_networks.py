"""`benchmarks/networks.py` and `brainevent_rival.py`: what is timed, and what is printed."""

from functools import cache, partial

import brainevent_rival
import networks
import numpy as np
import pytest
import torch
from networks import network, rows_of

from soul_deploy.analysis.reference_network import (
    ReferenceNetwork,
    driving_projection,
    reference_model,
)
from soul_deploy.ir import Merge

halved = cache(partial(network, rate=0.08))


@pytest.mark.parametrize("name", ["sewresnet18", "msresnet18"])
def test_a_residual_network_is_halved_and_every_layer_fires_at_the_rate(name: str) -> None:
    model = halved(name)
    widths = [model.graph.shapes[node.name][0] for node in model.graph.populations]
    assert {32, 64, 128, 256} <= set(widths)
    image = torch.from_numpy(
        np.random.default_rng(2026).standard_normal((1, 3, 32, 32)).astype(np.float32)
    )
    variances = [value for key, value in model.state.items() if key.endswith("running_var")]
    assert len(variances) >= 17 and all((value != 1).all() for value in variances)
    for path, fired in model.module().record(image).spikes.items():
        assert 0.05 < fired.float().mean().item() < 0.15, path


def test_behind_a_sum_of_currents_the_blocks_own_convolution_is_driven() -> None:
    graph = halved("msresnet18").graph
    summed = [node for node in graph.populations if isinstance(graph[node.inputs[0]], Merge)]
    assert len(summed) >= 8
    order = [node.name for node in graph.nodes]
    for population in summed:
        driven = driving_projection(graph, population)
        (merge,) = population.inputs
        assert graph.consumers[driven.name] == (merge,)
        assert order.index(driven.name) < order.index(population.name)


def test_rows_of_what_was_timed() -> None:
    entry = {"batch_size": 1, "threads": 2}
    times = {"onnxruntime-compact": 64.0, "openvino-int8-compact": 20.0, "event": 4.0}
    entries = [{**entry, "engine": name, "p50_ms": ms} for name, ms in times.items()]
    (row,) = rows_of("net", {"entries": entries, "rate": 0.081})
    assert row == "| net | 8.1% | 1 | 2 | 64.0 | 20.0 | 4.00 | 16.00 | 5.00 |"
    (row,) = rows_of("net", {"entries": entries[::2], "rate": 0.081})
    assert row == "| net | 8.1% | 1 | 2 | 64.0 |  | 4.00 | 16.00 |  |"


def test_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ReferenceNetwork(density=0.1, width=8, hidden=16, image=(3, 8, 8))
    made = reference_model(small)
    monkeypatch.setattr(networks, "network", lambda name, rate: made)
    words = ["reference:0.1", "--threads", "1", "--engines", "event", "--iterations", "2"]
    networks.main(words)
    header, line, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == line.count("|") == row.count("|") == len(networks.COLUMNS) + 1
    assert row.startswith("| reference:0.1 | ")


def test_our_layer_leaves_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brainevent_rival, "INPUTS", 300)
    monkeypatch.setattr(brainevent_rival, "OUTPUTS", 70)
    drawn = brainevent_rival.draw(0.1, 0.2, 1)
    weight = np.zeros((300, 70))
    for row, (first, last) in enumerate(zip(drawn["starts"], drawn["starts"][1:], strict=False)):
        weight[row, drawn["targets"][first:last]] = drawn["weights"][first:last]
    assert (weight != 0).mean() == pytest.approx(0.1, abs=0.02)
    run, currents = brainevent_rival.our_layer(drawn)
    for _ in range(2):  # a second run starts anew
        run()
    found = brainevent_rival.of_steps(currents)
    np.testing.assert_allclose(found, drawn["spikes"] @ weight, atol=1e-4)
    assert np.abs(found).max() > 0.5
