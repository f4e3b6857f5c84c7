"""`switchyard generate`, and what it shares with `switchyard chat`: flags of sampling, printing.

Owns the answer's text on stdout and the summary on stderr. Knows nothing of connections.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from frontend.cli.client_flags import add_address_flag, add_security_flags, open_client
from switchyard.client import Stream
from switchyard.requests import Options
from switchyard.v1 import inference_pb2 as pb


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``switchyard generate``."""
    parser.add_argument("prompt", metavar="PROMPT", help="text; - reads it from stdin")
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--n", type=int, metavar="N", help="samples, one after the other")
    parser.add_argument(
        "--logprobs", action="store_true", default=None, help="of each token, with --json"
    )
    add_request_flags(parser)


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """Where to ask, and how the model is to answer."""
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


def options_of(flags: argparse.Namespace) -> Options:
    """What the flags say of a request; the rest is the server's."""
    given = {name: getattr(flags, name, None) for name in Options.__annotations__}
    options: Options = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    return options


def run(flags: argparse.Namespace) -> int:
    """Answer a prompt; returns the exit code."""
    prompt = sys.stdin.read() if flags.prompt == "-" else flags.prompt
    with open_client(flags) as client:
        if not flags.raw and client.model_info().has_chat_template:
            stream = client.chat([{"role": "user", "content": prompt}], **options_of(flags))
        else:
            stream = client.generate(prompt, **options_of(flags))
        with stream:
            if flags.json:
                print(json.dumps(_gather(stream)))
            elif (flags.n or 1) > 1:
                for output in _gather(stream)["outputs"]:
                    print(output["text"])
                print_summary(stream)
            else:
                print_text(stream)
                print_summary(stream)
    return 0


def _gather(stream: Stream) -> dict[str, Any]:
    """The whole answer as a JSON object."""
    outputs: dict[int, dict[str, Any]] = {}
    for delta in stream:
        output = outputs.setdefault(delta.index, {"text": "", "token_ids": []})
        output["text"] += delta.text
        if delta.reasoning:
            output["reasoning"] = output.get("reasoning", "") + delta.reasoning
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


def print_text(stream: Stream) -> tuple[str, str]:
    """Prints text as it comes, and a line's end, and thoughts dim on stderr; returns both."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    reasoning = text = ""
    for delta in stream:
        if delta.reasoning:
            reasoning += delta.reasoning
            console.print(delta.reasoning, style="dim", end="")
        if delta.text:
            if reasoning and not text:
                console.print("\n")
            text += delta.text
            print(delta.text, end="", flush=True)
    print()
    return reasoning, text


def print_summary(stream: Stream) -> None:
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
