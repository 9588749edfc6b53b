"""The HTTP port that Prometheus reads: /metrics, and nothing else that changes anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from vecdb.errors import InvalidSetting

from .settings import is_loopback

log = logging.getLogger("vecdb.server")


def host_and_port(settings: Mapping[str, Any]) -> tuple[str, int] | None:
    """The address that `metrics_address` names, None where metrics have no port. InvalidSetting."""
    given = settings["metrics_address"]
    if not given:
        return None
    host, colon, port = given.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise InvalidSetting(
            f"metrics_address is host:port, such as 127.0.0.1:7701, given {given!r}",
            setting="metrics_address",
        )
    if not is_loopback(host) and not settings["metrics_on_the_network"]:
        raise InvalidSetting(
            f"metrics_address {given!r} can be reached from the network, and metrics are served there "
            "unencrypted and to everybody: they name collections. Say in words that you want it so: "
            "metrics_on_the_network",
            setting="metrics_address",
        )
    return host, int(port)


class MetricsPort:
    """Serves a registry over HTTP in threads of its own, until `close`."""

    def __init__(self, where: tuple[str, int], registry: CollectorRegistry) -> None:
        """InvalidSetting when the address cannot be listened on."""
        host, port = where
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise InvalidSetting(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}",
                setting="metrics_address",
            ) from None
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
