"""`switchyard top`: frames as functions of messages, and one asked of a real server."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from frontend.cli import main, top
from frontend.cli.top_view import View, bar, expert_tokens_since, frame, heat_map
from switchyard.client import Client
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, backend, running_server
from tests.waiting import until

INFO = pb.GetServerInfoResponse(
    version="1.2.3", world_size=8, max_running_requests=64, tensor_parallel_size=2,
    data_parallel_size=4, expert_parallel_size=8, moe_ep_backend="all_to_all", device="H200",
    dtype="bfloat16", quantization="fp8 128x128", kv_cache_tokens=100_000, bytes_per_second=4e12,
)  # fmt: skip
LOAD = pb.GetLoadResponse(
    running_requests=16, queued_requests=3, queued_prompt_tokens=4567, kv_cache_usage=0.5,
    generated_tokens_per_second=12345, floor_share=0.25, decode_floor_share=0.75, device_busy=1.0,
    step_seconds=0.00321, idle_seconds_per_step=0.000042, preemptions=7, prefix_query_tokens=100,
    prefix_hit_tokens=90, worker_restarts=2, replayed_requests=11, steps={"steps": 99},
)  # fmt: skip


def experts(*layers: list[int], first: int = 0) -> pb.GetExpertLoadResponse:
    answer = pb.GetExpertLoadResponse()
    for number, tokens in enumerate(layers, first):
        answer.layers.add(layer=number, tokens=tokens, imbalance=1.25)
    return answer


def text_of(what: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in output.splitlines())
    return str(output)


def view(**changes: Any) -> View:
    return View(**({"address": "a:1", "model": "demo", "load": LOAD, "info": INFO} | changes))


def test_a_frame_says_what_the_server_says() -> None:
    text = text_of(frame(view(), 120, 40), 120)
    title = text.splitlines()[0]
    for word in (
        "demo",
        "ready",
        "8 × H200",
        "bfloat16 fp8 128x128",
        "tp 2 dp 4 ep 8 all_to_all",
        "1.2.3",
    ):
        assert word in title
    for word in (
        "16 of 64", "3 waiting", "4567 prompt tokens", "25%", "50%", "75%", "100%", "12345 tok/s",
        "3.21 ms", "42 µs", "hits 90%", "preemptions 7", "restarts 2", "replayed 11", "steps 99",
    ):  # fmt: skip
        assert word in text, word
    assert "experts" not in text  # a dense model
    assert "not known here" not in text
    assert "not known here" in text_of(frame(View(address="a:1"), 120, 40), 120)


@pytest.mark.parametrize("width", [20, 60, 100, 300])
@pytest.mark.parametrize("height", [5, 24, 80, None])
def test_a_frame_fits_its_terminal(width: int, height: int | None) -> None:
    shown = view(experts=experts(*[list(range(128))] * 48), trouble="UNAVAILABLE " + "x" * 200)
    lines = text_of(frame(shown, width, height), width).splitlines()
    if height is not None and height >= 24 and width >= 60:
        assert len(lines) <= height


def test_states_are_told_apart() -> None:
    assert "restarting" in text_of(frame(view(load=pb.GetLoadResponse(restarting=True)), 100, 24))
    lost = text_of(frame(view(trouble="UNAVAILABLE nobody"), 100, 24))
    assert "no answer" in lost
    assert "UNAVAILABLE nobody" in lost
    assert "16 of 64" in lost  # what was known stays in sight
    nothing = text_of(frame(View(address="a:1", trouble="UNAVAILABLE"), 100, 24))
    assert "switchyard no answer" in nothing


@pytest.mark.parametrize(
    ("share", "expected"),
    [(-1.0, "        "), (0.0, "        "), (0.5, "████    "), (1.0, "████████"), (7.0, "████████"),
     (1 / 16, "▌       "), (15 / 16, "███████▌")],
)  # fmt: skip
def test_a_bar_is_as_long_as_its_share(share: float, expected: str) -> None:
    assert bar(share, 8).plain == expected


def test_hot_experts_are_dark_and_even_ones_are_all_the_same() -> None:
    heading, even, hot, none = heat_map(
        experts([5, 5, 5, 5], [0, 0, 0, 20], [0, 0, 0, 0], first=3).layers, 80, None
    )
    assert heading.plain.startswith("experts: 3 layers × 4")
    assert even.plain == "    3  ▒▒▒▒  1.25"
    assert hot.plain == "    4     █  1.25"
    assert none.plain == "    5        1.25"


def test_a_map_shrinks_to_the_terminal() -> None:
    layers = experts(*[[1] * 126 + [0, 64]] * 48).layers
    lines = heat_map(layers, 46, 12)
    assert len(lines) == 13
    numbers = [int(line.plain.split()[0]) for line in lines[1:]]
    assert numbers == list(range(0, 48, 4))
    assert all(len(line.plain) <= 46 for line in lines[1:])  # printing cuts the heading
    assert lines[1].plain.count("█") == 1  # the hot one is still seen, in its group
    wide = heat_map(layers, 400, 100)
    assert len(wide) == 49
    assert len(wide[1].plain) == 7 + 128 + 6


def test_the_map_shows_what_was_added_since_the_frame_before() -> None:
    before, now = experts([1, 2], [3, 4]), experts([1, 5], [3, 4])
    assert [list(each.tokens) for each in expert_tokens_since(before, now).layers] == [
        [0, 3],
        [0, 0],
    ]
    for other in (experts(), experts([9, 9], [9, 9]), experts([1], [2]), experts([1, 2], first=4)):
        assert expert_tokens_since(other, now) == now  # the first look, a restart, another model
    assert expert_tokens_since(now, now) == now  # nothing new: all there was


class Experts:
    async def get(self) -> pb.GetExpertLoadResponse:
        return experts([1, 2, 3, 4])


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(main.main, arguments)


@pytest.mark.parametrize("words", [("--once",), ()])
async def test_one_frame_of_a_server(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, or because stdout is no terminal."""
    async with running_server(ready=False) as server:
        server.service.open(backend(FakeEngine(), experts=Experts()))
        assert await run("top", *words, "--address", server.address) == 0
        out = capsys.readouterr().out
        assert MODEL in out
        assert "ready" in out
        assert "experts: 1 layers × 4" in out


@pytest.mark.usefixtures("no_retries")
async def test_one_frame_of_a_server_that_loads_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_server(ready=False) as server:
        assert await run("top", "--address", server.address) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("switchyard: UNAVAILABLE: ")


class Terminal:
    """A pseudo-terminal in place of stdin and stdout; what is shown on it is read and dropped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ours, theirs = pty.openpty()
        self._streams = [os.fdopen(theirs, "r"), os.fdopen(os.dup(theirs), "w")]
        monkeypatch.setattr("sys.stdin", self._streams[0])
        monkeypatch.setattr("sys.stdout", self._streams[1])
        self.shown = b""
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> None:
        self.shown += os.read(self._ours, 1 << 16)

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._streams[0])[3] & termios.ECHO)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        for stream in self._streams:
            stream.close()
        os.close(self._ours)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("ready", [True, False])
async def test_q_leaves(ready: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the server loads, which is worth watching."""
    async with running_server(ready=ready) as server:
        terminal = Terminal(monkeypatch)
        try:
            watching = asyncio.create_task(
                run("top", "--interval", "3600", "--address", server.address)
            )
            await until(lambda: b"prefix cache" in terminal.shown)
            assert not terminal.echoes()
            terminal.press(b"x")
            terminal.press(b"q")
            assert await watching == 0
            assert terminal.echoes()
        finally:
            terminal.close()


@pytest.mark.usefixtures("no_retries")
async def test_a_server_that_is_gone_is_one_line_and_what_was_known_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_server() as server:
        address = server.address

        def look() -> tuple[View, Any]:
            return watch.look(), None

        client = Client(address)
        watch = top.Watch(client, address)
        first, _ = await asyncio.to_thread(look)
        assert not first.trouble
    second, _ = await asyncio.to_thread(look)
    client.close()
    assert second.trouble
    assert second.load == first.load
    for words in (("top", "--once"), ("top",)):  # here stdout is no terminal
        assert await run(*words, "--address", address) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith(f"switchyard: no server at {address}; ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", "1e9"])
def test_an_interval_is_some_seconds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["top", "--interval", text])
    assert f"--interval: {text} is not in 0.1..3600 seconds" in capsys.readouterr().err


async def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere"
    assert await run("top", "--once", "--api-key-file", str(missing)) == 2
    assert await run("generate", "x", "--tls-ca", str(missing)) == 2
    assert await run("generate", "x", "--tls-cert", str(missing)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "--api-key-file" in lines[0]
    assert "--tls-ca" in lines[1]
    assert "belong together" in lines[2]
