"""`switchyard top`: a server's load, live in a terminal.

Owns the calls to the server and their pace. `frontend.cli.top_view` draws the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

import grpc
from rich.console import Console
from rich.live import Live

from frontend.cli.client_flags import add_address_flag, add_security_flags, open_client
from frontend.cli.keyboard import Keyboard, keyboard
from frontend.cli.top_view import View, expert_tokens_since, frame
from switchyard.client import Client, ServerError
from switchyard.v1 import inference_pb2 as pb

CALL_SECONDS = 2.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``switchyard top``."""
    add_address_flag(parser)
    add_security_flags(parser)
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="SECONDS", help="default: %(default)s"
    )


def run(flags: argparse.Namespace) -> int:
    """Show frames until q or Ctrl-C, or one where there is no terminal; returns the exit code.

    Raises:
        ServerError: there is no server, or it refuses to be watched.
    """
    console = Console(highlight=False)
    once = flags.once or not console.is_terminal
    with open_client(flags) as client:
        try:
            client.model_info(timeout=CALL_SECONDS)
        except ServerError as error:
            if once or not _is_away_for_a_while(error):
                raise
        watch = Watch(client, flags.address)
        if once:
            return _show_one(watch.look(), console)
        with contextlib.suppress(KeyboardInterrupt), keyboard() as keys:
            _show(watch, console, keys, flags.interval)
    return 0


def _is_away_for_a_while(error: ServerError) -> bool:
    """A server says that it loads or stops: what has no reason is none of ours."""
    return error.code is grpc.StatusCode.UNAVAILABLE and bool(error.reason)


def _show_one(view: View, console: Console) -> int:
    if view.trouble:
        sys.stderr.write(f"switchyard: {view.trouble}\n")
        return 1
    console.print(frame(view, console.width, None))
    return 0


def _show(watch: Watch, console: Console, keys: Keyboard, interval: float) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(watch.look(), console.width, console.height), refresh=True)
            if keys.asks_to_leave(interval):
                return


class Watch:
    """Reads one server's state repeatedly, and remembers enough to show differences."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._experts = pb.GetExpertLoadResponse()
        self._last = View(address=address)

    def look(self) -> View:
        """The server's present state; without an answer, the last one and the trouble."""
        stub = self._client.stub
        before = self._experts
        try:
            load = stub.GetLoad(pb.GetLoadRequest(), timeout=CALL_SECONDS)
            info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_SECONDS)
            model = stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=CALL_SECONDS)
            if not load.restarting:  # there are no workers meanwhile
                self._experts = stub.GetExpertLoad(pb.GetExpertLoadRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            last = self._last
            return View(
                address=last.address,
                model=last.model,
                load=last.load,
                info=last.info,
                experts=last.experts,
                trouble=f"{error.code().name} {error.details() or ''}".rstrip(),
            )
        self._last = View(
            address=self._address,
            model=model.model,
            load=load,
            info=info,
            experts=expert_tokens_since(before, self._experts),
        )
        return self._last


def _interval(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= (seconds := float(text)) <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"{text} is not in 0.1..3600 seconds")
