"""The demo in 8-bit weights, read or made at load, served by one and by two ranks on a CPU."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from demo import CHECKPOINT
from demo.data import heldout
from switchyard.client import Client
from switchyard.v1 import inference_pb2 as pb
from tests.server import Server
from tests.service.oracle import check_tokens, generate, greedy
from tests.workers.fp8_models import quantize_folder

pytestmark = pytest.mark.processes

NUM_TOKENS = 6
# Its heads are 64 wide and its experts 128: blocks, and layouts that do not cut them.
CASES = [
    pytest.param(128, "--tp 1", marks=pytest.mark.grid),
    pytest.param(64, "--tp 2", marks=pytest.mark.grid),
    (64, "--tp 2 --ep 1"),
    pytest.param(128, "--dp 2", marks=pytest.mark.grid),
    (128, "--dp 2 --moe-ep-backend all_to_all"),
]


@dataclasses.dataclass(frozen=True)
class Demo:
    """The demo in weights of one format, and what transformers answers with them, dequantized."""

    folder: Path
    oracle: torch.nn.Module
    prompts: list[list[int]]
    answers: list[list[int]]

    @classmethod
    def of(cls, folder: Path, oracle: torch.nn.Module) -> Demo:
        """Asked a question of every fourth task."""
        tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
        prompts = [
            tokenizer.apply_chat_template(item.messages, **item.template_kwargs())["input_ids"]
            for item in heldout(1, seed=1)[::4]
        ]
        return cls(folder, oracle, prompts, [greedy(oracle, each, NUM_TOKENS) for each in prompts])


def make_demo(folder: Path, size: int) -> Demo:
    shutil.copytree(CHECKPOINT, folder)
    oracle = quantize_folder(folder, block=(size, size))
    return Demo.of(folder, oracle)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Demo]:
    folder = tmp_path_factory.mktemp("demos")
    return {size: make_demo(folder / str(size), size) for size in (64, 128)}


def check(demo: Demo, tmp_path: Path, *flags: str, label: str) -> None:
    flags = (*flags, "--device", "cpu", "--dtype", "float32", "--max-batch-size", "32")
    with Server(tmp_path, *flags) as server:
        ours = asyncio.run(
            generate(
                server.address,
                demo.prompts,
                temperature=0,
                max_new_tokens=NUM_TOKENS,
                ignore_eos=True,
            )
        )
        with Client(server.address) as client:
            info = client.stub.GetServerInfo(pb.GetServerInfoRequest())
            assert info.quantization == label
    for prompt, mine, theirs in zip(demo.prompts, ours, demo.answers, strict=True):
        check_tokens(demo.oracle, prompt, mine, theirs)


@pytest.mark.parametrize(("size", "layout"), CASES)
def test_a_checkpoint_of_8_bit_weights(
    size: int, layout: str, demos: dict[int, Demo], tmp_path: Path
) -> None:
    demo = demos[size]
    check(demo, tmp_path, str(demo.folder), *layout.split(), label=f"fp8 {size}x{size}")


@pytest.mark.parametrize(
    ("size", "layout"), [pytest.param(128, "--tp 1", marks=pytest.mark.grid), (64, "--tp 2")]
)
def test_8_bit_weights_that_are_made_at_load(
    size: int, layout: str, demos: dict[int, Demo], tmp_path: Path
) -> None:
    flags = (*layout.split(), "--quantization", "fp8")
    check(demos[size], tmp_path, str(CHECKPOINT), *flags, label=f"fp8 {size}x{size}")
