"""Each neuron's spikes, states and gradients in each engine are those of the tools' own code."""

import numpy as np
import pytest
import torch
from golden import TOOLS, Golden, golden, golden_names, grad_weights, metadata
from golden_specs import (
    UNTAKEN,
    equation_of,
    in_kernel,
    in_numpy,
    in_torch,
    neuron_of,
    spec_of,
    states_of,
)
from torch import Tensor

from soul_deploy.base import Array
from soul_deploy.base.errors import UsageError
from soul_deploy.equivalence.rounding import teacher_forced

EVERY = [
    (tool, name)
    for tool in TOOLS[:4]
    for name in golden_names(tool)
    if metadata(tool)[name]["neuron"] not in UNTAKEN
]
REFUSED = [
    (tool, name)
    for tool, name in EVERY
    if metadata(tool)[name]["neuron"] in ("clif", "ilif") and "vreset" in name
]
TAKEN = [pair for pair in EVERY if pair not in REFUSED]
TRAINING = ("spikingjelly_0", "lif_nodecay")
"""SpikingJelly 0.0.0.0.14 has other last bits in training; ours are those of evaluation."""
OTHER_GRADIENTS = {
    **dict.fromkeys(
        [("soul", name) for name in ("clif", "clif_soft", "ilif", "ilif_decay")],
        "at the edge of its window Soul's rectangle passes a gradient; ours and SpikingJelly's do "
        "not",
    ),
    **dict.fromkeys(
        [
            *[("soul", f"izhikevich_vreset{kind}") for kind in ("", "_edges")],
            *[("spikingjelly_0", f"izhikevich_hard{kind}") for kind in ("", "_edges")],
        ],
        "with detach_reset they still pass a gradient through spike · v_reset",
    ),
}


def test_the_cases_of_our_neurons_are_many() -> None:
    assert (len(TAKEN), len(REFUSED)) == (280, 6)


@pytest.mark.parametrize(("tool", "name"), REFUSED)
def test_what_is_added_in_another_order_in_the_first_step_is_refused(tool: str, name: str) -> None:
    with pytest.raises(UsageError, match=r"v_reset -0\.3; supported are 0 and none"):
        spec_of(golden(tool, name))


@pytest.mark.parametrize(("tool", "name"), TAKEN)
def test_a_module_has_the_bits_of_the_tools(tool: str, name: str) -> None:
    case = golden(tool, name)
    neuron = neuron_of(case)
    sent, first = in_torch(neuron, case.input)
    assert torch.equal(sent * neuron.spec.unit, case.output)
    if (tool, name) == TRAINING:
        torch.testing.assert_close(first, states_of(case)["v"])
    elif case.states:
        assert torch.equal(first, states_of(case)["q" if "q" in case.states else "v"])


@pytest.mark.parametrize(
    ("tool", "name"), [pair for pair in TAKEN if golden(*pair).grad is not None]
)
def test_gradients_are_those_of_the_tools(tool: str, name: str) -> None:
    case = golden(tool, name)
    neuron = neuron_of(case)
    x = case.input.clone().requires_grad_()
    output = neuron.simulate(x, static=False) * neuron.spec.unit
    own = dict(neuron.named_parameters())
    total = (output * grad_weights(output.shape)).sum()
    found = dict(zip(["x", *own], torch.autograd.grad(total, [x, *own.values()]), strict=True))
    assert case.grad is not None
    wanted = {"x": case.grad, **case.parameter_grads}
    assert found.keys() == wanted.keys()
    far = [n for n, g in found.items() if _far(g, wanted[n])]
    assert bool(far) == ((tool, name) in OTHER_GRADIENTS), far


def _far(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).abs().max()) > 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("tool", "name"), [p for p in TAKEN if spec_of(golden(*p)).dynamics])
def test_numpy_and_the_compiled_kernel_send_the_same(tool: str, name: str) -> None:
    """Where exp and sigmoid are other libraries' they may differ, by what rounding explains."""
    case = golden(tool, name)
    equation, wanted = equation_of(case), (case.output / spec_of(case).unit).numpy()
    sent, states = in_numpy(equation, case.input)
    compiled = in_kernel(equation, case.input)
    exact = not {"exp", "sigmoid"} & set(case.fields["rounding"])
    for found in (sent, compiled):
        assert np.array_equal(found, wanted) if exact else _explained(case, found, wanted)
    for name_of, state in states_of(case).items():
        if exact:
            assert np.array_equal(states[name_of], state.numpy()), name_of
        else:
            same = _until_different(sent, wanted)
            near = np.abs(states[name_of] - state.numpy()) <= 1e-5 * (1 + np.abs(state.numpy()))
            assert near[same].all(), name_of


def _until_different(found: Array, wanted: Array) -> Array:
    """Where a neuron has sent the same up to this step."""
    return np.logical_and.accumulate(found == wanted, axis=0)


def _explained(case: Golden, found: Array, wanted: Array) -> bool:
    """Whether each neuron's first difference lies within the derived bound."""
    x, sent = case.input.double(), torch.from_numpy(wanted).double()
    distance, error = teacher_forced(equation_of(case), x, torch.zeros_like(x), sent)
    same = _until_different(found, wanted)
    before = np.concatenate([np.ones_like(same[:1]), same[:-1]])
    first = before & (found != wanted)
    return bool((distance.abs() <= error).numpy()[first].all())


def test_bounds_explain_differences_and_not_all_of_them() -> None:
    """The edge cases differ somewhere, and where a neuron is far from its edge nothing does."""
    case = golden("spikingjelly_2", "eif_edges")
    wanted = case.output.numpy()
    sent, _ = in_numpy(equation_of(case), case.input)
    assert (sent != wanted).any() and _explained(case, sent, wanted)
    wrong = golden("spikingjelly_2", "eif")
    flipped = wrong.output.numpy().copy()
    flipped[3, 0, 0] = 1 - flipped[3, 0, 0]
    assert not _explained(wrong, flipped, wrong.output.numpy())
