from __future__ import annotations

import pytest
import torch

from koffkit.method.restoring import NeuronSums, choose_neurons, mixed

SCORES = torch.tensor([[5.0, 9.0, 1.0, 4.0], [0.3, 0.2, 8.0, 0.1]])
REMOVED = torch.tensor([[True, False, True, True], [True, True, False, True]])


def places(chosen: dict[int, torch.Tensor]) -> dict[int, list[int]]:
    return {layer: own.tolist() for layer, own in chosen.items()}


def test_uniform_gives_every_layer_its_best_removed_neurons() -> None:
    assert places(choose_neurons(SCORES, REMOVED, 4, "uniform")) == {0: [0, 3], 1: [0, 1]}


def test_ragged_goes_where_the_scores_are_highest() -> None:
    assert places(choose_neurons(SCORES, REMOVED, 3, "ragged")) == {0: [0, 2, 3]}
    assert places(choose_neurons(SCORES, REMOVED, 4, "ragged")) == {0: [0, 2, 3], 1: [0]}


def test_a_share_of_the_scores_is_the_domains_own() -> None:
    scores = {"a": torch.tensor([[4.0]]), "b": torch.tensor([[0.0]])}
    assert mixed(scores, 0.5)["a"].item() == 3.0
    assert mixed(scores, 1.0)["b"].item() == 0.0


def test_sensitivity_is_the_geometric_mean_of_two_estimates() -> None:
    sums = NeuronSums.zeros(1, 1, torch.device("cpu"))
    sums.squares += 8.0
    sums.slopes += 2.0
    sums.products += 18.0
    sums.tokens = 2
    assert sums.sensitivity().item() == pytest.approx((4.0 * 1.0 * 9.0) ** 0.5)
    assert sums.activation(torch.tensor([[3.0]])).item() == pytest.approx(6.0)
