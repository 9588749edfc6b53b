"""`vecdb health`: whether a server serves, as an exit code; for probes of containers and scripts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .cli_output import json_line
from .cli_target import (
    EXIT_ERROR,
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandFailed,
    Target,
    connection,
)
from .cli_words import in_cli_words

_SERVICE = "vecdb.v1.VecdbService"


def add_health(command: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = command(
        "health",
        run_health,
        "ask a server whether it serves; exit code 0 if it does, 1 if it does not, 5 if nobody answers",
        "  vecdb health            takes calls\n  vecdb health docs       has this collection in memory",
    )
    parser.add_argument("collection", nargs="?")
    return parser


def run_health(args: argparse.Namespace, target: Target) -> int:
    if target.data is not None:
        raise CommandFailed("health asks a server; give --server instead of --data", EXIT_USAGE)
    name = _SERVICE if args.collection is None else f"collection/{args.collection}"
    status = _ask(target, name)
    if args.json:
        json_line({"service": name, "status": status})
    else:
        print(status.lower().replace("_", " "))
    return EXIT_OK if status == "SERVING" else EXIT_ERROR


def _ask(target: Target, name: str) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from vecdb_client.credentials import credentials
    from vecdb_client.errors import InvalidArgument
    from vecdb_client.transport import normalised_target

    given = connection(target.connecting)
    try:
        address = normalised_target(target.address)
        shown = credentials(address, given.get("api_key"), given.get("tls"), False)
    except InvalidArgument as error:
        raise CommandFailed(in_cli_words(error.message), EXIT_USAGE) from error
    channel: Any = (
        grpc.insecure_channel(address)
        if shown.channel is None
        else grpc.secure_channel(address, shown.channel)
    )
    with channel:
        ask: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        request = health_pb2.HealthCheckRequest(service=name)
        try:
            found = ask.Check(request, timeout=target.timeout_s, metadata=shown.metadata).status
        except grpc.RpcError as error:
            code: Any = error.code()  # type: ignore[attr-defined,unused-ignore]
            if code is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise CommandFailed(
                f"no answer from {address}: {code.name}", EXIT_UNREACHABLE
            ) from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found))
