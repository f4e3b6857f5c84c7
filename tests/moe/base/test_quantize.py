"""Quantized weights against a quantizer that goes value by value."""

from __future__ import annotations

import pytest
import torch

from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.quantize import FP8, empty_weight, quantize

# Every number that e4m3 can hold.
NUMBERS = torch.arange(256, dtype=torch.uint8).view(FP8).double()
NUMBERS = NUMBERS[NUMBERS.isfinite()].unique()


def make(shape: tuple[int, ...], block: tuple[int, int] | None) -> torch.Tensor:
    fp8 = Fp8Format(block=block, stored="plain")
    return empty_weight(shape, fp8, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("shape", [(8, 12), (3, 8, 12)])
@pytest.mark.parametrize("block", [(4, 6), (8, 2), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_value_is_the_nearest_of_its_block(
    shape: tuple[int, ...], block: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = (torch.randn(shape) * torch.rand(shape).exp2()).to(dtype)
    weight = make(shape, block)
    quantize(plain, weight)
    assert weight.scales is not None
    rows, columns = block or (1, shape[-1])
    assert weight.block == (rows, columns)
    for expert, matrix in enumerate(plain.double().view(-1, *shape[-2:])):
        scales = weight.scales.view(-1, *weight.scales.shape[-2:])[expert]
        values = weight.values.view(-1, *shape[-2:])[expert].double()
        for n in range(scales.shape[0]):
            for k in range(scales.shape[1]):
                where = slice(n * rows, (n + 1) * rows), slice(k * columns, (k + 1) * columns)
                scale = matrix[where].abs().max() / 448
                assert abs(float(scales[n, k] / scale) - 1) < 1e-6
                wanted = (matrix[where] / scale)[..., None]
                nearest = (wanted - NUMBERS).abs().min(dim=-1).values
                distance = (wanted[..., 0] - values[where]).abs()
                torch.testing.assert_close(distance, nearest, rtol=0, atol=1e-4)


def test_the_last_rows_may_be_less_than_a_block() -> None:
    plain = torch.randn(7, 12)
    weight, padded = make((7, 12), (3, 6)), make((9, 12), (3, 6))
    quantize(plain, weight)
    quantize(torch.cat((plain, torch.zeros(2, 12))), padded)
    assert torch.equal(weight.plain(torch.float32), padded.plain(torch.float32)[:7])


def test_zeros_stay_zeros_and_the_largest_is_exact() -> None:
    plain = torch.zeros(4, 4)
    plain[0, 0], plain[3, 3] = -3.0, 1e-30
    weight = make((4, 4), (2, 2))
    quantize(plain, weight)
    result = weight.plain(torch.float32)
    torch.testing.assert_close(result, plain, rtol=1e-6, atol=0)
    assert weight.scales is not None
    assert weight.scales[0, 1] == 1.0


def test_a_part_of_a_weight_is_filled_in_its_place() -> None:
    weight = make((2, 8, 4), (2, 2))
    weight.values.zero_()
    gate, up = weight.split([4, 4])
    plain = torch.randn(2, 4, 4)
    quantize(plain, up)
    assert weight.values[:, :4].float().eq(0).all()
    assert torch.equal(weight.plain(torch.float32)[:, 4:], up.plain(torch.float32))
    torch.testing.assert_close(up.plain(torch.float32), plain, rtol=0.07, atol=0.02)
    assert gate.shape == (2, 4, 4)


@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("shape", [(4, 64), (3, 4, 96)])
def test_each_number_of_four_bits_is_the_nearest(
    shape: tuple[int, ...], zero_points: bool, group: int | None
) -> None:
    torch.manual_seed(0)
    plain = torch.randn(shape) * torch.rand(shape).exp2()
    plain[..., 0, :32] = 0.0
    int4 = Int4Format(group=group, zero_points=zero_points)
    weight = empty_weight(shape, int4, dtype=torch.float32, device="cpu")
    quantize(plain, weight)
    assert weight.scales is not None
    groups = plain.unflatten(-1, (-1, group or shape[-1]))
    largest = groups.abs().amax(-1) / 7
    scales = torch.where(largest == 0, 1.0, largest)
    torch.testing.assert_close(weight.scales.float(), scales, rtol=1e-3, atol=0)
    error = (weight.plain(torch.float32).view(groups.shape) - groups).abs()
    # Half a step, and where a scale was rounded down the largest number is less than it.
    assert (error <= weight.scales.float()[..., None] * (0.5 + 7 * 2**-11)).all()
