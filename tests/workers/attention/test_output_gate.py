"""The gate's kernel against plain torch."""

from __future__ import annotations

import pytest
import torch

from workers.attention.kernels import output_gate as module
from workers.attention.kernels.output_gate import output_gate
from workers.attention.spec import GateActivation
from workers.models.output_gate import gated

pytestmark = pytest.mark.interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = {torch.float32: 1e-6, torch.float16: 2e-3}


@pytest.mark.parametrize("activation", ["softplus", "sigmoid"])
@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("gates", [3, 24])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("block", [8, 1024])
def test_it_computes_what_torch_does(
    dtype: torch.dtype,
    gates: int,
    parts: int,
    block: int,
    activation: GateActivation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    many = torch.randn(parts, 5, gates, device=DEVICE)
    attended = torch.randn(5, 24, device=DEVICE).to(dtype)
    expected = gated(attended, many.sum(0).to(dtype), activation)
    found = output_gate(many, attended, activation, pdl=False)
    assert found is attended
    torch.testing.assert_close(found, expected, rtol=SMALL[dtype], atol=SMALL[dtype])


def test_the_softplus_of_large_numbers_and_small_ones_is_exact() -> None:
    gates = torch.tensor([-90.0, -30.0, -12.0, -1e-3, 0.0, 3.0, 19.9, 20.1, 90.0], device=DEVICE)
    expected = torch.nn.functional.softplus(gates)
    found = output_gate(gates[None, None], torch.ones(1, 9, device=DEVICE), "softplus")
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)


def test_columns_beside_the_gates_do_not_count() -> None:
    """Parts may be a view of wider rows."""
    wide = torch.randn(2, 3, 10, device=DEVICE)
    attended = torch.randn(3, 8, device=DEVICE)
    expected = gated(attended, wide[:, :, :4].sum(0), "sigmoid")
    found = output_gate(wide[:, :, :4], attended, "sigmoid")
    torch.testing.assert_close(found, expected)
