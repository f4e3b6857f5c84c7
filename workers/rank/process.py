"""One rank's process, forked by a group: start, listen, run steps while frontends come and go."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import gc
import logging
import os
import signal
import sys
import time
from typing import NoReturn

from triton.errors import TritonError

from moe.base.parallel import ParallelConfig
from switchyard.release import release
from switchyard.worker.link import PROTOCOL, local_address
from switchyard.worker.prctl import die_with, name_process
from switchyard.worker.v1 import worker_pb2
from workers.config import WorkerConfig
from workers.distributed import ranks_here
from workers.launcher.epochs import Epochs
from workers.launcher.reports import REFUSED, Reporter
from workers.rank import gil_watchdog
from workers.rank.expert_load import LoadReport
from workers.rank.frontends import Frontends
from workers.rank.service import WorkerService
from workers.rank.startup import LoadedRank, start

STILL_SECONDS = 3.0
"""A serving rank whose interpreter stands still for so long ends itself."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankTask:
    """What every rank of a group is to do; each learns its number from torchrun's environment.

    Attributes:
        secret: what frontends must know; None: nothing.
        epochs: the frontends that ranks of this and of earlier groups have seen.
    """

    config: WorkerConfig
    parallel: ParallelConfig
    secret: str | None
    epochs: Epochs
    reporter: Reporter

    def run(self) -> NoReturn:
        """Be a rank, in a process of its own; ends with the process."""
        die_with(os.getpgrp())  # the group's process leads its session
        _be_a_process_of_its_own()
        rank = int(os.environ.get("RANK", "0"))
        name_process(f"rank {rank}")
        self.reporter.rank(rank)
        try:
            service = self._service()
            ready = start(self.config, self.parallel)
            description = _describe(ready, self.parallel, _seconds_alive())
            load = LoadReport(
                ready.model.expert_load,
                ready.model_config.moe_layers,
                self.parallel,
                ready.groups.tp_rank,
            )
            service.open(description)
        except (ValueError, OSError, RuntimeError, TritonError) as error:
            self._leave(str(error), REFUSED)
        self.reporter.ready()
        _announce(self.config, self.parallel, ready)
        gc.collect()
        gc.freeze()
        gil_watchdog.start(STILL_SECONDS)
        service.run(ready.runner, load)
        raise AssertionError("a rank ran out of steps")

    def _service(self) -> WorkerService:
        """The service, its address taken before the long work of loading."""
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        frontends = Frontends(
            lambda reason: self._leave(reason, 0),
            newest_epoch=self.epochs.newest(),
            saw_epoch=functools.partial(self.epochs.saw, local_rank),
            timeout=self.config.frontend_timeout,
        )
        service = WorkerService(
            lambda reason, failed: self._leave(reason, int(failed)), frontends, secret=self.secret
        )
        service.bind(local_address(self.config.listen, local_rank))
        return service

    def _leave(self, reason: str, code: int) -> NoReturn:
        """End the process at once: threads may be inside collectives that never return."""
        self.reporter.leaves(reason)
        os._exit(code)


def _be_a_process_of_its_own() -> None:
    """Undo what the group's process and torchrun's engine had set up for themselves."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    for package in ("workers", "moe"):
        logging.getLogger(package).setLevel(logging.INFO)


def _seconds_alive() -> float:
    """Seconds since this process was started (Linux)."""
    with open("/proc/self/stat", encoding="ascii") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def _describe(
    ready: LoadedRank, parallel: ParallelConfig, startup_seconds: float
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
        timed_tokens=ready.timed_tokens,
        timed_seconds=ready.timed_seconds,
    )


def _announce(config: WorkerConfig, parallel: ParallelConfig, ready: LoadedRank) -> None:
    if ready.groups.rank:
        return
    tokens = ready.num_blocks * config.block_size * parallel.dp
    sys.stderr.write(
        f"{ready.model_config.architecture} on {ready.groups.world_size} × {ready.device_name}, "
        f"{str(ready.dtype).removeprefix('torch.')}, KV cache of {tokens} tokens\n"
    )
    sys.stderr.flush()
