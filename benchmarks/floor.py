"""The least time a step can take: bytes that must move over the device's bandwidth, or operations
over its rate, whichever is longer.

Owns the arithmetic and the measured ceilings of known devices. Knows nothing of how steps are run.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from workers.config import ModelConfig

_BYTES = {"bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Ceilings of one device: bytes/s of a copy (read and written), FLOP/s of an 8192³ product."""

    name: str
    bytes_per_second: float
    flops_per_second: float


# Measured with a large device-to-device copy and an 8192×8192×8192 bf16 matrix product.
_MEASURED = (
    Device(name="NVIDIA H200", bytes_per_second=4.3e12, flops_per_second=790e12),
    Device(name="NVIDIA H100 80GB HBM3", bytes_per_second=3.0e12, flops_per_second=798e12),
)


def device_ceilings(name: str) -> Device | None:
    """The ceilings of a device a server reports; this machine's own for ``cpu``; None: unknown."""
    if name == "cpu":
        return _this_cpu()
    return next((device for device in _MEASURED if device.name == name), None)


def decode_seconds(
    config: ModelConfig, device: Device, *, batch: int, context: float, dtype: str, ranks: int = 1
) -> float:
    """Floor of one decode step: weights of the experts that ``batch`` tokens are expected to hit,
    all other weights, and every sequence's keys and values, perfectly sliced over ``ranks``.

    Expected distinct experts of E with K a token, routed evenly: E · (1 − (1 − K/E)^batch).
    """
    width = _BYTES[dtype]
    weights = _dense_parameters(config) + _head_parameters(config)
    if config.moe is not None:
        moe = config.moe
        hit = moe.num_experts * (1 - (1 - moe.num_experts_per_tok / moe.num_experts) ** batch)
        weights += sum(config.moe_layers) * hit * _expert_parameters(config)
    cache = batch * context * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    moved = (weights + cache) * width / device.bytes_per_second
    worked = _flops(config, tokens=batch, draws=batch, attended=batch * context)
    return max(moved, worked / device.flops_per_second) / ranks


def prefill_seconds(
    config: ModelConfig, device: Device, *, prompts: int, length: int, dtype: str, ranks: int = 1
) -> float:
    """Floor of computing ``prompts`` prompts of ``length`` tokens and each one's first draw."""
    tokens = prompts * length
    work = _flops(config, tokens=tokens, draws=prompts, attended=tokens * (length + 1) / 2)
    weights = _dense_parameters(config) + _head_parameters(config)
    if config.moe is not None:
        weights += sum(config.moe_layers) * config.moe.num_experts * _expert_parameters(config)
    moved = weights * _BYTES[dtype] / device.bytes_per_second
    return max(work / device.flops_per_second, moved) / ranks


def _flops(config: ModelConfig, *, tokens: float, draws: float, attended: float) -> float:
    """Two operations a parameter and token, and four a query-key pair and head dimension."""
    active = _dense_parameters(config)
    if config.moe is not None:
        per_token = config.moe.num_experts_per_tok * _expert_parameters(config)
        active += sum(config.moe_layers) * per_token
    attention = 4 * attended * config.num_heads * config.head_dim * config.num_layers
    return 2 * active * tokens + 2 * _head_parameters(config) * draws + attention


def _dense_parameters(config: ModelConfig) -> int:
    """Parameters that every token passes through, without the head: attention, dense MLPs,
    routers."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    total = config.num_layers * config.hidden_size * (2 * q + 2 * kv)
    for is_moe in config.moe_layers:
        outputs = config.moe.num_experts if is_moe and config.moe else 3 * config.intermediate_size
        total += config.hidden_size * outputs
    return total


def _head_parameters(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden_size


def _expert_parameters(config: ModelConfig) -> int:
    assert config.moe is not None
    return 3 * config.hidden_size * config.moe.intermediate_size


def _this_cpu() -> Device:
    """Measured here and now: a 64 MiB copy and a 1024³ fp32 product, the best of five."""
    source, target = np.ones(8 << 20), np.empty(8 << 20)
    matrix = np.ones((1024, 1024), dtype=np.float32)
    copy = min(_seconds(lambda: np.copyto(target, source)) for _ in range(5))
    product = min(_seconds(lambda: matrix @ matrix) for _ in range(5))
    return Device(
        name="cpu",
        bytes_per_second=2 * source.nbytes / copy,
        flops_per_second=2 * 1024**3 / product,
    )


def _seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began
