"""What every request passes on its way in: its id, its path's form, its origin, and its key.

Owns the names of requests, which paths need no key, and which web pages may call. A page of any
site can have its visitor's browser call a server on that visitor's machine, and by a name that it
points there (DNS rebinding) even read the answer. Keys stop both; a server without keys checks
where a call comes from. `body.py` has the part of it that concerns bodies. Knows no path's
meaning.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.api.auth import is_loopback
from frontend.api.http.errors import HttpError
from frontend.errors import RequestError, internal_error
from frontend.records import Caller

logger = logging.getLogger(__name__)

Authenticate = Callable[[str | None], str]
Respond = Callable[[Scope, HttpError | RequestError], Response]
"""Gives an error the shape of the API that a request asks."""

# What orchestrators and browsers read without a key; nothing of it is about the model or a request.
OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/openapi.json", "/docs"})

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ID_HEADERS = (b"x-request-id", b"request-id")  # the second is Anthropic's
_EXPOSED = ("x-request-id", "request-id", "retry-after")


def without_keys(authorization: str | None) -> str:
    """Accepts every caller, under no name."""
    return ""


class RequestIds:
    """Names each request, sends the name back, and answers a bug with it.

    The name is the client's x-request-id where it is a valid one. The outermost middleware:
    Starlette's own answer to a bug knows no request id, and raises the bug again.
    """

    def __init__(self, app: ASGIApp, respond: Respond) -> None:
        self._app, self._respond = app, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        assert scope["type"] == "http"
        given = _header(scope, b"x-request-id") or ""
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        is_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                message["headers"] = [
                    *message["headers"], *((name, request_id.encode()) for name in _ID_HEADERS)
                ]  # fmt: skip
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not is_begun:
                response = self._respond(scope, internal_error(request_id))
                await response(scope, receive, send_with_id)


class TrailingSlashes:
    """Takes /v1/models/ for /v1/models, without sending the client there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        scope["path"] = scope["path"].rstrip("/") or "/"
        await self._app(scope, receive, send)


class Authentication:
    """Refuses a request without a valid key before its path is looked at or its body is read.

    Args:
        open_paths: need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticate: Authenticate,
        open_paths: frozenset[str],
        respond: Respond,
    ) -> None:
        self._app, self._authenticate, self._open_paths = app, authenticate, open_paths
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        if scope["path"] not in self._open_paths:
            try:
                key = self._key(scope)
            except (HttpError, RequestError) as error:
                await self._respond(scope, error)(scope, receive, send)
                return
            client = scope.get("client")
            scope["state"]["caller"] = Caller(
                key=key,
                peer=f"{client[0]}:{client[1]}" if client else "",
                traceparent=_header(scope, b"traceparent") or "",
            )
        await self._app(scope, receive, send)

    def _key(self, scope: Scope) -> str:
        """The name of the request's key, which it has in either header, or the same in both.

        Raises:
            HttpError: it has two: which one counts is for nobody to guess.
            RequestError: it has none that is valid.
        """
        bearers = [value.decode("latin-1") for value in _headers(scope, b"authorization")]
        keys = [f"Bearer {key.decode('latin-1')}" for key in _headers(scope, b"x-api-key")]
        if len(bearers) > 1 or len(keys) > 1 or (bearers and keys and bearers != keys):
            raise HttpError(
                400,
                "the request has several keys in Authorization and x-api-key headers; send one",
                code="several_api_keys",
            )
        return self._authenticate([*bearers, *keys, None][0])


def _header(scope: Scope, name: bytes) -> str | None:
    """The last header of that name; None when it was not sent."""
    found = _headers(scope, name)
    return found[-1].decode("latin-1") if found else None


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def for_browsers(
    origins: Sequence[str], local_host: str | None, respond: Respond
) -> list[Middleware]:
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
        passed.append(
            Middleware(LocalCallers, host=local_host, origins=frozenset(origins), respond=respond)
        )
    return passed


class LocalCallers:
    """Refuses calls by another name than this machine's, and by pages of other origins.

    Args:
        host: the address that the server listens on.
        origins: of other pages that may call.
    """

    def __init__(self, app: ASGIApp, host: str, origins: frozenset[str], respond: Respond) -> None:
        self._app, self._host, self._origins = app, host.lower(), origins
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        headers = Headers(scope=scope)
        refusal = self._refusal(
            headers.get("host", ""), headers.getlist("origin"), str(scope["scheme"])
        )
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await self._respond(scope, refusal)(scope, receive, send)

    def _refusal(self, host: str, origins: list[str], scheme: str) -> HttpError | None:
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


def _forbidden(message: str, code: str) -> HttpError:
    return HttpError(403, message, code=code)
