"""A model whose logits a test can compute by hand, sequences that ask for everything, and what
tokens and log-probabilities they should get, token by token from the definitions alone."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from switchyard.worker.v1 import worker_pb2
from tests.workers.sampling.draws import reference_support
from workers.attention.kv_cache import CacheSizes, KVCache
from workers.models.base import ForwardBatch
from workers.sampling.philox import vocabulary_words
from workers.sampling.triton_sampler import TritonSampler
from workers.step.batch import BatchBuilder, BatchShape, DeviceBatch
from workers.step.forward import StepForward
from workers.step.graphs import NO_GRAPHS
from workers.step.result_buffer import ResultBuffer
from workers.step.roofline import StepCost
from workers.step.runner import Measure, Runner
from workers.step.token_sampler import TokenSampler

NUM_SLOTS = 6
VOCAB = 70
MAX_POSITIONS = 64
BLOCK = 4
# Behind a token at this position no logit is a number.
SPOILT_POSITION = 61
_PADDING = 2


class TableModel(nn.Module):
    """Logits are a row of one table for the token plus one of another for its position, in steps of
    a quarter, so that many are equal. They come in one buffer that every call overwrites."""

    def __init__(
        self, vocab_size: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(vocab_size)

        def table(rows: int) -> torch.Tensor:
            return (torch.randn(rows, vocab_size, generator=generator) * 8).round() / 4

        self.of_token, self.of_position = table(vocab_size), table(MAX_POSITIONS)
        self.of_position[SPOILT_POSITION, 3::7] = math.nan
        self.dtype = dtype
        self.expert_load = None
        self.num_kv_heads = 0
        self.tied_weights: frozenset[str] = frozenset()
        self.on_device = (self.of_token.to(device), self.of_position.to(device))
        self.buffer = torch.zeros(512, vocab_size, dtype=dtype, device=device)
        self.head_rows: list[int] = []

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        slots_T = batch.attention.slots_T
        ids_T = torch.where(batch.ids_T < 0, batch.last_token[slots_T], batch.ids_T)
        of_token, of_position = self.on_device
        return of_token[ids_T] + of_position[batch.attention.positions_T]

    def logits(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        self.head_rows.append(len(hidden_DH))
        return self.buffer[: len(hidden_DH)].copy_(hidden_DH)

    def checkpoint_slices(self) -> Iterator[CheckpointSlice]:
        return iter(())

    def raw(self, token: int, position: int) -> torch.Tensor:
        """fp32 logits [V] behind a token."""
        return (self.of_token[token] + self.of_position[position]).to(self.dtype).float()


class EagerGraphs:
    """Pads steps as captured graphs do, and runs them where a graph would be replayed."""

    def __init__(self, forward: StepForward, builder: BatchBuilder) -> None:
        self.forward = forward
        build = builder.build

        def remember(step: worker_pb2.StepRequest, shape: BatchShape | None = None) -> DeviceBatch:
            self.batch = build(step, shape)
            return self.batch

        builder.build = remember  # type: ignore[method-assign]

    def shape_for(self, step: worker_pb2.StepRequest) -> BatchShape:
        return BatchShape(step.max_replica_tokens + _PADDING, decodes=step.decode_only)

    def replay(self, shape: BatchShape) -> torch.Tensor:
        return self.forward(self.batch)


def make_runner(
    model: TableModel, *, kernels: bool = False, graphs: bool = False, reports: bool = True
) -> Runner:
    """A rank of a model of tables, where its tables are."""
    device = model.buffer.device
    num_slots = NUM_SLOTS + _PADDING * graphs  # padding is drawn as well
    builder = BatchBuilder(
        num_slots=num_slots, max_blocks=MAX_POSITIONS // BLOCK, block_size=BLOCK, max_tokens=256,
        device=device,
    )  # fmt: skip
    cost = StepCost(dense_bytes=0, head_bytes=0, expert_bytes=0, cache_bytes=0, flops=0)
    roofline: Any = SimpleNamespace(cost=lambda work, experts_hit: cost, windows=())
    vocab_size = model.of_token.shape[1]
    results = ResultBuffer(num_slots=num_slots, num_sparse_layers=0, device=device)
    triton = TritonSampler(max_rows=num_slots, vocab_size=vocab_size, device=device, pdl=False)
    sampler = TokenSampler(
        model.logits, builder.logits_processor, last_token_S=builder.last_token,
        out_tokens_S=results.tokens_S, reports=reports, triton=triton if kernels else None,
    )  # fmt: skip
    forward = StepForward(model, no_cache(), results.hits_L)
    eager: Any = EagerGraphs(forward, builder) if graphs else NO_GRAPHS
    return Runner(forward, builder, sampler, results, Measure(roofline, None), eager)


def no_cache() -> KVCache:
    """A cache without layers, for a model without attention."""
    sizes = CacheSizes(
        num_layers=0,
        block_size=BLOCK,
        num_kv_heads=1,
        head_dim=1,
        v_head_dim=1,
        dtype=torch.float32,
    )
    return KVCache(sizes, 0, torch.device("cpu"))


@dataclasses.dataclass(slots=True)
class Asker:
    """A sequence and its NewSequence's fields."""

    tokens: list[int]
    params: dict[str, Any]
    num_prompt: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.num_prompt = self.num_prompt or len(self.tokens)

    @property
    def penalized(self) -> bool:
        names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        return any(self.params.get(name, 0.0) for name in names)

    def new_sequence(self, slot: int) -> worker_pb2.NewSequence:
        """What a frontend would send of it now."""
        new = worker_pb2.NewSequence(slot=slot, **self.params)
        if self.penalized or new.prompt_logprobs:
            new.history_token_ids.extend(self.tokens)
            new.num_prompt_tokens = self.num_prompt
        return new


def mask_bytes(allowed: set[int], vocab_size: int) -> bytes:
    """As StepRequest.draw_masks has one."""
    words = bytearray(-(-vocab_size // 32) * 4)
    for token in allowed:
        words[token // 8] |= 1 << token % 8
    return bytes(words)


def expected_token(raw_V: torch.Tensor, asker: Asker, allowed: set[int] | None) -> int:
    """The token that follows the sequence's; -1: there is none."""
    params = asker.params
    if not raw_V.isfinite().all():
        return -1
    x = raw_V.numpy().astype(np.float32).copy()
    for token, bias in zip(
        params.get("bias_token_ids", ()), params.get("bias_values", ()), strict=True
    ):
        x[token] += np.float32(bias)
    repetition = np.float32(params.get("repetition_penalty", 0.0) or 1.0)
    for token in set(asker.tokens):
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token, count in Counter(asker.tokens[asker.num_prompt :]).items():
        x[token] -= np.float32(params.get("presence_penalty", 0.0))
        x[token] -= np.float32(params.get("frequency_penalty", 0.0)) * np.float32(count)
    for token in range(len(x)):
        early = len(asker.tokens) < params.get("suppress_until", 0)
        if (
            (allowed is not None and token not in allowed)
            or (params.get("allowed_token_ids") and token not in params["allowed_token_ids"])
            or token in params.get("banned_token_ids", ())
            or (early and token in params.get("suppressed_token_ids", ()))
        ):
            x[token] = -math.inf
    if x.max() == -math.inf:
        return -1
    return _race(torch.from_numpy(x), params, len(asker.tokens))


def _race(x_V: torch.Tensor, params: dict[str, Any], position: int) -> int:
    temperature = params.get("temperature", 0.0)
    if temperature == 0.0:
        return int(np.argmax(x_V.numpy()))
    x_V = x_V / temperature
    support = reference_support(
        x_V, params.get("min_p", 0.0), params.get("top_k", 0), params.get("top_p", 1.0)
    )
    seed = np.uint64(params.get("seed", 0)).astype(np.int64)
    index = params.get("sample_index", 0)
    words = vocabulary_words(
        *(torch.tensor([int(each)]) for each in (seed, index, position)), len(x_V)
    )[0]
    best, best_score = -1, -math.inf
    for token in sorted(support):
        exponential = -math.log1p(-(int(words[token]) + 0.5) / 2.0**32)
        score = float(x_V[token]) - math.log(exponential)
        if score > best_score:
            best, best_score = token, score
    return best


def expected_logprobs(raw_V: torch.Tensor, token: int, num_top: int) -> tuple[float, list, list]:
    """The token's, and the most likely ones' ids and values, the lower id first of equals."""
    logprobs = torch.log_softmax(raw_V, 0).tolist()
    top = sorted(range(len(logprobs)), key=lambda i: (-logprobs[i], i))[:num_top]
    return logprobs[token], top, [logprobs[i] for i in top]


def random_params(rng: random.Random, vocab_size: int, *, plain: bool) -> dict[str, Any]:
    """Sampling parameters; not plain: each thing a sequence may ask for with even odds."""
    params: dict[str, Any] = {"temperature": rng.choice([0.0, 0.7, 1.0]), "top_p": 1.0}
    params |= {"seed": rng.getrandbits(64), "sample_index": rng.randrange(3)}
    if rng.random() < 0.5:
        params |= {"top_p": rng.choice([0.83, 1.0]), "top_k": rng.choice([0, 9])}
        params["min_p"] = rng.choice([0.0, 0.013])
    if rng.random() < 0.3:
        params |= {"suppressed_token_ids": [1, 4], "suppress_until": rng.randrange(40)}
    if plain:
        return params

    def some(count: int) -> list[int]:
        return sorted(rng.sample(range(vocab_size), count))

    extras: list[dict[str, Any]] = [
        {"repetition_penalty": rng.choice([0.8, 1.3])},
        {"presence_penalty": rng.uniform(-2, 2)},
        {"frequency_penalty": rng.uniform(-1, 2)},
        {"bias_token_ids": (ids := some(5)), "bias_values": [rng.uniform(-9, 9) for _ in ids]},
        {"allowed_token_ids": some(rng.choice([2, vocab_size // 2]))},
        {"banned_token_ids": some(vocab_size // 3)},
        {"num_logprobs": rng.randrange(1, 22)},
    ]
    for extra in extras:
        if rng.random() < 0.5:
            params |= extra
    params["prompt_logprobs"] = bool(params.get("num_logprobs")) and rng.random() < 0.5
    return params


def random_askers(count: int, seed: int, plain: float = 0.3) -> list[Asker]:
    """Sequences with prompts of 1 to 12 tokens, of which a share asks for nothing."""
    rng = random.Random(seed)
    return [
        Asker(
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))],
            random_params(rng, VOCAB, plain=rng.random() < plain),
        )
        for _ in range(count)
    ]
