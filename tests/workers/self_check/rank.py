"""Ranks of made-up models, ready for their self-check, whose kernels are interpreted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe.base.parallel import resolve_parallel
from tests.moe.builders import interpreted
from tests.workers.fp8_models import fp8_config
from workers.attention.kv_cache import FP8, CacheSizes
from workers.config import WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.distributed import Groups, expert_groups
from workers.layers.norm import RMSNorm
from workers.models.base import BuildContext, Model
from workers.models.decoder import Decoder
from workers.rank.kv_sizing import cache_sizes
from workers.rank.runner_factory import RunnerFactory
from workers.scale_blocks import with_quantization
from workers.self_check.checks import CHECKS, check_rank, kernel_checks, make_setting
from workers.self_check.finding import Finding
from workers.self_check.setting import Setting
from workers.weight_loading import make_up_weights

TRINITY: dict[str, Any] = {
    "model_type": "afmoe", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "moe_intermediate_size": 32, "num_shared_experts": 1,
}  # fmt: skip
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 512, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
NOBODY: Any = object()  # in the place of a process group


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MadeRank:
    """What a start has when it checks itself."""

    model: Model
    factory: RunnerFactory
    sizes: CacheSizes
    build: BuildContext
    vocab_size: int

    @property
    def setting(self) -> Setting:
        """Of the checks."""
        assert isinstance(self.model, nn.Module)
        return make_setting(self.model, self.factory.builder, self.sizes, self.build)

    def check(self) -> None:
        """As the start does."""
        sampler = self.factory.sampler.triton
        arguments = self.model, self.factory.builder, sampler, self.sizes, self.build
        check_rank(*arguments, vocab_size=self.vocab_size)

    @torch.inference_mode()
    def all_findings(self) -> list[Finding]:
        """Of all modules."""
        assert isinstance(self.model, nn.Module)
        return [each for _, check in kernel_checks(self.model, self.setting) for each in check]

    @torch.inference_mode()
    def findings(self, kind: type[nn.Module]) -> list[Finding]:
        """Of the model's first module of a kind."""
        return list(self._findings(kind))

    @torch.inference_mode()
    def first_wrong(self, kind: type[nn.Module]) -> str:
        """What it is of, as the start would say; "" where all are right."""
        return first_wrong(self._findings(kind))

    def _findings(self, kind: type[nn.Module]) -> Iterator[Finding]:
        setting = self.setting
        yield from CHECKS[kind](setting.norm if kind is RMSNorm else self.first(kind), setting)

    def first(self, kind: type[nn.Module]) -> nn.Module:
        """The model's first module of a kind."""
        assert isinstance(self.model, nn.Module)
        return next(each for each in self.model.modules() if isinstance(each, kind))


@torch.inference_mode()
def make_rank(
    *,
    moe: bool = True,
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
    said: dict[str, Any] | None = None,
    fp8_cache: bool = False,
    max_batch_size: int = 4,
    max_tokens: int = 20,
    tp: int = 1,
    dp: int = 1,
    backend: str = "auto",
    router: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> MadeRank:
    """The last rank of a layout, of a model of `fp8_config`; nothing is exchanged.

    Args:
        fp8, fp8_cache: weights, keys and values have 8 bits.
        said: config.json of its weights.
        router: numbers of its `MoEConfig`.
        config: config.json of another model.
    """
    parallel = resolve_parallel(tp=tp, dp=dp, ep=None, backend=backend, has_experts=moe)
    groups = Groups(
        rank=tp * dp - 1,
        world_size=tp * dp,
        tp_rank=tp - 1,
        tp_size=tp,
        dp_rank=dp - 1,
        dp_size=dp,
        tp_group=NOBODY if tp > 1 else None,
        world_group=NOBODY if tp * dp > 1 else None,
    )
    raw = config or fp8_config(moe=moe, **changes).to_dict()
    raw = raw | {"quantization_config": said}
    flag = "fp8" if fp8 else "auto"
    model_config = with_quantization(ModelConfig.from_hf(raw), flag, parallel, made_up=True)
    if router is not None:
        assert model_config.moe is not None
        moe_config = dataclasses.replace(model_config.moe, **router)
        model_config = dataclasses.replace(model_config, moe=moe_config)
    build = BuildContext(
        groups=groups,
        expert_groups=expert_groups(groups, parallel),
        parallel=parallel,
        moe_runner="fused",
        max_positions=model_config.max_position_embeddings,
        max_tokens=max_tokens,
        context=interpreted(dtype),
        dtype=dtype,
        device=torch.device("cpu"),
        quantization=model_config.quantization,
    )
    model = Decoder(model_config, build)
    make_up_weights(model.checkpoint_slices(), 0)
    flags = WorkerConfig(model=Path(), listen="unix:", max_batch_size=max_batch_size)
    cache = "fp8_e4m3" if fp8_cache else str(dtype).removeprefix("torch.")
    return MadeRank(
        model=model,
        factory=RunnerFactory(model, flags, model_config, build, cache),
        sizes=cache_sizes(
            model, model_config, flags.block_size, FP8 if fp8_cache else dtype, max_batch_size
        ),
        build=build,
        vocab_size=model_config.vocab_size,
    )


def first_wrong(findings: Iterator[Finding]) -> str:
    """What the first that no start would pass is of; "" where all are right."""
    return next((each.what for each in findings if not each.is_right), "")
