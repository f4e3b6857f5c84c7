"""The flags' truth table, and the checks of a layer's numbers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from moe.base.parallel import resolve_parallel
from moe.config import MoEConfig, check_widths, resolve_router, resolve_runner

AG_RS = "allgather_reducescatter"


def resolve(
    tp: int = 1, dp: int = 1, ep: int | None = None, backend: str = "auto", experts: bool = True
) -> Any:
    return resolve_parallel(tp=tp, dp=dp, ep=ep, backend=backend, has_experts=experts)


@pytest.mark.parametrize(
    ("tp", "dp", "ep", "backend", "expected"),
    [
        (1, 1, None, "auto", ("disabled", 1)),
        (1, 1, 1, "auto", ("disabled", 1)),
        (4, 1, None, "auto", ("local_allreduce", 4)),
        (4, 1, 4, "auto", ("local_allreduce", 4)),
        (4, 1, 1, "auto", ("disabled", 1)),
        (1, 4, None, "auto", (AG_RS, 4)),
        (2, 2, 4, "auto", (AG_RS, 4)),
        (2, 2, 1, "auto", ("disabled", 1)),
        (1, 1, None, "disabled", ("disabled", 1)),
        (4, 1, None, "disabled", ("disabled", 1)),
        (2, 3, None, "disabled", ("disabled", 1)),
        (2, 3, 1, "disabled", ("disabled", 1)),
        (2, 1, None, "local_allreduce", ("local_allreduce", 2)),
        (2, 1, 2, AG_RS, (AG_RS, 2)),
        (2, 3, None, AG_RS, (AG_RS, 6)),
        (2, 1, None, "all_to_all", ("all_to_all", 2)),
        (2, 2, 4, "all_to_all", ("all_to_all", 4)),
    ],
)
def test_truth_table(
    tp: int, dp: int, ep: int | None, backend: str, expected: tuple[str, int]
) -> None:
    parallel = resolve(tp, dp, ep, backend)
    assert (parallel.backend, parallel.ep) == expected
    assert (parallel.tp, parallel.dp, parallel.world_size) == (tp, dp, tp * dp)
    assert parallel.tokens_replicated == (expected[0] in ("disabled", "local_allreduce"))


@pytest.mark.parametrize(
    ("alias", "backend"),
    [
        ("", "local_allreduce"),
        ("  Auto ", "local_allreduce"),
        ("none", "disabled"),
        ("OFF", "disabled"),
        ("standard", "disabled"),
        ("0", "disabled"),
        (" Disabled", "disabled"),
        ("naive", AG_RS),
        ("AG_RS", AG_RS),
        ("all_gather_reduce_scatter", AG_RS),
        ("local_all_reduce", "local_allreduce"),
        ("tp_ep", "local_allreduce"),
        ("vllm_tp", "local_allreduce"),
        ("dp1", "local_allreduce"),
        ("a2a", "all_to_all"),
        ("AllToAll", "all_to_all"),
    ],
)
def test_aliases(alias: str, backend: str) -> None:
    assert resolve(tp=2, backend=alias).backend == backend


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tp": 0}, ["--tp", "at least 1", "got 0"]),
        ({"dp": -1}, ["--dp", "at least 1", "got -1"]),
        ({"ep": 0}, ["--ep", "at least 1", "got 0"]),
        ({"tp": 4, "ep": 2}, ["--ep", "1 or 4", "--tp 4", "got 2"]),
        ({"ep": 2}, ["--ep must be 1 ", "got 2"]),
        ({"tp": 2, "ep": 2, "backend": "disabled"}, ["disabled", "--tp 2", "--ep 2"]),
        ({"backend": "local_allreduce"}, ["local_allreduce", "--ep 1", "disabled"]),
        ({"tp": 2, "ep": 1, "backend": "ag_rs"}, [AG_RS, "--tp 2", "--ep 1"]),
        ({"dp": 2, "ep": 1, "backend": "all_to_all"}, ["all_to_all", "--dp 2", "--ep 1"]),
        ({"dp": 2, "backend": "dp1"}, ["local_allreduce", "--dp 2", AG_RS, "all_to_all"]),
        ({"backend": "nccl"}, ["'nccl'", "auto", "disabled", AG_RS, "all_to_all", "deepep"]),
        ({"backend": "nccl", "experts": False}, ["'nccl'", "auto"]),
        ({"tp": 2, "backend": "deep_ep"}, ["deepep", "reserved", "not installed", "all_to_all"]),
    ],
)
def test_errors(flags: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(**flags)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("backend", ["auto", "all_to_all", "local_allreduce", "disabled"])
def test_without_experts(backend: str) -> None:
    parallel = resolve(tp=2, dp=2, ep=4, backend=backend, experts=False)
    assert (parallel.backend, parallel.ep) == ("disabled", 1)
    assert parallel.reason == "the model has no experts"


def test_log_line() -> None:
    assert resolve().log_line == "MoE EP backend: disabled  TP=1  DP=1  EP=1"
    line = resolve(tp=2, dp=4).log_line
    assert line == "MoE EP backend: allgather_reducescatter  TP=2  DP=4  EP=8"
    assert resolve(tp=2).reason.startswith("auto: ")
    assert "--moe-ep-backend all_to_all" in resolve(tp=2, backend="a2a").reason


def test_runner_names() -> None:
    assert resolve_runner("auto") == "fused"
    assert resolve_runner(" AUTO") == "fused"
    assert resolve_runner("Legacy") == "legacy"
    assert resolve_runner("fused") == "fused"
    with pytest.raises(ValueError, match=r"'triton'.*auto, fused, legacy"):
        resolve_runner("triton")


def config(**changes: Any) -> MoEConfig:
    numbers: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_experts": 12,
        "num_experts_per_tok": 3,
    }
    return MoEConfig(**(numbers | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"num_experts_per_tok": 0}, ["num_experts_per_tok", "12", "got 0"]),
        ({"num_experts_per_tok": 13}, ["num_experts_per_tok", "12", "got 13"]),
        ({"router": "hash"}, ["'hash'", "softmax", "noaux_tc"]),
        ({"router": "noaux_tc", "topk_group": 1}, ["n_group=0", "12"]),
        ({"router": "noaux_tc", "n_group": 5, "topk_group": 1}, ["n_group=5", "12"]),
        ({"router": "group_limited_greedy", "n_group": 4}, ["topk_group", "4", "got 0"]),
        ({"router": "sigmoid", "n_group": 6, "topk_group": 1}, ["leaves 2 experts", "=3"]),
        ({"shared_expert_size": -1}, ["shared_expert_size", "-1"]),
        ({"norm_min": -0.5}, ["norm_min", "-0.5"]),
        ({"router": "softmax_groups"}, ["n_group=0", "12"]),
        ({"router": "sparsemixer"}, ["sparsemixer", "num_experts_per_tok", "got 3"]),
        ({"shared_expert_gated": True}, ["shared_expert_gated", "shared_expert_size"]),
    ],
)
def test_config_errors(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        config(**changes)
    assert [word for word in words if word not in str(caught.value)] == []


def test_widths_that_tp_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"moe_intermediate_size=6.*--tp 4"):
        check_widths(config(), resolve(tp=4, ep=1))
    shared = config(intermediate_size=8, shared_expert_size=6)
    for parallel in (resolve(tp=4, ep=1), resolve(tp=4)):
        with pytest.raises(ValueError, match=r"shared experts' width=6.*--tp 4"):
            check_widths(shared, parallel)
    check_widths(config(), resolve(tp=4))
    check_widths(config(shared_expert_size=6), resolve(tp=4, backend="all_to_all"))


@pytest.mark.parametrize(
    ("model", "router"),
    [
        ({}, "softmax"),
        ({"scoring_func": "sigmoid"}, "sigmoid"),
        ({"scoring_func": "sigmoid", "topk_method": "noaux_tc"}, "noaux_tc"),
        ({"scoring_func": "softmax", "topk_method": "greedy"}, "greedy"),
        ({"topk_method": "group_limited_greedy"}, "group_limited_greedy"),
        ({"moe_router_backend": "fused_gate", "scoring_func": "softmax"}, "noaux_tc"),
        ({"scoring_func": "softmax_bias"}, "softmax_bias"),
        ({"scoring_func": "sparsemixer"}, "sparsemixer"),
        ({"moe_router_backend": "softmax", "topk_method": "noaux_tc"}, "softmax"),
        ({"moe_router_backend": "sigmoid", "topk_method": "noaux_tc"}, "sigmoid"),
    ],
)
def test_router_kinds(model: dict[str, str], router: str) -> None:
    assert resolve_router(model) == router


@pytest.mark.parametrize("key", ["moe_router_backend", "scoring_func", "topk_method"])
def test_unknown_router(key: str) -> None:
    with pytest.raises(ValueError, match=r"'sparsemax'.*noaux_tc"):
        resolve_router({key: "sparsemax"})


@pytest.mark.processes
def test_config_imports_no_torch() -> None:
    code = "import sys, moe.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
