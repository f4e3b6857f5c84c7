"""The least time a step can take: bytes that must move over the device's bandwidth, or operations
over its rate, whichever is longer.

Owns the arithmetic and the measured ceilings of known devices. Imports no torch. Knows nothing of
how steps are run or measured.

Counted: the matrices of attention, router, head and MLPs, those of experts when they are hit, and
keys and values, each read or written once, of layers with a window those that it shows; 8-bit
matrices with their scales. In the last layer only tokens that are drawn behind need an output
projection and an MLP. Neglected:
activations, embedding rows, norms, and what ranks say to each other. So it is less than any device
can need, by about 1 % in decodes. An operation on 8-bit weights counts half: tensor cores do two in
the time of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from moe.base.parallel import ParallelConfig
from workers.attention.any import CachedAttention
from workers.config_json.model_config import ModelConfig
from workers.linear_attention.spec import DeltaSpec
from workers.step.weight_counts import dense_weights, expert_weights, last_weights

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Ceilings of one device: bytes/s of a copy (read and written), FLOP/s of an 8192³ product."""

    name: str
    bytes_per_second: float
    flops_per_second: float

    def least_seconds(self, bytes_moved: float, flops: float) -> float:
        """Of work that moves so many bytes and does so many operations: the longer of the two."""
        return max(bytes_moved / self.bytes_per_second, flops / self.flops_per_second)


# Measured with a large device-to-device copy and an 8192×8192×8192 bf16 matrix product.
_MEASURED = (
    Device(name="NVIDIA H200", bytes_per_second=4.3e12, flops_per_second=790e12),
    Device(name="NVIDIA H100 80GB HBM3", bytes_per_second=3.0e12, flops_per_second=798e12),
)


def device_ceilings(name: str, dtype: str = "bfloat16") -> Device | None:
    """The ceilings of a device by its name; None where they were not measured for ``dtype``."""
    if _BYTES[dtype] != 2:
        return None  # fp32 products are an order of magnitude slower
    return next((device for device in _MEASURED if device.name == name), None)


class Seen(NamedTuple):
    """What one layer's attention of a step sees.

    Attributes:
        cached: tokens whose keys and values are read or written.
        attended: query-key pairs.
    """

    cached: float
    attended: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """The work of one step of one replica.

    Attributes:
        tokens: tokens computed.
        draws: rows whose next token is drawn.
        cached, attended: as in `Seen`, of layers without a window: every row's length after the
            step, and the pairs of its queries.
        windows: by their width, what layers with one see.
        rows: sequences that have tokens.
    """

    tokens: int
    draws: int
    cached: float
    attended: float
    windows: Mapping[int, Seen] = dataclasses.field(default_factory=dict)
    rows: int = 0

    @classmethod
    def of_rows(
        cls,
        positions: np.ndarray,
        num_tokens: np.ndarray,
        *,
        draws: int,
        windows: Iterable[int] = (),
    ) -> StepWork:
        """Of rows that compute ``num_tokens`` tokens each, from ``positions`` on."""
        positions, num_tokens = positions.astype(np.int64), num_tokens.astype(np.int64)
        whole = _seen(positions, num_tokens, None)
        return cls(
            tokens=int(num_tokens.sum()),
            draws=draws,
            cached=whole.cached,
            attended=whole.attended,
            windows={window: _seen(positions, num_tokens, window) for window in windows},
            rows=len(num_tokens),
        )

    def seen(self, window: int | None) -> Seen:
        """By a layer with this window."""
        if window is None:
            return Seen(self.cached, self.attended)
        return self.windows[window]


def _seen(positions: np.ndarray, num_tokens: np.ndarray, window: int | None) -> Seen:
    """Of rows with so many queries from ``positions`` on, int64."""
    lengths = positions + num_tokens
    if window is None:
        pairs = num_tokens * positions + num_tokens * (num_tokens + 1) // 2
        return Seen(int(lengths.sum()), int(pairs.sum()))
    # A row's first queries see all before them, its others as much as the window.
    few = np.clip(window - positions, 0, num_tokens)
    pairs = few * positions + few * (few + 1) // 2 + (num_tokens - few) * window
    cached = np.minimum(lengths, window - 1 + num_tokens)
    return Seen(int(cached.sum()), int(pairs.sum()))


class WindowShare(NamedTuple):
    """Of a `Roofline`, what layers with one window make up."""

    cache_bytes: int
    pair_flops: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What one rank must move and do for a step."""

    dense_bytes: float
    head_bytes: float
    expert_bytes: float
    cache_bytes: float
    flops: float

    @property
    def bytes_moved(self) -> float:
        """All bytes."""
        return self.dense_bytes + self.head_bytes + self.expert_bytes + self.cache_bytes

    def floor_seconds(self, device: Device | None) -> float:
        """The least time on a device; 0 when its ceilings are not known."""
        if device is None:
            return 0.0
        return device.least_seconds(self.bytes_moved, self.flops)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """One rank's share of a model in numbers; ``of_rank`` makes one, once.

    Attributes:
        value_bytes: of a weight that has not 8 bits.
        dense: parameters that every token passes, without the head: attention, routers, dense MLPs,
            shared experts.
        dense_fp8: those of them that have 8 bits.
        dense_bytes: bytes of all of them, scales included.
        last: those that the last layer has behind its attention, without experts; last_fp8: of them
            those that have 8 bits.
        head: parameters of the head.
        expert: parameters of one expert, or of the slice of it that is here; in the mean of layers.
        expert_fp8: those of them that have 8 bits.
        expert_bytes: bytes of all of them, scales included.
        experts_per_layer: experts a token may choose from, over all ranks.
        experts_per_token: of which it chooses.
        local_share: share of a layer's experts that is here.
        replicas: attention replicas.
        expert_replicas: of these, the ones whose tokens come to the experts here.
        moe_layers: layers with experts; last_is_moe: the last layer is one of them.
        cache_bytes: of one token's keys and values in this rank's cache.
        pair_flops: operations of one query-key pair, over all layers and this rank's heads.
        windows: by their width, what of both is that of layers with a window.
        state_bytes: of one sequence's states here; state_flops: operations of a token on them.
    """

    value_bytes: int
    dense: int
    dense_fp8: int
    dense_bytes: int
    head: int
    expert: int
    expert_fp8: int
    expert_bytes: int
    experts_per_layer: int
    experts_per_token: int
    local_share: float
    replicas: int
    expert_replicas: int
    moe_layers: int
    cache_bytes: int
    pair_flops: int
    last: int = 0
    last_fp8: int = 0
    last_is_moe: bool = False
    windows: Mapping[int, WindowShare] = dataclasses.field(default_factory=dict)
    state_bytes: int = 0
    state_flops: int = 0

    @classmethod
    def of_rank(
        cls,
        config: ModelConfig,
        parallel: ParallelConfig,
        *,
        num_local_experts: int,
        dtype: str,
        kv_cache_dtype: str = "auto",
    ) -> Roofline:
        """The share of a rank with ``num_local_experts``, whole or sliced, in each sparse layer.

        Args:
            kv_cache_dtype: ``fp8_e4m3``, or any other for ``dtype``.
        """
        tp, moe = parallel.tp, config.moe
        num_experts = moe.num_experts if moe else 0
        dense = dense_weights(config, parallel, _BYTES[dtype])
        last = last_weights(config, parallel, _BYTES[dtype])
        expert = expert_weights(config, tp if parallel.ep == 1 else 1, _BYTES[dtype])

        def share(specs: Iterable[CachedAttention]) -> WindowShare:
            layers = list(specs)
            return WindowShare(
                round(sum(_token_bytes(each, tp, dtype, kv_cache_dtype) for each in layers)),
                round(sum(2 * each.pair_products / tp for each in layers)),
            )

        whole = share(config.cached)
        windows = {each.window for each in config.cached if each.window is not None}
        states = [each for each in config.attention if isinstance(each, DeltaSpec)]
        return cls(
            value_bytes=_BYTES[dtype],
            dense=dense.parameters,
            dense_fp8=dense.fp8,
            dense_bytes=dense.num_bytes,
            last=last.parameters,
            last_fp8=last.fp8,
            head=round(config.vocab_size * config.hidden_size / tp),
            expert=expert.parameters,
            expert_fp8=expert.fp8,
            expert_bytes=expert.num_bytes,
            experts_per_layer=num_experts,
            experts_per_token=moe.num_experts_per_tok if moe else 0,
            local_share=num_local_experts / num_experts if num_experts else 0.0,
            replicas=parallel.dp,
            expert_replicas=parallel.dp if parallel.ep > 1 else 1,
            moe_layers=sum(config.moe_layers) if moe else 0,
            last_is_moe=moe is not None and config.moe_layers[-1],
            cache_bytes=whole.cache_bytes,
            pair_flops=whole.pair_flops,
            windows={
                window: share(each for each in config.cached if each.window == window)
                for window in sorted(windows)
            },
            state_bytes=sum(each.state_bytes(_BYTES[dtype]) for each in states) // tp,
            state_flops=sum(each.token_flops for each in states) // tp,
        )

    @classmethod
    def of_layout(
        cls,
        config: ModelConfig,
        parallel: ParallelConfig,
        *,
        dtype: str,
        kv_cache_dtype: str = "auto",
    ) -> Roofline:
        """The largest share that any rank of a layout has: for floors of the whole."""
        num_experts = config.moe.num_experts if config.moe else 0
        each = -(-num_experts // parallel.ep)
        return cls.of_rank(
            config, parallel, num_local_experts=each, dtype=dtype, kv_cache_dtype=kv_cache_dtype
        )

    def cost(self, work: StepWork, experts_hit: float) -> StepCost:
        """What a step moves and does here.

        Args:
            work: of this rank's replica.
            experts_hit: (layer, expert of this rank) pairs that got at least one token, of any
                replica. Operations are counted as if routing were even and replicas equally busy.
        """
        unread = work.tokens - work.draws  # by the last layer behind its attention
        dense = work.tokens * (2 * self.dense - self.dense_fp8) + work.draws * 2 * self.head
        dense -= unread * (2 * self.last - self.last_fp8)
        seen_by_experts = work.tokens * self.moe_layers - unread * self.last_is_moe
        routes = seen_by_experts * self.expert_replicas * self.experts_per_token * self.local_share
        experts = routes * (2 * self.expert - self.expert_fp8)
        cached, attended = self.cache_bytes * work.cached, self.pair_flops * work.attended
        for window, share in self.windows.items():
            seen = work.seen(window)
            cached -= share.cache_bytes * (work.cached - seen.cached)
            attended -= share.pair_flops * (work.attended - seen.attended)
        cached += 2 * self.state_bytes * work.rows  # read and written
        return StepCost(
            dense_bytes=self.dense_bytes if work.tokens else 0,
            head_bytes=self.value_bytes * self.head if work.draws else 0,
            expert_bytes=self.expert_bytes * experts_hit,
            cache_bytes=cached,
            flops=dense + experts + attended + self.state_flops * work.tokens,
        )

    def expected_hits(self, tokens: int, draws: int | None = None) -> float:
        """(layer, local expert) pairs that ``tokens`` are expected to hit, routed evenly and
        independently: of E experts with K a token E · (1 − (1 − K/E)^tokens) a layer.

        Args:
            draws: how many of them are drawn behind; None: all.
        """
        if not self.moe_layers:
            return 0.0
        missed: float = 1 - self.experts_per_token / self.experts_per_layer
        layers = self.moe_layers * (1 - missed**tokens)
        if draws is not None and self.last_is_moe:
            layers += missed**tokens - missed**draws
        return layers * self.local_share * self.experts_per_layer

    def decode(self, *, batch: int, context: float) -> StepCost:
        """A step in which ``batch`` sequences, spread over the replicas, decode at ``context``
        tokens each: what the busiest replica's rank is expected to cost."""
        here = -(-batch // self.replicas)
        read = here * context
        seen = {window: here * min(context, window) for window in self.windows}
        work = StepWork(
            tokens=here,
            draws=here,
            cached=read,
            attended=read,
            windows={window: Seen(each, each) for window, each in seen.items()},
            rows=here,
        )
        return self.cost(work, self.expected_hits(min(batch, here * self.expert_replicas)))

    def prefill(self, *, prompts: int, length: int) -> StepCost:
        """``prompts`` prompts, spread over the replicas, in one step, and each one's first draw."""
        here = -(-prompts // self.replicas)
        starts, lengths = np.zeros(here, np.int64), np.full(here, length, np.int64)
        work = StepWork.of_rows(starts, lengths, draws=here, windows=self.windows)
        reached = min(prompts, here * self.expert_replicas)
        return self.cost(work, self.expected_hits(reached * length, reached))


def _token_bytes(spec: CachedAttention, tp: int, dtype: str, kv_cache_dtype: str) -> float:
    """Of a token's keys and values in one layer; see workers.attention.kv_cache.CacheSizes."""
    numbers = spec.key_width + spec.value_width
    entry = numbers + 4 if kv_cache_dtype == "fp8_e4m3" else numbers * _BYTES[dtype]
    return max(1.0, spec.cache_heads / tp) * entry
