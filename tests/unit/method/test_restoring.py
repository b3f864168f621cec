from __future__ import annotations

import pytest
import torch

from koffkit.method.restoring import (
    NeuronSums,
    choose_neurons,
    chosen_table,
    mixed,
    prices,
    scores_for_memories,
)

SCORES = torch.tensor([[5.0, 9.0, 1.0, 4.0], [0.3, 0.2, 8.0, 0.1]])
REMOVED = torch.tensor([[True, False, True, True], [True, True, False, True]])


def places(chosen: dict[int, torch.Tensor]) -> dict[int, list[int]]:
    return {layer: own.tolist() for layer, own in chosen.items()}


def test_uniform_gives_every_layer_its_best_removed_neurons() -> None:
    assert places(choose_neurons(SCORES, REMOVED, 4, "uniform")) == {0: [0, 3], 1: [0, 1]}


def test_ragged_goes_where_the_scores_are_highest() -> None:
    assert places(choose_neurons(SCORES, REMOVED, 3, "ragged")) == {0: [0, 2, 3]}
    assert places(choose_neurons(SCORES, REMOVED, 4, "ragged")) == {0: [0, 2, 3], 1: [0]}


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_choice_as_a_table_has_its_exact_size(layout: str, count: int) -> None:
    table = chosen_table(SCORES, REMOVED, count, layout)
    assert int(table.sum()) == count
    assert not bool((table & ~REMOVED).any())
    chosen = places(choose_neurons(SCORES, REMOVED, count, layout))
    assert {layer: own.nonzero().flatten().tolist() for layer, own in enumerate(table) if own.any()} == chosen


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


def cost(scores: dict[str, torch.Tensor], worth: torch.Tensor, kept: int, count: int) -> float:
    """The scores of what neither the backbone nor the domain's memory has, summed over the domains."""
    removed = ~top(worth, kept)
    total = 0.0
    for own in scores.values():
        lost = removed.clone()
        for layer, places in choose_neurons(own, removed, count, "ragged").items():
            lost[layer, places] = False
        total += float(own[lost].sum())
    return total


def top(scores: torch.Tensor, kept: int) -> torch.Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().topk(kept).indices] = True
    return mask.view_as(scores)


def test_what_one_domain_needs_goes_and_comes_back_with_its_memory() -> None:
    """Two neurons that all domains need a little are kept before one that a single domain needs much."""
    scores = {
        "a": torch.tensor([[9.0, 0.0, 3.0, 3.0, 1.0]]),
        "b": torch.tensor([[0.0, 8.0, 3.0, 3.0, 1.0]]),
    }
    together = torch.stack(list(scores.values())).sum(0)
    assert top(together, 2)[0].tolist() == [True, True, False, False, False]
    worth = scores_for_memories(scores, None, lambda table: top(table, 2), 1, "ragged")
    assert top(worth, 2)[0].tolist() == [False, False, True, True, False]
    assert (cost(scores, together, 2, 1), cost(scores, worth, 2, 1)) == (8.0, 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_less_is_lost_than_by_the_sum_of_the_scores(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(3, 40, generator=generator).pow(4)
    scores = {name: common * torch.rand(3, 40, generator=generator).pow(2) for name in "abc"}
    together = torch.stack(list(scores.values())).sum(0)
    worth = scores_for_memories(scores, None, lambda table: top(table, 80), 12, "ragged")
    assert cost(scores, worth, 80, 12) < 0.97 * cost(scores, together, 80, 12)


def test_what_general_text_needs_has_no_price() -> None:
    """The first neuron is cheap for the domain, whose memory gives it back, and dear for all other text."""
    scores, general = {"a": torch.tensor([[5.0, 4.0, 1.0]])}, torch.tensor([[0.0, 0.0, 3.5]])
    worth = scores_for_memories(scores, general, lambda table: top(table, 1), 1, "ragged")
    assert worth[0].topk(1).indices.tolist() == [2]
    worth = scores_for_memories(scores, None, lambda table: top(table, 1), 1, "ragged")
    assert worth[0].topk(1).indices.tolist() == [0]


def test_prices_are_those_of_a_layer_or_of_all() -> None:
    given = torch.tensor([[True, False, False, True], [True, True, False, False]])
    assert prices(SCORES, REMOVED, given, "uniform").flatten().tolist() == pytest.approx([2.5, 0.15])
    assert prices(SCORES, REMOVED, given, "ragged").flatten().tolist() == pytest.approx([0.6, 0.6])
    assert prices(SCORES, REMOVED, REMOVED, "uniform").flatten().tolist() == pytest.approx([0.5, 0.05])
    none = torch.zeros_like(REMOVED)
    assert prices(SCORES, none, none, "uniform").flatten().tolist() == [torch.inf, torch.inf]
