"""Where the machines of a group meet: a store on the first one, a fresh one for every group.

Owns torchrun's rendezvous interface. Unlike torch's own handlers it listens on one address only and
tells a group that has lost a machine from one that is forming. Does not start ranks.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "switchyard"

_TIMEOUT = timedelta(minutes=10)
_POLL_SECONDS = 0.1
_ENDED = "ended"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Who meets where.

    Attributes:
        host, port: an address of node 0; port 0, on one machine only, takes a free one.
        node_rank: of this machine, 0 to num_nodes - 1.
    """

    host: str = "127.0.0.1"
    port: int = 0
    node_rank: int = 0
    num_nodes: int = 1


class GroupRendezvous(RendezvousHandler):
    """One meeting of all machines; whoever comes twice ends the group of all.

    Args:
        on_end: called on a thread of its own when another machine has left the group; does not
            return.
    """

    def __init__(self, meeting: Meeting, on_end: Callable[[], None]) -> None:
        self._meeting = meeting
        self._on_end = on_end

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all machines.

        Raises:
            ValueError: the address is not this machine's, or is taken.
        """
        meeting = self._meeting
        self._store = self._listen() if meeting.node_rank == 0 else self._connect(meeting.port)
        port = self._store.port
        if meeting.num_nodes > 1:
            watched = self._connect(port)  # a connection of its own: one that waits blocks others
            threading.Thread(target=self._watch, args=(watched,), daemon=True).start()
        if self._store.add(f"arrived/{meeting.node_rank}", 1) > 1:
            self._store.set(_ENDED, "")  # the group that this machine had left goes on without it
            self._on_end()
        self._store.wait([f"arrived/{node}" for node in range(meeting.num_nodes)], _TIMEOUT)
        return RendezvousInfo(
            PrefixStore("ranks", self._store),
            meeting.node_rank,
            meeting.num_nodes,
            RendezvousStoreInfo(meeting.host, port),
        )

    def _listen(self) -> TCPStore:
        meeting = self._meeting
        family = socket.AF_INET6 if ":" in meeting.host else socket.AF_INET
        try:
            listener = socket.create_server((meeting.host, meeting.port), family=family)
        except OSError as error:
            raise ValueError(
                f"the ranks cannot meet on {meeting.host}:{meeting.port}: {error.strerror}; "
                "--rdzv-endpoint must be a free address of the first machine"
            ) from None
        port = listener.getsockname()[1]
        return TCPStore(
            meeting.host,
            port,
            is_master=True,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),  # else it listens on every address
        )

    def _connect(self, port: int) -> TCPStore:
        return TCPStore(self._meeting.host, port, is_master=False, timeout=_TIMEOUT)

    def _watch(self, store: TCPStore) -> None:
        try:
            while not store.check([_ENDED]):
                time.sleep(_POLL_SECONDS)
        except RuntimeError:
            pass  # the first machine's store is gone, and so is its group
        self._on_end()

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing: a group meets once."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return BACKEND

    def shutdown(self) -> bool:
        return True


def register(meeting: Meeting, on_end: Callable[[], None]) -> None:
    """Let torchrun's engine meet here, in this process."""

    def create(_: RendezvousParameters) -> GroupRendezvous:
        return GroupRendezvous(meeting, on_end)

    rendezvous_handler_registry.register(BACKEND, create)
