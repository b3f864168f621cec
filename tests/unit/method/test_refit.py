from __future__ import annotations

import torch

from koffkit.method.refit import refit, refit_memory, whole_weight
from koffkit.method.repair import Means, output_error

D, U, TOKENS = 5, 12, 400
KEPT = torch.arange(U) < 7
NONE = torch.tensor([], dtype=torch.long)
RESTORED = {"a": torch.tensor([8, 10]), "b": torch.tensor([7])}


def text(seed: int) -> torch.Tensor:
    """Activations [TOKENS, U] that depend on each other."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, U, generator=draw, dtype=torch.float64) @ torch.randn(
        U, U, generator=draw, dtype=torch.float64
    )


ACTIVATIONS = {"a": text(1), "b": text(2)}
WEIGHT = torch.randn(D, U, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
WANTED = {
    domain: own @ WEIGHT.T + torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(4))
    for domain, own in ACTIVATIONS.items()
}
"""What the MLP should write: not only what its own neurons would, but what earlier layers lost as well."""


def means_of(domain: str) -> Means:
    own, wanted = ACTIVATIONS[domain], WANTED[domain]
    squares = own.T @ own / TOKENS, wanted.mean(0), wanted.T @ own / TOKENS, wanted.square().sum() / TOKENS
    return Means(own.mean(0), *squares)


MOMENTS = {domain: means_of(domain) for domain in ACTIVATIONS}


def test_without_memories_it_is_least_squares_on_all_text() -> None:
    fitted = refit(WEIGHT, KEPT, MOMENTS, dict.fromkeys(MOMENTS, NONE), 1e-12)
    both = torch.cat(list(ACTIVATIONS.values()))
    expected = torch.linalg.lstsq(both[:, KEPT], torch.cat(list(WANTED.values()))).solution.T
    assert torch.allclose(fitted.backbone, expected, atol=1e-6)


def test_backbone_and_memories_are_the_best_together() -> None:
    """Against one least-squares problem in which each domain's restored neurons are unknowns of their own."""
    fitted = refit(WEIGHT, KEPT, MOMENTS, RESTORED, 1e-12)
    width = int(KEPT.sum())
    rows, targets, first = [], [], width
    for domain, own in ACTIVATIONS.items():
        row = torch.zeros(TOKENS, width + 3, dtype=torch.float64)
        row[:, :width] = own[:, KEPT]
        row[:, first : first + len(RESTORED[domain])] = own[:, RESTORED[domain]]
        first += len(RESTORED[domain])
        rows.append(row)
        targets.append(WANTED[domain])
    best = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T
    assert torch.allclose(fitted.backbone, best[:, :width], atol=1e-5)
    assert torch.allclose(fitted.memories["a"], best[:, width : width + 2], atol=1e-5)
    assert torch.allclose(fitted.memories["b"], best[:, width + 2 :], atol=1e-5)


def test_the_error_is_that_of_the_outputs() -> None:
    fitted = refit(WEIGHT, KEPT, MOMENTS, RESTORED, 1e-3)
    for domain, own in ACTIVATIONS.items():
        written = own[:, KEPT] @ fitted.backbone.T + own[:, RESTORED[domain]] @ fitted.memories[domain].T
        expected = (WANTED[domain] - written).square().sum(1).mean()
        whole = whole_weight(WEIGHT.shape, KEPT, fitted, domain, RESTORED[domain])
        error = output_error(whole, MOMENTS[domain])
        assert abs(error - float(expected)) < 1e-6 * float(expected)


def test_strong_damping_leaves_the_weights_as_they_are() -> None:
    fitted = refit(WEIGHT, KEPT, MOMENTS, RESTORED, 1e12)
    assert torch.allclose(fitted.backbone, WEIGHT[:, KEPT], atol=1e-6)
    assert torch.allclose(fitted.memories["a"], WEIGHT[:, RESTORED["a"]], atol=1e-6)


def test_a_memory_alone_is_fitted_to_the_backbone_that_there_is() -> None:
    """What the kept columns do not write is regressed on the restored neurons; the kept ones do not move."""
    backbone = refit(WEIGHT, KEPT, MOMENTS, dict.fromkeys(MOMENTS, NONE), 1e-12).backbone
    weight = WEIGHT.clone()
    weight[:, KEPT] = backbone
    own, restored = ACTIVATIONS["a"], RESTORED["a"]
    left = WANTED["a"] - own[:, KEPT] @ backbone.T
    expected = torch.linalg.lstsq(own[:, restored], left).solution.T
    found = refit_memory(weight, KEPT, MOMENTS["a"], restored, 1e-12)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, WEIGHT[:, restored], atol=1e-2)
