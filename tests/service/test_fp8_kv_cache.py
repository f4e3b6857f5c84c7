"""Whole servers over an FP8 cache: layouts, preemption, reuse and losses change nothing, and the
demo answers as it does without."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen3MoeConfig

from demo import CHECKPOINT
from demo.data import heldout, is_right
from demo.evaluate import MAX_NEW_TOKENS
from switchyard.client import AsyncClient, Client
from switchyard.v1 import inference_pb2 as pb
from tests.faults.streams import Asked, Progress, answer, answers, outcomes
from tests.processes import send
from tests.server import Server
from tests.service.oracle import check_greedy, generate
from tests.workers.fp8_kv_oracle import over_fp8_cache
from tests.workers.tiny_models import save_model

pytestmark = pytest.mark.processes

FP8 = ("--kv-cache-dtype", "fp8_e4m3")
CPU = ("--device", "cpu", "--dtype", "float32", "--max-batch-size", "8")
CPU_TOGETHER = (*CPU[:-1], "32")  # questions whose answers nothing else depends on
SMALL_CACHE = ("--block-size", "4", "--num-blocks", "48")  # 192 tokens; five requests want 280
NUM_TOKENS = 24
# The last bits of fp32 may decide a rounding to FP8, which moves logits by so much.
NEAR = 0.02


def load_of(server: Server) -> pb.GetLoadResponse:
    with Client(server.address) as client:
        return client.stub.GetLoad(pb.GetLoadRequest())


def test_random_models_answer_as_transformers_over_rounded_keys_and_values(tmp_path: Path) -> None:
    """Alone and with room on one rank; then together on one and on two, where they preempt each
    other and find each other's blocks."""
    config = Qwen3MoeConfig(
        vocab_size=301, hidden_size=48, intermediate_size=64, moe_intermediate_size=20,
        num_experts=7, num_experts_per_tok=3, norm_topk_prob=True, num_hidden_layers=3,
        mlp_only_layers=[1], num_attention_heads=8, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=256, initializer_range=0.2, eos_token_id=1,
    )  # fmt: skip
    oracle = over_fp8_cache(save_model(config, tmp_path))
    rng = random.Random(5)
    prompts = [[rng.randrange(301) for _ in range(size)] for size in (3, 20, 37, 50, 50)]
    prompts[4][:32] = prompts[3][:32]
    options = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0.0}
    for flags in (("--tp", "1"), ("--tp", "1", *SMALL_CACHE), ("--tp", "2", *SMALL_CACHE)):
        with Server(tmp_path, str(tmp_path), *CPU, *FP8, *flags) as server:
            ours = asyncio.run(generate(server.address, prompts, **options))
            again = asyncio.run(generate(server.address, prompts[3:], **options))
            load = load_of(server)
        for prompt, tokens in zip(prompts + prompts[3:], ours + again, strict=True):
            assert len(tokens) == NUM_TOKENS
            check_greedy(oracle, prompt, tokens, tie=NEAR)
        assert load.prefix_hit_tokens > 0
        assert (load.preemptions > 0) == ("--num-blocks" in flags)


async def test_streams_of_a_lost_group_go_on(tmp_path: Path) -> None:
    rng = random.Random(7)
    requests = [
        Asked(
            tuple(rng.randrange(3, 1000) for _ in range(20)),
            {"temperature": 0.0, "max_new_tokens": 60, "ignore_eos": True},
        )
        for _ in range(5)
    ]
    with Server(tmp_path, *FP8, "--tp", "2") as server:
        quiet = await answers(server.address, requests)
        async with AsyncClient(server.address) as client:
            progress = Progress()
            running = [asyncio.create_task(answer(client, asked, progress)) for asked in requests]
            await progress.reach(60)
            send(server.ranks()[1], signal.SIGKILL)
            shaken = await asyncio.gather(*running)
        log = server.log
    assert outcomes(shaken) == outcomes(quiet)
    assert log.count("the workers are back") == 1, log


async def right_answers(server: Server, count: int) -> tuple[int, int]:
    """How many of the demo's held-out questions, ``count`` of each task, are answered right."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    items = heldout(count, seed=0)
    prompts = [
        tokenizer.apply_chat_template(item.messages, **item.template_kwargs())["input_ids"]
        for item in items
    ]
    options = {"temperature": 0.0, "max_new_tokens": MAX_NEW_TOKENS}
    answered = [
        is_right(item.expected, tokenizer.decode(tokens, skip_special_tokens=True))
        for item, tokens in zip(
            items, await generate(server.address, prompts, **options), strict=True
        )
    ]
    return sum(answered), len(answered)


PLAIN = ("--tp", "1")


@pytest.mark.parametrize(
    ("count", "several"),
    [
        (3, [(*FP8, "--tp", "2")]),
        pytest.param(6, [PLAIN, (*FP8, "--tp", "1"), (*FP8, "--tp", "2")], marks=pytest.mark.grid),
    ],
)
async def test_the_demo_answers_as_without(
    count: int, several: list[tuple[str, ...]], tmp_path: Path
) -> None:
    """Nearly all held-out questions, and within half a point of the same without."""
    right = []
    for flags in several:
        with Server(tmp_path, *CPU_TOGETHER, *flags) as server:
            number, asked = await right_answers(server, count)
            right.append(number)
            said = f" tokens{' in fp8_e4m3' * (flags[0] == FP8[0])})"
            assert said in server.log
    assert asked >= 100
    assert min(right) / asked > 0.97
    assert all(abs(number - right[0]) / asked <= 0.005 for number in right), right
