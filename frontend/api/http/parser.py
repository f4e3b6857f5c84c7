"""h11's parser, with the two refusals that it lacks.

Owns which requests are no HTTP for this server: a header above the bound, however it arrives, and a
body with two lengths. Knows no sockets: `connection.py` sends the refusal.
"""

from __future__ import annotations

import h11

MAX_HEADER_BYTES = 32 << 10


class Parser(h11.Connection):
    """The server's side of one connection.

    Attributes:
        refusal: status and message for the client, once `next_event` has raised.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self.refusal: tuple[int, str] = (400, "this is no valid HTTP request")

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event.

        Raises:
            h11.RemoteProtocolError: the client does not speak HTTP; `refusal` says it.
        """
        waiting = self._num_waiting() if self.their_state is h11.IDLE else 0
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.refusal = (431, f"the header is larger than {MAX_HEADER_BYTES} bytes")
            elif error.error_status_hint != 400:
                self.refusal = (error.error_status_hint, str(error))
            raise
        if isinstance(event, h11.Request):
            self._check(event, waiting - self._num_waiting())
        return event

    def _num_waiting(self) -> int:
        return len(self.trailing_data[0])

    def _check(self, request: h11.Request, num_bytes: int) -> None:
        names = {name for name, _ in request.headers}
        if num_bytes > MAX_HEADER_BYTES:
            self.refusal = (431, f"the header is larger than {MAX_HEADER_BYTES} bytes")
        elif {b"transfer-encoding", b"content-length"} <= names:  # RFC 9112, section 6.3
            self.refusal = (400, "a request has Content-Length or Transfer-Encoding, not both")
        else:
            return
        raise h11.RemoteProtocolError(self.refusal[1], error_status_hint=self.refusal[0])
