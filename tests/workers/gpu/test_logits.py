"""Logits against transformers, and draws against the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from demo import CHECKPOINT
from tests.workers.config_json.test_quantization import COMPRESSED
from tests.workers.fp8_models import fp8_config, save_block_fp8, save_scaled_fp8
from tests.workers.gpu.driver import (
    CUDA,
    Frontend,
    Prompt,
    in_flight,
)
from tests.workers.int4_models import save_int4
from tests.workers.models.test_int4_parity import FORMS
from tests.workers.steps import prefill_step, relative_error, start_rank, step_logits
from tests.workers.tiny_models import random_config, save_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", range(6))
def test_fp32_logits_equal_transformers(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, moe=seed % 3 != 0)
    oracle = save_model(config, tmp_path, seed)
    rank = start_rank(tmp_path, cuda_graphs="off", **CUDA)
    tokens = torch.randint(config.vocab_size, (37,), generator=torch.manual_seed(seed)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, [7, 3, 5, 1]))
    assert relative_error(ours, expected) <= 1e-4


@pytest.mark.parametrize("moe", [True, False])
@pytest.mark.parametrize("form", ["block", "row"])
def test_fp32_logits_of_8_bit_weights(form: str, moe: bool, tmp_path: Path) -> None:
    """Against the same weights dequantized."""
    config = fp8_config(moe=moe)
    if form == "block":
        oracle = save_block_fp8(config, tmp_path)
    else:
        oracle = save_scaled_fp8(config, tmp_path, COMPRESSED, scale_shape=(-1, 1))
    rank = start_rank(tmp_path, cuda_graphs="off", **CUDA)
    tokens = torch.randint(config.vocab_size, (37,), generator=torch.manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, [7, 3, 5, 1]))
    assert relative_error(ours, expected) <= 1e-4


@pytest.mark.parametrize("moe", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_fp32_logits_of_4_bit_weights(form: str, moe: bool, tmp_path: Path) -> None:
    """A prompt and, by kernels of their own, one token."""
    oracle = save_int4(fp8_config(moe=moe), tmp_path, FORMS[form])
    rank = start_rank(tmp_path, cuda_graphs="off", **CUDA)
    tokens = torch.randint(97, (38,), generator=torch.manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens[:37], [7, 3, 5, 1])).cpu()
    assert relative_error(ours, expected[:37]) <= 1e-4
    last = prefill_step(1, 2, tokens[37:], [], position=37)
    assert relative_error(step_logits(rank, last), expected[37:]) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_demo_logits_equal_transformers_on_the_gpu(dtype: torch.dtype) -> None:
    """bf16 against fp32 on both sides: ours is no further away than transformers' own bf16.

    The mean over several texts: a route that falls the other way is most of the largest distance.
    """
    name = str(dtype).removeprefix("torch.")
    rank = start_rank(CHECKPOINT, dtype=name, cuda_graphs="off", **CUDA)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    texts_BL = torch.randint(3, 1000, (8, 200), generator=torch.manual_seed(3))
    with torch.inference_mode():
        exact = model(texts_BL).logits
        theirs = model.to("cuda", dtype)(texts_BL.to("cuda")).logits.float()
    steps = [
        prefill_step(number, 0, tokens, list(range(13)))
        for number, tokens in enumerate(texts_BL.tolist())
    ]
    # A step's logits lie where those of the step before lay.
    ours = torch.stack([step_logits(rank, step).cpu() for step in steps])
    distances = [((each.cpu() - exact).norm() / exact.norm()).item() for each in (ours, theirs)]
    assert distances[0] <= max(1e-4, 1.5 * distances[1])


@pytest.mark.parametrize("cuda_graphs", ["on", "off"])
def test_steps_in_flight_draw_what_the_cpu_draws(cuda_graphs: str) -> None:
    """Four steps launched before the first result is asked for, greedy and seeded, in fp32."""

    def run(device: str) -> list[list[int]]:
        rank = start_rank(CHECKPOINT, device=device, memory_fraction=0.3, cuda_graphs=cuda_graphs)
        frontend = Frontend(rank)
        prompts = {
            0: Prompt(list(range(10, 40)), {}),
            3: Prompt(list(range(100, 121)), {"temperature": 0.9, "top_p": 0.95, "seed": 11}),
        }
        steps = [frontend.step(prompts={slot: prompt}) for slot, prompt in prompts.items()]
        steps += [frontend.step([0, 3]) for _ in range(40)]
        return list(in_flight(rank, iter(steps)))

    assert run("cuda") == run("cpu")
