"""Routers against transformers' modules, ties, and numbers that are not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    Glm4MoeConfig,
    GraniteMoeConfig,
    HunYuanMoEV1Config,
    LagunaConfig,
    MellumConfig,
    MiniMaxM2Config,
    Mistral4Config,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Gate
from transformers.models.laguna.modeling_laguna import LagunaTopKRouter
from transformers.models.mellum.modeling_mellum import MellumTopKRouter
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter
from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextTopKRouter

from moe.config import MoEConfig
from moe.router import TopKRouter
from moe.routes import TopK
from tests.moe.builders import interpreted

E, K, H = 24, 5, 32
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}
# One of each.
KINDS: list[dict[str, Any]] = [
    {"norm_topk_prob": True},
    {"router": "greedy", "routed_scaling_factor": 1.7, "fp32_gate": True},
    {"router": "group_limited_greedy", **GROUPS},
    {"router": "sigmoid", "norm_topk_prob": True, "use_correction_bias": True, **GROUPS},
    {"router": "noaux_tc", "norm_topk_prob": True, **GROUPS},
    {"router": "noaux_tc", "norm_topk_prob": True, "fp32_gate": True, **GROUPS},
    {"router": "softmax_groups", "norm_topk_prob": True, **GROUPS},
    {"router": "softmax_bias", "norm_min": 0.3, "fp32_gate": True},
    {"router": "sigmoid", "norm_topk_prob": True, "logit_softcap": 1.5},
    {"router": "sparsemixer", "num_experts_per_tok": 2, "router_jitter_noise": 0.2},
]


def make_router(theirs: nn.Module | None = None, dtype: torch.dtype = torch.float32, **kind: Any):
    numbers = {"num_experts": E, "num_experts_per_tok": K} | kind
    config = MoEConfig(hidden_size=H, intermediate_size=8, **numbers)
    router = TopKRouter(config, dtype=dtype, device="cpu")
    if theirs is not None:
        router.load_state_dict(theirs.state_dict())
    return router


def assert_same_routes(
    ours: TopK, weights: torch.Tensor, ids: torch.Tensor, tolerance: float = 1e-6
) -> None:
    """The same experts with the same weights; transformers may list them in another order."""
    assert (ours.weights.dtype, ours.ids.dtype) == (torch.float32, torch.int32)
    ours_order, order = ours.ids.argsort(dim=1), ids.argsort(dim=1)
    assert torch.equal(ours.ids.gather(1, ours_order).long(), ids.gather(1, order))
    torch.testing.assert_close(
        ours.weights.gather(1, ours_order),
        weights.gather(1, order).float(),
        rtol=tolerance,
        atol=tolerance,
    )


def randomize(module: nn.Module, seed: int = 0) -> None:
    torch.manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.normal_(std=0.4)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("config_class", "router_class"),
    [(Qwen3MoeConfig, Qwen3MoeTopKRouter), (Qwen3NextConfig, Qwen3NextTopKRouter)],
)
def test_qwen3(config_class: Any, router_class: Any, norm: bool) -> None:
    theirs = router_class(
        config_class(num_experts=E, num_experts_per_tok=K, hidden_size=H, norm_topk_prob=norm)
    )
    randomize(theirs)
    hidden = torch.randn(200, H)
    ours = make_router(theirs, norm_topk_prob=norm)
    _, weights, ids = theirs(hidden)
    assert_same_routes(ours(hidden), weights, ids)
    _, weights, ids = theirs.bfloat16()(hidden.bfloat16())
    ours = make_router(theirs, norm_topk_prob=norm, dtype=torch.bfloat16)
    routes = ours(hidden.bfloat16())
    clear = separated(theirs.weight, hidden.bfloat16(), routes)
    assert clear.sum() > 100
    routes = TopK(routes.weights[clear], routes.ids[clear])
    assert_same_routes(routes, weights[clear], ids[clear], tolerance=2**-8)


def separated(weight: torch.Tensor, hidden: torch.Tensor, routes: TopK) -> torch.Tensor:
    """[T]: rows where bf16 logits leave no tie at the edge of the top K."""
    best = (hidden @ weight.T).sort(dim=1, descending=True).values
    assert routes.ids.shape[1] == K
    return best[:, K - 1] > best[:, K]


@pytest.mark.parametrize(
    ("method", "n_group", "topk_group"),
    [("greedy", 1, 1), ("group_limited_greedy", 4, 2), ("group_limited_greedy", 24, 5)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deepseek_v2(method: str, n_group: int, topk_group: int, dtype: torch.dtype) -> None:
    groups = {"n_group": n_group, "topk_group": topk_group, "routed_scaling_factor": 1.7}
    theirs = DeepseekV2TopkRouter(
        DeepseekV2Config(
            n_routed_experts=E, num_experts_per_tok=K, hidden_size=H, topk_method=method, **groups
        )
    )
    randomize(theirs)
    theirs.to(dtype)
    hidden = torch.randn(200, H, dtype=dtype)
    _, weights, ids = theirs(hidden)
    ours = make_router(theirs, dtype, router=method, fp32_gate=True, **groups)
    assert_same_routes(ours(hidden), weights, ids)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (8, 8)])
def test_deepseek_v3(norm: bool, n_group: int, topk_group: int) -> None:
    same = {
        "n_group": n_group,
        "topk_group": topk_group,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": norm,
    }
    theirs = DeepseekV3TopkRouter(
        DeepseekV3Config(n_routed_experts=E, num_experts_per_tok=K, hidden_size=H, **same)
    )
    randomize(theirs)
    hidden = torch.randn(200, H)
    _, weights, ids = theirs(hidden)
    ours = make_router(theirs, router="noaux_tc", **same)
    assert_same_routes(ours(hidden), weights, ids)
    ours = make_router(theirs, router="sigmoid", use_correction_bias=True, **same)
    assert_same_routes(ours(hidden), weights, ids)


NORM: dict[str, Any] = {"norm_topk_prob": True}
BIASED: dict[str, Any] = {"router": "sigmoid", "use_correction_bias": True, **NORM}
FAMILIES: list[tuple[type, type, dict[str, Any], dict[str, Any]]] = [
    (MixtralConfig, MixtralTopKRouter, {"num_local_experts": E}, NORM),
    (GraniteMoeConfig, GraniteMoeTopKRouter, {"num_local_experts": E}, NORM),
    (OlmoeConfig, OlmoeTopKRouter, {"num_experts": E, "norm_topk_prob": False}, {}),
    (OlmoeConfig, OlmoeTopKRouter, {"num_experts": E, "norm_topk_prob": True}, NORM),
    (Qwen2MoeConfig, Qwen2MoeTopKRouter, {"num_experts": E, "norm_topk_prob": False}, {}),
    (MellumConfig, MellumTopKRouter, {"num_experts": E, "norm_topk_prob": True}, NORM),
    (HunYuanMoEV1Config, HunYuanMoEV1Gate, {"num_experts": E, "moe_topk": K}, NORM),
    (Glm4MoeConfig, Glm4MoeTopkRouter, {"n_routed_experts": E, **NORM, **GROUPS},
     {"router": "noaux_tc", **NORM, **GROUPS}),
    (MiniMaxM2Config, MiniMaxM2TopKRouter, {"num_local_experts": E}, BIASED),
    (LagunaConfig, LagunaTopKRouter, {"num_experts": E}, BIASED),
    (LagunaConfig, LagunaTopKRouter, {"num_experts": E, "moe_router_logit_softcapping": 1.5},
     {"logit_softcap": 1.5, **BIASED}),
    (Ernie4_5_MoeConfig, Ernie4_5_MoeTopKRouter, {"moe_num_experts": E, "moe_k": K},
     {"router": "softmax_bias", "norm_min": 1e-12}),
    (Ernie4_5_MoeConfig, Ernie4_5_MoeTopKRouter,
     {"moe_num_experts": E, "moe_k": K, "moe_norm_min": 0.4},
     {"router": "softmax_bias", "norm_min": 0.4}),
    (Mistral4Config, Mistral4TopkRouter, {"n_routed_experts": E, **NORM, **GROUPS},
     {"router": "softmax_groups", **NORM, **GROUPS}),
    (Mistral4Config, Mistral4TopkRouter,
     {"n_routed_experts": E, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
     {"router": "softmax_groups", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5}),
    *((PhimoeConfig, PhimoeTopKRouter,
       {"num_local_experts": E, "num_experts_per_tok": 2, "router_jitter_noise": jitter},
       {"router": "sparsemixer", "num_experts_per_tok": 2, "router_jitter_noise": jitter})
      for jitter in (0.0, 0.01, 0.3)),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("config_class", "router_class", "keys", "kind"), FAMILIES)
@torch.no_grad()
def test_families(
    config_class: Any, router_class: Any, keys: dict[str, Any], kind: dict[str, Any], seed: int
) -> None:
    """transformers' routers under random weights, whatever they call them."""
    config = config_class(**({"num_experts_per_tok": K, "hidden_size": H} | keys))
    theirs = router_class(config).eval()
    randomize(theirs, seed)
    bias = torch.randn(E) * 0.3
    ours = make_router(**kind)
    state = {name.rpartition(".")[2]: tensor for name, tensor in theirs.state_dict().items()}
    if ours.e_score_correction_bias is not None:
        state.setdefault("e_score_correction_bias", bias)
        state["e_score_correction_bias"] = state["e_score_correction_bias"].flatten()
    ours.load_state_dict(state)
    hidden = torch.randn(200, H)
    beside = (bias,) if router_class is MiniMaxM2TopKRouter else ()
    _, weights, ids = theirs(hidden, *beside)
    assert_same_routes(ours(hidden), weights, ids)


def test_sigmoid_without_bias_is_a_zero_bias() -> None:
    plain = make_router(router="sigmoid", norm_topk_prob=True)
    biased = make_router(router="sigmoid", norm_topk_prob=True, use_correction_bias=True)
    randomize(plain)
    biased.load_state_dict(plain.state_dict() | {"e_score_correction_bias": torch.zeros(E)})
    hidden = torch.randn(50, H)
    ours, other = plain(hidden), biased(hidden)
    assert torch.equal(ours.weights, other.weights)
    assert torch.equal(ours.ids, other.ids)


def test_bias_selects_but_does_not_weigh() -> None:
    router = make_router(router="noaux_tc", n_group=1, topk_group=1)
    nn.init.zeros_(router.weight)
    nn.init.zeros_(router.e_score_correction_bias)
    router.e_score_correction_bias[-K:] = 3.0
    topk = router(torch.randn(2, H))
    assert topk.ids.tolist() == [list(range(E - K, E))] * 2
    assert torch.equal(topk.weights, torch.full((2, K), 0.5))


@pytest.mark.parametrize("kind", ["softmax", "greedy", "sigmoid"])
def test_ties_go_to_the_lower_id(kind: str) -> None:
    router = make_router(router=kind)
    nn.init.zeros_(router.weight)
    router.weight[7] = router.weight[20] = 1.0
    topk = router(torch.ones(3, H))
    assert topk.ids.tolist() == [[7, 20, 0, 1, 2]] * 3


def test_tied_groups_go_to_the_lower_id() -> None:
    router = make_router(router="group_limited_greedy", n_group=4, topk_group=2)
    nn.init.zeros_(router.weight)
    assert router(torch.ones(2, H)).ids.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    "kind",
    [
        {"router": "softmax"},
        {"router": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        {"router": "noaux_tc", "n_group": 4, "topk_group": 2},
        {"router": "softmax_groups", "n_group": 4, "topk_group": 2},
        {"router": "softmax_bias"},
        {"router": "sparsemixer", "num_experts_per_tok": 2, "router_jitter_noise": 0.01},
    ],
)
def test_ids_stay_in_range_when_a_token_is_not_finite(kind: dict[str, Any]) -> None:
    router = make_router(**kind)
    randomize(router)
    hidden = torch.randn(3, H)
    hidden[1] = torch.nan
    topk = router(hidden)
    assert ((topk.ids >= 0) & (topk.ids < E)).all()
    assert topk.weights[1].isnan().all()
    assert topk.weights[[0, 2]].isfinite().all()


def test_no_tokens() -> None:
    for kind in ({}, {"router": "noaux_tc", "n_group": 4, "topk_group": 2}):
        router = make_router(**kind)
        randomize(router)
        routes = router(torch.empty(0, H))
        assert routes.weights.shape == routes.ids.shape == (0, K)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_kernels_route_as_plain_torch_does(kind: dict[str, Any], dtype: torch.dtype) -> None:
    """Beside each other on the same weights, with padding, and with ids written where asked."""
    plain = make_router(dtype=dtype, **kind)
    randomize(plain)
    config, context = plain.config, interpreted(dtype)
    kernels = TopKRouter(config, dtype=dtype, device="cpu", context=context)
    kernels.load_state_dict(plain.state_dict())
    hidden = torch.randn(6, H).to(dtype)
    num_valid = torch.tensor([4], dtype=torch.int32)
    K = config.num_experts_per_tok
    written = torch.full((7 * K,), -7, dtype=torch.int32)
    for count in (None, num_valid):
        ours, expected = kernels(hidden, count, written[: 6 * K]), plain(hidden, count)
        assert torch.equal(ours.ids, expected.ids)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-3
        torch.testing.assert_close(ours.weights, expected.weights, rtol=tolerance, atol=1e-6)
        assert torch.equal(written[: 6 * K], expected.ids.flatten())
        assert written[6 * K :].eq(-7).all()
    context.workspace.freeze()
    kernels(hidden[:3], num_valid, written[: 3 * K])
