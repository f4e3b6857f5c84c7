"""Weights with scales against the product of a value and its scale, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe.base.int4_pack import pack
from moe.base.weight import Weight, held_weight

FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize("block", [(4, 2), (1, 6), (8, 6)])
def test_a_value_counts_times_the_scale_of_its_block(
    leading: tuple[int, ...], block: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    values = torch.randn(*leading, 8, 6).to(FP8)
    scales = torch.rand(*leading, 8 // block[0], 6 // block[1]) + 0.5
    plain = Weight(values, scales, block).plain(torch.float32)
    for index in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        *expert, row, column = index
        scale = scales[(*expert, row // block[0], column // block[1])]
        assert plain[tuple(index)] == values.float()[tuple(index)] * scale


def test_the_last_rows_may_be_less_than_a_block() -> None:
    values, scales = torch.randn(7, 4).to(FP8), torch.rand(3, 2) + 0.5
    weight = Weight(values, scales, (3, 2))
    padded = Weight(torch.cat((values, values[:2])), scales, (3, 2)).plain(torch.float32)
    assert torch.equal(weight.plain(torch.float32), padded[:7])
    parts = weight.split([3, 4])
    assert torch.equal(torch.cat([each.plain(torch.float32) for each in parts]), padded[:7])
    with pytest.raises(AssertionError):
        weight.split([4, 3])
    with pytest.raises(AssertionError):
        Weight(values.expand(2, 7, 4), scales.expand(2, 3, 2), (3, 2))


def test_every_number_there_is() -> None:
    """Zeros keep their signs, and what is no number stays none."""
    values = torch.arange(256, dtype=torch.uint8).view(FP8).view(16, 16)
    plain = Weight(values, torch.ones(1, 1), (16, 16)).plain(torch.float32)
    assert torch.equal(plain.view(torch.int32), values.float().view(torch.int32))
    assert plain.isnan().sum() == 2
    halves = Weight(values, torch.ones(1, 1), (16, 16)).plain(torch.bfloat16)
    assert torch.equal(halves.nan_to_num(0.0), values.bfloat16().nan_to_num(0.0))


def test_a_plain_weight_is_its_values() -> None:
    values = torch.randn(2, 4, 4)
    assert Weight(values).plain(torch.float32) is values
    assert torch.equal(Weight(values)[1].plain(torch.float32), values[1])


def test_an_expert_has_its_own_scales() -> None:
    weight = Weight(torch.randn(3, 4, 4).to(FP8), torch.rand(3, 2, 2), (2, 2))
    assert torch.equal(weight[2].plain(torch.float32), weight.plain(torch.float32)[2])


def test_scales_belong_to_whole_blocks() -> None:
    with pytest.raises(AssertionError):
        Weight(torch.zeros(4, 4).to(FP8), torch.ones(1, 2), (2, 2))


def test_a_held_weight_is_among_the_modules_parameters() -> None:
    module = nn.Module()
    weight = held_weight(module, "w", Weight(torch.zeros(4, 4).to(FP8), torch.ones(2, 2), (2, 2)))
    assert [name for name, _ in module.named_parameters()] == ["w_values", "w_scales"]
    module.get_parameter("w_scales").fill_(3.0)
    assert weight.scales is not None
    assert weight.scales.eq(3.0).all()


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("group", [32, 64])
def test_numbers_of_four_bits_count_from_their_zero_points(
    group: int, has_zeros: bool, leading: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    numbers = torch.randint(16, (*leading, 4, 64), dtype=torch.uint8)
    blocks = (*leading, 4, 64 // group)
    scales = (torch.rand(blocks) + 0.5).half()
    zeros = torch.randint(16, blocks, dtype=torch.uint8) if has_zeros else None
    weight = Weight(pack(numbers), scales, (1, group), zeros)
    assert weight.shape == numbers.shape
    plain = weight.plain(torch.float32)
    middles = torch.full(blocks, 8) if zeros is None else zeros
    for index in torch.cartesian_prod(*map(torch.arange, numbers.shape)).tolist():
        block = (*index[:-1], index[-1] // group)
        number = float(numbers[tuple(index)]) - float(middles[block])
        assert plain[tuple(index)] == number * scales[block].float()
    if leading:
        assert torch.equal(weight[2].plain(torch.float32), plain[2])
    first, second = weight.split([1, 3])
    assert torch.equal(first.plain(torch.float32), plain[..., :1, :])
    assert torch.equal(second.plain(torch.float32), plain[..., 1:, :])


def test_held_zero_points_are_parameters_too() -> None:
    module, shape = nn.Module(), (2, 1)
    weight = Weight(
        torch.zeros(2, 16).byte(), torch.ones(shape), (1, 32), torch.zeros(shape).byte()
    )
    held = held_weight(module, "w", weight)
    assert [name for name, _ in module.named_parameters()] == ["w_values", "w_scales", "w_zeros"]
    module.get_parameter("w_zeros").fill_(3)
    assert held.plain(torch.float32).eq(-3.0).all()
