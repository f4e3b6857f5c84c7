"""`python -m frontend.probe [ADDR] [SERVICE]`: ask a server's health, answer by exit code.

Codes are those of grpc_health_probe: 0 healthy, 1 bad arguments, 2 no connection, 3 the call
failed, 4 not serving. Containers need no other binary for it.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from frontend.cli.client_flags import FlagError, add_security_flags, client_tls, grpc_address
from frontend.cli.diagnosis import why_no_answer
from switchyard.channel import Tls, open_channel
from switchyard.client import DEFAULT_ADDRESS
from switchyard.parser import Parser


class Verdict(enum.IntEnum):
    """Exit codes."""

    HEALTHY = 0
    BAD_ARGUMENTS = 1
    NO_CONNECTION = 2
    CALL_FAILED = 3
    UNHEALTHY = 4


def probe(
    address: str, service: str = "", timeout: float = 2.0, tls: Tls | None = None
) -> tuple[Verdict, str]:
    """Asks once, without a key; returns the verdict and a line about it. Connecting and answering
    may take ``timeout`` seconds each."""
    with open_channel(grpc, address, tls=tls) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout)
        except grpc.FutureTimeoutError:
            return Verdict.NO_CONNECTION, why_no_answer(address, tls)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout
            )
        except grpc.RpcError as error:
            return Verdict.CALL_FAILED, f"{error.code().name} {error.details() or ''}".rstrip()
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    healthy = answer.status == health_pb2.HealthCheckResponse.SERVING
    return (Verdict.HEALTHY if healthy else Verdict.UNHEALTHY), status


class _Parser(Parser):
    bad_arguments = Verdict.BAD_ARGUMENTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _Parser(prog="python -m frontend.probe", description=__doc__)
    parser.add_argument(
        "address", nargs="?", type=grpc_address, default=DEFAULT_ADDRESS, metavar="ADDR"
    )
    parser.add_argument("service", nargs="?", default="", metavar="SERVICE")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS")
    add_security_flags(parser, keys=False)
    flags = parser.parse_args(arguments)
    try:
        verdict, line = probe(flags.address, flags.service, flags.timeout, client_tls(flags))
    except FlagError as error:
        parser.error(str(error))
    stream = sys.stdout if verdict is Verdict.HEALTHY else sys.stderr
    stream.write(f"{line}\n")
    return int(verdict)


if __name__ == "__main__":
    sys.exit(main())
