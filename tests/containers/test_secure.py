"""The stack with keys and TLS, really: `pytest -m podman tests/containers`; see test_compose.py."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from frontend.probe import Verdict, probe
from switchyard.channel import Tls
from switchyard.client import Client, ServerError
from tests.containers.compose import load_compose
from tests.containers.stack import ANSWER, ROOT, Stack, free_ports

pytestmark = [pytest.mark.podman, pytest.mark.timeout(600)]

KEY = "a-key-for-a-test-of-containers"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and a certificate for `localhost` that signs itself."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "api_keys").write_text(f"tester:{KEY}\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    for each in folder.iterdir():
        each.chmod(0o644)  # the containers' user is another
    return folder


@pytest.fixture(scope="module")
def stack(certificate: Path) -> Iterator[Stack]:
    variables = free_ports() | {"SECRETS_DIR": str(certificate), "ADDRESS": "127.0.0.1"}
    # podman-compose fills in no variables under `!override`.
    text = (ROOT / "deploy" / "compose.secure.yaml").read_text()
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1], m[2]), text)
    secure = certificate / "compose.secure.yaml"
    secure.write_text(filled)
    before = os.environ.get("COMPOSE_FILE", "compose.yaml")
    variables["COMPOSE_FILE"] = f"{before}:{secure}"
    tls = Tls(ca=certificate / "tls.crt", server_name="localhost")
    with Stack.up("secure", variables, tls, KEY) as stack:
        yield stack


def http_status(stack: Stack, path: str, key: str | None) -> int:
    assert stack.tls is not None
    port = stack.http_address.rpartition(":")[2]
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"https://localhost:{port}{path}", headers=headers)
    context = ssl.create_default_context(cafile=str(stack.tls.ca))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_with_key_and_tls_it_answers(stack: Stack) -> None:
    assert stack.answer() == ANSWER
    assert http_status(stack, "/v1/models", KEY) == 200


@pytest.mark.parametrize("key", [None, "a-key-that-nobody-was-given"])
def test_without_the_key_nobody_is_served(stack: Stack, key: str | None) -> None:
    with (
        Client(stack.address, tls=stack.tls, api_key=key) as client,
        pytest.raises(ServerError) as refused,
        client.generate("What is", max_new_tokens=1) as stream,
    ):
        list(stream)

    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert http_status(stack, "/v1/models", key) == 401
    assert http_status(stack, "/health", key) == 200


def test_nobody_is_served_in_the_clear(stack: Stack) -> None:
    assert probe(stack.address, timeout=1.0)[0] is Verdict.NO_CONNECTION


def test_its_health_check_passes_inside(stack: Stack) -> None:
    service = load_compose("deploy/compose.secure.yaml")["services"]["frontend"]
    done = stack.exec("frontend", *service["healthcheck"]["test"][1:])

    assert done.returncode == 0, done.stderr
