"""compose.yaml and its neighbours as text: what must hold without an engine to run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from frontend.__main__ import parse_config
from frontend.config import FrontendConfig
from switchyard.flags import read
from tests.containers.compose import load_compose
from workers.__main__ import parser as worker_flags
from workers.config import ParallelFlags, WorkerConfig

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "demo" / "checkpoint")
SERVING = ("workers", "frontend", "workers-gpu", "frontend-gpu")
SERVICES = ("link", *SERVING)
PAIRS = (("frontend", "workers"), ("frontend-gpu", "workers-gpu"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load_compose("compose.yaml")


@pytest.fixture(scope="module")
def secure() -> dict[str, Any]:
    return load_compose("deploy/compose.secure.yaml")


def frontend_config(arguments: Iterable[str]) -> FrontendConfig:
    """Flags as the frontend reads them, with the demo in the place of a mounted model."""
    return parse_config(
        [each.replace("/model", DEMO) if "model" in each else each for each in arguments]
    )


def test_plain_up_takes_the_cpu_profile(compose: dict[str, Any]) -> None:
    profiles = {name: service["profiles"] for name, service in compose["services"].items()}

    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()
    assert profiles == {
        "link": ["cpu", "gpu"],
        "workers": ["cpu"],
        "frontend": ["cpu"],
        "workers-gpu": ["gpu"],
        "frontend-gpu": ["gpu"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]

    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "pid", "ipc", "devices"} & set(service)


@pytest.mark.parametrize("name", SERVING)
def test_what_serves_writes_nowhere_and_can_be_asked(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]

    assert all(volume["read_only"] for volume in service["volumes"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"


def test_the_secret_is_made_by_a_service_that_reaches_nothing(compose: dict[str, Any]) -> None:
    link = compose["services"]["link"]

    assert link["network_mode"] == "none"
    assert "networks" not in link
    assert "ports" not in link
    assert link["restart"] == "no"
    (volume,) = link["volumes"]
    assert (volume["type"], volume["source"]) == ("volume", "link")
    assert Path(link["entrypoint"][-1]).parent == Path(volume["target"])


@pytest.mark.parametrize("name", SERVING)
def test_the_secret_is_there_before_anybody_reads_it(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]

    assert service["depends_on"]["link"] == {"condition": "service_completed_successfully"}
    flags = shlex.split(service["command"])
    path = Path(flags[flags.index("--link-secret-file") + 1])
    assert str(path) == compose["services"]["link"]["entrypoint"][-1]
    assert {"link": str(path.parent)}.items() <= {
        volume["source"]: volume["target"] for volume in service["volumes"]
    }.items()


@pytest.mark.parametrize("name", ["compose.yaml", "deploy/compose.secure.yaml"])
def test_secrets_are_files_never_variables_or_arguments(name: str) -> None:
    for service in load_compose(name)["services"].values():
        assert "environment" not in service
        assert "env_file" not in service
        words = shlex.split(service.get("command", ""))
        for flag, value in pairwise(words):
            if re.match(r"--.*(secret|key)", flag):
                assert value.startswith(("/run/link/", "/run/secrets/")), f"{flag} {value}"


def test_images_are_built_without_secrets() -> None:
    """A build argument or a variable would stay in a layer."""
    dockerfile = (ROOT / "Dockerfile").read_text()

    names = re.findall(r"^(?:ARG|ENV|\s+)\s*([A-Z_]+)=", dockerfile, flags=re.MULTILINE)
    assert {"BASE", "TORCH", "HOME"} <= set(names)
    assert not [each for each in names if re.search("SECRET|KEY|TOKEN|PASSWORD", each)]


def test_only_frontends_publish_and_only_on_loopback(compose: dict[str, Any]) -> None:
    published = {name: each.get("ports", []) for name, each in compose["services"].items()}

    expected = ["127.0.0.1:50051:50051", "127.0.0.1:8000:8000"]
    assert published.pop("frontend") == published.pop("frontend-gpu") == expected
    assert not any(published.values())
    for name in ("workers", "workers-gpu"):
        assert list(compose["services"][name]["networks"]) == ["internal"]
    assert compose["networks"]["internal"] == {"internal": True}


@pytest.mark.parametrize("name", ["workers", "workers-gpu"])
def test_worker_commands_are_flags_of_the_launcher(compose: dict[str, Any], name: str) -> None:
    flags = worker_flags().parse_args(shlex.split(compose["services"][name]["command"]))
    config, layout = read(WorkerConfig, flags), read(ParallelFlags, flags)

    assert config.listen == "0.0.0.0:50061"
    assert (config.device, layout.tp) == {"workers": ("cpu", 2), "workers-gpu": ("cuda", 1)}[name]


@pytest.mark.parametrize(("frontend", "workers"), PAIRS)
def test_frontend_commands_are_flags_that_reach_the_workers(
    compose: dict[str, Any], frontend: str, workers: str
) -> None:
    service = compose["services"][frontend]
    config = frontend_config(shlex.split(service["command"]))
    host, _, port = config.workers[0].partition(":")

    assert service["depends_on"][workers] == {"condition": "service_started"}
    assert host in compose["services"][workers]["networks"]["internal"]["aliases"]
    assert f"0.0.0.0:{port}" in compose["services"][workers]["command"]
    inside = [each.rpartition(":")[2] for each in service["ports"]]
    assert inside == [str(config.port), str(config.http_port)]
    assert config.drain_timeout < int(service["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("name", ["frontend", "frontend-gpu"])
def test_open_to_others_means_keys_and_encryption(
    compose: dict[str, Any], secure: dict[str, Any], name: str
) -> None:
    """The same flags as on loopback, but for who may ask."""
    opened = secure["services"][name]
    here = frontend_config(shlex.split(compose["services"][name]["command"]))
    there = frontend_config(shlex.split(opened["command"]))

    assert here.insecure
    assert not there.insecure
    files = (there.api_key_file, there.tls_cert, there.tls_key)
    assert files == tuple(Path("/run/secrets") / each for each in opened["secrets"])
    assert set(opened["secrets"]) == set(secure["secrets"])
    assert all(set(each) == {"file"} for each in secure["secrets"].values())
    for field in ("workers", "host", "http_port", "drain_timeout", "link_secret_file"):
        assert getattr(there, field) == getattr(here, field)
    assert f"--tls-ca={there.tls_cert}" in opened["healthcheck"]["test"]
    assert [each.partition(":")[2] for each in opened["ports"]] == ["50051:50051", "8000:8000"]


def test_podman_gets_no_dependency_that_has_ended(compose: dict[str, Any]) -> None:
    """Podman would not start a container again whose dependency does not run."""
    services = load_compose("deploy/compose.podman.yaml")["services"]

    assert set(services) == set(SERVING)
    for name, service in services.items():
        assert service == {"depends_on": None, "healthcheck": {"start_interval": None}}
        assert compose["services"][name]["restart"] == "unless-stopped"


def test_secrets_of_ones_own_are_kept_out_of_git_and_images() -> None:
    assert (ROOT / "deploy" / "secrets" / ".gitignore").read_text().splitlines()[0] == "*"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.startswith("!deploy") for line in ignored)


@pytest.mark.parametrize("target", ["worker", "frontend"])
def test_images_run_as_nobody_in_particular(target: str) -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    (stage,) = (each for each in stages if each.partition("\n")[0].endswith(f" AS {target}"))
    user = re.findall(r"^USER (\d+):\d+$", stage, flags=re.MULTILINE)

    assert user
    assert user[-1] != "0"
    assert re.search(r'^ENTRYPOINT \["python", "-m", "\w+"\]$', stage, flags=re.MULTILINE)
