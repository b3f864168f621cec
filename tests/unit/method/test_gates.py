from __future__ import annotations

import pytest
import torch

from koffkit.method.controller import HingeController
from koffkit.method.gates import active_probability, initial_log_alpha, sample, top_units


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_active_probability_is_the_share_of_samples_that_are_not_zero(log_alpha: float) -> None:
    alphas = torch.full((200_000,), log_alpha)
    drawn = sample(alphas, 2 / 3, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn > 0).float().mean().item() == pytest.approx(active_probability(alphas[:1], 2 / 3).item(), abs=5e-3)


def test_initial_log_alpha_gives_the_probability_asked_for() -> None:
    assert active_probability(torch.tensor(initial_log_alpha(0.95, 0.5)), 0.5).item() == pytest.approx(0.95)


def test_noise_depends_on_the_generator_alone() -> None:
    alphas = torch.zeros(50)
    first, again, other = (sample(alphas, 0.5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gradient_reaches_log_alpha() -> None:
    alphas = torch.zeros(1000, requires_grad=True)
    sample(alphas, 2 / 3, torch.Generator().manual_seed(0)).sum().backward()
    assert alphas.grad is not None and (alphas.grad > 0).float().mean() > 0.5 and (alphas.grad < 0).sum() == 0


def test_top_units_keeps_the_count_and_breaks_ties_by_index() -> None:
    keep = top_units(torch.tensor([[0.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]), 2)
    assert keep.tolist() == [[False, True, False, True], [True, True, False, False]]


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
