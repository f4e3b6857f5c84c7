"""What is made of a checkpoint's words of 4-bit numbers.

The words are those that AutoAWQ 0.2.9 and compressed-tensors 0.20.0 make of one matrix of numbers.
GPTQ's differ from the latter by being transposed.
"""

from __future__ import annotations

import pytest
import torch

from moe.base.int4_format import Int4Format
from moe.base.int4_slices import int4_slices
from moe.base.quantize import empty_weight
from moe.base.weight import Weight
from tests.moe.int4 import Numbers, awq, compressed, gptq

N, K, GROUP = 32, 64, 32
_OUTPUTS, _INPUTS = torch.arange(N)[:, None], torch.arange(K)
VALUES = (5 * _OUTPUTS + 3 * _INPUTS + _INPUTS // 8) % 16
ZEROS = (3 * _OUTPUTS + 7 * torch.arange(2)) % 15 + 1
SCALES = (torch.arange(2 * N).view(N, 2) + 1).half() / 64
NUMBERS = Numbers(VALUES, SCALES, ZEROS)

FIRST_OUTPUT = [
    1392285232, -343593015, 1948170322, 229065195, -1775183244, 801727245, -1202520938, 1105954095,
]  # fmt: skip
ZERO_WORDS = [
    [1948100417, -343593288], [497500634, -2060535726], [-1488856460, 783831787],
    [1104835613, -1202525307],
]  # fmt: skip
AWQ_WORDS = [
    972416160, 1814566867, -1621407226, -1030849223, -172908436, 686085023, 1528235714, -1907738123,
]  # fmt: skip
AWQ_ZEROS = [
    [1906593137, 441308954, -1529384540, 1299257933],
    [-399788568, -2102043006, 727640107, -1243053387],
]  # fmt: skip


def test_our_packers_make_the_words_of_theirs() -> None:
    ours = compressed(NUMBERS, symmetric=False)
    assert ours["weight_packed"][0].tolist() == FIRST_OUTPUT
    assert ours["weight_zero_point"].tolist() == ZERO_WORDS
    theirs = awq(NUMBERS)
    assert theirs["qweight"][:8, 0].tolist() == AWQ_WORDS
    assert theirs["qzeros"].tolist() == AWQ_ZEROS
    assert gptq(NUMBERS)["qweight"][:, 0].tolist() == FIRST_OUTPUT
    assert gptq(NUMBERS, version=2)["qzeros"].t().tolist() == ZERO_WORDS


PACKED = {
    "gptq": gptq(NUMBERS),
    "gptq_v2": gptq(NUMBERS, version=2),
    "awq": awq(NUMBERS),
    "compressed": compressed(NUMBERS, symmetric=False),
}


@pytest.mark.parametrize("stored", PACKED)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(0, N), slice(0, K)), (slice(8, 24), slice(0, K)), (slice(0, N), slice(32, 64))],
)
def test_a_part_of_a_matrix(stored: str, rows: slice, columns: slice) -> None:
    int4 = Int4Format(group=GROUP, zero_points=True, stored=stored, has_group_index=True)
    shape = rows.stop - rows.start, columns.stop - columns.start
    weight = empty_weight(shape, int4, dtype=torch.float32, device="cpu")
    tensors = PACKED[stored] | {"g_idx": torch.arange(K).int() // GROUP}
    for piece in int4_slices("m.weight", (N, K), (rows, columns), weight, int4):
        tensor = tensors[piece.name.removeprefix("m.")]
        assert piece.index is not None
        assert tensor.shape == piece.shape
        piece.fill(tensor[piece.index])
    assert torch.equal(weight.plain(torch.float32), NUMBERS.exact()[rows, columns])
    assert weight.plain(torch.float32).dtype == torch.float32


def test_zero_points_of_gptq_that_are_none() -> None:
    """Less by one they are −1, which takes from the number beside: as GPTQModel, whole words."""
    numbers = NUMBERS._replace(zeros=ZEROS.clone())
    numbers.zeros[1, 0] = numbers.zeros[6, 1] = 0
    int4 = Int4Format(group=GROUP, zero_points=True, stored="gptq")
    weight = empty_weight((N, K), int4, dtype=torch.float32, device="cpu")
    for piece in int4_slices("weight", (N, K), (slice(0, N), slice(0, K)), weight, int4):
        piece.fill(gptq(numbers)[piece.name])
    assert isinstance(weight, Weight)
    assert torch.equal(weight.plain(torch.float32), numbers.exact())


@pytest.mark.parametrize("stored", PACKED)
def test_another_ranks_matrix_is_not_read(stored: str) -> None:
    int4 = Int4Format(group=GROUP, zero_points=True, stored=stored)
    pieces = list(int4_slices("m.weight", (N, K), None, None, int4))
    assert {piece.name.removeprefix("m.") for piece in pieces} == PACKED[stored].keys() - {"g_idx"}
    assert all(piece.target is None and piece.num_values == 0 for piece in pieces)
    assert all(PACKED[stored][piece.name[2:]].shape == piece.shape for piece in pieces)
