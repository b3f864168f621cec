from __future__ import annotations

import math

import pytest
import torch

from koffkit.analysis.lape import lape, pruned_by_specificity, rank_correlation


def test_a_neuron_of_one_domain_has_no_entropy() -> None:
    firing = {"de": torch.tensor([[0.5, 0.2, 0.0]]), "fr": torch.tensor([[0.0, 0.2, 0.0]])}
    entropy = lape(firing)[0]
    assert entropy[:2].tolist() == pytest.approx([0.0, math.log(2)])
    assert entropy[2].isnan()


def test_how_often_is_too_little_to_say_which() -> None:
    """Only the shares of the domains count, not how often a neuron fires."""
    firing = {"de": torch.tensor([[0.9, 0.009]]), "fr": torch.tensor([[0.3, 0.003]])}
    low, high = lape(firing)[0].tolist()
    assert low == pytest.approx(high)


def test_lift_and_protection() -> None:
    entropy = torch.arange(20.0).reshape(2, 10)
    entropy[1, 9] = math.nan
    pruned = torch.zeros(2, 10, dtype=torch.bool)
    pruned[0, :3] = True  # the specific ones
    pruned[1, 8] = True  # the most general one
    found = pruned_by_specificity(entropy, pruned, share=0.15)
    assert (found["neurons"], found["silent"]) == (19, 1)
    assert found["pruned_specific"] == 1.0
    assert found["pruned_general"] == pytest.approx(1 / 3)
    assert found["lift"] == pytest.approx(19 / 4)
    assert found["protection"] == pytest.approx(19 / 12)
    assert found["pruned_by_rank"][:4] == [1.0, 1.0, 1.0, 0.0]


def test_nothing_pruned_is_neither_lifted_nor_protected() -> None:
    found = pruned_by_specificity(torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert (found["lift"], found["protection"]) == (1.0, 1.0)


def test_rank_correlation_leaves_out_what_is_not_known() -> None:
    first = torch.tensor([[1.0, 2.0, 3.0, math.nan]])
    assert rank_correlation(first, torch.tensor([[10.0, 20.0, 500.0, 1.0]])) == pytest.approx(1.0)
    assert rank_correlation(first, torch.tensor([[3.0, 2.0, 1.0, 9.0]])) == pytest.approx(-1.0)
