"""The golden cases: what they cover, that they test something, that the tools still give them."""

import warnings
from collections import Counter
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from golden import NEURONS, TOOLS, Golden, golden, golden_names, grad_weights, metadata, path_of
from torch import Tensor

from soul_deploy.base import Array

# Cases per neuron; a neuron that is missing here or there is a difference.
COVERED = {
    "soul": {
        "clif": 10, "glif": 8, "ielif": 2, "ilif": 8, "intlif": 9, "izhikevich": 8, "lif": 10,
        "ltmd": 6, "plif": 12, "psn": 8, "rplif": 8, "stbif": 6, "tlif": 7,
    },
    "spikingjelly_2": {
        "IFNode": 6, "LIFNode": 12, "ParametricLIFNode": 12, "QIFNode": 6, "EIFNode": 6,
        "IzhikevichNode": 8, "KLIFNode": 12, "LIAFNode": 4, "CUBALIFNode": 6,
        "ComplementaryLIFNode": 4, "GatedLIFNode": 8, "ILIFNode": 8, "NonSpikingIFNode": 3,
        "NonSpikingLIFNode": 4, "PSN": 6, "MaskedPSN": 6, "SlidingPSN": 6,
    },
    "spikingjelly_0": {
        "IFNode": 12, "LIFNode": 24, "ParametricLIFNode": 12, "QIFNode": 6, "EIFNode": 6,
        "IzhikevichNode": 8, "KLIFNode": 8,
    },
    "clock_driven": {
        "MultiStepIFNode": 2, "IFNode": 2, "MultiStepLIFNode": 4, "LIFNode": 6,
        "MultiStepParametricLIFNode": 4, "ParametricLIFNode": 2, "QIFNode": 4,
        "MultiStepEIFNode": 2, "EIFNode": 2,
    },
    "snntorch": {
        "Leaky": 25, "Synaptic": 13, "Lapicque": 10, "Alpha": 6, "RLeaky": 18, "RSynaptic": 12,
    },
}  # fmt: skip
EVERY = [(tool, name) for tool in TOOLS for name in golden_names(tool)]
SIGNED = {"tlif", "LIAFNode", "NonSpikingIFNode", "NonSpikingLIFNode"}
WITHOUT_STATES = {"ielif", "max-mem", "max-abs-mem", "mean-mem", "last_mem"}


@pytest.mark.parametrize("tool", TOOLS)
def test_each_neuron_has_its_cases(tool: str) -> None:
    neurons = Counter(metadata(tool)[name]["neuron"] for name in golden_names(tool))
    assert neurons == COVERED[tool]
    steps = {metadata(tool)[name]["steps"] for name in golden_names(tool)}
    assert steps == {4, 8, 16}


def test_the_files_are_small() -> None:
    assert sum(path_of(tool).stat().st_size for tool in TOOLS) < 3e6


@pytest.mark.parametrize(("tool", "name"), EVERY)
def test_a_case_is_whole_and_its_channels_fire_or_not(tool: str, name: str) -> None:
    case = golden(tool, name)
    every = [case.input, case.output, *case.states.values(), *case.parameters.values()]
    every += [*([] if case.grad is None else [case.grad]), *case.parameter_grads.values()]
    assert all(bool(value.isfinite().all()) for value in every)
    assert len(case.input) == case.fields["steps"]
    assert case.output.shape in (case.input.shape, case.input.shape[1:])
    silent = WITHOUT_STATES & {case.fields["neuron"], case.fields.get("decode")}
    assert bool(case.states) != bool(silent)
    assert all(state.shape == case.input.shape for state in case.states.values())
    assert len(np.unique(case.output.numpy())) > 1
    assert bool((case.output < 0).any()) == (case.fields["neuron"] in SIGNED) or _unsigned(case)
    assert (case.grad is not None) == case.fields["gradient"]
    assert case.grad is None or bool(case.grad.any())


def _unsigned(case: Golden) -> bool:
    return case.fields.get("act") == "relu" or "asshipped" in case.name


@pytest.mark.parametrize("tool", TOOLS)
def test_inputs_have_graded_and_negative_values_and_ties(tool: str) -> None:
    for name in golden_names(tool):
        case = golden(tool, name)
        edges = case.fields["kind"] == "edges"
        assert edges or (float(case.input.max()) > 1 and float(case.input.min()) < 0)
    # A silent neuron's membrane may stand at the threshold only where the tool fires above it.
    strict = metadata(tool)["source"]["fires"] == ">"
    case = golden(tool, {"soul": "lif_edges", "snntorch": "leaky_edges"}.get(tool, "if_edges"))
    tied = case.states[min(case.states)] == 1.0
    assert bool((tied & (case.output == 0)).any()) == strict


def recipe(name: str, patch: pytest.MonkeyPatch) -> Any:
    patch.syspath_prepend(str(NEURONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


INSTALLED = {"spikingjelly_2": "make_spikingjelly", "snntorch": "make_snntorch"}


def installed_cases(tool: str, patch: pytest.MonkeyPatch) -> list[Any]:
    package = tool.removesuffix("_2")
    pytest.importorskip(package, reason=f"compares with {package}'s own code")
    if version(package) != metadata(tool)["source"]["version"]:
        pytest.skip(f"the file is of {package} {metadata(tool)['source']['version']}")
    found: list[Any] = recipe(INSTALLED[tool], patch).cases()
    return found


@pytest.mark.parametrize("tool", sorted(INSTALLED))
def test_the_tools_own_code_gives_these_outputs(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    for case in installed_cases(tool, monkeypatch):
        for kind in case.kinds:
            kept = golden(tool, case.name if kind == "mixed" else f"{case.name}_{kind}")
            found = recipe("golden_cases", monkeypatch).replay(case, kept.input, kept.parameters)
            seen += 1
            if kept.fields["rounding"] and kind == "edges" and not _same_machine(tool):
                continue  # at an edge, the last bit of an exponential decides
            assert torch.equal(found["output"], kept.output), kept.name
            for name, state in kept.states.items():
                torch.testing.assert_close(found[f"state.{name}"], state, rtol=1e-5, atol=1e-6)
            if kept.grad is not None:
                torch.testing.assert_close(found["grad"], kept.grad, rtol=1e-4, atol=1e-5)
    assert seen == len(golden_names(tool))


def _same_machine(tool: str) -> bool:
    source = metadata(tool)["source"]
    here = {"torch": torch.__version__, "vectors": torch.backends.cpu.get_cpu_capability()}
    return here == {name: source[name] for name in here}


@pytest.mark.parametrize(
    ("tool", "name"), [("spikingjelly_2", "lif"), ("spikingjelly_2", "ilif"), ("snntorch", "leaky")]
)
def test_edge_inputs_stand_at_an_edge_of_the_output_in_each_step(
    tool: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = (found for found in installed_cases(tool, monkeypatch) if found.name == name)
    kept = golden(tool, f"{name}_edges")
    for step in range(len(kept.input)):
        seen = []
        for towards in (-np.inf, np.inf):
            x = kept.input.numpy().copy()
            for _ in range(2):
                x[step] = np.nextafter(x[step], np.float32(towards))
            seen.append(_run(case, torch.from_numpy(x))[step])
        assert np.all(seen[0] != seen[1])


def _run(case: Any, x: Tensor) -> Array:
    with torch.no_grad():
        found: Tensor = case.whole(case.build(), x)
    return found.numpy()


def test_the_weights_of_the_gradient_are_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = recipe("golden_cases", monkeypatch).grad_weights((3, 5, 7))
    assert torch.equal(grad_weights((3, 5, 7)), theirs)
