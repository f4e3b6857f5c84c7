"""Connects to a group of workers, and to the next one when that is lost.

Owns the order: not ready → the old group's streams closed → connected to the next, under a new
epoch → the engine resumes on it → ready; and how often that may happen. The scheduler's
`crash_recovery.py` decides which requests go on. Knows nothing of why ranks die, or of the launcher
that starts them again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from frontend.config import FrontendConfig
from frontend.engine.engine import Engine
from frontend.engine.step_depth import StepDepth
from frontend.group_info import GroupInfo
from frontend.link.group_check import check_successor
from frontend.link.rank_channel import GroupLost
from frontend.link.worker_group import WorkerGroup
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.step_times import StepTimes
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from switchyard.worker.v1 import worker_pb2

logger = logging.getLogger(__name__)

OnReady = Callable[[bool, GroupInfo], Awaitable[None]]

TRY_SECONDS = 2.0
"""Time of one connection attempt. Attempts repeat until --startup-timeout, or until the workers
have ended for good."""

PAUSE_SECONDS = 0.1


class GroupManager:
    """The groups of workers that one frontend has, one after the other.

    Args:
        secret: sent to the ranks with each call; None: no secret.
        ended: set by others when the workers have ended for good.

    Attributes:
        group: the present one, or the last.
    """

    def __init__(
        self, config: FrontendConfig, secret: str | None, ended: asyncio.Event | None = None
    ) -> None:
        self._config = config
        self._secret = secret
        self._ended = ended or asyncio.Event()
        self.group: WorkerGroup | None = None
        self._losses: deque[float] = deque()
        self._epoch = 0

    async def connect(self) -> WorkerGroup:
        """Try until a whole group answers.

        Raises:
            GroupLost: none did in time, or the workers have ended for good.
            ValueError: the ranks do not belong together, or to this frontend.
        """
        deadline = time.monotonic() + self._config.startup_timeout
        while True:
            seconds = min(TRY_SECONDS, max(deadline - time.monotonic(), 0.0))
            self._epoch = max(self._epoch + 1, time.time_ns())  # the clock may have been set back
            try:
                self.group = await WorkerGroup.connect(
                    self._config.workers,
                    startup_timeout=seconds,
                    secret=self._secret,
                    epoch=self._epoch,
                )
            except GroupLost:
                if time.monotonic() + PAUSE_SECONDS >= deadline or self._ended.is_set():
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return self.group

    async def run(
        self,
        engine: Engine,
        on_ready: OnReady,
    ) -> None:
        """Run the engine on one group after the other.

        Args:
            on_ready: called when the workers are lost, and when they are back.

        Raises:
            GroupLost: too often, or no other group came.
            ValueError: the next group is not like the one before.
        """
        assert self.group is not None, "connect() first"
        while True:
            try:
                await engine.run()
            except GroupLost as error:
                lost, cause = self.group, error
            since = time.monotonic()
            self._count_loss(since, cause)
            await on_ready(False, lost.info)
            logger.warning("the workers are lost: %s; waiting for the next group", cause)
            await lost.close()
            group = await self.connect()
            check_successor(lost.description, group.description)
            engine.resume_on(group, limits_of(group.info, self._config))
            await on_ready(True, group.info)
            logger.warning("the workers are back after %.1f s", time.monotonic() - since)

    async def expert_load(self) -> list[worker_pb2.GetExpertLoadResponse]:
        """What each rank of the present group counted for each expert.

        Raises:
            GroupLost: there is none.
        """
        if self.group is None:
            raise GroupLost("no workers have been reached")
        return await self.group.expert_load()

    async def close(self) -> None:
        """End the streams; the ranks wait for the next frontend."""
        if self.group is not None:
            await self.group.close()

    def _count_loss(self, now: float, cause: GroupLost) -> None:
        """Count a loss; raise GroupLost above --max-restarts."""
        config, losses = self._config, self._losses
        losses.append(now)
        while losses[0] < now - config.restart_window:
            losses.popleft()
        if len(losses) > config.max_restarts:
            raise GroupLost(
                f"{cause}; that is loss number {len(losses)} within {config.restart_window:g} s, "
                f"--max-restarts is {config.max_restarts}"
            )


def limits_of(info: GroupInfo, config: FrontendConfig) -> SchedulerLimits:
    """What a group of workers lets the scheduler do."""
    return SchedulerLimits(
        max_batch_size=info.max_batch_size,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        windows=info.group_windows,
        num_replicas=info.data_parallel_size,
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens,
        enable_prefix_cache=config.prefix_cache,
        state_interval=info.state_interval if info.keeps_states else 0,
        num_kept_states=info.num_kept_states,
        state_bytes=info.state_bytes,
    )


def step_times(info: GroupInfo) -> StepTimes:
    """A new predictor of step times that knows the group's own timed prefill."""
    return StepTimes(info.timed_tokens, info.timed_seconds)


def step_depth(info: GroupInfo) -> StepDepth:
    """For the steps of a group. Those that are not captured are launched kernel by kernel: devices
    wait for that, and no other step hides it."""
    return StepDepth(most=MAX_STEPS_IN_FLIGHT if info.graph_batch_sizes else 2)
