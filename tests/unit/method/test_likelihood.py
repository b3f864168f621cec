from __future__ import annotations

import math

import pytest
import torch

from koffkit.method.likelihood import TokenSums, add_tokens, exp_or_inf, geometric_mean, given, projected


def tensors() -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(11, 8, generator=draw) for _ in range(2))
    return student, teacher, torch.randn(40, 8, generator=draw), torch.randint(40, (11,), generator=draw)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_sums_are_those_of_the_definition_in_chunks_of_any_size(chunk: int) -> None:
    student, teacher, head, targets = tensors()
    sums = TokenSums()
    add_tokens(
        sums,
        11,
        projected(student, head),
        targets=targets,
        reference=projected(teacher, head),
        chunk_tokens=chunk,
    )
    q, p = ((hidden.double() @ head.double().T).log_softmax(-1) for hidden in (student, teacher))
    assert sums.tokens == 11
    assert sums.nll == pytest.approx(-q[range(11), targets].sum().item(), rel=1e-6)
    assert sums.kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)
    assert sums.perplexity == pytest.approx(math.exp(sums.nll / 11))
    assert sums.mean_kl == sums.kl / 11


def test_likelihood_and_kl_can_be_had_alone_and_add_up() -> None:
    student, teacher, head, targets = tensors()
    logits = student @ head.T
    nll, kl = TokenSums(), TokenSums()
    for _ in range(2):
        add_tokens(nll, 11, given(logits), targets=targets)
        add_tokens(kl, 11, given(logits), reference=given(teacher @ head.T))
    assert nll.kl == 0
    assert kl.nll == 0
    assert nll.tokens == 22
    once = TokenSums()
    add_tokens(once, 11, given(logits), targets=targets)
    assert nll.nll == 2 * once.nll


def test_a_perplexity_beyond_the_range_of_a_float_is_infinite() -> None:
    assert TokenSums(nll=1000.0, tokens=1).perplexity == math.inf
    assert exp_or_inf(700.0) == math.exp(700.0)
    assert geometric_mean([2.0, math.inf]) == math.inf
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_logits_of_half_precision_are_scored_in_float32() -> None:
    student, _, head, targets = tensors()
    rough, exact = TokenSums(), TokenSums()
    logits = (student @ head.T).bfloat16()
    add_tokens(rough, 11, given(logits), targets=targets)
    add_tokens(exact, 11, given(logits.float()), targets=targets)
    assert rough.nll == exact.nll
