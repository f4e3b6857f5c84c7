"""Loading is strict and rank-local: bytes are counted; tensors that do not fit have one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe.base.parallel import ParallelConfig, resolve_parallel
from moe.dispatch import ExpertGroups
from tests.workers.tiny_models import random_config, save_model
from workers.checkpoint import Checkpoint
from workers.config_json.model_config import ModelConfig
from workers.distributed import Groups
from workers.model_checkpoint import with_headers
from workers.models.base import BuildContext
from workers.models.decoder import Decoder
from workers.scale_blocks import with_quantization
from workers.weight_loading import expected_bytes, load_weights, make_up_weights

SHARDED = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE with 4 query heads, 2 KV heads and 7 experts."""
    path = tmp_path_factory.mktemp("model")
    config = random_config(1, moe=True)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 8
    config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size = 7, 2, 8
    config.decoder_sparse_step, config.mlp_only_layers = 1, [0]
    config.tie_word_embeddings = False
    save_model(config, path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy in two shards with an index, to be damaged."""
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy"
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        SHARDED: names[len(names) // 2 :],
    }
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, path / file)
    write_index(path, {name: file for file, part in shards.items() for name in part})
    return path


def write_index(path: Path, mapping: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": mapping}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def model_of(
    path: Path, parallel: ParallelConfig, rank: int, device: str = "cpu", *, quantize: str = "auto"
) -> torch.nn.Module:
    """One rank's share of the model; its process groups are never used."""
    config = with_quantization(ModelConfig.from_folder(path), quantize, parallel, made_up=False)
    if config.reads_int4:
        config = with_headers(config, Checkpoint(path, int4=True))
    tp, spread = parallel.tp, parallel.ep > 1
    group: Any = object()
    groups = Groups(
        rank=rank,
        world_size=parallel.world_size,
        tp_rank=rank % tp,
        tp_size=tp,
        dp_rank=rank // tp,
        dp_size=parallel.dp,
        tp_group=None,
        world_group=None,
    )
    experts = ExpertGroups(
        tp_group=group if tp > 1 else None,
        tp_rank=groups.tp_rank,
        tp_size=tp,
        dp_rank=groups.dp_rank,
        dp_size=parallel.dp,
        ep_group=group if spread else None,
        ep_rank=rank if spread else 0,
        ep_size=parallel.ep,
    )
    build = BuildContext(
        max_tokens=64,
        context=None,
        groups=groups,
        expert_groups=experts,
        parallel=parallel,
        moe_runner="fused",
        max_positions=64,
        dtype=torch.float32,
        device=torch.device(device),
        quantization=config.quantization,
    )
    return Decoder(config, build)


def layout(tp: int, dp: int, ep: int | None) -> ParallelConfig:
    return resolve_parallel(tp=tp, dp=dp, ep=ep, backend="auto", has_experts=True)


@pytest.mark.parametrize(("tp", "dp", "ep"), [(1, 1, None), (2, 1, None), (2, 1, 1), (4, 1, 4)])
def test_a_rank_reads_its_own_bytes_and_no_more(folder: Path, tp: int, dp: int, ep: int) -> None:
    parallel = layout(tp, dp, ep)
    whole = load_file(folder / "model.safetensors")
    filled: dict[str, torch.Tensor] = {
        name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in whole.items()
    }
    for rank in range(parallel.world_size):
        model, checkpoint = model_of(folder, parallel, rank), Checkpoint(folder)
        told: list[tuple[int, int]] = []
        loaded = load_weights(
            model.checkpoint_slices(),
            checkpoint,
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        held = sum(
            parameter.numel() * 4
            for name, parameter in model.named_parameters()
            if not name.endswith("bias")
        )
        assert loaded.bytes_read == expected_bytes(model.checkpoint_slices(), checkpoint) == held
        assert [total for _, total in told] == [held] * len(told)
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert told[-1][0] == held
        for piece in model.checkpoint_slices():
            if piece.target is not None:
                assert torch.equal(piece.target, whole[piece.name][piece.index])
                filled[piece.name][piece.index] = True
    assert all(mask.all() for mask in filled.values()), "a part of the checkpoint is on no rank"


def test_made_up_weights_are_the_same_in_any_layout(folder: Path) -> None:
    single = model_of(folder, layout(1, 1, None), 0)
    make_up_weights(single.checkpoint_slices(), seed=3)
    whole = {piece.name: piece.target for piece in single.checkpoint_slices()}
    norms = [tensor for name, tensor in whole.items() if name.endswith("norm.weight")]
    others = torch.cat([t.flatten() for n, t in whole.items() if not n.endswith("norm.weight")])
    assert all((norm == 1).all() for norm in norms)
    assert abs(float(others.std()) - 0.02) < 1e-3
    assert abs(float(others.mean())) < 1e-3
    for rank in range(2):
        for piece in (part := model_of(folder, layout(2, 1, None), rank)).checkpoint_slices():
            if piece.target is not None:
                piece.target.fill_(float("nan"))
        make_up_weights(part.checkpoint_slices(), seed=3)
        for piece in part.checkpoint_slices():
            if piece.target is not None:
                assert torch.equal(piece.target, whole[piece.name][piece.index])


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def drop_tensor(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    rewrite(path / SHARDED, change)


def drop_from_index_too(path: Path) -> None:
    drop_tensor(path)
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    write_index(path, {k: v for k, v in index.items() if k != "model.norm.weight"})


def add_tensor(path: Path) -> None:
    rewrite(path / SHARDED, lambda tensors: tensors.update(extra=torch.zeros(2)))


def wrong_shape(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    rewrite(path / SHARDED, change)


def wrong_dtype(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)

    rewrite(path / SHARDED, change)


# What is done to the folder, and what the one line must name.
DAMAGES = {
    drop_tensor: (SHARDED, "model.norm.weight is missing"),
    drop_from_index_too: ("copy", "model.norm.weight is missing"),
    add_tensor: (SHARDED, "tensor extra is not part"),
    wrong_shape: (SHARDED, "model.norm.weight has shape"),
    wrong_dtype: (SHARDED, "model.norm.weight has type I8"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_has_its_one_line(damage: Callable[[Path], None], copy: Path) -> None:
    model = model_of(copy, layout(2, 1, None), 1)
    before = [parameter.clone() for parameter in model.parameters()]
    damage(copy)
    with pytest.raises(ValueError) as raised:
        load_weights(model.checkpoint_slices(), Checkpoint(copy))
    file, what = DAMAGES[damage]
    line = str(raised.value)
    assert file in line
    assert what in line
    assert "\n" not in line
    after = list(model.parameters())
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)
    )


def test_an_intact_copy_in_shards_loads(copy: Path) -> None:
    model = model_of(copy, layout(1, 1, None), 0)
    loaded = load_weights(model.checkpoint_slices(), Checkpoint(copy))
    assert loaded.bytes_read == sum(p.numel() * 4 for p in model.parameters())


def test_saved_tables_of_positions_are_skipped(copy: Path) -> None:
    """They follow from config.json, and old programs save them."""
    index = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(copy / SHARDED, lambda tensors: tensors.update({name: torch.zeros(4).double()}))
    write_index(copy, {**index, name: SHARDED})
    model = model_of(copy, layout(1, 1, None), 0)
    loaded = load_weights(model.checkpoint_slices(), Checkpoint(copy))
    assert loaded.bytes_read == sum(p.numel() * 4 for p in model.parameters())
