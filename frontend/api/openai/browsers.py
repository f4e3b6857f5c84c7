"""Web pages as callers: which ones may call, and that no other does behind its user's back.

Owns what Host and Origin say. A page of any site can have its visitor's browser call a server on
that visitor's machine, and by a name that it points there (DNS rebinding) even read the answer.
Keys stop both; a server without keys checks where a call comes from. `upload.py` has the part of it
that concerns bodies.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.api.exposure import is_loopback
from frontend.api.openai.errors import ApiError

_EXPOSED = ("x-request-id", "retry-after")


def for_browsers(origins: Sequence[str], local_host: str | None) -> list[Middleware]:
    """What a request passes before its key is looked at.

    Args:
        origins: of the pages that may call and read (CORS); ``*`` is all of them.
        local_host: where a server without keys listens; None: no call is refused here.
    """
    passed = []
    if origins:
        passed.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
                expose_headers=_EXPOSED,
            )
        )
    if local_host is not None:
        passed.append(Middleware(LocalCallers, host=local_host, origins=frozenset(origins)))
    return passed


class LocalCallers:
    """Refuses calls by another name than this machine's, and by pages of other origins.

    Args:
        host: the address that the server listens on.
        origins: of other pages that may call.
    """

    def __init__(self, app: ASGIApp, host: str, origins: frozenset[str]) -> None:
        self._app, self._host, self._origins = app, host.lower(), origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        headers = Headers(scope=scope)
        refusal = self._refusal(
            headers.get("host", ""), headers.getlist("origin"), str(scope["scheme"])
        )
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal.response()(scope, receive, send)

    def _refusal(self, host: str, origins: list[str], scheme: str) -> ApiError | None:
        name = host_name(host)
        if host and not (is_loopback(name) or name == self._host):  # HTTP/1.0 may have none
            return _forbidden(
                "the Host is not this machine's, and this server has no keys; call it by "
                "localhost, or start it with --api-key-file, or --insecure to take any Host",
                "host_not_allowed",
            )
        own = f"{scheme}://{host}".lower()
        for origin in origins:
            if origin.lower() != own and not self._origins & {origin, "*"}:
                return _forbidden(
                    "web pages of this Origin may not call; start the server with "
                    "--cors-origin ORIGIN to allow it",
                    "origin_not_allowed",
                )
        return None


def host_name(host: str) -> str:
    """A Host header without its port, in lower case; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _forbidden(message: str, code: str) -> ApiError:
    return ApiError(403, "invalid_request_error", message, code=code)
