"""Networks of snnTorch's neurons that are not the same at every step, or not snnTorch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from leaky_nets import Net, T, first, loop, plain, second, snn
from torch import Tensor

from soul_deploy import from_torch
from soul_deploy.base.errors import UnsupportedGraphError, UsageError


def step_changed_in_place(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    """x[t] lies in the memory of x."""
    if t == 0:
        state["currents"] = net.fc1(torch.stack([x] * T))
    current = state["currents"][t]
    current *= 0.5
    return first(net, state["currents"][t], state)


def another_layer(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return second(net, (net.fc2 if t < T - 1 else net.other)(first(net, net.fc1(x), state)), state)


def swapped(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return net.lif2(net.fc2(first(net, net.fc1(x), state)), state["mem1"])[0]


def scaled(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    spikes = first(net, net.fc1(x), state)
    state["mem1"] = state["mem1"] * 0.5
    return spikes


def scaled_in_place(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    spikes = first(net, net.fc1(x), state)
    state["mem1"] *= 0.5
    return spikes


def gated(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return first(net, net.fc1(x), state) * state["mem1"]


def from_rest_each_time(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    state["mem1"] = net.lif1.reset_mem()
    return first(net, net.fc1(x), state)


def reset_midway(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    if t == 3:
        net.lif1.reset_mem()
    return net.lif1(net.fc1(x))[0]


def every_second_step(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    spikes = first(net, net.fc1(x), state)
    if t % 2 == 0:
        state["out"] = second(net, net.fc2(spikes), state)
    return state["out"]


def recurrent(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    current = net.fc1(x) if t == 0 else net.fc1(x) + net.back(state["spk1"])
    return first(net, current, state)


def twice_a_step(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return first(net, net.back(first(net, net.fc1(x), state)), state)


def norm_at_first(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return first(net, net.norm(net.fc1(x)) if t == 0 else net.fc1(x), state)


def a_layer_in_between(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    spikes = first(net, net.fc1(x), state)
    return net.back(spikes) if t == 2 else spikes


def one_sample(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    return first(net, net.fc1(x), state)[0]


def until_it_is_above(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    spikes = first(net, net.fc1(x), state)
    return spikes if state["mem1"].mean() > 0 else spikes + spikes


def started_at_one(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    state["mem1"] = torch.ones(2, 30) if t == 0 else state["mem1"]
    return first(net, net.fc1(x), state)


def constant_spikes(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    before = torch.zeros(2, 30) if t == 0 else state["spk1"]
    first(net, net.fc1(x), state)
    return second(net, net.fc2(before), state)


def its_membrane(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    first(net, net.fc1(x), state)
    return state["mem1"]


def layered(net: Any, x: Tensor, t: int, state: dict[str, Any]) -> Any:
    spikes = first(net, net.fc1(x), state)
    return spikes, second(net, net.fc2(spikes), state)


OWN = "with another membrane than its own of the step before"
REFUSED: list[tuple[Callable[..., Any], str]] = [
    (loop(another_layer), r"neuron 'lif2' called with 'other' at step 6 and with 'fc2' at step 1"),
    (loop(step_changed_in_place), r"an operation in place \(imul\) on a value that getitem reads"),
    (loop(swapped), f"neuron 'lif2' {OWN}"),
    (loop(scaled), "'mul' of the membrane of 'lif1', which only spikes leave"),
    (loop(scaled_in_place), "'imul' of the membrane of 'lif1', which only spikes leave"),
    (loop(gated), "'mul' of the membrane of 'lif1', which only spikes leave"),
    (loop(from_rest_each_time), "'lif1' with a membrane that starts again at rest at step 2"),
    (loop(reset_midway), "'lif1' with a membrane that starts again at rest at step 4"),
    (loop(every_second_step), r"'lif2' called for the 2\. time, .* with a value of step 3"),
    (loop(recurrent), r"'lif1' called for the 2\. time, .* with a value of step 1"),
    (loop(twice_a_step), r"'lif1' called for the 2\. time, .* with a value of step 1"),
    (loop(norm_at_first), "'fc1' with and without batch norm 'norm'"),
    (loop(a_layer_in_between), "different values of the steps, put together"),
    (loop(one_sample), r"getitem\(.*, 0\) \(of tensors, steps x\[t\] of a sequence alone"),
    (loop(until_it_is_above), "it has a condition on a tensor's values"),
    (loop(started_at_one), "'lif1' is given a membrane of other values than 0"),
    (loop(constant_spikes), "'fc2' with a constant or a second input"),
    (loop(plain, lambda out: torch.stack(out[::-1])), r"6 steps put together \(steps 6, 5, 4, 3"),
    (loop(plain, lambda out: torch.stack(out[2:])), r"4 steps put together \(steps 3, 4, 5, 6\)"),
    (loop(plain, lambda out: out[-2]), "returns 'lif1' of step 5 alone"),
    (loop(plain, lambda spikes: spikes[0] + spikes[2]), "'add' of values of different steps"),
    (loop(its_membrane), "class scores from 'input', which holds no spikes"),
    (
        loop(layered, lambda out: tuple(map(torch.stack, zip(*out, strict=True)))),
        r"several values \(0: output of 'lif1', 1: output of 'lif2'; say with output= which one",
    ),
    (lambda net, x: plain(net, x, 0, {"mem1": net.rest()[0]}), "one step that starts 'lif1' at re"),
]


@pytest.mark.parametrize(("run", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_is_not_the_same_at_every_step_is_refused(run: Callable[..., Any], text: str) -> None:
    network, x = Net(run), torch.randn(2, 20)
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, (20,), T, example=x)
    for name, module in network.named_modules():
        assert vars(module).keys() == before[name].keys(), name


def test_steps_in_another_order_are_refused() -> None:
    backwards = loop(lambda net, x, t, state: first(net, net.fc1(x[T - 1 - t]), state))
    with pytest.raises(
        UnsupportedGraphError, match=r"'lif1' called for the 1\. .* value of step 6"
    ):
        from_torch(Net(backwards), (20,), T, example=torch.randn(T, 2, 20))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"beta": torch.full((10,), 0.9)}, r"lif1: beta of shape \(10,\) for neurons \(30,\)"),
    ({"beta": 0.9, "threshold": torch.ones(1, 30)}, r"lif1: threshold of shape \(1, 30\)"),
    ({"beta": 0.0}, "lif1: beta 0"),
    ({"beta": 0.9, "threshold": -1.0}, "lif1: v_threshold -1.0 must be above 0"),
    ({"beta": 0.9, "graded_spikes_factor": 2.0}, "lif1: graded_spikes_factor other than 1"),
    ({"beta": 0.9, "state_quant": torch.round}, "lif1: state_quant = "),
    ({"beta": 0.9, "spike_grad": lambda x: (x > 0.5).float()}, "lif1: spike_grad is no function"),
]


@pytest.mark.parametrize(("given", "text"), SETTINGS, ids=[text for _, text in SETTINGS])
def test_settings_that_change_the_arithmetic_are_refused(given: Any, text: str) -> None:
    network = Net(loop(plain))
    network.lif1 = snn.Leaky(**given)
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, (20,), T)


def test_a_neuron_that_says_another_reset_than_it_computes_is_refused() -> None:
    network = Net(loop(plain))
    network.lif1.reset_mechanism = "zero"
    text = "it computes reset_mechanism 'subtract' and says 'zero'"
    with pytest.raises(UnsupportedGraphError, match=text):
        from_torch(network, (20,), T)
    with pytest.warns(UserWarning, match="Inhibition"):
        network.lif1 = snn.Leaky(beta=0.9, inhibition=True)
    with pytest.raises(UnsupportedGraphError, match="lif1: inhibition = True"):
        from_torch(network, (20,), T)


class Own(snn.Leaky):  # type: ignore[misc]
    """A neuron of the user's own."""

    def fire(self, mem: Tensor) -> Any:
        return (mem > 0.5 * self.threshold).float()


def test_a_neuron_of_ones_own_is_refused() -> None:
    network = Net(loop(plain))
    network.lif1 = Own(beta=0.9)
    with pytest.raises(UnsupportedGraphError, match=r"module 'lif1' \(Own\) is not supported"):
        from_torch(network, (20,), T)


def test_an_example_of_sequences_for_a_network_of_images_is_refused() -> None:
    with pytest.raises(UsageError, match=r"its forward takes images .* \(6, 3, 20\) is a sequence"):
        from_torch(Net(loop(plain)), (20,), T, example=torch.randn(T, 3, 20))
