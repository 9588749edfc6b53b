"""Life of a server: open the database, listen, serve, drain, close."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection

import vecdb
from vecdb.device import Source, choose
from vecdb.errors import InvalidSetting
from vecdb.index.card import count_gpus
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc

from . import awaited, headroom
from .access import GuardedDatabase
from .admission import Admission
from .audit import AuditLines
from .draining import cut_off, drain
from .health import Health
from .observing import Observing
from .pools import Pools
from .query_stream import QueryStreams
from .readers.keeper import Keeper
from .reloading import taken_up
from .security import Security
from .service_records import Service
from .settings import check, split
from .status import Border

log = logging.getLogger("vecdb.server")

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VecdbService"].full_name

_GRACE_S = 5.0
"""What a call that was cancelled gets to notice it."""
_LAST_WORD_S = 1.0
"""What clients get to hear that their calls are cancelled. One that reads nothing never does."""
_METADATA_BYTES = 8_192
"""Of a call, each entry with 32 bytes more than its texts, as HTTP/2 counts. gRPC's own limit is 16 KiB, and from 8 KiB on
it refuses by chance."""
_SETTINGS_MS = 10_000
"""What a client gets to confirm the settings of a connection: until then it is bound by none of them."""


class Server:
    """One database behind one port. `start`, then `stop`; both once, from any thread."""

    def __init__(self, settings: Mapping[str, Any], devices: Source | None = None) -> None:
        """Takes settings as `settings.check` gives them. Opens nothing yet. `devices`: where the database has its GPUs from; None: those
        of this machine. Reading processes have none."""
        self.settings, self._engine_settings = split(check(settings))
        if self.settings["read_processes"] and self._engine_settings["device"] not in (
            "auto",
            "cpu",
        ):
            raise InvalidSetting(
                f"device {self._engine_settings['device']!r} and read_processes do not go together: these "
                "processes search on the CPU. Set read_processes to 0, or device to cpu",
                setting="read_processes",
            )
        self._devices = devices
        self.port = 0
        self._database: vecdb.Database | None = None
        self._keeper: Keeper | None = None

    def start(self) -> None:
        """Opens the database and answers calls from now on; `port` is then the real one.

        DatabaseLocked, FormatMismatch and the like as `vecdb.open`; InvalidSetting when the address
        cannot be listened on; Unavailable when a reading process cannot be started.
        """
        headroom.prepare(self.settings["max_message_bytes"])
        self._security = Security(self.settings, self._audit())
        try:
            self._database = self._opened()
        except BaseException:
            self._security.close()
            raise
        try:
            _tell_of_devices(self._database, self._device)
            self._listen(self._database)
        except BaseException:
            self._database.close()
            self._security.close()
            raise
        if self._keeper is not None:
            try:
                self._keeper.start(self.port)
            except BaseException:
                self.stop()
                raise

    # What a reading process does otherwise, see readers/process.py.

    def _opened(self) -> vecdb.Database:
        database = vecdb.Database(
            Path(self.settings["data"]),
            read_only=False,
            settings={**self._engine_settings, "device": self._device},
            devices=self._devices,
        )
        database.others_read = bool(self.settings["read_processes"])
        if self._device != self._engine_settings["device"]:
            there = [one.name for one in choose("auto", count_gpus)]
            if there:
                log.warning(
                    "GPUs are not used: with read_processes the CPU searches",
                    extra={"unused": ",".join(there)},
                )
        return database

    @property
    def _device(self) -> str:
        return "cpu" if self.settings["read_processes"] else str(self._engine_settings["device"])

    def _audit(self) -> AuditLines | None:
        """Who writes the audit log; None: this process, if it has one."""
        return None

    def _border(self) -> Border:
        limit = self.settings["max_message_bytes"]
        guard, watching = self._security.guard, self._observing
        return Border(
            self._pools, limit, guard, watching, self._filter_s, self._observing.slow_calls
        )

    def _under_way(self) -> int:
        """Calls that run, or whose large answer has not left gRPC."""
        return self._pools.running() + self._calls.untaken.count

    def _filter_s(self) -> float:
        return float(self.settings["max_filter_s"])

    @property
    def _shares_port(self) -> bool:
        return bool(self.settings["read_processes"])

    @property
    def _beside(self) -> str:
        """A second address to listen on, for processes of this server alone; empty: none."""
        return "" if self._keeper is None else self._keeper.writer

    def reload(self, settings: Mapping[str, Any] | None = None) -> list[str]:
        """Takes up changed keys and certificates at once, and of `settings`, as `settings.check` gives them,
        those that may change while the server runs; what has changed. Any thread, one at a time.

        InvalidSetting names what cannot be used; keys and certificates in use stay in use.
        """
        changed = []
        if settings is not None:
            changed = taken_up(self.settings, self._engine_settings, check(settings))
            self._observing.reload(self.settings)
        if self._keeper is not None:
            self._keeper.reload(
                {name: self.settings[name] for name in changed if name in self.settings}
            )
        return [*changed, *self._security.reload()]

    def _listen(self, database: vecdb.Database) -> None:
        settings = self.settings
        limit = settings["max_message_bytes"]
        workers = settings["worker_threads"]
        if not _pools_by_handler():
            # Without pools of their own, long calls must not be able to take all threads.
            workers = 8 + sum(
                settings[n] for n in ("stream_threads", "write_threads", "query_streams")
            )
            log.warning(
                "this version of grpc serves all calls from one pool of %d threads", workers
            )
        if not _requests_can_end():
            log.warning(
                "this version of grpc cannot end calls whose request does not come (request_wait_s)"
            )
        admission = Admission(settings)
        self._streams = QueryStreams(admission)
        self._pools = Pools(
            workers,
            settings["write_threads"],
            settings["stream_threads"],
            settings["query_streams"],
            self._streams,
            admission,
        )
        self._observing = Observing(settings, database, self._pools, admission)
        self._streams.told = self._observing.metrics.streamed
        self._streams.traced = self._observing.streamed
        self._streams.under_way = self._pools.running
        try:
            if settings["read_processes"]:
                self._keeper = Keeper(
                    settings["read_processes"],
                    {**settings, **self._engine_settings},
                    self._security.audit,
                )
                self._observing.metrics.keeper = self._keeper
            self._open_port(database, limit)
        except BaseException:
            if self._keeper is not None:
                self._keeper.wait(0.0)  # none was started, but their folder is there
            self._observing.close()
            raise

    def _open_port(self, database: vecdb.Database, limit: int) -> None:
        settings = self.settings
        self._health = Health(database, self._security.guard.may_know)
        self._calls = self._border()
        self._grpc = grpc.server(
            self._pools.reads,
            interceptors=[self._calls],
            options=(
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_concurrent_streams", settings["max_streams_per_connection"]),
                ("grpc.max_allowed_incoming_connections", settings["max_connections"]),
                ("grpc.max_metadata_size", _METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
                ("grpc.http2.settings_timeout", _SETTINGS_MS),
                # Two servers on one port would each get some of the calls; reading processes are to.
                ("grpc.so_reuseport", int(self._shares_port)),
                ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ),
        )
        service: Any = Service(
            GuardedDatabase(database), limit, self._pools, self._observing, self._streams
        )
        service.backup_root = settings["backup_root"]
        add_service: Any = pb_grpc.add_VecdbServiceServicer_to_server
        add_service(service, self._grpc)
        add_health: Any = health_pb2_grpc.add_HealthServicer_to_server
        add_health(self._health, self._grpc)
        names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self.port = self._bind()
        if self._beside:
            self._grpc.add_insecure_port(self._beside)
        self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        self._grpc.start()

    def _bind(self) -> int:
        address = _address(self.settings["host"], self.settings["port"])
        # With reading processes gRPC would share the port with a server of another folder, too.
        taken = self._keeper is not None and not _is_free(
            self.settings["host"], self.settings["port"]
        )
        port = 0 if taken else self._security.bind(self._grpc, address)
        if not port:
            raise InvalidSetting(
                f"cannot listen on {address}: {_why_not(self.settings['host'], self.settings['port'])}",
                setting="port",
            )
        return port

    @property
    def readers(self) -> Keeper | None:
        """The reading processes; None where there are none."""
        return self._keeper

    @property
    def metrics_port(self) -> int | None:
        """The port that metrics are served on over HTTP; None where they have none."""
        return self._observing.metrics_port

    @property
    def address(self) -> str:
        """host:port that the server listens on."""
        return _address(self.settings["host"], self.port)

    def stop(self) -> bool:
        """Refuses new calls, lets running ones end and their answers arrive within `drain_timeout_s`, closes the database.

        False when calls were still running even after they had been cancelled. The database is then
        left as it is: closing it under them could crash, and what was acknowledged is on disk.
        """
        assert self._database is not None
        self._health.close()
        self._streams.close()
        self._pools.refuse_all()
        if self._keeper is not None:
            self._keeper.stop()
        if not drain(self.port, self._under_way, self.settings["drain_timeout_s"]):
            log.warning(
                "calls are ended: drain_timeout_s is over",
                extra={"running": self._pools.running(), "unread": self._calls.untaken.count},
            )
        # What is left open never ends by itself: watchers of the health service, reflection, and streams of
        # queries that have nothing to answer.
        if not self._grpc.stop(0).wait(_LAST_WORD_S):
            log.warning(
                "connections are cut off whose clients take nothing",
                extra={"count": cut_off(self.port)},
            )
        ended = threading.Event()

        def wait_for_threads() -> None:
            self._pools.shutdown(wait=True)
            ended.set()

        if self._keeper is not None:
            self._keeper.wait(self.settings["drain_timeout_s"] + _GRACE_S)
        # gRPC has told the clients by now; a handler may still be inside the engine.
        threading.Thread(target=wait_for_threads, daemon=True).start()
        if not ended.wait(_GRACE_S):
            log.error("calls are still running; leaving without closing the database")
            return False
        # After the last call, so that it is in the metrics and traces; before the database that these read.
        self._observing.close()
        self._database.close()
        self._security.close()
        return True


def _tell_of_devices(database: vecdb.Database, setting: str) -> None:
    """One line of the log: which GPUs were found, and what searches."""
    devices = database.devices
    found = "not looked for" if setting == "cpu" else "none"
    log.info(
        "devices",
        extra={
            "device": setting,
            "found": found if devices is None else ",".join(devices.found),
            "used": "cpu" if devices is None else ",".join(devices.names),
        },
    )


def _pools_by_handler() -> bool:
    """Whether this grpc runs a handler in the pool that its attribute names."""
    from grpc import _server

    return hasattr(_server, "_select_thread_pool_for_behavior")


def _requests_can_end() -> bool:
    """Whether this grpc has what waiting for a request with an end is made of."""
    from grpc import _server

    return awaited.can_end(getattr(_server, "_RequestIterator", None))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _is_free(host: str, port: int) -> bool:
    """Whether nobody listens there; what cannot be found out is gRPC's to say."""
    try:
        family, kind, protocol, _, address = _resolved(host, port)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def _resolved(host: str, port: int) -> Any:
    return socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]


def _why_not(host: str, port: int) -> str:
    """The system's own words; gRPC keeps them to itself."""
    try:
        family, kind, protocol, _, address = _resolved(host, port)
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        said = str(error.strerror or error)
        if error.errno == errno.EADDRINUSE:
            return (
                f"{said}; another server may run there. Choose another port, or 0 for any free one"
            )
        return said
    return "the address is in use or not allowed; choose another port, or 0 for any free one"
