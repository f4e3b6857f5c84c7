"""The command `switchyard` with its subcommands serve, models, generate, chat, top, health and
completion.

Owns the list of them, and exit codes. What each does is in the file of its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from frontend.cli import chat, completion, generate, models, serve, top
from frontend.cli.client_flags import (
    FlagError,
    add_address_flag,
    add_security_flags,
    client_tls,
)
from frontend.cli.diagnosis import explain
from frontend.cli.foreign_flags import VLLM_FLAGS
from frontend.probe import probe
from switchyard.client import ServerError
from switchyard.parser import Parser
from switchyard.release import release


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        return int(flags.run(flags))
    except ServerError as error:
        sys.stderr.write(f"switchyard: {explain(error, flags.address, client_tls(flags))}\n")
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

    served = commands.add_parser("models", help="which models can be served?")
    served.set_defaults(run=lambda flags: models.run())

    once = commands.add_parser("generate", help="continue a prompt, or answer it")
    generate.add_flags(once)
    once.set_defaults(run=generate.run)

    talk = commands.add_parser("chat", help="talk to the model")
    chat.add_flags(talk)
    talk.set_defaults(run=chat.run)

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


def _health(flags: argparse.Namespace) -> int:
    verdict, line = probe(flags.address, tls=client_tls(flags))
    print(line)
    return int(verdict)
