"""`switchyard`: the command a person types. serve, generate, chat, health.

Owns flags, printing and exit codes. Everything else is `frontend.supervisor`, `frontend.probe` and
`switchyard.client`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from frontend import supervisor
from frontend.probe import probe
from switchyard.client import DEFAULT_ADDRESS, Client, ServerError, Stream
from switchyard.requests import Options
from switchyard.v1 import inference_pb2 as pb


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        return int(flags.run(flags))
    except ServerError as error:
        sys.stderr.write(f"switchyard: {_explain(error, flags.address)}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="switchyard", description="Serve a language model over gRPC, and talk to it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a model", description=supervisor.__doc__)
    supervisor.add_flags(serve)
    serve.set_defaults(run=supervisor.serve)

    generate = commands.add_parser("generate", help="continue a prompt, or answer it")
    generate.add_argument("prompt", metavar="PROMPT", help="text; - reads it from stdin")
    generate.add_argument("--raw", action="store_true", help="no chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end")
    _add_client_flags(generate)
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", help="talk to the model")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    _add_client_flags(chat)
    chat.set_defaults(run=_chat)

    health = commands.add_parser("health", help="is the server ready?")
    _add_address(health)
    health.set_defaults(run=_health)
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default: %(default)s"
    )


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    group = parser.add_argument_group("sampling", "the server's defaults where nothing is given")
    group.add_argument("--max-new-tokens", type=int, metavar="N")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--stop", action="append", metavar="TEXT", help="may be repeated")
    group.add_argument("--ignore-eos", action="store_true", default=None)


def _options(flags: argparse.Namespace) -> Options:
    given = {name: getattr(flags, name, None) for name in Options.__annotations__}
    options: Options = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    return options


def _generate(flags: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if flags.prompt == "-" else flags.prompt
    with Client(flags.address) as client:
        if not flags.raw and client.model_info().has_chat_template:
            stream = client.chat([{"role": "user", "content": prompt}], **_options(flags))
        else:
            stream = client.generate(prompt, **_options(flags))
        with stream:
            if flags.json:
                print(json.dumps(_gather(stream)))
            else:
                _print_text(stream)
                _print_summary(stream)
    return 0


def _gather(stream: Stream) -> dict[str, Any]:
    """The whole answer as JSON takes it."""
    text, finish_reason = "", ""
    token_ids: list[int] = []
    for delta in stream:
        text += delta.text
        token_ids += delta.token_ids
        finish_reason = pb.FinishReason.Name(delta.finish_reason)
    return {
        "text": text,
        "token_ids": token_ids,
        "finish_reason": finish_reason,
        "started": json_format.MessageToDict(stream.started),
        "finished": json_format.MessageToDict(stream.finished),
    }


def _print_text(stream: Stream) -> str:
    """Print text as it comes, and a line's end; the text."""
    text = ""
    for delta in stream:
        text += delta.text
        print(delta.text, end="", flush=True)
    print()
    return text


def _print_summary(stream: Stream) -> None:
    """One dim line on stderr: tokens and time."""
    usage, timings = stream.finished.usage, stream.finished.timings
    first = _seconds(timings.queued) + _seconds(timings.prefill)
    decode = _seconds(timings.decode)
    rate = (usage.completion_tokens - 1) / decode if decode > 0 else 0.0
    Console(stderr=True, highlight=False).print(
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_prompt_tokens} cached), "
        f"{usage.completion_tokens} new, first after {first:.3f} s, {rate:.1f} tok/s",
        style="dim",
    )


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def _chat(flags: argparse.Namespace) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing, where Python has it
    console = Console(stderr=True, highlight=False)
    with Client(flags.address) as client:
        info = client.model_info()
        if not info.has_chat_template:
            sys.stderr.write(f"switchyard: {info.model} has no chat template; use generate\n")
            return 1
        console.print(
            f"{info.model}: Ctrl-C stops an answer, /reset forgets, Ctrl-D leaves", style="dim"
        )
        opening = [{"role": "system", "content": flags.system}] if flags.system else []
        messages = list(opening)
        for line in _lines():
            if line == "/reset":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": line})
            answer = _turn(client, messages, flags)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})
    return 0


def _lines() -> Iterator[str]:
    """What a person types, until Ctrl-D; Ctrl-C drops the line."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line:
            yield line


def _turn(
    client: Client, messages: Sequence[Mapping[str, str]], flags: argparse.Namespace
) -> str | None:
    """Print one answer; its text, or None when it failed or was stopped."""
    try:
        with client.chat(messages, **_options(flags)) as stream:
            text = _print_text(stream)
            _print_summary(stream)
            return text
    except KeyboardInterrupt:
        print()
    except ServerError as error:
        sys.stderr.write(f"switchyard: {_explain(error, flags.address)}\n")
    return None


def _health(flags: argparse.Namespace) -> int:
    verdict, line = probe(flags.address)
    print(line)
    return int(verdict)


def _explain(error: ServerError, address: str) -> str:
    """One line: what happened and what to do."""
    if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
        return f"no server at {address}; start one with `switchyard serve`, or pass --address"
    return f"{error.code.name}: {error.message}"


if __name__ == "__main__":
    sys.exit(main())
