"""Training: schedules, recipes, exact repetition, gradients of the unrolled neuron."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    MultiStepLR,
    StepLR,
)

from soul_deploy.base.errors import SoulDeployError, UnknownNameError, UsageError
from soul_deploy.data.datasets import Data, load_data
from soul_deploy.data.sampler import Augment, DataOrder, draw_moves, moved
from soul_deploy.ir import NeuronSpec
from soul_deploy.nn.dynamics import fire_with_surrogate
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.runtime.equations import CHARGE, FIRE
from soul_deploy.training.lr_schedules import Schedule, make_scheduler, parse_schedule
from soul_deploy.training.trainer import (
    BatchHooks,
    BestState,
    EpochResult,
    TrainConfig,
    Training,
    accuracy,
    make_optimizer,
)
from soul_deploy.zoo.registry import NetworkOptions, create


@pytest.fixture(scope="module")
def digits() -> Data:
    whole = load_data("digits", Path("."))
    few = torch.arange(96)
    return Data(
        "digits",
        whole.train.select(few),
        whole.validation.select(few),
        whole.test,
        whole.classes,
        whole.normalization,
    )


def small_network(digits: Data, neuron: NeuronSpec | None = None) -> GraphModule:
    torch.manual_seed(7)
    options = NetworkOptions(digits.input_shape, 10, neuron or NeuronSpec(), 2, hidden=8)
    network, graph = create("spikingvgg5", options)
    module = GraphModule(graph)
    module.load_state_dict(network.state_dict())
    return module


def rates(schedule: Schedule, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(schedule, optimizer, epochs)
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule.moves_after(epoch):
            scheduler.step()
    return found


def torch_rates(make: object, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("words", "make"),
    [
        (["cosine"], lambda o: CosineAnnealingLR(o, T_max=20)),
        (["Cosine"], lambda o: CosineAnnealingLR(o, T_max=20)),
        (["LINEAR"], lambda o: StepLR(o, step_size=5, gamma=0.1)),
        (["warmup"], lambda o: CosineAnnealingWarmRestarts(o, T_0=2, T_mult=2)),
        (["Step", "5", "9"], lambda o: MultiStepLR(o, [5, 9], gamma=0.1)),
        (["Cosine", "0", "20", "8"], lambda o: CosineAnnealingLR(o, T_max=8)),
    ],
)
def test_schedules_are_pytorchs(words: list[str], make: object) -> None:
    assert rates(parse_schedule(words), 20) == torch_rates(make, 20)


def test_schedule_values_by_hand() -> None:
    windowed = rates(parse_schedule(["Cosine 2 5 6"]), 8)
    expected = [(1 + math.cos(math.pi * moved / 6)) / 2 for moved in (0, 0, 0, 1, 2, 3, 3, 3)]
    assert windowed == pytest.approx(expected)
    assert rates(parse_schedule(["step [1, 3]"]), 5) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert rates(parse_schedule([]), 3) == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plateau", "unknown scheduler 'plateau'; valid: cosine, linear, warmup, Cosine T0"),
        ("Step", "needs rising milestones"),
        ("Step 5 3", "needs rising milestones"),
        ("Cosine 1 2", "none or three numbers"),
        ("Cosine 3 2 5", "T0 < Tt"),
        ("Cosine a 2 5", "'a' is not a whole number of epochs"),
        ("linear 4", "takes no numbers, got 4"),
    ],
)
def test_wrong_schedules(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_schedule([text])


def test_wrong_recipes() -> None:
    with pytest.raises(UnknownNameError, match="optimizer 'lion'; valid: adam, sgd, adamw, rms"):
        TrainConfig(optimizer="lion")
    for options, message in (
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"learning_rate": math.nan}, "must be above 0"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"momentum": -1.0}, "momentum -1.0 must not be negative"),
        ({"augment": "mixup"}, "unknown augmentation"),
    ):
        with pytest.raises(UsageError, match=message):
            TrainConfig(**options)


@pytest.mark.parametrize("name", ["adam", "sgd", "adamw", "rmsprop"])
def test_optimizers_get_their_options(name: str) -> None:
    recipe = TrainConfig(optimizer=name, learning_rate=0.3, weight_decay=0.1, momentum=0.7)
    (group,) = make_optimizer(nn.Linear(1, 1), recipe).param_groups
    assert group["lr"] == 0.3 and group["weight_decay"] == 0.1
    assert group.get("momentum", 0.7) == 0.7


def test_training_repeats_to_the_bit_and_another_seed_differs(digits: Data) -> None:
    def run(seed: int) -> tuple[list[float], dict[str, Tensor]]:
        module = small_network(digits)
        recipe = TrainConfig(epochs=2, batch_size=32, augment="crop_flip", seed=seed)
        losses = [result.loss for result in Training(module, digits, recipe).run()]
        return losses, module.state_dict()

    first, again, other = run(1), run(1), run(2)
    assert first[0] == again[0] and first[0] != other[0]
    for name, tensor in first[1].items():
        assert torch.equal(tensor, again[1][name]), name


def test_an_epoch_is_plain_gradient_descent(digits: Data) -> None:
    """Two batches of one epoch against the updates written out, with L1 on convolutions only."""
    module, twin = small_network(digits), small_network(digits)
    recipe = TrainConfig(
        epochs=1, optimizer="sgd", momentum=0.0, learning_rate=0.1, batch_size=48, l1=0.01
    )
    (result,) = Training(module, digits, recipe).run()
    twin.train()
    losses = []
    for index in DataOrder(len(digits.train), 48, 2025).batches(0):
        images = digits.normalise(digits.train.images[index])
        loss = nn.functional.cross_entropy(twin(images), digits.train.labels[index])
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(twin.parameters(), grads, strict=True):
                pull = 0.01 * parameter.sign() if parameter.dim() == 4 else torch.zeros(())
                parameter.sub_(0.1 * (grad + pull))
        losses.append(loss.item())
    assert result.loss == pytest.approx(sum(losses) / 2) and result.learning_rate == 0.1
    for (name, after), expected in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(after, expected, msg=name)
    assert not module.training


def test_hooks_see_every_batch_and_divergence_is_an_error(digits: Data) -> None:
    class Count(BatchHooks):
        seen = 0

        def after_backward(self, module: GraphModule) -> None:
            assert all(p.grad is not None for p in module.parameters())
            self.seen += 1

    hooks, ticks = Count(), []
    module = small_network(digits)
    config = TrainConfig(epochs=2, batch_size=40)
    told: dict[str, Any] = {"hooks": hooks, "tick": lambda *tick: ticks.append(tick[:2])}
    list(Training(module, digits, config, **told).run())
    assert hooks.seen == 6 and ticks == [(1, 3), (2, 3), (3, 3)] * 2
    with torch.no_grad():
        next(module.parameters()).fill_(math.nan)
        module.get_parameter("head.weight").fill_(math.nan)
    with pytest.raises(SoulDeployError, match="training diverged: the loss is nan"):
        list(Training(module, digits, TrainConfig(epochs=1)).run())


def test_best_state_keeps_the_first_of_equals() -> None:
    module, best = nn.Linear(1, 1), BestState()
    for value, validation in ((1.0, 0.5), (2.0, 0.8), (3.0, 0.8), (4.0, 0.7)):
        with torch.no_grad():
            module.weight.fill_(value)
        best.offer(module, EpochResult(int(value), 0, 0, validation, 0, 0))
    assert best.take(module).epoch == 2 and module.weight.item() == 2.0


def test_accuracy_counts_and_leaves_the_mode(digits: Data) -> None:
    module = small_network(digits).train()
    found = accuracy(module, digits, digits.test)
    assert module.training
    module.eval()
    with torch.no_grad():
        scores = torch.cat([module(digits.normalise(i[None])) for i in digits.test.images[:360]])
    assert found == pytest.approx((scores.argmax(1) == digits.test.labels).double().mean().item())


class Watching(BatchHooks):
    """What each batch looked like."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def forward(
        self, module: GraphModule, images: Tensor, weight: float = 1.0, *, per_step: bool = False
    ) -> Tensor:
        self.seen.append(images.clone())
        return super().forward(module, images, weight, per_step=per_step)


def test_every_batch_of_every_epoch_is_moved_anew(digits: Data) -> None:
    """All samples are the same image, so that only the moves tell batches apart."""
    same = digits.train.select(torch.zeros(64, dtype=torch.int64))
    data, hooks = replace(digits, train=same), Watching()
    config = TrainConfig(epochs=3, batch_size=32, augment="shift")
    list(Training(small_network(data), data, config, hooks=hooks).run())
    assert len(hooks.seen) == 6
    for one, other in itertools.combinations(hooks.seen, 2):
        assert not torch.equal(one, other)


def augmented(images: Tensor, kind: Augment, random: torch.Generator) -> Tensor:
    moves = draw_moves(len(images), kind, random)
    assert moves is not None
    return moved(images, moves, kind)


@pytest.mark.parametrize("kind", ["shift", "crop_flip", "dvs15", "dvs30"])
def test_all_frames_of_a_sample_move_alike(kind: Augment) -> None:
    """Polarity and time stay: channels that are alike before are alike behind, others differ."""
    one = torch.randint(0, 9, (20, 1, 1, 12, 10)).to(torch.uint8)
    weights = torch.tensor([[1, 2], [3, 5], [7, 11]])[:, :, None, None]
    moves = draw_moves(20, kind, torch.Generator().manual_seed(1))
    assert moves is not None
    found = moved(one * weights.to(torch.uint8), moves, kind)
    alone = moved(one[:, 0], moves, kind)
    assert found.dtype == torch.uint8 and torch.equal(found, alone[:, None] * weights)
    assert (found != one * weights).flatten(1).any(1).sum() > 10


def test_events_are_rolled_turned_and_sheared() -> None:
    """A point to the right of the middle: with the roll, a quarter of a turn, a shear of 45°."""
    image = torch.zeros(3, 1, 5, 5)
    image[:2, :, 2, 4] = 1
    image[2, :, 0, 2] = 1
    moves = torch.tensor([[0.0, 1, 2, 9], [1, 9, 9, 90], [2, 9, 9, 45]])
    found = moved(image, moves, "dvs30").nonzero()[:, 2:].tolist()
    assert found == [[3, 1], [4, 2], [0, 4]]


def test_augmentation_only_moves_and_mirrors() -> None:
    images = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5).repeat(200, 1, 1, 1)
    random = torch.Generator().manual_seed(0)
    assert draw_moves(200, "none", random) is None
    padded = torch.nn.functional.pad(images[0, 0], (2, 2, 2, 2))
    windows = {
        tuple(padded[r : r + 5, c : c + 5].flatten().tolist()) for r in range(5) for c in range(5)
    }
    shifted = {tuple(i.flatten().tolist()) for i in augmented(images, "shift", random)}
    assert shifted <= windows and len(shifted) > 20
    padded = torch.nn.functional.pad(images[0, 0], (4, 4, 4, 4))
    windows = {
        tuple(padded[r : r + 5, c : c + 5].flatten().tolist()) for r in range(9) for c in range(9)
    }
    flipped = {
        tuple(padded[r : r + 5, c : c + 5].flip(1).flatten().tolist())
        for r in range(9)
        for c in range(9)
    }
    found = [tuple(i.flatten().tolist()) for i in augmented(images, "crop_flip", random)]
    assert set(found) <= windows | flipped
    mirrored = sum(image in flipped - windows for image in found)
    assert 60 < mirrored < 140


def plain_simulation(neuron: SpikingNeuron, current: Tensor, static: bool) -> Tensor:
    """The recurrence by autograd, one operation at a time."""
    spec = neuron.spec
    rest = 0.0 if spec.v_reset is None else spec.v_reset
    v = torch.full_like(current if static else current[0], rest)
    spikes = []
    for t in range(neuron.time_steps):
        x = current if static else current[t]
        h = CHARGE[spec.charge](v, x, spec.fixed_constant, rest, spec.v_threshold)
        s = fire_with_surrogate(h, spec.v_threshold, spec.fire, spec.surrogate, 2.0)
        fired = FIRE[spec.fire](h, spec.v_threshold)
        if spec.v_reset is None:
            v = h - fired * spec.reset_target
        else:
            v = torch.where(fired, torch.full_like(h, spec.v_reset), h)
        spikes.append(s)
    return torch.stack(spikes)


SPECS = [
    NeuronSpec(),
    NeuronSpec(tau=1.7, v_reset=None, surrogate="sigmoid", surrogate_alpha=2.0),
    NeuronSpec(tau=3.0, decay_input=False, v_reset=-0.25, fire="ge", v_threshold=0.5),
    NeuronSpec("if", v_reset=None, surrogate="rectangle", surrogate_alpha=2.0),
    NeuronSpec("if", v_reset=0.125),
    NeuronSpec(tau=1.7, v_reset=-0.25, form="spikingjelly"),
    NeuronSpec(tau=1.7, decay_input=False, v_reset=-0.25, form="spikingjelly"),
    NeuronSpec(tau=1.7, decay_input=False, v_reset=None, form="spikingjelly_0"),
    NeuronSpec(tau=10.0, decay_input=False, v_reset=None, form="snntorch"),
    NeuronSpec(tau=10.0, decay_input=False, v_reset=None, v_subtract=0.0, form="snntorch"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_unrolled_neuron_equals_autograd(spec: NeuronSpec, static: bool) -> None:
    torch.manual_seed(0)
    neuron = SpikingNeuron(spec, 5)
    shape = (3, 4, 2, 2) if static else (5, 3, 4, 2, 2)
    current = (torch.randn(shape, dtype=torch.float64) * 2 + 0.5).requires_grad_()
    weight = torch.randn(5, 3, 4, 2, 2, dtype=torch.float64)
    found = neuron.simulate(current, static=static)
    assert type(found.grad_fn).__name__ == "_UnrolledBackward"
    (grad,) = torch.autograd.grad((found * weight).sum(), current)
    expected = plain_simulation(neuron, current, static)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), current)
    assert 0.1 < found.mean().item() < 0.9
    assert torch.equal(found, expected)
    torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_unrolled_neuron_fires_and_reports_the_same_bits(spec: NeuronSpec, static: bool) -> None:
    torch.manual_seed(1)
    neuron = SpikingNeuron(spec, 6)
    current = torch.randn((200,) if static else (6, 200))[..., None, :] * 2
    seen: list[list[Tensor]] = [[], []]
    found = neuron.simulate(
        current.clone().requires_grad_(),
        static=static,
        observe=lambda t, s, v: seen[0].extend((s.detach(), v.detach())),
    )
    with torch.no_grad():
        expected = neuron.simulate(
            current, static=static, observe=lambda t, s, v: seen[1].extend((s, v))
        )
    assert torch.equal(found, expected)
    assert len(seen[0]) == 12
    for mine, reference in zip(*seen, strict=True):
        assert torch.equal(mine, reference)


def test_learned_decay_still_gets_its_gradient(digits: Data) -> None:
    neuron = SpikingNeuron(NeuronSpec("plif"), 3)
    spikes = neuron.simulate(torch.randn(4, 6).requires_grad_(), static=True)
    spikes.sum().backward()  # type: ignore[no-untyped-call]
    assert neuron.w.grad is not None and neuron.w.grad.item() != 0
