"""4-bit weights are read strictly and rank-locally."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.base.weight import Weight
from tests.refusals import refusal
from tests.workers.fp8_models import fp8_config
from tests.workers.int4_models import save_int4
from tests.workers.models.test_int4_parity import FORMS
from tests.workers.test_fp8_loading import LAYOUTS, Tensors, change_tensors
from tests.workers.test_weight_loading import layout, model_of
from workers.checkpoint import VALUE_BYTES, Checkpoint
from workers.models.decoder import Decoder
from workers.weight_loading import expected_bytes, load_weights

QUERY = "model.layers.0.self_attn.q_proj."
GATE = "model.layers.0.mlp.experts.3.gate_proj."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models in groups of 32 inputs, experts 64 wide."""
    made: dict[str, Path] = {}

    def folder(form: str) -> Path:
        if form not in made:
            made[form] = tmp_path_factory.mktemp("int4")
            save_int4(fp8_config(), made[form], FORMS[form])
        return made[form]

    return folder


def loaded(folder: Path, tp: int, dp: int, ep: int | None, rank: int) -> Any:
    model, checkpoint = model_of(folder, layout(tp, dp, ep), rank), Checkpoint(folder, int4=True)
    slices = list(model.checkpoint_slices())  # type: ignore[operator]
    assert load_weights(slices, checkpoint).bytes_read == expected_bytes(slices, checkpoint)
    return model


@pytest.mark.parametrize("form", ["gptq", "gptq asymmetric", "awq", "packed asymmetric"])
@pytest.mark.parametrize(("tp", "dp", "ep"), LAYOUTS)
def test_a_rank_holds_its_part_of_the_matrices(
    tp: int, dp: int, ep: int | None, form: str, folders: Callable[[str], Path]
) -> None:
    """Of layers' parts those of one rank that holds all, whatever the words of the file hold."""
    folder = folders(form)
    whole = loaded(folder, 1, 1, None, 0)
    parallel = layout(tp, dp, ep)
    for rank in range(parallel.world_size):
        model = loaded(folder, tp, dp, ep, rank)
        assert isinstance(model, Decoder)
        for ours, theirs in zip(model.layers, whole.layers, strict=True):
            attention, theirs_attention = ours.self_attn, theirs.self_attn
            tp_rank = rank % tp
            assert_part(attention.o_proj.weight, theirs_attention.o_proj.weight, 1, tp_rank, tp)
            sizes = attention.qkv_proj.splits
            for mine, all_rows in zip(
                attention.qkv_proj.weight.split(sizes),
                theirs_attention.qkv_proj.weight.split([size * tp for size in sizes]),
                strict=True,
            ):
                assert_part(mine, all_rows, 0, tp_rank, tp)
            if hasattr(ours.mlp, "block"):
                check_experts(ours.mlp.block.experts, theirs.mlp.block.experts)


def check_experts(ours: Any, whole: Any) -> None:
    shares = whole.width // ours.width
    part = ours.first_column // ours.width
    for local in range(ours.placement.num_local):
        expert = local + ours.placement.start
        assert_part(ours.w2[local], whole.w2[expert], 1, part, shares)
        both = zip(
            ours.w13[local].split([ours.width] * 2),
            whole.w13[expert].split([whole.width] * 2),
            strict=True,
        )
        for mine, all_rows in both:
            assert_part(mine, all_rows, 0, part, shares)


def assert_part(ours: Weight, whole: Weight, dim: int, part: int, shares: int) -> None:
    expected = whole.plain(torch.float32).chunk(shares, dim)[part]
    assert torch.equal(ours.plain(torch.float32), expected)


def test_all_bytes_are_read_and_no_more(folders: Callable[[str], Path]) -> None:
    """By two ranks, which both have norms, embedding and routers, and the groups of all inputs
    where they have rows of a matrix."""
    folder = folders("gptq")
    checkpoint = Checkpoint(folder, int4=True)
    sizes = {
        name: VALUE_BYTES[info.dtype] * math.prod(info.shape)
        for name, info in checkpoint.tensors.items()
    }
    both = re.compile(r".*(norm\.weight|embed_tokens\.weight|mlp\.gate\.weight"
                      r"|self_attn\.[qkv]_proj\.g_idx|mlp\.(gate|up)_proj\.g_idx)$")  # fmt: skip
    twice = sum(size for name, size in sizes.items() if both.match(name))
    total = 0
    for rank in range(2):
        model = model_of(folder, layout(2, 1, None), rank)
        total += expected_bytes(model.checkpoint_slices(), checkpoint)  # type: ignore[operator]
    assert total == sum(sizes.values()) + twice


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("gptq", lambda t: t.pop(f"{QUERY}qzeros"), f"{QUERY}qzeros is missing"),
        ("gptq", lambda t: t.pop(f"{GATE}g_idx"), f"{GATE}g_idx is missing"),
        (
            "gptq",
            lambda t: t.update({f"{QUERY}qweight": t[f"{QUERY}qweight"].float()}),
            f"{QUERY}qweight has type F32, config.json asks for I32",
        ),
        (
            "gptq",
            lambda t: t.update({f"{QUERY}scales": t[f"{QUERY}scales"].float()}),
            f"{QUERY}scales has type F32, config.json asks for F16",
        ),
        (
            "awq",
            lambda t: t.update({f"{QUERY}qweight": t[f"{QUERY}qweight"].t().contiguous()}),
            f"{QUERY}qweight has shape [16, 64], config.json asks for [64, 16]",
        ),
        (
            "gptq",
            lambda t: t.update({f"{QUERY}g_idx": t[f"{QUERY}g_idx"].flip(0)}),
            f"{QUERY}g_idx says that groups are not of inputs in order",
        ),
        (
            "gptq",
            lambda t: t[f"{QUERY}qzeros"][1].add_(1),
            f"{QUERY}qzeros has zero points other than 8",
        ),
        (
            "packed",
            lambda t: t.update({f"{GATE}weight_shape": torch.tensor([64, 128])}),
            f"{GATE}weight_shape is not [64, 64]",
        ),
        (
            "packed",
            lambda t: t.update({f"{GATE}weight_zero_point": torch.ones(8, 2).int()}),
            f"{GATE}weight_zero_point is not part",
        ),
        (
            "packed",
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].int()}),
            "model.norm.weight has type I32, config.json asks for BF16, F16 or F32",
        ),
    ],
)
def test_what_does_not_fit_has_its_one_line(
    form: str,
    change: Callable[[Tensors], Any],
    words: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    copy = change_tensors(folders(form), tmp_path / "copy", change)
    assert words in refusal(lambda: loaded(copy, 1, 1, None, 0))


def test_whole_numbers_that_config_json_does_not_tell_of(folders: Callable[[str], Path]) -> None:
    line = refusal(lambda: Checkpoint(folders("gptq")))
    assert "has type I32, supported are BF16, F16, F32" in line
