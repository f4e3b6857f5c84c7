"""All that a sequence may ask of its draws, on a GPU: against its definition and the CPU, and what
it may cost the host."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from demo import CHECKPOINT
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from switchyard.worker.v1 import worker_pb2
from tests.workers.gpu.driver import CUDA, Frontend, Prompt, compilations, no_synchronisation
from tests.workers.sampling.driver import Driver, drive_at_random
from tests.workers.sampling.sampled import VOCAB, TableModel, mask_bytes, random_askers
from tests.workers.sampling.sampled import make_runner as make_table_runner
from tests.workers.steps import start_rank
from workers.rank.startup import LoadedRank
from workers.step.runner import StepHandle

pytestmark = pytest.mark.gpu

DEMO_VOCAB = 1024
NUM_SLOTS = 24
EVERYTHING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "num_logprobs": 6},
    {"temperature": 0.8, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.0, "frequency_penalty": 0.7, "presence_penalty": 0.3, "num_logprobs": 1},
    {"temperature": 1.0, "seed": 9, "allowed_token_ids": list(range(3, 900, 3))},
    {"temperature": 0.0, "banned_token_ids": [5, 9, 70], "prompt_logprobs": True,
     "num_logprobs": 21},
    {"temperature": 0.7, "seed": 1, "bias_token_ids": [4, 44], "bias_values": [3.0, -100.0],
     "suppressed_token_ids": [2], "suppress_until": 500, "top_k": 30},
]  # fmt: skip


def asking_prompts(count: int, longest: int, seed: int) -> dict[int, Prompt]:
    """Prompts whose sequences ask for each thing in turn."""
    rng = random.Random(seed)
    prompts = {}
    for slot in range(count):
        tokens = [rng.randrange(3, 1000) for _ in range(rng.randint(1, longest))]
        params = dict(EVERYTHING[slot % len(EVERYTHING)])
        if any(name.endswith("_penalty") for name in params) or "prompt_logprobs" in params:
            params |= {"history_token_ids": tokens, "num_prompt_tokens": len(tokens)}
        prompts[slot] = Prompt(tokens, params)
    return prompts


def with_mask(step: worker_pb2.StepRequest) -> worker_pb2.StepRequest:
    """The step, whose first draw may be even tokens only."""
    step.masked_draws.append(0)
    step.draw_masks = mask_bytes(set(range(4, 1000, 2)), DEMO_VOCAB)
    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_every_token_and_logprob_is_the_defined_one(dtype: torch.dtype, seed: int) -> None:
    model = TableModel(VOCAB, dtype, "cuda")
    driver = Driver(make_table_runner(model, kernels=True, graphs=bool(seed % 2)), model)
    drive_at_random(driver, random_askers(16, seed), seed, 60)
    assert driver.num_checked > 150


@pytest.mark.parametrize("cuda_graphs", ["on", "off"])
def test_steps_in_flight_answer_as_the_cpu_does(cuda_graphs: str) -> None:
    def run(device: str) -> list[worker_pb2.StepResult]:
        rank = start_rank(CHECKPOINT, device=device, memory_fraction=0.3, cuda_graphs=cuda_graphs)
        frontend = Frontend(rank)
        prompts = asking_prompts(7, 30, 3)
        steps = [frontend.step(prompts={slot: prompt}) for slot, prompt in prompts.items()]
        steps += [with_mask(frontend.step(list(prompts))) for _ in range(20)]
        results, flying = [], []
        for step in steps:
            flying.append(rank.runner.launch(step))
            if len(flying) == MAX_STEPS_IN_FLIGHT:
                results.append(flying.pop(0).result())
        return results + [handle.result() for handle in flying]

    for ours, theirs in zip(run("cuda"), run("cpu"), strict=True):
        assert list(ours.token_ids) == list(theirs.token_ids)
        assert list(ours.logprobs) == pytest.approx(list(theirs.logprobs), abs=1e-3)
        assert list(ours.top_logprobs) == pytest.approx(list(theirs.top_logprobs), abs=1e-3)
        own, others = list(ours.prompt_logprobs), list(theirs.prompt_logprobs)
        assert own == pytest.approx(others, abs=1e-3)


def start_demo(**settings: object) -> tuple[LoadedRank, Frontend]:
    """A bf16 rank of the demo, and its frontend."""
    rank = start_rank(
        CHECKPOINT, dtype="bfloat16", max_batch_size=NUM_SLOTS, max_num_batched_tokens=512,
        num_blocks=1024, **settings, **CUDA,
    )  # fmt: skip
    return rank, Frontend(rank)


@pytest.mark.parametrize("cuda_graphs", ["on", "off"])
def test_no_step_waits_or_compiles(cuda_graphs: str) -> None:
    """Prompts and decodes of all that sequences may ask for; the first of their kind as well."""
    rank, frontend = start_demo(cuda_graphs=cuda_graphs)
    rng = random.Random(4)
    flying: list[StepHandle] = []

    def launch(step: worker_pb2.StepRequest) -> None:
        with no_synchronisation():
            flying.append(rank.runner.launch(step))
        if len(flying) == MAX_STEPS_IN_FLIGHT:
            flying.pop(0).result()

    with compilations() as names:
        for slot, prompt in asking_prompts(NUM_SLOTS, 300, 8).items():
            launch(frontend.step(range(slot), {slot: prompt}))
        for _ in range(20):
            launch(with_mask(frontend.step(rng.sample(range(NUM_SLOTS), rng.randint(1, 24)))))
        assert names == []
    for handle in flying:
        assert all(0 <= token < DEMO_VOCAB for token in handle.result().token_ids)


def test_decodes_that_ask_take_no_more_memory_with_time() -> None:
    rank, frontend = start_demo()
    for slot, prompt in asking_prompts(NUM_SLOTS, 60, 9).items():
        rank.runner.launch(frontend.step(prompts={slot: prompt})).result()

    def held() -> int:
        for _ in range(20):
            rank.runner.launch(with_mask(frontend.step(range(NUM_SLOTS)))).result()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    first = held()
    assert held() == first
