from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from koffkit.method.losses.base import Loss, Objective
from koffkit.method.losses.chunked import training_loss
from koffkit.method.losses.cross_entropy import cross_entropy
from koffkit.method.losses.full import full_kl
from koffkit.method.losses.top_k import TopK, coarse_kl, targets_of
from koffkit.recipe.distill import Distill


def reference(student: Tensor, teacher: Tensor, top: TopK) -> Tensor:
    """KL of the coarsened distributions, written out token by token."""
    rows = []
    for s, t in zip(student.log_softmax(-1), teacher.log_softmax(-1), strict=True):
        order = t.exp().argsort(descending=True)[: top.count]
        if top.top_p is not None:
            mass = t.exp()[order].cumsum(0)
            order = order[: int((mass < top.top_p).sum()) + 1]
        rest = torch.ones_like(t, dtype=torch.bool)
        rest[order] = False
        p, q = t.exp(), s.exp()
        told = (p[order] * (t[order] - s[order])).sum()
        rows.append(told + p[rest].sum() * (p[rest].sum().log() - q[rest].sum().log()))
    return torch.stack(rows)


def named(loss: str, **options: object) -> Objective:
    return Objective.named(loss, Distill(top_k=6, **options))


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 60, generator=generator).double() * 3, torch.randn(
        7, 60, generator=generator
    ).double() * 3


@pytest.mark.parametrize("top", [TopK(5), TopK(30), TopK(30, 0.6), TopK(59, 0.98)])
def test_value_and_gradient_equal_autograd_of_the_definition(
    logits: tuple[Tensor, Tensor], top: TopK
) -> None:
    student, teacher = logits
    leaf = student.clone().requires_grad_()
    expected = reference(leaf, teacher, top)
    expected.sum().backward()
    kl, _, gradient = coarse_kl(student, targets_of(teacher, top.count), top)
    torch.testing.assert_close(kl.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), leaf.grad, atol=1e-6, rtol=1e-5)


def test_all_tokens_give_the_full_divergence(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    full = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(
        -1
    )
    torch.testing.assert_close(
        coarse_kl(student, targets_of(teacher, 10_000), TopK(10_000))[0].double(), full, atol=1e-5, rtol=1e-5
    )


def test_coarsening_never_exceeds_the_full_divergence(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    full, coarse = (coarse_kl(student, targets_of(teacher, k), TopK(k))[0] for k in (59, 4))
    assert bool((coarse <= full + 1e-6).all()) and bool((coarse >= 0).all())


def test_equal_distributions_have_no_loss_and_no_gradient(logits: tuple[Tensor, Tensor]) -> None:
    kl, _, gradient = coarse_kl(logits[0], targets_of(logits[0] + 3.0, 10), TopK(10))
    assert kl.abs().max() < 1e-6 and gradient.abs().max() < 1e-6


def test_coverage_takes_as_few_tokens_as_needed() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).log()
    for coverage, covered in ((0.4, 0.5), (0.5, 0.5), (0.6, 0.8), (0.85, 0.9)):
        mass = coarse_kl(torch.zeros(1, 5), targets_of(teacher, 4), TopK(4, coverage))[1]
        assert mass.item() == pytest.approx(covered, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    head, teacher = torch.randn(40, 8, generator=generator), torch.randn(10, 8, generator=generator)
    student = torch.randn(10, 8, generator=generator, requires_grad=True)
    loss, covered, terms = training_loss(student, teacher, None, head, named("top_k"), chunk)
    (loss * 2).backward()
    plain = student.detach().requires_grad_()
    expected = reference(F.linear(plain, head), F.linear(teacher, head), TopK(6)).mean()
    (expected * 2).backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.grad, plain.grad, atol=1e-5, rtol=1e-4)
    assert 0 < covered.item() < 1 and terms["kl"] == loss


def test_full_kl_and_cross_entropy_equal_autograd(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    labels = torch.arange(7) * 5
    leaf = student.clone().requires_grad_()
    for (value, gradient), expected in (
        (
            full_kl(student, teacher),
            F.kl_div(leaf.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(
                -1
            ),
        ),
        (cross_entropy(student, labels), F.cross_entropy(leaf, labels, reduction="none")),
    ):
        (wanted,) = torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(value.double(), expected.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient.double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("blend", [0.2, 0.7])
def test_blended_is_the_weighted_sum_of_both(blend: float) -> None:
    generator = torch.Generator().manual_seed(1)
    head, teacher = torch.randn(40, 8, generator=generator), torch.randn(10, 8, generator=generator)
    labels = torch.arange(10)

    def run(objective: Objective) -> tuple[Tensor, Tensor]:
        student = torch.randn(10, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
        loss, _, _ = training_loss(student, teacher, labels, head, objective, 4)
        loss.backward()
        return loss.detach(), student.grad

    kl, ce = run(named("top_k")), run(named("cross_entropy"))
    for blended, a, b in zip(run(named("blended", blend=blend)), kl, ce, strict=True):
        torch.testing.assert_close(blended, a * (1 - blend) + b * blend)
    assert not torch.allclose(kl[1], ce[1])


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_loss_without_a_closed_form_is_differentiated_chunk_by_chunk(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    head, teacher = torch.randn(40, 8, generator=generator), torch.randn(10, 8, generator=generator)
    sizes = []

    def per_token(student: Tensor, teacher: Tensor | None, labels: Tensor | None, options: object) -> Tensor:
        assert teacher is not None and labels is None
        sizes.append(student.shape)
        return (student - teacher).square().mean(-1)

    student = torch.randn(10, 8, generator=generator, requires_grad=True)
    with torch.no_grad():  # as inside an autograd function
        objective = Objective(Loss(per_token=per_token))
    loss, covered, terms = training_loss(student, teacher, None, head, objective, chunk)
    (loss * 2).backward()
    plain = student.detach().requires_grad_()
    expected = (F.linear(plain, head) - F.linear(teacher, head)).square().mean()
    (expected * 2).backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.grad, plain.grad, atol=1e-5, rtol=1e-4)
    assert covered == 1 and terms == {"loss": loss}
    assert max(size[0] for size in sizes) == min(chunk, 10)


def test_a_loss_has_one_form() -> None:
    with pytest.raises(TypeError, match="either per_token or closed_form"):
        Loss()
