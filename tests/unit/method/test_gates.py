from __future__ import annotations

import math

import pytest
import torch

from koffkit.method.gates import (
    active_probability,
    initial_log_alpha,
    mean_gate,
    sample,
    straight_through,
)
from koffkit.recipe.load import load_recipe


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_active_probability_is_the_share_of_samples_that_are_not_zero(log_alpha: float) -> None:
    alphas = torch.full((200_000,), log_alpha)
    drawn = sample(alphas, 2 / 3, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn > 0).float().mean().item() == pytest.approx(
        active_probability(alphas[:1], 2 / 3).item(), abs=5e-3
    )


@pytest.mark.parametrize("temperature", [0.1, 2 / 3, 2.0])
@pytest.mark.parametrize("log_alpha", [-4.0, 0.5, 3.0])
def test_the_mean_gate_is_the_mean_of_samples(log_alpha: float, temperature: float) -> None:
    drawn = sample(torch.full((400_000,), log_alpha), temperature, torch.Generator().manual_seed(1))
    assert drawn.mean().item() == pytest.approx(mean_gate(log_alpha, temperature), abs=2.5e-3)


@pytest.mark.parametrize("temperature", [0.01, 2 / 3, 2.0, 100.0])
@pytest.mark.parametrize("log_alpha", [-30.0, -2.0, 0.7, 5.0])
def test_the_mean_gate_is_exact(log_alpha: float, temperature: float) -> None:
    """Against the midpoint rule with a million intervals."""
    levels = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    stretched = (levels + 0.1) / 1.2
    exceeds = torch.sigmoid(log_alpha - temperature * stretched.logit())
    assert mean_gate(log_alpha, temperature) == pytest.approx(exceeds.mean().item(), abs=1e-8)


@pytest.mark.parametrize("temperature", [0.5, 2 / 3, 2.0, 100.0])
@pytest.mark.parametrize("mean", [1e-9, 0.27, 0.95, 0.9999999999999999])
def test_gates_start_with_the_mean_asked_for(mean: float, temperature: float) -> None:
    assert mean_gate(initial_log_alpha(mean, temperature), temperature) == pytest.approx(mean, abs=1e-12)


def test_the_start_of_the_quickstart_is_what_it_was_when_the_probability_of_being_open_was_given() -> None:
    before = math.log(0.95 / 0.05) + 2 / 3 * math.log(0.1 / 1.1)
    pinned = load_recipe("quickstart").recipe.mask
    start = initial_log_alpha(pinned.init_open, pinned.start_temperature)
    assert torch.tensor(start).equal(torch.tensor(before))  # in float32, as the gates hold it


def test_noise_depends_on_the_generator_alone() -> None:
    alphas = torch.zeros(50)
    first, again, other = (sample(alphas, 0.5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gradient_reaches_log_alpha() -> None:
    alphas = torch.zeros(1000, requires_grad=True)
    sample(alphas, 2 / 3, torch.Generator().manual_seed(0)).sum().backward()
    assert alphas.grad is not None
    assert (alphas.grad > 0).float().mean() > 0.5
    assert (alphas.grad < 0).sum() == 0


def test_shut_gates_learn_straight_through() -> None:
    hard, scores = torch.tensor([1.0, 0.0]), torch.tensor([3.0, -2.0], requires_grad=True)
    gates = straight_through(hard, scores)
    assert gates.tolist() == [1.0, 0.0]
    (gates * torch.tensor([5.0, 7.0])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [5.0, 7.0]
