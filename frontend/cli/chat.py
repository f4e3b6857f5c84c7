"""`switchyard chat`: a conversation in the terminal.

Owns the turns and the commands that begin with a slash, which the model never sees.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console

from frontend.cli.client_flags import client_tls, open_client
from frontend.cli.diagnosis import explain
from frontend.cli.generate import add_request_flags, options_of, print_summary, print_text
from switchyard.client import Client, ServerError
from switchyard.requests import Message

_COMMAND = re.compile(r"/\w+")
_COMMANDS = {
    "/help": "show this",
    "/reset": "forget the conversation",
    "/exit": "leave, as Ctrl-D does; also /quit, /bye",
}
_LEAVE = ("/exit", "/quit", "/bye")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``switchyard chat``."""
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_request_flags(parser)


def run(flags: argparse.Namespace) -> int:
    """Talk until the person leaves; returns the exit code."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing, where Python has it
    console = Console(stderr=True, highlight=False)
    with open_client(flags) as client:
        info = client.model_info()
        if not info.has_chat_template:
            sys.stderr.write(f"switchyard: {info.model} has no chat template; use generate\n")
            return 1
        console.print(f"{info.model}: /help lists commands, Ctrl-C stops an answer", style="dim")
        opening: list[Message] = []
        if flags.system:
            opening = [{"role": "system", "content": flags.system}]
        messages = list(opening)
        for line in _lines():
            if line in _LEAVE:
                break
            if line == "/reset":
                messages = list(opening)
            elif line.startswith("/") and _COMMAND.fullmatch(line.split()[0]):
                console.print(_help(line), style="dim")
            else:
                _take_turn(client, messages, line, flags)
    return 0


def _help(line: str) -> str:
    """The commands; of one that there is not, how to send it all the same."""
    if line != "/help":
        return f"no command {line.split()[0]}; /help lists them, a blank before sends it"
    return "\n".join(f"{command:7} {what}" for command, what in _COMMANDS.items())


def _lines() -> Iterator[str]:
    """Lines that a person types, until Ctrl-D; Ctrl-C drops the line."""
    while True:
        try:
            line = input("> ").rstrip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line:
            yield line


def _take_turn(
    client: Client, messages: list[Message], line: str, flags: argparse.Namespace
) -> None:
    """Add what was typed and its answer, unless that failed or was stopped."""
    asked = {"role": "user", "content": line.strip()}
    answer = _answer(client, [*messages, asked], flags)
    if answer is not None:
        messages += [asked, answer]


def _answer(
    client: Client, messages: Sequence[Message], flags: argparse.Namespace
) -> Message | None:
    """Prints one answer; returns it as a turn, or None when it failed or was stopped."""
    try:
        with client.chat(messages, **options_of(flags)) as stream:
            reasoning, text = print_text(stream)
            print_summary(stream)
            return {"role": "assistant", "content": text, "reasoning": reasoning}
    except KeyboardInterrupt:
        print()
    except ServerError as error:
        sys.stderr.write(f"switchyard: {explain(error, flags.address, client_tls(flags))}\n")
    return None
