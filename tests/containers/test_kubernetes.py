"""deploy/kubernetes/switchyard.yaml as text: what must hold without a cluster to apply it."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontend.__main__ import LAST_WORDS_SECONDS, STOP_GRACE_SECONDS, parse_config
from switchyard.flags import read
from workers.__main__ import configure
from workers.__main__ import parser as worker_flags
from workers.config import WorkerConfig

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "demo" / "checkpoint")
MANIFEST = ROOT / "deploy" / "kubernetes" / "switchyard.yaml"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CONTAINERS = ("workers", "frontend")

Document = dict[str, Any]


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def pod(documents: dict[str, Document]) -> Document:
    spec: Document = documents["Deployment"]["spec"]["template"]["spec"]
    return spec


def containers(pod: Document) -> dict[str, Document]:
    return {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}


def flags(container: Document) -> list[str]:
    """Arguments, with the demo in the place of the mounted model."""
    return [each.replace("=/model", f"={DEMO}") for each in container["args"]]


def files_named(container: Document) -> Iterator[Path]:
    """Every path in arguments and probes."""
    probes = [container[each]["exec"]["command"] for each in PROBES if each in container]
    for word in (*container["args"], *(word for probe in probes for word in probe)):
        value = word.rpartition("=")[2].removeprefix("unix:")
        if value.startswith("/"):
            yield Path(value)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_hardened(pod: Document, name: str) -> None:
    container = containers(pod)[name]
    rights = container["securityContext"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert rights == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not {"env", "envFrom"} & set(container)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_says_what_it_needs(pod: Document, name: str) -> None:
    resources = containers(pod)[name]["resources"]

    assert {"cpu", "memory"} <= set(resources["requests"])
    assert "memory" in resources["limits"]
    assert ("nvidia.com/gpu" in resources["limits"]) == (name == "workers")


def test_there_is_a_gpu_for_every_rank(pod: Document) -> None:
    workers = containers(pod)["workers"]
    given = worker_flags().parse_args(flags(workers))
    config, parallel, *_ = configure(given)

    assert config.device == "cuda"
    assert workers["resources"]["limits"]["nvidia.com/gpu"] == parallel.tp * parallel.dp


def test_frontend_and_workers_meet_in_a_folder_of_the_pod(pod: Document) -> None:
    both = containers(pod)
    config = parse_config(flags(both["frontend"]))
    given = read(WorkerConfig, worker_flags().parse_args(flags(both["workers"])))

    assert config.workers == (given.listen,)
    folder = given.listen.removeprefix("unix:").rpartition("/")[0]
    for container in both.values():
        (mount,) = (each for each in container["volumeMounts"] if each["mountPath"] == folder)
        assert not mount.get("readOnly")
        (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
        assert "emptyDir" in volume


def test_nobody_is_served_without_a_key_or_in_the_clear(
    pod: Document, documents: dict[str, Document]
) -> None:
    frontend = containers(pod)["frontend"]
    config = parse_config(flags(frontend))
    ports = {each["name"]: each["containerPort"] for each in frontend["ports"]}

    assert not config.insecure
    assert config.api_key_file is not None
    assert config.tls_cert is not None
    assert ports == {"grpc": config.port, "http": config.http_port}
    assert "ports" not in containers(pod)["workers"]
    service = {each["targetPort"]: each["port"] for each in documents["Service"]["spec"]["ports"]}
    assert service == ports
    (rule,) = documents["NetworkPolicy"]["spec"]["ingress"]
    assert {each["port"] for each in rule["ports"]} == set(ports)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_is_mounted_exists_and_what_is_named_is_mounted(pod: Document, name: str) -> None:
    container = containers(pod)[name]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = [each["name"] for each in pod["volumes"]]

    assert len(volumes) == len(set(volumes))
    assert set(mounts.values()) <= set(volumes)
    for path in files_named(container):
        assert {str(path), *map(str, path.parents)} & set(mounts), f"{path} is on no volume"
    assert "/tmp" in mounts


def test_every_volume_is_mounted(pod: Document) -> None:
    mounted = {mount["name"] for each in containers(pod).values() for mount in each["volumeMounts"]}

    assert mounted == {each["name"] for each in pod["volumes"]}


def test_the_comment_makes_the_secrets_that_are_mounted(pod: Document) -> None:
    made: dict[str, set[str]] = {}
    for line in re.findall(r"^#\s+kubectl create secret (.+)$", MANIFEST.read_text(), re.M):
        kind, name, *sources = shlex.split(line)
        files = {each.rpartition("=")[2] for each in sources}
        made[name] = files if kind == "generic" else {"tls.crt", "tls.key"}
    places = {
        each["name"]: each["mountPath"] for each in containers(pod)["frontend"]["volumeMounts"]
    }
    named = set(files_named(containers(pod)["frontend"]))

    mounted = {each["secret"]["secretName"]: each for each in pod["volumes"] if "secret" in each}
    assert set(mounted) == set(made)
    for secret, volume in mounted.items():
        folder = Path(places[volume["name"]])
        assert {each.name for each in named if each.parent == folder} == made[secret]
        assert volume["secret"]["defaultMode"] & 0o007 == 0


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_questions_the_frontend_answers(pod: Document, name: str) -> None:
    """Readiness is the whole service's; a group that is started again does not end the frontend."""
    frontend = containers(pod)["frontend"]
    config = parse_config(flags(frontend))
    probe = frontend[name]
    python, module_flag, module, address, *rest = probe["exec"]["command"]

    assert (python, module_flag, module) == ("python", "-m", "frontend.probe")
    assert address == f"localhost:{config.port}"
    assert (rest[0] == "liveness") == (name == "livenessProbe")
    assert rest[-2:] == ["--tls-ca", str(config.tls_cert)]
    assert probe["timeoutSeconds"] > 2 * 2.0  # connecting and asking take 2 s each at most


def test_the_frontend_may_start_as_long_as_it_waits_for_workers(pod: Document) -> None:
    frontend = containers(pod)["frontend"]
    probe = frontend["startupProbe"]

    waited = probe["periodSeconds"] * probe["failureThreshold"]
    assert waited >= parse_config(flags(frontend)).startup_timeout


def test_requests_in_flight_end_before_the_pod_does(pod: Document) -> None:
    """Workers are a sidecar, which is stopped after the containers; the grace holds the drain."""
    (workers,) = pod["initContainers"]
    (frontend,) = pod["containers"]
    config = parse_config(flags(frontend))
    sleep, seconds = frontend["lifecycle"]["preStop"]["exec"]["command"]

    assert workers["restartPolicy"] == "Always"
    assert sleep == "sleep"
    last_words = LAST_WORDS_SECONDS + STOP_GRACE_SECONDS
    assert int(seconds) + config.drain_timeout + last_words < pod["terminationGracePeriodSeconds"]


def test_an_update_needs_no_gpu_to_spare(documents: dict[str, Document]) -> None:
    """An old pod leaves before a new one starts, one at a time, and others serve meanwhile."""
    spec = documents["Deployment"]["spec"]

    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert spec["replicas"] > 1
    assert documents["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_all_speak_of_the_same_pods(documents: dict[str, Document]) -> None:
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]

    for kind in ("Deployment", "PodDisruptionBudget"):
        assert documents[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert documents["Service"]["spec"]["selector"].items() <= labels.items()
    policy = documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= labels.items()


def test_images_are_of_this_release(pod: Document) -> None:
    """Not `latest`, which a cluster fetches anew and an update does not change."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    for container in containers(pod).values():
        assert container["image"].rpartition(":")[2] == version
