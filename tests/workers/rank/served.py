"""What steps of service launch that no start has compiled, for a GPU that is not there.

``python -m tests.workers.rank.served NAME QUANTIZATION`` writes how many kernels the warm-up of a
model of real widths launches, with another word behind it captured steps too, and a line for each
that random steps launch besides: its name and the step.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from triton.runtime.jit import JITFunction

from moe.base.context import KernelContext
from moe.base.tile_files import load_book
from moe.base.workspace import Workspace
from switchyard.worker.v1 import worker_pb2
from tests.absent_gpu import SHARED_BYTES, compile_for_hopper
from tests.workers.gpu.driver import Frontend, Prompt
from tests.workers.gpu.test_families import real
from tests.workers.steps import start_rank
from workers.rank import kv_sizing
from workers.rank.startup import LoadedRank
from workers.staging import Staging
from workers.step.batch import BatchShape
from workers.step.graphs import batch_sizes, mixed_sizes

SLOTS, MOST_TOKENS, LONGEST = 72, 2048, 4096
NUM_STEPS = 120


class Kernels:
    """Kernels that are launched from now on, which compile and run nothing."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.new: list[str] = []
        compile_for_hopper()
        JITFunction.__getitem__ = lambda kernel, grid: (
            lambda *args, **options: kernel.run(*args, grid=grid, warmup=True, **options)
        )

        def see(kernel: JITFunction[Any], key: str, *_: Any) -> None:
            """A kernel is asked for again at each launch, since nobody made it."""
            if f"{kernel.__name__} {key}" not in self.seen:
                self.seen.add(f"{kernel.__name__} {key}")
                self.new.append(kernel.__name__)

        JITFunction._do_compile = see


def aligned(_: Staging, columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """As columns lie on a device."""
    return {name: torch.from_numpy(np.array(column)).clone() for name, column in columns.items()}


def start(name: str, quantization: str, folder: Path) -> LoadedRank:
    """A rank that has run its warm-up."""
    shape = {"num_tokens": MOST_TOKENS, "num_sequences": SLOTS, "max_model_len": LONGEST}
    kv_sizing.warm_up_shape = lambda config, build: {**shape, "block_size": config.block_size}
    Staging.copy = aligned
    torch.mm = lambda *_, out: out  # the library's, which has no kernels of ours
    context = KernelContext(
        workspace=Workspace("cpu"),
        tiles=load_book(
            device_name="NVIDIA H100 80GB HBM3",
            triton_version="3.6.0",
            dtype="bfloat16",
            item_size=2,
            shared_bytes=SHARED_BYTES,
        ),
        pdl=True,
        num_cores=132,
        specialized=True,
    )
    return start_rank(
        real(name, folder), context, load_format="dummy", dtype="bfloat16",
        quantization=quantization, max_batch_size=SLOTS, max_num_batched_tokens=MOST_TOKENS,
        max_model_len=LONGEST, num_blocks=1 << 14,
    )  # fmt: skip


@torch.inference_mode()
def capture(rank: LoadedRank) -> None:
    """Launch what graphs would hold."""
    shapes = [BatchShape(size, decodes=False) for size in mixed_sizes(MOST_TOKENS)]
    shapes += [BatchShape(size, decodes=True) for size in batch_sizes(SLOTS)]
    for shape in shapes:
        rank.runner.forward(rank.runner.builder.build(worker_pb2.StepRequest(), shape))


def serve(rank: LoadedRank, kernels: Kernels) -> None:
    """Random steps kernel by kernel: decodes of some slots beside some prompts of equal length."""
    frontend, rng, slots = Frontend(rank), random.Random(0), range(SLOTS)
    frontend.positions = dict.fromkeys(slots, 0)
    for _ in range(NUM_STEPS):
        held = [slot for slot in slots if frontend.positions[slot]]
        decodes = rng.sample(held, rng.choice([0, rng.randint(0, len(held))]))
        free = [slot for slot in slots if slot not in decodes]
        room = MOST_TOKENS - len(decodes)
        prompts = rng.sample(free, min(len(free), rng.choice([0, 1, 1, 2, 3, 5, 8, 16, 40])))
        length = min(int(2 ** rng.uniform(0, 11)), room // max(1, len(prompts)))
        if not decodes and not prompts:
            continue
        step = frontend.step(decodes, {slot: Prompt([5] * length, {}) for slot in prompts})
        before = len(kernels.new)
        rank.runner.launch(step).result()
        for name in kernels.new[before:]:
            told = f"{len(decodes)} decodes, {len(prompts)} prompts of {length}"
            sys.stdout.write(f"{name}, {told}\n")


def main() -> None:
    kernels = Kernels()
    with tempfile.TemporaryDirectory() as folder:
        rank = start(sys.argv[1], sys.argv[2], Path(folder))
        if sys.argv[3:]:
            capture(rank)
        sys.stdout.write(f"{len(kernels.seen)}\n")
        serve(rank, kernels)


if __name__ == "__main__":
    main()
