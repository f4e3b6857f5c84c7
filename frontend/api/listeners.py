"""The ports of a server: gRPC always, HTTP unless --no-http.

Owns that both have the same keys and the same certificate, and the order in which they start and
stop. Knows nothing of what is served.
"""

from __future__ import annotations

import sys

from frontend.api.application import application
from frontend.api.auth import ApiKeys, check_exposure, has_playground, is_for_local_callers
from frontend.api.grpc.health import Health
from frontend.api.grpc.server import GrpcServer
from frontend.api.http.server import HttpServer
from frontend.api.openengine.servicer import openengine
from frontend.api.playground.page import playground_routes
from frontend.api.tls import ServerTls, server_tls, ssl_context
from frontend.api.vllm.servicer import vllm_engine
from frontend.api.vllm_native.servicer import vllm_native
from frontend.config import FrontendConfig
from frontend.observability.metrics import Metrics, Sources
from frontend.service.service import Service


class Listeners:
    """Both servers of one service.

    Args:
        config: addresses, keys and certificates.
        service: answers the requests.
        access: the API keys, which `reload` reads again.
        metrics: shown by HTTP; it gets the sources of its gauges here.

    Raises:
        ValueError: certificates cannot be used, or strangers could reach the service.
    """

    def __init__(
        self, config: FrontendConfig, service: Service, access: ApiKeys, metrics: Metrics
    ) -> None:
        self._warning = check_exposure(config)
        self._access = access
        tls = server_tls(config)
        self._grpc = GrpcServer(
            service,
            config.host,
            config.port,
            access=access,
            tls=tls,
            others=[
                vllm_engine(service, config.model, config.chat_template),
                vllm_native(service),
                openengine(service),
            ],
        )
        self._http = None
        if config.http:
            self._http = _http_server(config, service, access, metrics, tls)
        metrics.attach(
            Sources(
                load=service.engine_load,
                experts=service.expert_load,
                server=service.server_info,
                ready=lambda: self.health.ready,
                denied=lambda: access.denied,
            )
        )

    @property
    def health(self) -> Health:
        """The health service, which orchestrators read."""
        return self._grpc.health

    async def start(self) -> tuple[int, int | None]:
        """Listen, not ready yet.

        Returns:
            The ports of gRPC and HTTP.

        Raises:
            OSError: an address is taken, or is not this machine's.
        """
        port, http_port = await self._grpc.start(), None
        if self._http is not None:
            try:
                http_port = await self._http.start()
            except OSError:
                await self._grpc.stop(0.0)
                raise
        if self._warning:
            sys.stderr.write(f"switchyard: {self._warning}\n")
        return port, http_port

    def reload(self) -> None:
        """Read the keys again. Certificates are read at each connection."""
        self._access.reload()

    async def stop(self, grace: float) -> None:
        """Close both listeners, and give live calls ``grace`` seconds each."""
        if self._http is not None:
            await self._http.stop(grace)
        await self._grpc.stop(grace)


def _http_server(
    config: FrontendConfig,
    service: Service,
    access: ApiKeys,
    metrics: Metrics,
    tls: ServerTls | None,
) -> HttpServer:
    app = application(
        service,
        model=config.served_name,
        authenticate=access.authenticate,
        metrics=metrics.render,
        origins=config.cors_origin,
        local_host=config.host if is_for_local_callers(config) else None,
        pages=playground_routes() if has_playground(config) else (),
    )
    return HttpServer(app, config.host, config.http_port, None if tls is None else ssl_context(tls))
