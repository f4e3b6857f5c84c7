"""How a rank's runners are made: one for the warm-up, on a small cache, and the one that serves.

Owns what they share: batch builder, sampler, result buffer and roofline. Knows nothing of the order
of a start.
"""

from __future__ import annotations

import torch

from moe.placement import ExpertPlacement
from workers.attention.kv_cache import KVCache
from workers.attention.mla_spec import MlaSpec, head_groups
from workers.attention.plan import MAX_GROUP, MAX_HEAD_DIM, AttentionKind
from workers.attention.spec import AttentionSpec
from workers.config import WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.models.base import BuildContext, Model
from workers.sampling.triton_sampler import TritonSampler
from workers.step.batch import AttentionShape, BatchBuilder
from workers.step.forward import StepForward
from workers.step.graphs import NO_GRAPHS, StepGraphs
from workers.step.result_buffer import ResultBuffer
from workers.step.roofline import Roofline, device_ceilings
from workers.step.runner import Measure, Runner
from workers.step.token_sampler import TokenSampler


class RunnerFactory:
    """Makes runners of one model. They share buffers, so no two of them may have steps in flight.

    Raises:
        ValueError: attention kernels do not take the model's heads.
    """

    def __init__(
        self,
        model: Model,
        config: WorkerConfig,
        model_config: ModelConfig,
        build: BuildContext,
        kv_cache_dtype: str,
    ) -> None:
        self.model = model
        self.device = build.device
        self.builder = BatchBuilder(
            num_slots=config.max_batch_size,
            max_blocks=-(-build.max_positions // config.block_size),
            block_size=config.block_size,
            max_tokens=build.max_tokens,
            device=build.device,
            attention=attention_shape(model_config, model.num_kv_heads, build),
            num_groups=model.layer_groups.num_groups,
            num_kept_states=None if model.state_sizes(1) is None else num_kept_states(config),
            picks_drawn=build.parallel.dp == 1,
        )
        load = model.expert_load
        self.results = ResultBuffer(
            num_slots=config.max_batch_size,
            num_sparse_layers=0 if load is None else load.num_layers,
            device=build.device,
        )
        self.sampler = TokenSampler(
            model.logits,
            self.builder.logits_processor,
            last_token_S=self.builder.last_token,
            out_tokens_S=self.results.tokens_S,
            reports=build.groups.tp_rank == 0,
            triton=_triton_sampler(config, model_config, build),
        )
        self.measure = _measure(model_config, build, kv_cache_dtype)

    def forward(self, cache: KVCache, model: Model | None = None) -> StepForward:
        """What a runner on this cache runs, and what its graphs capture; of the factory's model, or
        of one with fewer of its layers."""
        return StepForward(model or self.model, cache, self.results.hits_L)

    def runner(self, forward: StepForward, graphs: StepGraphs = NO_GRAPHS) -> Runner:
        """A runner whose graphs, if any, were captured from `forward`."""
        return Runner(forward, self.builder, self.sampler, self.results, self.measure, graphs)


def attention_shape(
    config: ModelConfig, kv_heads: int, build: BuildContext
) -> AttentionShape | None:
    """By what kernels divide attention; None without kernels.

    Raises:
        ValueError: as above.
    """
    if build.context is None:
        return None
    tp = build.parallel.tp
    for spec in dict.fromkeys(config.cached):
        if isinstance(spec, MlaSpec):
            _check_latents(spec)
            kv_heads = head_groups(spec.num_heads // tp)
        else:
            _check_heads(spec)
    kinds = {
        AttentionKind(each.window_within(build.max_positions), each.num_heads // tp): None
        for each in config.cached
    }
    return AttentionShape(
        kinds=tuple(kinds),
        kv_heads=kv_heads,
        num_cores=build.context.num_cores,
    )


def _check_heads(spec: AttentionSpec) -> None:
    group = spec.num_heads // spec.cache_heads
    if max(spec.key_width, spec.value_width) > MAX_HEAD_DIM or group > MAX_GROUP:
        raise ValueError(
            f"head_dim {spec.key_width} with {group} query heads a KV head: attention kernels "
            f"take at most {MAX_HEAD_DIM} and {MAX_GROUP}; use --device cpu"
        )


def _check_latents(spec: MlaSpec) -> None:
    for name, width, most in (
        ("kv_lora_rank", spec.kv_lora_rank, 512),
        ("qk_nope_head_dim", spec.qk_nope_head_dim, 256),
        ("qk_rope_head_dim", spec.qk_rope_head_dim, 64),
        ("v_head_dim", spec.v_head_dim, 256),
    ):
        if width > most:
            raise ValueError(
                f"{name} {width}: attention kernels over latents take at most {most}; "
                "use --device cpu"
            )


def _triton_sampler(
    config: WorkerConfig, model_config: ModelConfig, build: BuildContext
) -> TritonSampler | None:
    if build.context is None:
        return None
    return TritonSampler(
        max_rows=config.max_batch_size,
        vocab_size=model_config.vocab_size,
        device=build.device,
        pdl=build.context.pdl,
    )


def _measure(config: ModelConfig, build: BuildContext, kv_cache_dtype: str) -> Measure:
    dtype = str(build.dtype).removeprefix("torch.")
    roofline = Roofline.of_rank(
        config,
        build.parallel,
        num_local_experts=_num_local(config, build),
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
    )
    return Measure(roofline, device_ceilings(device_name(build.device), dtype))


def _num_local(config: ModelConfig, build: BuildContext) -> int:
    """Experts of this rank in each sparse layer."""
    if config.moe is None:
        return 0
    groups = build.expert_groups
    return ExpertPlacement(
        num_experts=config.moe.num_experts, num_ranks=groups.ep_size, rank=groups.ep_rank
    ).num_local


def device_name(device: torch.device) -> str:
    """The name of a card as its driver says it, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def num_kept_states(config: WorkerConfig) -> int:
    """States beside those of slots."""
    return config.max_batch_size // 2 if config.kept_states is None else config.kept_states
