"""The OpenAI-compatible API as an ASGI application: routes, keys, errors, streams.

Owns which path does what and what leaves as an error. `frontend.service` does all work.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from frontend.api.openai.chat import read_chat
from frontend.api.openai.completions import read_completion
from frontend.api.openai.errors import HttpError, http_error
from frontend.api.openai.exchange import ClientGoneError, Exchange, Message, Receive, Send
from frontend.api.openai.job import Job
from frontend.api.openai.json_fields import Fields, parse_object
from frontend.api.openai.logprobs import TokenTexts
from frontend.errors import RequestError, internal_error, invalid_field
from frontend.records import Caller
from frontend.service.service import Service

logger = logging.getLogger(__name__)

Authenticate = Callable[[str | None], str]
Metrics = Callable[[], tuple[bytes, str]]
_Handler = Callable[[Exchange, Caller], Awaitable[None]]

_DONE = b"data: [DONE]\n\n"


def anybody(authorization: str | None) -> str:
    """Asks nobody who they are."""
    return ""


class App:
    """Answers HTTP requests.

    Args:
        service: what answers them.
        model: served name.
        authenticate: from the Authorization header to the name of its key; raises
            UNAUTHENTICATED. Only /health is answered without it.
        metrics: text for Prometheus and its content type; None: there is no /metrics.
    """

    def __init__(
        self,
        service: Service,
        *,
        model: str,
        authenticate: Authenticate = anybody,
        metrics: Metrics | None = None,
    ) -> None:
        self._service = service
        self._model = model
        self._authenticate = authenticate
        self._metrics = metrics
        self._texts = TokenTexts(service)
        self._started = int(time.time())
        self._routes: Mapping[str, tuple[str, _Handler]] = {
            "/v1/models": ("GET", self._models),
            f"/v1/models/{model}": ("GET", self._one_model),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completions),
            **({"/metrics": ("GET", self._scrape)} if metrics else {}),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls it."""
        assert scope["type"] == "http"
        exchange = Exchange(scope, receive, send)
        with contextlib.suppress(ClientGoneError):
            try:
                await self._route(exchange)
            except HttpError as error:
                await _fail(exchange, error)
            except RequestError as error:
                await _fail(exchange, http_error(error, {}))
            except ClientGoneError:
                raise
            except Exception:
                logger.exception("request %s failed", exchange.request_id)
                await _fail(exchange, http_error(internal_error(exchange.request_id), {}))

    async def _route(self, exchange: Exchange) -> None:
        if exchange.path == "/health":
            _check_method(exchange, "GET")
            await self._health(exchange)
            return
        caller = Caller(
            key=self._authenticate(exchange.header(b"authorization")),
            peer=exchange.peer,
            traceparent=exchange.header(b"traceparent") or "",
        )
        route = self._routes.get(exchange.path)
        if route is None:
            raise _not_found(exchange.path)
        method, handler = route
        _check_method(exchange, method)
        await handler(exchange, caller)

    async def _health(self, exchange: Exchange) -> None:
        why = self._service.why_not_ready()
        if why:
            await exchange.answer({"status": "unavailable", "reason": why}, 503)
        else:
            await exchange.answer({"status": "ok"})

    async def _scrape(self, exchange: Exchange, caller: Caller) -> None:
        assert self._metrics is not None, "there is no route to it"
        data, content_type = self._metrics()
        await exchange.answer_bytes(data, content_type.encode())

    async def _models(self, exchange: Exchange, caller: Caller) -> None:
        await exchange.answer({"object": "list", "data": [self._model_object()]})

    async def _one_model(self, exchange: Exchange, caller: Caller) -> None:
        await exchange.answer(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._started,
            "owned_by": "switchyard",
            "max_model_len": self._service.model_info().max_context_tokens,
        }

    async def _chat(self, exchange: Exchange, caller: Caller) -> None:
        fields = parse_object(await exchange.body())
        await self._generate(exchange, caller, read_chat, fields)

    async def _completions(self, exchange: Exchange, caller: Caller) -> None:
        fields = parse_object(await exchange.body())
        await self._generate(exchange, caller, read_completion, fields)

    async def _generate(
        self,
        exchange: Exchange,
        caller: Caller,
        read: Callable[[Fields, str, str], Job],
        fields: Fields,
    ) -> None:
        try:
            job = read(fields, exchange.request_id, self._model)
        except RecursionError as error:  # what could just be read cannot always be written again
            raise invalid_field("body", "is nested too deep; send flatter JSON") from error
        answer = self._stream if job.stream else self._whole
        try:
            await exchange.until_gone(answer(exchange, caller, job))
        except RequestError as error:
            raise http_error(error, job.names) from error

    async def _stream(self, exchange: Exchange, caller: Caller, job: Job) -> None:
        """Send chunks as they come. The status waits for the first: a refusal has its own."""
        async with contextlib.aclosing(job.chunks(self._service, self._texts, caller)) as stream:
            async for chunks in stream:
                if not exchange.is_started:
                    await exchange.begin_events()
                await exchange.write_events(chunks)
        await exchange.end_events(_DONE)

    async def _whole(self, exchange: Exchange, caller: Caller, job: Job) -> None:
        """Send one answer when all of it is there."""
        async with contextlib.aclosing(job.chunks(self._service, self._texts, caller)) as stream:
            chunks = [chunk async for several in stream for chunk in several]
        await exchange.answer(job.whole(chunks))


async def _fail(exchange: Exchange, error: HttpError) -> None:
    """Tell an error: as the response, or as the last event of one that has begun."""
    if exchange.is_started:
        await exchange.write_events([error.body])
        await exchange.end_events()
    else:
        await exchange.answer(error.body, error.status, error.headers)


def _check_method(exchange: Exchange, method: str) -> None:
    taken = ("GET", "HEAD") if method == "GET" else (method,)
    if exchange.method not in taken:
        raise HttpError(
            405,
            "invalid_request_error",
            f"{exchange.path} takes {method}",
            code="method_not_allowed",
            headers=[(b"allow", ", ".join(taken).encode())],
        )


def _not_found(path: str) -> HttpError:
    if path.startswith("/v1/models/"):
        return HttpError(
            404,
            "invalid_request_error",
            "no such model here; GET /v1/models lists what there is",
            code="model_not_found",
            param="model",
        )
    return HttpError(
        404,
        "invalid_request_error",
        "no such path here; see /v1/models, /v1/chat/completions, /v1/completions, /health",
        code="not_found",
    )
