"""Keys, what one key may have live, where listening is refused, and that nobody is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from frontend.__main__ import parse_config
from frontend.api.auth import ApiKeys, check_exposure
from frontend.api.grpc.server import MAX_MESSAGE_BYTES, GrpcServer
from frontend.cli import main
from frontend.cli.client_flags import read_key
from frontend.config import API_KEY_VARIABLE, FrontendConfig
from frontend.errors import Code, RequestError
from frontend.records import RequestRecord
from frontend.service.calls import KeyLimit
from frontend.service.service import Service
from switchyard.client import AsyncClient, Client, ServerError
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import FakeEngine, answer_text, backend
from tests.waiting import until

ALICE = "alice-has-a-long-key"
BOB = "bob.has.another/key+"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\nalice:{ALICE}\nbob:{BOB}\n")
    path.chmod(0o600)
    return path


class Records:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []

    def request_ended(self, record: RequestRecord) -> None:
        self.all.append(record)


class Server:
    """A server with keys, its engine, and what its observer saw."""

    def __init__(self, access: ApiKeys, limit: int = 0) -> None:
        self.engine, self.records, self.access = FakeEngine(), Records(), access
        self.service = Service(
            model="fake",
            version="0",
            observers=(self.records,),
            key_limit=KeyLimit(limit),
            may_raise_priority=access.may_raise_priority,
        )
        self.service.open(backend(self.engine))
        self.grpc = GrpcServer(self.service, "127.0.0.1", 0, access=access)
        self.address = ""


@contextlib.asynccontextmanager
async def serving(access: ApiKeys, limit: int = 0) -> AsyncIterator[Server]:
    server = Server(access, limit)
    server.address = f"127.0.0.1:{await server.grpc.start()}"
    await server.grpc.health.set_ready(True)
    try:
        yield server
    finally:
        await server.grpc.stop(0.0)


async def text_of(client: AsyncClient, **options: Any) -> str:
    stream = client.generate("abc", max_new_tokens=4, timeout=20, **options)
    return "".join([delta.text async for delta in stream])


def refused(access: ApiKeys, header: str | bytes | None) -> str:
    with pytest.raises(RequestError) as caught:
        access.authenticate(header)
    assert caught.value.code is Code.UNAUTHENTICATED
    return caught.value.reason


# ---- the key file ----


def test_a_header_is_known_by_the_name_of_its_key(key_file: Path) -> None:
    access = ApiKeys(key_file)
    assert access.authenticate(f"Bearer {ALICE}") == "alice"
    assert access.authenticate(f"bearer  {BOB} ") == "bob"
    assert access.authenticate(f"Bearer {BOB}".encode()) == "bob"
    assert access.denied == 0


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {ALICE[:-1]}", f"Bearer {ALICE}x", f"Bearer alice:{ALICE}", ALICE, "Bearer",
        f"Basic {ALICE}", "Bearer \udcff", "Bearer schlüssel-der-nicht-passt",
        "Bearer " + "x" * 9000,
    ],
)  # fmt: skip
def test_anything_else_is_refused(key_file: Path, header: str) -> None:
    access = ApiKeys(key_file)
    assert refused(access, header) == "INVALID_API_KEY"
    assert access.denied == 1


def test_no_header_has_a_reason_of_its_own_and_no_file_lets_everybody_in(key_file: Path) -> None:
    assert refused(ApiKeys(key_file), None) == "NO_API_KEY"
    assert refused(ApiKeys(key_file), "") == "NO_API_KEY"
    assert ApiKeys().authenticate(None) == ""
    assert ApiKeys().authenticate("Bearer whatever") == ""


def test_a_key_without_a_file_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    access = ApiKeys(None, ALICE)
    assert access.authenticate(f"Bearer {ALICE}") == "default"
    assert refused(access, f"Bearer {BOB}") == "INVALID_API_KEY"
    assert access.may_raise_priority("default")  # there is nobody else
    access.reload()
    assert access.authenticate(f"Bearer {ALICE}") == "default"
    with pytest.raises(ValueError) as caught:
        ApiKeys(None, "short")
    assert str(caught.value) == (
        "--api-key: the key of default has 5 characters, must have at least 16"
    )


def test_where_a_servers_key_comes_from(
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked = ["--model", str(tmp_path), "--workers", "a:1"]
    assert not parse_config(asked).has_keys
    monkeypatch.setenv(API_KEY_VARIABLE, f"{BOB}\n")
    assert parse_config(asked).api_key == BOB
    of_file = parse_config([*asked, "--api-key-file", str(key_file)])
    assert (of_file.api_key, of_file.has_keys) == (None, True)
    assert not caplog.messages
    assert parse_config([*asked, "--api-key", ALICE]).api_key == ALICE
    [warning] = caplog.messages
    assert "--api-key shows in the process list" in warning
    assert ALICE not in warning
    with pytest.raises(ValueError, match="two ways to give keys"):
        parse_config([*asked, "--api-key", ALICE, "--api-key-file", str(key_file)])


def test_every_key_is_compared_in_constant_time(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal work for a first key, a last key and no key, on digests rather than keys."""
    access, compared = ApiKeys(key_file), []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (ALICE, BOB, "no-such-key-anywhere"):
        compared.clear()
        with contextlib.suppress(RequestError):
            access.authenticate(f"Bearer {key}")
        assert len(compared) == 2
        assert {len(each) for pair in compared for each in pair} == {32}


def test_keys_are_read_again_and_a_broken_file_changes_nothing(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = ApiKeys(key_file)
    key_file.write_text(f"alice:{ALICE}\nalice:a-new-key-of-alice\n")
    access.reload()
    assert access.authenticate("Bearer a-new-key-of-alice") == "alice"
    assert access.authenticate(f"Bearer {ALICE}") == "alice"
    assert refused(access, f"Bearer {BOB}") == "INVALID_API_KEY"
    key_file.write_text("alice:short\n")
    with caplog.at_level(logging.ERROR):
        access.reload()
    assert access.authenticate(f"Bearer {ALICE}") == "alice"
    assert "the keys stay as they were" in caplog.text
    assert "short" not in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no colon at all", "line 1: the name before the colon"),
        (f":{ALICE}", "line 1: the name before the colon"),
        ("alice:fifteen-letters", "line 1: the key of alice has 15 characters"),
        ("alice:has a space inside it", "line 1: the key of alice may hold printable ASCII only"),
        (
            f"alice:{ALICE}:root",
            "line 1: the key of alice has the right 'root'; there are kv-events,",
        ),
        (f"# keys\nalice:{ALICE}\nbob:{ALICE}", "line 3: this key is also alice's"),
        ("# nobody\n", "has no keys"),
    ],
)
def test_each_problem_of_a_file_is_one_line_without_the_key(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        ApiKeys(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    for secret in (ALICE, "fifteen-letters", "a space inside", "a:colon"):
        assert secret not in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice\nbob:{BOB}\ncarol:123\n")
    with pytest.raises(ValueError) as caught:
        ApiKeys(path)
    first, second = str(caught.value).splitlines()
    assert "line 1" in first
    assert "line 3" in second


def test_a_file_that_is_missing_or_open_to_others_is_told(
    tmp_path: Path, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        ApiKeys(tmp_path / "nowhere")
    ApiKeys(key_file)
    assert not caplog.text
    key_file.chmod(0o640)
    ApiKeys(key_file)
    assert "mode 640" in caplog.text
    assert "chmod 600" in caplog.text


def test_a_client_reads_its_key_from_either_form(tmp_path: Path, key_file: Path) -> None:
    assert read_key(key_file) == ALICE
    bare = tmp_path / "bare"
    bare.write_text(f"{BOB}\n")
    assert read_key(bare) == BOB
    bare.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_key(bare)


# ---- the port ----


def listed_services(address: str) -> list[str]:
    """What reflection lists to one who has a key."""
    with grpc.insecure_channel(address) as channel:
        reflect = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answers = reflect(asked, metadata=(("authorization", f"Bearer {ALICE}"),), timeout=10)
        return [each.name for each in next(iter(answers)).list_services_response.service]


async def test_no_method_but_health_answers_without_a_key(key_file: Path) -> None:
    async with serving(ApiKeys(key_file)) as server:
        services = await asyncio.to_thread(listed_services, server.address)
        assert "switchyard.v1.InferenceService" in services
        inference = pb.DESCRIPTOR.services_by_name["InferenceService"]
        paths = [f"/{inference.full_name}/{method.name}" for method in inference.methods]
        paths += [
            f"/{name}/ServerReflectionInfo"
            for name in services
            if name.startswith("grpc.reflection.")
        ]
        paths.append("/no.such.Service/Method")
        assert len(paths) >= 13
        async with grpc.aio.insecure_channel(server.address) as channel:
            for path in paths:
                for metadata in ((), (("authorization", "Bearer wrong-wrong-wrong"),)):
                    # Not even a protobuf: refused before anything is parsed.
                    streamed = channel.unary_stream(path)(b"\xff", metadata=metadata, timeout=10)
                    unary = channel.unary_unary(path)(b"\xff", metadata=metadata, timeout=10)
                    with pytest.raises(grpc.aio.AioRpcError) as first:
                        await streamed.read()
                    with pytest.raises(grpc.aio.AioRpcError) as second:
                        await unary
                    for error in (first.value, second.value):
                        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, path
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
        assert not server.engine.requests
        assert server.access.denied == 4 * len(paths)


async def test_a_refusal_says_why_and_what_to_send(key_file: Path) -> None:
    async with serving(ApiKeys(key_file)) as server, AsyncClient(server.address) as client:
        with pytest.raises(ServerError) as caught:
            await text_of(client)
        assert caught.value.reason == "NO_API_KEY"
        assert "authorization: Bearer KEY" in caught.value.message


async def test_a_key_opens_streams_and_calls_and_its_name_is_recorded(key_file: Path) -> None:
    async with serving(ApiKeys(key_file)) as server:
        async with AsyncClient(server.address, api_key=BOB) as client:
            assert await text_of(client) == answer_text("abc", 4)
            assert (await client.model_info()).model == "fake"
            chat = client.chat([{"role": "user", "content": "hi"}], max_new_tokens=2)
            assert len([delta async for delta in chat]) >= 1
            call = client.stub.Generate(
                pb.GenerateRequest(prompt={"text": "x"}, stop_conditions={"max_new_tokens": 1}),
                metadata=(("traceparent", "00-1-2-01"),),
            )
            assert [message async for message in call]

        def complete() -> str:
            with Client(server.address, api_key=ALICE) as synchronous:
                return synchronous.complete("abc", max_new_tokens=2).outputs[0].text

        assert await asyncio.to_thread(complete) == answer_text("abc", 2)
        assert server.access.denied == 0
        callers = [record.caller for record in server.records.all]
        assert [caller.key for caller in callers] == ["bob", "bob", "bob", "alice"]
        assert all(caller.peer.startswith("ipv4:127.0.0.1:") for caller in callers)
        assert [caller.traceparent for caller in callers] == ["", "", "00-1-2-01", ""]
        assert {each.key for each in server.engine.requests.values()} == {"alice", "bob"}


async def test_commands_send_the_key_of_a_file_a_flag_or_the_environment(
    key_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(ApiKeys(key_file)) as server:
        flags = ("--address", server.address)
        with_key = (*flags, "--api-key-file", str(key_file))
        ask = ("generate", "abc", "--raw", "--max-new-tokens", "4")
        assert await asyncio.to_thread(main.main, (*ask, *with_key)) == 0
        assert capsys.readouterr().out == answer_text("abc", 4) + "\n"
        assert await asyncio.to_thread(main.main, ("top", "--once", *with_key)) == 0
        assert await asyncio.to_thread(main.main, (*ask, *flags)) == 1
        assert "UNAUTHENTICATED: no API key" in capsys.readouterr().err
        assert await asyncio.to_thread(main.main, ("health", *flags)) == 0
        assert await asyncio.to_thread(main.main, (*ask, *flags, "--api-key", BOB)) == 0
        monkeypatch.setenv(API_KEY_VARIABLE, BOB)
        assert await asyncio.to_thread(main.main, (*ask, *flags)) == 0
        assert await asyncio.to_thread(main.main, (*ask, *with_key)) == 0
        keys = [record.caller.key for record in server.records.all]
        assert keys == ["alice", "bob", "bob", "alice"]


async def test_two_keys_are_none(key_file: Path) -> None:
    async with serving(ApiKeys(key_file)) as server, AsyncClient(server.address) as client:
        right, wrong = (("authorization", f"Bearer {key}") for key in (ALICE, "x" * 20))
        for pair in ((right, wrong), (wrong, right), (right, right)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=pair, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "several authorization headers" in caught.value.details()


async def test_a_key_that_was_taken_away_ends_with_the_next_call(key_file: Path) -> None:
    async with (
        serving(ApiKeys(key_file)) as server,
        AsyncClient(server.address, api_key=BOB) as client,
    ):
        assert await text_of(client)
        key_file.write_text(f"alice:{ALICE}\n")
        server.access.reload()
        with pytest.raises(ServerError) as caught:
            await text_of(client)
        assert caught.value.reason == "INVALID_API_KEY"


# ---- rights and limits of one key ----


async def test_going_before_others_is_a_right_of_a_key(key_file: Path) -> None:
    key_file.write_text(f"alice:{ALICE}:priority\nbob:{BOB}\n")
    async with (
        serving(ApiKeys(key_file)) as server,
        AsyncClient(server.address, api_key=ALICE) as alice,
        AsyncClient(server.address, api_key=BOB) as bob,
    ):
        request = pb.GenerateRequest(prompt={"text": "abc"}, priority=-1)
        request.stop_conditions.max_new_tokens = 1
        assert [event async for event in alice.stub.Generate(request)]
        with pytest.raises(grpc.aio.AioRpcError, match="priority is -1, and key bob") as caught:
            await bob.stub.Generate(request).read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        request.priority = 5
        assert [event async for event in bob.stub.Generate(request)]
    assert ApiKeys().may_raise_priority("")


def test_a_key_may_have_several_rights(key_file: Path) -> None:
    key_file.write_text(f"alice:{ALICE}:kv-events\nbob:{BOB}:priority,kv-events\n")
    access = ApiKeys(key_file)
    assert [access.may_raise_priority(name) for name in ("alice", "bob")] == [False, True]
    assert access.may_read_kv_events("alice")
    assert access.may_read_kv_events("bob")
    assert not access.may_read_kv_events("carol")
    assert ApiKeys().may_read_kv_events(""), "without keys anybody may ask for anything"


async def test_every_sample_counts(key_file: Path) -> None:
    async with (
        serving(ApiKeys(key_file), limit=4) as server,
        AsyncClient(server.address, api_key=ALICE) as alice,
    ):
        server.engine.go.clear()
        request = pb.GenerateRequest(prompt={"text": "abc"}, n=3)
        live = alice.stub.Generate(request)
        await until(lambda: len(server.engine.running) == 3)
        for n, code in (
            (2, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (5, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await alice.stub.Generate(pb.GenerateRequest(prompt={"text": "a"}, n=n)).read()
            assert caught.value.code() is code
        live.cancel()


async def test_one_key_is_bounded_and_others_are_not(key_file: Path) -> None:
    async with (
        serving(ApiKeys(key_file), limit=2) as server,
        AsyncClient(server.address, api_key=ALICE) as alice,
        AsyncClient(server.address, api_key=BOB) as bob,
    ):
        server.engine.go.clear()
        live = [asyncio.create_task(text_of(alice)) for _ in range(2)]
        await until(lambda: len(server.engine.running) == 2)
        stub_call = alice.stub.Generate(pb.GenerateRequest(prompt={"text": "abc"}), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub_call.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        found = rpc_status.from_call(caught.value).details
        assert any(each.Unpack(info) for each in found)
        assert any(each.Unpack(retry) for each in found)
        assert (info.reason, retry.retry_delay.seconds) == ("KEY_LIMIT", 1)
        other = asyncio.create_task(text_of(bob))
        await until(lambda: len(server.engine.running) == 3)
        server.engine.go.set()
        assert await asyncio.gather(*live, other) == [answer_text("abc", 4)] * 3
        for _ in range(3):  # what ended, refused ones too, counts no more
            assert await text_of(alice) == answer_text("abc", 4)


def test_a_limit_is_given_back_whatever_ends_the_request() -> None:
    limit = KeyLimit(1)
    for end in (ValueError, RequestError(Code.INTERNAL, "", reason="X"), asyncio.CancelledError):
        with pytest.raises(BaseException), limit.samples("a", 1):  # noqa: B017, PT012
            with limit.samples("b", 0), pytest.raises(RequestError), limit.samples("a", 0):
                pass
            raise end
    with KeyLimit(0).samples("a", 9), KeyLimit(1).samples("", 9):
        pass


# ---- where to listen ----


def config(**changes: Any) -> FrontendConfig:
    facts: dict[str, Any] = {"model": Path(), "served_name": "m", "workers": ("a:1",)}
    return FrontendConfig(**(facts | changes))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com", ""])
def test_beyond_this_machine_somebody_must_be_asked_who_they_are(host: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_exposure(config(host=host))
    line = str(caught.value)
    assert "\n" not in line
    assert all(flag in line for flag in ("--api-key-file", "--tls-client-ca", "--insecure"))
    assert "--insecure" in check_exposure(config(host=host, insecure=True))
    assert "unencrypted" in check_exposure(config(host=host, api_key_file=Path("k")))
    assert "unencrypted" in check_exposure(config(host=host, api_key="k"))
    pair = {"tls_cert": Path("c"), "tls_key": Path("k")}
    assert not check_exposure(config(host=host, api_key_file=Path("k"), **pair))
    assert not check_exposure(config(host=host, tls_client_ca=Path("ca"), **pair))
    with pytest.raises(ValueError):  # encrypted, but for anybody
        check_exposure(config(host=host, **pair))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone_needs_nothing(host: str) -> None:
    assert check_exposure(config(host=host)) == ""


def test_a_limit_of_keys_needs_keys() -> None:
    with pytest.raises(ValueError, match="--max-requests-per-key 3 needs keys"):
        check_exposure(config(max_requests_per_key=3))
    check_exposure(config(max_requests_per_key=3, api_key_file=Path("k")))
    check_exposure(config(max_requests_per_key=3, api_key="k"))


# ---- limits of the transport ----


async def test_messages_and_metadata_are_bounded(key_file: Path) -> None:
    async with (
        serving(ApiKeys(key_file)) as server,
        AsyncClient(server.address, api_key=ALICE) as client,
    ):
        options = (("grpc.max_send_message_length", -1),)
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            generate = channel.unary_stream("/switchyard.v1.InferenceService/Generate")
            header = ("authorization", f"Bearer {ALICE}")
            large = generate(bytes(MAX_MESSAGE_BYTES + 1), metadata=(header,), timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await large.read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            padding = (("x-padding", "x" * 40_000),)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(b"", metadata=(header, *padding), timeout=20).read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await text_of(client) == answer_text("abc", 4)
