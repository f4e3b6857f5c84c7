"""One rank's process, as torchrun starts it: start, listen, run steps until the frontend leaves."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import time

from triton.errors import TritonError

from moe.config import ParallelConfig
from switchyard.release import release
from switchyard.worker.link import PROTOCOL, local_address
from switchyard.worker.v1 import worker_pb2
from workers.config import WorkerConfig
from workers.distributed import ranks_here
from workers.flags import configure, parser
from workers.service import WorkerService
from workers.startup import Rank, start

_PR_SET_PDEATHSIG = 1
_OTHERS_WAIT_SECONDS = 1.0


def main() -> None:
    """Entry point of ``python -m workers.rank``; needs torchrun's environment."""
    # The launcher's death, even by SIGKILL, must not leave a rank holding a GPU.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    flags_parser = parser()
    flags_parser.add_argument("--launcher-pid", type=int, required=True)
    flags = flags_parser.parse_args()
    if os.getppid() != flags.launcher_pid:
        os._exit(1)  # it died before the line above could tell
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("workers", "moe"):
        logging.getLogger(package).setLevel(logging.INFO)
    config, parallel = configure(flags)
    rank = int(os.environ.get("RANK", "0"))
    try:
        service = WorkerService(_leave)
        service.bind(local_address(config.listen, int(os.environ.get("LOCAL_RANK", "0"))))
        ready = start(config, parallel)
        service.open(_describe(ready, parallel, _seconds_alive()))
    except (ValueError, OSError, RuntimeError, TritonError) as error:
        _fail(rank, error)
    _announce(config, parallel, ready)
    gc.collect()
    gc.freeze()
    service.run(ready.runner)


def _seconds_alive() -> float:
    """Seconds since this process was started, imports included (Linux)."""
    with open("/proc/self/stat", encoding="ascii") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def _describe(
    ready: Rank, parallel: ParallelConfig, startup_seconds: float
) -> worker_pb2.DescribeResponse:
    ceilings = ready.runner.measure.device
    return worker_pb2.DescribeResponse(
        protocol=PROTOCOL,
        version=release(),
        rank=ready.groups.rank,
        world_size=ready.groups.world_size,
        local_world_size=ranks_here(),
        tensor_parallel_size=parallel.tp,
        data_parallel_size=parallel.dp,
        expert_parallel_size=parallel.ep,
        moe_ep_backend=parallel.backend,
        architecture=ready.model_config.architecture,
        vocab_size=ready.model_config.vocab_size,
        max_model_len=ready.max_model_len,
        max_batch_size=ready.runner.builder.num_slots,
        max_num_batched_tokens=ready.max_num_batched_tokens,
        block_size=ready.runner.builder.block_size,
        num_blocks=ready.num_blocks,
        eos_token_ids=ready.model_config.eos_token_ids,
        device=ready.device_name,
        dtype=str(ready.dtype).removeprefix("torch."),
        weights_sha256=ready.loaded.sha256,
        bytes_read=ready.loaded.bytes_read,
        startup_seconds=startup_seconds,
        bytes_per_second=ceilings.bytes_per_second if ceilings else 0.0,
        flops_per_second=ceilings.flops_per_second if ceilings else 0.0,
        graph_batch_sizes=ready.runner.graphs.decodes,
    )


def _announce(config: WorkerConfig, parallel: ParallelConfig, ready: Rank) -> None:
    if ready.groups.rank:
        return
    tokens = ready.num_blocks * config.block_size * parallel.dp
    sys.stderr.write(
        f"{ready.model_config.architecture} on {ready.groups.world_size} × {ready.device_name}, "
        f"{str(ready.dtype).removeprefix('torch.')}, KV cache of {tokens} tokens\n"
    )
    sys.stderr.flush()


def _leave(reason: str, failed: bool) -> None:
    """End the process at once: threads may be inside collectives that never return."""
    if failed or os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"switchyard workers: {reason}\n")
        sys.stderr.flush()
    os._exit(1 if failed else 0)


def _fail(rank: int, error: Exception) -> None:
    """One line for the whole group: most errors are every rank's, so rank 0 goes first."""
    if rank:
        time.sleep(_OTHERS_WAIT_SECONDS)
    sys.stderr.write(f"switchyard workers: {' '.join(str(error).split())}\n")
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    main()
