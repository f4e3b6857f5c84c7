"""Kernels that choose their experts do what they do with experts that `select_experts` chose, and
write down the same."""

from __future__ import annotations

import random

import pytest
import torch

from moe.base.context import make_context
from moe.base.fp8_format import Fp8Format
from moe.base.parallel import resolve_parallel
from moe.base.quantize import quantize
from moe.base.tiles import FP8_NAME, ExpertTiles, Tiles, experts_key
from moe.config import MoEConfig
from moe.experts import FusedMoeExperts
from moe.groups import ExpertGroups
from moe.kernels.experts import takes_choice
from moe.kernels.topk import make_choice, select_experts
from moe.kernels.vector import down_vector, gate_up_vector
from moe.layer import SparseMoeBlock
from moe.placement import ExpertPlacement
from moe.router import topk_rule
from tests.moe.builders import interpreted
from tests.moe.kernels.grouped import make_experts, make_fp8_experts
from tests.moe.kernels.test_topk import MODELS, make_bias, make_config

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(
    name: str,
    T: int,
    *,
    S: int = 1,
    num_valid: int | None = None,
    num_ranks: int = 1,
    fp8: bool = False,
    tiles: Tiles,
    dtype: torch.dtype = torch.float32,
    width: int = 64,
    H: int = 128,
    pdl: bool = False,
) -> None:
    E, k, kind = MODELS[name]
    config = make_config(E, k, **kind)
    place = ExpertPlacement(num_experts=E, num_ranks=num_ranks, rank=num_ranks - 1)
    map_E = None if num_ranks == 1 else place.expert_map(DEVICE)
    if fp8:
        w13, w2 = make_fp8_experts(place.num_local, H, width, (64, 64), DEVICE)
    else:
        w13, w2 = make_experts(place.num_local, H, width, dtype, DEVICE)
    x_TH = torch.randn(T, H, device=DEVICE).to(dtype)
    parts_STE = torch.randn(S, T, E, device=DEVICE)
    how = topk_rule(config), make_bias(config)
    count = None if num_valid is None else torch.tensor([num_valid], device=DEVICE).int()
    weights, ids = select_experts(parts_STE, *how, count, logits_dtype=dtype)

    def run(*, chosen: bool) -> list[torch.Tensor]:
        """Ids, weights, and what both kernels wrote."""
        out = [torch.full_like(ids, -7), torch.full_like(weights, torch.nan)]
        if chosen:
            out = [ids, weights]
        choice = None if chosen else make_choice(parts_STE, *how, count, dtype)
        inner_PI = torch.full((T * k, width), torch.nan, dtype=dtype, device=DEVICE)
        out_PH = torch.full((T * k, H), torch.nan, dtype=dtype, device=DEVICE)
        gate_up_vector(
            x_TH, w13, out[0], map_E, tiles,
            out_PI=inner_PI, pdl=pdl, choice=choice, out_weights_TK=None if chosen else out[1],
        )  # fmt: skip
        down_vector(inner_PI, w2, out[0], map_E, tiles, out_PH=out_PH, pdl=pdl, choice=choice)
        return [*out, inner_PI, out_PH]

    for mine, usual in zip(run(chosen=False), run(chosen=True), strict=True):
        torch.testing.assert_close(mine, usual, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", MODELS)
def test_routers(name: str) -> None:
    torch.manual_seed(0)
    check(name, 2, tiles=Tiles(block_m=1, block_n=16, block_k=64))


@pytest.mark.parametrize("change", [{"S": 3}, {"num_valid": 1}, {"num_ranks": 2}, {"fp8": True}])
def test_parts_padding_ranks_and_eight_bits(change: dict[str, int]) -> None:
    torch.manual_seed(1)
    tiles = Tiles(block_m=1, block_n=32, block_k=128, warps=1)
    check("deepseek-v2-lite", 3, tiles=tiles, **change)  # type: ignore[arg-type]


def test_who_chooses() -> None:
    """Matrix-vector products of one token with weights of eight bits."""
    context = interpreted()
    eight = make_fp8_experts(8, 128, 64, (64, 64), "cpu")
    assert takes_choice(1, 2, *eight, context)
    assert not takes_choice(2, 2, *eight, context)
    assert not takes_choice(1, 2, *make_experts(8, 128, 64, torch.float32, "cpu"), context)
    tiles = Tiles(block_m=16, block_n=64, block_k=64)
    key = experts_key(8, 64, 128, FP8_NAME)
    context.tiles.experts_tables[key] = {1: ExpertTiles(gate_up=tiles, down=tiles)}
    assert not takes_choice(1, 2, *eight, context)


@torch.no_grad()
def test_a_layer_of_one_token_lets_its_experts_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gives, and the ids that it records, are those of a layer that chooses first."""
    torch.manual_seed(2)
    config = MoEConfig(hidden_size=64, intermediate_size=32, num_experts=8, num_experts_per_tok=3)
    out_ids_P = torch.full((12,), -7, dtype=torch.int32)
    layer = SparseMoeBlock(
        config, resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True),
        ExpertGroups(), "fused", dtype=torch.float32, device="cpu", context=interpreted(),
        out_ids_P=out_ids_P, experts_format=Fp8Format(block=(32, 32), stored="plain"),
    )  # fmt: skip
    layer.gate.weight.normal_()
    for weight in (layer.experts.w13, layer.experts.w2):
        quantize(0.2 * torch.randn(weight.shape), weight)
    hidden_1H = torch.randn(1, 64)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        out_ids_P.fill_(-7)
        out = layer(hidden_1H, 1).total(torch.float32, layer.context)
        return out.clone(), out_ids_P.clone()

    selected: list[bool] = []
    monkeypatch.setattr(
        "moe.router.select_experts",
        lambda *args, **options: selected.append(True) or select_experts(*args, **options),
    )
    mine, ids = run()
    assert not selected
    monkeypatch.setattr(FusedMoeExperts, "chooses", lambda *_: False)
    usual, usual_ids = run()
    assert selected and torch.equal(mine, usual) and torch.equal(ids, usual_ids)
    assert (ids[:3] >= 0).all() and (ids[3:] == -7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(24))
def test_random_choices_on_the_device(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    T = draw.randint(1, 4)
    book = make_context(torch.device("cuda"), torch.bfloat16).tiles
    tiles = book.experts(128, 768, 2048, 1, 8)
    check(
        draw.choice(list(MODELS)), T, S=draw.choice([1, 4]),
        num_valid=draw.choice([None, draw.randint(0, T)]), num_ranks=draw.choice([1, 2]),
        fp8=draw.choice([False, True]), tiles=tiles.gate_up, dtype=torch.bfloat16,
        width=draw.choice([256, 768]), H=draw.choice([512, 2048]), pdl=True,
    )  # fmt: skip
