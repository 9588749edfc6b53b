"""A gRPC server that answers with a servicer of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc


@contextmanager
def serving(servicer: Any, threads: int = 4) -> Iterator[tuple[Any, str]]:
    """(servicer, address) while the body runs."""
    with futures.ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool)
        add: Any = pb_grpc.add_VecdbServiceServicer_to_server
        add(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"127.0.0.1:{port}"
        server.stop(0).wait()
