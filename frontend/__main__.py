"""`python -m frontend`: listen, connect to the workers, serve, drain.

Owns the flags of the process, its signals, its one-line messages and its exit code: 0 after a
drain, 1 when the workers are lost or never come, 2 for bad flags or an address that is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from frontend import interpreter
from frontend.api.auth import ApiKeys
from frontend.api.listeners import Listeners
from frontend.backend import Backend
from frontend.config import API_KEY_VARIABLE, FrontendConfig, environments_key, join_address
from frontend.engine.engine import Engine, workers_lost
from frontend.engine.kv_events import KvEvents
from frontend.errors import internal_error
from frontend.group_info import GroupInfo
from frontend.link.expert_load import ExpertLoadPoller
from frontend.link.reconnect import GroupManager, limits_of, step_depth, step_times
from frontend.link.supervisor_socket import Supervision
from frontend.link.worker_group import GroupLost, WorkerGroup
from frontend.model_folder import (
    SamplingDefaults,
    read_sampling_defaults,
    read_vocab_size,
    resolve_model,
    served_name,
)
from frontend.observability.setup import Observability
from frontend.processing.tokenizer import Tokenizer
from frontend.scheduler.prefix_log import PrefixLog
from frontend.scheduler.scheduler import Scheduler
from frontend.service.calls import KeyLimit
from frontend.service.service import Service
from switchyard.flags import add_flags, given
from switchyard.parser import Parser
from switchyard.release import release
from switchyard.worker.limits import check_limits
from switchyard.worker.link import read_secret
from switchyard.worker.output import lossy_output

logger = logging.getLogger(__name__)

# After the drain, or a loss: what streams get to send their last message.
STOP_GRACE_SECONDS = 1.0
LAST_WORDS_SECONDS = 5.0

_T = TypeVar("_T")
Ports = tuple[int, int | None]


def parse_config(arguments: Sequence[str] | None = None) -> FrontendConfig:
    """Flags to config.

    Raises:
        ValueError: a flag's value, or the model folder, will not do.
    """
    parser = Parser(prog="python -m frontend", description="Serve what workers compute.")
    add_flags(parser, FrontendConfig)
    flags = parser.parse_args(arguments)
    named = getattr(flags, "model", None)
    model, settings = resolve_model(named), given(FrontendConfig, flags)
    defaults: dict[str, Any] = {"served_name": served_name(named)}
    if "api_key_file" not in settings:
        defaults["api_key"] = environments_key()
    if "api_key" in settings:
        logger.warning(
            "--api-key shows in the process list; --api-key-file and $%s do not", API_KEY_VARIABLE
        )
    return FrontendConfig(**{**defaults, **settings, "model": model})


class Stop:
    """SIGTERM and SIGINT: the first asks for a drain, the second for the end."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)

    def _signal(self) -> None:
        (self.now if self.drain.is_set() else self.drain).set()


async def serve(config: FrontendConfig, defaults: SamplingDefaults, link_secret: str | None) -> int:
    """Run until a signal or the loss of the workers.

    Returns:
        The exit code.
    """
    stop = Stop()
    try:
        watching = Observability(config, version=release())
        access = ApiKeys(config.api_key_file, config.api_key)
        service = Service(
            model=config.served_name,
            version=release(),
            observers=watching.observers,
            key_limit=KeyLimit(config.max_requests_per_key),
            may_raise_priority=access.may_raise_priority,
            may_read_kv_events=access.may_read_kv_events,
        )
        server = Listeners(config, service, access, watching.metrics)
        supervision = Supervision(config.supervisor)
        ports = await server.start()
    except (OSError, ValueError) as error:
        return _fail(str(error), 2)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
    workers = GroupManager(config, link_secret, supervision.workers_ended)
    try:
        tokenizer, group = await _unless(stop.drain, _connect(config, workers))
        times, prefix_log = step_times(group.info), PrefixLog()
        engine = Engine(
            Scheduler(limits_of(group.info, config), times, prefix_log),
            group,
            times=times,
            depth=step_depth(group.info),
            step_timeout=config.step_timeout,
            observers=watching.step_observers,
        )
        service.open(
            Backend(
                engine=engine,
                tokenizer=tokenizer,
                info=group.info,
                defaults=defaults,
                max_queued_requests=config.max_queued_requests,
                prefix_cache=config.prefix_cache,
                kv_events=KvEvents(prefix_log) if config.prefix_cache else None,
                experts=ExpertLoadPoller(workers.expert_load, group.info.expert_parallel_size),
            )
        )
        return await _run(config, ports, service, server, engine, workers, stop, supervision)
    except _StoppedError:
        return 0
    except _FolderError as error:
        return _fail(str(error), 2)
    except (GroupLost, ValueError, OSError) as error:
        if isinstance(error, GroupLost) and supervision.workers_ended.is_set():
            return 1  # the launcher has said why
        return _fail(str(error), 1)
    finally:
        await server.stop(STOP_GRACE_SECONDS)
        await workers.close()
        supervision.close()
        watching.close()


class _FolderError(Exception):
    """What the model's folder holds cannot be served."""


class _StoppedError(Exception):
    """A signal came while the workers were still awaited."""


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of ``work``, or `_StoppedError` once the event is set."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _StoppedError
        return task.result()
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def _connect(
    config: FrontendConfig, workers: GroupManager
) -> tuple[Tokenizer | None, WorkerGroup]:
    """Load the tokenizer while the workers load their weights."""
    return await asyncio.gather(_load_tokenizer(config), workers.connect())


async def _load_tokenizer(config: FrontendConfig) -> Tokenizer | None:
    try:
        vocab_size = read_vocab_size(config.model)
        return await asyncio.to_thread(
            Tokenizer.load,
            config.model,
            config.chat_template,
            vocab_size,
            config.reasoning_parser,
            config.tool_call_parser,
        )
    except ValueError as error:
        raise _FolderError(str(error)) from error


async def _run(
    config: FrontendConfig,
    ports: Ports,
    service: Service,
    server: Listeners,
    engine: Engine,
    workers: GroupManager,
    stop: Stop,
    supervision: Supervision,
) -> int:
    """Serve until the drain is over or the workers are lost for good."""

    async def on_ready(ready: bool, info: GroupInfo) -> None:
        if ready:
            service.renew(info)
            supervision.say_ready(_flags_of(ports))
        await server.health.set_ready(ready and service.takes_requests)

    interpreter.settle()
    running = asyncio.create_task(workers.run(engine, on_ready))
    draining = asyncio.create_task(_drain(config, service, server, stop))
    await server.health.set_ready(True)
    supervision.say_ready(_flags_of(ports))
    _say_ready(config, ports, service)
    preparing = asyncio.create_task(service.prepare())
    try:
        await asyncio.wait({running, draining}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            return 0
        error = running.exception()
        is_loss = isinstance(error, GroupLost | ValueError)
        service.lose()
        engine.end(workers_lost if is_loss else lambda request: internal_error(request.id))
        await server.health.set_ready(False)
        await _within(LAST_WORDS_SECONDS, service.idle())
        if is_loss:
            return _fail(f"the workers are lost: {error}", 1)
        logger.error("the engine failed", exc_info=error)
        return _fail(f"internal error: {error}", 1)
    finally:
        for task in (running, draining, preparing):
            task.cancel()
        await asyncio.gather(running, draining, preparing, return_exceptions=True)
        engine.end()


async def _drain(config: FrontendConfig, service: Service, server: Listeners, stop: Stop) -> None:
    """After the first signal: refuse new requests, let the live ones end, then end the rest."""
    await stop.drain.wait()
    _say_draining(service.drain(), config.drain_timeout)
    await server.health.set_ready(False)
    with contextlib.suppress(_StoppedError):
        await _unless(stop.now, _within(config.drain_timeout, service.idle()))
    service.abort_all()
    await _within(LAST_WORDS_SECONDS, service.idle())


async def _within(seconds: float, work: Awaitable[None]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, seconds)


def _flags_of(ports: Ports) -> list[str]:
    """Flags with which another frontend takes the same ports."""
    port, http_port = ports
    http = [] if http_port is None else ["--http-port", str(http_port)]
    return ["--port", str(port), *http]


def _say_draining(num_live: int, timeout: float) -> None:
    """Say what a signal to stop has begun; one that finds nothing to wait for says so too."""
    if num_live:
        requests = "1 open request" if num_live == 1 else f"{num_live} open requests"
        line = f"stopping: waiting up to {timeout:g} s for {requests}; another signal ends it now"
    else:
        line = "stopping: no request is open"
    sys.stderr.write(f"switchyard: {line}\n")
    sys.stderr.flush()


def _say_ready(config: FrontendConfig, ports: Ports, service: Service) -> None:
    facts = service.server_info()
    ranks = f"{facts.world_size} rank{'s' if facts.world_size > 1 else ''} on {facts.device}"
    kv_type = "" if facts.kv_cache_dtype == facts.dtype else f" in {facts.kv_cache_dtype}"
    port, http_port = ports
    lines = (
        f"switchyard: serving {config.served_name} on {join_address(config.host, port)} ({ranks}, "
        f"{facts.dtype}, context {facts.max_prompt_tokens + 1}, "
        f"KV cache {facts.kv_cache_tokens} tokens{kv_type})\n"
    )
    if http_port is not None:
        lines += f"switchyard: HTTP on {join_address(config.host, http_port)}\n"
    info = service.model_info()
    tool_format = info.tool_format
    if info.reasoning_format:
        lines += f"switchyard: thoughts begin with {info.reasoning_format}\n"
    if tool_format:
        lines += f"switchyard: tool calls are read as {tool_format}\n"
    sys.stdout.write(lines)
    sys.stdout.flush()


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"switchyard: {message}\n")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="switchyard: %(levelname)s %(message)s")
    try:
        check_limits(ranks=False)
        config = parse_config(arguments)
        defaults = read_sampling_defaults(config.model)
        link_secret = read_secret(config.link_secret_file)
    except ValueError as error:
        return _fail(str(error), 2)
    _hide_torch()
    interpreter.start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, defaults, link_secret))


def _hide_torch() -> None:
    """Keep transformers from importing torch where both halves are installed together: it takes
    three seconds, and no tokenizer needs it. Containers of the frontend have none anyway."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    logging.getLogger("transformers").addFilter(
        lambda record: "PyTorch was not found" not in record.getMessage()
    )


if __name__ == "__main__":
    with lossy_output():
        status = main()
    sys.exit(status)
