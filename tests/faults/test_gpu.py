"""A rank, or the frontend, is killed while GPUs serve: how long until all goes on.

`pytest -s -m gpu tests/faults` prints the times; the weights are made up, their shapes are real.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.kills import Kill, disturbed, serves_again
from tests.faults.streams import Asked
from tests.processes import ROOT, send
from tests.server import Server

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

MODEL = ROOT / "benchmarks" / "configs" / "qwen3-30b-a3b"
FORMATS: dict[str, tuple[int, tuple[str, ...]]] = {
    "bf16": (1, ()),
    "fp8": (1, ("--quantization", "fp8", "--kv-cache-dtype", "fp8_e4m3")),
    "int4": (1, ("--quantization", "int4")),
    "bf16 on two": (2, ()),
}
NUM_STREAMS, PROMPT, OUTPUT = 64, 1024, 512
GOAL_SECONDS = 25.0
FRONTEND_GOAL_SECONDS = 3.0


@pytest.mark.parametrize(("num_gpus", "format_flags"), FORMATS.values(), ids=FORMATS)
async def test_every_stream_goes_on_within_seconds(
    num_gpus: int, format_flags: tuple[str, ...], tmp_path: Path
) -> None:
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"needs {num_gpus} GPUs")
    rng = random.Random(0)
    options = {"max_new_tokens": OUTPUT, "ignore_eos": True, "skip_detokenize": True}
    requests = [
        Asked(tuple(rng.randrange(1000, 100_000) for _ in range(PROMPT)), dict(options))
        for _ in range(NUM_STREAMS)
    ]
    flags = [str(MODEL), "--load-format", "dummy", "--tp", str(num_gpus), *format_flags]
    kills = [
        Kill(at_tokens=NUM_STREAMS * 100, rank=0),
        Kill(at_tokens=NUM_STREAMS * 300, rank=num_gpus - 1),
    ]
    with Server(tmp_path, *flags) as server:
        ended, times = await disturbed(server, requests, kills)
        log = server.log
    for each in times:
        sys.stdout.write(
            f"\n{' '.join(flags[3:])}, B = {NUM_STREAMS}: noticed after {each.noticed:.3f} s, "
            f"ready after {each.ready:.1f} s, streams move after {each.moving:.1f} s\n"
        )
    assert all(answer.usage == (PROMPT, OUTPUT) for answer in ended), log
    assert all(answer.replays == len(kills) for answer in ended), log
    assert all(each.moving < GOAL_SECONDS for each in times), log


async def test_a_killed_frontend_serves_again_within_seconds(tmp_path: Path) -> None:
    """The ranks keep their weights. The folder has no tokenizer, whose loading is not measured."""
    with Server(tmp_path, str(MODEL), "--load-format", "dummy") as server:
        ranks, seconds = server.ranks(), []
        for _ in range(3):
            frontend = server.frontend()
            send(frontend, signal.SIGKILL)
            seconds.append(await serves_again(server, frontend))
        assert server.ranks() == ranks
        log = server.log
    times = ", ".join(f"{each:.2f} s" for each in seconds)
    sys.stdout.write(f"\na frontend serves again after {times}\n")
    assert seconds[0] < FRONTEND_GOAL_SECONDS, log
