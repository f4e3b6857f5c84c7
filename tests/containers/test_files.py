"""compose.yaml and its neighbours as text: what must hold without an engine to run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontend.__main__ import parse_config
from workers.flags import parser as worker_flags

ROOT = Path(__file__).parents[2]
SERVICES = ("workers", "frontend", "workers-gpu", "frontend-gpu")


def _interpolate(text: str) -> str:
    """``${NAME:-default}`` as Compose reads it where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(_interpolate((ROOT / "compose.yaml").read_text()))
    return document


def test_plain_up_takes_the_cpu_profile(compose: dict[str, Any]) -> None:
    profiles = {name: service["profiles"] for name, service in compose["services"].items()}

    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()
    assert profiles == dict(zip(SERVICES, (["cpu"], ["cpu"], ["gpu"], ["gpu"]), strict=True))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]

    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume["read_only"] for volume in service["volumes"])
    assert service["healthcheck"]["test"][0] == "CMD"


def test_only_frontends_publish_and_only_on_loopback(compose: dict[str, Any]) -> None:
    published = {name: each.get("ports", []) for name, each in compose["services"].items()}

    assert published["frontend"] == published["frontend-gpu"] == ["127.0.0.1:50051:50051"]
    assert not published["workers"]
    assert not published["workers-gpu"]
    for name in ("workers", "workers-gpu"):
        assert list(compose["services"][name]["networks"]) == ["internal"]
    assert compose["networks"]["internal"] == {"internal": True}


@pytest.mark.parametrize("name", ["workers", "workers-gpu"])
def test_worker_commands_are_flags_of_the_launcher(compose: dict[str, Any], name: str) -> None:
    flags = worker_flags().parse_args(shlex.split(compose["services"][name]["command"]))

    assert flags.listen == "0.0.0.0:50061"
    assert (flags.device, flags.tp) == {"workers": ("cpu", 2), "workers-gpu": ("cuda", 1)}[name]


def test_frontend_commands_are_flags_that_reach_the_workers(compose: dict[str, Any]) -> None:
    demo = str(ROOT / "demo" / "checkpoint")
    for name in ("frontend", "frontend-gpu"):
        service = compose["services"][name]
        config = parse_config(shlex.split(service["command"].replace("/model", demo, 1)))
        host, _, port = config.workers[0].partition(":")
        workers = compose["services"][service["depends_on"][0]]

        assert host in workers["networks"]["internal"]["aliases"]
        assert f"0.0.0.0:{port}" in workers["command"]
        assert config.drain_timeout < int(service["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("target", ["worker", "frontend"])
def test_images_run_as_nobody_in_particular(target: str) -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    (stage,) = (each for each in stages if each.partition("\n")[0].endswith(f" AS {target}"))
    user = re.findall(r"^USER (\d+):\d+$", stage, flags=re.MULTILINE)

    assert user
    assert user[-1] != "0"
    assert re.search(r'^ENTRYPOINT \["python", "-m", "\w+"\]$', stage, flags=re.MULTILINE)
