"""The command `switchyard` with its subcommands serve, generate, chat, top, health and completion.

Owns their flags, printing and exit codes. The rest is `frontend.cli.serve`, `frontend.probe` and
`switchyard.client`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from frontend.cli import completion, serve, top
from frontend.cli.client_flags import (
    FlagError,
    add_address_flag,
    add_security_flags,
    client_tls,
    open_client,
)
from frontend.cli.diagnosis import why_no_answer
from frontend.cli.foreign_flags import VLLM_FLAGS
from frontend.probe import probe
from switchyard.client import Client, ServerError, Stream
from switchyard.parser import Parser
from switchyard.release import release
from switchyard.requests import Options
from switchyard.v1 import inference_pb2 as pb

_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        return int(flags.run(flags))
    except ServerError as error:
        sys.stderr.write(f"switchyard: {_explain(error, flags)}\n")
        return 1
    except FlagError as error:
        sys.stderr.write(f"switchyard: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="switchyard", description="Serve a language model over gRPC and HTTP, and talk to it."
    )
    parser.add_argument("--version", action="version", version=f"switchyard {release()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serving = commands.add_parser(
        "serve",
        help="serve a model",
        usage="%(prog)s [MODEL] [FLAG …]",
        description=serve.DESCRIPTION,
        epilog=serve.EPILOG,
        hints=VLLM_FLAGS,
    )
    serve.add_flags(serving)
    serving.set_defaults(run=serve.serve)

    generate = commands.add_parser("generate", help="continue a prompt, or answer it")
    generate.add_argument("prompt", metavar="PROMPT", help="text; - reads it from stdin")
    generate.add_argument("--raw", action="store_true", help="no chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end")
    generate.add_argument("--n", type=int, metavar="N", help="samples, one after the other")
    generate.add_argument(
        "--logprobs", action="store_true", default=None, help="of each token, with --json"
    )
    _add_client_flags(generate)
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", help="talk to the model")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    _add_client_flags(chat)
    chat.set_defaults(run=_chat)

    watch = commands.add_parser("top", help="see a server's load; q leaves")
    top.add_flags(watch)
    watch.set_defaults(run=top.run)

    health = commands.add_parser("health", help="is the server ready?")
    add_address_flag(health)
    add_security_flags(health, keys=False)
    health.set_defaults(run=_health)

    script = commands.add_parser("completion", help="have a shell complete commands and flags")
    completion.add_flags(script)
    script.set_defaults(run=lambda flags: completion.write_script(_parser(), flags.shell))
    return parser


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    add_address_flag(parser)
    add_security_flags(parser)
    group = parser.add_argument_group("sampling", "the server's defaults where nothing is given")
    group.add_argument("--max-new-tokens", type=int, metavar="N")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="1 is off")
    group.add_argument("--presence-penalty", type=float, metavar="P", help="0 is off")
    group.add_argument("--frequency-penalty", type=float, metavar="P", help="0 is off")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--stop", action="append", metavar="TEXT", help="may be repeated")
    group.add_argument("--ignore-eos", action="store_true", default=None)
    shape = parser.add_argument_group("output").add_mutually_exclusive_group()
    shape.add_argument("--json-schema", type=_text_of, metavar="FILE", help="JSON that fits it")
    shape.add_argument("--json-object", action="store_true", default=None, help="any JSON object")
    shape.add_argument("--regex", metavar="REGEX", help="text that matches")
    shape.add_argument("--grammar", type=_text_of, metavar="FILE", help="in Lark's notation")


def _text_of(path: str) -> str:
    """The text of a file that a flag names."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error}") from error


def _options(flags: argparse.Namespace) -> Options:
    given = {name: getattr(flags, name, None) for name in Options.__annotations__}
    options: Options = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    return options


def _generate(flags: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if flags.prompt == "-" else flags.prompt
    with open_client(flags) as client:
        if not flags.raw and client.model_info().has_chat_template:
            stream = client.chat([{"role": "user", "content": prompt}], **_options(flags))
        else:
            stream = client.generate(prompt, **_options(flags))
        with stream:
            if flags.json:
                print(json.dumps(_gather(stream)))
            elif (flags.n or 1) > 1:
                for output in _gather(stream)["outputs"]:
                    print(output["text"])
                _print_summary(stream)
            else:
                _print_text(stream)
                _print_summary(stream)
    return 0


def _gather(stream: Stream) -> dict[str, Any]:
    """The whole answer as a JSON object."""
    outputs: dict[int, dict[str, Any]] = {}
    for delta in stream:
        output = outputs.setdefault(delta.index, {"text": "", "token_ids": []})
        output["text"] += delta.text
        output["token_ids"] += delta.token_ids
        if delta.logprobs:
            output["logprobs"] = output.get("logprobs", []) + list(delta.logprobs)
        if delta.finish_reason:
            output["finish_reason"] = pb.FinishReason.Name(delta.finish_reason)
    return {
        "outputs": [outputs[index] for index in sorted(outputs)],
        "started": json_format.MessageToDict(stream.started),
        "finished": json_format.MessageToDict(stream.finished),
    }


def _print_text(stream: Stream) -> str:
    """Prints text as it comes, and a line's end; returns the text."""
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
    with open_client(flags) as client:
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
    """Lines that a person types, until Ctrl-D; Ctrl-C drops the line."""
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
    """Prints one answer; returns its text, or None when it failed or was stopped."""
    try:
        with client.chat(messages, **_options(flags)) as stream:
            text = _print_text(stream)
            _print_summary(stream)
            return text
    except KeyboardInterrupt:
        print()
    except ServerError as error:
        sys.stderr.write(f"switchyard: {_explain(error, flags)}\n")
    return None


def _health(flags: argparse.Namespace) -> int:
    verdict, line = probe(flags.address, tls=client_tls(flags))
    print(line)
    return int(verdict)


def _explain(error: ServerError, flags: argparse.Namespace) -> str:
    """One line: what happened and what to do."""
    if error.code in _NO_ANSWER and not error.reason:
        return why_no_answer(flags.address, client_tls(flags))
    return f"{error.code.name}: {error.message}"
