"""One server for all clients, with a key, since every client has a way of its own to send one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.cases import KEY
from tests.server import Server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the demo model."""
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys"
    keys.write_text(f"clients:{KEY}\n")
    keys.chmod(0o600)
    flags = ["--device", "cpu", "--max-batch-size", "16", "--api-key-file", str(keys)]
    with Server(folder, *flags) as server:
        yield server


@pytest.fixture(scope="package")
def url(server: Server) -> str:
    """Its base URL."""
    return f"http://{server.http_address}/v1"
