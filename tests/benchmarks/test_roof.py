"""`benchmarks/roof.py`: the bare additions are the layer's own, and what is told about them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chains import ChainSpec, build, chains, images, random_neuron_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from roof import Passes, buffers_for, largest, main, roof_of, run_timed, synapse_calls
from test_event import sparsified
from test_live_neurons import small

from soul_deploy.base import Array
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.export.event.storage_format import Choice
from soul_deploy.runtime.engine.inputs import samples_of
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.network import EventNetwork
from soul_deploy.runtime.kernels.time_vectorised import convolve_lanes, multiply_lanes
from soul_deploy.runtime.ops.counted_run import additions
from soul_deploy.runtime.plan.forms import event_forms
from soul_deploy.runtime.plan.layer_plan import plan_layers


def compare(network: EventNetwork, x: Array) -> list[Passes]:
    """Every roof leaves its layer's currents, from the bias and from 0, to the bit.

    Behind a population, its passes hold the fan-out of each neuron that fires, once.
    """
    running = Network(network, 1)
    recorded = running.run_recorded(x[:1]).spikes
    plans = plan_layers(network, event_forms(network))
    buffers = buffers_for(network, plans, samples_of(network, x[:1])[0])
    calls = [call for region in buffers.regions for call in region[0]]
    places, found = synapse_calls(calls, plans), []
    assert len(set(places.values())) == len(network.projected)
    run_timed(calls)
    for name, place in places.items():
        start, call, roofed = calls[place - 1], calls[place], roof_of(calls[place])
        lanes = 0 if call.arguments[-1].shape[1] > 16 else call.arguments[-1].shape[1]
        laned = lanes > 0 and call.kernel in (convolve_lanes(lanes), multiply_lanes(lanes))
        assert (roofed is not None) == laned
        if roofed is None:
            continue
        out = call.arguments[-1]
        for begin in (lambda s=start: run_timed([s]), lambda o=out: o.fill(0)):
            begin()
            run_timed([call])
            expected = out.copy()
            begin()
            run_timed([roofed[0]])
            np.testing.assert_array_equal(out, expected)
        passes = roofed[1]
        assert (passes.ends > passes.begins).all()
        if network.by_name[name].sources[0] in recorded:
            fired = recorded[network.by_name[name].sources[0]][:, 0].any(axis=0)
            assert passes.synapses == int((additions(running, name) * fired).sum())
        found.append(passes)
    return found


@given(chains(), st.sampled_from(("implicit", "explicit", "auto")), st.booleans())
@settings(max_examples=30)
def test_the_roof_makes_the_layers_additions(spec: ChainSpec, choice: Choice, dead: bool) -> None:
    model, x = sparsified(build(spec), spec.seed), images(spec)
    if dead:
        model = replace(model, neuron_masks=random_neuron_masks(model, spec.seed))
    compare(build_event_network(model, representation=choice), x.numpy())


@pytest.mark.parametrize(("choice", "kernel"), [("implicit", convolve_lanes(4)),
                                                 ("explicit", multiply_lanes(4))])  # fmt: skip
def test_both_kinds_of_rows_have_a_roof(choice: Choice, kernel: object) -> None:
    model = sparsified(small(padding=1), 1)
    network = build_event_network(model, representation=choice)
    plans = plan_layers(network, event_forms(network))
    x = 8 * np.random.default_rng(0).random((1, 2, 6, 6)).astype(np.float32)
    buffers = buffers_for(network, plans, samples_of(network, x)[0])
    calls = [call for region in buffers.regions for call in region[0]]
    assert kernel in [call.kernel for call in calls]
    (passes,) = compare(network, x)
    assert passes.synapses == 80


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("choice", ["implicit", "explicit"])
def test_events_at_the_border_reach_part_of_the_kernel(choice: Choice, padding: int) -> None:
    x = 8 * np.random.default_rng(0).random((1, 2, 6, 6)).astype(np.float32)
    found = []
    for seed in range(16):
        network = build_event_network(
            sparsified(small(padding=padding), seed), representation=choice
        )
        found += compare(network, x)
    assert sum(passes.synapses for passes in found) > 100


@pytest.mark.parametrize("steps", [1, 17])
def test_kernels_without_lanes_have_no_roof(steps: int) -> None:
    x = np.random.default_rng(0).random((1, 2, 6, 6)).astype(np.float32)
    network = build_event_network(sparsified(small(padding=1, steps=steps), 1))
    assert compare(network, x) == []


def test_the_largest_layers_hold_four_fifths() -> None:
    assert largest({"a": 10, "b": 50, "c": 30, "d": 10}) == ["b", "c"]
    assert largest({"a": 10, "b": 49, "c": 30, "d": 11}) == ["b", "c", "d"]
    assert largest({"a": 0, "b": 0}) == []


def sparse_event(tmp_path: Path) -> Path:
    path = tmp_path / "sparse.event.safetensors"
    export_event(sparsified(small(padding=1), 1), path)
    return path


def test_the_script_prints_the_roof_as_a_table_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(sparse_event(tmp_path)), "--iterations", "3"]
    main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert 0 < document["not_synapse_share"] < 1
    for item in document["roof"]:
        assert item["synops"] > 0 and item["synapse_ms"] > 0
        assert (item["roof_ms"] is None) == (item["passes"] is None)
    assert any(item["passes"] for item in document["roof"])
    main(words)
    shown = capsys.readouterr().out
    assert "share of the roof" in shown
    assert " % of the time is not synapse work" in shown


def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "none.event")])
    assert ended.value.code == 2
    assert "none.event" in capsys.readouterr().err
