"""The flags of ``python -m workers``, shared by the launcher and the ranks it starts."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from moe.base.parallel import ParallelConfig, resolve_parallel
from moe.config import resolve_runner
from workers.config import DEVICES, DTYPES, LOAD_FORMATS, WorkerConfig
from workers.model_config import ModelConfig


def parser() -> argparse.ArgumentParser:
    """All flags of a group of ranks."""
    flags = argparse.ArgumentParser(
        prog="python -m workers",
        description="Start a group of worker ranks, one per GPU (or CPU processes).",
        allow_abbrev=False,  # the launcher takes its own flags out by their full names
    )
    flags.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    flags.add_argument(
        "--listen",
        default="127.0.0.1:50061",
        help="rank i of this machine listens on port + i, or on unix:/dir/rank-{rank}.sock",
    )
    flags.add_argument("--tp", "--tensor-parallel-size", type=int, default=1)
    flags.add_argument("--dp", "--data-parallel-size", type=int, default=1)
    flags.add_argument("--ep", "--expert-parallel-size", type=int, default=None)
    flags.add_argument("--moe-ep-backend", default="auto")
    flags.add_argument("--moe-runner", default="auto")
    flags.add_argument("--device", default="auto", help=", ".join(DEVICES))
    flags.add_argument("--dtype", default="auto", help=", ".join(DTYPES))
    flags.add_argument("--load-format", default="auto", help=", ".join(LOAD_FORMATS))
    flags.add_argument("--max-batch-size", type=int, default=256, help="sequences per replica")
    flags.add_argument("--max-model-len", type=int, default=None)
    flags.add_argument("--max-num-batched-tokens", type=int, default=None, help="tokens per step")
    flags.add_argument("--block-size", type=int, default=16, help="tokens per KV block")
    flags.add_argument("--num-blocks", type=int, default=None, help="KV blocks; default: what fits")
    flags.add_argument("--memory-fraction", type=float, default=0.9)
    flags.add_argument("--seed", type=int, default=0, help="of made-up weights")
    flags.add_argument("--cuda-graphs", default="on", help="off: launch decodes kernel by kernel")
    flags.add_argument(
        "--link-secret-file", type=Path, default=None, help="what frontends must know to be served"
    )
    flags.add_argument(
        "--insecure-link", action="store_true", help="serve any frontend, from any machine"
    )
    return flags


def configure(flags: argparse.Namespace) -> tuple[WorkerConfig, ParallelConfig]:
    """Check flags and the model's config.json.

    Raises:
        ValueError: one line naming the flag or the file, the numbers and the choices.
    """
    names = {field.name for field in dataclasses.fields(WorkerConfig)}
    config = WorkerConfig(**{k: v for k, v in vars(flags).items() if k in names})
    resolve_runner(config.moe_runner)
    model = ModelConfig.from_folder(config.model)
    parallel = resolve_parallel(
        tp=flags.tp,
        dp=flags.dp,
        ep=flags.ep,
        backend=flags.moe_ep_backend,
        has_experts=model.moe is not None and any(model.moe_layers),
    )
    model.check_tensor_parallel(parallel.tp)
    return config, parallel
