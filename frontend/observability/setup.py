"""The observers of a server: metrics always, the request log and traces as the flags say.

Owns making and closing them. Knows nothing of what they observe.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from frontend.config import FrontendConfig
from frontend.observability.metrics import Metrics
from frontend.observability.request_log import RequestLog
from frontend.records import Observer, StepObserver


class Observability:
    """Observers of one server.

    Args:
        config: says which of them there are.
        version: this release.

    Attributes:
        metrics: shown by /metrics.
        observers: for the service.
        step_observers: for the engine.

    Raises:
        ValueError: --otlp-endpoint is set and traces cannot be made.
    """

    def __init__(self, config: FrontendConfig, *, version: str) -> None:
        self._closing = contextlib.ExitStack()
        self.metrics = Metrics(config.served_name)
        observers: list[Observer] = [self.metrics]
        if config.otlp_endpoint is not None:
            observers.append(self._open_traces(config.otlp_endpoint, config.served_name, version))
        if config.request_log:
            log = RequestLog(as_text=_is_for_a_person(config.request_log_format))
            self._closing.callback(log.close)
            observers.append(log)
        self.observers: Sequence[Observer] = tuple(observers)
        self.step_observers: Sequence[StepObserver] = (self.metrics,)

    def close(self) -> None:
        """Write and send what waits; takes seconds at most."""
        self._closing.close()

    def _open_traces(self, endpoint: str, model: str, version: str) -> Observer:
        try:
            from frontend.observability.tracing import open_traces
        except ImportError as error:
            raise ValueError(
                f"--otlp-endpoint {endpoint} needs OpenTelemetry; "
                "install it with pip install 'switchyard[traces]'"
            ) from error
        traces = open_traces(endpoint, model=model, version=version)
        self._closing.callback(traces.close)
        return traces


def _is_for_a_person(log_format: str) -> bool:
    """``auto``: somebody reads along on a terminal."""
    return log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
