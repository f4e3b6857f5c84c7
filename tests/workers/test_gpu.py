"""The worker on a GPU: logits against transformers, device batches against the CPU's, memory."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from demo import CHECKPOINT
from tests.workers.models import random_config, save_model
from tests.workers.steps import decode_step, prefill_step, start_rank, step_logits

pytestmark = pytest.mark.gpu

CUDA = {"device": "cuda", "memory_fraction": 0.3}


def relative_error(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    return float((ours.cpu() - oracle).abs().max() / oracle.abs().max())


@pytest.mark.parametrize("seed", range(6))
def test_fp32_logits_equal_transformers(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, moe=seed % 3 != 0)
    oracle = save_model(config, tmp_path, seed)
    rank = start_rank(tmp_path, **CUDA)
    tokens = torch.randint(config.vocab_size, (37,), generator=torch.manual_seed(seed)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, [7, 3, 5, 1]))
    assert relative_error(ours, expected) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_demo_logits_equal_transformers_on_the_gpu(dtype: torch.dtype) -> None:
    """bf16 against fp32 on both sides: ours is no further away than transformers' own bf16."""
    rank = start_rank(CHECKPOINT, dtype=str(dtype).removeprefix("torch."), **CUDA)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokens = torch.randint(3, 1000, (200,), generator=torch.manual_seed(3)).tolist()
    with torch.inference_mode():
        exact = model(torch.tensor([tokens])).logits[0]
        theirs = model.to("cuda", dtype)(torch.tensor([tokens], device="cuda")).logits[0].float()
    ours = step_logits(rank, prefill_step(0, 0, tokens, list(range(13))))
    assert relative_error(ours, exact) <= max(1e-4, 1.5 * relative_error(theirs, exact))


def test_steps_in_flight_draw_what_the_cpu_draws() -> None:
    """Four steps launched before the first result is asked for, greedy and seeded, in fp32."""

    def run(device: str) -> list[list[int]]:
        rank = start_rank(CHECKPOINT, device=device, memory_fraction=0.3)
        prompts = [list(range(10, 40)), list(range(100, 121))]
        steps = [
            prefill_step(0, 0, prompts[0], [4, 2]),
            prefill_step(1, 3, prompts[1], [9, 8], temperature=0.9, top_p=0.95, seed=11),
        ]
        for number in range(40):
            positions = [len(prompt) + number for prompt in prompts]
            crossing = [[20 + number + i] if p % 16 == 0 else [] for i, p in enumerate(positions)]
            steps.append(decode_step(2 + number, [0, 3], positions, crossing))
        drawn, flying = [], []
        for step in steps:
            flying.append(rank.runner.launch(step))
            if len(flying) == 4:
                drawn.append(list(flying.pop(0).result().token_ids))
        return drawn + [list(handle.result().token_ids) for handle in flying]

    assert run("cuda") == run("cpu")


def test_the_cache_takes_what_is_left_and_no_more() -> None:
    torch.cuda.empty_cache()
    before, total = torch.cuda.mem_get_info()
    # Wanting more slots than fit makes memory the limit.
    rank = start_rank(
        CHECKPOINT, device="cuda", memory_fraction=0.5, num_blocks=None, max_batch_size=200_000,
        max_num_batched_tokens=200_000,
    )  # fmt: skip
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info()
    used = total - after
    assert used <= 0.5 * total
    assert used >= 0.3 * total, "the cache left too much unused"
    assert rank.num_blocks * rank.runner.builder.block_size > 100_000
    assert before > after
