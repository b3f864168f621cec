from __future__ import annotations

import pytest
import torch

from koffkit.artefact.quantise import SCALE, Factors, pack, quantise, unpack


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x.lora_A.weight": (3, 8), "x.lora_B.weight": (12, 3), "layers.0.key": (2, 5, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(("dtype", "levels"), [("int8", 127), ("int6", 31)])
def test_what_is_packed_comes_back_to_within_half_a_step(dtype: str, levels: int) -> None:
    values = tensors()
    packed = pack(values, dtype)
    assert packed["x.lora_A.weight.scale"].shape == (3, 1) and packed["x.lora_B.weight.scale"].shape == (1, 3)
    assert packed["layers.0.key.scale"].shape == (2, 5, 1) and all(
        packed[n + SCALE].dtype == torch.float16 for n in values
    )
    found = unpack(packed)
    assert set(found) == set(values)
    for name, value in values.items():
        step = packed[name + SCALE].float()
        assert found[name].dtype == torch.float32
        assert bool(((found[name] - value).abs() <= 0.51 * step + value.abs() / 1000).all())


def test_int6_takes_three_quarters_of_int8_where_four_divides() -> None:
    values = tensors() | {"odd": torch.randn(3, 7)}
    eight, six = pack(values, "int8"), pack(values, "int6")
    for name in tensors():
        assert six[name].dtype == torch.uint8 and six[name].numel() * 4 == eight[name].numel() * 3
    assert six["odd"].dtype == torch.int8 and unpack(six)["odd"].shape == (3, 7)


@pytest.mark.parametrize("dtype", ["int8", "int6"])
def test_the_extremes_and_zeros_are_exact(dtype: str) -> None:
    values = torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.0, 2.0, 0.0, 0.0]])
    found = unpack(pack({"x": values}, dtype))["x"]
    torch.testing.assert_close(found[:, [0, 1, 3]], values[:, [0, 1, 3]], atol=2e-3, rtol=0)
    assert bool(torch.isfinite(found).all())


def test_what_is_too_small_for_a_scale_becomes_zero() -> None:
    integers, scale = quantise(torch.full((1, 4), 1e-9), -1, 127)
    assert float((integers.float() * scale.float()).abs().max()) <= 1e-8


def test_tensors_without_a_scale_stay_as_they_are() -> None:
    value = torch.ones(2, 2, dtype=torch.float16)
    assert unpack({"x": value})["x"] is value


def test_a_cut_is_the_best_of_its_rank_and_the_full_rank_is_the_same_product() -> None:
    a, b = (
        torch.randn(6, 20, generator=torch.Generator().manual_seed(1)),
        torch.randn(30, 6, generator=torch.Generator().manual_seed(2)),
    )
    factors, product = Factors(a, b), b @ a
    whole = factors.cut(6)
    torch.testing.assert_close(whole[1] @ whole[0], product, atol=1e-5, rtol=1e-5)
    u, s, v = torch.linalg.svd(product)
    cut = factors.cut(2)
    assert cut[0].shape == (2, 20) and cut[1].shape == (30, 2)
    torch.testing.assert_close(cut[1] @ cut[0], u[:, :2] * s[:2] @ v[:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cut[0].norm(dim=1), cut[1].norm(dim=0))  # balanced


def test_rank_follows_energy() -> None:
    factors = Factors(torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.eye(3))
    assert [factors.rank_for(energy) for energy in (0.5, 9 / 14 + 0.01, 0.95, 1.0)] == [1, 2, 3, 3]
    assert factors.energy_at(2) == pytest.approx(13 / 14)
    nothing = Factors(torch.ones(3, 4), torch.zeros(5, 3))
    assert nothing.rank_for(0.9) == 1 and nothing.energy_at(1) == 1.0
