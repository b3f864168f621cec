from __future__ import annotations

import pytest
import torch
from torch import Tensor

from koffkit.method.repair import Moments, least_squares, mean_bias, squared_error

F, D = 12, 5
KEPT = torch.tensor([True] * 8 + [False] * 4)


def inputs(count: int, seed: int) -> Tensor:
    """The last four are nearly linear in the first eight, and have a mean."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, 8, generator=generator)
    mix = torch.randn(8, 4, generator=torch.Generator().manual_seed(9))
    last = first @ mix + 0.1 * torch.randn(count, 4, generator=generator) + 2.0
    return torch.cat([first, last], dim=1)


def moments(values: Tensor) -> Moments:
    found = Moments.zeros(F, values.device)
    for part in values.split(7):
        found.add(part)
    return found


WEIGHT = torch.randn(D, F, generator=torch.Generator().manual_seed(3))


def measured(values: Tensor, replaced: Tensor | None = None, bias: Tensor | None = None) -> float:
    """The error by its definition, input by input."""
    weight = (WEIGHT if replaced is None else replaced).double() * KEPT
    shift = 0 if bias is None else bias
    off = values.double() @ WEIGHT.double().T - values.double() @ weight.T - shift
    return float(off.square().sum(1).mean())


def test_the_error_from_moments_is_that_of_the_inputs() -> None:
    values = inputs(200, 1)
    other, bias = torch.randn(D, F, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    for replaced, shift in ((None, None), (other, None), (None, bias), (other, bias)):
        found = squared_error(WEIGHT, KEPT, moments(values), replaced=replaced, bias=shift)
        assert found == pytest.approx(measured(values, replaced, shift), rel=1e-4)


def test_least_squares_is_the_regression_of_what_is_gone() -> None:
    values = inputs(400, 1).double()
    kept, gone = values[:, KEPT], values[:, ~KEPT]
    mapping = torch.linalg.lstsq(kept, gone).solution  # [8, 4]
    expected = WEIGHT.double()[:, KEPT] + WEIGHT.double()[:, ~KEPT] @ mapping.T
    found = least_squares(WEIGHT, KEPT, moments(values.float()), 1e-9)
    torch.testing.assert_close(found[:, KEPT], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[:, ~KEPT], WEIGHT.double()[:, ~KEPT])


def test_it_helps_on_other_inputs_and_less_the_more_it_is_damped() -> None:
    fit, other = moments(inputs(300, 1)), moments(inputs(300, 2))
    errors = [
        squared_error(WEIGHT, KEPT, other, replaced=least_squares(WEIGHT, KEPT, fit, damping))
        for damping in (0.01, 1.0, 100.0)
    ]
    before = squared_error(WEIGHT, KEPT, other)
    assert errors[0] < 0.8 * before
    assert errors == sorted(errors)
    assert errors[-1] == pytest.approx(before, rel=0.05)


def test_a_bias_holds_the_mean_of_what_is_gone() -> None:
    values = inputs(300, 1)
    bias = mean_bias(WEIGHT, KEPT, moments(values))
    expected = (values[:, ~KEPT] @ WEIGHT[:, ~KEPT].T).mean(0)
    torch.testing.assert_close(bias, expected.double(), rtol=1e-4, atol=1e-4)
    assert measured(values, bias=bias) < measured(values)


def test_more_kept_inputs_than_tokens_is_no_error() -> None:
    found = least_squares(WEIGHT, KEPT, moments(inputs(3, 1)), 0.01)
    assert bool(found.isfinite().all())
