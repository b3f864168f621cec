from __future__ import annotations

import numpy as np
import pytest

from koffkit.data.clusters import Words, fit_clusters, name_clusters


def blobs(count: int, each: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Groups that differ in small dimensions, beside one large dimension that is noise."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(count, 12))
    labels = np.repeat(np.arange(count), each)
    points = centres[labels] + draw.normal(size=(len(labels), 12)) * 0.25
    points[:, 0] = draw.normal(size=len(labels)) * 50
    order = draw.permutation(len(labels))
    return points[order].astype(np.float32), labels[order]


def purity(found: np.ndarray, labels: np.ndarray) -> float:
    return sum(np.bincount(labels[found == k]).max() for k in set(found.tolist())) / len(labels)


@pytest.mark.parametrize("count", [2, 5])
def test_groups_are_found_whatever_the_scale_of_a_dimension(count: int) -> None:
    points, labels = blobs(count)
    clusters = fit_clusters(points, count, seed=0)
    assert purity(clusters.assign(points), labels) >= 0.97
    half = fit_clusters(points[::2], count, seed=0)
    assert purity(half.assign(points[1::2]), labels[1::2]) >= 0.97


def test_the_seed_decides() -> None:
    points, _ = blobs(5)
    first, again = (fit_clusters(points, 5, seed=3).centres for _ in range(2))
    np.testing.assert_array_equal(first, again)
    noise = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    assert not np.allclose(fit_clusters(noise, 4, seed=1).centres, fit_clusters(noise, 4, seed=2).centres)


def test_typical_words_are_frequent_here_and_rare_elsewhere() -> None:
    words = Words(2)
    for _ in range(10):
        words.add("the river and the stone", 0)
        words.add("the lamp and the cloud", 1)
    words.add("the river once", 1)
    words.add("misprint the river", 0)
    assert words.typical(0)[:2] == ["stone", "river"] and "misprint" not in words.typical(0)
    assert set(words.typical(1)[:2]) == {"lamp", "cloud"}


def test_names_are_valid_unique_and_not_reserved() -> None:
    names = name_clusters([["año", "für"], ["ano", "fur"], [], ["auto"], ["мир"]], taken={"auto"})
    assert names == ["ano-fur", "ano-fur-2", "cluster-3", "auto-2", "cluster-5"]
