from __future__ import annotations

import json

import pytest
import torch

from koffkit.method.controller import (
    HingeController,
    LagrangianController,
    PacedController,
    ProgressiveController,
    make_controller,
)


def test_lambda_grows_while_a_layer_is_above_its_target_and_shrinks_when_all_are_below() -> None:
    controller = HingeController(1.0, rise_steps=10)
    target = torch.tensor([0.5, 0.5])
    controller.update(torch.tensor([0.4, 0.7]), target)
    assert controller.weight == pytest.approx(1000 ** (1 / 10))
    controller.update(torch.tensor([0.4, 0.501]), target)
    assert controller.weight == pytest.approx(1000 ** (1 / 10))
    controller.update(torch.tensor([0.4, 0.4]), target)
    assert controller.weight == pytest.approx(1.0)
    for _ in range(100):
        controller.update(torch.tensor([0.0, 0.0]), target)
    assert controller.weight > 0


def test_penalty_ignores_layers_below_their_target() -> None:
    controller = HingeController(2.0, rise_steps=10)
    penalty = controller.penalty(torch.tensor([0.1, 0.7]), torch.tensor([0.5, 0.5]))
    assert penalty.item() == pytest.approx(2.0 * 0.2 / 2)


def test_a_progressive_target_sinks_to_the_real_one() -> None:
    controller = ProgressiveController(HingeController(1.0, 10), ramp_steps=4)
    target, active = torch.tensor([0.2]), torch.tensor([0.7])
    penalties = []
    for _ in range(6):
        penalties.append(controller.penalty(active, target).item() / controller.strength)
        controller.update(active, target)
    assert penalties == pytest.approx([0.0, 0.1, 0.3, 0.5, 0.5, 0.5])


def test_a_fixed_lambda_stays() -> None:
    controller = make_controller("hinge", lambda_init=15, lambda_rate=1, rise_steps=4, scaling="fixed")
    for active in (0.9, 0.1, 0.9):
        controller.update(torch.tensor([active]), torch.tensor([0.5]))
        assert controller.strength == 15


def test_a_two_sided_progressive_target_also_pulls_gates_open() -> None:
    target, below = torch.tensor([0.5]), torch.tensor([0.1])
    penalties = {}
    for kind in ("progressive", "progressive_two_sided"):
        controller = make_controller(kind, lambda_init=2, lambda_rate=1, rise_steps=1, scaling="fixed")
        penalties[kind] = controller.penalty(below, target).item()
    assert penalties == pytest.approx({"progressive": 0.0, "progressive_two_sided": 2 * 0.4})


def test_a_paced_lambda_grows_behind_the_pace_and_shrinks_ahead_of_it_for_each_target_alone() -> None:
    controller = PacedController(1.0, rise_steps=10)
    target = torch.tensor([0.5, 0.5])
    controller.update(torch.tensor([1.0, 1.0]), target)  # the pace is now .95
    first = list(controller.weights)
    controller.update(torch.tensor([0.95, 0.8]), target)  # .9
    assert controller.weights[0] == pytest.approx(first[0] * 1000 ** (2 / 10))
    assert controller.weights[1] == pytest.approx(1.0)
    controller.update(torch.tensor([0.84, 0.8]), target)  # .85
    assert controller.weights == pytest.approx([first[0], 1.0])


def test_a_paced_hinge_holds_from_both_sides_once_the_target_is_due() -> None:
    controller = PacedController(1.0, rise_steps=2)
    target, below = torch.tensor([0.5]), torch.tensor([0.3])
    controller.update(torch.tensor([1.0]), target)
    assert controller.penalty(below, target).item() == 0.0
    controller.update(below, target)
    assert controller.penalty(below, target).item() == pytest.approx(0.2 * controller.strength)
    controller.weights = [2.0]
    controller.update(below, target)
    assert controller.strength > 2.0
    for _ in range(50):
        controller.update(below, target)
    assert controller.strength == 1e4
    for _ in range(50):
        controller.update(target, target)
    assert controller.strength == 1.0


def test_a_lagrangian_pushes_from_both_sides_and_waits_for_its_warm_up() -> None:
    controller = LagrangianController(rate=1.0, warmup_steps=1)
    target = torch.tensor([0.5, 0.5])
    assert (
        controller.penalty(torch.tensor([0.9, 0.1]), target).item() == 0.0
    )  # nothing has been learned of the constraint yet
    controller.update(torch.tensor([0.9, 0.1]), target)
    assert controller.linear == pytest.approx([0.4, -0.4])
    active = torch.tensor([0.9, 0.1], requires_grad=True)
    controller.penalty(active, target).backward()
    assert (
        active.grad[0] > 0 > active.grad[1]
    )  # gradient descent closes gates in the first and opens them in the second
    slow = LagrangianController(rate=1.0, warmup_steps=100)
    slow.update(torch.tensor([0.99]), torch.tensor([0.5]))
    assert abs(slow.linear[0]) < 0.02


@pytest.mark.parametrize(
    ("kind", "scaling", "expected"),
    [
        ("hinge", "auto", HingeController),
        ("hinge", "paced", PacedController),
        ("progressive", "paced", ProgressiveController),
        ("lagrangian", "paced", LagrangianController),
    ],
)
def test_a_controller_goes_on_from_its_state(kind: str, scaling: str, expected: type) -> None:
    def make() -> object:
        return make_controller(kind, lambda_init=1.5, lambda_rate=0.7, rise_steps=6, scaling=scaling)

    target, values = torch.tensor([0.4, 0.6]), torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    one = make()
    for active in values[:5]:
        one.update(active, target)
    other = make()
    other.load(json.loads(json.dumps(one.state())))
    for active in values[5:]:
        assert torch.equal(one.penalty(active, target), other.penalty(active, target))
        one.update(active, target)
        other.update(active, target)
    assert one.strength == other.strength
    assert type(one) is expected
