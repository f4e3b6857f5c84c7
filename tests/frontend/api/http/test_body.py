"""Bodies over a socket: their types, their encodings, and the bounds of one and of all."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.api.http import body as upload
from frontend.bounds import MAX_BODY_BYTES
from tests.frontend.fakes import answer_text
from tests.frontend.http_fakes import post, raw, running_http
from tests.waiting import until

BODY = json.dumps({"prompt": "abc", "max_tokens": 3}).encode()
PACKED = gzip.compress(BODY, mtime=0)  # no time, so that it is the same in each process
JSON = "content-type: application/json"


def code_of(answer: bytes) -> str:
    return str(json.loads(answer)["error"]["code"])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", PACKED), ("X-GZIP", PACKED),
        ("deflate", zlib.compress(BODY)), ("identity", BODY), ("", BODY),
    ],
)  # fmt: skip
async def test_encoded_bodies_are_decoded(name: str, body: bytes) -> None:
    async with running_http() as http:
        status, _, answer = await post(http.port, body, JSON, f"content-encoding: {name}")
        assert status == 200
        assert json.loads(answer)["choices"][0]["text"] == answer_text("abc", 3)
        in_parts = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{JSON}\r\nconnection: close\r\n"
            f"content-encoding: {name}\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert (await raw(http.port, head.encode() + in_parts))[0] == 200


@pytest.mark.parametrize(
    ("name", "body", "status", "code"),
    [
        ("br", BODY, 415, "unsupported_encoding"),
        ("gzip, gzip", PACKED, 415, "unsupported_encoding"),
        ("gzip", BODY, 400, "invalid_encoding"),
        ("gzip", b"", 400, "invalid_encoding"),
        ("gzip", PACKED[:-1], 400, "invalid_encoding"),
        ("gzip", PACKED + b"x", 400, "invalid_encoding"),
        ("gzip", PACKED * 2, 400, "invalid_encoding"),
        ("deflate", PACKED, 400, "invalid_encoding"),
        ("gzip", gzip.compress(b"not JSON", mtime=0), 400, "invalid_value"),
    ],
)
async def test_other_encodings_are_refused(name: str, body: bytes, status: int, code: str) -> None:
    async with running_http() as http:
        got, headers, answer = await post(http.port, body, JSON, f"content-encoding: {name}")
        assert (got, code_of(answer)) == (status, code)
        if status == 415:
            assert headers["accept-encoding"] == "gzip, deflate"
        assert not http.engine.requests


async def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = gzip.compress(b" " * (128 << 20), 1)
    assert len(bomb) < MAX_BODY_BYTES
    async with running_http() as http:
        tracemalloc.start()
        status, _, answer = await post(http.port, bomb, JSON, "content-encoding: gzip")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (status, code_of(answer)) == (413, "body_too_large")
    assert peak < 4 * MAX_BODY_BYTES


BROWSER = ("origin: http://x", "sec-fetch-site: same-origin")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((JSON,), 200),
        (("content-type: Application/JSON; charset=utf-8",), 200),
        (("content-type: application/x-www-form-urlencoded",), 200),  # curl -d
        ((), 200),
        (("content-type: text/plain",), 415),
        (("content-type: multipart/form-data; boundary=x",), 415),
        ((JSON, *BROWSER), 200),
        (BROWSER[:1], 415),
        (BROWSER[1:], 415),
        (("content-type: application/x-www-form-urlencoded", *BROWSER[:1]), 415),
        (("content-type: text/plain", *BROWSER), 415),
    ],
)
async def test_a_body_is_json_and_a_browsers_is_said_to_be(
    headers: tuple[str, ...], status: int
) -> None:
    async with running_http() as http:
        got, _, answer = await post(http.port, BODY, *headers)
        assert got == status
        if status == 415:
            assert code_of(answer) == "unsupported_media_type"
            assert not http.engine.requests


async def test_bodies_under_way_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MAX_BODIES_BYTES", 100_000)
    monkeypatch.setattr(upload, "UNCOUNTED_BODY_BYTES", 1000)
    budget = upload.Budget()
    monkeypatch.setattr(upload, "Budget", lambda: budget)
    large = BODY[:-1] + b" " * 60_000 + b"}"
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(large)
    async with running_http() as http, asyncio.timeout(30):
        reader, held_back = await asyncio.open_connection("127.0.0.1", http.port)
        held_back.write(head + large[:-1])
        await until(lambda: budget.used == len(large) - 1 - 1000)
        status, headers, answer = await post(http.port, large)
        assert (status, code_of(answer)) == (503, "bodies_full")
        assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        small = BODY[:-1] + b" " * 500 + b"}"
        assert (await post(http.port, small))[0] == 200
        packed = gzip.compress(large)
        got = await post(http.port, packed, "content-encoding: gzip")
        assert (len(packed) < 1000, got[0]) == (True, 503)
        held_back.write(large[-1:])
        assert b"HTTP/1.1 200 " in await reader.readline()
        assert budget.used == 0
        assert (await post(http.port, large))[0] == 200
        held_back.close()
        _, gone = await asyncio.open_connection("127.0.0.1", http.port)
        gone.write(head + large[:-1])
        await until(lambda: budget.used)
        gone.close()
        await until(lambda: not budget.used)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("[" + "[]," * 20_000 + "[]]", "lists and objects"),
        ("[" + '{"a":{}},' * 10_000 + "0]", "lists and objects"),
        ("[" + "0," * 300_000 + "0]", "values"),
        ("{" + ",".join(f'"{i}":0' for i in range(300_001)) + "}", "values"),
        ("[" * 20_001, "lists and objects"),
        ("1" * 251, "250 digits"),
    ],
)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_values_are_counted_before_they_are_parsed(
    value: str, complaint: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "parse_object", lambda body: pytest.fail("it was parsed"))
    body = b'{"prompt": "abc", "ignored": ' + value.encode() + b"}"
    packed = gzip.compress(body, 1) if encoding == "gzip" else body
    async with running_http() as http:
        status, _, answer = await post(http.port, packed, JSON, f"content-encoding: {encoding}")
    assert (status, code_of(answer)) == (413, "body_too_large")
    assert complaint in json.loads(answer)["error"]["message"]


async def test_what_strings_hold_is_no_value() -> None:
    text = '[{,"\\' * 30_000 + "1" * 1000
    body = json.dumps({"prompt": "abc", "max_tokens": 3, "ignored": [text, text + "\\"]}).encode()
    async with running_http() as http:
        status, _, answer = await post(http.port, body, JSON)
    assert status == 200, answer


@given(
    st.lists(st.text(alphabet='a"\\[{,1é', max_size=12), max_size=6), st.integers(1, 9), st.data()
)
def test_values_are_counted_however_they_are_cut(
    texts: list[str], size: int, data: st.DataObject
) -> None:
    values: list[object] = [*texts, data.draw(st.lists(st.integers(0, 9), max_size=4)), {"a,": 1}]
    body = json.dumps(values, ensure_ascii=data.draw(st.booleans())).encode()
    counter = upload._ValueCounter()
    for start in range(0, len(body), size):
        counter.add(body[start : start + size])
    num_ints = len(values[-2])  # type: ignore[arg-type]
    assert counter._num_containers == 3
    assert counter._num_values == 3 + len(values) - 1 + max(0, num_ints - 1)
