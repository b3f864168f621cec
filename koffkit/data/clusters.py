"""Grouping documents by their embeddings and naming the groups by their typical words. Pure arithmetic.

Legend: N documents, D embedding size, C clusters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
RESTARTS, ROUNDS = 8, 100
LEAST_SHARE = 0.02
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Clustering:
    """Spherical k-means on standardised embeddings; unstandardised, a few large dimensions would dominate.

    Args:
        mean, std: [D] of the fitted documents. centres: [C, D], unit length.
    """

    mean: Array
    std: Array
    centres: Array

    def assign(self, embeddings: Array) -> NDArray[np.int64]:
        """The cluster of each document, [N]."""
        clusters: NDArray[np.int64] = (
            _standardised(embeddings, self.mean, self.std) @ self.centres.T
        ).argmax(-1)
        return clusters


def fit_clusters(embeddings: Array, count: int, seed: int) -> Clustering:
    """Cluster embeddings; the best of several k-means++ starts.

    Args:
        embeddings: [N, D], N at least `count`.
        count: number of clusters, C.
        seed: of the starts.
    """
    mean, std = embeddings.mean(0), embeddings.std(0) + 1e-6
    points = _standardised(embeddings, mean, std)
    rng = np.random.default_rng(seed)
    best, best_fit = points[:count], -np.inf
    for _ in range(RESTARTS):
        centres = _spread_start(points, count, rng)
        for _ in range(ROUNDS):
            moved = _centres(points, (points @ centres.T).argmax(-1), centres)
            if np.allclose(moved, centres, atol=1e-6):
                break
            centres = moved
        fit = float((points @ centres.T).max(-1).sum())
        if fit > best_fit:
            best, best_fit = centres, fit
    return Clustering(mean, std, best)


def _standardised(embeddings: Array, mean: Array, std: Array) -> Array:
    scaled = (embeddings - mean) / std
    points: Array = scaled / np.maximum(np.linalg.norm(scaled, axis=-1, keepdims=True), 1e-8)
    return points


def _spread_start(points: Array, count: int, rng: np.random.Generator) -> Array:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centre is drawn with a probability that grows
    with its distance to the nearest centre."""
    chosen = [int(rng.integers(len(points)))]
    while len(chosen) < count:
        distance = np.maximum(1 - (points @ points[chosen].T).max(-1), 0).astype(np.float64) + 1e-12
        chosen.append(int(rng.choice(len(points), p=distance / distance.sum())))
    return points[chosen]


def _centres(points: Array, labels: NDArray[np.int64], before: Array) -> Array:
    members = (labels[None, :] == np.arange(len(before))[:, None]).astype(np.float32)
    sums = members @ points
    lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
    return np.where(lengths > 1e-8, sums / np.maximum(lengths, 1e-8), before).astype(np.float32)


class Words:
    """Counts in how many documents of each cluster a word occurs."""

    def __init__(self, count: int) -> None:
        self.documents = [0] * count
        self.counts: list[Counter[str]] = [Counter() for _ in range(count)]

    def add(self, text: str, cluster: int) -> None:
        self.documents[cluster] += 1
        self.counts[cluster].update(set(_WORD.findall(text.lower())))

    def typical(self, cluster: int, count: int = 8) -> list[str]:
        """Words that are far more frequent in this cluster than in the others, the most distinctive first."""
        own, size = self.counts[cluster], max(1, self.documents[cluster])
        rest = max(1, sum(self.documents) - size)
        scores = {}
        for word, times in own.items():
            if times >= max(2, LEAST_SHARE * size):
                elsewhere = sum(counts[word] for index, counts in enumerate(self.counts) if index != cluster)
                scores[word] = times / size * log((times / size + 1e-3) / (elsewhere / rest + 1e-3))
        return sorted(scores, key=lambda word: (-scores[word], word))[:count]


def name_clusters(typical: Sequence[Sequence[str]], taken: Iterable[str] = ()) -> list[str]:
    """A valid, unique domain name for each cluster, from its two most typical words."""
    used = set(taken)
    names = []
    for index, words in enumerate(typical, 1):
        plain = [word for word in map(_plain, words) if word][:2]
        name = stem = "-".join(plain) or f"cluster-{index}"
        number = 2
        while name in used:
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        names.append(name)
    return names


def _plain(word: str) -> str:
    """The ASCII letters of a word; empty if it has none."""
    return unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
