"""grpc.health.v1 for this process.

Owns the names of what can be checked: "" and the service's full name are readiness ("can it
serve?"), "liveness" is the event loop being alive. Answers from memory, never through the engine; a
change waits for no client. (grpcio's own servicer holds a lock while it writes: one client that
reads nothing would delay the change to not ready.)
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME = "switchyard.v1.InferenceService"
READINESS = ("", SERVICE_NAME)
LIVENESS = "liveness"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Not ready until `set_ready`; its Watch streams end when the server does."""

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(READINESS, _NOT_SERVING)
        self._statuses[LIVENESS] = _SERVING
        self._changes: set[asyncio.Event] = set()
        self._ending = False

    @property
    def ready(self) -> bool:
        """The last value of `set_ready`."""
        return bool(self._statuses[SERVICE_NAME] == _SERVING)

    async def set_ready(self, ready: bool) -> None:
        """Set both readiness names: whether requests are accepted."""
        self._statuses.update(dict.fromkeys(READINESS, _SERVING if ready else _NOT_SERVING))
        self._wake()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """The present status of a name; NOT_FOUND for others."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: Any
    ) -> health_pb2.HealthListResponse:
        """The present status of every name."""
        answer = health_pb2.HealthListResponse()
        for name, status in self._statuses.items():
            answer.statuses[name].status = status
        return answer

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Stream changes until the client leaves or `end_watches`."""
        changed = asyncio.Event()
        self._changes.add(changed)
        sent = None
        try:
            while True:
                changed.clear()
                status = self._statuses.get(request.service, _UNKNOWN)
                if status != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent = status
                elif self._ending:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
                else:
                    await changed.wait()
        finally:
            self._changes.discard(changed)

    async def end_watches(self) -> None:
        """End every Watch stream: one that is open holds the server's stop for all its grace."""
        self._ending = True
        self._wake()
        await asyncio.sleep(0)

    def _wake(self) -> None:
        for changed in self._changes:
            changed.set()
