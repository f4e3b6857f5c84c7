"""select_experts against moe.router's functions: ids equal, weights to fp32's tolerance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.config import MoEConfig
from moe.kernels.topk import TopKRule, select_experts
from moe.router import SELECTIONS, topk_rule
from moe.routes import TopK

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEEPSEEK_V2 = {"router": "group_limited_greedy", "routed_scaling_factor": 16.0}
DEEPSEEK_V3 = {"router": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5}
# Experts, experts a token, and the rest of a configuration.
MODELS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "qwen3-30b-a3b": (128, 8, {"norm_topk_prob": True}),
    "qwen3-next": (512, 10, {"norm_topk_prob": True}),
    "deepseek-v2-lite": (64, 6, {"router": "greedy"}),
    "deepseek-v2": (160, 6, {**DEEPSEEK_V2, "n_group": 8, "topk_group": 3}),
    "deepseek-v3": (256, 8, {**DEEPSEEK_V3, "n_group": 8, "topk_group": 4}),
    "kimi-k2": (384, 8, {**DEEPSEEK_V3, "n_group": 1, "topk_group": 1}),
    "ernie-4.5": (64, 6, {"router": "softmax_bias", "norm_min": 1e-12}),
    "phi-3.5-moe": (16, 2, {"router": "sparsemixer", "router_jitter_noise": 0.01}),
    "mistral-small-4": (
        128, 4, {"router": "softmax_groups", "norm_topk_prob": True, "n_group": 1, "topk_group": 1}
    ),
}  # fmt: skip


def make_config(E: int, k: int, **kind: Any) -> MoEConfig:
    return MoEConfig(
        hidden_size=8, intermediate_size=8, num_experts=E, num_experts_per_tok=k, **kind
    )


def oracle(logits_TE: torch.Tensor, config: MoEConfig, bias_E: torch.Tensor | None = None) -> TopK:
    return SELECTIONS[config.router](logits_TE.float(), bias_E, config)


def make_bias(config: MoEConfig) -> torch.Tensor | None:
    if not config.has_correction_bias:
        return None
    return 0.2 * torch.randn(config.num_experts, device=DEVICE)


def check_kind(
    parts_STE: torch.Tensor,
    config: MoEConfig,
    dtype: torch.dtype,
    num_valid: int | None,
    bias_E: torch.Tensor | None = None,
    *,
    pdl: bool = False,
) -> None:
    count = None
    if num_valid is not None:
        count = torch.tensor([num_valid], dtype=torch.int32, device=parts_STE.device)
    rule = topk_rule(config)
    weights, ids = select_experts(parts_STE, rule, bias_E, count, logits_dtype=dtype, pdl=pdl)
    total = parts_STE[0].float()
    for part in parts_STE[1:]:
        total = total + part.float()
    expected = oracle(total.to(dtype), config, bias_E)
    last = parts_STE.shape[1] if num_valid is None else num_valid
    assert torch.equal(ids[:last], expected.ids[:last])
    torch.testing.assert_close(weights[:last], expected.weights[:last], rtol=1e-5, atol=1e-7)
    assert (ids[last:] == -1).all()
    assert (weights[last:] == 0.0).all()


def check(
    parts_STE: torch.Tensor, k: int, renormalise: bool, dtype: torch.dtype, num_valid: int | None
) -> None:
    """The softmax router's."""
    config = make_config(parts_STE.shape[2], k, norm_topk_prob=renormalise)
    check_kind(parts_STE, config, dtype, num_valid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "E", "k"), [(1, 128, 8), (5, 3, 2), (4, 3, 3), (3, 1, 1), (2, 9, 5)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_logits(T: int, E: int, k: int, dtype: torch.dtype, renormalise: bool) -> None:
    check(torch.randn(1, T, E, device=DEVICE).to(dtype), k, renormalise, dtype, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("S", [2, 7])
def test_parts(S: int, dtype: torch.dtype) -> None:
    check(torch.randn(S, 3, 24, device=DEVICE), 4, True, dtype, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lower_id(dtype: torch.dtype) -> None:
    logits = torch.randint(-2, 1, (1, 9, 40), device=DEVICE).to(dtype)
    zeros = logits == 0
    logits[zeros & (torch.rand(logits.shape, device=DEVICE) < 0.5)] = -0.0
    check(logits, 8, True, dtype, None)


@pytest.mark.parametrize("num_valid", [0, 1, 3, 4])
def test_padding(num_valid: int) -> None:
    check(torch.randn(1, 4, 16, device=DEVICE), 3, True, torch.float32, num_valid)


def test_padding_that_is_not_finite() -> None:
    logits = torch.randn(1, 3, 16, device=DEVICE)
    logits[:, 2] = torch.nan
    check(logits, 3, True, torch.float32, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 4, 12, device=DEVICE).to(dtype)
    logits[:, :, 2:] = -torch.inf
    check(logits, 4, True, dtype, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_not_finite(dtype: torch.dtype, bad: float, everywhere: bool) -> None:
    """Ids are in range and distinct; weights say that something is wrong, as softmax does."""
    logits = torch.randn(1, 2, 11, device=DEVICE).to(dtype)
    logits[0, 0, slice(None) if everywhere else 4] = bad
    rule = TopKRule(k=5, renormalise=True)
    weights, ids = select_experts(logits, rule, None, None, logits_dtype=dtype)
    assert ((ids >= 0) & (ids < 11)).all()
    assert all(len(set(row)) == 5 for row in ids.tolist())
    assert weights[0].isnan().all()
    assert torch.equal(ids[1:], oracle(logits[0, 1:], make_config(11, 5)).ids)


def test_no_tokens() -> None:
    check(torch.randn(2, 0, 16, device=DEVICE), 3, True, torch.float32, None)


@st.composite
def configs(draw: st.DrawFn) -> MoEConfig:
    """Any kind of router over any number of experts and groups."""
    router = draw(st.sampled_from(sorted(SELECTIONS)))
    ungrouped = router in ("softmax", "softmax_bias", "greedy", "sparsemixer")
    n_group = 1 if ungrouped else draw(st.integers(1, 6))
    size = draw(st.integers(2 if router == "sparsemixer" else 1, 7))
    topk_group = draw(st.integers(1, n_group))
    k = 2 if router == "sparsemixer" else draw(st.integers(1, size * topk_group))
    return make_config(
        n_group * size,
        k,
        router=router,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        use_correction_bias=router == "sigmoid" and draw(st.booleans()),
        norm_min=draw(st.sampled_from([0.0, 0.5])),
        logit_softcap=draw(st.sampled_from([0.0, 1.5])),
        router_jitter_noise=draw(st.sampled_from([0.0, 0.01, 0.3])),
    )


@settings(max_examples=60, deadline=None)
@given(config=configs(), data=st.data())
def test_any_kind(config: MoEConfig, data: st.DataObject) -> None:
    """On few distinct logits and biases, so that experts and groups tie often."""
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    S, T, E = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 4)), config.num_experts
    levels = data.draw(st.sampled_from([2, 5, 40]))
    logits = torch.randint(-levels, levels + 1, (S, T, E), device=DEVICE) / 8
    bias = None
    if config.has_correction_bias:
        bias = torch.randint(-2, 3, (E,), device=DEVICE) / 4
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    parts = logits.to(dtype if S == 1 else torch.float32)
    num_valid = data.draw(st.one_of(st.none(), st.integers(0, T)))
    check_kind(parts, config, dtype, num_valid, bias)


@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_shapes_of_models(model: str, S: int) -> None:
    E, k, kind = MODELS[model]
    config = make_config(E, k, **kind)
    check_kind(torch.randn(S, 2, E, device=DEVICE), config, torch.float32, 1, make_bias(config))


@pytest.mark.parametrize("kind", ["group_limited_greedy", "sigmoid", "noaux_tc", "softmax_groups"])
def test_tied_groups_go_to_the_lower_id(kind: str) -> None:
    """Three groups of three, all alike but for their order within."""
    config = make_config(9, 4, router=kind, n_group=3, topk_group=2)
    logits = torch.tensor([[[0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 1.0, 2.0, 0.0]]], device=DEVICE)
    _, ids = select_experts(logits, topk_rule(config), None, None, logits_dtype=torch.float32)
    assert ids.tolist() == [[2, 3, 1, 4]]


def test_a_group_counts_by_its_two_best() -> None:
    """By its best alone the second of the groups would be kept."""
    logits = torch.tensor([[[1.0, 1.0, -9.0, 1.5, -9.0, -9.0]]], device=DEVICE)
    kinds = {"noaux_tc": [[0, 1]], "softmax_groups": [[0, 1]], "group_limited_greedy": [[3, 4]]}
    for kind, expected in kinds.items():
        config = make_config(6, 2, router=kind, n_group=2, topk_group=1)
        rule = topk_rule(config)
        _, ids = select_experts(logits, rule, None, None, logits_dtype=torch.float32)
        assert ids.tolist() == expected


def test_a_bias_chooses_and_does_not_weigh() -> None:
    config = make_config(12, 3, router="noaux_tc", n_group=4, topk_group=1)
    bias = torch.zeros(12, device=DEVICE)
    bias[6:9] = torch.tensor([1.0, 3.0, 2.0])
    weights, ids = select_experts(
        torch.zeros(1, 2, 12, device=DEVICE), topk_rule(config), bias, None,
        logits_dtype=torch.float32,
    )  # fmt: skip
    assert ids.tolist() == [[7, 8, 6]] * 2
    assert torch.equal(weights, torch.full((2, 3), 0.5, device=DEVICE))


def test_sigmoids_that_are_all_zero_are_not_divided_by_it() -> None:
    config = make_config(8, 2, **DEEPSEEK_V3, n_group=2, topk_group=1)
    check_kind(torch.full((1, 2, 8), -200.0, device=DEVICE), config, torch.float32, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sparsemixer_counts_what_is_near(dtype: torch.dtype) -> None:
    """Of logits 4, 3, 3, −1 only those at a distance of at most half of the larger count."""
    config = make_config(4, 2, router="sparsemixer", router_jitter_noise=0.25)
    logits = torch.tensor([[[3.0, 4.0, -1.0, 3.0]]], device=DEVICE, dtype=dtype)
    weights, ids = select_experts(logits, topk_rule(config), None, None, logits_dtype=dtype)
    assert ids.tolist() == [[1, 0]]
    first = 1 / (1 + 2 * torch.tensor(-1.0).exp().item())
    torch.testing.assert_close(weights.cpu(), torch.tensor([[first, 0.5]]))


@pytest.mark.parametrize("kind", ["softmax_bias", "sparsemixer"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
def test_an_ungrouped_kind_that_is_not_finite(kind: str, bad: float) -> None:
    """As of grouped kinds."""
    config = make_config(12, 2, router=kind, router_jitter_noise=0.01)
    bias = torch.zeros(12, device=DEVICE) if config.has_correction_bias else None
    logits = torch.randn(1, 2, 12, device=DEVICE)
    logits[0, 0, 4] = bad
    weights, ids = select_experts(logits, topk_rule(config), bias, None, logits_dtype=torch.float32)
    assert ((ids >= 0) & (ids < 12)).all()
    assert ids[0, 0] != ids[0, 1]
    assert weights[0].isnan().any()
    assert torch.equal(ids[1:], oracle(logits[0, 1:], config, bias).ids)


@pytest.mark.parametrize("kind", ["group_limited_greedy", "sigmoid", "noaux_tc", "softmax_groups"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_kind_that_is_not_finite(kind: str, bad: float, everywhere: bool) -> None:
    """Ids are in range and distinct, and NaN shows in the weights."""
    config = make_config(12, 5, router=kind, n_group=4, topk_group=2, norm_topk_prob=True)
    logits = torch.randn(1, 2, 12, device=DEVICE)
    logits[0, 0, slice(None) if everywhere else 4] = bad
    weights, ids = select_experts(logits, topk_rule(config), None, None, logits_dtype=torch.float32)
    assert ((ids >= 0) & (ids < 12)).all()
    assert all(len(set(row)) == 5 for row in ids.tolist())
    assert weights[0].isnan().any() or bad == bad
    assert torch.equal(ids[1:], oracle(logits[0, 1:], config).ids)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 32, 256, 8192])
@pytest.mark.parametrize("E", [128, 512])
@pytest.mark.parametrize("S", [1, 4, 16])
def test_real_shapes(T: int, E: int, S: int) -> None:
    """bf16, whose distinct logits have distinct scores: of so many in fp32 some would not."""
    check(torch.randn(S, T, E, device="cuda"), 8, True, torch.bfloat16, T - T // 5)


def separated(logits_TE: torch.Tensor, config: MoEConfig, bias_E: torch.Tensor | None) -> Any:
    """[T]: rows whose choice of experts and of groups hangs on no difference of a few roundings."""
    sigmoid = config.router in ("sigmoid", "noaux_tc")
    scores = logits_TE.sigmoid() if sigmoid else logits_TE.softmax(-1)
    scores = scores if bias_E is None else scores + bias_E
    best = scores.sort(dim=1, descending=True).values[:, : 4 * config.num_experts_per_tok]
    clear = (-best.diff(dim=1) > 1e-6 * best[:, 1:].abs()).all(dim=1)
    if config.n_group > 1:
        groups = (
            scores.view(len(scores), config.n_group, -1).topk(1 if bias_E is None else 2).values
        )
        totals = groups.sum(dim=-1).sort(dim=1, descending=True).values
        edge = totals[:, config.topk_group - 1] - totals[:, config.topk_group]
        clear &= edge > 1e-6 * totals[:, config.topk_group].abs()
    return clear


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 64, 4096])
@pytest.mark.parametrize("S", [1, 8])
@pytest.mark.parametrize("model", [name for name in MODELS if "qwen" not in name])
def test_real_shapes_of_models(model: str, S: int, T: int) -> None:
    """fp32 logits: rows that a rounding of torch's scores could decide otherwise are left out."""
    E, k, kind = MODELS[model]
    config = make_config(E, k, **kind)
    bias, parts = make_bias(config), torch.randn(S, T, E, device="cuda")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    clear = separated(total, config, bias)
    assert clear.float().mean() > 0.9
    check_kind(parts[:, clear], config, torch.float32, int(clear.sum()), bias, pdl=True)
