from __future__ import annotations

import pytest
import torch

from koffkit.method.gates import active_probability, initial_log_alpha, sample


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_active_probability_is_the_share_of_samples_that_are_not_zero(log_alpha: float) -> None:
    alphas = torch.full((200_000,), log_alpha)
    drawn = sample(alphas, 2 / 3, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn > 0).float().mean().item() == pytest.approx(
        active_probability(alphas[:1], 2 / 3).item(), abs=5e-3
    )


def test_initial_log_alpha_gives_the_probability_asked_for() -> None:
    assert active_probability(torch.tensor(initial_log_alpha(0.95, 0.5)), 0.5).item() == pytest.approx(0.95)


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
