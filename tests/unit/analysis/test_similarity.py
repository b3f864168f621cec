from __future__ import annotations

import pytest
import torch

from koffkit.analysis.similarity import centroid_cosine, knn_overlap, linear_cka


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


def test_cka_sees_neither_rotation_nor_scale_nor_shift(points: torch.Tensor) -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(points, 3 * points @ rotation + 5) == pytest.approx(1.0)
    other = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    assert linear_cka(points, other) < 0.5


def test_neighbours_that_stay_and_neighbours_that_go(points: torch.Tensor) -> None:
    assert knn_overlap(points, 2 * points, 4) == 1.0
    shuffled = points[torch.randperm(30, generator=torch.Generator().manual_seed(3))]
    assert knn_overlap(points, shuffled, 4) < 0.5


def test_a_text_is_no_neighbour_of_its_own() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    assert knn_overlap(first, second, 1) == pytest.approx(0.0, abs=1e-12)


def test_centroids_are_compared_by_domain() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    assert centroid_cosine(first, second, torch.tensor([0, 0, 1])) == pytest.approx(0.0)
    assert centroid_cosine(first, first, torch.tensor([0, 0, 1])) == pytest.approx(1.0)
