"""The demo in 4-bit weights, in each form of checkpoints or made at load, served by one and by two
ranks on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from demo import CHECKPOINT
from demo.data import heldout, is_right
from tests.service.oracle import greedy
from tests.service.test_fp8 import NUM_TOKENS, Demo, check
from tests.workers.int4_models import quantize_folder
from tests.workers.test_int4_methods import AWQ, GPTQ, pack_quantized

pytestmark = pytest.mark.processes

# Its inner sides are 256 and 128: groups, and layouts that do not cut them.
FORMS: dict[str, dict[str, Any]] = {
    "int4 by 128": GPTQ,
    "int4 by 64 with zero points": {**AWQ, "group_size": 64},
    "int4 by 32 with zero points": pack_quantized(symmetric=False),
}
CASES = [
    ("int4 by 128", "--tp 1"),
    ("int4 by 128", "--tp 2"),
    ("int4 by 64 with zero points", "--tp 2 --ep 1"),
    ("int4 by 32 with zero points", "--dp 2"),
    ("int4 by 32 with zero points", "--dp 2 --moe-ep-backend all_to_all"),
]


def make_demo(folder: Path, said: dict[str, Any]) -> Demo:
    shutil.copytree(CHECKPOINT, folder)
    oracle = quantize_folder(folder, said)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True
        )["input_ids"]
        for _, question, _ in heldout(1, seed=1)[::2]
    ]
    return Demo(folder, oracle, prompts, [greedy(oracle, each, NUM_TOKENS) for each in prompts])


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Demo]:
    folder = tmp_path_factory.mktemp("demos")
    made: dict[str, Demo] = {}

    def demo(label: str) -> Demo:
        if label not in made:
            made[label] = make_demo(folder / label.replace(" ", "-"), FORMS[label])
        return made[label]

    return demo


@pytest.mark.parametrize(("label", "layout"), CASES)
def test_a_checkpoint_of_4_bit_weights(
    label: str, layout: str, demos: Callable[[str], Demo], tmp_path: Path
) -> None:
    demo = demos(label)
    check(demo, tmp_path, str(demo.folder), *layout.split(), label=label)
