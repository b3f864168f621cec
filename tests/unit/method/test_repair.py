from __future__ import annotations

import pytest
import torch
from torch import Tensor

from koffkit.method.repair import Means, Moments, least_squares, mean_bias, mixed_means, output_error

F, D = 12, 5
KEPT = torch.tensor([True] * 8 + [False] * 4)


def inputs(count: int, seed: int) -> Tensor:
    """The last four are nearly linear in the first eight, and have a mean."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, 8, generator=generator)
    mix = torch.randn(8, 4, generator=torch.Generator().manual_seed(9))
    last = first @ mix + 0.1 * torch.randn(count, 4, generator=generator) + 2.0
    return torch.cat([first, last], dim=1)


WEIGHT = torch.randn(D, F, generator=torch.Generator().manual_seed(3))
BIAS = torch.randn(D, generator=torch.Generator().manual_seed(4))


def means(values: Tensor, bias: Tensor | None = None) -> Means:
    """The module should write what it writes with all inputs, and a bias."""
    found = Moments(F, D, values.device)
    for part in values.split(7):
        found.add(part, part @ WEIGHT.T + (0 if bias is None else bias))
    return found.means()


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
        weight = (WEIGHT if replaced is None else replaced).double() * KEPT
        found = output_error(weight, means(values), shift)
        assert found == pytest.approx(measured(values, replaced, shift), rel=1e-4)


def test_a_bias_of_the_module_is_no_part_of_what_its_weight_should_write() -> None:
    values = inputs(200, 1)
    without = means(values, BIAS).without(BIAS)
    for part, expected in vars(means(values)).items():
        torch.testing.assert_close(getattr(without, part), expected, rtol=1e-4, atol=1e-4)
    assert means(values).without(None).cross.equal(means(values).cross)


def test_means_are_mixed_with_those_of_all_texts() -> None:
    texts = {"a": means(inputs(50, 1)), "b": means(inputs(50, 2))}
    mixed = mixed_means(texts, 0.5)
    expected = 0.75 * texts["a"].second + 0.25 * texts["b"].second
    torch.testing.assert_close(mixed["a"].second, expected)
    torch.testing.assert_close(mixed["b"].square, 0.75 * texts["b"].square + 0.25 * texts["a"].square)
    assert mixed_means({}, 0.5) == {}


def test_least_squares_is_the_regression_of_what_is_gone() -> None:
    values = inputs(400, 1).double()
    kept, gone = values[:, KEPT], values[:, ~KEPT]
    mapping = torch.linalg.lstsq(kept, gone).solution  # [8, 4]
    expected = WEIGHT.double()[:, KEPT] + WEIGHT.double()[:, ~KEPT] @ mapping.T
    found = least_squares(WEIGHT, KEPT, means(values.float()), 1e-9)
    torch.testing.assert_close(found[:, KEPT], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[:, ~KEPT], WEIGHT.double()[:, ~KEPT])


def test_it_helps_on_other_inputs_and_less_the_more_it_is_damped() -> None:
    fit, other = means(inputs(300, 1)), means(inputs(300, 2))
    errors = [
        output_error(least_squares(WEIGHT, KEPT, fit, damping) * KEPT, other)
        for damping in (0.01, 1.0, 100.0)
    ]
    before = output_error(WEIGHT * KEPT, other)
    assert errors[0] < 0.8 * before
    assert errors == sorted(errors)
    assert errors[-1] == pytest.approx(before, rel=0.05)


def test_a_bias_holds_the_mean_of_what_is_gone() -> None:
    values = inputs(300, 1)
    bias = mean_bias(WEIGHT, KEPT, means(values))
    expected = (values[:, ~KEPT] @ WEIGHT[:, ~KEPT].T).mean(0)
    torch.testing.assert_close(bias, expected.double(), rtol=1e-4, atol=1e-4)
    assert measured(values, bias=bias) < measured(values)


def test_more_kept_inputs_than_tokens_is_no_error() -> None:
    found = least_squares(WEIGHT, KEPT, means(inputs(3, 1)), 0.01)
    assert bool(found.isfinite().all())
