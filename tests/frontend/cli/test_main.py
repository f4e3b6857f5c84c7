"""What a person types: generate, chat, health, the probe; flags of the frontend, model folders."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from frontend import probe
from frontend.__main__ import parse_config
from frontend.cli import main
from frontend.config import join_address
from frontend.model_folder import (
    SamplingDefaults,
    read_sampling_defaults,
    resolve_model,
    served_name,
)
from switchyard.release import release
from tests.frontend.fakes import Running, answer_text, running_server


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with running_server() as server:
        yield server


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(main.main, arguments)


async def test_generate_uses_the_chat_template(running: Running, capsys) -> None:
    code = await run("generate", "hi", "--address", running.address, "--max-new-tokens", "3")
    out, err = capsys.readouterr()
    assert (code, out) == (0, "jkl\n")
    assert "3 new" in err
    assert "tok/s" in err
    [request] = running.engine.requests.values()
    assert bytes(request.prompt_ids) == b"u:hi"


async def test_generate_raw_takes_sampling_flags(running: Running, capsys) -> None:
    code = await run(
        "generate", "abc", "--raw", "--address", running.address, "--max-new-tokens", "4",
        "--temperature", "0", "--top-p", "0.5", "--top-k", "7", "--min-p", "0.25", "--seed", "9",
        "--stop", "x", "--stop", "y", "--ignore-eos",
    )  # fmt: skip
    assert (code, capsys.readouterr().out) == (0, answer_text("abc", 4) + "\n")
    [request] = running.engine.requests.values()
    sampling, stops = request.sampling, request.stops
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 7)
    assert (sampling.min_p, sampling.seed) == (0.25, 9)
    assert (stops.stop, stops.eos_token_ids) == (("x", "y"), frozenset())


async def test_generate_json(running: Running, capsys) -> None:
    code = await run(
        "generate", "abc", "--raw", "--json", "--address", running.address, "--max-new-tokens", "4"
    )
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["outputs"] == [
        {
            "text": answer_text("abc", 4),
            "token_ids": list(answer_text("abc", 4).encode()),
            "finish_reason": "FINISH_REASON_LENGTH",
        }
    ]
    assert answer["finished"]["usage"]["completionTokens"] == 4


async def test_generate_several_samples(running: Running, capsys) -> None:
    asked = ("generate", "abc", "--raw", "--address", running.address, "--max-new-tokens", "2")
    assert await run(*asked, "--n", "3") == 0
    out, err = capsys.readouterr()
    assert out == "de\nef\nfg\n"
    assert "6 new" in err
    assert await run(*asked, "--n", "2", "--json", "--logprobs") == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert [output["text"] for output in outputs] == ["de", "ef"]
    assert [output["logprobs"] for output in outputs] == [[-100.0, -101.0], [-101.0, -102.0]]


async def test_generate_takes_a_language(running: Running, tmp_path: Path, capsys) -> None:
    asked = ("generate", "abc", "--raw", "--address", running.address)
    assert await run(*asked, "--regex", "xyz?") == 0
    assert capsys.readouterr().out == "xy\0\n"
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"const": 12}')
    grammar.write_text('start: "hello" "!"?')
    assert await run(*asked, "--json-schema", str(schema), "--presence-penalty", "1") == 0
    assert capsys.readouterr().out == "12\0\n"
    assert await run(*asked, "--grammar", str(grammar)) == 0
    assert capsys.readouterr().out == "hello\0\n"
    with pytest.raises(SystemExit):
        await run(*asked, "--json-schema", str(tmp_path / "missing.json"))
    assert "missing.json cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        await run(*asked, "--regex", "a", "--json-object")


@pytest.mark.usefixtures("no_retries")
async def test_errors_are_one_line(running: Running, nobody: str, capsys) -> None:
    assert await run("generate", "x", "--address", running.address, "--top-p", "3") == 1
    assert "INVALID_ARGUMENT: request.sampling.top_p is 3" in capsys.readouterr().err
    assert await run("generate", "x", "--address", nobody) == 1
    err = capsys.readouterr().err
    assert f"no server at {nobody}" in err
    assert "switchyard serve" in err
    assert err.count("\n") == 1


async def test_chat_keeps_and_forgets(running: Running, capsys, monkeypatch) -> None:
    lines = iter(["hi", "more", "/help", "/reset", "/no or", "/a/path", " /x", "/quit", "no"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    code = await run("chat", "--address", running.address, "--system", "S", "--max-new-tokens", "2")
    assert code == 0
    prompts = [bytes(request.prompt_ids) for request in running.engine.requests.values()]
    assert prompts[:2] == [b"s:Su:hi", b"s:Su:hia:jku:more"]
    # No command reaches the model; what only looks like one does.
    assert prompts[2] == b"s:Su:/a/path"
    assert prompts[3].endswith(b"u:/x")
    assert len(prompts) == 4
    out, err = capsys.readouterr()
    assert out.startswith("jk\nfg\n")
    for line in ("/reset  forget the conversation", "no command /no; /help lists them"):
        assert line in err


@pytest.mark.slow
async def test_probe_codes(running: Running, nobody: str, capsys) -> None:
    def ask(*arguments: str) -> int:
        return probe.main(arguments)

    assert await asyncio.to_thread(ask, running.address) == 0
    assert await asyncio.to_thread(ask, running.address, "liveness") == 0
    assert await asyncio.to_thread(ask, running.address, "other") == 3
    assert await asyncio.to_thread(ask, nobody, "--timeout", "0.2") == 2
    await running.server.health.set_ready(False)
    assert await asyncio.to_thread(ask, running.address) == 4
    assert await run("health", "--address", running.address) == 4
    with pytest.raises(SystemExit) as caught:
        ask("a", "b", "c")
    assert caught.value.code == 1


def test_the_version(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"switchyard {release()}\n"


# ---- flags ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_frontend_flags_become_config(model: Path) -> None:
    config = parse_config(
        ["--model", str(model), "--workers", "a:1,b:2", "--host", "::1", "--port", "7"]
    )
    assert config.workers == ("a:1", "b:2")
    assert join_address(config.host, config.port) == "[::1]:7"
    assert config.served_name == model.name


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "65536"),
        ("--workers", "a:1,,b:2"),
        ("--max-queued-requests", "0"),
        ("--startup-timeout", "-1"),
        ("--drain-timeout", "nan"),
        ("--model", "/nowhere"),
    ],
)
def test_bad_flags_are_refused(model: Path, flag: str, value: str) -> None:
    good = ["--model", str(model), "--workers", "a:1"]
    with pytest.raises(ValueError, match="; pass"):
        parse_config([*good, flag, value])


# ---- the model folder ----


def test_models_are_found(model: Path, tmp_path: Path, monkeypatch) -> None:
    assert resolve_model(str(model)) == model
    assert (served_name(str(model)), served_name(None)) == (model.name, "demo")
    assert served_name("Some/Model") == "Some/Model"

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"Some/Model is neither .* \(no network\); pass"):
        resolve_model("Some/Model")
    (model / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        resolve_model(str(model))


def test_sampling_defaults(model: Path) -> None:
    assert read_sampling_defaults(model) == SamplingDefaults()
    path = model / "generation_config.json"
    path.write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}')
    assert read_sampling_defaults(model) == SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95)
    path.write_text('{"repetition_penalty": 1.05}')
    assert read_sampling_defaults(model) == SamplingDefaults(repetition_penalty=1.05)
    path.write_text('{"do_sample": false, "temperature": 0.6}')
    assert read_sampling_defaults(model).temperature == 0.0
    for bad in (
        "{",
        "[]",
        '{"repetition_penalty": 0}',
        '{"top_p": 2}',
        '{"temperature": "hot"}',
        '{"top_k": true}',
    ):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"generation_config\.json"):
            read_sampling_defaults(model)
